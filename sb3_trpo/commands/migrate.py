"""
``sb3-trpo migrate``: convert models and hyperparameter files of sb3-contrib's TRPO.

``target_kl`` changes, by the rule of ``sb3_trpo.saved_models.contrib.kl_factor``. A model also gets the options that
sb3-contrib's TRPO lacks, with their defaults. Nothing of it is run: its attributes are rewritten as data, and its
weights are copied.
"""

import argparse
import base64
import io
import json
import math
import os
import pathlib
import re
import zipfile
from typing import Any

import gymnasium as gym
from gymnasium.error import Error as GymnasiumError

from sb3_trpo.saved_models.archive import read_archive, write_archive
from sb3_trpo.saved_models.atomic import atomic_write
from sb3_trpo.saved_models.contrib import averaged_dimensions, is_contribs_file, kl_factor, own_options
from sb3_trpo.saved_models.objects import read_object
from sb3_trpo.saved_models.origin import Origin, origin_of
from sb3_trpo.saved_models.refused import RefusedModelError, printable
from sb3_trpo.trpo import TRPO
from sb3_trpo.validation.install import how_to_install
from sb3_trpo.validation.values import UserError, short

CONTRIBS_TARGET_KL = 0.01
HEADER = "# Converted for sb3_trpo: target_kl bounds KL summed over action dimensions.\n"


def main() -> None:
    """Run the command with the arguments in ``sys.argv``."""
    parser = argparse.ArgumentParser(description="Convert a model or hyperparameter file of sb3-contrib's TRPO.")
    parser.add_argument("file", help="a saved model (.zip) or hyperparameters of RL Zoo (.yml)", type=pathlib.Path)
    parser.add_argument("-o", "--output", help="where to write (beside it, as NAME-sb3_trpo)", type=pathlib.Path)
    args = parser.parse_args()
    if args.output is not None and not args.output.name:
        parser.error(f"argument -o/--output: {str(args.output)!r} is no name of a file")
    output = args.output or args.file.with_name(f"{args.file.stem}-sb3_trpo{args.file.suffix}")
    output = output if output.suffix else output.with_name(output.name + args.file.suffix)
    try:
        content = args.file.read_bytes()
        convert = convert_hyperparameters if args.file.suffix in (".yml", ".yaml") else convert_model
        converted, changes = convert(content)
        if os.path.lexists(output):
            raise UserError(f"{output} exists: give another name with --output.")
        with atomic_write(output, args.file.suffix.removeprefix(".")) as file:
            file.write(converted)
    except OSError as error:
        raise UserError(str(error)) from error
    except RefusedModelError as error:
        raise UserError(f"{args.file} can't be converted: {error}.") from error
    for change in changes:
        print(printable(change))
    print(f"Written to {output}.")


def convert_model(content: bytes) -> tuple[bytes, list[str]]:
    """
    Convert a saved model.

    :param content: the bytes of the file
    :return: the bytes of the converted file, and what has changed, in words
    :raises UserError: if there is nothing to convert, or it can't be converted
    """
    file = io.BytesIO(content)
    if not zipfile.is_zipfile(file):
        raise UserError("The file is neither a model of Stable-Baselines3 (.zip) nor hyperparameters of RL Zoo (.yml).")
    members = read_archive(file)
    try:
        data = json.loads(members["data"])
    except (KeyError, ValueError) as error:
        raise UserError("The file is no model of Stable-Baselines3.") from error
    origin = origin_of(data)
    if origin is not Origin.CONTRIB:
        raise UserError(
            f"The model was saved by {origin.value}, not by sb3-contrib's TRPO: there is nothing to convert. "
            f"TRPO.load takes models of PPO and A2C."
        )
    n = averaged_dimensions(_read(data["action_space"]))
    old = float(_read(data.get("target_kl", CONTRIBS_TARGET_KL)))
    data["target_kl"] = new = _round(kl_factor(n) * old)
    data.update({name: value for name, value in own_options(TRPO).items() if name not in data})
    changes = [f"target_kl: {old:g} -> {new:g} ({n} action dimensions)"]
    return write_archive({**members, "data": json.dumps(data, indent=4).encode()}), changes


def _read(item: Any) -> Any:
    if isinstance(item, dict) and ":serialized:" in item:
        return read_object(base64.b64decode(item[":serialized:"]))
    return item


