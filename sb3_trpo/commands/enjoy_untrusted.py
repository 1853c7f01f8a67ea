"""
``sb3-trpo enjoy-untrusted``: watch a model from strangers.

RL Zoo's ``enjoy`` runs what it finds in the folder of a run: pickles, YAML with Python in it, expressions, names of
wrappers. Here only the model is read, and a file of normalisation statistics, both as data. The task is the one that
the command line names, without wrappers.
"""

import argparse
import math
import pathlib
import sys
from typing import Any

from gymnasium.error import Error as GymnasiumError
from stable_baselines3.common.env_util import make_vec_env
from stable_baselines3.common.running_mean_std import RunningMeanStd
from stable_baselines3.common.vec_env import VecEnv, VecNormalize

from sb3_trpo.saved_models.archive import check_is_file
from sb3_trpo.saved_models.objects import read_object
from sb3_trpo.saved_models.refused import RefusedModelError
from sb3_trpo.trpo import TRPO
from sb3_trpo.validation.base_arguments import check_base_arguments
from sb3_trpo.validation.values import check_integer

# What is for training alone, and may be a function in the file.
NO_SCHEDULES: dict[str, Any] = {"learning_rate": 0.0, "target_kl": 0.01, "min_std": 0.0, "max_std": None}


def main() -> None:
    """Run the command with the arguments in ``sys.argv``."""
    parser = argparse.ArgumentParser(description="Run a model that may mean harm, without running what it holds.")
    parser.add_argument("model", help="the file", type=pathlib.Path)
    parser.add_argument("--env", help="environment ID", required=True)
    parser.add_argument("--vecnormalize", help="vecnormalize.pkl that came with the model", type=pathlib.Path)
    parser.add_argument("-n", "--n-timesteps", help="number of timesteps", default=1000, type=int)
    parser.add_argument("--seed", help="random generator seed", default=0, type=int)
    parser.add_argument("--device", help="PyTorch device", default="auto")
    parser.add_argument("--stochastic", help="use stochastic actions", action="store_true")
    parser.add_argument("--no-render", help="do not render the environment", action="store_true")
    args = parser.parse_args()
    try:
        check_integer("--n-timesteps", args.n_timesteps, minimum=1)
        check_base_arguments(args.device, None, None, None)
        env_kwargs = {} if args.no_render else {"render_mode": "human"}
        env = make_vec_env(args.env, 1, seed=args.seed, env_kwargs=env_kwargs)
        if args.vecnormalize is not None:
            env = read_vec_normalize(args.vecnormalize, env)
        model = TRPO.load(args.model, env=env, device=args.device, trusted=False, **NO_SCHEDULES)
    except (OSError, ValueError, GymnasiumError) as error:
        sys.exit(f"{parser.prog}: {error}")
    _run(model, env, args.n_timesteps, not args.stochastic)


def read_vec_normalize(path: pathlib.Path, venv: VecEnv) -> VecNormalize:
    """
    Read ``VecNormalize`` from a file that may mean harm.

    :param path: the path of the file
    :param venv: the environments to normalise
    :return: these environments, with the file's statistics of observations, which stay as they are
    :raises RefusedModelError: if the file holds what it should not
    """
    try:
        check_is_file(path)
        state = read_object(path.read_bytes())
        if not isinstance(state, dict):
            raise RefusedModelError(f"it is no VecNormalize, but a {type(state).__name__}")
        statistics, clip, epsilon = state["obs_rms"], float(state["clip_obs"]), float(state["epsilon"])
        is_on, keys = bool(state["norm_obs"]), state["norm_obs_keys"]
    except RefusedModelError as error:
        raise RefusedModelError(f"{path} was refused: {error}.") from error
    except (KeyError, TypeError, ValueError, RecursionError) as error:
        raise RefusedModelError(f"{path} was refused: it is no VecNormalize ({type(error).__name__}).") from error
    if not (clip > 0.0 and 0.0 < epsilon < math.inf):
        raise RefusedModelError(f"{path} was refused: clip_obs={clip} and epsilon={epsilon} must be above 0.")
    env = VecNormalize(venv, False, is_on, False, clip, epsilon=epsilon, norm_obs_keys=_names(path, keys))
    if is_on:
        _check_statistics(path, statistics, env.obs_rms)
        env.obs_rms = statistics
    return env


def _names(path: pathlib.Path, keys: object) -> list[str] | None:
    if keys is not None and not (isinstance(keys, list) and all(isinstance(key, str) for key in keys)):
        raise RefusedModelError(f"{path} was refused: its norm_obs_keys are no names.")
    return keys


def _check_statistics(path: pathlib.Path, statistics: object, expected: object) -> None:
    if isinstance(expected, dict) and isinstance(statistics, dict) and expected.keys() == statistics.keys():
        for key in expected:
            _check_statistics(path, statistics[key], expected[key])
        return
    # ``read_object`` has checked that they are finite, and no variance negative.
    fit = (
        isinstance(statistics, RunningMeanStd)
        and isinstance(expected, RunningMeanStd)
        and statistics.mean.shape == statistics.var.shape == expected.mean.shape
    )
    if not fit:
        raise RefusedModelError(f"{path} was refused: its statistics are not those of the environment's observations.")


def _run(model: TRPO, env: VecEnv, n_steps: int, is_deterministic: bool) -> None:
    obs = env.reset()
    for _ in range(n_steps):
        # By SB3's types, environments may give tuples, which ``predict`` does not take.
        actions, _ = model.predict(obs, deterministic=is_deterministic)  # type: ignore[arg-type]
        obs, _, _, infos = env.step(actions)
        if "episode" in infos[0]:
            print(f"Episode of {infos[0]['episode']['l']} steps: return {infos[0]['episode']['r']:.2f}")
    env.close()
