"""
Every algorithm that RL Zoo gets to know has hyperparameters that its constructor takes, and trains by its name.
"""

import inspect
from pathlib import Path

import pytest
import yaml

pytest.importorskip("rl_zoo3", reason="needs sb3-trpo[zoo]")

import rl_zoo3

from sb3_trpo import TRPO, MaskableTRPO, RecurrentTRPO
from sb3_trpo.cli import main
from sb3_trpo.rl_zoo.algorithms import ALGORITHMS

# What RL Zoo itself takes out of an entry before it calls the algorithm's constructor.
RL_ZOO_KEYS = {"n_timesteps", "n_envs", "normalize", "env_wrapper", "frame_stack", "callback"}


def test_names_mean_ours() -> None:
    classes = {"trpo": TRPO, "trpo_mask": MaskableTRPO, "trpo_lstm": RecurrentTRPO}
    assert {name: algorithm.algorithm_class for name, algorithm in ALGORITHMS.items()} == classes
    assert classes.items() <= rl_zoo3.ALGOS.items()


@pytest.mark.parametrize("name", ALGORITHMS)
def test_hyperparameters_are_arguments_and_policies_are_known(name: str) -> None:
    algorithm = ALGORITHMS[name]
    arguments = set(inspect.signature(algorithm.algorithm_class).parameters)
    tasks = yaml.safe_load(algorithm.hyperparameters.read_text())
    assert "default" in tasks
    for entry in tasks.values():
        assert set(entry) - RL_ZOO_KEYS <= arguments
        assert entry["policy"] in algorithm.algorithm_class.policy_aliases


def test_memory_trains_by_its_name(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    main(["train", "--algo", "trpo_lstm", "--env", "CartPoleNoVel-v1", "-n", "1024", "--eval-freq", "-1"])
    assert "Final policy" in capsys.readouterr().out
