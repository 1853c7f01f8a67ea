"""
The runs: what is wrong with each, by which rule it is to be found, and its healthy neighbour.
"""

import functools
import re
import tempfile
import warnings
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import gymnasium as gym
from gymnasium.wrappers import RescaleAction
from stable_baselines3.common.env_util import make_vec_env
from stable_baselines3.common.logger import configure
from stable_baselines3.common.vec_env import VecEnv, VecNormalize

from faults import faulty
from sb3_trpo import TRPO, check_algorithm, check_task, diagnose
from sb3_trpo.diagnosis.finding import Finding

# Small and quick: no rule needs more than this to be asked.
BASE: dict[str, Any] = {
    "policy": "MlpPolicy",
    "n_steps": 128,
    "gamma": 0.9,
    "n_critic_updates": 5,
    "policy_kwargs": {"net_arch": [32, 32]},
    "seed": 0,
    "device": "cpu",
}


@dataclass(frozen=True)
class Run:
    """
    A training that is diagnosed.

    :param env: the id of the task
    :param wrap: a function that wraps a single environment
    :param n_envs: the number of environments
    :param n_updates: the number of updates
    :param algorithm: the class
    :param arguments: the arguments of the class that are not those of ``BASE``
    :param is_active: whether the active checks are asked instead, which need no training
    :param normalizes: whether observations and rewards are normalised
    """

    env: str = "Pendulum-v1"
    wrap: Callable[[gym.Env], gym.Env] | None = None
    n_envs: int = 4
    n_updates: int = 30
    algorithm: type[TRPO] = TRPO
    arguments: Mapping[str, Any] = field(default_factory=dict)
    is_active: bool = False
    normalizes: bool = False

    def findings(self) -> tuple[list[Finding], list[str]]:
        """
        Train, and diagnose what is left; or ask the active checks.

        :return: the findings, and the names of those that were warned of during training
        """
        env: VecEnv = make_vec_env(self.env, self.n_envs, seed=0, wrapper_class=self.wrap)
        settings = {**BASE, **self.arguments}
        if self.normalizes:
            env = VecNormalize(env, gamma=settings["gamma"])
        with warnings.catch_warnings(record=True) as caught, tempfile.TemporaryDirectory() as folder:
            warnings.simplefilter("always")
            model = self.algorithm(env=env, **settings)
            if self.is_active:
                return [*check_task(self.make_env), *check_algorithm(model)], []
            model.set_logger(configure(folder, ["csv"]))
            # The log has an update's numbers after the next rollout.
            model.learn((self.n_updates + 1) * self.n_envs * settings["n_steps"])
            model.save(Path(folder) / "model")
            found = list(diagnose(folder).findings)
        # Where a finding is explained, its name comes last.
        named = [re.search(r"See .*?([\w-]+)`?\. \(This is said once", str(warning.message)) for warning in caught]
        return found, sorted({match[1] for match in named if match})

    def make_env(self) -> gym.Env:
        """
        Make a single environment.

        :return: the environment
        """
        env = gym.make(self.env)
        return env if self.wrap is None else self.wrap(env)


@dataclass(frozen=True)
class Case:
    """
    A fault, and a run that should be told from it.

    :param fault: what is wrong, in words
    :param rule: the name of the finding
    :param faulty: the run with the fault
    :param change: what makes its neighbour healthy, in words
    :param healthy: the neighbour
    :param is_pitfall: whether it is one of the mistakes that implementations of TRPO are known for
    :param is_live: whether a warning during the training has to tell
    """

    fault: str
    rule: str
    faulty: Run
    change: str
    healthy: Run
    is_pitfall: bool = False
    is_live: bool = True


def wrapped(wrapper: Callable[..., gym.Env], **settings: Any) -> Callable[[gym.Env], gym.Env]:
    """
    Fix the settings of a wrapper.

    :param wrapper: its class
    :param settings: the settings
    :return: a function that wraps an environment
    """
    return functools.partial(wrapper, **settings)


def with_arguments(**arguments: Any) -> Run:
    """
    Make a run on the usual task.

    :param arguments: the arguments of the algorithm
    :return: the run
    """
    return Run(arguments=arguments)


CHEETAH = functools.partial(Run, env="HalfCheetah-v5", n_envs=1, normalizes=True)
ACTIVE = functools.partial(Run, env="CartPole-v1", is_active=True)
USUAL = Run()

