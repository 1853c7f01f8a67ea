"""
Which rank is to blame when the ranks of a training lose each other.

A rank that waits in vain sees that a connection has ended, or that time is up, and not why: the rank at the other end
may itself have lost a third one. So each of them leaves a note in the store that all ranks share: what it has raised,
or that it was waiting. Who leaves none is the one that was killed, hangs or is stopped.
"""

import threading
import time
from collections.abc import Callable
from typing import Protocol

# What the others have to leave their notes; they see the end of a connection at once.
SECONDS_TO_SIGN_IN = 3.0
SECONDS_BETWEEN_LOOKS = 0.05
# The store may be on a machine that is stopped: its answers are waited for in a thread.
SECONDS_TO_ANSWER = SECONDS_TO_SIGN_IN + 5.0
MAX_LETTERS = 2000


class LostRankError(Exception):
    """
    Another rank has ended or does not answer, so that this one can't go on.

    It is no ``RuntimeError``, after which an update would be undone and training go on, here alone.
    """


class Store(Protocol):
    """What ``torch.distributed`` has for few bytes that all ranks can read."""

    def set(self, key: str, value: str) -> None:
        """Write a value."""

    def get(self, key: str) -> bytes:
        """Read a value that is there."""

    def check(self, keys: list[str]) -> bool:
        """Tell whether there are values."""


class Blame:
    """
    The notes of the ranks.

    :param store: the store that all ranks share, which no other training uses at the time
    :param rank: the number of this rank
    :param size: the number of ranks
    """

    def __init__(self, store: Store, rank: int, size: int) -> None:
        self._store = store
        self._rank = rank
        self._size = size

    def confess(self, error: BaseException) -> None:
        """
        Leave a note of what this rank has raised.

        :param error: the exception
        """
        text = f"{type(error).__name__}: {error}"[:MAX_LETTERS]
        _try_in_time(lambda: self._store.set(f"cause/{self._rank}", text), SECONDS_TO_SIGN_IN)

    def sign_in(self) -> None:
        """Leave a note that this rank was waiting for others."""
        _try_in_time(lambda: self._store.set(f"waited/{self._rank}", ""), SECONDS_TO_SIGN_IN)

    def explain(self, error: Exception) -> LostRankError:
        """
        Find out who is to blame.

        :param error: torch's exception
        :return: the exception with the rank, and with the cause if it has left one
        """
        reasons: list[str] = []
        if not _try_in_time(lambda: reasons.append(self._find_reason()), SECONDS_TO_ANSWER):
            reasons = ["rank 0, or what keeps the store for it, has ended or does not answer"]
        first_sentence = str(error).strip().partition("\n")[0].partition(". ")[0]
        return LostRankError(
            f"Rank {self._rank} of {self._size} ends, for {reasons[0]}. The policy is that of the last complete "
            f"update. (The connection: {first_sentence}.)"
        )

    def _find_reason(self) -> str:
        """
        Wait for the notes of the others, or for a cause.

        :return: the reason, as the end of a sentence
        """
        deadline = time.monotonic() + SECONDS_TO_SIGN_IN
        others = [rank for rank in range(self._size) if rank != self._rank]
        while True:
            causes = [rank for rank in others if self._store.check([f"cause/{rank}"])]
            if causes:
                return f"rank {causes[0]} has raised {self._store.get(f'cause/{causes[0]}').decode()}"
            missing = [rank for rank in others if not self._store.check([f"waited/{rank}"])]
            if not missing or time.monotonic() > deadline:
                break
            time.sleep(SECONDS_BETWEEN_LOOKS)
        if not missing:
            return "the connections between the ranks have ended, though all of them were there"
        if len(missing) == 1:
            return f"rank {missing[0]} has ended without a word, or does not answer"
        return f"ranks {', '.join(map(str, missing))} have ended without a word, or do not answer"


def _try_in_time(action: Callable[[], object], seconds: float) -> bool:
    """
    Do what may wait for ever.

    :param action: the function to call
    :param seconds: how long it may take
    :return: whether it has ended in time, without an error of the connection
    """
    done: list[bool] = []

    def run() -> None:
        try:
            action()
        except RuntimeError:
            # torch's errors of the store.
            return
        done.append(True)

    thread = threading.Thread(target=run, daemon=True)
    thread.start()
    thread.join(seconds)
    return bool(done)
