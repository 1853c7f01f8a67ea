"""
The rules, on logs: what each finds, what it leaves alone, and that no log whatever breaks one.
"""

import ast
import dataclasses
import math
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from records import N_ROWS, SETTINGS, healthy_log, record

from sb3_trpo.diagnosis.explanations import read_sections
from sb3_trpo.diagnosis.finding import Severity
from sb3_trpo.diagnosis.record import Record, Settings, action_dimensions
from sb3_trpo.diagnosis.rules import RULES, find

REPOSITORY = Path(__file__).parents[2]


def every(n: int, period: int, value: float, otherwise: float) -> np.ndarray:
    return np.where(np.arange(n) % period == 0, value, otherwise)


def names(run: Record) -> list[str]:
    return [finding.name for finding in find(run)]


def settings_with(**changes: float | bool) -> Settings:
    return dataclasses.replace(SETTINGS, **changes)  # type: ignore[arg-type]


ROWS = np.arange(N_ROWS)
FAILED = {"is_line_search_success": every(N_ROWS, 2, 0.0, 1.0), "kl_divergence_loss": every(N_ROWS, 2, 0.0, 0.028)}

FAULTS = {
    "small-batch": record(settings_with(n_samples=128)),
    "cg-far-from-solved": record(cg_residual=every(N_ROWS, 2, 0.9, 0.1)),
    "line-search-fails": record(rejected_by_gain=9.0, **FAILED),
    "policy-hardly-moves": record(kl_divergence_loss=9e-7, target_kl=1e-6),
    "step-not-seen": record(kl_divergence_loss=1e-5),
    "steps-far-inside": record(kl_divergence_loss=0.01),
    "std-collapsed": record(std_min=0.01),
    "actions-clipped": record(clipped_actions=0.7),
    "advantages-not-normalised": record(policy_objective=0.5, advantage_mean=0.4),
    "critic-diverges": record(value_loss=1e4),
    "critic-explains-nothing": record(settings_with(gae_lambda=1.0), explained_variance=every(N_ROWS, 2, -0.5, 0.1)),
    "reward-scale": record(return_mean=1000.0, explained_variance=0.02, advantage_mean=-60.0, advantage_std=30.0),
    "rewards-all-equal": record(return_mean=0.0, return_std=0.0),
    "episodes-never-end": record(terminated=0.0, truncated=0.0),
    "observations-not-normalised": record(obs_std_max=9.0),
    "memory-grows": record(memory_mib=400.0 + 10.0 * ROWS),
}


@pytest.mark.parametrize("name", FAULTS)
def test_each_rule_finds_its_fault_and_no_other_does(name: str) -> None:
    assert names(FAULTS[name]) == [name]


def test_every_rule_has_its_fault() -> None:
    assert len(FAULTS) == len(RULES)


