"""
The algorithms of the benchmarks, and where the hyperparameters of each come from.

Ours are read from ``sb3_trpo/shipped/hyperparams/trpo.yml``, the peers' from the files that RL Zoo ships: both in RL
Zoo's format. RL Zoo's MuJoCo entries carry ``-v4`` ids; an entry of an older version of a task stands in for a newer
one, since the tasks differ in what they reward and report, not in what has to be learned.
"""

import importlib
import importlib.metadata
import inspect
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import gymnasium as gym
import yaml
from stable_baselines3.common.base_class import BaseAlgorithm

from sb3_trpo.shipped.rule import hyperparameters_by_rule, read_task

REPOSITORY = Path(__file__).parents[2]
OWN_HYPERPARAMETERS = "sb3_trpo"

OURS = "sb3_trpo"
# What RL Zoo has for most of MuJoCo's tasks with sb3-contrib's TRPO.
RL_ZOO_MUJOCO = "Walker2d-v4"

# Keys of an entry that RL Zoo takes out before it calls the algorithm's constructor.
RL_ZOO_KEYS = {"callback", "n_envs", "normalize", "env_wrapper", "env_kwargs", "policy", "vec_env_wrapper"}


@dataclass(frozen=True)
class Algorithm:
    """
    An algorithm that the benchmarks compare.

    :param title: its name in tables and pictures
    :param location: ``module:class``, imported only when it is needed
    :param hyperparameters: ``sb3_trpo`` for this repository's file, else the name of a file of RL Zoo
    :param extra: the extra of sb3-trpo that installs it
    """

    title: str
    location: str
    hyperparameters: str = OWN_HYPERPARAMETERS
    extra: str = "zoo"

    def load(self) -> type[BaseAlgorithm]:
        module, _, name = self.location.partition(":")
        try:
            return getattr(importlib.import_module(module), name)
        except ImportError as error:
            raise ImportError(
                f"{self.title} needs {error.name or module}: install it with `pip install 'sb3-trpo[{self.extra}]'`."
            ) from error


ALGORITHMS = {
    "sb3_trpo": Algorithm("TRPO (sb3_trpo)", "sb3_trpo:TRPO"),
    "sb3_contrib": Algorithm("TRPO (sb3-contrib)", "sb3_contrib:TRPO", "trpo"),
    "ppo": Algorithm("PPO (SB3)", "stable_baselines3:PPO", "ppo"),
    "policy_gradient": Algorithm("plain policy gradient", "campaign.variants:PolicyGradient"),
    "gradient_direction": Algorithm("no natural gradient", "campaign.variants:GradientDirection"),
    "full_step": Algorithm("no line search", "campaign.variants:FullStep"),
    "fixed_step": Algorithm("fixed step", "campaign.variants:FixedStep"),
    "sampled_actions": Algorithm("actions as sampled", "campaign.variants:SampledActions"),
}

# What tables and pictures set side by side, in this order.
COMPARED = ("sb3_trpo", "sb3_contrib", "ppo", "policy_gradient")


def title(variant: str) -> str:
    """
    Name a variant as tables and pictures do.

    :param variant: an algorithm's key, or ``key@label``
    :return: its name in tables and pictures
    """
    algo, _, label = variant.partition("@")
    name = ALGORITHMS[algo].title if algo in ALGORITHMS else algo
    return f"{name}, {label}" if label else name


def read_hyperparameters(algo: str, task: str) -> tuple[dict[str, Any], str]:
    """
    Read what an algorithm's file of hyperparameters says of a task.

    :param algo: key of ``ALGORITHMS``
    :param task: Gymnasium id
    :return: the task's entry without ``n_timesteps``, and the file and the entry that it was read from
    """
    file, name = _file(ALGORITHMS[algo].hyperparameters)
    entries = yaml.safe_load(file.read_text())
    keys = [key for key in (task, *_older_versions(task)) if key in entries]
    key, by_rule = keys[0] if keys else "default", None if keys else _rule(algo, task)
    if by_rule is not None:
        key, rule = by_rule
    if key not in entries:
        raise ValueError(f"task={task!r}: {name} has no entry for it, for an older version of it, or `default`.")
    hyperparams = {name: value for name, value in entries[key].items() if name != "n_timesteps"}
    source = f"{name}, {key}"
    if by_rule is None:
        return hyperparams, source
    return hyperparams | rule, source + (", and the rule" if rule else ", in place of an entry")


def _rule(algo: str, task: str) -> tuple[str, dict[str, Any]] | None:
    """
    Find what serves a task that no file has an entry for.

    :param algo: key of ``ALGORITHMS``
    :param task: Gymnasium id
    :return: an entry and what differs from it; None if the task is not one of continuous control
    """
    if algo not in (OURS, "sb3_contrib"):
        return None
    env = gym.make(task)
    known = read_task(env)
    env.close()
    if known is None:
        return None
    return ("default", hyperparameters_by_rule(known)) if algo == OURS else (RL_ZOO_MUJOCO, {})


def allowed_keys(algo: str) -> set[str]:
    """
    List what an entry of an algorithm's hyperparameters may set.

    :param algo: key of ``ALGORITHMS``
    :return: what an entry of its hyperparameters may set
    """
    parameters = inspect.signature(ALGORITHMS[algo].load().__init__).parameters
    not_hyperparameters = {"self", "env", "seed", "device", "verbose", "tensorboard_log", "_init_setup_model"}
    return {*parameters, *RL_ZOO_KEYS} - not_hyperparameters


def _file(name: str) -> tuple[Path, str]:
    """Return the file, and what to call it on any machine."""
    if name == OWN_HYPERPARAMETERS:
        return REPOSITORY / "sb3_trpo/shipped/hyperparams/trpo.yml", "sb3_trpo/shipped/hyperparams/trpo.yml"
    try:
        # The package itself imports every algorithm; its files are found without that.
        spec = importlib.util.find_spec("rl_zoo3")
        version = importlib.metadata.version("rl_zoo3")
    except (ImportError, importlib.metadata.PackageNotFoundError):
        spec = None
    if spec is None or spec.origin is None:
        raise ImportError("The benchmarks need RL Zoo: install it with `pip install 'sb3-trpo[zoo]'`.")
    return Path(spec.origin).parent / f"hyperparams/{name}.yml", f"rl_zoo3 {version}, hyperparams/{name}.yml"


def _older_versions(task: str) -> list[str]:
    match = re.fullmatch(r"(.*-v)(\d+)", task)
    if match is None:
        return []
    return [f"{match[1]}{version}" for version in range(int(match[2]) - 1, -1, -1)]
