"""
Makes the files of this folder: run with an old sb3-contrib, it trains sb3-contrib's TRPO for two updates, and saves it
and what it does beside it. README.md has the commands.
"""

import sys
from pathlib import Path

import numpy as np
import sb3_contrib
import stable_baselines3

ENVS = {"CartPole-v1": np.array([4.8, 3.0, 0.4, 3.0]), "Pendulum-v1": np.array([1.0, 1.0, 8.0])}


def make(env_id, largest):
    model = sb3_contrib.TRPO(
        "MlpPolicy",
        env_id,
        learning_rate=0.002,
        n_steps=128,
        batch_size=64,
        gamma=0.98,
        n_critic_updates=2,
        target_kl=0.02,
        policy_kwargs={"net_arch": [{"pi": [4], "vf": [4]}] if OLD_NET_ARCH else {"pi": [4], "vf": [4]}},
        seed=0,
        device="cpu",
    )
    model.learn(256)
    path = Path(__file__).parent / f"sb3_contrib-{sb3_contrib.__version__}-{env_id}.zip"
    model.save(path)
    observations = (largest * np.random.RandomState(0).uniform(-1, 1, (16, len(largest)))).astype(np.float32)
    weights = {name: tensor.numpy() for name, tensor in model.policy.state_dict().items()}
    actions, _ = model.predict(observations, deterministic=True)
    np.savez_compressed(str(path.with_suffix(".npz")), observations=observations, actions=actions, **weights)


OLD_NET_ARCH = tuple(map(int, stable_baselines3.__version__.split(".")[:2])) < (1, 8)
for env_id in sys.argv[1:] or ENVS:
    make(env_id, ENVS[env_id])
