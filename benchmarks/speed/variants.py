"""
Measure ``learn()`` of pipelines that differ from the plainest one: what a user's callback, another network or another
kind of observation costs, and how fast sb3-contrib's TRPO is with the same.
"""

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import gymnasium as gym
import sb3_contrib
from gymnasium import spaces
from stable_baselines3.common.callbacks import BaseCallback
from stable_baselines3.common.env_util import make_vec_env
from stable_baselines3.common.logger import Logger
from stable_baselines3.common.on_policy_algorithm import OnPolicyAlgorithm
from torch import nn

import sb3_trpo
from speed.measure import Contender, alternate
from speed.run import Run
from speed.workload import TASK

BATCH, N_ENVS = 2048, 8
REPETITIONS = 7
PLAIN = "plain"
ACTIVATIONS = (nn.ELU, nn.SiLU, nn.GELU, nn.LeakyReLU)


class Nothing(BaseCallback):
    """A callback of the user's own that does nothing at each step."""

    def _on_step(self) -> bool:
        return True


class AsDictionary(gym.ObservationWrapper):
    """
    Gives the same observations in a dictionary.

    :param env: the task
    """

    def __init__(self, env: gym.Env) -> None:
        super().__init__(env)
        self.observation_space = spaces.Dict({"state": env.observation_space})

    def observation(self, observation: Any) -> dict[str, Any]:
        """Put an observation into a dictionary."""
        return {"state": observation}


@dataclass(frozen=True)
class Variant:
    """
    What differs from the plainest pipeline.

    :param policy: the policy's alias
    :param wrapper: of each environment
    :param callback: given to ``learn``
    :param options: of the algorithm
    """

    policy: str = "MlpPolicy"
    wrapper: Callable[[gym.Env], gym.Env] | None = None
    callback: type[BaseCallback] | None = None
    options: dict[str, Any] = field(default_factory=dict)


VARIANTS = {
    PLAIN: Variant(),
    "a callback that does nothing": Variant(callback=Nothing),
    **{
        activation.__name__: Variant(options={"policy_kwargs": {"activation_fn": activation}})
        for activation in ACTIVATIONS
    },
    "gSDE": Variant(options={"use_sde": True, "sde_sample_freq": 4}),
    "Dict observations": Variant(policy="MultiInputPolicy", wrapper=AsDictionary),
}
ALGORITHMS: dict[str, type[OnPolicyAlgorithm]] = {"sb3_trpo": sb3_trpo.TRPO, "sb3-contrib": sb3_contrib.TRPO}


def variants(run: Run) -> dict[str, Any]:
    """
    Time each variant in turns with the plainest pipeline, ours and sb3-contrib's.

    :param run: the threads and sizes
    :return: the seconds of each, by algorithm
    """
    n_updates = run.pick(4, 1)
    contenders = {
        (algorithm, name): _contender(run, n_updates, kind, variant)
        for name, variant in VARIANTS.items()
        for algorithm, kind in ALGORITHMS.items()
    }
    seconds = alternate(contenders, run.pick(REPETITIONS, 1))
    by_algorithm = {
        algorithm: {name: times for (whose, name), times in seconds.items() if whose == algorithm}
        for algorithm in ALGORITHMS
    }
    return {"seconds": by_algorithm, "steps": _n_steps(run) * N_ENVS * n_updates}


def _n_steps(run: Run) -> int:
    return int(run.pick(BATCH, 64)) // N_ENVS


def _contender(run: Run, n_updates: int, algorithm: type[OnPolicyAlgorithm], variant: Variant) -> Contender:
    env = make_vec_env(TASK, N_ENVS, seed=0, wrapper_class=variant.wrapper)
    n_steps = _n_steps(run)
    common: dict[str, Any] = {"n_steps": n_steps, "batch_size": 64, "seed": 0, "device": "cpu"}
    model = algorithm(variant.policy, env, **common, **variant.options)
    model.set_logger(Logger(folder=None, output_formats=[]))
    callback = None if variant.callback is None else variant.callback()
    return Contender(lambda: model.learn(n_steps * N_ENVS * n_updates, callback, reset_num_timesteps=False))
