"""
Measure ``learn()`` of pipelines that differ from the plainest one: what a user's callback, another network or another
kind of observation costs.
"""

from collections.abc import Callable
from typing import Any

import gymnasium as gym
from gymnasium import spaces
from stable_baselines3.common.callbacks import BaseCallback
from stable_baselines3.common.env_util import make_vec_env
from stable_baselines3.common.logger import Logger
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


def variants(run: Run) -> dict[str, Any]:
    """
    Time each variant in turns with the plainest pipeline.

    :param run: the threads and sizes
    :return: the seconds of each
    """
    n_updates = run.pick(4, 1)
    contenders = {
        PLAIN: _contender(run, n_updates),
        "a callback that does nothing": _contender(run, n_updates, callback=Nothing()),
        **{
            activation.__name__: _contender(run, n_updates, policy_kwargs={"activation_fn": activation})
            for activation in ACTIVATIONS
        },
        "gSDE": _contender(run, n_updates, use_sde=True, sde_sample_freq=4),
        "Dict observations": _contender(run, n_updates, policy="MultiInputPolicy", wrapper=AsDictionary),
    }
    return {"seconds": alternate(contenders, run.pick(REPETITIONS, 1)), "steps": _n_steps(run) * N_ENVS * n_updates}


def _n_steps(run: Run) -> int:
    return int(run.pick(BATCH, 64)) // N_ENVS


def _contender(
    run: Run,
    n_updates: int,
    policy: str = "MlpPolicy",
    wrapper: Callable[[gym.Env], gym.Env] | None = None,
    callback: BaseCallback | None = None,
    **options: Any,
) -> Contender:
    env = make_vec_env(TASK, N_ENVS, seed=0, wrapper_class=wrapper)
    n_steps = _n_steps(run)
    model = sb3_trpo.TRPO(policy, env, n_steps=n_steps, batch_size=64, seed=0, device="cpu", **options)
    model.set_logger(Logger(folder=None, output_formats=[]))
    return Contender(lambda: model.learn(n_steps * N_ENVS * n_updates, callback, reset_num_timesteps=False))
