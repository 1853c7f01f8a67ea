"""
Runs, and campaigns of them: what is finished stays, what is not is run, and nothing is left behind.
"""

import os
import shlex
import signal
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path

import learning
import monotonic
import numpy as np
import pytest
from campaign import command_line, results
from campaign.improvement_run import improvement_run
from campaign.learning_run import learning_run
from campaign.scheduler import Campaign
from campaign.specification import RunSpecification
from campaign.statistics import judge_updates
from campaign.worker import claim

REPOSITORY = Path(__file__).parents[2]
PROTOCOL = {"eval_freq": 200, "n_eval_episodes": 3, "n_final_episodes": 5}
HYPERPARAMS = {"policy": "MlpPolicy", "n_envs": 2, "n_steps": 32, "batch_size": 64, "n_epochs": 1, "normalize": True}
RUN = RunSpecification("learning", "CartPole-v1", "ppo", 0, 500, HYPERPARAMS, PROTOCOL)


class TestLearningRun:
    def test_evaluations_happen_between_updates_and_at_the_end(self):
        reported: list[int] = []
        values, arrays = learning_run(RUN, reported.append)
        # 64 steps an update: the first start of a rollout at or after each multiple of 200, and the end.
        assert arrays["timesteps"].tolist() == [256, 448, 512]
        assert arrays["results"].shape == arrays["ep_lengths"].shape == (3, 3)
        assert reported == list(range(0, 512, 64))
        assert values["score"] == pytest.approx(np.mean(values["final_returns"]))
        assert len(values["final_returns"]) == 5
        np.testing.assert_allclose(arrays["results"][-1], values["final_returns"][:3], atol=1e-3)
        assert {len(column) for column in values["diagnostics"].values()} == {3}

    def test_evaluations_do_not_disturb_training(self):
        often = learning_run(RUN, lambda steps: None)[0]
        never = learning_run(replace(RUN, protocol={**PROTOCOL, "eval_freq": 10_000}), lambda steps: None)[0]
        assert often["final_returns"] == never["final_returns"]
        assert often["training_score"] == never["training_score"]

    def test_the_seed_decides(self):
        first, second, other = (learning_run(replace(RUN, seed=seed), lambda steps: None)[0] for seed in (0, 0, 1))
        assert first["final_returns"] == second["final_returns"]
        assert first["training_score"] != other["training_score"]


class TestImprovementRun:
    RUN = replace(
        RUN,
        kind="improvement",
        task="Pendulum-v1",
        n_timesteps=4000,
        protocol={"stages": [64, 300], "n_updates": 2, "n_episodes": 4},
    )

    def test_measures_the_updates_asked_for(self):
        values, arrays = improvement_run(self.RUN, lambda steps: None)
        # Rollouts end at multiples of 64; 320 is the first at or after 300.
        assert arrays["timesteps"].tolist() == [64, 128, 320, 384]
        assert arrays["returns_before"].shape == arrays["returns_after"].shape == (4, 4)
        assert (arrays["returns_before"] != arrays["returns_after"]).any()
        # The first step after the last measurement.
        assert values["n_timesteps_done"] == 386

    def test_an_update_that_changes_nothing_changes_no_return(self):
        idle = replace(self.RUN, hyperparams={**HYPERPARAMS, "learning_rate": 0.0})
        arrays = improvement_run(idle, lambda steps: None)[1]
        np.testing.assert_array_equal(arrays["returns_before"], arrays["returns_after"])
        assert judge_updates(arrays["returns_before"], arrays["returns_after"]).worse == 0


def test_a_lock_is_held_once(tmp_path):
    path = tmp_path / "task" / "seed-0.running"
    first = claim(path)
    assert first is not None
    assert claim(path) is None
    first.close()
    second = claim(path)
    assert second is not None
    second.close()


@pytest.mark.slow
def test_a_campaign_runs_what_is_missing_and_repeats_nothing(tmp_path, capsys):
    runs = [RUN, replace(RUN, seed=1), replace(RUN, label="broken", hyperparams={**HYPERPARAMS, "n_steps": "many"})]
    results.write(runs[1].path(tmp_path), runs[1], *learning_run(runs[1], lambda steps: None))
    assert Campaign(runs, tmp_path, jobs=2).execute() == 1
    printed = capsys.readouterr().out
    assert "1 of 3 runs are finished, 2 to go." in printed
    assert "CartPole-v1 ppo@broken seed 0 failed: " in printed
    paths = [run.path(tmp_path) for run in runs[:2]]
    first = [results.read(path) for path in paths]
    left_behind = {path.suffix for path in tmp_path.rglob("seed-*")}
    assert left_behind <= {".json", ".npz", ".running"}

    # One is damaged: it alone is run again, and comes out the same.
    untouched = paths[1].stat().st_mtime_ns
    paths[0].write_bytes(paths[0].read_bytes()[:100])
    assert Campaign(runs[:2], tmp_path, jobs=2).execute() == 0
    printed = capsys.readouterr().out
    assert "seed-0.json: broken (not JSON" in printed
    assert "1 of 2 runs are finished, 1 to go." in printed
    assert paths[1].stat().st_mtime_ns == untouched
    assert results.read(paths[0]).values["final_returns"] == first[0].values["final_returns"]


