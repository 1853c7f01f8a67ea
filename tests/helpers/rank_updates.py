"""
The same update in one process and on several ranks, for models of many kinds.

``rank_updates.py FOLDER KIND ...``, with the environment variables that torchrun sets, leaves the results of each rank
in the folder.
"""

import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import gymnasium as gym
import numpy as np
import torch as th
from sb3_contrib.common.envs import InvalidActionEnvDiscrete
from small_models import ACTION_SPACES, OBSERVATION_SPACES, SpacesEnv, policy_for
from stable_baselines3.common.vec_env import DummyVecEnv
from updates import log, state, with_rollout

from sb3_trpo import TRPO, MaskableTRPO, RecurrentTRPO
from sb3_trpo.ranks.alone import ALONE, Ranks, Share
from sb3_trpo.ranks.joining import join

N_ENVS = 12
BATCH_SIZE = 48

OPTIONS = {"cg_warm_start": True, "adaptive_kl": True, "max_grad_norm": 0.5, "ent_coef": 0.01, "min_std": 0.1}
# Observations, actions and arguments.
KINDS: dict[str, tuple[str, str, dict[str, Any]]] = {
    "default": ("float32", "Box", {}),
    "chunks": ("float32", "Box", {"fisher_chunk_size": 100}),
    "thinned chunks": ("float32", "Discrete", {"sub_sampling_factor": 5, "fisher_chunk_size": 30}),
    "every option": ("float32", "Box", OPTIONS),
    "without preconditioner": ("float64-2d", "MultiBinary", {"preconditioner": None, "ent_coef": 0.01}),
    "sketched factors": ("float32", "Box", {"policy_kwargs": {"net_arch": [140, 140]}}),
    "few rows": ("float32", "Box", {"policy_kwargs": {"net_arch": [140]}, "n_steps": 8}),
    "gSDE": ("float32", "Box", {"use_sde": True}),
    "Dict": ("Dict", "MultiDiscrete", {}),
    "image": ("image", "Discrete", {}),
    "image in chunks": ("image", "Discrete", {"fisher_chunk_size": 100}),
    "recurrent": ("float32", "Box", {}),
    "masks": ("float32", "Discrete", {}),
}


def masked_env(seed: int) -> gym.Env:
    """
    Make an environment that masks actions.

    :param seed: the seed of its states
    :return: the environment
    """
    env = InvalidActionEnvDiscrete(dim=6, n_invalid_actions=3)
    env.action_space.seed(seed)
    return env


def make_model(kind: str, n_envs: int) -> Any:
    """
    Make a model of some kind, with a rollout.

    :param kind: one of ``KINDS``
    :param n_envs: the number of environments
    :return: the model, always with the same parameters
    """
    observations, actions, kwargs = KINDS[kind]
    policy, policy_kwargs = policy_for(OBSERVATION_SPACES[observations])
    settings = {"n_steps": 32, "batch_size": BATCH_SIZE, "n_critic_updates": 2, "seed": 3, "device": "cpu"}
    settings = {**settings, "policy_kwargs": policy_kwargs, **kwargs}
    if kind == "masks":
        env = DummyVecEnv([lambda seed=i: masked_env(seed) for i in range(n_envs)])
        return with_rollout(MaskableTRPO(policy, env, **settings))
    env = DummyVecEnv([lambda: SpacesEnv(OBSERVATION_SPACES[observations], ACTION_SPACES[actions])] * n_envs)
    if kind == "recurrent":
        settings["policy_kwargs"] = {"net_arch": [8], "lstm_hidden_size": 8}
        return with_rollout(RecurrentTRPO("MlpLstmPolicy", env, **settings))
    return with_rollout(TRPO(policy, env, **settings))


def take_part(model: Any, whole: Any, ranks: Ranks) -> None:
    """
    Give a model its rank's part of the rollout of another model.

    :param model: the model, with its part of the environments
    :param whole: the model with all environments
    :param ranks: the ranks
    """
    own = slice(ranks.rank * model.n_envs, (ranks.rank + 1) * model.n_envs)
    for name, array in vars(whole.rollout_buffer).items():
        axis = 2 if name.startswith(("hidden_states", "cell_states")) else 1
        if isinstance(array, np.ndarray):
            setattr(model.rollout_buffer, name, array.take(range(own.start, own.stop), axis))
        elif name == "observations":
            parts = {key: part.take(range(own.start, own.stop), axis) for key, part in array.items()}
            model.rollout_buffer.observations = parts


def draw_alike(model: Any, shares: list[Share]) -> None:
    """
    Let a model draw the critic's minibatches so that those of ranks are parts of those of one process.

    :param model: the model
    :param shares: the rows that each rank has; of the model's own rows, if it is one rank's, the only share
    """
    n_drawn = 0

    def draw(samples: Any, batch_size: int) -> list[th.Tensor]:
        nonlocal n_drawn
        n_drawn += 1
        if hasattr(samples, "starts"):
            # Whole sequences.
            return [th.arange(len(samples.returns))]
        parts = []
        for share in shares:
            n = len(samples.returns) // len(shares)
            order = th.randperm(n, generator=th.Generator().manual_seed(1000 * n_drawn + share.offset // n))
            parts.append((order + share.offset % len(samples.returns)).split(batch_size // len(shares)))
        return [th.cat(minibatch) for minibatch in zip(*parts, strict=True)]

    model._draw_minibatches = draw


def update(kind: str, ranks: Ranks = ALONE, size: int = 2) -> dict[str, Any]:
    """
    Make two updates.

    :param kind: one of ``KINDS``
    :param ranks: the ranks that make them together
    :param size: the number of ranks that make them, or, alone, among which another training divides the rollout
    :return: the parameters before and after, and what was logged
    """
    whole = make_model(kind, N_ENVS)
    n = whole.n_steps * N_ENVS // size
    if ranks.is_alone:
        model, shares = whole, [Share(rank * n, size * n) for rank in range(size)]
    else:
        model, shares = make_model(kind, N_ENVS // size), [Share(ranks.rank * n, size * n)]
        take_part(model, whole, ranks)
        model.ranks = ranks
        model.batch_size //= size
    draw_alike(model, shares)
    before = {name: tensor.clone() for name, tensor in state(model).items()}
    logged = []
    for _ in range(2):
        model.train()
        # Returns of rewards alone are computed when a rollout is collected, and this one is handed over.
        logged.append({k: v for k, v in log(model).items() if k.startswith("train/") and "return_" not in k})
    return {"before": before, "after": state(model), "logged": logged}


def leave_updates(folder: Path, kinds: Sequence[str]) -> None:
    """
    Leave the updates of this rank in a folder.

    :param folder: the folder
    :param kinds: some of ``KINDS``
    """
    ranks = join(th.device("cpu"))
    for kind in kinds:
        th.save(update(kind, ranks, ranks.size), folder / f"{kind}.{ranks.rank}")


if __name__ == "__main__":
    th.set_num_threads(1)
    leave_updates(Path(sys.argv[1]), sys.argv[2:])
