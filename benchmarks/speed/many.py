"""
Measure thousands of environments in one array, the shape of Isaac Lab: ``train()``, ``learn()`` and memory.
"""

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import sb3_contrib
import stable_baselines3
from stable_baselines3.common.on_policy_algorithm import OnPolicyAlgorithm
from torch import nn

import sb3_trpo
from speed.images import MIB, memory_of_call
from speed.measure import Contender, alternate
from speed.pendulums import Pendulums
from speed.quality import direction_quality
from speed.run import Run
from speed.updates import critic_losses
from speed.workload import Setting, Update, Workload, make_workload, resized

ALGORITHMS: dict[str, type[OnPolicyAlgorithm]] = {
    "sb3_trpo": sb3_trpo.TRPO,
    "sb3-contrib": sb3_contrib.TRPO,
    "PPO": stable_baselines3.PPO,
}
N_ENVS = (256, 1024, 4096)
N_STEPS = 24
# Those of Isaac Lab's PPO: so many minibatches, and so often, for the critics and for PPO.
N_MINIBATCHES, N_EPOCHS = 4, 5
POLICY = {"net_arch": [256, 128, 64], "activation_fn": nn.ELU}
# Repetitions of the slowest take half a minute; their noise is small.
REPETITIONS = {256: 7, 1024: 5, 4096: 3}
# Steps of 4096 environments: rollouts of 98,304 and of 983,040 samples.
LENGTHS = (24, 240)
CG_MAX_STEPS = 15


def many_setting(n_envs: int, n_steps: int = N_STEPS, batch_size: int | None = None) -> Setting:
    """
    Make the setting of so many environments.

    :param n_envs: environments
    :param n_steps: of each
    :param batch_size: of the critic; None for a share of the rollout
    :return: TRPO's setting
    """
    hyperparameters = {
        "n_steps": n_steps,
        "batch_size": batch_size or n_envs * n_steps // N_MINIBATCHES,
        "n_critic_updates": N_EPOCHS,
        "cg_max_steps": CG_MAX_STEPS,
        "policy_kwargs": POLICY,
    }
    return Setting(hyperparameters, n_envs=n_envs, make_batch=Pendulums)


def for_ppo(setting: Setting) -> Setting:
    """
    Give PPO the same network, minibatches and epochs.

    :param setting: TRPO's
    :return: PPO's
    """
    theirs = {name: setting.hyperparameters[name] for name in ("n_steps", "batch_size", "policy_kwargs")}
    return Setting(
        {**theirs, "n_epochs": setting.hyperparameters["n_critic_updates"]},
        n_envs=setting.n_envs,
        make_batch=setting.make_batch,
    )


def many(run: Run) -> dict[str, Any]:
    """
    Time updates and training with each number of environments, and measure what memory grows with.

    :param run: the threads and sizes
    :return: what was measured, by the number of environments
    """
    sizes = {str(n_envs): _of_size(run, n_envs) for n_envs in run.pick(N_ENVS, (8, 16))}
    measured: dict[str, Any] = {"sizes": sizes}
    if run.threads == 1:
        n_envs, lengths = run.pick((N_ENVS[-1], LENGTHS), (8, (8, 16)))
        measured["memory"] = {
            str(n_envs * length): {
                name: _memory_of(name, n_envs, length, run)
                # A graph of sb3-contrib's of a million samples has no place in most machines.
                for name in (ALGORITHMS if length == lengths[0] else ("sb3_trpo",))
            }
            for length in lengths
        }
    return measured


def _of_size(run: Run, n_envs: int) -> dict[str, Any]:
    setting = many_setting(n_envs)
    workload = make_workload(setting, run.pick(3, 1))
    updates = {name: _update(name, workload) for name in ALGORITHMS}
    repetitions = run.pick(REPETITIONS.get(n_envs), 1)
    seconds = alternate({name: update.contender for name, update in updates.items()}, repetitions)
    train = {
        "seconds": seconds,
        "quality": direction_quality(workload, CG_MAX_STEPS, run.pick(2, 1)),
        "critic_loss": critic_losses(updates),
        "samples": workload.n_samples,
    }
    # An iteration of the smallest is short, and so there are more of them.
    n_updates = run.pick(max(1, 1024 // n_envs), 1)
    learners = {name: _learner(name, setting, n_updates) for name in ALGORITHMS}
    steps = n_updates * n_envs * N_STEPS
    return {"train": train, "learn": {"seconds": alternate(learners, repetitions), "steps": steps}}


def _update(name: str, workload: Workload) -> Update:
    if name == "PPO":
        ppo = for_ppo(workload.setting)
        workload = Workload(ppo, workload.env, workload.policy_state, workload.optimizer_state, workload.rollout)
    return workload.update(ALGORITHMS[name])


def _learner(name: str, setting: Setting, n_updates: int) -> Contender:
    setting = for_ppo(setting) if name == "PPO" else setting
    model = setting.make_model(ALGORITHMS[name], setting.make_envs())
    n_steps = n_updates * setting.n_envs * N_STEPS
    return Contender(lambda: model.learn(n_steps, reset_num_timesteps=False))


def _memory_of(name: str, n_envs: int, n_steps: int, run: Run) -> dict[str, float]:
    """
    Measure the memory of an update.

    :param name: of an algorithm
    :param n_envs: environments of the rollout
    :param n_steps: steps of each
    :param run: the threads
    :return: in MiB, what ``train()`` takes at its peak above what was taken before (``extra``), and the size of the
        rollout (``rollout``); measured in a process of its own
    """
    request = json.dumps({"name": name, "n_envs": n_envs, "n_steps": n_steps})
    environment = {**os.environ, "OMP_NUM_THREADS": str(run.threads)}
    # Where this process found its modules, the other one should.
    environment["PYTHONPATH"] = os.pathsep.join(path for path in sys.path if path)
    command = [sys.executable, "-W", "ignore", "-m", "speed.many", request]
    done = subprocess.run(
        command, capture_output=True, text=True, check=True, env=environment, cwd=Path(__file__).parents[1]
    )
    measured: dict[str, float] = json.loads(done.stdout.splitlines()[-1])
    return measured


def measure_memory(name: str, n_envs: int, n_steps: int) -> dict[str, float]:
    """See ``_memory_of``; in this process."""
    few = min(n_steps, 8)
    # Minibatches stay as large as they are: how many there are of them is time, and no memory.
    setting = many_setting(n_envs, few, n_envs * min(n_steps, N_STEPS) // N_MINIBATCHES)
    small = make_workload(setting, n_updates=0)
    update = _update(name, resized(small, n_steps))
    update.prepare()
    update.release()
    return {"extra": memory_of_call(update.model.train), "rollout": update.n_bytes / MIB}


if __name__ == "__main__":
    print(json.dumps(measure_memory(**json.loads(sys.argv[1]))))
