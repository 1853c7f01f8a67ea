"""
The surrogate and its gradient against the formulas of the paper, written down with torch's distributions.
"""

import math

import pytest
import torch as th
from sample_policies import POLICIES, distribution_of, explicit_fisher, linearize, make_observations
from stable_baselines3.common.distributions import Distribution, StateDependentNoiseDistribution
from stable_baselines3.common.policies import ActorCriticPolicy

from sb3_trpo.trust_region.families import family_and_z
from sb3_trpo.trust_region.linearization import Linearizations
from sb3_trpo.trust_region.shared_switches import skip_distribution_checks
from sb3_trpo.trust_region.surrogate import PolicyBatch, Surrogate

N_STATES = 12


class Problem:
    """
    A surrogate to be differentiated.

    :param name: of a policy
    :param ent_coef: c
    :param chunk_size: states of a batch
    :param dtype: of the policy's parameters
    """

    def __init__(
        self, name: str, ent_coef: float = 0.0, chunk_size: int = N_STATES, dtype: th.dtype = th.float64
    ) -> None:
        self.policy: ActorCriticPolicy = POLICIES[name]().to(dtype)
        self.ent_coef = ent_coef
        self.obs = make_observations(self.policy, N_STATES)
        with th.random.fork_rng():
            th.manual_seed(0)
            if isinstance(self.policy.action_dist, StateDependentNoiseDistribution):
                self.policy.action_dist.sample_weights(self.policy.log_std, N_STATES)
            self.actions = distribution_of(self.policy, self.obs).sample().detach()
        self.advantages = th.linspace(-1.0, 2.0, N_STATES, dtype=dtype)
        parts = (tensor.split(chunk_size) for tensor in (self.obs, self.actions, self.advantages))
        self.batches = list(map(PolicyBatch, *parts))
        self.linearizations = Linearizations(
            lambda chunk: linearize(self.policy, chunk), [batch.samples for batch in self.batches]
        )
        self.surrogate = Surrogate(self.distribution, self.batches, self.linearizations, ent_coef)
        self.gradient = self.surrogate.gradient
        self.parameters = self.linearizations.first().parameters
        self.old_log_prob = self.distribution().log_prob(self.actions).detach()

    def distribution(self, obs: th.Tensor | None = None) -> Distribution:
        return distribution_of(self.policy, self.obs if obs is None else obs)

    def textbook(self) -> th.Tensor:
        """Return L(θ), differentiable."""
        distribution = self.distribution()
        log_prob = distribution.log_prob(self.actions)
        ratio = th.exp(log_prob - self.old_log_prob)
        entropy = distribution.entropy()
        # Where there is no closed form: E_π[-ln π] = E_π_old[-π/π_old ln π].
        entropy = -ratio * log_prob if entropy is None else entropy
        return (ratio * self.advantages).mean() + self.ent_coef * entropy.mean()

    def move(self, size: float) -> th.Tensor:
        """
        Take a random step.

        :param size: of the step
        :return: the step that was taken
        """
        theta = self.parameters.vector()
        step = size * th.randn(len(theta), generator=th.Generator().manual_seed(3), dtype=th.float64)
        self.parameters.write_(theta + step)
        return step


