"""
Checks of ``policy_kwargs``: what SB3's policies would pass on to torch, whose errors do not name the argument.

Only arguments of SB3's, sb3-contrib's and our own constructors are checked, for in a policy class of the user's a name
may mean anything.
"""

import inspect
from collections.abc import Callable, Mapping, Sequence
from numbers import Integral, Real
from typing import Any

import numpy as np
import torch as th
from stable_baselines3.common.policies import BasePolicy
from torch import nn

from sb3_trpo.validation.values import (
    MAX_INTEGER,
    UserError,
    as_integer,
    check_choice,
    check_real,
    short,
    suggest_names,
)

PACKAGES = ("stable_baselines3.", "sb3_contrib.", "sb3_trpo.")
# What the algorithm gives its policy besides ``policy_kwargs``.
OF_THE_ALGORITHM = ("self", "observation_space", "action_space", "lr_schedule", "use_sde")
# These are given arguments that the policy adds to.
CLASSES = {
    "optimizer_kwargs": ("optimizer_class", ("self", "params", "lr")),
    "features_extractor_kwargs": ("features_extractor_class", ("self", "observation_space")),
}

# What sb3-contrib's policies say to their LSTMs themselves, with the arguments of the policy that it comes from.
OF_THE_LSTM = {"hidden_size": "lstm_hidden_size", "num_layers": "n_lstm_layers"}

Parameters = dict[str, inspect.Parameter]


def check_policy_arguments(policy_class: type[BasePolicy], arguments: object) -> dict[str, Any]:
    """
    Check ``policy_kwargs``, and make Python's numbers of those that config files write otherwise (64.0).

    :param policy_class: the class of the policy
    :param arguments: the argument ``policy_kwargs``
    :return: the arguments to make the policy with
    :raises UserError: if one is not allowed
    """
    if not isinstance(arguments, Mapping):
        raise UserError(f"policy_kwargs is {short(arguments)}, but must be a dictionary of the policy's arguments.")
    parameters = _parameters(policy_class)
    checked = _check_all("policy_kwargs", policy_class, parameters, arguments, OF_THE_ALGORITHM)
    for name, (class_name, given) in CLASSES.items():
        kind = arguments.get(class_name, parameters[class_name].default if class_name in parameters else None)
        if name in parameters and checked.get(name) is not None and isinstance(kind, type):
            where = f"policy_kwargs[{name!r}]"
            if not isinstance(checked[name], Mapping):
                raise UserError(f"{where} is {short(checked[name])}, but must be a dictionary.")
            checked[name] = _check_all(where, kind, _parameters_of(kind), checked[name], given)
    return checked


def _parameters(policy_class: type) -> Parameters:
    """
    List what constructors of known packages take, from the policy's own one upwards.

    :param policy_class: the class of the policy
    :return: the parameters by name; empty if a constructor of another package comes before
    """
    found: Parameters = {}
    for kind in policy_class.__mro__:
        if "__init__" not in vars(kind):
            continue
        if not kind.__module__.startswith(PACKAGES):
            return {}
        own = _parameters_of(kind)
        found = {**own, **found}
        if own and not any(item.kind is item.VAR_KEYWORD for item in own.values()):
            rest = (inspect.Parameter.VAR_KEYWORD, inspect.Parameter.VAR_POSITIONAL)
            return {name: item for name, item in found.items() if item.kind not in rest}
    return {}


def default_of(policy_class: type[BasePolicy], name: str) -> Any:
    """
    Look up what a known policy takes for an argument that it is not given.

    :param policy_class: the class of the policy
    :param name: the argument's name
    :return: the default; None if there is none, or the constructor is another package's
    """
    parameters = _parameters(policy_class)
    default = parameters[name].default if name in parameters else None
    return None if default is inspect.Parameter.empty else default


def _parameters_of(function: Callable[..., Any]) -> Parameters:
    try:
        return dict(inspect.signature(function).parameters)
    except (TypeError, ValueError):
        # It is not written in Python.
        return {}


def _check_all(
    where: str, owner: type, parameters: Parameters, arguments: Mapping[Any, Any], given: Sequence[str]
) -> dict[str, Any]:
    """
    Check the arguments of one constructor.

    :param where: the dictionary that holds them, for messages
    :param owner: the constructor's class
    :param parameters: what the constructor takes; if it is empty, nothing is checked
    :param arguments: the arguments
    :param given: the parameters that are given by others
    :return: the arguments to use
    :raises UserError: if one is not known, or not allowed
    """
    known = [name for name in parameters if name not in given]
    is_open = not parameters or any(item.kind is item.VAR_KEYWORD for item in parameters.values())
    for name in arguments:
        if name in parameters and name in given:
            raise UserError(f"{where} has {name!r}, which is an argument of the algorithm's, or given by it.")
        if name not in parameters and not is_open:
            hint = suggest_names(str(name), known)
            raise UserError(f"{where} has {short(name)}, but {owner.__name__} has no such argument; {hint}")
    # In a constructor of the user's a name may mean anything.
    constructor: Any = inspect.getattr_static(owner, "__init__")
    is_users = not (getattr(constructor, "__module__", None) or "").startswith((*PACKAGES, "torch."))
    defaults = {name: parameters[name].default for name in arguments if name in known and not is_users}
    return {
        name: _check(f"{where}[{name!r}]", value, defaults[name], name) if name in defaults else value
        for name, value in arguments.items()
    }


