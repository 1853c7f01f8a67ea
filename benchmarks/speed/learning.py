"""
Measure ``learn()``: environment steps per second, everything included.
"""

import multiprocessing
import os
from collections.abc import Callable, Mapping
from functools import partial
from typing import Any

import sb3_contrib
from stable_baselines3.common.env_util import make_vec_env
from stable_baselines3.common.logger import Logger
from stable_baselines3.common.on_policy_algorithm import OnPolicyAlgorithm
from stable_baselines3.common.vec_env import DummyVecEnv, SubprocVecEnv, VecEnv

import sb3_trpo
from speed import peers
from speed.measure import Contender, alternate, spread
from speed.run import Run
from speed.workload import TASK

# Samples of an update, whatever the number of environments.
BATCH = 2048
REPETITIONS = 5
OUR_ENVPOOLS = [(n_envs, threads) for n_envs in (8, 16, 32, 64) for threads in (1, 2)]
THEIR_ENVS = [("DummyVecEnv", n_envs) for n_envs in (1, 4, 16, 64)] + [("SubprocVecEnv", n_envs) for n_envs in (2, 4)]

PRELOADED = ("sb3_trpo", "sb3_contrib", "gymnasium.envs.mujoco.half_cheetah_v5", "matplotlib.figure")


def learn_contender(algorithm: type[OnPolicyAlgorithm], env: VecEnv, batch: int, n_updates: int) -> Contender:
    """
    Make a contender of a whole training.

    :param algorithm: with its defaults
    :param env: training environments
    :param batch: samples of an update
    :param n_updates: of one repetition
    :return: training that goes on from repetition to repetition
    """
    model = algorithm("MlpPolicy", env, n_steps=batch // env.num_envs, seed=0, device="cpu")  # type: ignore[call-arg]
    model.set_logger(Logger(folder=None, output_formats=[]))
    n_steps = batch // env.num_envs * env.num_envs * n_updates
    return Contender(lambda: model.learn(n_steps, reset_num_timesteps=False))


def learn_1(run: Run) -> dict[str, Any]:
    batch, n_updates = run.pick(BATCH, 64), run.pick(4, 1)
    contenders = _both(lambda: make_vec_env(TASK, 1, seed=0), batch, n_updates)
    missing = {}
    makers: dict[str, Callable[..., Contender]] = {"Tianshou": peers.tianshou_learn, "skrl": peers.skrl_learn}
    for name, make in makers.items():
        try:
            contenders[name] = make(batch * n_updates, batch)
        except ImportError as error:
            missing[name] = str(error)
    seconds = alternate(contenders, run.pick(REPETITIONS, 1))
    return {"seconds": seconds, "steps": batch * n_updates, "missing": missing}


def learn_8(run: Run) -> dict[str, Any]:
    batch, n_updates = run.pick(BATCH, 64), run.pick(8, 1)
    contenders = _both(lambda: make_vec_env(TASK, 8, seed=0, vec_env_cls=DummyVecEnv), batch, n_updates)
    return {"seconds": alternate(contenders, run.pick(REPETITIONS, 1)), "steps": batch * n_updates}


def learn_subproc_8(run: Run) -> dict[str, Any]:
    return _learn_subproc(run, run.pick(8, 2))


def learn_subproc_64(run: Run) -> dict[str, Any]:
    return _learn_subproc(run, run.pick(64, 3))


def _learn_subproc(run: Run, n_envs: int) -> dict[str, Any]:
    # The processes' common origin imports once what each of them would import by itself.
    multiprocessing.set_forkserver_preload(list(PRELOADED))
    batch, n_updates = run.pick(BATCH, 64), run.pick(8, 1)
    envs: list[VecEnv] = []

    def make_env() -> VecEnv:
        envs.append(make_vec_env(TASK, n_envs, seed=0, vec_env_cls=SubprocVecEnv))
        return envs[-1]

    try:
        contenders = _both(make_env, batch, n_updates)
        seconds = alternate(contenders, run.pick(REPETITIONS, 1))
    finally:
        for env in envs:
            env.close()
    return {"seconds": seconds, "steps": batch // n_envs * n_envs * n_updates}


def _both(make_env: Callable[[], VecEnv], batch: int, n_updates: int) -> dict[str, Contender]:
    return {
        "sb3_trpo": learn_contender(sb3_trpo.TRPO, make_env(), batch, n_updates),
        "sb3-contrib": learn_contender(sb3_contrib.TRPO, make_env(), batch, n_updates),
    }


def envpool(run: Run) -> dict[str, Any]:
    """
    Each side's best setting is looked for first, by one timing of each (after a warm-up); then the two are timed in
    turns. An update sees as many samples in all of them.
    """
    from sb3_trpo.envpool import make_envpool_vec_env

    batch, n_updates = run.pick(BATCH, 64), run.pick(8, 1)
    cores = os.cpu_count() or 1
    ours = {
        f"EnvPool, {n_envs} environments, {threads} threads": partial(
            make_envpool_vec_env, TASK, n_envs=n_envs, seed=0, num_threads=threads
        )
        for n_envs, threads in run.pick(OUR_ENVPOOLS, OUR_ENVPOOLS[:1])
        if threads <= cores
    }
    kinds: dict[str, type[DummyVecEnv | SubprocVecEnv]] = {"DummyVecEnv": DummyVecEnv, "SubprocVecEnv": SubprocVecEnv}
    theirs = {
        f"{kind}, {n_envs} environments": partial(make_vec_env, TASK, n_envs, seed=0, vec_env_cls=kinds[kind])
        for kind, n_envs in run.pick(THEIR_ENVS, THEIR_ENVS[:2])
    }
    tried = {
        "sb3_trpo": _try_all(sb3_trpo.TRPO, ours, batch, n_updates),
        "sb3-contrib": _try_all(sb3_contrib.TRPO, theirs, batch, n_updates),
    }
    best = {name: min(times, key=times.__getitem__) for name, times in tried.items()}
    envs = {"sb3_trpo": ours[best["sb3_trpo"]](), "sb3-contrib": theirs[best["sb3-contrib"]]()}
    contenders = {
        "sb3_trpo": learn_contender(sb3_trpo.TRPO, envs["sb3_trpo"], batch, n_updates),
        "sb3-contrib": learn_contender(sb3_contrib.TRPO, envs["sb3-contrib"], batch, n_updates),
    }
    seconds = alternate(contenders, run.pick(REPETITIONS, 1))
    for env in envs.values():
        env.close()
    return {"seconds": seconds, "steps": batch * n_updates, "best": best, "tried": tried}


def _try_all(
    algorithm: type[OnPolicyAlgorithm], settings: Mapping[str, Callable[[], VecEnv]], batch: int, n_updates: int
) -> dict[str, float]:
    found = {}
    for name, make in settings.items():
        env = make()
        contender = learn_contender(algorithm, env, batch, n_updates)
        found[name] = spread(alternate({name: contender}, repetitions=1)[name]).median
        env.close()
    return found
