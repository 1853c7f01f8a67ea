"""
Training that goes on, bit for bit, where a crash has ended it.

    checkpoint = Checkpoint("run/checkpoint.zip")
    model = checkpoint.load(env) if checkpoint.exists() else TRPO("MlpPolicy", env, seed=0)
    model.learn(1_000_000, checkpoint)

is a script that may be killed at any moment, and started again. A checkpoint is a model as SB3 saves it, so that
``TRPO.load`` and every tool of SB3 can read it, with one more member (``training_state``): random numbers, callbacks,
the environments and their wrappers.

Each module imports from those after it: ``checkpoint`` -> ``ranked_state`` -> ``training_state`` -> ``callback_state``
-> ``vec_env_state`` -> ``env_state`` -> ``known_objects`` -> ``tree`` -> ``tree_reader`` -> ``tree_writer`` ->
``tree_format``.
"""

from sb3_trpo.checkpoints.checkpoint import Checkpoint
from sb3_trpo.checkpoints.env_state import Checkpointable

__all__ = ["Checkpoint", "Checkpointable"]