@pytest.mark.parametrize("name", list(POLICIES))
@pytest.mark.parametrize("ent_coef", [0.0, 0.3])
def test_gradient_is_that_of_the_textbook(name, ent_coef) -> None:
    problem = Problem(name, ent_coef)
    gradients = th.autograd.grad(problem.textbook(), problem.parameters.tensors, allow_unused=True)
    expected = problem.parameters.flatten_gradients(gradients)
    assert expected.norm() > 1e-3
    th.testing.assert_close(problem.gradient, expected, rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize("name", list(POLICIES))
@pytest.mark.parametrize("chunk_size", [N_STATES, 5])
@pytest.mark.parametrize("dtype", [th.float32, th.float64])
def test_nothing_has_changed_at_the_old_parameters(name, chunk_size, dtype) -> None:
    """Not even by rounding, or an empty step might count as an improvement."""
    problem = Problem(name, 0.3, chunk_size, dtype)
    assert problem.surrogate.evaluate() == (0.0, 0.0)


@pytest.mark.parametrize("name", list(POLICIES))
def test_after_a_step_kl_and_improvement_are_those_of_the_textbook(name) -> None:
    problem = Problem(name, ent_coef=0.3)
    before, z_old = float(problem.textbook().detach()), problem.linearizations.first().z
    assert problem.surrogate.objective == pytest.approx(before)
    problem.move(0.1)
    kl, improvement = problem.surrogate.evaluate()
    distribution = problem.distribution()
    family, z_new = family_and_z(distribution)
    assert kl == pytest.approx(float(family.kl_divergence(z_old, z_new).mean().detach()), rel=1e-12)
    # From old to new, not the other way round.
    assert kl != pytest.approx(float(family.kl_divergence(z_new, z_old).mean().detach()), rel=1e-3)
    assert improvement == pytest.approx(float(problem.textbook().detach()) - before, rel=1e-8)


@pytest.mark.parametrize("name", list(POLICIES))
@pytest.mark.parametrize("chunk_size", [1, 5])
def test_chunks_make_no_difference(name, chunk_size) -> None:
    whole, chunked = Problem(name, 0.3), Problem(name, 0.3, chunk_size)
    th.testing.assert_close(chunked.gradient, whole.gradient, rtol=1e-10, atol=1e-12)
    assert chunked.surrogate.objective == pytest.approx(whole.surrogate.objective)
    assert chunked.surrogate.entropy == pytest.approx(whole.surrogate.entropy)
    for problem in (whole, chunked):
        problem.move(0.1)
    assert chunked.surrogate.evaluate() == pytest.approx(whole.surrogate.evaluate(), rel=1e-9)


@pytest.mark.parametrize(
    "name", ["DiagGaussian", "gSDE, learned features", "Categorical", "MultiCategorical", "Bernoulli"]
)
def test_expansion_at_the_old_parameters(name) -> None:
    """
    Improvement is g · step to first order, KL is ½ step · F step to second.

    Not so for gSDE as SB3 has it by default: there σ follows the features, but its gradient with respect to them is
    cut off.
    """
    problem = Problem(name)
    fisher = explicit_fisher(problem.policy, problem.obs, problem.parameters.tensors)
    step = problem.move(1e-4)
    kl, improvement = problem.surrogate.evaluate()
    assert improvement == pytest.approx(float(problem.gradient.dot(step)), rel=1e-2)
    assert kl == pytest.approx(float(0.5 * step.dot(fisher @ step)), rel=1e-2)


def test_entropy_is_the_mean_over_states() -> None:
    problem = Problem("Categorical", ent_coef=0.3)
    assert problem.surrogate.entropy == pytest.approx(float(problem.distribution().entropy().mean().detach()))
    assert problem.surrogate.objective == pytest.approx(
        float(problem.advantages.mean()) + 0.3 * problem.surrogate.entropy
    )


def test_entropy_bonus_alone_raises_entropy() -> None:
    problem = Problem("DiagGaussian", ent_coef=1.0)
    problem.advantages.zero_()
    gradient = Surrogate(problem.distribution, problem.batches, problem.linearizations, 1.0).gradient
    pieces = dict(zip(problem.parameters, problem.parameters.split(gradient), strict=True))
    # d/dlogσ of a Gaussian's entropy is 1.
    th.testing.assert_close(pieces[problem.policy.log_std], th.ones(2, dtype=th.float64))
    assert all((piece == 0).all() for p, piece in pieces.items() if p is not problem.policy.log_std)


@pytest.mark.parametrize("bad", [math.nan, math.inf])
def test_parameters_that_are_not_finite_are_told_not_raised(bad) -> None:
    problem = Problem("DiagGaussian")
    problem.parameters.write_(th.full((len(problem.parameters),), bad, dtype=th.float64))
    with skip_distribution_checks():
        kl, improvement = problem.surrogate.evaluate()
    assert not math.isfinite(kl)
    assert not math.isfinite(improvement)


def test_leaves_no_graph_behind() -> None:
    problem = Problem("DiagGaussian", chunk_size=5)
    assert not problem.gradient.requires_grad
    assert all(parameter.grad is None for parameter in problem.policy.parameters())
