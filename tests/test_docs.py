"""
What the pages say of this repository is so: snippets run; files, tests, commands and options that they name exist.
"""

import ast
import importlib.util
import inspect
import json
import re
import subprocess
import sys
from pathlib import Path

import gymnasium as gym
import pytest
from masked_game import MaskedGame
from stable_baselines3.common.callbacks import EvalCallback
from stable_baselines3.common.env_util import make_vec_env
from stable_baselines3.common.logger import configure

from sb3_trpo import TRPO, MaskableRecurrentTRPO, MaskableTRPO, RecurrentTRPO, __all__
from sb3_trpo.cli import COMMANDS, main
from sb3_trpo.saved_models.contrib import own_options

REPOSITORY = Path(__file__).parents[1]
PAGES = sorted(
    [
        page
        for pages in ("*.md", "docs/**/*.md", "docs/**/*.ipynb", "benchmarks/*.md", "sb3_trpo/**/*.md")
        for page in REPOSITORY.glob(pages)
    ],
    key=lambda page: page.relative_to(REPOSITORY).as_posix(),
)
README = REPOSITORY / "README.md"
OPTIONS = REPOSITORY / "docs" / "hyperparameters.md"
LOG_KEYS = REPOSITORY / "docs" / "log-keys.md"
# The pages of docs/ that promise something in each row of a table.
PROMISING = ("drop-in", "reliability", "supply-chain")
MAKEFILE = (REPOSITORY / "Makefile").read_text()


def name(page: Path) -> str:
    """
    Name a page.

    :param page: its file
    :return: its path, from the repository on
    """
    return page.relative_to(REPOSITORY).as_posix()


def read(page: Path) -> str:
    """
    Read a page.

    :param page: its file; of a notebook all code is taken for one block, for its cells run one after the other
    :return: its text, in Markdown
    """
    if page.suffix != ".ipynb":
        return page.read_text()
    cells = json.loads(page.read_text())["cells"]
    prose, code = (["".join(cell["source"]) for cell in cells if cell["cell_type"] == t] for t in ("markdown", "code"))
    return "\n\n".join(prose) + "\n\n```python\n" + "\n\n".join(code) + "\n```\n"


def code(page: Path) -> list[str]:
    """
    Collect the spans between backticks, as words separated by single spaces.

    :param page: a page
    :return: the spans, in the page's order
    """
    without_blocks = re.sub(r"^```.*?^```$", "", read(page), flags=re.DOTALL | re.MULTILINE)
    return [" ".join(span.split()) for span in re.findall(r"`([^`]+)`", without_blocks)]


def snippets(page: Path) -> list[str]:
    """
    Collect the blocks of Python.

    :param page: a page
    :return: their sources
    """
    return re.findall(r"^```python\n(.*?)^```$", read(page), flags=re.DOTALL | re.MULTILINE)


def commands(page: Path) -> list[list[str]]:
    """
    Collect the commands: indented lines, a backslash continuing them, and spans between backticks.

    :param page: a page
    :return: the words of each command of make, Python and sb3-trpo
    """
    text = read(page).replace("\\\n", " ")
    # What follows two spaces and a # is a remark.
    lines = [line.partition("  #")[0] for line in re.findall(r"^    (\S.*)$", text, flags=re.MULTILINE)]
    words = [line.split() for line in [*lines, *code(page)]]
    return [line for line in words if len(line) > 1 and line[0] in ("make", "python", "sb3-trpo")]


def each(collect, program: str | None = None) -> list:
    """
    Make a parameter of every item of every page.

    :param collect: a function from a page to its items
    :param program: take commands of this program only
    :return: parameters of a page and an item
    """
    return [
        pytest.param(page, item, id=f"{name(page)}: {item if isinstance(item, str) else ' '.join(item)}".split("\n")[0])
        for page in PAGES
        for item in collect(page)
        if program is None or item[0] == program
    ]


def options(line: list[str]) -> list[str]:
    """
    List the options of a command.

    :param line: the command's words
    :return: the words that begin with two dashes
    """
    return [word.partition("=")[0] for word in line if word.startswith("--")]


def test_readme_shows_code_and_every_way_to_run_it():
    assert snippets(README)
    assert {line[0] for line in commands(README)} == {"make", "sb3-trpo"}


