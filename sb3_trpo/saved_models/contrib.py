"""
What users of sb3-contrib's TRPO bring with them: values of ``target_kl``, and subclasses.
"""

import contextlib
import inspect
import pathlib
from collections.abc import Collection, Iterator
from typing import Any

from gymnasium import spaces

from sb3_trpo.validation.values import warn_user

# The limit of the factor between the two meanings of target_kl, for many action dimensions.
LARGEST_FACTOR = 7.0
# Methods that users of sb3-contrib override, and the methods that do the same here.
NOT_CALLED = {
    "hessian_vector_product": "_search_direction",
    "_compute_actor_grad": "_improve_policy",
}


def kl_factor(n: int) -> float:
    """
    Give the factor for sb3-contrib's ``target_kl`` with which updates go as far here: 7 n / (n + 6).

    With sb3-contrib, ``target_kl`` bounds the mean of KL over the n action dimensions, here the sum. That would make
    the factor n, but there damping takes a share of the step that grows with n. The rule is fitted to the first updates
    on nine MuJoCo tasks with 1 to 17 action dimensions (``benchmarks/kl_factor.py``), which differ from it by up to a
    quarter, in both directions.

    :param n: the number of action dimensions, at least 1
    :return: the factor, from 1 (for n = 1) to below 7
    """
    return LARGEST_FACTOR * n / (n + LARGEST_FACTOR - 1.0)


def averaged_dimensions(action_space: spaces.Space[Any]) -> int:
    """
    Count the action dimensions over which sb3-contrib's TRPO takes the mean KL divergence.

    :param action_space: the action space of a model
    :return: the number; 1 for one choice, where there is nothing to average, and for several, where it takes the sum
    """
    if isinstance(action_space, (spaces.Box, spaces.MultiBinary)):
        return spaces.flatdim(action_space)
    return 1


def explain_kl(source: str, target_kl: object, n: int) -> str:
    """
    Say what sb3-contrib's ``target_kl`` corresponds to here.

    :param source: the start of the sentence, which says where the value comes from
    :param target_kl: the value, a number or a schedule
    :param n: the number of action dimensions
    :return: two sentences
    """
    factor = kl_factor(n)
    example = f", as in target_kl={factor * target_kl:.2g}" if isinstance(target_kl, (int, float)) else ""
    return (
        f"{source}, whose target_kl bounds the mean KL divergence of the {n} action dimensions; here it bounds their "
        f"sum. For steps of about the same length multiply sb3-contrib's target_kl by {factor:.2g}{example}."
    )


def warn_of_smaller_steps(saved: object, given: object, action_space: spaces.Space[Any]) -> None:
    """
    Warn that ``target_kl`` means something else in a model of sb3-contrib's.

    There is no warning if it means the same for this action space, or the user has adapted it.

    :param saved: the ``target_kl`` of the file
    :param given: the value that the user gave in its place; None if there is none
    :param action_space: the action space of the model
    """
    n = averaged_dimensions(action_space)
    if n == 1:
        return
    message = explain_kl("This model was saved by sb3-contrib's TRPO", saved, n)
    if given is not None:
        if isinstance(saved, (int, float)) and isinstance(given, (int, float)) and _is_adapted(saved, given, n):
            return
        message += f" What is used is the given {given}."
    message += " Predictions are not affected. `sb3-trpo migrate` writes a converted file."
    warn_user(message)


def _is_adapted(saved: float, given: float, n: int) -> bool:
    # Anything from the rule's value to the largest that the two meanings allow, and a little beside it.
    return 0.8 * kl_factor(n) * saved <= given <= 1.2 * n * saved


def own_options(algorithm_class: type) -> dict[str, object]:
    """
    List the options that sb3-contrib's TRPO lacks: those that can be given by name only.

    :param algorithm_class: this package's TRPO
    :return: the options' defaults by their names
    """
    parameters = inspect.signature(algorithm_class).parameters.values()
    return {p.name: p.default for p in parameters if p.kind is inspect.Parameter.KEYWORD_ONLY}


def is_contribs_file(text: str, own_options: Collection[str]) -> bool:
    """
    Tell whether a file of hyperparameters was written for sb3-contrib's TRPO.

    :param text: the text of the file
    :param own_options: the options that sb3-contrib's TRPO lacks
    :return: whether the file has none of them, and says nowhere that it is meant for ``sb3_trpo``
    """
    return "sb3_trpo" not in text and not any(option in text for option in own_options)


def warn_of_contribs_file(path: str, own_options: Collection[str]) -> None:
    """
    Warn that ``target_kl`` means something else in a file of hyperparameters, if it was written for sb3-contrib's TRPO.

    :param path: the path of the file
    :param own_options: the options that sb3-contrib's TRPO lacks
    """
    file = pathlib.Path(path)
    # A file that is not there is RL Zoo's to complain about; a module is Python, and no file of sb3-contrib's.
    if (
        file.suffix not in (".yml", ".yaml")
        or not file.is_file()
        or not is_contribs_file(file.read_text(), own_options)
    ):
        return
    factors = ", ".join(f"{kl_factor(n):.1f} for {n}" for n in (3, 6, 17))
    warn_user(
        f"{path} seems to be written for sb3-contrib's TRPO, whose target_kl bounds the mean KL divergence of the "
        f"action dimensions; here it bounds their sum. For steps of about the same length multiply target_kl by "
        f"{factors} dimensions, as `sb3-trpo migrate {path}` does; a comment with `sb3_trpo` in the file says that its "
        f"values are meant."
    )


def warn_of_methods_not_called(algorithm_class: type, base: type) -> None:
    """
    Warn that a subclass overrides methods of sb3-contrib's TRPO that this package's TRPO lacks.

    Each method is warned of in the class that brings it, and not again in subclasses of that.

    :param algorithm_class: the subclass
    :param base: the class of this package that it derives from
    """
    parents = [parent for parent in algorithm_class.__mro__[1:] if issubclass(parent, base)]
    for name, instead in NOT_CALLED.items():
        if hasattr(algorithm_class, name) and not any(hasattr(parent, name) for parent in parents):
            warn_user(
                f"{algorithm_class.__name__} has sb3-contrib's method {name}, which this TRPO never calls: override "
                f"{instead} instead."
            )


@contextlib.contextmanager
def explain_missing_gym() -> Iterator[None]:
    """
    Say what to do about a file from before sb3-contrib 2.0, whose spaces are of the old Gym, if the block meets one.

    :raises ModuleNotFoundError: as without this, in words that help
    """
    try:
        yield
    except ModuleNotFoundError as error:
        if error.name is None or error.name.partition(".")[0] != "gym":
            raise
        raise ModuleNotFoundError(
            "This model was saved with spaces of the old Gym, which is not installed: give Gymnasium's in their place, "
            'as in TRPO.load(..., custom_objects={"observation_space": env.observation_space, '
            '"action_space": env.action_space}).',
            name=error.name,
        ) from error
