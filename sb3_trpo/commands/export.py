"""
``sb3-trpo export``: write the policy of a run to a file that ONNX Runtime runs, with its ``VecNormalize`` in it.

The run is read as data: its model, the statistics of ``VecNormalize``, and whether it was trained with them. Its task
is not made, and need not be installed.
"""

import argparse
import json
import os
import pathlib
import warnings
from typing import Any

import gymnasium as gym
from gymnasium import spaces
from stable_baselines3.common.vec_env import DummyVecEnv, VecEnv

from sb3_trpo.commands.enjoy_untrusted import NO_SCHEDULES, read_vec_normalize
from sb3_trpo.commands.runs import find_runs, read_yaml, settings_folder
from sb3_trpo.deployment import export_onnx
from sb3_trpo.saved_models.archive import read_archive
from sb3_trpo.saved_models.origin import Origin, origin_of, policy_module
from sb3_trpo.saved_models.refused import RefusedModelError, printable
from sb3_trpo.trpo import TRPO
from sb3_trpo.validation.values import UserError

STATISTICS = "vecnormalize.pkl"


def main() -> None:
    """
    Run the command with the arguments in ``sys.argv``.

    :raises UserError: if there is nothing that can be exported, or it has no place
    """
    parser = argparse.ArgumentParser(description="Write the policy of a run to a file for ONNX Runtime.")
    parser.add_argument("run", help="folder of a run, or a model (.zip) in it", type=pathlib.Path)
    parser.add_argument("-o", "--output", help="where to write (beside the model, as NAME.onnx)", type=pathlib.Path)
    args = parser.parse_args()
    path = args.run if args.run.is_file() else find_model(args.run)
    output = args.output or path.with_suffix(".onnx")
    output = output if output.suffix else output.with_suffix(".onnx")
    if os.path.lexists(output):
        raise UserError(f"{output} exists: give another name with --output.")
    try:
        model = read_model(path)
        written = export_onnx(model, output)
    except (OSError, ImportError) as error:
        raise UserError(str(error)) from error
    print(f"Written to {written}, from {printable(str(path))}: {describe(written)}.")


def find_model(run: pathlib.Path) -> pathlib.Path:
    """
    Find the final model of a run.

    :param run: the folder of a run of ``sb3-trpo train``, or any other that holds a single model
    :return: the file
    :raises UserError: if there is none, or it can't be told which one is meant
    """
    runs = [folder for folder in find_runs(run) if folder != run]
    if runs:
        example = printable(str(runs[-1]), max_characters=300)
        raise UserError(f"{run} is no run, but holds {len(runs)}: name one, such as {example}.")
    settings = settings_folder(run)
    models = sorted(run.glob("*.zip"))
    final = [path for path in models if settings is not None and path.stem == settings.name]
    if not models:
        raise UserError(f"{run} has no model (a .zip); a training writes it at its end.")
    if len(final or models) > 1 or (settings is not None and not final):
        names = ", ".join(printable(path.name) for path in models[:5])
        raise UserError(f"{run} has no final model, but {names}: name the one that you mean, with its folder.")
    (model,) = final or models
    return model


def read_model(path: pathlib.Path) -> TRPO:
    """
    Read a model, with the ``VecNormalize`` that it was trained in.

    :param path: the file, in the folder of its run
    :return: the model, in environments that have its spaces, but can't be run
    :raises UserError: if it can't be exported, or holds more than data
    """
    _check_algorithm(path)
    # What it warns of concerns training: hyperparameters that mean something else here.
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)
        try:
            model = TRPO.load(path, device="cpu", trusted=False, n_envs=1, **NO_SCHEDULES)
        except RefusedModelError as error:
            raise UserError(
                f"{error} A model with classes of your own is exported in Python, by sb3_trpo.export_onnx."
            ) from error
    statistics = _find_statistics(path.parent)
    env: VecEnv = DummyVecEnv([lambda: _SpacesAlone(model.observation_space, model.action_space)])
    model.set_env(read_vec_normalize(statistics, env) if statistics is not None else env)
    return model


class _SpacesAlone(gym.Env[Any, Any]):
    """
    An environment that is not there.

    :param observation_space: the observation space
    :param action_space: the action space
    """

    def __init__(self, observation_space: spaces.Space[Any], action_space: spaces.Space[Any]) -> None:
        self.observation_space, self.action_space = observation_space, action_space


def _check_algorithm(path: pathlib.Path) -> None:
    """
    Refuse what is no policy that acts on the observation alone, before anything is made of it.

    :param path: the file
    :raises UserError: if the file is no model, or one that can't be exported
    """
    try:
        with path.open("rb") as file:
            data = json.loads(read_archive(file)["data"])
        origin, module = origin_of(data), policy_module(data)
    except (RefusedModelError, KeyError, ValueError, AttributeError) as error:
        raise UserError(f"{path} is no model of Stable-Baselines3.") from error
    if any(word in module for word in (".maskable", ".recurrent", ".masks_and_memory")):
        raise UserError(
            f"{path} can't be exported: its policy takes masks or has a memory, but a file for ONNX Runtime acts on "
            "the observation alone."
        )
    if origin is Origin.OTHER:
        raise UserError(f"{path} can't be exported: only policies of TRPO, PPO and A2C can.")


def _find_statistics(run: pathlib.Path) -> pathlib.Path | None:
    """
    Find the statistics of ``VecNormalize``.

    :param run: the folder of the run
    :return: the file; None if the run was trained without
    :raises UserError: if the run was trained with it, and they are not there
    """
    settings = settings_folder(run)
    path = (settings or run) / STATISTICS
    if path.is_file():
        return path
    if settings is not None and read_yaml(settings / "config.yml").get("normalize"):
        raise UserError(f"{run} was trained with VecNormalize, but {path} is missing: its policy is of no use without.")
    return None


def describe(path: pathlib.Path) -> str:
    """
    Say what goes into a policy, and what comes out.

    :param path: the file for ONNX Runtime
    :return: name, shape and type of each
    """
    import onnxruntime

    session = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])
    sides = (("input", session.get_inputs()), ("output", session.get_outputs()))
    return "; ".join(f"{side} {_describe(value)}" for side, values in sides for value in values)


def _describe(value: Any) -> str:
    shape = ", ".join(map(str, value.shape))
    return f"{printable(value.name)} ({shape}{',' if len(value.shape) == 1 else ''}) {value.type[7:-1]}"
