"""
``sb3-trpo train --resume``: runs that are killed end as if they had not been, and only what this account has written is
trusted.
"""

import base64
import json
import multiprocessing
import os
import shutil
import signal
import subprocess
import sys
import zipfile
from pathlib import Path

import cloudpickle
import hostile
import kill_at
import numpy as np
import pytest
import yaml
from updates import changed, state

pytest.importorskip("rl_zoo3", reason="needs sb3-trpo[zoo]")

from stable_baselines3.common.monitor import load_results

from sb3_trpo import TRPO, diagnose
from sb3_trpo.cli import main
from sb3_trpo.rl_zoo.runs import CHECKPOINT, FINISHED, LOCK, try_lock

SHORT = ["--num-threads", "1", "--device", "cpu", "--verbose", "0"]
TINY = ["n_envs:1", "n_steps:32", "batch_size:32"]


@pytest.fixture(autouse=True)
def _in_temporary_folder(tmp_path, monkeypatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path / "state"))


def arguments(task: str, folder: str, *others: str) -> list[str]:
    return ["train", "--env", task, "-f", folder, "--resume", "--checkpoint-every", "1", *SHORT, *others]


def killed(command: list[str], n_steps: int) -> bool:
    """Return whether a process that runs the command was killed at a number of steps."""
    paths = [str(Path(kill_at.__file__).parent), os.environ.get("PYTHONPATH", "")]
    done = subprocess.run(
        [sys.executable, "-W", "ignore", "-c", "import sb3_trpo.cli; sb3_trpo.cli.main()", *command],
        env={**os.environ, "OMP_NUM_THREADS": "1", "KILL_AT": str(n_steps), "PYTHONPATH": os.pathsep.join(paths)},
        capture_output=True,
        timeout=600,
    )
    return done.returncode == -signal.SIGKILL


@pytest.mark.parametrize(
    ("task", "kills", "others"),
    [
        ("Pendulum-v1", [700, 2500], ["-n", "4096", "--eval-freq", "1024", "--eval-episodes", "1"]),
        pytest.param(
            "HalfCheetah-v5",
            [1000, 9000, 33000, 34000, 70000],
            ["-n", "100000", "--eval-freq", "20000", "--vec-env", "subproc"],
            marks=pytest.mark.slow,
        ),
    ],
)
@pytest.mark.filterwarnings("error:Training does not go on exactly")
def test_killed_runs_end_like_others(task, kills, others):
    others = [*others, "-params", "callback:'kill_at.KillAt'"]
    runs = [Path(folder, "trpo", f"{task}_1") for folder in ("left_alone", "killed")]
    main(arguments(task, "left_alone", "--seed", "3", *others))
    for n_steps in kills:
        assert killed(arguments(task, "killed", "--seed", "3", *others), n_steps)
    # The last one need not say the seed.
    main(arguments(task, "killed", *others))
    # RL Zoo leaves the environments of evaluations to the end of its process, which does not come here.
    for process in multiprocessing.active_children():
        process.kill()
        process.join()

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
        assert len(rows[0]) > 1
    statistics = [run / task / "vecnormalize.pkl" for run in runs]
    assert statistics[0].exists() == statistics[1].exists()
    # One run, in one folder, that has come to its end.
    assert [path.name for path in runs[1].parent.iterdir()] == [f"{task}_1"]
    assert not (runs[1] / CHECKPOINT).exists()
    assert (runs[1] / "learning_curve.png").exists()


def train(folder: str, *others: str, params: tuple[str, ...] = ()) -> None:
    main(arguments("Pendulum-v1", folder, "--eval-freq", "-1", *others, "-params", *TINY, *params))


def interrupted(folder: str, *others: str, params: tuple[str, ...] = ()) -> Path:
    """
    Interrupt a training before its end.

    :param folder: for logs
    :param others: arguments
    :param params: hyperparameters
    :return: the folder of a run that has not come to its end
    """
    before = {path.parent for path in Path(folder).glob(f"trpo/*/{CHECKPOINT}")}
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(TRPO, "train", lambda _: (_ for _ in ()).throw(MemoryError("as good as a crash")))
        with pytest.raises(MemoryError):
            train(folder, *others, params=params)
    (run,) = {path.parent for path in Path(folder).glob(f"trpo/*/{CHECKPOINT}")} - before
    return run


def ended(folder: str) -> set[str]:
    return {path.parent.name for path in Path(folder).glob("trpo/*/Pendulum-v1.zip")}


def steps_of(run: Path) -> int:
    return TRPO.load(run / "Pendulum-v1.zip", device="cpu").num_timesteps


