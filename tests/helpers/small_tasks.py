"""
Small tasks for the spaces that Gymnasium has no task for. None is solved by an action that is always the same, nor by
chance: what is observed has to be read.
"""

from typing import Any

import gymnasium as gym
import numpy as np
from gymnasium import spaces
from gymnasium.envs.classic_control import CartPoleEnv

# Of an edge, in cells and in pixels a cell. SB3's smallest image is one of 36 x 36 pixels.
GRID, CELL = 12, 3


class Catch(gym.Env):
    """
    A ball falls down a screen, a row at each step; a paddle at the bottom moves left, stays or moves right. The return
    is 1 if the paddle is below the ball in the end, -1 otherwise.

    :param as_dict: whether the ball's place is given by two numbers and the paddle's, beside it, by a choice; otherwise
        the screen shows both
    """

    def __init__(self, as_dict: bool = False) -> None:
        self.action_space = spaces.Discrete(3)
        screen = spaces.Box(0, 255, (GRID * CELL, GRID * CELL, 1), np.uint8)
        places = spaces.Dict({"ball": spaces.Box(-1.0, 1.0, (2,)), "paddle": spaces.Discrete(GRID)})
        self._as_dict = as_dict
        self.observation_space = places if as_dict else screen

    def reset(self, *, seed: int | None = None, options: dict | None = None) -> tuple[Any, dict]:
        super().reset(seed=seed)
        self._row, self._column = 0, int(self.np_random.integers(GRID))
        self._paddle = GRID // 2
        return self._observation(), {}

    def step(self, action: int) -> tuple[Any, float, bool, bool, dict]:
        self._paddle = int(np.clip(self._paddle + action - 1, 0, GRID - 1))
        self._row += 1
        landed = self._row == GRID - 1
        reward = (1.0 if self._paddle == self._column else -1.0) if landed else 0.0
        return self._observation(), reward, landed, False, {}

    def _observation(self) -> Any:
        if self._as_dict:
            ball = 2.0 * np.array([self._row, self._column], np.float32) / (GRID - 1) - 1.0
            return {"ball": ball, "paddle": self._paddle}
        cells = np.zeros((GRID, GRID), np.uint8)
        cells[self._row, self._column] = cells[-1, self._paddle] = 255
        return np.kron(cells, np.ones((CELL, CELL), np.uint8))[:, :, None]


class CartPoles(gym.Env):
    """
    Several of Gymnasium's CartPoles, to be balanced at once: a bit of the action pushes each to the left or right. The
    episode ends when the first of them falls.

    :param n_carts: how many
    """

    def __init__(self, n_carts: int = 3) -> None:
        self._carts = [CartPoleEnv() for _ in range(n_carts)]
        self.action_space = spaces.MultiBinary(n_carts)
        self.observation_space = spaces.Box(-np.inf, np.inf, (4 * n_carts,))

    def reset(self, *, seed: int | None = None, options: dict | None = None) -> tuple[np.ndarray, dict]:
        super().reset(seed=seed)
        seeds = self.np_random.integers(2**31, size=len(self._carts))
        starts = [cart.reset(seed=int(s))[0] for cart, s in zip(self._carts, seeds, strict=True)]
        return np.concatenate(starts), {}

    def step(self, action: np.ndarray) -> tuple[np.ndarray, float, bool, bool, dict]:
        steps = [cart.step(int(bit)) for cart, bit in zip(self._carts, action, strict=True)]
        return np.concatenate([step[0] for step in steps]), 1.0, any(step[2] for step in steps), False, {}


class DigitalTorque(gym.ActionWrapper):
    """
    Pendulum-v1 with its torque in two digits of base three: from -2 to 2 in steps of one half.

    :param env: Pendulum-v1
    """

    def __init__(self, env: gym.Env) -> None:
        super().__init__(env)
        self.action_space = spaces.MultiDiscrete([3, 3])

    def action(self, action: np.ndarray) -> np.ndarray:
        coarse, fine = action - 1
        return np.array([1.5 * coarse + 0.5 * fine], np.float32)


gym.register("Catch-v0", Catch)
gym.register("CatchDict-v0", Catch, kwargs={"as_dict": True})
gym.register("CartPoles-v0", CartPoles, max_episode_steps=500)
gym.register("DigitalPendulum-v0", lambda: DigitalTorque(gym.make("Pendulum-v1")))
