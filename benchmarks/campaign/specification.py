"""
One run of a benchmark: everything that decides its outcome, the hash of it, and the command that repeats it.
"""

import hashlib
import json
import re
import shlex
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

LABEL_PATTERN = re.compile(r"[\w.=+,-]+")


@dataclass(frozen=True)
class RunSpecification:
    """
    All that decides a run's result.

    :param kind: ``learning`` or ``improvement``, see :mod:`campaign.worker`
    :param task: Gymnasium id of the environment
    :param algo: key of ``campaign.algorithms.ALGORITHMS``
    :param seed: of the policy's initial weights, of the training environments and of all sampling
    :param n_timesteps: environment steps to train for; the last rollout is finished
    :param hyperparams: an entry in RL Zoo's format, overrides included, without ``n_timesteps``
    :param protocol: how the run is measured; its keys depend on the kind
    :param vec_env: ``dummy`` or ``envpool``, the training environments
    :param label: distinguishes runs of one algorithm with different settings; empty for its standard setting
    :param source: where the hyperparameters were read, for the record
    :param command: repeats this run alone
    """

    kind: str
    task: str
    algo: str
    seed: int
    n_timesteps: int
    hyperparams: dict[str, Any]
    protocol: dict[str, Any]
    vec_env: str = "dummy"
    label: str = ""
    source: str = ""
    command: str = field(default="", compare=False)

    def __post_init__(self) -> None:
        if self.label and not LABEL_PATTERN.fullmatch(self.label):
            raise ValueError(f"label={self.label!r} must consist of letters, digits and _ . = + , - only.")
        if self.n_timesteps < 1:
            raise ValueError(f"n_timesteps={self.n_timesteps} must be at least 1.")

    @property
    def variant(self) -> str:
        """
        The algorithm and its label: a row of a table, a folder of results.
        """
        return f"{self.algo}@{self.label}" if self.label else self.algo

    @property
    def name(self) -> str:
        return f"{self.task} {self.variant} seed {self.seed}"

    def path(self, out: Path) -> Path:
        """
        Name the run's file.

        :param out: folder of a campaign's results
        :return: the run's JSON file; its arrays lie beside it, with the suffix ``.npz``
        """
        return out / self.task / self.variant / f"seed-{self.seed}.json"

    def to_dict(self) -> dict[str, Any]:
        return asdict(self)

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> "RunSpecification":
        return cls(**values)

    def settings(self) -> dict[str, Any]:
        """
        All that decides the outcome but the seed: runs that agree in it are repetitions of one experiment.
        """
        recorded_only = {"seed", "label", "source", "command"}
        return {key: value for key, value in self.to_dict().items() if key not in recorded_only}

    @property
    def settings_hash(self) -> str:
        return _digest(self.settings())

    @property
    def configuration_hash(self) -> str:
        return _digest({**self.settings(), "seed": self.seed})

    def differences(self, other: "RunSpecification") -> str:
        """
        List the settings in which two runs differ.

        :param other: another run's specification
        :return: in words, the settings that differ; empty when none does
        """
        mine, theirs = _flatten(self.settings()), _flatten(other.settings())
        keys = [key for key in sorted({*mine, *theirs}) if mine.get(key) != theirs.get(key)]
        return ", ".join(f"{key} {theirs.get(key, 'unset')} there, {mine.get(key, 'unset')} here" for key in keys)


def command(script: str, **options: Any) -> str:
    """
    Write a command as one types it.

    :param script: path of the script from the repository's root
    :param options: its options; None and empty ones are left out, ``set`` is repeated for each of its items
    :return: a line for the shell
    """
    words = ["python", script]
    for name, value in options.items():
        values = value if isinstance(value, list) else [value]
        if value in (None, "", []):
            continue
        option = f"--{name.replace('_', '-')}"
        words += (
            [word for item in values for word in (option, str(item))] if name == "set" else [option, *map(str, values)]
        )
    return shlex.join(words)


def _digest(values: Mapping[str, Any]) -> str:
    """
    Digest values.

    :param values: JSON-serializable
    :return: 16 hexadecimal digits, the same for the same values in any order of keys
    """
    return hashlib.sha256(json.dumps(values, sort_keys=True).encode()).hexdigest()[:16]


def _flatten(values: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    flat: dict[str, Any] = {}
    for key, value in values.items():
        if isinstance(value, Mapping):
            flat |= _flatten(value, f"{prefix}{key}.")
        else:
            flat[prefix + key] = value
    return flat
