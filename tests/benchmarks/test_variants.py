"""
What TRPO is compared with: each variant changes one step of the update.
"""

from typing import Any

import pytest
import torch as th
from campaign.variants import FixedStep, FullStep, GradientDirection, PolicyGradient, SampledActions

from sb3_trpo import TRPO
from sb3_trpo.trust_region.conjugate_gradient import Solution
from sb3_trpo.trust_region.fisher import Fisher
from sb3_trpo.trust_region.flat import FlatParameters
from sb3_trpo.trust_region.line_search import LineSearchResult
from sb3_trpo.trust_region.surrogate import Surrogate

N_STEPS = 256


def trained(variant: type[TRPO], n_updates: int = 1, **settings: Any) -> Any:
    """
    Train a variant.

    :param variant: of TRPO
    :param n_updates: how many
    :param settings: hyperparameters
    :return: a model with what its last update did: ``g``, ``x``, ``full_step``, ``old``, ``new`` and ``result``
    """

    class Noted(variant):
        def _search_direction(self, fisher: Fisher, g: th.Tensor) -> Solution:
            solution = super()._search_direction(fisher, g)
            self.g, self.x = g.clone(), solution.x.clone()
            return solution

        def _line_search(
            self, surrogate: Surrogate, parameters: FlatParameters, full_step: th.Tensor
        ) -> LineSearchResult:
            self.old, self.full_step = parameters.vector(), full_step.clone()
            self.result = super()._line_search(surrogate, parameters, full_step)
            self.new = parameters.vector()
            return self.result

    settings = {"n_steps": N_STEPS, "n_critic_updates": 1, "seed": 1, "device": "cpu", **settings}
    return Noted("MlpPolicy", "Pendulum-v1", **settings).learn(n_updates * N_STEPS)


def test_without_the_natural_gradient_the_step_goes_along_the_gradient_to_the_same_kl():
    model = trained(GradientDirection)
    cosine = th.nn.functional.cosine_similarity(model.new - model.old, model.g, dim=0)
    assert float(cosine) == pytest.approx(1.0, abs=1e-4)
    assert 0.5 * model.target_kl < model.result.kl <= model.target_kl
    assert float(th.nn.functional.cosine_similarity(model.g, trained(TRPO).x, dim=0)) < 0.9


def test_without_a_line_search_the_whole_step_is_taken_even_beyond_the_trust_region():
    """KL of so long a step, with so little noise, is far from quadratic; the first update's is not."""
    settings = {"n_updates": 2, "target_kl": 1.0, "policy_kwargs": {"log_std_init": -2.0}}
    model, searched = trained(FullStep, **settings), trained(TRPO, **settings)
    assert th.equal(model.full_step, searched.full_step)
    assert th.equal(model.new, model.old + model.full_step)
    assert searched.result.kl <= searched.target_kl < 2.0 < model.result.kl


@pytest.mark.parametrize("variant", [FullStep, FixedStep, PolicyGradient])
def test_without_a_line_search_the_noise_still_keeps_to_its_bounds(variant):
    free, bounded = trained(variant, 5), trained(variant, 5, max_std=0.5)
    assert free.policy.log_std.min() > -0.1
    assert bounded.policy.log_std.max() < -0.12


def test_a_fixed_step_does_not_depend_on_the_trust_region():
    small, large = trained(FixedStep, target_kl=0.001), trained(FixedStep, target_kl=0.1)
    assert th.equal(small.full_step, large.full_step)
    assert th.equal(small.full_step, small.x * FixedStep.step_size)


def test_plain_policy_gradient_moves_each_parameter_by_adam_along_the_gradient():
    model = trained(PolicyGradient)
    moved = model.new - model.old
    steep = model.g.abs() > 1e-6
    assert steep.float().mean() > 0.5
    assert th.equal(moved[steep].sign(), model.g[steep].sign())
    assert moved[steep].abs().sub(PolicyGradient.step_size).abs().max() < 2e-5


@pytest.mark.parametrize(("log_std", "are_clipped"), [(-4.0, False), (2.0, True)])
def test_sampled_actions_count_otherwise_only_where_actions_are_clipped(log_std, are_clipped):
    settings = {"policy_kwargs": {"log_std_init": log_std}}
    ours, theirs = trained(TRPO, **settings), trained(SampledActions, **settings)
    assert th.equal(ours.old, theirs.old)
    assert th.allclose(ours.g, theirs.g, rtol=1e-4, atol=1e-6) is not are_clipped
