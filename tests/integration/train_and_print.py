"""
Train small models of several kinds, and print a digest of each: of every weight, and of the optimizer's state.
``train_and_print.py N_THREADS``.
"""

import hashlib
import sys

import torch as th
from small_models import ACTION_SPACES, OBSERVATION_SPACES, SpacesEnv, policy_for
from stable_baselines3.common.env_util import make_vec_env
from stable_baselines3.common.vec_env import VecNormalize
from updates import state

from sb3_trpo import TRPO

KINDS = {
    "Box": ("float32", "Box", {}),
    "gSDE": ("float32", "Box", {"use_sde": True}),
    "Dict": ("Dict", "Discrete", {"fisher_chunk_size": 40}),
    "image": ("image", "MultiBinary", {"sub_sampling_factor": 2}),
    "every option": (
        "float64-2d",
        "MultiDiscrete",
        {"cg_warm_start": True, "adaptive_kl": True, "ent_coef": 0.01, "max_grad_norm": 0.5, "preconditioner": None},
    ),
}


def digest(model: TRPO) -> str:
    """
    Digest a model's numbers.

    :param model: trained
    :return: of all its numbers
    """
    sha = hashlib.sha256()
    for name, tensor in sorted(state(model).items()):
        sha.update(name.encode())
        sha.update(tensor.numpy().tobytes())
    return sha.hexdigest()


def train_all() -> dict[str, str]:
    """Return a digest of each model after its training."""
    digests = {}
    settings = {"n_steps": 64, "batch_size": 32, "n_critic_updates": 2, "seed": 3, "device": "cpu"}
    for name, (observations, actions, kwargs) in KINDS.items():
        policy, policy_kwargs = policy_for(OBSERVATION_SPACES[observations])
        env = SpacesEnv(OBSERVATION_SPACES[observations], ACTION_SPACES[actions])
        model = TRPO(policy, env, policy_kwargs=policy_kwargs, **settings, **kwargs).learn(128)
        digests[name] = digest(model)
    env = VecNormalize(make_vec_env("Pendulum-v1", 2, seed=3))
    digests["Pendulum"] = digest(TRPO("MlpPolicy", env, **settings).learn(256))
    return digests


if __name__ == "__main__":
    th.set_num_threads(int(sys.argv[1]))
    for kind, digest_of_kind in train_all().items():
        print(kind, digest_of_kind)
