"""
KL against torch's, and the metric against KL's second derivative.
"""

import math

import pytest
import torch as th
from hypothesis import given, settings
from hypothesis import strategies as st
from sample_policies import POLICIES, distribution_of, make_observations
from torch.distributions import Bernoulli, Categorical, Normal, kl_divergence

from sb3_trpo.trust_region.families import family_and_z
from sb3_trpo.trust_region.kl import (
    BernoulliFamily,
    CategoricalFamily,
    DistributionFamily,
    DistributionParameters,
    GaussianFamily,
)

N_STATES = 4
SIZES = [3, 2]
FAMILIES = {"Gaussian": GaussianFamily(), "categorical": CategoricalFamily(SIZES), "Bernoulli": BernoulliFamily()}


def draw(
    family: DistributionFamily, seed: int, spread: float = 1.0, dtype: th.dtype = th.float64
) -> DistributionParameters:
    """
    Draw random parameters of distributions.

    :param family: of distributions
    :param seed: of the parameters
    :param spread: how far they lie from each other
    :param dtype: of the parameters
    :return: z of N states
    """
    generator = th.Generator().manual_seed(seed)
    z = spread * th.randn(N_STATES, sum(SIZES), generator=generator, dtype=th.float64)
    if isinstance(family, GaussianFamily):
        log_std = spread * th.randn(N_STATES, sum(SIZES), generator=generator, dtype=th.float64)
        return z.to(dtype), log_std.exp().to(dtype)
    return (z.to(dtype),)


def torchs_kl(family: DistributionFamily, old: DistributionParameters, new: DistributionParameters) -> th.Tensor:
    """
    Compute KL as torch does.

    :param family: of distributions
    :param old: z_old
    :param new: z_new
    :return: KL by torch, (N,)
    """
    if isinstance(family, GaussianFamily):
        return kl_divergence(Normal(*old), Normal(*new)).sum(dim=1)
    if isinstance(family, BernoulliFamily):
        return kl_divergence(Bernoulli(logits=old[0]), Bernoulli(logits=new[0])).sum(dim=1)
    pairs = zip(old[0].split(SIZES, dim=1), new[0].split(SIZES, dim=1), strict=True)
    return sum(kl_divergence(Categorical(logits=p), Categorical(logits=q)) for p, q in pairs)


@pytest.fixture(params=list(FAMILIES))
def family(request: pytest.FixtureRequest) -> DistributionFamily:
    return FAMILIES[request.param]


@settings(deadline=None, max_examples=30)
@given(
    name=st.sampled_from(list(FAMILIES)),
    seeds=st.tuples(st.integers(0, 1000), st.integers(0, 1000)),
    spread=st.floats(0.0, 3.0),
)
def test_equals_torchs_summed_over_dimensions(name, seeds, spread) -> None:
    family = FAMILIES[name]
    old, new = draw(family, seeds[0], spread), draw(family, seeds[1], spread)
    kl = family.kl_divergence(old, new)
    assert kl.shape == (N_STATES,)
    th.testing.assert_close(kl, torchs_kl(family, old, new), rtol=1e-9, atol=1e-12)


@settings(deadline=None, max_examples=30)
@given(
    name=st.sampled_from(list(FAMILIES)),
    seed=st.integers(0, 1000),
    spread=st.floats(0.0, 300.0),
    change=st.floats(0.0, 1e-3),
)
def test_never_negative_in_single_precision(name, seed, spread, change) -> None:
    family = FAMILIES[name]
    # σ = e^±50 and logits of ±300 are far beyond what float32 resolves.
    old = draw(family, seed, min(spread, 20.0) if name == "Gaussian" else spread, th.float32)
    new = tuple(z * (1.0 + change) for z in old)
    assert (family.kl_divergence(old, new) >= 0.0).all()


def test_never_negative_next_to_the_same_parameters(family) -> None:
    """A few units in the last place away, KL itself is less than the rounding errors of its terms."""
    for seed in range(20):
        old = new = draw(family, seed, 3.0, th.float32)
        for _ in range(4):
            new = tuple(z.nextafter(th.tensor(math.inf)) for z in new)
            assert (family.kl_divergence(old, new) >= 0.0).all()
            assert (family.kl_divergence(new, old) >= 0.0).all()