def test_each_command_goes_on_with_its_own_run():
    first = interrupted("logs", "--seed", "1", "-n", "64")
    second = interrupted("logs", "--seed", "2", "-n", "64")
    another = interrupted("logs", "--seed", "1", "-n", "64", params=("gamma:0.5",))
    assert len({first, second, another}) == 3
    train("logs", "--seed", "1", "-n", "64")
    assert ended("logs") == {first.name}
    # Without a seed it is the latest that is left.
    train("logs", "-n", "64")
    assert ended("logs") == {first.name, second.name}
    assert TRPO.load(second / "Pendulum-v1.zip", device="cpu").seed == 2
    # None is left: a new one.
    train("logs", "-n", "64")
    assert len(ended("logs")) == 3
    assert (another / CHECKPOINT).exists()


@pytest.mark.filterwarnings("error:Training does not go on exactly")
def test_more_steps_go_on_with_a_run_and_fewer_begin_another(capsys):
    run = interrupted("logs", "--seed", "1", "-n", "96")
    train("logs", "--seed", "1", "-n", "64")
    assert ended("logs") == {"Pendulum-v1_2"}
    train("logs", "--seed", "1", "-n", "128")
    assert ended("logs") == {"Pendulum-v1_2", run.name}
    assert steps_of(run) == 128
    assert "begun with 96 steps" in capsys.readouterr().out
    # Also with one that has come to its end.
    assert (run / FINISHED).exists()
    train("logs", "--seed", "1", "-n", "192")
    assert steps_of(run) == 192
    assert yaml.unsafe_load((run / "Pendulum-v1" / "args.yml").read_text())["n_timesteps"] == 192


def test_other_hyperparameters_are_another_run_and_are_said(capsys):
    text = "Pendulum-v1: {policy: MlpPolicy, n_timesteps: 64, n_envs: 1, n_steps: 32, batch_size: 32, gamma: %s}"
    Path("mine.yml").write_text(text % 0.9)
    first = interrupted("logs", "-conf", "mine.yml")
    Path("mine.yml").write_text(text % 0.5)
    train("logs", "-conf", "mine.yml")
    said = capsys.readouterr().out
    assert "gamma was 0.9 and is 0.5" in said
    (second,) = ended("logs")
    assert second != first.name
    # What the folder says is what was trained with.
    config = yaml.unsafe_load((first.parent / second / "Pendulum-v1" / "config.yml").read_text())
    assert dict(config)["gamma"] == TRPO.load(first.parent / second / "Pendulum-v1.zip", device="cpu").gamma == 0.5
    Path("mine.yml").write_text(text % 0.9)
    train("logs", "-conf", "mine.yml")
    assert ended("logs") == {first.name, second}


def test_other_arguments_are_another_run_and_are_said(capsys):
    others = ("--seed", "1", "-n", "64", "--env-kwargs")
    interrupted("logs", *others, "g:9.0")
    train("logs", *others, "g:10.0")
    assert "env_kwargs was {'g': 9.0} and is {'g': 10.0}" in capsys.readouterr().out
    assert ended("logs") == {"Pendulum-v1_2"}


def test_without_the_flag_nothing_changes():
    interrupted("logs", "--seed", "1", "-n", "64")
    others = ["-params", *TINY, "--eval-freq", "-1"]
    main(["train", "--env", "Pendulum-v1", "-f", "logs", *SHORT, "--seed", "1", "-n", "64", *others])
    assert ended("logs") == {"Pendulum-v1_2"}
    assert len(list(Path("logs").glob(f"trpo/*/{CHECKPOINT}"))) == 1


def test_a_run_that_is_going_on_is_left_alone():
    run = interrupted("logs", "--seed", "1", "-n", "64")
    lock = try_lock(run)
    assert lock is not None
    assert try_lock(run) is None
    train("logs", "--seed", "1", "-n", "64")
    assert ended("logs") == {"Pendulum-v1_2"}
    lock.close()
    train("logs", "--seed", "1", "-n", "64")
    assert ended("logs") == {"Pendulum-v1_2", run.name}


def zipped(**members: bytes) -> bytes:
    return hostile.zipped(members)


