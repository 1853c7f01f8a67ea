"""
Measure ``train()`` of multilayer perceptrons: the whole update, and the policy step alone beside more peers.
"""

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import sb3_contrib
import stable_baselines3
from torch import nn

import sb3_trpo
from speed import peers
from speed.measure import Contender, alternate
from speed.quality import direction_quality
from speed.run import Run
from speed.workload import Setting, Update, Workload, make_workload

# Updates that the policy has seen before the one that is timed.
N_UPDATES = 20
# Updates whose search direction is judged.
N_JUDGED = 5

DEFAULTS = {"n_steps": 2048, "batch_size": 128, "cg_max_steps": 15, "n_critic_updates": 10}
# RL Zoo's for MuJoCo's tasks, with HalfCheetah's target_kl.
ZOO = {"n_steps": 1024, "batch_size": 128, "cg_max_steps": 25, "n_critic_updates": 20, "target_kl": 0.04}
WIDE = {
    "n_steps": 5000,
    "batch_size": 5000,
    "cg_max_steps": 10,
    "n_critic_updates": 5,
    "policy_kwargs": {"net_arch": [256, 256]},
}
# PPO's own defaults, but for the rollout, which is given.
PPO_TAKES = ("n_steps", "policy_kwargs")
QUICK = {"n_steps": 64, "batch_size": 32, "n_critic_updates": 2}


def defaults(run: Run) -> dict[str, Any]:
    return _whole_update(run, Setting(_sizes(run, DEFAULTS), device=run.device), repetitions=15, with_ppo=True)


def zoo(run: Run) -> dict[str, Any]:
    return _whole_update(run, Setting(_sizes(run, ZOO), n_envs=2, normalize=True, device=run.device), repetitions=11)


def wide(run: Run) -> dict[str, Any]:
    return _whole_update(run, Setting(_sizes(run, WIDE), device=run.device), repetitions=7)


def wide_relu(run: Run) -> dict[str, Any]:
    return _wide(run, [256, 256], nn.ReLU)


def wide_elu(run: Run) -> dict[str, Any]:
    return _wide(run, [256, 256], nn.ELU)


def wider_relu(run: Run) -> dict[str, Any]:
    return _wide(run, [400, 300], nn.ReLU)


def wider_elu(run: Run) -> dict[str, Any]:
    return _wide(run, [400, 300], nn.ELU)


def _wide(run: Run, layers: list[int], activation: type[nn.Module]) -> dict[str, Any]:
    hyperparameters = _sizes(run, {**WIDE, "policy_kwargs": {"net_arch": layers, "activation_fn": activation}})
    return _whole_update(run, Setting(hyperparameters, device=run.device), repetitions=7)


def policy_step(run: Run) -> dict[str, Any]:
    return _policy_step(run, DEFAULTS, repetitions=15)


def wide_policy_step(run: Run) -> dict[str, Any]:
    return _policy_step(run, WIDE, repetitions=7)


def _sizes(run: Run, hyperparameters: dict[str, Any]) -> dict[str, Any]:
    return {**hyperparameters, **(QUICK if run.quick else {})}


def _whole_update(run: Run, setting: Setting, repetitions: int, with_ppo: bool = False) -> dict[str, Any]:
    workload = make_workload(setting, run.pick(N_UPDATES, 1))
    updates = {
        "sb3_trpo": workload.update(sb3_trpo.TRPO),
        "sb3-contrib": workload.update(sb3_contrib.TRPO),
    }
    if with_ppo:
        own = {name: value for name, value in setting.hyperparameters.items() if name in PPO_TAKES}
        ppo_workload = make_ppo_workload(workload, own)
        updates["PPO"] = ppo_workload.update(stable_baselines3.PPO)
    seconds = alternate({name: update.contender for name, update in updates.items()}, run.pick(repetitions, 2))
    return {
        "seconds": seconds,
        "quality": direction_quality(workload, setting.hyperparameters["cg_max_steps"], N_JUDGED),
        "critic_loss": critic_losses(updates),
        "samples": workload.n_samples,
    }


def make_ppo_workload(workload: Workload, hyperparameters: dict[str, Any]) -> Workload:
    """
    Give a workload to PPO.

    :param workload: made with TRPO's hyperparameters
    :param hyperparameters: that PPO is to have instead
    :return: the same work
    """
    return replace(workload, setting=replace(workload.setting, hyperparameters=hyperparameters))


def critic_losses(updates: dict[str, Update]) -> dict[str, list[float]]:
    """
    Measure the critic's error.

    :param updates: by name
    :return: mean squared error of the critic after each timed update, and at the beginning
    """
    losses = {name: update.critic_losses for name, update in updates.items()}
    first = next(iter(updates.values()))
    first.prepare()
    return {**losses, "before": [first.critic_loss()]}


def _policy_step(run: Run, hyperparameters: dict[str, Any], repetitions: int) -> dict[str, Any]:
    """
    Gradient, search direction, line search, and one step of the critic on all samples: the least that every peer can be
    made to do. Tianshou's number of conjugate gradient iterations is fixed.
    """
    sizes = _sizes(run, hyperparameters)
    n_samples = sizes["n_steps"]
    common = {**sizes, "cg_max_steps": peers.CG_ITERATIONS, "n_critic_updates": 1, "batch_size": n_samples}
    workload = make_workload(Setting(common), run.pick(N_UPDATES, 1))
    contenders: dict[str, Contender] = {
        "sb3_trpo": workload.update(sb3_trpo.TRPO).contender,
        f"sb3_trpo, {peers.CG_ITERATIONS} plain iterations": workload.update(
            sb3_trpo.TRPO, preconditioner=None, cg_residual_tol=0.0, cg_progress_tol=0.0
        ).contender,
        "sb3-contrib": workload.update(sb3_contrib.TRPO).contender,
    }
    missing = {}
    makers: dict[str, Callable[..., Contender]] = {"Tianshou": peers.tianshou_update, "skrl": peers.skrl_update}
    for name, make in makers.items():
        try:
            contenders[name] = make(workload)
        except ImportError as error:
            missing[name] = str(error)
    return {
        "seconds": alternate(contenders, run.pick(repetitions, 2)),
        "quality": direction_quality(workload, peers.CG_ITERATIONS, N_JUDGED),
        "missing": missing,
        "samples": workload.n_samples,
    }
