"""
MaskableTRPO against MaskablePPO: where hundreds of actions exist and a few are allowed, and in a board game.

    python benchmarks/masks.py --tasks KnightGame --seeds 0 1 2

Both have the same network, environments, steps and seeds, PPO its own hyperparameters. Runs that are done are not
repeated. The board game is PettingZoo's (``pip install 'sb3-trpo[bench]'``).
"""

from typing import Any, ClassVar

import gymnasium as gym
import numpy as np
from gymnasium import spaces
from sb3_contrib import MaskablePPO
from twin_runs import Task, main

from sb3_trpo import MaskableTRPO

SIZE = 16


class KnightGame(gym.Env[np.ndarray, np.int64]):
    """
    A knight walks on a board with holes to the middle: an action names one of 256 squares, at most 8 are allowed.

    A move pays by how much nearer the middle is (the larger of rows and columns between), less 0.5. The middle pays 10
    and ends the game, as 40 moves do. At a square that is not allowed nothing happens: so it is for who does not ask.
    """

    metadata: ClassVar[dict[str, Any]] = {"render_modes": []}  # type: ignore[misc]

    def __init__(self) -> None:
        self.observation_space = spaces.Box(-1.0, 1.0, (2,), np.float32)
        self.action_space = spaces.Discrete(SIZE * SIZE)
        rows, columns = np.divmod(np.arange(SIZE * SIZE), SIZE)
        distances = [np.abs(axis[:, None] - axis[None, :]) for axis in (rows, columns)]
        self._moves = (distances[0] * distances[1]) == 2
        self._goal = SIZE * SIZE // 2 + SIZE // 2
        self._holes = np.random.default_rng(0).random(SIZE * SIZE) < 0.15
        self._holes[self._goal] = False
        self._starts = np.flatnonzero(~self._holes & (np.arange(SIZE * SIZE) != self._goal))
        self._places = np.stack([rows, columns], axis=1)

    def action_masks(self) -> np.ndarray:
        """Say which squares are allowed."""
        allowed: np.ndarray = self._moves[self._at] & ~self._holes
        # A knight that is shut in may stay.
        allowed[self._at] = not allowed.any()
        return allowed

    def reset(
        self, *, seed: int | None = None, options: dict[str, Any] | None = None
    ) -> tuple[np.ndarray, dict[str, Any]]:
        super().reset(seed=seed)
        self._at = int(self.np_random.choice(self._starts))
        self._n_moves = 0
        return self._observe(), {}

    def step(self, action: np.int64) -> tuple[np.ndarray, float, bool, bool, dict[str, Any]]:
        before = self._distance()
        if self.action_masks()[action]:
            self._at = int(action)
        self._n_moves += 1
        is_there = bool(self._at == self._goal)
        reward = before - self._distance() - 0.5 + 10.0 * is_there
        return self._observe(), reward, is_there, self._n_moves >= 40, {}

    def _distance(self) -> float:
        return float(np.abs(self._places[self._at] - self._places[self._goal]).max())

    def _observe(self) -> np.ndarray:
        half = (SIZE - 1) / 2
        place: np.ndarray = self._places[self._at] / half - 1
        return place.astype(np.float32)


class ConnectFour(gym.Env[np.ndarray, np.int64]):
    """
    PettingZoo's Connect Four against an opponent that plays at random among the columns that are not full.

    A coin says who begins. A game that is won pays 1, one that is lost -1.
    """

    metadata: ClassVar[dict[str, Any]] = {"render_modes": []}  # type: ignore[misc]

    def __init__(self) -> None:
        from pettingzoo.classic import connect_four_v3

        self._game = connect_four_v3.env()
        rows, columns, players = 6, 7, 2
        self.observation_space = spaces.Box(0.0, 1.0, (rows * columns * players,), np.float32)
        self.action_space = spaces.Discrete(columns)

    def action_masks(self) -> np.ndarray:
        """Say which columns are not full."""
        mask: np.ndarray = self._game.observe(self._me)["action_mask"] > 0
        # At the end of a game PettingZoo's is empty.
        return mask if mask.any() else ~mask

    def reset(
        self, *, seed: int | None = None, options: dict[str, Any] | None = None
    ) -> tuple[np.ndarray, dict[str, Any]]:
        super().reset(seed=seed)
        self._game.reset(seed=seed)
        self._me, self._other = self.np_random.permutation(self._game.possible_agents)
        self._let_other_play()
        return self._observe(), {}

    def step(self, action: np.int64) -> tuple[np.ndarray, float, bool, bool, dict[str, Any]]:
        self._game.step(action)
        self._let_other_play()
        return self._observe(), float(self._game.rewards[self._me]), self._is_over(), False, {}

    def _let_other_play(self) -> None:
        if self._game.agent_selection == self._other and not self._is_over():
            allowed = np.flatnonzero(self._game.observe(self._other)["action_mask"])
            self._game.step(self.np_random.choice(allowed))

    def _is_over(self) -> bool:
        return any(self._game.terminations.values())

    def _observe(self) -> np.ndarray:
        board: np.ndarray = self._game.observe(self._me)["observation"]
        return board.flatten().astype(np.float32)


TASKS = {
    "KnightGame": Task(KnightGame, steps=24_576, level=10.0, n_envs=16),
    "ConnectFour": Task(ConnectFour, steps=32_768, level=0.8, n_envs=16),
}
OPTIONS: dict[str, Any] = {"n_steps": 128, "device": "cpu"}
ALGORITHMS = {
    "MaskableTRPO": lambda env, seed, task: MaskableTRPO(
        "MlpPolicy", env, n_steps=128, target_kl=0.05, seed=seed, device="cpu"
    ),
    "MaskablePPO": lambda env, seed, task: MaskablePPO("MlpPolicy", env, seed=seed, **OPTIONS),
}

if __name__ == "__main__":
    main(__doc__, "masks", TASKS, ALGORITHMS)