@pytest.mark.parametrize(("page", "snippet"), each(snippets))
def test_snippet_runs(page, snippet, tmp_path, monkeypatch):
    """
    As it stands, but for the numbers of steps and of evaluated episodes: an update's worth of steps, or a few where the
    page looks at the log, and one episode.
    """
    monkeypatch.chdir(tmp_path)
    n_steps = 3000 if "progress.csv" in snippet else 1
    short = re.sub(r"\.learn\((?:[\d_]+|(?=\)))", f".learn({n_steps}", snippet)
    short = short.replace(".learn(progress_bar", ".learn(1, progress_bar").replace(
        "n_eval_episodes=10", "n_eval_episodes=1"
    )
    exec(compile(short, name(page), "exec"), {"__name__": "__main__"})


@pytest.mark.parametrize("page", [page for page in PAGES if page.suffix == ".ipynb"], ids=name)
def test_notebooks_hold_no_results(page):
    """They run when the pages are built, which a cell with a result would prevent."""
    cells = [cell for cell in json.loads(page.read_text())["cells"] if cell["cell_type"] == "code"]
    assert cells
    assert [cell for cell in cells if cell["outputs"] or cell["execution_count"] is not None] == []


@pytest.mark.parametrize("page", PAGES, ids=name)
def test_links_lead_somewhere(page):
    links = re.findall(r"\]\(([^)\s]+)\)", read(page))
    assert [link for link in links if "://" not in link and not (page.parent / link.partition("#")[0]).exists()] == []


@pytest.mark.parametrize("page", PAGES, ids=name)
def test_paths_that_are_named_exist(page):
    # A path starts at the repository, or at the page's own folder. What training writes is not there yet.
    tops = {path.name for path in REPOSITORY.iterdir()} - {"logs", "dist", "build", ".venv"}
    paths = [span.partition("::")[0] for span in code(page) if re.fullmatch(r"[\w.-]+(/[\w.-]+)+/?(::\w+)?", span)]
    paths = [path for path in paths if path.partition("/")[0] in tops]
    assert [path for path in paths if not any((top / path).exists() for top in (REPOSITORY, page.parent))] == []


@pytest.mark.parametrize("page", PAGES, ids=name)
def test_tests_that_are_named_exist(page):
    named = re.findall(r"(tests/[\w/]+\.py)::(\w+)", read(page))
    assert [(file, test) for file, test in named if f"\ndef {test}(" not in (REPOSITORY / file).read_text()] == []


@pytest.mark.parametrize("page", [REPOSITORY / "docs" / f"{page}.md" for page in PROMISING], ids=PROMISING)
def test_every_row_of_a_table_of_promises_names_its_proof(page):
    tables = re.findall(r"(?:^\|.*\n)+", read(page), flags=re.MULTILINE)
    promises = [table.splitlines() for table in tables if "test" in table.splitlines()[0] or "proved" in table]
    rows = [row for _, _, *rows in promises for row in rows]
    assert rows
    without = [row for row in rows if not re.search(r"tests/|`make |`python benchmarks/", row)]
    # A row with a bold first cell and empty ones is a heading.
    assert [row for row in without if not re.fullmatch(r"\| \*\*[^|]+(\| )+\|", row)] == []


@pytest.mark.parametrize(("page", "line"), each(commands, "make"))
def test_make_knows_the_command(page, line):
    targets = [word for word in line[1:] if "=" not in word and re.fullmatch(r"[\w-]+", word)][:1]
    variables = [word.partition("=")[0] for word in line[1:] if re.match(r"[A-Z]+=", word)]
    assert targets
    for target in targets:
        assert re.search(rf"^{target}:", MAKEFILE, flags=re.MULTILINE)
    for variable in variables:
        assert re.search(rf"^{variable} =", MAKEFILE, flags=re.MULTILINE)


@pytest.mark.parametrize(("page", "line"), each(commands, "sb3-trpo"))
def test_command_line_knows_the_command(page, line, capsys):
    assert line[1] in COMMANDS
    with pytest.raises(SystemExit) as exit_info:
        main([line[1], "--help"])
    assert exit_info.value.code == 0
    parsers_help = capsys.readouterr().out
    assert [option for option in options(line) if option not in parsers_help] == []


@pytest.mark.parametrize(("page", "line"), each(commands, "python"))
def test_python_finds_the_command(page, line):
    if line[1].startswith("-"):
        # What its options do is tested in rl_zoo/test_plugin.py, by a run of the command.
        assert line[1] in ("-m", "-c")
        assert line[1] == "-c" or importlib.util.find_spec(line[2]) is not None
    else:
        script = REPOSITORY / line[1]
        assert script.exists()
        # Scripts share their options, so that these are in the script or in a module beside it.
        sources = "".join(file.read_text() for file in (REPOSITORY / "benchmarks").rglob("*.py"))
        assert [option for option in options(line) if f'"{option}"' not in sources] == []


