"""
What a run of RL Zoo's ``train`` has left in its folder, read as data: settings, seed, evaluations.
"""

import io
import json
import pathlib
import zipfile
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np

from sb3_trpo.saved_models.archive import read_archive
from sb3_trpo.saved_models.origin import origin_of
from sb3_trpo.saved_models.refused import RefusedModelError
from sb3_trpo.validation.install import how_to_install
from sb3_trpo.validation.values import UserError

# Of a file of settings and of one of evaluations, in bytes; of an array and of settings, in values; of a model's
# attributes, in bytes.
MAX_SETTINGS, MAX_EVALUATIONS, MAX_NUMBERS = 200_000, 50_000_000, 20_000_000
MAX_VALUES = 10_000
MAX_MODEL_DATA = 10_000_000
# Folders are searched to this depth for runs: a log folder holds one for each algorithm, which hold the runs.
MAX_DEPTH = 3
MAX_RUNS = 10_000
# The arguments of RL Zoo's command that make two runs different, besides hyperparameters and seed.
ARGUMENTS = (
    "algo",
    "env_kwargs",
    "eval_env_kwargs",
    "vec_env",
    "eval_episodes",
    "trained_agent",
)


@dataclass(frozen=True)
class Run:
    """
    A run.

    :param folder: its folder
    :param task: the id of its task
    :param seed: its seed
    :param settings: all else that it was made with, by name
    :param steps: the environment steps of its evaluations, rising, (E,)
    :param returns: the mean return of each, (E,)
    """

    folder: pathlib.Path
    task: str
    seed: str
    settings: dict[str, str]
    steps: np.ndarray
    returns: np.ndarray

    @property
    def score(self) -> float:
        """The mean return of the last evaluation."""
        return float(self.returns[-1])


def find_runs(folder: pathlib.Path, depth: int = 0) -> Iterator[pathlib.Path]:
    """
    Find the runs in a folder.

    :param folder: the folder of a run, or one that holds such folders
    :param depth: the number of folders above that were searched
    :return: the folders of the runs
    :raises UserError: if there is no such folder
    """
    if not folder.is_dir():
        raise UserError(f"{str(folder)!r} is no folder; a run is one, such as logs/trpo/CartPole-v1_1.")
    if settings_folder(folder) is not None:
        yield folder
    elif depth < MAX_DEPTH:
        # Links could lead round in circles.
        below = sorted(path for path in folder.iterdir() if path.is_dir() and not path.is_symlink())
        for path in below[:MAX_RUNS]:
            yield from find_runs(path, depth + 1)


def settings_folder(run: pathlib.Path) -> pathlib.Path | None:
    """
    Find the folder with a run's settings, which RL Zoo names by the task, as it does the final model.

    :param run: the run's folder
    :return: the folder in it; None if it is no run of RL Zoo's
    """
    return next((path.parent for path in sorted(run.glob("*/args.yml"))), None)


def read_run(folder: pathlib.Path) -> Run:
    """
    Read a run.

    :param folder: its folder
    :return: the run
    :raises RefusedModelError: if a file is damaged, or larger than such a file is, or there are no evaluations
    :raises OSError: if a file is missing
    """
    place = settings_folder(folder)
    if place is None:
        raise RefusedModelError("it is no run, for it has no args.yml")
    arguments = read_yaml(place / "args.yml")
    hyperparams = read_yaml(place / "config.yml")
    steps, returns = _read_evaluations(folder / "evaluations.npz")
    task = str(arguments.get("env", ""))
    given = arguments.get("n_timesteps", -1)
    n_timesteps = given if isinstance(given, int) and given > 0 else hyperparams.get("n_timesteps")
    settings = {name: _to_text(value) for name, value in hyperparams.items()}
    settings |= {name: _to_text(arguments[name]) for name in ARGUMENTS if name in arguments}
    settings |= {
        "n_timesteps": _to_number(n_timesteps),
        "evaluated at step": str(int(steps[-1])),
        "made by": _read_origin(folder / f"{place.name}.zip"),
    }
    return Run(folder, task, str(arguments.get("seed", "unknown")), settings, steps, returns)


def _to_number(value: object) -> str:
    return f"{value:g}" if isinstance(value, (int, float)) else _to_text(value)


def _to_text(value: object) -> str:
    # Of a dictionary whose keys come in another order the text is the same.
    return json.dumps(value, sort_keys=True, default=str, ensure_ascii=False).strip('"')


def _read_bytes(path: pathlib.Path, most: int) -> bytes:
    # Of a pipe or a device there may be no end.
    if not path.is_file():
        raise RefusedModelError(f"it has no {path.name}")
    with path.open("rb") as file:
        content = file.read(most + 1)
    if len(content) > most:
        raise RefusedModelError(f"{path.name} is larger than {most} bytes")
    return content


