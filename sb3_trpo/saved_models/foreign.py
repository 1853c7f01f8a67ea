"""
Files of other algorithms than TRPO: what can be taken from them, or why nothing can.
"""

import inspect
from collections.abc import Mapping

from stable_baselines3.common.utils import FloatSchedule

from sb3_trpo.saved_models.origin import Origin, origin_of, policy_module
from sb3_trpo.validation.values import UserError

# Attributes of PPO and A2C that a TRPO has no place for.
LEFT_OVER = ("clip_range", "clip_range_vf", "n_epochs")
# Hyperparameters that mean something else for PPO and A2C, or whose values fit them alone.
_DEFAULTS = ("learning_rate", "batch_size", "target_kl", "normalize_advantage", "ent_coef", "max_grad_norm")
_KINDS_OF_POLICIES = {
    "recurrent": "RecurrentPPO, whose policy has a memory",
    "maskable": "MaskablePPO, whose policy takes action masks",
}
# The algorithms of ours, by the modules of their policies.
_OURS = {
    "sb3_trpo.masks_and_memory.maskable_recurrent": "MaskableRecurrentTRPO",
    "sb3_trpo.masks_and_memory.lstm_policies": "RecurrentTRPO",
    "sb3_contrib.common.recurrent.policies": "RecurrentTRPO",
    "sb3_contrib.common.maskable.policies": "MaskableTRPO",
    "sb3_trpo.policies.policies": "TRPO",
    "stable_baselines3.common.policies": "TRPO",
}


def take_over(algorithm_class: type, data: Mapping[str, object]) -> dict[str, object]:
    """
    Give the attributes with which a model of another algorithm becomes a TRPO, in the place of its own.

    :param algorithm_class: the class that the model becomes
    :param data: the model's attributes, as they are in the file
    :return: the attributes by name; none for a TRPO
    :raises UserError: if nothing of the file can be used
    """
    origin, module = origin_of(data), policy_module(data)
    is_own = _is_own_policy(algorithm_class, module)
    if not data or (is_own and origin is Origin.OTHER):
        return {}
    ours = _OURS.get(module, "")
    if origin is Origin.OURS and ours not in ("", _class_of_ours(algorithm_class)):
        raise UserError(
            f"The file holds a {ours}, whose policy {algorithm_class.__name__} has no place for; load it with {ours}"
        )
    for word, algorithm in _KINDS_OF_POLICIES.items():
        if f".{word}." in module and not is_own:
            raise UserError(
                f"The file holds a {algorithm}, for which {algorithm_class.__name__} has no place; load it with "
                f"sb3_contrib's class"
            )
    if origin is Origin.OTHER:
        raise UserError(
            f"The file holds {_name(module)}, whose networks {algorithm_class.__name__} can't take over; load it with "
            f"its own class"
        )
    if origin in (Origin.OURS, Origin.CONTRIB):
        return {}
    parameters = inspect.signature(algorithm_class).parameters
    attributes = {name: parameters[name].default for name in _DEFAULTS}
    rate = attributes["learning_rate"]
    return {**attributes, "vf_coef": 0.0, "lr_schedule": FloatSchedule(rate), **dict.fromkeys(LEFT_OVER)}


def explain_take_over(origin: Origin) -> str:
    """
    Say what was taken from a file of another algorithm.

    :param origin: the algorithm
    :return: one sentence
    """
    return (
        f"This model was saved by {origin.value}: its policy, weights, n_steps, gamma and gae_lambda are taken "
        f"over; all other hyperparameters are TRPO's defaults."
    )


def _is_own_policy(algorithm_class: type, module: str) -> bool:
    aliases: Mapping[str, type] = getattr(algorithm_class, "policy_aliases", {})
    has_module = any(kind.__module__ == module for alias in aliases.values() for kind in alias.__mro__)
    return has_module and not module.startswith("stable_baselines3.")


def _class_of_ours(algorithm_class: type) -> str:
    """
    Name the algorithm of ours that a class is, or is made of.

    :param algorithm_class: the class
    :return: the name; empty if it is of another family
    """
    names = (kind.__name__ for kind in algorithm_class.__mro__ if kind.__module__.startswith("sb3_trpo."))
    return next((name for name in names if name in _OURS.values()), "")


def _name(module: str) -> str:
    """
    Name the algorithm that a policy class belongs to.

    :param module: the module of the policy class, as in ``stable_baselines3.sac.policies``
    :return: the algorithm's name, if it can be told
    """
    parts = module.split(".")
    if len(parts) == 3 and parts[0] in ("stable_baselines3", "sb3_contrib") and parts[1] != "common":
        return f"a model of {parts[1].upper()}"
    return "a model of another algorithm"
