"""
RL Zoo with this package's algorithms: importing this module registers them, and their hyperparameters.

    python -m rl_zoo3.train --algo trpo --env HalfCheetah-v5 --gym-packages sb3_trpo.rl_zoo
"""

from sb3_trpo.rl_zoo.plugin import register

register()
