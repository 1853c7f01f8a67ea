"""
Every example runs, as a user runs it, for a short time, and fits on a screen.
"""

import ast
import importlib.util
import runpy
import sys
from pathlib import Path

import pytest

EXAMPLES = sorted((Path(__file__).parents[1] / "examples").glob("*.py"))
LINES_OF_A_SCREEN = 60


def imported_modules(example: Path) -> set[str]:
    """
    List what an example imports.

    :param example: a script
    :return: the top-level modules that it imports
    """
    nodes = list(ast.walk(ast.parse(example.read_text())))
    names = {name.name for node in nodes if isinstance(node, ast.Import) for name in node.names}
    return {
        name.partition(".")[0] for name in names | {node.module for node in nodes if isinstance(node, ast.ImportFrom)}
    }


@pytest.mark.parametrize("example", EXAMPLES, ids=lambda path: path.stem)
def test_example_runs(example, tmp_path, monkeypatch):
    needed = imported_modules(example) | ({"rl_zoo3"} if ".make(" in example.read_text() else set())
    needed |= {"envpool"} if "make_envpool" in example.read_text() else set()
    if "ray" in needed:
        pytest.skip("tests/integration/test_ray.py runs it")
    missing = sorted(module for module in needed if importlib.util.find_spec(module) is None)
    if missing:
        pytest.skip(f"needs {', '.join(missing)}")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("STEPS", "300")
    monkeypatch.setattr(sys, "argv", [str(example)])
    runpy.run_path(str(example), run_name="__main__")


@pytest.mark.parametrize("example", EXAMPLES, ids=lambda path: path.stem)
def test_example_fits_on_a_screen(example):
    assert len(example.read_text().splitlines()) <= LINES_OF_A_SCREEN


def test_there_are_examples():
    assert len(EXAMPLES) >= 10
