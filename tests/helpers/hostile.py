"""
Saved models that mean harm: a good one, with a part of it replaced.
"""

import base64
import copy
import io
import json
import pickle
import re
import struct
import zipfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import cloudpickle
import numpy as np
import torch as th
from gymnasium import spaces
from stable_baselines3.common.buffers import RolloutBuffer
from torch import nn

from sb3_trpo import TRPO

Members = dict[str, bytes]
# What a refusal says of a `Payload`; the module of `open` is io, and _io from Python 3.13 on.
HOLDS_OPEN = f"it holds {open.__module__}.open, which is not allowed"


class Payload:
    """
    Leaves a file when it is unpickled.

    :param trace: the file
    """

    def __init__(self, trace: Path) -> None:
        self.trace = trace

    def __reduce__(self) -> Any:
        return open, (str(self.trace), "w")


def members_of(model: TRPO) -> Members:
    """
    Save a model into a dictionary.

    :param model: to be saved
    :return: the contents of the file's members, by name
    """
    file = io.BytesIO()
    model.save(file)
    with zipfile.ZipFile(file) as archive:
        return {name: archive.read(name) for name in archive.namelist()}


def zipped(members: Members, **kwargs: Any) -> bytes:
    """
    Make a zip archive.

    :param members: contents by name
    :param kwargs: of the archive
    :return: the archive
    """
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w", **kwargs) as archive:
        for name, content in members.items():
            archive.writestr(name, content)
    return file.getvalue()


def with_attributes(members: Members, **attributes: Any) -> bytes:
    """
    Put attributes into a model.

    :param members: of a model
    :param attributes: JSON values, to be put in the place of its own
    :return: the archive
    """
    data = json.dumps({**json.loads(members["data"]), **attributes})
    return zipped({**members, "data": data.encode()})


def serialized(pickled: Any) -> dict[str, str]:
    """
    Write a pickle as models hold it.

    :param pickled: a pickle, or what is to be one
    :return: an attribute of a model
    """
    pickled = pickled if isinstance(pickled, bytes) else cloudpickle.dumps(pickled)
    return {":type:": "<class 'dict'>", ":serialized:": base64.b64encode(pickled).decode()}


def saved(value: Any, **kwargs: Any) -> bytes:
    """
    Save as torch does.

    :param value: for ``torch.save``
    :param kwargs: likewise
    :return: the file's content
    """
    file = io.BytesIO()
    th.save(value, file, **kwargs)
    return file.getvalue()


def code(members: Members, trace: Path) -> Iterator[tuple[str, bytes]]:
    """
    Put code into every place of a model.

    :param members: of a good model
    :param trace: what the code would leave
    :return: models with code in every place, and names for them
    """
    payload, data = Payload(trace), json.loads(members["data"])
    for name in data:
        yield f"code in {name}", with_attributes(members, **{name: serialized(payload)})
    for name in ("data", "policy.pth", "policy.optimizer.pth", "pytorch_variables.pth"):
        yield f"pickle as {name}", zipped({**members, name: pickle.dumps(payload)})
    state = th.load(io.BytesIO(members["policy.pth"]))
    for name in ("policy.pth", "policy.optimizer.pth", "pytorch_variables.pth"):
        for kind, value in {"code": payload, "code beside tensors": {**state, "log_std": payload}}.items():
            yield f"{kind} in {name}", zipped({**members, name: saved(value)})
            legacy = saved(value, _use_new_zipfile_serialization=False)
            yield f"{kind} in {name}, old format", zipped({**members, name: legacy})
    path = _text(str(trace))
    touch = b"cio\nopen\n(" + path + _text("w") + b"tR."
    getter = b"cbuiltins\ngetattr\n(cio\nopen\n" + _text("__call__") + b"tR(" + path + _text("w") + b"tR."
    pickles: dict[str, Any] = {
        "in a list": [1, [payload]],
        "as a key": {(1, payload): 1},
        "in a function": lambda: Path(trace).touch(),
        "by its name": touch,
        "by a computed name": getter,
        "by an instance": b"(" + path + _text("w") + b"iio\nopen\n.",
        "by a class": b"(cio\nopen\n" + path + _text("w") + b"o.",
        "by text operations": f"cio\nopen\n(V{trace}\nVw\ntR.".encode(),
        "by an extension": b"\x80\x02\x82\x01.",
        "in a class of torch": b"\x80\x02ctorch.hub\nload\n)R.",
        "after what is allowed": b"\x80\x04\x8c\x0bcollections\x8c\x05deque\x93)R}\x8c\x01x" + touch[:-1] + b"sb.",
        "by a class's attribute": b"\x80\x04ctorch.nn.modules.activation\nTanh\nN}X\x07\x00\x00\x00forwardNs\x86b.",
    }
    for name, pickled in pickles.items():
        yield f"code {name}", with_attributes(members, policy_kwargs=serialized(pickled))