def read_yaml(path: pathlib.Path) -> dict[str, Any]:
    """
    Read a file of RL Zoo's, which hold dictionaries that remember their order.

    :param path: the file
    :return: its entries; objects of other classes are read as texts
    :raises RefusedModelError: if it holds no dictionary
    """
    try:
        import yaml
    except ImportError as error:
        raise UserError(f"The settings of a run need PyYAML: install it with {how_to_install('zoo')}.") from error

    class Loader(yaml.SafeLoader):  # type: ignore[misc]  # It has no types.
        """A loader that makes no objects."""

    def read_ordered(loader: Any, node: Any) -> dict[str, Any]:
        (pairs,) = loader.construct_sequence(node, deep=True)
        return {str(name): value for name, value in pairs}

    Loader.add_constructor("tag:yaml.org,2002:python/object/apply:collections.OrderedDict", read_ordered)
    Loader.add_constructor("tag:yaml.org,2002:python/tuple", lambda loader, node: loader.construct_sequence(node, True))
    Loader.add_multi_constructor("tag:yaml.org,2002:python/", lambda _, tag, node: f"{tag} {node.value!r:.100}")
    content = _read_bytes(path, MAX_SETTINGS)
    try:
        entries = yaml.load(content, Loader)
    except (yaml.YAMLError, ValueError, TypeError, RecursionError) as error:
        raise RefusedModelError(f"{path.name} can't be read ({type(error).__name__})") from error
    if not isinstance(entries, dict):
        raise RefusedModelError(f"{path.name} holds no settings")
    _check_count(path, entries)
    return {str(name): value for name, value in entries.items()}


def _check_count(path: pathlib.Path, entries: dict[Any, Any]) -> None:
    """
    Bound the number of values: aliases of aliases could be more than any memory holds, once written out.

    :param path: the file
    :param entries: what was read from it
    :raises RefusedModelError: if there are too many
    """
    waiting: list[Any] = [entries]
    count = 0
    while waiting:
        value = waiting.pop()
        count += 1
        if count > MAX_VALUES:
            raise RefusedModelError(f"{path.name} holds more than {MAX_VALUES} values")
        if isinstance(value, dict):
            waiting += [*value, *value.values()][: MAX_VALUES + 1]
        elif isinstance(value, (list, tuple, set)):
            waiting += list(value)[: MAX_VALUES + 1]


def _read_evaluations(path: pathlib.Path) -> tuple[np.ndarray, np.ndarray]:
    """
    Read what SB3's ``EvalCallback`` has written.

    :param path: the file
    :return: the steps, (E,), and the mean returns, (E,)
    :raises RefusedModelError: if there are none
    """
    if not path.exists():
        raise RefusedModelError("it has no evaluations (train with --eval-freq)")
    members = read_archive(io.BytesIO(_read_bytes(path, MAX_EVALUATIONS)))
    try:
        steps, results = (_read_array(members[f"{name}.npy"]) for name in ("timesteps", "results"))
    except KeyError as error:
        raise RefusedModelError(f"its evaluations lack {error}") from error
    if steps.ndim != 1 or results.ndim != 2 or len(steps) != len(results) or results.size == 0:
        raise RefusedModelError("its evaluations have shapes that do not fit")
    if not np.isfinite(results).all() or (np.diff(steps) <= 0).any():
        raise RefusedModelError("its evaluations are not finite, or out of order")
    return steps, results.mean(axis=1)


def _read_array(content: bytes) -> np.ndarray:
    file = io.BytesIO(content)
    try:
        version = np.lib.format.read_magic(file)
        read_header = np.lib.format.read_array_header_1_0 if version == (1, 0) else np.lib.format.read_array_header_2_0
        shape, _, dtype = read_header(file)
        n = int(np.prod(shape, dtype=object))
        # What the header says is allocated before the data is read.
        is_honest = dtype.kind in "iuf" and n <= MAX_NUMBERS and n * dtype.itemsize <= len(content)
        file.seek(0)
        array: np.ndarray = np.lib.format.read_array(file, allow_pickle=False) if is_honest else np.empty(0)
    except (ValueError, TypeError, OverflowError) as error:
        raise RefusedModelError(f"its evaluations can't be read ({type(error).__name__})") from error
    if not is_honest:
        raise RefusedModelError("its evaluations are no numbers, or fewer than they say")
    return array.astype(np.float64)


def _read_origin(path: pathlib.Path) -> str:
    """
    Tell which algorithm trained: ``--algo trpo`` may mean sb3-contrib's or this package's.

    :param path: the final model
    :return: the algorithm, in words
    """
    if not path.is_file():
        return "an unfinished run"
    try:
        with zipfile.ZipFile(path) as archive:
            member = archive.getinfo("data")
            if member.file_size > MAX_MODEL_DATA:
                return "unknown"
            return origin_of(json.loads(archive.read(member))).value
    # A damaged file may raise anything.
    except Exception:
        return "unknown"
