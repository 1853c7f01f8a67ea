"""
Objects as data.

Their content is written as JSON beside one block of bytes. It is read back into objects that are there already, without
running anything that the file names.

There are three sorts of objects:

- Plain data (numbers, texts, arrays, containers of such) are made anew, with one object wherever one object was.
- Objects that a ``Codec`` knows (generators, spaces, simulations) are saved and restored by it.
- Functions, classes and the like say how the program is built rather than where it stands. They stay as they are, and
  have to be what they were, with all that a function holds.

Everything else is refused by its name.
"""

import json
import struct
from collections.abc import Sequence
from typing import Any

from sb3_trpo.checkpoints.tree_format import Codec, NotSavableError
from sb3_trpo.checkpoints.tree_reader import Reader
from sb3_trpo.checkpoints.tree_writer import Writer
from sb3_trpo.validation.values import UserError

HEADER = struct.Struct("<8sQ")
MAGIC = b"sb3trpo2"


def pack(value: Any, codecs: Sequence[Codec] = (), roots: Sequence[object] = ()) -> bytes:
    """
    Write objects as bytes.

    :param value: the object to save
    :param codecs: the sorts of objects that are allowed in it, besides plain data
    :param roots: the objects that are saved in another way, and may occur in it
    :return: the object, as bytes
    :raises NotSavableError: at the first object that can't be saved
    """
    writer = Writer(codecs, roots)
    try:
        tree = json.dumps(writer.finished(value), allow_nan=False).encode()
    except NotSavableError:
        raise
    # The user's objects may raise anything when they are looked at, and no attribute of an environment may end a
    # training.
    except Exception as error:
        raise NotSavableError(f" can't be read ({type(error).__name__}: {error})") from error
    return HEADER.pack(MAGIC, len(tree)) + tree + bytes(writer.block)


def unpack(
    content: bytes,
    existing: Any = None,
    codecs: Sequence[Codec] = (),
    roots: Sequence[object] = (),
    *,
    trusted: bool = True,
) -> Any:
    """
    Read what ``pack`` has written.

    :param content: the bytes
    :param existing: the present object; parts of it that a codec knows are changed in place
    :param codecs: the sorts of objects that are allowed, as in ``pack``
    :param roots: the counterparts of the roots in ``pack``
    :param trusted: whether the bytes come from where no harm is meant; if not, no text (a path, a name) is set
    :return: the saved object
    :raises UserError: if the content is damaged
    :raises NotSavableError: if the present object does not fit the saved one
    """
    try:
        magic, length = HEADER.unpack_from(content)
        if magic != MAGIC:
            raise ValueError("it starts with other bytes")
        tree = json.loads(content[HEADER.size : HEADER.size + length])
        return Reader(content[HEADER.size + length :], codecs, roots, trusted).value(tree, existing)
    except NotSavableError:
        raise
    # Damage may raise anything.
    except Exception as error:
        raise UserError(
            f"The state of the training is damaged ({type(error).__name__}: {str(error)[:200]!r})."
        ) from error