def test_a_result_with_other_settings_is_not_overwritten_unasked(tmp_path):
    path = RUN.path(tmp_path)
    run = replace(RUN, n_timesteps=64, hyperparams={**HYPERPARAMS, "gamma": 0.5})
    results.write(path, run, *learning_run(run, lambda steps: None))
    with pytest.raises(ValueError, match=r"n_timesteps 64 there, 500 here.*--replace"):
        Campaign([RUN], tmp_path, jobs=1).survey()
    assert Campaign([RUN], tmp_path, jobs=1, replace=True).survey() == [RUN]


@pytest.mark.parametrize(
    ("script", "arguments"),
    [
        (learning, ["--algos", "ppo", "sb3_contrib", "--set", "gamma=0.5", "--set", "n_steps=64", "--label", "x"]),
        (learning, ["--algos", "ppo", "--eval-freq", "10", "--steps", "500", "--vec-env", "envpool"]),
        (monotonic, ["--algos", "ppo", "--stages", "100", "200", "--n-updates", "3"]),
    ],
)
def test_a_recorded_command_repeats_its_run_alone(script, arguments):
    tasks = ["--tasks", "CartPole-v1", "Acrobot-v1", "--seeds", "3,5"]
    for run in script.make_runs(script.make_parser().parse_args([*arguments, *tasks])):
        _, path, *recorded = shlex.split(run.command)
        assert path == f"benchmarks/{script.__name__}.py"
        assert script.make_runs(script.make_parser().parse_args(recorded)) == [run]


def start(*arguments: str) -> subprocess.Popen:
    command = [sys.executable, "benchmarks/learning.py", "--tasks", "CartPole-v1", "--algos", "ppo", *arguments]
    return subprocess.Popen(
        command,
        cwd=REPOSITORY,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
        # Tests that run in the background of a shell ignore SIGINT, and so would the process that they start.
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.default_int_handler),
    )


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--tasks", "Nowhere-v0"], "task='Nowhere-v0'"),
        (["--algos", "dqn"], "algo='dqn'"),
        (["--set", "gamma=0.9"], "--label"),
        (["--set", "gama=0.9", "--label", "x"], "there is no 'gama'"),
        (["--jobs", "0"], "jobs=0"),
        (["--n-eval-episodes", "200"], "n_eval_episodes=200"),
    ],
    ids=lambda value: value[0] if isinstance(value, list) else "",
)
def test_bad_requests_end_with_a_sentence(arguments, message, monkeypatch):
    usual = ["--tasks", "CartPole-v1", "--algos", "ppo", "--dry-run"]
    monkeypatch.setattr(sys, "argv", ["learning.py"])
    with pytest.raises(SystemExit) as ending:
        command_line.main(learning.make_runs, learning.make_parser().parse_args([*usual, *arguments]))
    assert str(ending.value).startswith("learning.py: ")
    assert message in str(ending.value)


def wait_for_workers(out: Path, n: int) -> list[Path]:
    """Return the lock files of the runs, once each has reported steps."""
    deadline = time.monotonic() + 60
    while time.monotonic() < deadline:
        locks = [path for path in out.rglob("seed-*.running") if path.read_text() not in ("", "0")]
        if len(locks) == n:
            return locks
        time.sleep(0.1)
    raise AssertionError(f"{n} workers did not start")


def wait_for_release(lock: Path) -> bool:
    deadline = time.monotonic() + 30
    while time.monotonic() < deadline:
        if (file := claim(lock)) is not None:
            file.close()
            return True
        time.sleep(0.2)
    return False


@pytest.mark.slow
@pytest.mark.parametrize("sign", [signal.SIGINT, signal.SIGTERM, signal.SIGKILL], ids=lambda sign: sign.name)
def test_a_killed_campaign_leaves_no_worker_and_goes_on(tmp_path, sign):
    arguments = ["--seeds", "0-1", "--steps", "60000", "--out", str(tmp_path), "--n-final-episodes", "20"]
    process = start(*arguments)
    locks = wait_for_workers(tmp_path, 2)
    os.kill(process.pid, sign)
    process.communicate(timeout=30)
    assert process.returncode != 0
    assert all(wait_for_release(lock) for lock in locks)
    assert not list(tmp_path.rglob("*.json"))

    process = start(*arguments)
    output, errors = process.communicate(timeout=240)
    assert process.returncode == 0, errors
    assert "CartPole-v1 ppo seed 0 was interrupted" in output
    assert "0 of 2 runs are finished, 2 to go." in output
    assert len([results.read(path) for path in tmp_path.rglob("*.json")]) == 2
    assert {path.suffix for path in tmp_path.rglob("seed-*")} == {".json", ".npz"}


@pytest.mark.slow
def test_two_campaigns_in_one_folder_share_the_work(tmp_path):
    arguments = ["--seeds", "0-3", "--steps", "20000", "--jobs", "1", "--out", str(tmp_path)]
    processes = [start(*arguments) for _ in range(2)]
    outputs = [process.communicate(timeout=240)[0] for process in processes]
    finished = sum(output.count("score") for output in outputs)
    assert len(list(tmp_path.rglob("*.json"))) == 4
    assert finished >= 4


@pytest.mark.slow
def test_a_finished_run_is_finished_whoever_removed_its_lock_file(tmp_path):
    process = start("--seeds", "0", "--steps", "20000", "--out", str(tmp_path))
    for lock in wait_for_workers(tmp_path, 1):
        lock.unlink()
    output, errors = process.communicate(timeout=240)
    assert process.returncode == 0, errors
    assert "failed" not in output
    assert {path.suffix for path in tmp_path.rglob("seed-*")} == {".json", ".npz"}
