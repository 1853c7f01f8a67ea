"""
The log-probability of actions that are clipped: what it is, what its gradient is worth, and when it is asked for.
"""

from typing import Any

import numpy as np
import pytest
import torch as th
from gymnasium import spaces
from sample_policies import make_policy
from scipy import stats
from small_models import SpacesEnv
from stable_baselines3.common.distributions import DiagGaussianDistribution
from updates import changed, pendulum, state

from sb3_trpo import TRPO
from sb3_trpo.update.clipped_actions import log_prob_of_executed

LOW, HIGH = np.array([-1.0, -0.5], dtype=np.float32), np.array([1.0, 2.0], dtype=np.float32)
BOUNDED = spaces.Box(LOW, HIGH)
MEAN = th.tensor([0.3, 1.8], dtype=th.float64)
STD = th.tensor([0.7, 0.4], dtype=th.float64)


def gaussian(mean: th.Tensor, log_std: th.Tensor, n: int) -> DiagGaussianDistribution:
    return DiagGaussianDistribution(len(mean)).proba_distribution(mean.expand(n, -1), log_std)


def executed(actions: th.Tensor, mean: th.Tensor = MEAN, log_std: th.Tensor | None = None) -> th.Tensor:
    """
    Compute the log-probability of clipped actions.

    :return: ``log_prob_of_executed``, with bounds LOW and HIGH
    """
    log_std = STD.log() if log_std is None else log_std
    return log_prob_of_executed(make_policy(BOUNDED))(gaussian(mean, log_std, len(actions)), actions)


def test_within_the_bounds_it_is_the_density() -> None:
    actions = th.tensor([[0.0, 0.0], [0.99, 1.99], [-0.99, -0.49]], dtype=th.float64)
    expected = gaussian(MEAN, STD.log(), 3).log_prob(actions)
    th.testing.assert_close(executed(actions), expected, rtol=0, atol=0)


def test_beyond_a_bound_it_is_the_probability_of_all_that_is_clipped_to_it() -> None:
    actions = th.tensor([[1.0, 0.0], [7.0, 0.0], [-3.0, 0.0], [5.0, 5.0], [-5.0, -5.0]], dtype=th.float64)
    normals = [stats.norm(mean, std) for mean, std in zip(MEAN.tolist(), STD.tolist(), strict=True)]
    above = [normal.logsf(high) for normal, high in zip(normals, HIGH, strict=True)]
    below = [normal.logcdf(low) for normal, low in zip(normals, LOW, strict=True)]
    second = normals[1].logpdf(0.0)
    expected = [above[0] + second, above[0] + second, below[0] + second, sum(above), sum(below)]
    np.testing.assert_allclose(executed(actions).numpy(), expected, rtol=1e-10)


def test_single_precision_is_enough() -> None:
    deviations = th.linspace(-6.0, 6.0, 500)
    # One sub-action within the bounds, the other beyond its upper one by this many standard deviations of its mean.
    means = th.stack([th.zeros(500), 2.0 + 0.5 * deviations], dim=1)
    actions = th.tensor([[0.0, 3.0]]).expand(500, -1)
    found = {}
    for dtype in (th.float32, th.float64):
        mean = means.to(dtype).requires_grad_()
        distribution = DiagGaussianDistribution(2).proba_distribution(mean, th.full((2,), 0.5, dtype=dtype).log())
        value = log_prob_of_executed(make_policy(BOUNDED))(distribution, actions.to(dtype))
        found[dtype] = (value.detach(), th.autograd.grad(value.sum(), mean)[0])
    for single, double in zip(found[th.float32], found[th.float64], strict=True):
        th.testing.assert_close(single.double(), double, rtol=2e-5, atol=2e-6)


@pytest.mark.parametrize("dtype", [th.float32, th.float64])
@pytest.mark.parametrize("deviations", [-1e6, -100.0, -13.0, 13.0, 1e6])
def test_far_away_all_is_finite(deviations, dtype) -> None:
    for bound, sign in ((HIGH, 1.0), (LOW, -1.0)):
        mean = (th.tensor(bound, dtype=dtype) + sign * deviations * 0.1).requires_grad_()
        log_std = th.full((2,), 0.1, dtype=dtype).log().requires_grad_()
        value = executed(th.tensor(bound + sign, dtype=dtype).unsqueeze(0), mean, log_std)
        gradients = th.autograd.grad(value.sum(), [mean, log_std])
        assert all(bool(x.isfinite().all()) for x in (value, *gradients))


@pytest.mark.parametrize("bound", [1e30, np.finfo(np.float32).max, np.inf])
def test_bounds_that_nothing_reaches_change_no_gradient(bound) -> None:
    policy = make_policy(spaces.Box(-bound, bound, (2,)), dtype=th.float32)
    mean, log_std = th.zeros(2, requires_grad=True), th.full((2,), -3.0, requires_grad=True)
    distribution = DiagGaussianDistribution(2).proba_distribution(mean.expand(1, -1), log_std)
    actions = th.tensor([[0.1, -0.1]])
    found, expected = (
        th.autograd.grad(log_prob.sum(), [mean, log_std], retain_graph=True)
        for log_prob in (log_prob_of_executed(policy)(distribution, actions), distribution.log_prob(actions))
    )
    for x, y in zip(found, expected, strict=True):
        th.testing.assert_close(x, y, rtol=0, atol=0)


