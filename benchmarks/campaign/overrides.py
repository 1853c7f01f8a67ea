"""
``--set key=value``: change single hyperparameters of a run without a file of their own.
"""

import ast
import json
from collections.abc import Sequence
from copy import deepcopy
from typing import Any


def apply(hyperparams: dict[str, Any], settings: Sequence[str], allowed: set[str]) -> dict[str, Any]:
    """
    Change hyperparameters as the command line says.

    :param hyperparams: an entry in RL Zoo's format; left as it is
    :param settings: ``key=value``, or ``key.inner=value`` for what lies inside a dictionary; the last one wins
    :param allowed: outer keys that may be set
    :return: the entry with the changes
    """
    changed = deepcopy(hyperparams)
    for setting in settings:
        key, equals, text = setting.partition("=")
        outer, *inner = key.split(".")
        if not equals or not all([outer, *inner]):
            raise ValueError(f"--set {setting!r} must have the form key=value or key.inner=value.")
        if outer not in allowed:
            raise ValueError(f"--set {setting!r}: there is no {outer!r}; there are {', '.join(sorted(allowed))}.")
        changed[outer] = _nested(changed.get(outer), inner, parse(text)) if inner else parse(text)
    return changed


def parse(text: str) -> Any:
    """
    Read a value as it is typed.

    :param text: as typed
    :return: what it means as JSON (``1e-3``, ``true``, ``null``, ``[1, 2]``) or as a Python literal (``True``,
        ``dict`` displays, tuples); else the text, such as ``lin_0.001`` or an expression that RL Zoo evaluates
    """
    for read in (json.loads, ast.literal_eval):
        try:
            return read(text)
        except (ValueError, SyntaxError):
            continue
    return text


def _nested(current: Any, keys: Sequence[str], value: Any) -> Any:
    """
    Change a value inside an outer key's value.

    :param current: the value of the outer key: a dictionary, None, or text that RL Zoo evaluates to a dictionary
    :param keys: the path inside it, at least one
    :param value: text stands for an expression, such as ``nn.ReLU``
    :return: the outer key's new value; text if the old or the new value is
    """
    if isinstance(current, str) or isinstance(value, str):
        if len(keys) > 1:
            raise ValueError(f"--set ...{'.'.join(keys)}: only one level below an expression can be set.")
        return f"dict({current if isinstance(current, str) else repr(current or {})}, {keys[0]}={_expression(value)})"
    changed = dict(current or {})
    changed[keys[0]] = _nested(changed.get(keys[0]), keys[1:], value) if len(keys) > 1 else value
    return changed


def _expression(value: Any) -> str:
    return value if isinstance(value, str) else repr(value)
