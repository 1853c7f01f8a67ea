"""
What the README and docs/ say of this repository is so: snippets run, files and commands exist, tables agree with the
code.
"""

import ast
import importlib.util
import inspect
import re
from pathlib import Path

import pytest

from sb3_trpo import TRPO
from sb3_trpo.cli import main

REPOSITORY = Path(__file__).parents[1]
README = (REPOSITORY / "README.md").read_text()
PAGES = sorted([REPOSITORY / "README.md", *REPOSITORY.glob("docs/**/*.md")])

SNIPPETS = re.findall(r"^```python\n(.*?)^```$", README, flags=re.DOTALL | re.MULTILINE)
# Indented lines are commands; what follows two spaces and a # is a remark.
COMMAND_LINES = [line.partition("  #")[0].split() for line in re.findall(r"^    (\S.*)$", README, flags=re.MULTILINE)]
COMMAND_LINES += [span.split() for span in re.findall(r"`((?:make|python|pip|sb3-trpo) [^`]+)`", README)]


def test_readme_has_something_to_test():
    assert len(SNIPPETS) == 1
    assert {line[0] for line in COMMAND_LINES} == {"make", "python", "pip", "sb3-trpo"}


@pytest.mark.parametrize("snippet", SNIPPETS, ids=lambda snippet: snippet.split("\n")[0])
def test_snippet_runs(snippet):
    """As it stands, but for the number of steps, of which an update's worth has to do."""
    shortened = re.sub(r"\.learn\([\d_]+\)", ".learn(1)", snippet)
    assert shortened != snippet
    names = {}
    exec(compile(ast.parse(shortened), "README.md", "exec"), names)
    assert type(names["model"]) is TRPO
    assert names["model"].num_timesteps == names["model"].n_steps


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_links_lead_somewhere(page):
    links = re.findall(r"\]\(([^)\s]+)\)", page.read_text())
    assert links or page.name != "README.md"
    missing = [link for link in links if "://" not in link and not (page.parent / link.partition("#")[0]).exists()]
    assert missing == []


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_tests_that_are_named_exist(page):
    named = re.findall(r"(tests/[\w/]+\.py)(?:::(\w+))?", page.read_text())
    assert named
    missing = [
        (file, test)
        for file, test in named
        if not (REPOSITORY / file).exists() or (test and f"\ndef {test}(" not in (REPOSITORY / file).read_text())
    ]
    assert missing == []


def test_every_row_of_the_drop_in_table_names_its_test():
    rows = [line for line in (REPOSITORY / "docs/drop-in.md").read_text().splitlines() if line.startswith("| ")]
    without = [row for row in rows[2:] if "tests/" not in row and not re.fullmatch(r"\| \*\*.+\*\* \| \|", row)]
    assert len(rows) > 30
    assert without == []


@pytest.mark.parametrize("line", [line for line in COMMAND_LINES if line[0] == "make"], ids=" ".join)
def test_make_knows_the_command(line):
    makefile = (REPOSITORY / "Makefile").read_text()
    target, *variables = line[1:]
    assert re.search(rf"^{target}:", makefile, flags=re.MULTILINE)
    for variable in variables:
        assert re.search(rf"^{variable.partition('=')[0]} =", makefile, flags=re.MULTILINE)


@pytest.mark.parametrize("line", [line for line in COMMAND_LINES if line[0] == "sb3-trpo"], ids=" ".join)
def test_command_line_knows_the_command(line, capsys):
    with pytest.raises(SystemExit) as exit_info:
        main([line[1], "--help"])
    assert exit_info.value.code == 0
    parsers_help = capsys.readouterr().out
    assert [option for option in line if option.startswith("--") and option not in parsers_help] == []


@pytest.mark.parametrize("line", [line for line in COMMAND_LINES if line[0] == "python"], ids=" ".join)
def test_python_finds_the_command(line):
    if line[1] == "-m":
        # What its options do is shown in test_rl_zoo.py, by a run of this command.
        assert importlib.util.find_spec(line[2]) is not None
    else:
        script = (REPOSITORY / line[1]).read_text()
        assert [option for option in line if option.startswith("--") and option not in script] == []


def test_extras_exist():
    extras = re.findall(r"\.\[([\w,]+)\]", README)
    assert extras
    configuration = (REPOSITORY / "setup.cfg").read_text()
    for extra in ",".join(extras).split(","):
        assert f"\n{extra} =\n" in configuration


def test_table_of_options_agrees_with_the_constructor():
    table = re.findall(r"^\| `(\w+)` \| `([^`]+)` \|", README, flags=re.MULTILINE)
    options = inspect.signature(TRPO).parameters.values()
    own = {option.name: option.default for option in options if option.kind is option.KEYWORD_ONLY}
    assert {name: ast.literal_eval(default) for name, default in table} == own


def test_log_keys_are_logged():
    named = set(re.findall(r"`(train/\w+)`", README))
    assert len(named) == 9
    model = TRPO("MlpPolicy", "CartPole-v1", n_steps=128, device="cpu")
    model.learn(128)
    assert named <= model.logger.name_to_value.keys()


def test_reading_guide_names_what_is_there():
    guide = README.partition("## Reading the code")[2]
    files = re.findall(r"`(\w+\.py)`", guide)
    assert len(files) == 8
    package = REPOSITORY / "sb3_trpo"
    assert [
        name for name in files if not any((folder / name).exists() for folder in (package, package / "trust_region"))
    ] == []
    assert hasattr(TRPO, re.search(r"`TRPO\.(\w+)`", guide)[1])
