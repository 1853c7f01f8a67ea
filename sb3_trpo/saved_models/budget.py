"""
Bounds on what reading a file may cost: one for all that is nested in the file, by the file's size.
"""

from sb3_trpo.saved_models.refused import RefusedModelError

# Weights hardly shrink, so that SB3's files are not compressed. Each byte of a file counts about six times on the way
# (archive, archive within, tensors that have up to three names); the rest is for users who compressed their files.
MAX_RATIO = 20
# Small files, which are mostly attributes, may take as much in any case.
FREE_BYTES = 1_000_000
# The cost of any object, besides a text's own length.
BYTES_PER_OBJECT = 16
# Longer integers could be of any size.
MAX_BITS = 64


class Budget:
    """
    The bytes and objects that a file may still unpack to.

    :param size: the size of the file, in bytes
    """

    def __init__(self, size: int) -> None:
        self._left = MAX_RATIO * size + FREE_BYTES

    def spend(self, n: int) -> None:
        """
        Take from what is left, before any memory is taken.

        :param n: the number of bytes, or of objects
        :raises RefusedModelError: if there is not as much left
        """
        self._left -= n
        if self._left < 0:
            raise RefusedModelError(f"it unpacks to more than {MAX_RATIO} times its size")

    def spend_on_object(self, node: object) -> None:
        """
        Take what an object costs, besides what is in it.

        :param node: the object, or the node that it will be made of
        :raises RefusedModelError: if there is not as much left
        """
        self.spend(BYTES_PER_OBJECT + (len(node) if isinstance(node, (str, bytes, bytearray)) else 0))


def check_integer_size(number: int) -> int:
    """
    Refuse integers that no count, size or seed needs.

    :param number: the integer from a file
    :return: the integer
    :raises RefusedModelError: if it has more than 64 bits
    """
    if number.bit_length() > MAX_BITS:
        raise RefusedModelError(f"it holds a whole number of {number.bit_length()} bits")
    return number
