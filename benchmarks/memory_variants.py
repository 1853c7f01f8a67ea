"""
What RecurrentTRPO needs in order to learn: one thing changed at a time, on the two short tasks of ``memory.py``.

    python benchmarks/memory_variants.py --tasks TMaze

"as it is" has forget gates with a bias of 1, δ .05, 128 steps of each environment, and minibatches of 512.
"""

from collections.abc import Callable
from typing import Any

from memory import LSTM, TASKS, TRPOS
from stable_baselines3.common.base_class import BaseAlgorithm
from stable_baselines3.common.vec_env import VecEnv
from twin_runs import main

from sb3_trpo import RecurrentTRPO

VARIANTS: dict[str, dict[str, Any]] = {
    "as it is": {},
    "forget bias 0": {"policy_kwargs": {**LSTM, "forget_bias": 0.0}},
    "forget bias 2": {"policy_kwargs": {**LSTM, "forget_bias": 2.0}},
    "δ .01": {"target_kl": 0.01},
    "δ .01, damping .01": {"target_kl": 0.01, "cg_damping": 0.01},
    "minibatches of 128": {"batch_size": 128},
    "512 steps": {"n_steps": 512},
}


def _maker(options: dict[str, Any]) -> Callable[[VecEnv, int, str], BaseAlgorithm]:
    settings = {"policy_kwargs": LSTM, **TRPOS, **options}
    return lambda env, seed, task: RecurrentTRPO("MlpLstmPolicy", env, seed=seed, **settings)


if __name__ == "__main__":
    tasks = {name: TASKS[name] for name in ("TMaze", "CartPole")}
    main(__doc__, "memory-variants", tasks, {name: _maker(options) for name, options in VARIANTS.items()})
