"""
Ray Train: a training in two workers, one of which is killed, ends as the same training does that was left alone.
"""

import os
import signal
import subprocess
import sys
import time
import uuid
from pathlib import Path

import pytest
import torch as th
from updates import changed, state

from sb3_trpo import TRPO

pytest.importorskip("ray", reason="needs sb3-trpo[ray]")

EXAMPLE = Path(__file__).parents[2] / "examples" / "several_workers_with_ray.py"
# Ten updates of two workers with four environments of 32 steps, and the last checkpoint after them.
STEPS = 2600
LAST = 2560


def workers(mark: str) -> list[int]:
    """
    Find the workers of a training.

    :param mark: a text in their environment
    :return: the numbers of the processes
    """
    found = []
    for process in Path("/proc").glob("[0-9]*"):
        try:
            name, variables = (process / "cmdline").read_bytes(), (process / "environ").read_bytes()
        except OSError:
            continue
        if name.startswith(b"ray::") and b"TrainWorker" in name and mark.encode() in variables:
            found.append(int(process.name))
    return found


def train(folder: Path, *, kill: bool) -> TRPO:
    """
    Run the example.

    :param folder: the folder for its files
    :param kill: whether to kill a worker when there is a second checkpoint
    :return: the model of the last checkpoint
    """
    folder.mkdir()
    mark = uuid.uuid4().hex
    variables = {**os.environ, "STEPS": str(STEPS), "OMP_NUM_THREADS": "1", "SB3_TRPO_TEST": mark}
    with subprocess.Popen([sys.executable, EXAMPLE], cwd=folder, env=variables, stdout=subprocess.PIPE) as process:
        while kill and process.poll() is None:
            if len(list(folder.glob("ray_results/*/checkpoint_*/checkpoint.zip"))) > 1:
                os.kill(workers(mark)[-1], signal.SIGKILL)
                break
            time.sleep(0.05)
        output = process.communicate(timeout=600)[0].decode()
    assert process.returncode == 0, output
    assert f"after {LAST} steps" in output
    last = max(folder.glob("ray_results/*/checkpoint_*/checkpoint.zip"), key=lambda path: path.stat().st_mtime)
    return TRPO.load(last, device="cpu")


@pytest.mark.slow
@pytest.mark.skipif(not Path("/proc").exists(), reason="finds the workers in /proc")
def test_a_training_whose_worker_is_killed_ends_as_if_it_had_not(tmp_path: Path) -> None:
    th.manual_seed(0)
    models = [train(tmp_path / name, kill=name == "killed") for name in ("left_alone", "killed")]
    assert [model.num_timesteps for model in models] == [LAST, LAST]
    assert not changed(*map(state, models))
