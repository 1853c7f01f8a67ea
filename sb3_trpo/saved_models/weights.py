"""
Files of tensors from strangers: checked, and written anew for torch's reader of weights.

torch's reader with ``weights_only`` runs no code, but it believes the sizes that a file declares: a tensor may claim
more elements than there are, or one element may claim to be a billion. Here each tensor must be covered by its data.
"""

import io
import math
import re
from typing import Any

import torch as th

from sb3_trpo.saved_models.archive import read_archive, write_archive
from sb3_trpo.saved_models.pickle_reader import Call, Name, Reference, RefusedModelError, read_pickle

MEMBER = re.compile(
    r"[^/]+/(data\.pkl|data/\d+|version|byteorder|\.format_version|\.storage_alignment|\.data/serialization_id)"
)
ITEM_SIZES = {
    "DoubleStorage": 8,
    "FloatStorage": 4,
    "HalfStorage": 2,
    "BFloat16Storage": 2,
    "LongStorage": 8,
    "IntStorage": 4,
    "ShortStorage": 2,
    "CharStorage": 1,
    "ByteStorage": 1,
    "BoolStorage": 1,
}
# Tensors may share their data (a features extractor has up to three names), but not without end.
MAX_SHARING = 16


def read_weights(content: bytes) -> Any:
    """
    :param content: of a file written by ``torch.save``
    :return: what it holds, tensors on the CPU
    :raises RefusedModelError: if it holds anything but tensors, numbers, texts and containers of such
    """
    members = {}
    for name, member in read_archive(io.BytesIO(content)).items():
        match = MEMBER.fullmatch(name)
        if match is None:
            raise RefusedModelError(f"it has a member {name!r}, which is not allowed")
        members[match[1]] = member
    if "data.pkl" not in members:
        raise RefusedModelError("it is no file of tensors")
    _Checker(members, len(content)).check(read_pickle(members["data.pkl"]))
    # Written anew, so that torch's reader of zip files sees the members that were checked.
    clean = write_archive({f"archive/{name}": member for name, member in members.items()})
    try:
        return th.load(io.BytesIO(clean), map_location="cpu", weights_only=True)
    except Exception as error:
        raise RefusedModelError(f"torch can't read it ({type(error).__name__}: {error})") from error


class _Checker:
    """
    :param members: of the file
    :param size: of the file, in bytes
    """

    def __init__(self, members: dict[str, bytes], size: int) -> None:
        self.members = members
        self.bytes_left = MAX_SHARING * size
        self.nodes_left = 4 * size + 10_000

    def check(self, node: Any) -> None:
        """
        :param node: as ``read_pickle`` gives it
        :raises RefusedModelError: if it is not allowed
        """
        self.nodes_left -= 1
        if self.nodes_left < 0:
            raise RefusedModelError("it holds an object that grows when it is unpacked")
        if isinstance(node, dict):
            self.check([*node.keys(), *node.values()])
        elif isinstance(node, (list, tuple)):
            for item in node:
                self.check(item)
        elif isinstance(node, Call):
            self._check_call(node)
        elif not (node is None or isinstance(node, (bool, int, float, str))):
            raise RefusedModelError(f"it holds {node if isinstance(node, Name) else type(node).__name__}")

    def _check_call(self, call: Call) -> None:
        name = str(call.function) if isinstance(call.function, Name) else "a name that is computed"
        if name == "torch._utils._rebuild_tensor_v2":
            self._check_tensor(*call.args)
        elif name == "torch._utils._rebuild_parameter" and isinstance(call.args[0], Call):
            self._check_call(call.args[0])
        elif name == "collections.OrderedDict" and call.args == ():
            self.check([call.state, call.items, [list(pair) for pair in call.pairs]])
        else:
            raise RefusedModelError(f"it holds {name}, which is not allowed")

    def _check_tensor(self, storage: Any, offset: Any, shape: Any, stride: Any, *_: Any) -> None:
        if not (isinstance(storage, Reference) and isinstance(storage.key, tuple) and len(storage.key) == 5):
            raise RefusedModelError("it holds a tensor without data")
        _, kind, key, _, length = storage.key
        item_size = ITEM_SIZES.get(kind.name, 0) if isinstance(kind, Name) and kind.module == "torch" else 0
        if item_size == 0:
            raise RefusedModelError(f"it holds a tensor of {kind}, which is not allowed")
        numbers = [offset, length, *shape, *stride]
        if not all(type(number) is int and number >= 0 for number in numbers) or len(shape) != len(stride):
            raise RefusedModelError("it holds a tensor whose shape is not made of whole numbers")
        n_elements = math.prod(shape)
        self.bytes_left -= n_elements * item_size
        if length * item_size != len(self.members.get(f"data/{key}", b"")) or n_elements > length:
            raise RefusedModelError(f"it holds a tensor of shape {shape} with data for {length} elements")
        if self.bytes_left < 0:
            raise RefusedModelError("it holds tensors that grow when they are unpacked")
