"""
Values that were logged and not yet written.
"""

from typing import Any

from stable_baselines3.common.logger import Logger

from sb3_trpo.checkpoints.fit import is_number

VALUES, COUNTS, EXCLUDED = "name_to_value", "name_to_count", "name_to_excluded"
FORMATS = ("stdout", "log", "json", "csv", "tensorboard")


def save_logged(logger: Logger) -> dict[str, Any]:
    """
    Take the numbers and texts out of a logger.

    Figures and the like will be made anew by whoever has made them.

    :param logger: the model's logger
    :return: the values, as plain data
    """
    values = {name: value for name, value in vars(logger)[VALUES].items() if is_number(value) or type(value) is str}
    counts, excluded = vars(logger)[COUNTS], vars(logger)[EXCLUDED]
    return {
        VALUES: values,
        COUNTS: {name: counts[name] for name in values if name in counts},
        EXCLUDED: {name: excluded[name] for name in values if name in excluded},
    }


def restore_logged(logger: Logger, saved: dict[str, Any], trusted: bool) -> None:
    """
    Put values back into a logger.

    :param logger: the model's logger
    :param saved: the values, from ``save_logged``
    :param trusted: whether texts may be among them
    """
    values, counts, excluded = (saved.get(name) or {} for name in (VALUES, COUNTS, EXCLUDED))
    for name, value in values.items():
        if isinstance(name, str) and name.isprintable() and (is_number(value) or (trusted and type(value) is str)):
            vars(logger)[VALUES][name] = value
            if is_number(counts.get(name)):
                vars(logger)[COUNTS][name] = counts[name]
            if name in excluded:
                vars(logger)[EXCLUDED][name] = _formats(excluded[name])


def _formats(excluded: Any) -> tuple[str, ...] | None:
    names = (excluded,) if isinstance(excluded, str) else excluded
    return tuple(name for name in names if name in FORMATS) if isinstance(names, tuple) else None
