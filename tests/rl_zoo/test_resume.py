"""
``sb3-trpo train --resume``: processes that are killed, and a last one that ends as if they had not been.
"""

import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
from updates import changed, state

pytest.importorskip("rl_zoo3", reason="needs sb3-trpo[zoo]")

from stable_baselines3.common.monitor import load_results

from sb3_trpo import TRPO
from sb3_trpo.cli import main
from sb3_trpo.rl_zoo.resume import CHECKPOINT

SHORT = ["--num-threads", "1", "--device", "cpu", "--verbose", "0"]


@pytest.fixture(autouse=True)
def _in_temporary_folder(tmp_path, monkeypatch) -> None:
    monkeypatch.chdir(tmp_path)


def arguments(task: str, folder: str, *others: str) -> list[str]:
    return ["train", "--env", task, "-f", folder, "--resume", "--checkpoint-every", "1", *SHORT, *others]


def start(command: list[str]) -> subprocess.Popen:
    return subprocess.Popen(
        [sys.executable, "-W", "ignore", "-c", "import sb3_trpo.cli; sb3_trpo.cli.main()", *command],
        env={**os.environ, "OMP_NUM_THREADS": "1"},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )


def kill_after_a_checkpoint(command: list[str], run: Path, rng: random.Random) -> bool:
    """
    :param command: arguments of a process
    :param run: its folder
    :param rng: of the moment
    :return: whether it was killed before its end
    """
    checkpoint = run / CHECKPOINT
    before = checkpoint.read_bytes() if checkpoint.exists() else b""
    process = start(command)
    while process.poll() is None:
        if checkpoint.exists() and checkpoint.read_bytes() != before:
            time.sleep(rng.uniform(0.0, 0.2))
            process.kill()
            break
        time.sleep(0.01)
    process.communicate()
    return process.returncode == -signal.SIGKILL


@pytest.mark.parametrize(
    ("task", "n_kills", "others"),
    [
        ("Pendulum-v1", 2, ["-n", "40000", "--eval-freq", "9000", "--eval-episodes", "2"]),
        pytest.param(
            "HalfCheetah-v5",
            5,
            ["-n", "100000", "--eval-freq", "20000", "--vec-env", "subproc"],
            marks=pytest.mark.slow,
        ),
    ],
)
def test_killed_runs_end_like_others(task, n_kills, others):
    runs = [Path(folder, "trpo", f"{task}_1") for folder in ("left_alone", "killed")]
    main(arguments(task, "left_alone", "--seed", "3", *others))
    command, rng = arguments(task, "killed", "--seed", "3", *others), random.Random(0)
    assert [kill_after_a_checkpoint(command, runs[1], rng) for _ in range(n_kills)] == [True] * n_kills
    # The last one need not say the seed.
    main(arguments(task, "killed", *others))

    models = [TRPO.load(run / f"{task}.zip", device="cpu") for run in runs]
    assert models[0].num_timesteps == models[1].num_timesteps
    assert not changed(*map(state, models))
    best = [TRPO.load(run / "best_model.zip", device="cpu") for run in runs]
    assert not changed(*map(state, best))
    first, second = (dict(np.load(run / "evaluations.npz")) for run in runs)
    assert first.keys() == second.keys()
    for name in first:
        np.testing.assert_array_equal(first[name], second[name])
    assert len(first["timesteps"]) > 3
    # Episodes of each environment, in their order; not their times.
    for path in runs[0].glob("*.monitor.csv"):
        rows = [[line.split(",")[:2] for line in (run / path.name).read_text().splitlines()[2:]] for run in runs]
        assert rows[0] == rows[1]
        assert len(rows[0]) > 3
    statistics = [run / task / "vecnormalize.pkl" for run in runs]
    assert statistics[0].exists() == statistics[1].exists()
    # One run, in one folder, that has come to its end.
    assert [path.name for path in runs[1].parent.iterdir()] == [f"{task}_1"]
    assert not (runs[1] / CHECKPOINT).exists()
    assert (runs[1] / "learning_curve.png").exists()


TINY = ["-params", "n_envs:1", "n_steps:32", "batch_size:32", "--eval-freq", "-1"]


