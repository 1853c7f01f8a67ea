"""
The start of a training on several ranks: they have to be about to do the same, with different random numbers.
"""

import copy
import hashlib
import io
import platform
from collections.abc import Mapping, Sequence
from importlib.metadata import PackageNotFoundError, version
from typing import Any

import gymnasium as gym
import numpy as np
import stable_baselines3
import torch as th
from stable_baselines3.common.on_policy_algorithm import OnPolicyAlgorithm

from sb3_trpo.ranks.alone import Ranks
from sb3_trpo.validation.algorithm import Hyperparameters
from sb3_trpo.validation.values import MAX_SEED, UserError, warn_user

# A schedule is known by its values there.
PROGRESS = (1.0, 0.5, 0.0)
# These may differ: seeds, which do not reach the parameters, and how long to wait for environments.
MAY_DIFFER = ("seed", "env_timeout")


def describe(model: OnPolicyAlgorithm, total_timesteps: int) -> dict[str, str]:
    """
    Describe what has to be the same on all ranks.

    :param model: the algorithm, about to learn
    :param total_timesteps: the steps to train for
    :return: the values, as texts, by name
    """
    try:
        own_version = version("sb3-trpo")
    except PackageNotFoundError:
        # From a folder that is not installed.
        own_version = "not installed"
    shapes = [tuple(parameter.shape) for parameter in model.policy.parameters()]
    return {
        "the version of Python": platform.python_version(),
        "the version of torch": th.__version__,
        "the version of numpy": np.__version__,
        "the version of gymnasium": gym.__version__,
        "the version of stable-baselines3": stable_baselines3.__version__,
        "the version of sb3-trpo": own_version,
        "the algorithm": type(model).__name__,
        "the policy": f"{type(model.policy).__name__} with parameters of shapes {shapes}",
        # Copies, for a space remembers its text.
        "the observation space": str(copy.deepcopy(model.observation_space)),
        "the action space": str(copy.deepcopy(model.action_space)),
        "the number of environments": str(model.n_envs),
        "total_timesteps": str(total_timesteps),
        "the number of steps so far": str(model.num_timesteps),
        "the number of updates so far": str(model._n_updates),
        **{name: _text(getattr(model, name)) for name in Hyperparameters.__annotations__ if name not in MAY_DIFFER},
    }


def _text(value: Any) -> str:
    return f"a schedule with the values {[value(progress) for progress in PROGRESS]}" if callable(value) else str(value)


def check_start(own: Mapping[str, str], ranks: Ranks) -> None:
    """
    Compare the ranks before they start.

    :param own: what has to be the same
    :param ranks: the ranks
    :raises UserError: on all ranks, if two of them differ
    """
    first, *others = ranks.gather(dict(own))
    for rank, other in enumerate(others, start=1):
        for name in first:
            if other.get(name) != first[name]:
                raise UserError(
                    f"The ranks can't train together: {name} is {first[name]} on rank 0 and {other.get(name)} on rank "
                    f"{rank}, but must be the same."
                )


def start_alike(model: OnPolicyAlgorithm, tensors: Mapping[str, th.Tensor], ranks: Ranks) -> None:
    """
    Give all ranks the first rank's policy and optimizer.

    :param model: the algorithm
    :param tensors: other tensors of it, by name
    :param ranks: the ranks
    """
    file = io.BytesIO()
    th.save([model.policy.state_dict(), model.policy.optimizer.state_dict(), dict(tensors)], file)
    content = ranks.broadcast(file.getvalue())
    if ranks.is_first:
        return
    policy, optimizer, others = th.load(io.BytesIO(content), map_location=model.device, weights_only=True)
    model.policy.load_state_dict(policy)
    model.policy.optimizer.load_state_dict(optimizer)
    for name, tensor in others.items():
        setattr(model, name, tensor)


def seed_by_rank(model: OnPolicyAlgorithm, ranks: Ranks) -> None:
    """
    Give each rank random numbers of its own, and its environments the seeds that they would have in one process.

    :param model: the algorithm, before its environments are reset
    :param ranks: the ranks
    """
    if model.seed is not None and not ranks.is_first:
        model.set_random_seed((model.seed + ranks.rank * model.n_envs) % (MAX_SEED + 1))


def warn_of_twins(obs: Any, ranks: Ranks) -> None:
    """
    Warn if two ranks begin with the same observations: they would see the same rollouts.

    :param obs: the first observations of this rank's environments
    :param ranks: the ranks
    """
    digests = ranks.gather(_digest(obs))
    twins = [rank for rank, digest in enumerate(digests) if digest == digests[0]]
    if ranks.is_first and len(twins) > 1:
        warn_user(
            f"Ranks {', '.join(map(str, twins))} begin with the same observations, so that they may have the same "
            "random numbers, and see the same episodes. Give the seed to the algorithm (seed=...), which adds to it "
            "for each rank, rather than to make_vec_env."
        )


def _digest(obs: Any) -> str:
    parts: Sequence[Any] = list(obs.values()) if isinstance(obs, dict) else [obs]
    return hashlib.sha256(b"".join(np.ascontiguousarray(part).tobytes() for part in parts)).hexdigest()