# Each beside the fault that it could be taken for.
NEIGHBOURS = {
    "as published runs are": record(),
    "in the middle of training": record(SETTINGS, 0.5),
    "short": record(SETTINGS, 0.01, 6),
    "a critic that begins far below large returns, and approaches them": record(
        return_mean=-100.0,
        explained_variance=0.01,
        advantage_mean=-60.0,
        advantage_std=30.0,
        value_loss=2000.0 * 0.9**ROWS,
    ),
    "without an update": record(SETTINGS, 0.0, 0),
    "as many samples as are needed": record(settings_with(n_samples=192)),
    "a residual that is large now and then": record(cg_residual=every(N_ROWS, 3, 0.9, 0.1)),
    "a search in four fails": record(is_line_search_success=every(N_ROWS, 4, 0.0, 1.0)),
    "small steps at the beginning of training": record(SETTINGS, 0.05, kl_divergence_loss=9e-7, target_kl=1e-6),
    "small steps, and many of them still to come": record(SETTINGS, 0.2, kl_divergence_loss=1e-4, target_kl=1.1e-4),
    "δ that ends at 0": record(target_kl=0.03 * (1 - ROWS / N_ROWS), kl_divergence_loss=0.028 * (1 - ROWS / N_ROWS)),
    "little noise that was asked for": record(settings_with(least_max_std=0.005), std_min=0.006),
    "half of the actions are clipped": record(clipped_actions=0.5),
    "most actions are clipped, by gSDE": record(settings_with(use_sde=True), clipped_actions=0.9),
    "advantages as they come, near their centre": record(policy_objective=0.15, advantage_mean=0.05),
    "advantages off their centre, normalised": record(advantage_mean=0.4),
    "an entropy bonus": record(
        settings_with(ent_coef=0.1), policy_objective=-0.2, advantage_mean=0.4, advantage_std=0.5
    ),
    "the first critic, which knows nothing": record(value_loss=every(N_ROWS, N_ROWS, 30.0, 0.05)),
    "rewards that have grown": record(value_loss=0.01 * 1.1**ROWS, return_mean=1.1**ROWS),
    "large rewards that the critic follows": record(return_mean=1000.0, value_loss=1e3),
    "large rewards in a task that is solved": record(return_mean=1000.0, value_loss=1e3, explained_variance=-0.5),
    "a critic that begins small": record(
        value_loss=0.5 * 1.1**ROWS, return_mean=1.1 ** (ROWS / 2), explained_variance=-0.1
    ),
    "a critic that was perfect once, and still is nearly": record(
        value_loss=every(N_ROWS, N_ROWS, 0.01, 20.0), return_mean=40.0, return_std=20.0, explained_variance=-0.1
    ),
    "λ = 1 with a critic": record(settings_with(gae_lambda=1.0)),
    "a task that is solved": record(ep_rew_mean=np.minimum(ROWS * 50.0, 500.0), explained_variance=-0.1),
    "one long episode": record(terminated=0.0, truncated=0.0, ep_rew_mean=10.0),
    "rewards that are found late": record(
        return_mean=np.where(ROWS < 30, 0.0, 1.0), return_std=np.where(ROWS < 30, 0.0, 1.0)
    ),
    "memory that fills caches": record(memory_mib=np.minimum(400.0 + 20.0 * ROWS, 900.0)),
    "memory that grows a little": record(memory_mib=400.0 + 0.1 * ROWS),
}


@pytest.mark.parametrize("name", NEIGHBOURS)
def test_nothing_is_found_beside_a_fault(name: str) -> None:
    assert names(NEIGHBOURS[name]) == []


@pytest.mark.parametrize(
    ("rejected", "change"),
    [
        ({"rejected_by_kl": 9.0, "rejected_by_gain": 1.0}, "lower target_kl, or raise line_search_max_iter"),
        ({"rejected_by_kl": 1.0, "rejected_by_gain": 9.0}, "collect more steps"),
        ({"line_search_steps": 0.0}, "look at the warning"),
    ],
)
def test_a_failing_search_is_told_by_its_cause(rejected: dict[str, float], change: str) -> None:
    (finding,) = find(record(**{**FAILED, **rejected}))
    assert finding.severity is Severity.ERROR
    assert change in finding.change
    assert "10 of the last 20" in finding.evidence


def test_failures_need_not_follow_each_other() -> None:
    """Five in a row would not be met by a search that fails in 60%."""
    success = np.where(ROWS % 5 < 3, 0.0, 1.0)
    assert names(record(is_line_search_success=success)) == ["line-search-fails"]


def test_a_critic_is_not_measured_by_its_own_values() -> None:
    """The returns that it is fitted to have its error in them; those of rewards alone have not."""
    assert names(record(value_loss=1e4, return_mean=3.0, return_std=3.0)) == ["critic-diverges"]
    assert names(record(value_loss=40.0, return_mean=3.0, return_std=3.0)) == ["critic-diverges"]
    assert names(record(value_loss=30.0, return_mean=3.0, return_std=3.0)) == []


