"""
All rules on a run's log.
"""

from collections.abc import Callable

from sb3_trpo.diagnosis.environment_rules import (
    critic_diverges,
    critic_explains_nothing,
    episodes_never_end,
    memory_grows,
    observations_not_normalised,
    reward_scale,
    rewards_all_equal,
)
from sb3_trpo.diagnosis.finding import Finding
from sb3_trpo.diagnosis.policy_rules import (
    actions_clipped,
    advantages_not_normalised,
    cg_far_from_solved,
    line_search_fails,
    policy_hardly_moves,
    small_batch,
    std_collapsed,
    step_not_seen,
    steps_far_inside,
)
from sb3_trpo.diagnosis.record import Record

Rule = Callable[[Record], Finding | None]

# Causes before their effects: a symptom may follow from another.
RULES: tuple[Rule, ...] = (
    episodes_never_end,
    rewards_all_equal,
    observations_not_normalised,
    reward_scale,
    small_batch,
    step_not_seen,
    line_search_fails,
    critic_diverges,
    policy_hardly_moves,
    critic_explains_nothing,
    advantages_not_normalised,
    cg_far_from_solved,
    steps_far_inside,
    std_collapsed,
    actions_clipped,
    memory_grows,
)


def find(record: Record) -> list[Finding]:
    """
    Apply every rule to a run. A rule that lacks a number finds nothing.

    :param record: the run
    :return: the findings, errors before warnings
    """
    findings = [finding for rule in RULES if (finding := rule(record)) is not None]
    return sorted(findings, key=lambda finding: -finding.severity)