@pytest.mark.parametrize("page", PAGES, ids=name)
def test_extras_exist(page):
    configuration = (REPOSITORY / "setup.cfg").read_text()
    named = {extra for extras in re.findall(r"(?:\.|sb3-trpo)\[([\w,]+)\]", read(page)) for extra in extras.split(",")}
    assert {extra for extra in named if f"\n{extra} =\n" not in configuration} == set()


@pytest.mark.parametrize("algorithm", [TRPO, MaskableTRPO, RecurrentTRPO, MaskableRecurrentTRPO])
def test_every_argument_has_its_row_with_its_default(algorithm):
    rows = re.findall(r"^\| `(\w+)` \| (?:`([^`]+)`|required) \| \w", OPTIONS.read_text(), flags=re.MULTILINE)
    parameters = [p for p in inspect.signature(algorithm).parameters.values() if not p.name.startswith("_")]
    assert [name for name, _ in rows[: -len(own_options(TRPO))]] == [
        p.name for p in parameters if p.kind is not p.KEYWORD_ONLY
    ]
    defaults = {p.name: p.default for p in parameters if p.default is not p.empty}
    assert {name: ast.literal_eval(default) for name, default in rows if default} == defaults


def documented_keys() -> set[str]:
    """
    List the log's keys that have a row.

    :return: the keys, each with some text beside it
    """
    rows = re.findall(r"^\| ((?:`\w+/\w+`(?:, )?)+) \| [\w`]", LOG_KEYS.read_text(), flags=re.MULTILINE)
    keys = [key for row in rows for key in re.findall(r"`([^`]+)`", row)]
    assert len(set(keys)) == len(keys)
    return set(keys)


class Succeeds(gym.Wrapper):
    def step(self, action):
        *others, info = self.env.step(action)
        return *others, {**info, "is_success": True}


def test_every_key_of_the_log_has_its_row(tmp_path):
    """Those that the sources name, and those that SB3 adds: in each class's training, with evaluations."""
    sources = "".join(file.read_text() for file in (REPOSITORY / "sb3_trpo").rglob("*.py"))
    keys = set(re.findall(r"\"((?:train|rollout|time|eval)/\w+)\"", sources))
    assert "train/gamma" in keys
    tasks = [Succeeds(gym.make("Pendulum-v1", max_episode_steps=20)), MaskedGame()]
    memory = {"lstm_hidden_size": 4}
    for algorithm, policy, env, policy_kwargs in (
        (TRPO, "MlpPolicy", tasks[0], {}),
        (RecurrentTRPO, "MlpLstmPolicy", tasks[0], memory),
        (MaskableTRPO, "MlpPolicy", tasks[1], {}),
        (MaskableRecurrentTRPO, "MlpLstmPolicy", tasks[1], memory),
    ):
        settings = {"n_steps": 64, "batch_size": 64, "n_critic_updates": 1, "device": "cpu"}
        model = algorithm(policy, env, policy_kwargs={"net_arch": [4], **policy_kwargs}, **settings)
        model.set_logger(configure(str(tmp_path), ["csv"]))
        evaluation = EvalCallback(make_vec_env(lambda: tasks[0]), n_eval_episodes=1, eval_freq=50)
        model.learn(65, callback=evaluation if algorithm is TRPO else None)
        keys |= set((tmp_path / "progress.csv").read_text().splitlines()[0].split(","))
    assert documented_keys() == keys


def test_readers_start_at_one_place():
    module = inspect.getdoc(inspect.getmodule(TRPO))
    first = re.search(r"Start (?:reading )?at `+(TRPO\.\w+)`", README.read_text())[1]
    assert f"Start reading at ``{first}``" in module
    assert callable(getattr(TRPO, first.removeprefix("TRPO.")))


def test_api_page_has_every_public_name_once():
    page = (REPOSITORY / "docs" / "api.md").read_text()
    assert sorted(re.findall(r"^\.\. auto(?:class|function):: sb3_trpo\.(\w+)$", page, flags=re.M)) == sorted(__all__)


def test_readme_is_a_front_page():
    assert len(README.read_text().splitlines()) <= 80


@pytest.mark.slow
def test_pages_build_without_a_warning(tmp_path):
    """Links between pages, anchors, the notebook, the docstrings."""
    pytest.importorskip("myst_nb", reason="needs sb3-trpo[docs]")
    command = [sys.executable, "-m", "sphinx", "-q", "-W", "--keep-going", "-b", "html", "docs", tmp_path]
    done = subprocess.run(command, cwd=REPOSITORY, capture_output=True, text=True, timeout=1200)
    assert done.returncode == 0, done.stderr
