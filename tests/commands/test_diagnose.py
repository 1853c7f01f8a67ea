"""
``sb3-trpo diagnose`` on real runs.
"""

import subprocess
import sys
from pathlib import Path

import pytest
from stable_baselines3.common.logger import configure

from sb3_trpo import TRPO
from sb3_trpo.cli import main
from sb3_trpo.diagnosis.explanations import read_sections, where


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """
    Train for a moment.

    :return: the folder of a short run with hardly any noise
    """
    folder = tmp_path_factory.mktemp("run")
    noise = {"log_std_init": -5.0, "net_arch": [8]}
    model = TRPO(
        "MlpPolicy", "Pendulum-v1", n_steps=64, batch_size=64, gamma=0.9, policy_kwargs=noise, seed=0, device="cpu"
    )
    model.set_logger(configure(str(folder), ["csv"]))
    with pytest.warns(UserWarning, match="hardly explores"):
        model.learn(12 * 64)
    model.save(folder / "model")
    return folder


def test_a_run_is_told_what_is_wrong_with_it(run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    main(["diagnose", str(run)])
    lines = capsys.readouterr().out.splitlines()
    assert lines[0] == f"{run}: 11 updates, 768 steps."
    assert "1 warning" in lines[1]
    text = "\n".join(lines)
    assert "The policy hardly explores any more.\n        The smallest σ of its actions is 0.00" in text
    assert "Try: begin with more noise" in text
    assert f"See {where('std-collapsed')}" in text


def test_a_report_is_written(run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    pytest.importorskip("matplotlib", reason="needs sb3-trpo[zoo]")
    main(["diagnose", str(run), "--html", str(tmp_path / "report.html")])
    assert capsys.readouterr().out.endswith(f"Report: {tmp_path / 'report.html'}\n")
    assert "hardly explores" in (tmp_path / "report.html").read_text()
    with pytest.raises(SystemExit, match="No such file"):
        main(["diagnose", str(run), "--html", str(tmp_path / "no" / "report.html")])


@pytest.mark.parametrize(("env_id", "said"), [("CartPole-v1", "nothing found"), ("Pendulum-v1", "1 finding.")])
def test_a_task_is_tried(env_id: str, said: str, capsys: pytest.CaptureFixture[str]) -> None:
    main(["diagnose", "--env", env_id])
    assert capsys.readouterr().out.startswith(f"{env_id}: {said}")


@pytest.mark.parametrize("name", read_sections())
def test_a_finding_is_explained(name: str, capsys: pytest.CaptureFixture[str]) -> None:
    main(["diagnose", "--explain", name])
    text = capsys.readouterr().out
    assert text.strip() == read_sections()[name]
    assert len(text) > 80
    assert "\n#" not in text


def test_a_finding_that_there_is_not() -> None:
    with pytest.raises(SystemExit, match=r"There is no finding 'small\\x1bbatch'; there are small-batch, cg-far"):
        main(["diagnose", "--explain", "small\x1bbatch"])


@pytest.mark.parametrize("arguments", [[], ["--html", "report.html", "--env", "CartPole-v1"]])
def test_what_is_missing_is_said(arguments: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        main(["diagnose", *arguments])
    assert "name" in capsys.readouterr().err


def test_a_folder_without_a_log(tmp_path: Path) -> None:
    with pytest.raises(SystemExit, match=r"sb3-trpo diagnose: .* has no progress.csv"):
        main(["diagnose", str(tmp_path)])


def test_reading_a_run_needs_no_rl_zoo() -> None:
    """Nor anything else that reads the current folder, which may be a stranger's."""
    code = "import sys, sb3_trpo.commands.diagnose; assert not {'rl_zoo3', 'matplotlib'} & set(sys.modules)"
    subprocess.run([sys.executable, "-c", code], check=True, timeout=300, cwd=Path(__file__).parents[2])