def test_a_critic_that_rises_from_its_lowest() -> None:
    """As in a log without returns of rewards alone."""
    log = record(value_loss=np.where(ROWS < 20, 0.05, 5.0), explained_variance=np.where(ROWS < 40, 0.5, -0.5)).log
    without = {key: column for key, column in log.items() if "return_" not in key}
    assert names(Record(without, SETTINGS)) == ["critic-diverges"]


def test_rows_between_which_updates_are_left_out() -> None:
    """What is logged every 50 updates stands for all of them."""
    sparse = record(kl_divergence_loss=9e-7, target_kl=1e-6, n_updates=50.0 * ROWS)
    assert names(sparse) == []


def test_episodes_that_are_all_the_same() -> None:
    assert names(record(ep_rew_mean=-200.0)) == ["rewards-all-equal"]


def test_a_surrogate_without_gradient() -> None:
    assert "step-not-seen" in names(record(grad_norm=0.0))
    assert names(record(grad_norm=0.0, advantage_std=0.0, advantage_mean=0.0)) == []


@pytest.mark.parametrize("name", FAULTS)
def test_a_rule_that_lacks_a_number_is_silent(name: str) -> None:
    run = FAULTS[name]
    for key in run.log:
        without = {other: column for other, column in run.log.items() if other != key}
        # Without δ, KL that does not see a step is a small one.
        also = {"policy-hardly-moves"} if name == "step-not-seen" else set()
        assert set(names(Record(without, run.settings))) <= {name} | also
    assert names(Record({}, Settings())) == []


@settings(max_examples=50, deadline=None)
@given(st.data())
def test_no_log_breaks_a_rule(data: st.DataObject) -> None:
    n = data.draw(st.integers(0, 50))
    numbers = st.floats(-1e99, 1e99) | st.sampled_from([0.0, 1.0, math.nan, math.inf, -math.inf])
    log = {
        key: np.array(data.draw(st.lists(numbers, min_size=n, max_size=n)))
        for key in data.draw(st.lists(st.sampled_from(sorted(healthy_log())), unique=True))
    }
    run = Record(log, data.draw(st.sampled_from([SETTINGS, Settings()])), data.draw(st.floats(1e-6, 1.0)))
    with np.errstate(all="ignore"):
        for finding in find(run):
            assert finding.sentence()


def test_errors_come_before_warnings() -> None:
    severities = [finding.severity for finding in find(record(**FAILED, obs_std_max=9.0, clipped_actions=0.9))]
    assert severities == [Severity.ERROR, Severity.WARNING, Severity.WARNING]


def findings_in_the_sources() -> set[str]:
    """
    Collect the findings' names from the sources.

    :return: the names that the package gives to findings
    """
    calls = [
        node
        for file in (REPOSITORY / "sb3_trpo").rglob("*.py")
        for node in ast.walk(ast.parse(file.read_text()))
        if isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.func.id == "Finding"
    ]
    return {call.args[0].value for call in calls if isinstance(call.args[0], ast.Constant)}  # type: ignore[misc]


def test_every_finding_is_explained_and_nothing_else() -> None:
    found = findings_in_the_sources()
    assert set(FAULTS) < found
    assert found == read_sections().keys()


@pytest.mark.parametrize("name", FAULTS)
def test_findings_are_sentences(name: str) -> None:
    (finding,) = find(FAULTS[name])
    assert finding.evidence
    assert any(character.isdigit() for character in finding.evidence)
    assert not finding.problem.endswith(".")
    assert not finding.change.endswith(".")
    assert finding.change[0].islower()


@pytest.mark.parametrize(
    ("space", "dimensions"), [("Discrete(7)", 1), ("Box(-1, 1, (3, 2))", 6), ("MultiBinary(4)", 4)]
)
def test_action_dimensions(space: str, dimensions: int) -> None:
    from gymnasium import spaces

    assert action_dimensions(eval(space, vars(spaces))) == dimensions
