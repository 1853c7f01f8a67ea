"""
A lower bound on the noise: it holds, within the trust region, and moves nothing else.
"""

from typing import Any

import pytest
import torch as th
from stable_baselines3.common.utils import LinearSchedule
from updates import action_distributions, actor_state, changed, mean_kl, observations, pendulum, state

DELTA = 0.2


def loud_pendulum(**kwargs: Any) -> Any:
    """
    :return: a model for which σ = 1 is far too much: the closer to the mean an action was, the better
    """
    model = pendulum(target_kl=DELTA, **kwargs)
    with th.no_grad():
        (distribution,) = action_distributions(model.policy, th.as_tensor(model.rollout_buffer.observations[:, 0]))
    actions = th.as_tensor(model.rollout_buffer.actions[:, 0])
    model.rollout_buffer.advantages[:] = -(actions - distribution.mean).square().numpy()
    return model


@pytest.mark.parametrize("min_std", [0.95, LinearSchedule(0.95, 0.5, 1.0), 1.0, 2.0])
def test_std_stays_above_its_bound_within_the_trust_region(min_std: Any) -> None:
    free = loud_pendulum()
    free.train()
    assert free.policy.log_std.exp().item() < 0.9
    bounded = loud_pendulum(min_std=min_std)
    mean = {name: value for name, value in actor_state(bounded).items() if name != "log_std"}
    obs = observations(bounded)
    old = action_distributions(bounded.policy, obs)
    bounded.train()
    assert 0.0 < mean_kl(old, bounded.policy, obs) <= DELTA
    assert changed(mean, actor_state(bounded)) >= mean.keys() - {"log_std"}
    # A bound above what σ is does not lift it, which might lead out of the trust region.
    bound = min(min_std(1.0) if callable(min_std) else min_std, 1.0)
    assert bounded.policy.log_std.exp().item() == pytest.approx(bound)


def test_a_bound_that_is_not_reached_changes_nothing() -> None:
    states = []
    for min_std in (0.0, 0.1):
        model = pendulum(min_std=min_std)
        model.train()
        states.append(state(model))
    assert not changed(*states)