def archives(members: Members) -> Iterator[tuple[str, bytes]]:
    """
    Make archives that are not what they seem.

    :param members: of a good model
    :return: archives that are not what they seem
    """
    for name in ("../../trace", "/tmp/trace", "policy.pth/../../trace", "..\\trace", "trace.pth", "data/"):
        yield f"path {name!r}", zipped({**members, name: b"trace"})
    zeros = bytes(2**27)
    for name in ("data", "policy.pth", "system_info.txt"):
        yield f"bomb in {name}", zipped({**members, name: zeros}, compression=zipfile.ZIP_DEFLATED)
    inner = zipped({"archive/data.pkl": zeros}, compression=zipfile.ZIP_DEFLATED)
    yield "bomb in a bomb", zipped({**members, "policy.pth": inner})
    yield "other compression", zipped(members, compression=zipfile.ZIP_LZMA)
    good = zipped(members)
    # Sizes of 4 GB, in the directory and in the members' own headers.
    sizes = struct.pack("<II", len(members["data"]), len(members["data"]))
    yield "false sizes", good.replace(sizes, struct.pack("<II", len(members["data"]), 2**32 - 2))
    yield "same names", good.replace(b"system_info.txt", b"policy.pth\0\0\0\0\0").replace(b"\nlog_std", b"\nlog_std")
    for share in (0.0, 0.1, 0.5, 0.9, 0.99, 0.9999):
        yield f"truncated at {share}", good[: int(share * len(good))]
    for name in members.keys() - {"system_info.txt", "_stable_baselines3_version", "pytorch_variables.pth"}:
        yield f"without {name}", zipped({key: value for key, value in members.items() if key != name})
        yield f"empty {name}", zipped({**members, name: b""})
        yield f"half of {name}", zipped({**members, name: members[name][: len(members[name]) // 2]})


def attributes(members: Members) -> Iterator[tuple[str, bytes]]:
    """
    Put attributes of wrong types, or huge ones, into a model.

    :param members: of a good model
    :return: models whose attributes are of wrong types, or huge
    """
    names = ["n_steps", "n_envs", "policy_class", "observation_space", "action_space", "policy_kwargs", "lr_schedule"]
    for name in [*names, "verbose", "num_timesteps", "target_kl", "learning_rate", "batch_size", "_n_updates"]:
        for value in ("many", [], -1, None, {}, 1e999, serialized(RolloutBuffer), serialized(spaces.Discrete(2))):
            if not (name == "policy_kwargs" and value == {}):
                yield f"{name} = {str(value)[:30]}", with_attributes(members, **{name: value})
    for name in ("predict", "train", "logger", "__class__", "env", "policy", "rollout_buffer", "device", "a.b"):
        yield f"attribute {name}", with_attributes(members, **{name: "os:system"})
    for content in (b"[]", b"1", b"{", b"\xff", b"[" * 100_000, b'{"a":' * 100_000, b"9" * 5000):
        yield f"data = {content[:5]!r} ...", zipped({**members, "data": content})
    for value in ("noise", 1, {}, []):
        yield f"action_noise = {value}", with_attributes(members, action_noise=value)
    yield "n_steps = 10**12", with_attributes(members, n_steps=10**12)
    yield "n_envs = 10**12", with_attributes(members, n_envs=10**12)
    kwargs: dict[str, Any] = {
        "wide": {"net_arch": [10**6, 10**6]},
        "deep": {"net_arch": [1] * 10**6},
        "deep, nested": {"net_arch": {"pi": [1] * 10**5}},
        "of unknown kind": {"net_bow": 1},
        "features": {"features_extractor_kwargs": {"features_dim": 10**12}},
    }
    for name, value in kwargs.items():
        yield f"policy_kwargs: {name}", with_attributes(members, policy_kwargs=value)
    for space in (spaces.Discrete(10**12), spaces.MultiBinary(10**12), spaces.MultiDiscrete([2**40, 2**40])):
        yield f"observation_space = {space}", with_attributes(members, observation_space=serialized(space))
        yield f"action_space = {space}", with_attributes(members, action_space=serialized(space))
    box = copy.deepcopy(spaces.Box(-1.0, 1.0, (3,)))
    box._shape = (10**6, 10**6)
    yield "Box of another shape", with_attributes(members, observation_space=serialized(box))


def counts(members: Members) -> Iterator[tuple[str, bytes]]:
    """
    Put counts into a model that would make training endless.

    :param members: of a good model
    :return: models with such counts
    """
    for name in ("n_steps", "n_critic_updates", "cg_max_steps", "line_search_max_iter"):
        for count in (10**6 + 1, 2**62, 1e30):
            yield f"{name} = {count}", with_attributes(members, **{name: count})
    # Each of them is allowed.
    yield "steps of the critic", with_attributes(members, n_steps=10**6, batch_size=1, n_critic_updates=2)
    yield "chunks", with_attributes(members, n_steps=10**5, cg_max_steps=100, fisher_chunk_size=1)


def pickles(members: Members) -> Iterator[tuple[str, bytes]]:
    """
    Put pickles into a model that take memory or time.

    :param members: of a good model
    :return: models with pickles that take memory or time
    """
    laughs: Any = "ha" * 100
    cycle: list[Any] = []
    cycle.append(cycle)
    for _ in range(60):
        laughs = [laughs, laughs]
    array = np.zeros(3)
    huge = pickle.dumps(array, protocol=4).replace(b"K\x03\x85", b"\x8a\x06" + (2**40).to_bytes(6, "little") + b"\x85")
    found: dict[str, bytes] = {
        "laughs": pickle.dumps(laughs),
        "cycle": pickle.dumps(cycle),
        "depth": b"\x80\x04" + b"]" * 50_000 + b"a" * 49_999 + b".",
        "huge memo": b"\x80\x04Nr\xff\xff\xff\x7f.",
        "huge bytes": b"\x80\x05\x8e" + (2**40).to_bytes(8, "little") + b"x.",
        "huge bytearray": b"\x80\x05\x96" + (2**40).to_bytes(8, "little") + b"x.",
        "huge frame": b"\x80\x04\x95" + (2**40).to_bytes(8, "little") + b"N.",
        "huge array": huge,
        "empty array of a huge shape": b"\x80\x02cnumpy\nndarray\n\x8a\x06" + bytes(5) + b"\x01\x85R.",
        "array of objects": pickle.dumps(np.array([None])),
        "many operations": b"\x80\x04" + b"N0" * 10**6 + b"N.",
        "no end": b"\x80\x04N",
        "nothing": b"",
        "stack underflow": b"\x80\x04\x85\x86\x87sub.",
        "no base64": b"",
    }
    for name, pickled in found.items():
        yield f"pickle: {name}", with_attributes(members, policy_kwargs=serialized(pickled))
    yield "pickle: no base64", with_attributes(members, policy_kwargs={":serialized:": "§§"})
    yield "pickle: no text", with_attributes(members, policy_kwargs={":serialized:": [1]})


def tensors(members: Members) -> Iterator[tuple[str, bytes]]:
    """
    Put weights into a model that are not those of its policy.

    :param members: of a good model
    :return: models whose weights are not those of the policy
    """
    state = th.load(io.BytesIO(members["policy.pth"]))
    optimizer = th.load(io.BytesIO(members["policy.optimizer.pth"]))
    expanded = th.zeros(1).expand(10**12)
    for name, tensor in {
        "expanded": expanded,
        "other shape": th.zeros(7),
        "no tensor": 1.0,
        "sparse": _sparse(),
    }.items():
        yield f"weights: {name}", zipped({**members, "policy.pth": saved({**state, "log_std": tensor})})
        moved = copy.deepcopy(optimizer)
        next(iter(moved["state"].values()))["exp_avg"] = tensor if name != "other shape" else th.zeros(10**6)
        if name != "no tensor":
            yield f"optimizer: {name}", zipped({**members, "policy.optimizer.pth": saved(moved)})
    one = th.zeros(10**5)
    many = {str(i): one[: 10**5 - i] for i in range(200)}
    yield "weights that share", zipped({**members, "policy.pth": saved(many)})
    yield "weights: none", zipped({**members, "policy.pth": saved({})})
    yield "weights: a list", zipped({**members, "policy.pth": saved([th.zeros(3)])})
    yield "weights: a module", zipped({**members, "policy.pth": saved(nn.Linear(2, 2))})
    for value in ([], {"state": []}, {"state": {10**9: {"step": th.zeros(1)}}}, {"param_groups": 1}):
        yield f"optimizer: {value}", zipped({**members, "policy.optimizer.pth": saved(value)})
    for value in ({"policy.log_std": th.zeros(7)}, {"cg_direction": th.zeros(2, 2)}, {"cg_direction": 1}, [1], 1):
        yield f"variables: {value}", zipped({**members, "pytorch_variables.pth": saved(value)})
    # More elements than there are data for: what lies behind them in memory would be read.
    with zipfile.ZipFile(io.BytesIO(saved({"log_std": th.zeros(3)}))) as inner:
        parts = {name: inner.read(name) for name in inner.namelist()}
    for name in parts:
        if name.endswith("data.pkl"):
            parts[name] = parts[name].replace(b"K\x03tq", b"M\x10\x27tq").replace(b"K\x03\x85", b"M\x10\x27\x85")
    yield "weights: out of bounds", zipped({**members, "policy.pth": zipped(parts)})


def hidden(members: Members) -> Iterator[tuple[str, bytes]]:
    """
    Hide calls, sizes and names where a reader may not look.

    :param members: those of a good model
    :return: models, and names for them
    """
    inner, part = _inner(members["policy.pth"])
    many = b"cbuiltins\nbytearray\n\x8a\x05" + (2**31).to_bytes(5, "little") + b"\x85R"
    # The end of a tensor's arguments: requires_grad, no hooks.
    end = re.compile(rb"\x89(h.\)R)(q.)?(t)(q.)?(R)(q.)?", re.S)
    tensor = end.search(inner[part])
    assert tensor is not None
    hooks = tensor[1]
    for name, arguments, behind in (
        ("in the place of requires_grad", many + hooks, b""),
        ("in the place of the hooks", b"\x89" + many, b""),
        ("behind the last argument", b"\x89" + hooks + many, b""),
        ("in metadata", b"\x89" + hooks + b"]" + many + b"a", b""),
        ("in a state", b"\x89" + hooks, many + b"\x85b"),
    ):
        new = arguments + b"tR" + behind + (tensor[6] or b"")
        pickled = inner[part][: tensor.start()] + new + inner[part][tensor.end() :]
        yield f"bytes {name}", zipped({**members, "policy.pth": zipped({**inner, part: pickled})})
    for name, value in {
        "bytes": b"\x08" * 10**6,
        "a bytearray": bytearray(10**6),
        "an array": np.full(10**5, 8),
        "a range": range(10**9),
        "a set": set(range(10**4)),
    }.items():
        yield f"net_arch is {name}", with_attributes(members, policy_kwargs=serialized({"net_arch": value}))
    for digits in (30, 4000):
        yield f"n_steps has {digits} digits", with_attributes(members, n_steps=10**digits)
        yield f"n_envs has {digits} digits", with_attributes(members, n_envs=serialized(10**digits))
    for name in ("policy.pth", "policy.optimizer.pth"):
        # Each of the two archives unpacks to less than a reader of one would allow.
        parts, first = _inner(members[name])
        bomb = {**parts, first: parts[first][:-1] + b"0" + b"N" * 2**25 + b"."}
        compressed = zipped(bomb, compression=zipfile.ZIP_DEFLATED)
        yield f"compressed twice: {name}", zipped({**members, name: compressed}, compression=zipfile.ZIP_DEFLATED)


def escapes(members: Members) -> Iterator[tuple[str, bytes]]:
    """
    Write what a terminal obeys wherever a message might repeat it.

    :param members: those of a good model
    :return: models, and names for them
    """
    evil = "evil\x1b]0;title\x07\x1b[2J\r\u202e"
    named = b"\x80\x04" + _text("a") + _text(evil) + b"\x93)R."
    yield "a name", with_attributes(members, policy_kwargs=serialized(named))
    yield "an argument", with_attributes(members, policy_kwargs={evil: 1})
    yield "an optimizer's argument", with_attributes(members, policy_kwargs={"optimizer_kwargs": {evil: 1}})
    yield "a hyperparameter", with_attributes(members, preconditioner=evil)
    yield "an attribute", with_attributes(members, **{evil: 1})
    yield "a member", zipped({**members, evil: b""})
    inner, part = _inner(members["policy.pth"])
    pickled = b"\x80\x02" + _text("a") + _text(evil) + b"\x93)R."
    yield "a name in the weights", zipped({**members, "policy.pth": zipped({**inner, part: pickled})})
    yield "a member of the weights", zipped({**members, "policy.pth": zipped({**inner, f"archive/{evil}": b""})})


def moments(members: Members) -> Iterator[tuple[str, bytes]]:
    """
    Give an optimizer's state other shapes, types and names than it has.

    :param members: those of a good model
    :return: models, and names for them
    """
    good = th.load(io.BytesIO(members["policy.optimizer.pth"]))
    for name, change in {
        "empty": lambda x: th.zeros(0),
        "shorter": lambda x: x.flatten()[:-1],
        "longer": lambda x: th.zeros(x.numel() + 1),
        "flat": lambda x: x.reshape(1, *x.shape),
        "integers": lambda x: x.to(th.int64),
        "half": lambda x: x.half(),
        "twice as wide": lambda x: x.double(),
        "none": lambda x: None,
        "a text": lambda x: "x",
    }.items():
        for key in ("exp_avg", "exp_avg_sq"):
            state = copy.deepcopy(good)
            one = next(iter(state["state"].values()))
            one[key] = change(one[key])
            yield f"{key}: {name}", zipped({**members, "policy.optimizer.pth": saved(state)})
    for key, value in {"betas": [0.9], "lr": "fast", "eps": None, "params": [0], "fused": "yes", "another": 1}.items():
        state = copy.deepcopy(good)
        state["param_groups"][0][key] = value
        yield f"{key} = {value!r}", zipped({**members, "policy.optimizer.pth": saved(state)})


def _inner(content: bytes) -> tuple[Members, str]:
    """
    Unpack a file of tensors.

    :param content: the file's
    :return: its members, and the name of the one that is a pickle
    """
    with zipfile.ZipFile(io.BytesIO(content)) as archive:
        members = {name: archive.read(name) for name in archive.namelist()}
    return members, next(name for name in members if name.endswith("data.pkl"))


def mutations(members: Members, n: int) -> Iterator[tuple[str, bytes]]:
    """
    Change a model in random places.

    :param members: of a good model
    :param n: how many
    :return: models with one wrong place, behind the checksums of the archives
    """
    rng = np.random.default_rng(0)
    data = json.loads(members["data"])
    pickled = [name for name, item in data.items() if isinstance(item, dict) and ":serialized:" in item]
    for i in range(n):
        name = pickled[i % len(pickled)]
        content = _with_wrong_byte(base64.b64decode(data[name][":serialized:"]), rng)
        yield f"mutation {i} of {name}", with_attributes(members, **{name: serialized(content)})
        name = ("policy.pth", "policy.optimizer.pth", "pytorch_variables.pth")[i % 3]
        with zipfile.ZipFile(io.BytesIO(members[name])) as inner:
            parts = {part: inner.read(part) for part in inner.namelist()}
        parts = {part: _with_wrong_byte(value, rng) if ".pkl" in part else value for part, value in parts.items()}
        yield f"mutation {i} of {name}", zipped({**members, name: zipped(parts)})


def _with_wrong_byte(content: bytes, rng: np.random.Generator) -> bytes:
    """
    Change a file as little as may matter.

    :param content: the file's
    :param rng: decides how
    :return: the content with a byte changed, or a few left out, doubled, or taken from elsewhere
    """
    at, other = (int(i) for i in rng.integers(len(content), size=2))
    n = int(rng.integers(1, 12))
    kind = int(rng.integers(5))
    if kind == 0:
        return content[:at] + content[at + n :]
    if kind == 1:
        return content[:at] + content[at : at + n] + content[at:]
    if kind == 2:
        return content[:at] + content[other : other + n] + content[at:]
    return content[:at] + bytes([int(rng.integers(256))]) + content[at + 1 :]


def _text(text: str) -> bytes:
    return b"X" + len(text).to_bytes(4, "little") + text.encode()


def _sparse() -> th.Tensor:
    return th.sparse_coo_tensor([[0]], [1.0], (10**9,), check_invariants=False)
