"""
Measure what masks cost in an update, and ``learn()`` with an LSTM beside RecurrentPPO's.
"""

from functools import partial
from typing import Any

import gymnasium as gym
import sb3_contrib
from memory import LSTM, TASKS
from sb3_contrib.common.envs import InvalidActionEnvDiscrete, InvalidActionEnvMultiDiscrete
from stable_baselines3.common.env_util import make_vec_env
from stable_baselines3.common.logger import Logger
from stable_baselines3.common.on_policy_algorithm import OnPolicyAlgorithm

import sb3_trpo
from speed.measure import Contender, alternate
from speed.run import Run

N_ENVS = 8
REPETITIONS = 15
WITHOUT = "without masks"
# For each kind of actions, environments with masks.
GAMES: dict[str, partial[Any]] = {
    "4 actions": partial(InvalidActionEnvDiscrete, dim=4, n_invalid_actions=2),
    "256 actions": partial(InvalidActionEnvDiscrete, dim=256, n_invalid_actions=200),
    "8 x 8 actions": partial(InvalidActionEnvMultiDiscrete, dims=[8] * 8, n_invalid_actions=32),
}


def masks(run: Run) -> dict[str, Any]:
    """
    Time updates with masks in turns with updates without, each on its own rollout of the same environments.

    Conjugate gradient takes all its iterations in both, so that the work differs in the masks alone.

    :param run: the threads and sizes
    :return: the seconds of each, for each kind of actions
    """
    seconds = {}
    for name, game in GAMES.items():
        contenders = {"with masks": _update(run, game, True), WITHOUT: _update(run, game, False)}
        seconds[name] = alternate(contenders, run.pick(REPETITIONS, 1))
    return {"seconds": seconds, "samples": _n_steps(run) * N_ENVS}


def lstm(run: Run) -> dict[str, Any]:
    """
    Time ``learn()`` on CartPole without velocities, both with their own defaults and the same LSTM.

    :param run: the threads and sizes
    :return: the seconds of each
    """
    n_steps = run.pick(128, 16)

    def contender(kind: type[OnPolicyAlgorithm]) -> Contender:
        env = make_vec_env(TASKS["CartPole"].make, N_ENVS, seed=0)
        model: OnPolicyAlgorithm = kind("MlpLstmPolicy", env, n_steps=n_steps, policy_kwargs=LSTM, seed=0, device="cpu")  # type: ignore[call-arg]
        model.set_logger(Logger(folder=None, output_formats=[]))
        return Contender(lambda: model.learn(2 * n_steps * N_ENVS, reset_num_timesteps=False))

    contenders = {"sb3_trpo": contender(sb3_trpo.RecurrentTRPO), "RecurrentPPO": contender(sb3_contrib.RecurrentPPO)}
    return {"seconds": alternate(contenders, run.pick(5, 1)), "steps": 2 * n_steps * N_ENVS}


def _n_steps(run: Run) -> int:
    return int(run.pick(256, 8))


def _update(run: Run, game: partial[gym.Env], use_masking: bool) -> Contender:
    env = make_vec_env(game, N_ENVS, seed=0)
    model = sb3_trpo.MaskableTRPO(
        "MlpPolicy", env, n_steps=_n_steps(run), cg_residual_tol=0.0, cg_progress_tol=0.0, seed=0, device="cpu"
    )
    model.set_logger(Logger(folder=None, output_formats=[]))

    def collect() -> None:
        model.learn(1, use_masking=use_masking, reset_num_timesteps=False)

    # A rollout of the policy as it is after some updates; ``learn`` ends with an update, and the next begins like it.
    for _ in range(run.pick(5, 1)):
        collect()
    weights = {name: value.clone() for name, value in model.policy.state_dict().items()}
    return Contender(model.train, lambda: model.policy.load_state_dict(weights))