def estimates(of_sampled: bool) -> th.Tensor:
    """
    Estimate a gradient by single samples.

    :return: single-sample estimates of the gradient of E[f(clipped action)] in mean and log σ, for a function f, (N, 4)
    """
    n = 200_000
    generator = th.Generator().manual_seed(0)
    actions = MEAN + STD * th.randn(n, 2, generator=generator, dtype=th.float64)
    clipped = actions.clamp(th.tensor(LOW), th.tensor(HIGH))
    reward = clipped[:, 0] - 2.0 * clipped[:, 1] ** 2 + clipped.prod(dim=1)
    # Each sample has parameters of its own, so that one backward pass gives each its gradient.
    mean, log_std = MEAN.repeat(n, 1).requires_grad_(), STD.log().repeat(n, 1).requires_grad_()
    distribution = DiagGaussianDistribution(2).proba_distribution(mean, log_std)
    log_prob = (distribution.log_prob if of_sampled else _executed_by(distribution))(actions)
    gradients = th.autograd.grad((log_prob * (reward - reward.mean())).sum(), [mean, log_std])
    return th.cat(gradients, dim=1)


def _executed_by(distribution: DiagGaussianDistribution) -> Any:
    return lambda actions: log_prob_of_executed(make_policy(BOUNDED))(distribution, actions)


def test_the_gradient_has_the_same_mean_and_less_variance() -> None:
    of_sampled, of_executed = estimates(of_sampled=True), estimates(of_sampled=False)
    difference = of_sampled - of_executed
    standard_error = difference.std(dim=0) / len(difference) ** 0.5
    assert bool((difference.mean(dim=0).abs() < 4 * standard_error).all())
    # A third of the second sub-action is clipped, of the first a fifth. It is log σ that gains the most.
    share = of_executed.var(dim=0) / of_sampled.var(dim=0)
    assert bool((share[:2] < 0.98).all())
    assert bool((share[2:] < 0.85).all())


class Clipped(TRPO):
    """Writes actions beyond a bound a given number of times as far beyond it into the rollout."""

    factor = 1.0

    def train(self) -> None:
        actions, space = self.rollout_buffer.actions, self.action_space
        inside = np.clip(actions, space.low.flatten(), space.high.flatten())  # type: ignore[attr-defined]
        assert 0.1 < np.mean(actions != inside) < 0.9
        actions[:] = inside + self.factor * (actions - inside)
        super().train()


@pytest.mark.parametrize("use_sde", [False, True], ids=["independent", "gSDE"])
def test_how_far_beyond_a_bound_an_action_was_makes_no_difference(use_sde) -> None:
    after = []
    for factor in (1.0, 3.0):
        model = pendulum(Clipped, policy_kwargs={"net_arch": [16], "log_std_init": 1.0}, use_sde=use_sde)
        before = state(model)
        model.factor = factor
        model.train()
        assert changed(before, state(model))
        after.append(state(model))
    assert not changed(*after)


@pytest.mark.parametrize(
    ("space", "kwargs"),
    [
        (spaces.Box(-np.inf, np.inf, (2,)), {}),
        (BOUNDED, {"use_sde": True, "squash_output": True}),
        (spaces.Discrete(3), {}),
        (spaces.MultiBinary(2), {}),
    ],
    ids=["no bounds", "squashed", "Discrete", "MultiBinary"],
)
def test_what_is_not_clipped_has_its_own_log_probability(space, kwargs) -> None:
    policy = make_policy(space, dtype=th.float32, **kwargs)
    distribution = policy.get_distribution(th.randn(50, 3))
    actions = distribution.sample()
    found = log_prob_of_executed(policy)(distribution, actions)
    th.testing.assert_close(found, distribution.log_prob(actions), rtol=0, atol=0)


def test_a_distribution_of_ones_own_is_asked_itself() -> None:
    class Own(DiagGaussianDistribution):
        def log_prob(self, actions: th.Tensor) -> th.Tensor:
            return actions.sum(dim=1)

    distribution = Own(2).proba_distribution(MEAN.expand(1, -1), STD.log())
    actions = th.tensor([[5.0, 5.0]], dtype=th.float64)
    assert log_prob_of_executed(make_policy(BOUNDED))(distribution, actions).item() == 10.0


def test_sub_actions_of_any_shape_have_their_own_bounds() -> None:
    space = spaces.Box(np.array([[-0.1, -9.0], [-9.0, -9.0]]), np.array([[9.0, 0.1], [9.0, 9.0]]), dtype=np.float64)
    env = SpacesEnv(spaces.Box(-1.0, 1.0, (3,)), space)
    model = pendulum(Clipped, env=env)
    before = state(model)
    model.train()
    assert changed(before, state(model))
    distribution = model.policy.get_distribution(th.zeros(1, 3))
    # In the order of the flattened action: bounds at the first and the second.
    inside, beyond = th.zeros(1, 4), th.tensor([[-5.0, 5.0, 5.0, -5.0]])
    log_prob = log_prob_of_executed(model.policy)
    normal = distribution.distribution
    first, second = (stats.norm(normal.loc[0, i].item(), normal.scale[0, i].item()) for i in range(2))
    expected = first.logcdf(-0.1) + second.logsf(0.1) + normal.log_prob(beyond)[0, 2:].sum().item()
    th.testing.assert_close(log_prob(distribution, inside), normal.log_prob(inside).sum(dim=1))
    assert log_prob(distribution, beyond).item() == pytest.approx(expected, rel=1e-5)
