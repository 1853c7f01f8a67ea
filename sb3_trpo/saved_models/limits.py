"""
Limits of what a stranger's model makes training cost: counts that are allowed, but would make it endless.
"""

from collections.abc import Collection, Mapping
from typing import Any

from sb3_trpo.saved_models.refused import RefusedModelError
from sb3_trpo.validation.values import short

# The largest value of each.
LIMITS = {"n_steps": 10**6, "n_critic_updates": 10**3, "cg_max_steps": 10**3, "line_search_max_iter": 10**3}
# The most steps of the critic's optimizer, and evaluations of a chunk of states, in an update.
MAX_STEPS = 10**6
# All that these limits are about.
COUNTS = (*LIMITS, "batch_size", "fisher_chunk_size")


def check_limits(attributes: Mapping[str, Any], given: Collection[str]) -> None:
    """
    Check that training would not take for ever.

    :param attributes: the model's attributes
    :param given: the names of those that are the user's, and may be anything
    :raises RefusedModelError: if it would
    """
    for name, limit in LIMITS.items():
        value = attributes.get(name)
        if name not in given and isinstance(value, (int, float)) and value > limit:
            raise RefusedModelError(
                f"its {name} is {short(value)}, but may be at most {limit} in a file that is not trusted; another can "
                f"be given: load(..., trusted=False, {name}=...)"
            )
    n_samples = _number(attributes, "n_steps", 1) * _number(attributes, "n_envs", 1)
    n_minibatches = n_samples / _number(attributes, "batch_size", n_samples)
    n_chunks = n_samples / _number(attributes, "fisher_chunk_size", n_samples)
    n_evaluations = sum(_number(attributes, name, 1) for name in ("cg_max_steps", "line_search_max_iter"))
    for n, what, name in (
        (n_minibatches * _number(attributes, "n_critic_updates", 1), "steps of the critic", "batch_size"),
        (n_chunks * n_evaluations, "evaluations of a chunk of states", "fisher_chunk_size"),
    ):
        if n > MAX_STEPS and name not in given:
            raise RefusedModelError(
                f"an update would take {n:.3g} {what}, but may take at most {MAX_STEPS} in a file that is not trusted; "
                f"its {name} is {short(attributes[name])}, and another can be given: load(..., trusted=False, "
                f"{name}=...)"
            )


def _number(attributes: Mapping[str, Any], name: str, default: float) -> float:
    """
    Read a count, which is checked elsewhere if it is none.

    :param attributes: the model's attributes
    :param name: the count's name
    :param default: what it counts as where it is missing, or no count
    :return: the count
    """
    value = attributes.get(name)
    return float(value) if isinstance(value, (int, float)) and value >= 1 else default
