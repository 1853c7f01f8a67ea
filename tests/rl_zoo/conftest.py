import pytest


@pytest.fixture(autouse=True)
def two_episodes_at_the_end(monkeypatch: pytest.MonkeyPatch) -> None:
    """Evaluate less at the end of a training: that is most of a short one's time."""
    pytest.importorskip("rl_zoo3", reason="needs sb3-trpo[zoo]")
    monkeypatch.setattr("sb3_trpo.rl_zoo.report.N_EVAL_EPISODES", 2)
