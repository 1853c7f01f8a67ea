"""
RecurrentTRPO against RecurrentPPO, and against TRPO with a stack of four frames, where observations hide the state.

    python benchmarks/memory.py --tasks TMaze CartPole --seeds 0 1 2

All have the same environments, steps and seeds, and the two recurrent ones the same LSTM. Runs that are done are not
repeated.
"""

import argparse
import pathlib
from collections.abc import Callable
from typing import Any, ClassVar

import gymnasium as gym
import numpy as np
from gymnasium import spaces
from sb3_contrib import RecurrentPPO
from stable_baselines3.common.base_class import BaseAlgorithm
from stable_baselines3.common.env_util import make_vec_env
from stable_baselines3.common.vec_env import VecEnv, VecFrameStack
from twin_runs import print_table, run

from sb3_trpo import TRPO, RecurrentTRPO

# Steps from the sign to the junction.
CORRIDOR = 20
LSTM = {"lstm_hidden_size": 64}
# Of each task: steps of training, and the level to reach.
TASKS = {"TMaze": (60_000, 0.7), "CartPole": (60_000, 400.0), "Pendulum": (200_000, -300.0)}


class TMaze(gym.Env[np.ndarray, np.int64]):
    """
    A corridor with a sign at its beginning that says which way to turn at its end, ``CORRIDOR`` steps later.

    Observations are the sign (0 after the first step), whether this is the junction, and noise. The right turn there
    gives 1, the wrong one -1, and either ends the episode. Any other turn, and a walk against the wall, costs 0.1.
    """

    metadata: ClassVar[dict[str, Any]] = {"render_modes": []}  # type: ignore[misc]

    def __init__(self) -> None:
        self.observation_space = spaces.Box(-1.0, 1.0, (3,), np.float32)
        self.action_space = spaces.Discrete(3)

    def reset(
        self, *, seed: int | None = None, options: dict[str, Any] | None = None
    ) -> tuple[np.ndarray, dict[str, Any]]:
        super().reset(seed=seed)
        self._at, self._n_steps, self._sign = 0, 0, int(self.np_random.integers(2))
        return self._observe(), {}

    def step(self, action: np.int64) -> tuple[np.ndarray, float, bool, bool, dict[str, Any]]:
        self._n_steps += 1
        is_junction, walks = self._at == CORRIDOR, action == 2
        if is_junction and not walks:
            return self._observe(), 1.0 if action == self._sign else -1.0, True, False, {}
        if walks and not is_junction:
            self._at += 1
        cost = 0.0 if walks and not is_junction else 0.1
        return self._observe(), -cost, False, self._n_steps >= 5 * CORRIDOR, {}

    def _observe(self) -> np.ndarray:
        sign = 2.0 * self._sign - 1.0 if self._at == 0 else 0.0
        return np.array([sign, float(self._at == CORRIDOR), self.np_random.uniform(-1, 1)], dtype=np.float32)


class WithoutVelocities(gym.ObservationWrapper[Any, Any, Any]):
    """
    Hides velocities.

    :param env: the environment
    :param kept: which numbers of an observation stay
    """

    def __init__(self, env: gym.Env[Any, Any], kept: list[int]) -> None:
        super().__init__(env)
        space = env.observation_space
        assert isinstance(space, spaces.Box)
        self._kept = kept
        self.observation_space = spaces.Box(space.low[kept], space.high[kept], dtype=space.dtype.type)

    def observation(self, observation: np.ndarray) -> np.ndarray:
        """Leave the velocities out."""
        return observation[self._kept]


ENVIRONMENTS: dict[str, Callable[[], gym.Env[Any, Any]]] = {
    "TMaze": TMaze,
    "CartPole": lambda: WithoutVelocities(gym.make("CartPole-v1"), [0, 2]),
    "Pendulum": lambda: WithoutVelocities(gym.make("Pendulum-v1"), [0, 1]),
}


def _recurrent(kind: type[BaseAlgorithm]) -> Callable[[VecEnv, int], BaseAlgorithm]:
    return lambda env, seed: kind("MlpLstmPolicy", env, n_steps=256, seed=seed, device="cpu", policy_kwargs=LSTM)  # type: ignore[call-arg]


ALGORITHMS: dict[str, Callable[[VecEnv, int], BaseAlgorithm]] = {
    "RecurrentTRPO": _recurrent(RecurrentTRPO),
    "RecurrentPPO": _recurrent(RecurrentPPO),
    "TRPO, 4 frames": lambda env, seed: TRPO("MlpPolicy", VecFrameStack(env, 4), n_steps=256, seed=seed, device="cpu"),
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--tasks", nargs="+", default=list(TASKS))
    parser.add_argument("--algos", nargs="+", default=list(ALGORITHMS))
    parser.add_argument("--seeds", nargs="+", type=int, default=[0])
    parser.add_argument("--steps", type=int, default=None, help="in place of the task's own number")
    parser.add_argument("--out", type=pathlib.Path, default=pathlib.Path(__file__).parent / "results" / "memory")
    options = parser.parse_args()
    for seed in options.seeds:
        for task in options.tasks:
            for name in options.algos:
                steps = options.steps or TASKS[task][0]

                def make_env(seed: int, task: str = task) -> VecEnv:
                    return make_vec_env(ENVIRONMENTS[task], n_envs=8, seed=seed)

                run(options.out, task, name, seed, steps, make_env, ALGORITHMS[name])
    print_table(options.out, {task: level for task, (_, level) in TASKS.items()})


if __name__ == "__main__":
    main()
