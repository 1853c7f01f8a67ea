"""
Refusals of files, in words that a terminal prints and does not obey.
"""

from sb3_trpo.validation.values import UserError

# The most characters of a file's text that a message repeats.
MAX_CHARACTERS = 1000


class RefusedModelError(UserError):
    """
    A saved model holds what it should not.

    :param message: the reason; what it repeats of the file is made printable here, once for all messages
    """

    def __init__(self, message: str) -> None:
        super().__init__(printable(message))


def printable(text: str, keep: str = "", max_characters: int = MAX_CHARACTERS) -> str:
    """
    Replace what a terminal would obey: escapes, line ends, marks that change the direction of writing.

    :param text: any text
    :param keep: the characters that may stay all the same
    :param max_characters: the number of characters after which the text is cut off
    :return: the text, in which such characters are written out, as in ``\\x1b``
    """
    short = text if len(text) <= max_characters else f"{text[:max_characters]}..."
    return "".join(c if c.isprintable() or c in keep else c.encode("unicode_escape").decode() for c in short)