def test_zero_at_the_same_parameters(family) -> None:
    for dtype in (th.float32, th.float64):
        z = draw(family, 0, 3.0, dtype)
        assert (family.kl_divergence(z, z) == 0.0).all()


def test_independent_of_a_shift_of_logits() -> None:
    family = FAMILIES["categorical"]
    old, new = draw(family, 0), draw(family, 1)
    shifted = (new[0] + th.tensor([5.0, 5.0, 5.0, -7.0, -7.0]),)
    th.testing.assert_close(family.kl_divergence(old, shifted), family.kl_divergence(old, new))


def test_a_small_change_of_a_gaussian_keeps_its_digits() -> None:
    """KL of σ to σ(1 + ε) is ε² - O(ε³): as a difference of terms near ½, float32 would give 0 or noise."""
    family, epsilon = FAMILIES["Gaussian"], 2.0**-10
    std = th.full((1, 1), 0.3)
    kl = family.kl_divergence((th.zeros(1, 1), std), (th.zeros(1, 1), std * (1.0 + epsilon)))
    assert float(kl) == pytest.approx(math.log1p(epsilon) + 0.5 * ((1.0 + epsilon) ** -2 - 1.0), rel=1e-3)


@pytest.mark.parametrize(
    ("old", "new"),
    [
        ((0.0, 1e-30), (0.0, 1e-30)),
        ((0.0, 1e-30), (1.0, 1e-30)),
        ((0.0, 1.0), (0.0, 1e-30)),
        ((0.0, 1.0), (1.0, 0.0)),
        ((0.0, 1.0), (0.0, 1e30)),
        ((0.0, 1e-30), (0.0, 1e30)),
        ((0.0, 1e30), (1.0, 1e-30)),
        ((0.0, 1.0), (1e30, 1.0)),
    ],
)
def test_extreme_gaussians(old, new) -> None:
    z_old, z_new = (tuple(th.full((1, 1), value) for value in z) for z in (old, new))
    kl = float(FAMILIES["Gaussian"].kl_divergence(z_old, z_new))
    assert kl == 0.0 if old == new else kl > 0.0


@pytest.mark.parametrize("large", [50.0, 200.0, 1e4, 1e30])
def test_extreme_logits(large) -> None:
    """Probabilities that underflow to 0."""
    certain, opposite = th.tensor([[large, -large]]), th.tensor([[-large, large]])
    for family in (CategoricalFamily([2]), BernoulliFamily()):
        for old in (certain, opposite):
            assert family.kl_divergence((old,), (old,)) == 0.0
            kl = float(family.kl_divergence((old,), (-old,)))
            assert kl == pytest.approx(2.0 * large, rel=1e-5)


def test_an_impossible_action_adds_nothing() -> None:
    """Masked logits, as sb3-contrib's MaskablePPO sets them, and -inf."""
    for masked in (-1e8, -math.inf):
        old, new = th.tensor([[0.0, 1.0, masked]]), th.tensor([[0.5, 0.0, masked]])
        family = CategoricalFamily([3])
        expected = CategoricalFamily([2]).kl_divergence((old[:, :2],), (new[:, :2],))
        th.testing.assert_close(family.kl_divergence((old,), (new,)), expected)
        unmasked = family.kl_divergence((th.zeros(1, 3),), (new,))
        assert not unmasked.isnan().any()
        assert unmasked > 1e6


def matrices(family: DistributionFamily, z: DistributionParameters, function) -> th.Tensor:
    """
    Write a linear map of tangents as a matrix for each state.

    :param family: of distributions
    :param z: parameters of N states
    :param function: a linear map of tangents, as ``metric``
    :return: its matrix for each state, (N, K, K)
    """
    size, width = sum(part.shape[1] for part in z), z[0].shape[1]
    columns = []
    for unit in th.eye(size, dtype=z[0].dtype):
        u = tuple(part.expand(N_STATES, -1) for part in unit.split(width))
        columns.append(th.cat(function(z, u), dim=1))
    return th.stack(columns, dim=2)