def convert_hyperparameters(content: bytes) -> tuple[bytes, list[str]]:
    """
    Convert a file of hyperparameters in RL Zoo's format; comments stay where they are.

    :param content: the bytes of the file
    :return: the bytes of the converted file, and what has changed, in words
    :raises UserError: if there is nothing to convert, or it can't be converted
    """
    text, expected = _read_entries(content)
    changes = []
    for task, entry in expected.items():
        old = entry.get("target_kl", CONTRIBS_TARGET_KL)
        if not (isinstance(old, (int, float)) and 0.0 < old < math.inf):
            changes.append(f"{task}: left as it is, for its target_kl is {short(old)}, no number above 0")
            continue
        n = _action_dimensions(task)
        if n is None:
            changes.append(f"{task}: left as it is, for its action space is not known here")
            continue
        new = _round(kl_factor(n) * old)
        if n > 1:
            changes.append(f"{task}: target_kl: {old:g} -> {new:g} ({n} action dimensions)")
        if n > 1 or "target_kl" in entry:
            entry["target_kl"] = new
            text = _set_target_kl(text, task, new)
    if not _holds(text, expected):
        raise UserError(
            "The file is written in a way that can't be edited line by line. By hand: " + "; ".join(changes) + "."
        )
    return (HEADER + text).encode(), changes


def _read_entries(content: bytes) -> tuple[str, dict[str, dict[str, Any]]]:
    """
    Read a file of hyperparameters.

    :param content: the bytes of the file
    :return: the text, and a copy of each task's entry
    :raises UserError: if there is nothing to convert, or it holds something else
    """
    try:
        import yaml
    except ImportError as error:
        raise UserError(f"Hyperparameter files need PyYAML: install it with {how_to_install('zoo')}.") from error
    try:
        text = content.decode()
    except UnicodeDecodeError as error:
        raise UserError("The file is no text in UTF-8, as RL Zoo's hyperparameters are.") from error
    if not is_contribs_file(text, own_options(TRPO)):
        raise UserError("The file is meant for sb3_trpo already: there is nothing to convert.")
    try:
        entries = {task: dict(entry) for task, entry in yaml.safe_load(text).items()}
        json.dumps(entries, default=str, skipkeys=True)
    # Nested too deeply, or in itself.
    except (yaml.YAMLError, AttributeError, TypeError, ValueError, RecursionError) as error:
        raise UserError("The file does not hold RL Zoo's hyperparameters: one entry for each task.") from error
    return text, entries


def _holds(text: str, entries: dict[str, dict[str, Any]]) -> bool:
    """
    Tell whether a text that was edited line by line holds what it should.

    :param text: the text
    :param entries: the entries that it should hold
    :return: whether it does
    """
    import yaml

    try:
        # Written out, for NaN is not the same as itself.
        return repr(yaml.safe_load(text)) == repr(entries)
    except yaml.YAMLError:
        return False


def _action_dimensions(task: str) -> int | None:
    try:
        env = gym.make(task)
        env.close()
        return averaged_dimensions(env.action_space)
    # An environment that is installed by half may raise any of these.
    except (GymnasiumError, ImportError, OSError, RuntimeError, ValueError, AttributeError, TypeError):
        return None


def _set_target_kl(text: str, task: str, value: float) -> str:
    """
    Set ``target_kl`` in the entry of a task.

    :param text: the file, in which an entry starts at the beginning of a line and goes on in indented lines
    :param task: the entry's name
    :param value: the new ``target_kl``
    :return: the new file; the old one, if it has no such entry
    """
    match = re.search(
        rf"^(['\"]?){re.escape(task)}\1:[^\n{{]*\n((?:[ \t]+[^\n]*(?:\n|\Z)|[ \t]*(?:#[^\n]*)?\n)*)", text, re.M
    )
    if match is None:
        return text
    start, end = match.span(2)
    body = text[start:end]
    indent = re.match(r"[ \t]*", body)
    line = f"target_kl: {value:g}"
    new, n = re.subn(
        r"^([ \t]+)target_kl:[^\n#]*?([ \t]*(?:#[^\n]*)?)$", rf"\g<1>{line}\g<2>", body, count=1, flags=re.M
    )
    if n == 0:
        new = f"{indent[0] if indent and indent[0] else '  '}{line}\n{body}"
    return text[:start] + new + text[end:]


def _round(number: float) -> float:
    return float(f"{number:.3g}")
