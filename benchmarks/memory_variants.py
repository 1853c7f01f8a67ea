"""
What RecurrentTRPO needs in order to learn: one thing changed at a time, on the two short tasks of ``memory.py``.

    python benchmarks/memory_variants.py --tasks TMaze

"as it is" has forget gates with a bias of 1, δ .05, and what ``memory.py`` has for the task: on the T-maze 128 steps of
each environment, minibatches of 512 and 10 epochs of the critic at a learning rate of .001.
"""

from collections.abc import Callable
from typing import Any

from memory import CHANGES, LSTM, LSTM_CHANGES, TASKS, TRPOS
from stable_baselines3.common.base_class import BaseAlgorithm
from stable_baselines3.common.vec_env import VecEnv
from twin_runs import main

from sb3_trpo import RecurrentTRPO

VARIANTS: dict[str, dict[str, Any]] = {
    "as it is": {},
    "forget bias 0": {"policy_kwargs": {"forget_bias": 0.0}},
    "forget bias 2": {"policy_kwargs": {"forget_bias": 2.0}},
    "δ .01": {"target_kl": 0.01},
    "δ .01, damping .01": {"target_kl": 0.01, "cg_damping": 0.01},
    "minibatches of 128": {"batch_size": 128},
    "10 epochs of the critic at .001": {"n_critic_updates": 10, "learning_rate": 0.001},
    "20 epochs of the critic at .003": {"n_critic_updates": 20, "learning_rate": 0.003},
    "512 steps": {"n_steps": 512},
}


def _maker(changes: dict[str, Any]) -> Callable[[VecEnv, int, str], BaseAlgorithm]:
    def make(env: VecEnv, seed: int, task: str) -> BaseAlgorithm:
        policy_kwargs = {**LSTM, **LSTM_CHANGES.get(task, {}), **changes.get("policy_kwargs", {})}
        options = {**TRPOS, **CHANGES.get(task, {}), **changes, "policy_kwargs": policy_kwargs}
        return RecurrentTRPO("MlpLstmPolicy", env, seed=seed, **options)

    return make


if __name__ == "__main__":
    tasks = {name: TASKS[name] for name in ("TMaze", "CartPole")}
    main(__doc__, "memory-variants", tasks, {name: _maker(changes) for name, changes in VARIANTS.items()})
