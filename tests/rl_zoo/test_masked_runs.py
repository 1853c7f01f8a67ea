"""
Masks go with ``trpo_mask`` wherever RL Zoo runs a policy: the environment ends with an error at a forbidden choice.
"""

from pathlib import Path

import pytest

pytest.importorskip("rl_zoo3", reason="needs sb3-trpo[zoo]")

from sb3_trpo.cli import main

GAME = """
import gymnasium as gym
import numpy as np


class Game(gym.Env):
    observation_space = gym.spaces.Box(-1, 1, (2,))
    action_space = gym.spaces.Discrete(40)
    metadata = {"render_modes": []}

    def __init__(self, render_mode=None):
        pass

    def action_masks(self):
        return self._allowed

    def reset(self, *, seed=None, options=None):
        super().reset(seed=seed)
        return self._next(), {}

    def step(self, action):
        assert self._allowed[action], "a forbidden choice"
        return self._next(), 1.0, bool(self.np_random.random() < 0.1), False, {}

    def _next(self):
        self._allowed = np.arange(40) == self.np_random.integers(40)
        return self.np_random.uniform(-1, 1, 2).astype(np.float32)


gym.register("MaskedGame-v0", Game, max_episode_steps=30)
"""
OPTIONS = ["--algo", "trpo_mask", "--env", "MaskedGame-v0", "--gym-packages", "registered_game"]


@pytest.fixture(autouse=True)
def _beside_the_game(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "registered_game.py").write_text(GAME)
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(tmp_path)


def test_evaluations_and_enjoy_ask_for_masks(capsys: pytest.CaptureFixture[str]) -> None:
    main(["train", *OPTIONS, "-n", "2048", "--eval-freq", "1024", "-params", "n_steps:64"])
    assert "Final policy" in capsys.readouterr().out
    assert list(Path("logs").glob("trpo_mask/*/evaluations.npz"))
    main(["enjoy", *OPTIONS, "-f", "logs", "--no-render", "-n", "200"])
    assert "Mean reward" in capsys.readouterr().out


@pytest.mark.slow
def test_trials_ask_for_masks(capsys: pytest.CaptureFixture[str]) -> None:
    options = ["--optimize", "--n-trials", "1", "--n-startup-trials", "0", "--n-evaluations", "2", "--n-jobs", "1"]
    main(["train", *OPTIONS, "-n", "1024", *options])
    out = capsys.readouterr().out
    assert "Number of finished trials:  1" in out
    assert "nan" not in out
