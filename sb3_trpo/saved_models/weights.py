"""
Files of tensors from strangers.

torch's reader with ``weights_only`` runs no code of the file's. But it calls what is on its own list, with any
arguments, and believes the sizes that a file declares: a tensor may claim more elements than there are, or one element
may claim to be a billion. So it is not used here. The file is read as data, and every tensor is made anew from bytes
that are there.
"""

import io
import math
import re
from collections import OrderedDict
from typing import Any

import torch as th

from sb3_trpo.saved_models.archive import read_archive
from sb3_trpo.saved_models.budget import Budget, check_integer_size
from sb3_trpo.saved_models.pickle_reader import Call, Name, Reference, read_pickle
from sb3_trpo.saved_models.refused import RefusedModelError

MEMBER = re.compile(
    r"[^/]+/(data\.pkl|data/\d+|version|byteorder|\.format_version|\.storage_alignment|\.data/serialization_id)"
)
DTYPES = {
    "DoubleStorage": th.float64,
    "FloatStorage": th.float32,
    "HalfStorage": th.float16,
    "BFloat16Storage": th.bfloat16,
    "LongStorage": th.int64,
    "IntStorage": th.int32,
    "ShortStorage": th.int16,
    "CharStorage": th.int8,
    "ByteStorage": th.uint8,
    "BoolStorage": th.bool,
}
MAX_DIMENSIONS = 16


def read_weights(content: bytes, budget: Budget) -> Any:
    """
    Read what ``torch.save`` has written.

    :param content: the bytes that it has written
    :param budget: the budget of the file that they are part of
    :return: tensors on the CPU, numbers, texts, and containers of such
    :raises RefusedModelError: if there is anything else
    """
    members = {}
    for name, member in read_archive(io.BytesIO(content), budget).items():
        match = MEMBER.fullmatch(name)
        if match is None:
            raise RefusedModelError(f"it has a member {name[:100]!r}, which is not allowed")
        members[match[1]] = member
    if "data.pkl" not in members:
        raise RefusedModelError("it is no file of tensors")
    if members.get("byteorder", b"little") != b"little":
        raise RefusedModelError("its numbers are not in the byte order of this machine")
    return _Builder(members, budget).build(read_pickle(members["data.pkl"], budget))


