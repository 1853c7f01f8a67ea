"""
Who is to blame for a lost connection: the rank that raised, or the one that has left no note.
"""

import pytest
from torch.distributed import HashStore

from sb3_trpo.ranks import blame
from sb3_trpo.ranks.blame import MAX_LETTERS, Blame, LostRankError


@pytest.fixture
def notes(monkeypatch: pytest.MonkeyPatch) -> list[Blame]:
    """
    Make the notes of four ranks, in one store.

    :return: one for each rank
    """
    # Nobody comes late here.
    monkeypatch.setattr(blame, "SECONDS_TO_SIGN_IN", 0.2)
    store = HashStore()
    return [Blame(store, rank, 4) for rank in range(4)]


def explain(notes: Blame) -> str:
    """
    Let a rank say why it ends.

    :param notes: its notes
    :return: its sentence
    """
    error = notes.explain(RuntimeError("Connection closed by peer [127.0.0.1]:1234. More that nobody reads."))
    assert isinstance(error, LostRankError)
    return str(error)


def test_a_rank_that_raised_is_named_with_its_error(notes: list[Blame]) -> None:
    notes[2].confess(ValueError("no such thing"))
    text = explain(notes[0])
    assert "Rank 0 of 4 ends, for rank 2 has raised ValueError: no such thing." in text
    assert "(The connection: Connection closed by peer [127.0.0.1]:1234.)" in text


def test_whoever_waited_is_not_to_blame(notes: list[Blame]) -> None:
    for rank in (0, 1, 3):
        notes[rank].sign_in()
    assert "rank 2 has ended without a word" in explain(notes[0])


def test_several_without_a_word_are_all_named(notes: list[Blame]) -> None:
    notes[0].sign_in()
    notes[1].sign_in()
    assert "ranks 2, 3 have ended without a word" in explain(notes[0])


def test_a_cause_counts_more_than_a_rank_that_is_missing(notes: list[Blame]) -> None:
    notes[3].confess(KeyError("x"))
    assert "rank 3 has raised KeyError" in explain(notes[1])


def test_nobody_is_blamed_if_all_were_waiting(notes: list[Blame]) -> None:
    for each in notes:
        each.sign_in()
    assert "all of them were there" in explain(notes[0])


def test_a_long_error_is_cut(notes: list[Blame]) -> None:
    notes[1].confess(ValueError("x" * 10 * MAX_LETTERS))
    assert len(explain(notes[0])) < 2 * MAX_LETTERS