@pytest.mark.parametrize("content", ["empty", "half", "another zip", "a text for a note", "a folder", "a pipe"])
def test_files_that_are_no_checkpoints_stop_nothing(content, capsys):
    run = interrupted("logs", "--seed", "1", "-n", "64")
    good = (run / CHECKPOINT).read_bytes()
    other = run.parent / "Pendulum-v1_7" / CHECKPOINT
    other.parent.mkdir()
    if content == "a folder":
        other.mkdir()
    elif content == "a pipe":
        os.mkfifo(other)
    else:
        files = {"empty": b"", "half": good[: len(good) // 2], "another zip": zipped(x=b"y")}
        other.write_bytes(files.get(content, zipped(training_state=b'{"note": "\x1b[2J"}')))
    train("logs", "--seed", "1", "-n", "64")
    assert ended("logs") == {run.name}
    said = capsys.readouterr().out
    assert f"{other} is passed over" in said
    assert "\x1b" not in said


def changed_by_a_stranger(checkpoint: Path, trace: Path) -> None:
    """Write a checkpoint anew, so that it runs code when it is loaded."""
    with zipfile.ZipFile(checkpoint) as archive:
        members = {name: archive.read(name) for name in archive.namelist()}
    data = json.loads(members["data"])
    payload = cloudpickle.dumps(hostile.Payload(trace))
    data["start_time"] = {":type:": "float", ":serialized:": base64.b64encode(payload).decode()}
    members["data"] = json.dumps(data).encode()
    checkpoint.write_bytes(hostile.zipped(members))


def test_what_a_stranger_has_changed_does_not_run(tmp_path, capsys):
    run = interrupted("logs", "--seed", "1", "-n", "64")
    changed_by_a_stranger(run / CHECKPOINT, tmp_path / "sign")
    train("logs", "--seed", "1", "-n", "64")
    assert not (tmp_path / "sign").exists()
    assert ended("logs") == {"Pendulum-v1_2"}
    assert f"{run / CHECKPOINT} is passed over" in capsys.readouterr().out
    # The user's own word counts.
    train("logs", "--seed", "1", "-n", "64", "--trust-checkpoints")
    assert (tmp_path / "sign").exists()


def test_what_another_account_has_written_is_read_as_data(monkeypatch, capsys):
    run = interrupted("logs", "--seed", "1", "-n", "64")
    shutil.copytree("logs", "copy")
    train("copy", "--seed", "1", "-n", "64")
    monkeypatch.setenv("XDG_STATE_HOME", str(Path("another").absolute()))
    train("logs", "--seed", "1", "-n", "64")
    assert "is read as data" in capsys.readouterr().out
    models = [TRPO.load(Path(folder, "trpo", run.name, "Pendulum-v1.zip"), device="cpu") for folder in ("copy", "logs")]
    assert not changed(*map(state, models))


def test_own_classes_go_on_only_where_they_are_trusted(monkeypatch, capsys):
    text = (
        "from kill_at import OwnExtractor\n"
        "policy_kwargs = dict(features_extractor_class=OwnExtractor)\n"
        "hyperparams = {'Pendulum-v1': dict(policy='MlpPolicy', n_timesteps=64, policy_kwargs=policy_kwargs)}\n"
    )
    Path("mine.py").write_text(text)
    run = interrupted("logs", "-conf", "mine.py")
    shutil.copytree("logs", "copy")
    train("copy", "-conf", "mine.py")
    assert ended("copy") == {run.name}
    monkeypatch.setenv("XDG_STATE_HOME", str(Path("another").absolute()))
    train("logs", "-conf", "mine.py")
    assert ended("logs") == {"Pendulum-v1_2"}
    assert "--trust-checkpoints" in capsys.readouterr().out
    train("logs", "-conf", "mine.py", "--trust-checkpoints")
    assert ended("logs") == {"Pendulum-v1_2", run.name}


def test_links_in_a_strangers_folder_lead_nowhere(monkeypatch, tmp_path):
    target = tmp_path / "precious"
    target.write_text("precious")
    run = interrupted("logs", "--seed", "1", "-n", "64")
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path / "another"))
    (run / "0.monitor.csv").unlink()
    (run / "0.monitor.csv").symlink_to(target)
    train("logs", "--seed", "1", "-n", "64")
    (run / LOCK).unlink()
    (run / LOCK).symlink_to(target)
    train("logs", "--seed", "1", "-n", "64")
    assert target.read_text() == "precious"
    assert ended("logs") == {"Pendulum-v1_2", "Pendulum-v1_3"}


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


def test_the_log_of_a_resumed_run_is_whole():
    run = interrupted("logs", "--seed", "1", "-n", "96")
    train("logs", "--seed", "1", "-n", "96")
    train("logs", "--seed", "1", "-n", "256")
    assert {path.name for path in run.glob("*progress.csv")} == {
        "progress.csv",
        "until_1.progress.csv",
        "until_2.progress.csv",
    }
    record = diagnose(run).record
    (steps,) = record.complete("time/total_timesteps")
    assert (np.diff(steps) >= 0).all()
    assert steps[-1] == TRPO.load(run / "Pendulum-v1.zip", device="cpu").num_timesteps
    (updates,) = record.complete("train/n_updates")
    assert len(set(updates)) == len(updates)


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