class _Builder:
    """
    A builder of tensors, and of containers of them.

    :param members: the members of the archive, by their names
    :param budget: the budget of the file
    """

    def __init__(self, members: dict[str, bytes], budget: Budget) -> None:
        self.members = members
        self.budget = budget

    def build(self, node: Any) -> Any:
        """
        Make the object that a node stands for.

        :param node: the node, from ``read_pickle``
        :return: the object
        :raises RefusedModelError: if it is not allowed
        """
        self.budget.spend_on_object(node)
        if isinstance(node, dict):
            return {self._key(key): self.build(value) for key, value in node.items()}
        if isinstance(node, (list, tuple)):
            return type(node)(map(self.build, node))
        if isinstance(node, Call):
            return self._call(node)
        if isinstance(node, int):
            return check_integer_size(node)
        if node is None or isinstance(node, (float, str)):
            return node
        raise RefusedModelError(f"it holds {f'{node}, which is not allowed' if isinstance(node, Name) else type(node)}")

    def _key(self, node: Any) -> Any:
        if not isinstance(node, (str, int)):
            raise RefusedModelError(f"it holds a key that is a {type(node).__name__}")
        return self.build(node)

    def _call(self, call: Call) -> Any:
        name = str(call.function) if isinstance(call.function, Name) else "a name that is computed"
        if name == "collections.OrderedDict" and call.args == () and not call.items:
            # A module's state has its version beside it, which torch does not need.
            self.build(call.state)
            return OrderedDict((self._key(key), self.build(value)) for key, value in call.pairs)
        if name not in ("torch._utils._rebuild_tensor_v2", "torch._utils._rebuild_parameter"):
            raise RefusedModelError(f"it holds {name}, which is not allowed")
        if call.state is not None or call.items or call.pairs or not isinstance(call.args, tuple):
            raise RefusedModelError("it holds a tensor with more than its data")
        if name.endswith("parameter"):
            return self._parameter(*call.args)
        return self._tensor(*call.args)

    def _parameter(self, data: Any, requires_grad: Any, hooks: Any, *others: Any) -> th.Tensor:
        self._check_ignored(requires_grad, hooks, others)
        tensor = self.build(data)
        if not isinstance(tensor, th.Tensor):
            raise RefusedModelError("it holds a parameter without a tensor")
        return tensor

    def _check_ignored(self, requires_grad: Any, hooks: Any, others: tuple[Any, ...]) -> None:
        """
        Check those arguments of a tensor that are not used: they have to be what ``torch.save`` writes.

        :param requires_grad: whether the tensor has a gradient
        :param hooks: the hooks, which have to be an empty OrderedDict
        :param others: further arguments, of which there may be none
        :raises RefusedModelError: if they are something else
        """
        is_empty = isinstance(hooks, Call) and self.build(hooks) == OrderedDict()
        if not isinstance(requires_grad, bool) or not is_empty or others:
            raise RefusedModelError("it holds a tensor with more than its data")

    def _tensor(
        self, storage: Any, offset: Any, shape: Any, stride: Any, requires_grad: Any, hooks: Any, *others: Any
    ) -> th.Tensor:
        self._check_ignored(requires_grad, hooks, others)
        data, dtype = self._storage(storage)
        _check_layout(offset, shape, stride)
        n_elements = math.prod(shape)
        last = offset + sum((n - 1) * step for n, step in zip(shape, stride, strict=True))
        available = len(data) // dtype.itemsize
        if n_elements > available or (n_elements > 0 and last >= available):
            raise RefusedModelError(f"it holds a tensor of shape {shape} with data for {available} elements")
        if n_elements == 0:
            return th.zeros(shape, dtype=dtype)
        span = data[offset * dtype.itemsize : (last + 1) * dtype.itemsize]
        self.budget.spend(len(span))
        # Bytes other than 0 and 1 are no booleans.
        flat = th.frombuffer(bytearray(span), dtype=th.uint8 if dtype is th.bool else dtype)
        strided = flat.as_strided(shape, stride)
        return strided != 0 if dtype is th.bool else strided.clone(memory_format=th.contiguous_format)

    def _storage(self, storage: Any) -> tuple[bytes, th.dtype]:
        """
        Look up a tensor's data.

        :param storage: a reference to the data
        :return: the data, of which there is as much as the reference says, and its type
        :raises RefusedModelError: if there is no such data
        """
        if not (isinstance(storage, Reference) and isinstance(storage.key, tuple) and len(storage.key) == 5):
            raise RefusedModelError("it holds a tensor without data")
        _, kind, key, _, length = storage.key
        dtype = DTYPES.get(kind.name) if isinstance(kind, Name) and kind.module == "torch" else None
        if dtype is None:
            raise RefusedModelError(f"it holds a tensor of {kind}, which is not allowed")
        data = self.members.get(f"data/{key}") if isinstance(key, str) else None
        if data is None or type(length) is not int or length * dtype.itemsize != len(data):
            raise RefusedModelError("it holds a tensor without data")
        return data, dtype


def _check_layout(offset: Any, shape: Any, stride: Any) -> None:
    if not (isinstance(shape, tuple) and isinstance(stride, tuple) and len(shape) == len(stride) <= MAX_DIMENSIONS):
        raise RefusedModelError("it holds a tensor whose shape is no tuple of whole numbers")
    if not all(type(number) is int and 0 <= number < 2**62 for number in (offset, *shape, *stride)):
        raise RefusedModelError("it holds a tensor whose shape is no tuple of whole numbers")
