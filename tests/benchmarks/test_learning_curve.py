"""
The README's picture: what is read from runs, and that it is drawn.
"""

import json

import numpy as np
import pytest
from learning_curve import NUMBERS, PICTURE, REPOSITORY, draw, read_evaluations, write_numbers


@pytest.fixture
def make_run(tmp_path):
    def make(name, timesteps, results):
        (tmp_path / name).mkdir()
        np.savez(tmp_path / name / "evaluations.npz", timesteps=timesteps, results=results)
        return tmp_path / name

    return make


def test_each_run_gives_its_mean_over_episodes(make_run, tmp_path):
    runs = [make_run("a_1", [10, 20], [[1, 3], [5, 7]]), make_run("a_2", [10, 20], [[0, 0], [2, 4]])]
    timesteps, returns = read_evaluations(runs)
    assert timesteps.tolist() == [10, 20]
    assert returns.tolist() == [[2, 6], [0, 3]]
    draw("a", timesteps, returns, tmp_path / "docs" / "picture.png")
    assert (tmp_path / "docs" / "picture.png").read_bytes().startswith(b"\x89PNG")
    write_numbers(runs, timesteps, returns, tmp_path / "numbers.json")
    numbers = {"runs": ["a_1", "a_2"], "timesteps": [10, 20], "returns": [[2, 6], [0, 3]]}
    assert json.loads((tmp_path / "numbers.json").read_text()) == numbers


def test_runs_that_do_not_belong_together_are_refused(make_run):
    runs = [make_run("a_1", [10, 20], [[1], [5]]), make_run("a_2", [10], [[0]])]
    with pytest.raises(ValueError, match="a_2"):
        read_evaluations(runs)


def test_readme_shows_what_was_measured():
    numbers = json.loads(NUMBERS.read_text())
    assert numbers["timesteps"][-1] == 1_000_000
    readme = " ".join((REPOSITORY / "README.md").read_text().split())
    *others, last = (f"{returns[-1]:.0f}" for returns in numbers["returns"])
    assert f"{', '.join(others)} and {last} at a million steps" in readme
    assert f"({PICTURE.relative_to(REPOSITORY)})" in readme