def interrupted(folder: str, *others: str) -> Path:
    """
    :param folder: for logs
    :param others: arguments
    :return: the folder of a run that has not come to its end
    """
    before = {path.parent for path in Path(folder).glob(f"trpo/*/{CHECKPOINT}")}
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(TRPO, "train", lambda _: (_ for _ in ()).throw(MemoryError("as good as a crash")))
        with pytest.raises(MemoryError):
            main(arguments("Pendulum-v1", folder, *TINY, *others))
    (run,) = {path.parent for path in Path(folder).glob(f"trpo/*/{CHECKPOINT}")} - before
    return run


def ended(folder: str) -> set[str]:
    return {path.parent.name for path in Path(folder).glob("trpo/*/Pendulum-v1.zip")}


def test_each_command_goes_on_with_its_own_run():
    first = interrupted("logs", "--seed", "1", "-n", "64")
    second = interrupted("logs", "--seed", "2", "-n", "64")
    longer = interrupted("logs", "--seed", "1", "-n", "96")
    assert len({first, second, longer}) == 3
    main(arguments("Pendulum-v1", "logs", *TINY, "--seed", "1", "-n", "64"))
    assert ended("logs") == {first.name}
    # Without a seed it is the latest that is left.
    main(arguments("Pendulum-v1", "logs", *TINY, "-n", "64"))
    assert ended("logs") == {first.name, second.name}
    assert TRPO.load(second / "Pendulum-v1.zip", device="cpu").seed == 2
    # None is left: a new one.
    main(arguments("Pendulum-v1", "logs", *TINY, "-n", "64"))
    assert len(ended("logs")) == 3
    assert (longer / CHECKPOINT).exists()


def test_without_the_flag_nothing_changes():
    interrupted("logs", "--seed", "1", "-n", "64")
    main(["train", "--env", "Pendulum-v1", "-f", "logs", *SHORT, *TINY, "--seed", "1", "-n", "64"])
    assert ended("logs") == {"Pendulum-v1_2"}
    assert len(list(Path("logs").glob(f"trpo/*/{CHECKPOINT}"))) == 1


def test_a_run_that_is_going_on_is_left_alone():
    command = arguments("Pendulum-v1", "logs", *TINY, "--seed", "1", "-n", "100000")
    process = start(command)
    run = Path("logs/trpo/Pendulum-v1_1")
    try:
        while process.poll() is None and not (run / CHECKPOINT).exists():
            time.sleep(0.02)
        main(arguments("Pendulum-v1", "logs", *TINY, "-n", "64"))
        assert ended("logs") == {"Pendulum-v1_2"}
        assert process.poll() is None
    finally:
        process.kill()
        process.communicate()


def test_envpool_goes_on_with_new_episodes():
    pytest.importorskip("envpool", reason="needs sb3-trpo[envpool]")
    size = ["-params", "n_envs:4", "n_steps:110", "normalize:True", "-n", "880", "--eval-freq", "-1"]
    command = ["train", "--env", "Pendulum-v1", "--vec-env", "envpool", "-f", "logs", "--resume", *size, *SHORT]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(TRPO, "dump_logs", lambda *_: (_ for _ in ()).throw(MemoryError("as good as a crash")))
        with pytest.raises(MemoryError):
            main([*command, "--seed", "0"])
    with pytest.warns(UserWarning, match="goes on with new episodes"):
        main(command)
    run = Path("logs/trpo/Pendulum-v1_1")
    assert TRPO.load(run / "Pendulum-v1.zip", device="cpu").num_timesteps == 880
    assert {path.name for path in run.glob("*monitor.csv")} == {"monitor.csv", "until_1.monitor.csv"}
    assert len(load_results(str(run))) == 4


@pytest.mark.parametrize(
    ("others", "named"),
    [
        (["-optimize"], "-optimize"),
        (["--checkpoint-every", "0"], "--checkpoint-every is 0"),
        (["--algo", "sac", "-params", "learning_starts:1"], "without a replay buffer"),
    ],
)
def test_bad_input_gets_one_sentence(others, named):
    with pytest.raises(SystemExit) as end:
        main([*arguments("Pendulum-v1", "logs", "--eval-freq", "-1", "-n", "10"), *others])
    assert isinstance(end.value.code, str)
    assert "\n" not in end.value.code
    assert named in end.value.code
