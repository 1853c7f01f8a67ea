"""
Weights that go from one model into another: all are compared before the first is written.
"""

import pathlib
from collections.abc import Mapping
from typing import Any

import torch as th
from stable_baselines3.common.save_util import load_from_zip_file, recursive_getattr

from sb3_trpo.saved_models.origin import ModelPath
from sb3_trpo.validation.values import UserError, short, warn_user

Parameters = dict[str, Any]
# Before SB3 1.7 the features extractor had the same name in actor and critic.
_NEW_PREFIXES = ("pi_features_extractor.", "vf_features_extractor.")


def read_parameters(source: ModelPath | Parameters, device: th.device | str) -> Parameters:
    """
    Read the weights of a saved model, as data, whoever saved it.

    :param source: the file's path, an open file, or the weights themselves
    :param device: the device to read them to
    :return: the state dictionaries by the names of their objects
    """
    if isinstance(source, dict):
        return source
    if not isinstance(source, (str, pathlib.Path)) and not hasattr(source, "read"):
        raise UserError(
            f"load_path_or_dict is {short(source)}, but must be the path of a saved model, or what get_parameters() "
            "gives."
        )
    _, parameters, _ = load_from_zip_file(source, load_data=False, device=device)
    return dict(parameters)


class MisfitError(UserError, RuntimeError):
    """
    An error about parameters that do not fit their object.

    In SB3 it comes from torch, as a RuntimeError, which callers may catch.
    """


def fit_parameters(algorithm: object, names: list[str], parameters: Parameters, exact_match: bool) -> Parameters:
    """
    Compare parameters with those of an algorithm, and write nothing.

    :param algorithm: the algorithm that will get them
    :param names: the names of the objects that it saves
    :param parameters: the state dictionaries by the names of their objects
    :param exact_match: whether all parameters must be there, and no others
    :return: the parameters, of which each fits; an optimizer's state that does not fit begins anew, with a warning
    :raises UserError: at the first that does not fit
    """
    unknown = parameters.keys() - set(names)
    missing = set(names) - parameters.keys() if exact_match else set()
    if unknown or missing:
        raise UserError(
            f"The parameters are those of {', '.join(map(repr, parameters))}, but must be those of "
            f"{', '.join(map(repr, names))}. Nothing was changed."
        )
    fitted: Parameters = {}
    for name, state in parameters.items():
        if not isinstance(state, Mapping):
            raise UserError(f"The parameters of {name!r} are {short(state)}, but must be a state dictionary.")
        target = recursive_getattr(algorithm, name)
        if isinstance(target, th.optim.Optimizer):
            fitted[name] = _fit_optimizer(name, target, state)
        else:
            fitted[name] = _fit_module(name, target.state_dict(), state, exact_match)
    return fitted


def _fit_module(name: str, own: Mapping[str, Any], given: Mapping[str, Any], exact_match: bool) -> Mapping[str, Any]:
    given = {**given, **_renamed(own, given)}
    # A module may keep something else than tensors, too (get_extra_state).
    tensors = sorted(key for key in own.keys() & given.keys() if isinstance(own[key], th.Tensor))
    for key in tensors:
        if not isinstance(given[key], th.Tensor):
            raise MisfitError(
                f"The parameters of {name!r} do not fit: {key!r} is {short(given[key])}, but must be a tensor. Nothing "
                "was changed."
            )
    wrong = [key for key in tensors if own[key].shape != given[key].shape]
    if exact_match:
        wrong += own.keys() ^ given.keys()
    if wrong:
        key = min(wrong)
        shapes = [tuple(state[key].shape) if key in state else "none" for state in (own, given)]
        raise MisfitError(
            f"The parameters of {name!r} do not fit: {key!r} has shape {shapes[0]} here, but {shapes[1]} among those "
            f"that were given ({len(wrong)} do not fit). Nothing was changed."
        )
    return given


def _renamed(own: Mapping[str, Any], given: Mapping[str, Any]) -> dict[str, Any]:
    """
    Find parameters that had another name before SB3 1.7.

    :param own: the state dictionary of the policy
    :param given: the state dictionary from a file
    :return: the entries that the file has under the old name alone, under their new names
    """
    renamed = {}
    for key in own.keys() - given.keys():
        for prefix in _NEW_PREFIXES:
            old = f"features_extractor.{key.removeprefix(prefix)}"
            if key.startswith(prefix) and old in given:
                renamed[key] = given[old]
    return renamed


def _fit_optimizer(name: str, optimizer: th.optim.Optimizer, given: Mapping[str, Any]) -> Mapping[str, Any]:
    own = optimizer.state_dict()
    groups = given["param_groups"]
    fits = len(groups) == len(own["param_groups"]) and all(
        len(theirs["params"]) == len(ours["params"]) and theirs.keys() <= ours.keys()
        for theirs, ours in zip(groups, own["param_groups"], strict=True)
    )
    if fits:
        return given
    warn_user(
        f"The parameters of {name!r} are of another kind of optimizer, or of a policy that shares other layers: its "
        f"state begins anew. All weights are taken over."
    )
    return {"state": {}, "param_groups": own["param_groups"]}