def _check(where: str, value: Any, default: Any, name: str) -> Any:
    """
    Check one argument by its parameter's default.

    :param where: the argument, for messages
    :param value: the argument
    :param default: the default
    :param name: the parameter's name
    :return: the argument to use
    """
    if name == "net_arch":
        return _check_layers(where, value)
    if name == "lstm_kwargs":
        return _check_lstm(where, value)
    if name == "activation_fn":
        _check_activation(where, value)
    elif isinstance(default, type):
        _check_class(where, value, default, name)
    elif isinstance(default, bool):
        check_choice(where, value, (True, False))
    elif isinstance(default, Integral):
        # Where a parameter's default is 0, say, it may also take fractions.
        if (isinstance(value, float) and value.is_integer()) or not isinstance(value, Real):
            value = as_integer(where, value, minimum=-MAX_INTEGER)
        if name in OF_THE_LSTM.values():
            return as_integer(where, value, minimum=1)
    elif name in ("log_std_init", "forget_bias") or (isinstance(default, float) and isinstance(value, str)):
        check_real(where, value, "a number", lambda _: True)
    return value


def _check_class(where: str, value: Any, default: type, name: str) -> None:
    if not callable(value) or isinstance(value, nn.Module):
        raise UserError(f"{where} is {short(value)}, but must be a class such as {default.__name__}.")
    closure = _parameters_of(getattr(value, "step", int)).get("closure")
    if name == "optimizer_class" and closure is not None and closure.default is closure.empty:
        raise UserError(
            f"{where} is {short(value)}, whose steps need a closure, but must be an optimizer that steps by itself."
        )


def _check_activation(where: str, value: Any) -> None:
    wanted = "must be a class of modules such as torch.nn.ReLU"
    is_class = isinstance(value, type)
    if not callable(value) or isinstance(value, nn.Module) or (is_class and not issubclass(value, nn.Module)):
        raise UserError(f"{where} is {short(value)}, but {wanted}.")
    if is_class and not value.__module__.startswith("torch."):
        return
    # A module of the user's may be made for one width; torch's are for any, or none.
    try:
        with th.random.fork_rng(devices=[]), th.no_grad():
            made = value()
            is_fit = isinstance(made, nn.Module) and (not is_class or made.eval()(th.zeros(1, 4)).shape == (1, 4))
    except Exception as error:
        raise UserError(f"{where} is {short(value)}, but {wanted}: using it fails ({error}).") from error
    if not is_fit:
        raise UserError(f"{where} is {short(value)}, which is no module or changes the width, but {wanted}.")


def _check_lstm(where: str, value: Any) -> dict[str, Any] | None:
    """
    Check the arguments of an LSTM, of which torch's errors do not say whose they are.

    :param where: the argument, for messages
    :param value: the argument
    :return: the argument to use
    :raises UserError: if an LSTM can't be made with it
    """
    if value is None:
        return None
    if not isinstance(value, Mapping):
        raise UserError(f"{where} is {short(value)}, but must be a dictionary, or None.")
    for name in value:
        if name in OF_THE_LSTM:
            raise UserError(f"{where} has {name!r}, which is the policy's own argument {OF_THE_LSTM[name]!r}.")
        # Of the last three, which are there, the algorithm says why they have no place.
        if name not in ("bias", "dropout", "bidirectional", "batch_first", "proj_size"):
            raise UserError(f"{where} has {short(name)}, but an LSTM may only be given 'bias' and 'dropout' here.")
    check_choice(f"{where}['bias']", value.get("bias", True), (True, False))
    check_real(f"{where}['dropout']", value.get("dropout", 0.0), "between 0 and 1", lambda x: 0 <= x <= 1)
    return {name: bool(part) if name == "bias" else part for name, part in value.items()}


def _check_layers(where: str, value: Any) -> Any:
    if isinstance(value, Mapping):
        return {key: _check_layers(f"{where}[{key!r}]", part) for key, part in value.items()}
    if isinstance(value, (list, tuple, np.ndarray)):
        sizes = [
            # The form of before SB3 1.8, which SB3 reads with a warning.
            _check_layers(f"{where}[{i}]", item)
            if isinstance(item, Mapping)
            else as_integer(f"{where}[{i}]", item, minimum=0)
            for i, item in enumerate(value)
        ]
        return tuple(sizes) if isinstance(value, tuple) else sizes
    if value is None:
        return None
    raise UserError(
        f"{where} is {short(value)}, but must be a list of the layers' sizes such as [64, 64], or a "
        "dictionary with one for 'pi' and one for 'vf'."
    )
