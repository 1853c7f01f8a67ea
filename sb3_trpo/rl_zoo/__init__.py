"""
RL Zoo with this package's TRPO: importing this module puts it, and its hyperparameters, in the place of ``trpo``.

    python -m rl_zoo3.train --algo trpo --env HalfCheetah-v5 --gym-packages sb3_trpo.rl_zoo
"""

from sb3_trpo.rl_zoo.plugin import register

register()