CASES = (
    Case(
        "the batch is too small",
        "small-batch",
        CHEETAH(arguments={"n_steps": 64}),
        "256 steps per update",
        CHEETAH(arguments={"n_steps": 256}),
        is_pitfall=True,
    ),
    Case(
        "GAE does not stop at the end of an episode",
        "gae-differs",
        ACTIVE(arguments={"rollout_buffer_class": faulty.WrongGae}),
        "a buffer with its own loop, which does",
        ACTIVE(arguments={"rollout_buffer_class": faulty.OwnGae}),
        is_pitfall=True,
        is_live=False,
    ),
    Case(
        "conjugate gradient does not converge",
        "cg-far-from-solved",
        CHEETAH(arguments={"n_steps": 256, "preconditioner": None, "cg_max_steps": 1, "cg_damping": 1e-3}),
        "15 iterations, with the preconditioner",
        CHEETAH(arguments={"n_steps": 256, "cg_damping": 1e-3}),
        is_pitfall=True,
    ),
    Case(
        "the line search fails for KL",
        "line-search-fails",
        with_arguments(target_kl=3.0, line_search_max_iter=1),
        "10 tries",
        with_arguments(target_kl=3.0),
        is_pitfall=True,
    ),
    Case(
        "the line search fails for lack of gain: the step goes down",
        "line-search-fails",
        Run(algorithm=faulty.WrongSign),
        "the step goes up",
        USUAL,
        is_pitfall=True,
    ),
    Case(
        "the critic diverges",
        "critic-diverges",
        CHEETAH(arguments={"n_steps": 512, "gamma": 0.99, "learning_rate": 10.0}),
        "learning_rate = 0.001",
        CHEETAH(arguments={"n_steps": 512, "gamma": 0.99}),
        is_pitfall=True,
    ),
    Case(
        "memory grows",
        "memory-grows",
        Run(n_updates=50, wrap=wrapped(faulty.Leak, size=2**14, keeps_all=True)),
        "the environment keeps the last step only",
        Run(n_updates=50, wrap=wrapped(faulty.Leak, size=2**14, keeps_all=False)),
        is_pitfall=True,
    ),
    Case(
        "the old policy is not detached: the ratio is always 1",
        "step-not-seen",
        Run(algorithm=faulty.NotDetached),
        "the other term is detached",
        Run(algorithm=faulty.Detached),
        is_pitfall=True,
    ),
    Case(
        "the old policy is not kept: KL compares the new one with itself",
        "step-not-seen",
        Run(algorithm=faulty.KlOfItself),
        "a line search of its own, with KL(old ‖ new)",
        Run(algorithm=faulty.OwnLineSearch),
        is_pitfall=True,
    ),
    Case(
        "done is ignored",
        "episodes-never-end",
        Run("CartPole-v1", wrap=faulty.EndsKeptSecret),
        "the wrapper passes it on",
        Run("CartPole-v1", wrap=faulty.EndsTold),
        is_pitfall=True,
    ),
    Case(
        "KL has the wrong direction",
        "kl-differs",
        ACTIVE(algorithm=faulty.KlBackwards),
        "KL(old ‖ new)",
        ACTIVE(algorithm=faulty.OwnLineSearch),
        is_pitfall=True,
        is_live=False,
    ),
    Case(
        "advantages are not normalised",
        "advantages-not-normalised",
        Run(
            wrap=wrapped(faulty.Offset, scale=0.1, offset=2.0), arguments={"normalize_advantage": False, "gamma": 0.98}
        ),
        "normalize_advantage = True",
        Run(wrap=wrapped(faulty.Offset, scale=0.1, offset=2.0), arguments={"gamma": 0.98}),
        is_pitfall=True,
    ),
    Case("target_kl is too small", "policy-hardly-moves", with_arguments(target_kl=1e-6), "target_kl = 0.01", USUAL),
    Case(
        "observations are not normalised",
        "observations-not-normalised",
        CHEETAH(normalizes=False),
        "VecNormalize",
        CHEETAH(arguments={"n_steps": 256}),
    ),
    Case(
        "there is hardly any noise",
        "std-collapsed",
        with_arguments(policy_kwargs={"net_arch": [32, 32], "log_std_init": -5.0}),
        "log_std_init = 0",
        USUAL,
    ),
    Case(
        "most actions are clipped",
        "actions-clipped",
        with_arguments(policy_kwargs={"net_arch": [32, 32], "log_std_init": 2.0}),
        "log_std_init = 0",
        USUAL,
    ),
    Case(
        "the action space lies far from 0",
        "actions-out-of-reach",
        Run(wrap=wrapped(RescaleAction, min_action=100.0, max_action=102.0)),
        "[-1, 1]",
        Run(wrap=wrapped(RescaleAction, min_action=-1.0, max_action=1.0)),
    ),
    Case(
        "every reward is 0",
        "rewards-all-equal",
        Run(wrap=wrapped(faulty.Offset, scale=0.0)),
        "the task's rewards",
        USUAL,
    ),
    Case(
        "rewards are too large for the critic",
        "reward-scale",
        Run(wrap=wrapped(faulty.Offset, scale=1000.0)),
        "the task's rewards",
        USUAL,
    ),
    Case(
        "a critic that can't follow λ = 1",
        "critic-explains-nothing",
        Run("CartPole-v1", arguments={"gae_lambda": 1.0, "gamma": 0.999, "learning_rate": 1e-5}),
        "λ = 0.95, learning_rate = 0.001",
        Run("CartPole-v1", arguments={"gamma": 0.99}),
    ),
    Case(
        "target_kl is too large",
        "steps-far-inside",
        Run("CartPole-v1", arguments={"target_kl": 1.0}),
        "target_kl = 0.01",
        Run("CartPole-v1"),
    ),
    Case(
        "the environment draws its own random numbers",
        "not-deterministic",
        ACTIVE(wrap=wrapped(faulty.OwnNoise, uses_seed=False)),
        "from the environment's generator",
        ACTIVE(wrap=wrapped(faulty.OwnNoise, uses_seed=True)),
        is_live=False,
    ),
)
