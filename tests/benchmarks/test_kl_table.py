"""
The KL table: its measure against a second formula, its text against known numbers.
"""

import json

import numpy as np
import pytest
import torch as th
from campaign.readme import KL_TABLE
from gymnasium import spaces
from kl_table import PAGE, RESULTS, kl_table, mean_kl
from stable_baselines3.common.policies import ActorCriticPolicy

OBSERVATIONS = spaces.Box(-np.inf, np.inf, (4,))


def make_policy(action_space: spaces.Space, log_std: float = 0.0) -> ActorCriticPolicy:
    return ActorCriticPolicy(OBSERVATIONS, action_space, lambda _: 1e-3, net_arch=[], log_std_init=log_std)


@pytest.mark.parametrize("n_actions", [1, 3, 17])
def test_kl_is_summed_over_action_dimensions(n_actions):
    actions = spaces.Box(-1, 1, (n_actions,))
    old, new = make_policy(actions, 0.0), make_policy(actions, 0.5)
    new.action_net.load_state_dict(old.action_net.state_dict())
    states = np.random.default_rng(0).normal(size=(100, 4)).astype(np.float32)
    # ln(σ_new/σ_old) + σ_old²/(2 σ_new²) − ½ for each dimension, in this order of old and new.
    assert mean_kl(old, new, states) == pytest.approx(n_actions * (0.5 + np.exp(-1.0) / 2 - 0.5), rel=1e-5)


def test_kl_is_averaged_over_states():
    actions = spaces.Box(-1, 1, (2,))
    old, new = make_policy(actions), make_policy(actions)
    with th.no_grad():
        for parameter in new.action_net.parameters():
            parameter.add_(0.1)
    states = np.random.default_rng(0).normal(size=(100, 4)).astype(np.float32)
    each = [mean_kl(old, new, state[np.newaxis]) for state in states]
    assert mean_kl(old, new, states) == pytest.approx(np.mean(each), rel=1e-5)
    assert np.std(each) > 0


def test_table_shows_mean_and_largest():
    text = kl_table({"Hopper-v5": {"sb3-contrib": [0.02, 0.04], "sb3_trpo": [0.008, 0.01]}}, {"Hopper-v5": 3})
    assert text.splitlines()[-1] == "| Hopper-v5 | 3 | 0.0300 | 0.0400 | 0.0090 | 0.0100 |"


def test_section_is_replaced_and_nothing_else():
    text = f"before\n{KL_TABLE.start}\nold\n{KL_TABLE.end}\nafter\n"
    assert KL_TABLE.replaced(text, "new") == f"before\n{KL_TABLE.start}\nnew\n{KL_TABLE.end}\nafter\n"
    assert KL_TABLE.replaced(KL_TABLE.replaced(text, "new"), "old") == text


def test_text_without_a_section_is_refused():
    with pytest.raises(ValueError, match="no section"):
        KL_TABLE.replaced(f"{KL_TABLE.end}\n{KL_TABLE.start}\n", "new")


def test_the_page_shows_what_was_measured():
    result = json.loads(RESULTS.read_text())
    page = PAGE.read_text()
    assert KL_TABLE.replaced(page, kl_table(result["kl"], result["action_dimensions"])) == page


def test_measured_trust_region_holds():
    result = json.loads(RESULTS.read_text())
    for by_algorithm in result["kl"].values():
        assert len(by_algorithm["sb3_trpo"]) > 0.9 * result["seeds"] * result["updates"]
        assert max(by_algorithm["sb3_trpo"]) <= result["target_kl"] * (1 + 1e-4)
