"""
Warnings during training: the rules' own, once each.
"""

import math
import warnings
from typing import Any

import numpy as np
import pytest
import torch as th
from gymnasium import spaces
from records import HEALTHY, SETTINGS, record
from small_models import VECTOR, SpacesEnv
from stable_baselines3.common.env_util import make_vec_env
from updates import collect, pendulum

from sb3_trpo import TRPO
from sb3_trpo.diagnosis.advice import INTERVAL, Advice, LiveLog
from sb3_trpo.diagnosis.finding import Finding, Severity
from sb3_trpo.diagnosis.record import FEWEST, Record
from sb3_trpo.diagnosis.rules import find


def warned(advice: Advice, run: Record) -> list[str]:
    """
    Give a log to the rules row by row, and collect the warnings.

    :param advice: what looks at the run
    :param run: its log, given row by row
    :return: the warnings
    """
    n = len(run.column("train/value_loss"))
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        for i in range(n):
            row = {key: float(column[i]) for key, column in run.log.items()}
            advice.observe(row, run.settings, run.progress)
    return [str(warning.message) for warning in caught]


@pytest.mark.parametrize(
    "columns",
    [{}, {"value_loss": 1e4}, {"obs_std_max": 9.0, "clipped_actions": 0.9}, {"is_line_search_success": 0.0}],
)
def test_training_is_warned_of_what_a_finished_run_is_diagnosed_with(columns: dict[str, float]) -> None:
    run = record(**columns)
    messages = warned(Advice(), run)
    assert len(messages) == len(find(run))
    for finding in find(run):
        (message,) = (message for message in messages if f" See {finding.page}. " in message)
        assert finding.change in message


def test_a_finding_is_said_once() -> None:
    advice = Advice()
    finding = Finding("fault", Severity.ERROR, "this is wrong", "1 of 1", "do something else")
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        for _ in range(3):
            advice.give(finding)
            advice.give(None)
    (warning,) = caught
    text = f"TRPO: this is wrong (1 of 1): do something else. See {finding.page}. (This is said once.)"
    assert str(warning.message) == text


def test_rules_are_asked_every_few_updates() -> None:
    assert warned(Advice(), record(SETTINGS, 1.0, INTERVAL - 1, obs_std_max=9.0)) == []
    assert len(warned(Advice(), record(SETTINGS, 1.0, max(INTERVAL, FEWEST), obs_std_max=9.0))) == 1


def test_a_live_log_has_gaps_where_a_row_lacks_a_number() -> None:
    log = LiveLog()
    log.append({"a/b": 1.0})
    log.append({"a/c": 2.0})
    log.append({"a/b": 3.0, "a/c": 4.0})
    np.testing.assert_equal(log["a/b"], [1.0, math.nan, 3.0])
    np.testing.assert_equal(log["a/c"], [math.nan, 2.0, 4.0])
    assert set(log) == {"a/b", "a/c"}
    assert len(log) == 2
    assert "a/d" not in log


def test_a_live_log_takes_eight_bytes_for_a_number() -> None:
    log = LiveLog()
    for _ in range(1000):
        log.append(HEALTHY)
    taken = sum(column.buffer_info()[1] * column.itemsize for column in log._columns.values())
    assert taken == 8 * 1000 * len(HEALTHY)


def test_conjugate_gradient_that_has_hardly_begun() -> None:
    pytest.importorskip("Box2D", reason="needs sb3-trpo[box2d]")
    model = pendulum(env="LunarLander-v3", preconditioner=None, cg_max_steps=1, cg_damping=0.0)
    with pytest.warns(UserWarning, match="raise cg_max_steps or cg_damping") as caught:
        update(model, 2 * FEWEST)
    assert len([w for w in caught if "conjugate gradient" in str(w.message)]) == 1


def test_a_line_search_that_keeps_failing() -> None:
    model = pendulum(line_search_max_iter=1)
    model._scale_to_trust_region = lambda fisher, solution: 100.0 * solution.x
    with pytest.warns(UserWarning, match=r"fails for KL.*lower target_kl, or raise line_search_max_iter") as caught:
        update(model, 2 * FEWEST)
    assert len(caught) == 1


def test_a_critic_that_has_diverged() -> None:
    # Returns that hardly depend on the values.
    model = pendulum(learning_rate=0.0, gae_lambda=1.0, gamma=0.5)
    with th.no_grad():
        model.policy.value_net.bias.add_(1.0).mul_(1e4)
    with pytest.warns(UserWarning, match=r"lower learning_rate .*max_grad_norm.*VecNormalize") as caught:
        update(model, 2 * FEWEST + 1)
    assert len([w for w in caught if "critic diverges" in str(w.message)]) == 1


def test_a_batch_that_is_small_for_the_action_space() -> None:
    env = SpacesEnv(VECTOR, spaces.Box(-1, 1, (17,)))
    with pytest.warns(UserWarning, match=r"n_steps \* n_envs = 128 .* 17 dimensions.*at least 544"):
        TRPO("MlpPolicy", env, n_steps=128)


def test_an_ordinary_run_warns_of_nothing() -> None:
    env = make_vec_env("Pendulum-v1", n_envs=4, seed=0)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        model = TRPO("MlpPolicy", env, n_steps=128, seed=0, device="cpu", gamma=0.9).learn(20 * 512)
    assert model._advice.log.n_rows == 20


def update(model: Any, n_updates: int) -> None:
    """
    Update a model several times.

    :param model: with a rollout
    :param n_updates: each with a rollout of its own
    """
    for _ in range(n_updates):
        model.train()
        collect(model)