def test_metric_is_the_second_derivative_of_kl(family) -> None:
    z = draw(family, 0)
    metric = matrices(family, z, family.metric)
    for i in range(N_STATES):
        z_i = tuple(part[i : i + 1] for part in z)

        def kl_of(flat: th.Tensor, z_i: DistributionParameters = z_i) -> th.Tensor:
            new = tuple(part.unsqueeze(0) for part in flat.split(z_i[0].shape[1]))
            return torchs_kl(family, z_i, new).sum()

        hessian = th.autograd.functional.hessian(kl_of, th.cat(z_i, dim=1)[0])
        th.testing.assert_close(metric[i], hessian, rtol=1e-9, atol=1e-12)


def test_metric_is_symmetric_and_positive_semidefinite(family) -> None:
    metric = matrices(family, z := draw(family, 0, 2.0), family.metric)
    assert metric.shape[0] == len(z[0])
    th.testing.assert_close(metric, metric.transpose(1, 2), rtol=0, atol=1e-15)
    assert th.linalg.eigvalsh(metric).min() > -1e-12


def test_kl_is_half_the_metrics_quadratic_form_to_second_order(family) -> None:
    z, u = draw(family, 0), draw(family, 1)
    quadratic = 0.5 * sum((a * b).sum(dim=1) for a, b in zip(family.metric(z, u), u, strict=True))
    errors = []
    for step in (1e-2, 1e-3):
        kl = family.kl_divergence(z, tuple(a + step * b for a, b in zip(z, u, strict=True)))
        errors.append(float((kl / step**2 - quadratic).abs().max()))
    # The next term is of third order.
    assert errors[1] < 0.2 * errors[0]
    assert errors[1] < 0.1 * float(quadratic.max())


def test_a_small_change_in_single_precision_keeps_its_digits(family) -> None:
    """A KL of 1e-8 to 1e-10 is the difference of terms near 1."""
    z = draw(family, 0, dtype=th.float32)
    u = draw(family, 1)
    for step in (1e-4, 1e-5):
        new = tuple((a + step * b).float() for a, b in zip(z, u, strict=True))
        difference = tuple(b.double() - a.double() for a, b in zip(z, new, strict=True))
        metric = family.metric(tuple(a.double() for a in z), difference)
        quadratic = 0.5 * sum((a * b).sum(dim=1) for a, b in zip(metric, difference, strict=True))
        th.testing.assert_close(family.kl_divergence(z, new), quadratic, rtol=1e-2, atol=0.0)


def test_metric_root(family) -> None:
    z = draw(family, 0)
    root = matrices(family, z, family.metric_root)
    th.testing.assert_close(root @ root.transpose(1, 2), matrices(family, z, family.metric), rtol=1e-12, atol=1e-14)


def test_metric_of_extreme_parameters_is_finite() -> None:
    for family in (CategoricalFamily([2]), BernoulliFamily()):
        z, u = (th.tensor([[1e4, -1e4]]),), (th.ones(1, 2),)
        assert family.metric(z, u)[0].abs().max() < 1e-6
        assert family.metric_root(z, u)[0].abs().max() < 1e-6
    # σ² = 1e-50 is 0 in float32, but a change of σ by a small share of itself is as harmless as ever.
    std = th.full((1, 1), 1e-25)
    for function, expected in (
        (FAMILIES["Gaussian"].metric, 2.0 * 1e23),
        (FAMILIES["Gaussian"].metric_root, 2.0**0.5 * 0.01),
    ):
        on_mean, on_std = function((th.zeros(1, 1), std), (th.zeros(1, 1), 0.01 * std))
        assert on_mean == 0.0
        assert float(on_std) == pytest.approx(expected, rel=1e-4)


@pytest.mark.parametrize("name", list(POLICIES))
def test_every_policy_has_a_family(name) -> None:
    policy = POLICIES[name]()
    distribution = distribution_of(policy, make_observations(policy, N_STATES))
    family, z = family_and_z(distribution)
    assert all(len(part) == N_STATES and part.requires_grad for part in z)
    assert (family.kl_divergence(z, z) == 0.0).all()
