"""
Faults of the numbers, put into every place that numbers come from. In each: no crash, nothing left that is not finite,
and either progress within the trust region or a clear word why there is none.
"""

import copy
import functools
import math
import warnings
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch as th
from combinations import each_once
from gymnasium import spaces
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from small_models import ACTION_SPACES, OBSERVATION_SPACES, SpacesEnv, policy_for
from stable_baselines3.common.vec_env import DummyVecEnv, VecNormalize
from torch import nn
from torch.distributions import Bernoulli, Categorical, Distribution, kl_divergence
from updates import action_distributions, changed, collect, log, observations, state, with_rollout

from sb3_trpo import TRPO
from sb3_trpo.update.transaction import NonFiniteError

pytestmark = pytest.mark.filterwarnings("ignore:TRPO. conjugate gradient goes without its preconditioner")

N_STEPS = 128
SETTINGS: dict[str, Any] = {"n_steps": N_STEPS, "batch_size": 64, "n_critic_updates": 2, "seed": 0, "device": "cpu"}
# KL is compared with what torch measures; both are rounded.
KL_TOLERANCE = 1.001
UNBOUNDED = spaces.Box(-np.inf, np.inf, (3,))
# The plain networks have code of their own.
NETWORKS = {"plain": nn.Tanh, "general": nn.GELU}
ACTIVATIONS = pytest.mark.parametrize("activation", NETWORKS.values(), ids=NETWORKS)


class FaultyEnv(SpacesEnv):
    """
    An environment whose numbers are changed on their way out.

    :param action_space: any
    :param reward: is done to rewards
    :param observation: is done to observations
    :param length: of episodes
    """

    def __init__(
        self,
        action_space: spaces.Space = ACTION_SPACES["Box"],
        reward: Callable[[float], float] = lambda x: x,
        observation: Callable[[np.ndarray], np.ndarray] = lambda x: x,
        length: int = 20,
    ) -> None:
        super().__init__(UNBOUNDED, action_space)
        self.reward, self.observation, self.length = reward, observation, length

    def reset(self, **kwargs: Any) -> Any:
        obs, info = super().reset(**kwargs)
        return self.observation(obs), info

    def step(self, action: Any) -> Any:
        obs, reward, _, _, info = super().step(action)
        return self.observation(obs), self.reward(reward), self._n_steps >= self.length, False, info


def model_of(env: Any, activation: type[nn.Module] = nn.Tanh, **kwargs: Any) -> TRPO:
    """Return a small model, after one update, with the next rollout."""
    policy_kwargs = {"net_arch": [8], "activation_fn": activation}
    model = with_rollout(TRPO("MlpPolicy", env, policy_kwargs=policy_kwargs, **{**SETTINGS, **kwargs}))
    model.train()
    collect(model)
    return model


@functools.cache
def _unspoiled(activation: type[nn.Module], actions: str, normalize_advantage: bool) -> TRPO:
    return model_of(FaultyEnv(ACTION_SPACES[actions]), activation, normalize_advantage=normalize_advantage)


def copy_of_a_model(
    activation: type[nn.Module] = nn.Tanh, actions: str = "Box", normalize_advantage: bool = True
) -> TRPO:
    """Return a copy of such a model, to be spoiled; the model itself is made once."""
    model = copy.deepcopy(_unspoiled(activation, actions, normalize_advantage))
    model.set_random_seed(0)
    return model


def kl(old: list[Distribution], new: list[Distribution]) -> float:
    """
    Torch's own KL divergence is infinite as soon as a probability is 0 or 1 but for rounding; this one has logits.

    :param old: as ``action_distributions`` gives them
    :param new: likewise
    :return: E[KL(old ‖ new)]
    """
    total: Any = 0.0
    for p, q in zip(map(as_choices, old), map(as_choices, new), strict=True):
        terms = (p.probs * (p.logits - q.logits)).sum(-1) if isinstance(p, Categorical) else kl_divergence(p, q)
        total = total + terms.flatten(1).sum(dim=1)
    return float(total.mean())


def as_choices(p: Any) -> Any:
    return Categorical(logits=th.stack([th.zeros_like(p.logits), p.logits], dim=-1)) if isinstance(p, Bernoulli) else p


def update(model: TRPO) -> str:
    """
    One update, checked from the outside.

    :param model: with a rollout
    :return: "accepted", or why not: "undone", "not accepted"
    """
    obs = observations(model)
    old, before, delta = action_distributions(model.policy, obs), state(model), model._max_kl()
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        model._advice.given.clear()
        model.train()
    after = state(model)
    assert all(bool(tensor.isfinite().all()) for tensor in after.values())
    measured = kl(old, action_distributions(model.policy, obs))
    logged = log(model)
    assert math.isfinite(logged["train/kl_divergence_loss"])
    if any("was undone" in str(warning.message) for warning in caught):
        assert not changed(before, after)
        return "undone"
    if logged["train/is_line_search_success"]:
        assert -1e-12 <= measured <= delta * KL_TOLERANCE + 1e-9
        return "accepted"
    assert measured == 0
    return "not accepted"


NAN, INF = math.nan, math.inf


def set_weight(name: str, value: float) -> Callable[[TRPO], None]:
    def spoil(model: TRPO) -> None:
        dict(model.policy.named_parameters())[name].data.view(-1)[0] = value

    return spoil


def set_moment(name: str, value: float) -> Callable[[TRPO], None]:
    def spoil(model: TRPO) -> None:
        next(iter(model.policy.optimizer.state.values()))[name].view(-1)[0] = value

    return spoil


WEIGHTS = ["mlp_extractor.policy_net.0.weight", "action_net.bias", "log_std", "mlp_extractor.value_net.0.weight"]
SPOILED_MODELS = {
    **{f"{name} = {value}": set_weight(name, value) for name in WEIGHTS for value in (NAN, INF, -INF)},
    **{f"{name} = {value}": set_moment(name, value) for name in ("exp_avg", "exp_avg_sq") for value in (NAN, INF)},
}


@pytest.mark.parametrize("spoil", SPOILED_MODELS.values(), ids=SPOILED_MODELS)
@ACTIVATIONS
def test_weights_that_are_not_finite_are_named_before_they_act(spoil, activation, tmp_path):
    model = copy_of_a_model(activation)
    good = state(model)
    spoil(model)
    spoiled = changed(good, state(model))
    with pytest.raises(NonFiniteError, match="is not finite before the rollout") as error:
        model.learn(N_STEPS, reset_num_timesteps=False)
    assert any(name.split(".")[-1] in str(error.value) or name.startswith("optimizer") for name in spoiled)
    assert changed(good, state(model)) == spoiled
    # The update itself does not crash either, and does no further harm.
    with pytest.warns(UserWarning, match=r"was undone.*not finite"):
        model.train()
    assert changed(good, state(model)) == spoiled
    model.save(tmp_path / "model")
    assert changed(good, state(TRPO.load(tmp_path / "model", device="cpu"))) == spoiled


SCALES = [1e-45, -1e-30, 1e-10, -1e10, 1e15, -1e15, 1e19, -1e25, 1e30, 1e38, -1e38]


@pytest.mark.filterwarnings("ignore:(overflow|invalid value) encountered:RuntimeWarning")
@pytest.mark.parametrize(("scale", "activation"), each_once(SCALES, NETWORKS))
def test_rewards_of_any_size(scale, activation):
    # The first update, which is made here on the way, may be undone.
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        model = model_of(FaultyEnv(reward=lambda x: float(np.float32(scale * x))), activation)
    result = update(model)
    if abs(scale) <= 1e15:
        # The critic's errors are squared, in float32.
        assert result == "accepted"


@pytest.mark.parametrize(
    ("reward", "length", "normalize_advantage"), each_once([0.0, 1.0, -1.0], [1, 2, 10**9], [True, False])
)
def test_rewards_and_episodes_that_are_all_the_same(reward, length, normalize_advantage):
    env = FaultyEnv(reward=lambda _: reward, length=length)
    assert update(model_of(env, normalize_advantage=normalize_advantage)) in ("accepted", "not accepted")


@pytest.mark.parametrize("value", [0.0, 1.0, 1e-30])
@pytest.mark.parametrize("normalize_advantage", [True, False])
def test_equal_advantages(value, normalize_advantage):
    model = copy_of_a_model(normalize_advantage=normalize_advantage)
    model.rollout_buffer.advantages[:] = value
    before = state(model)
    assert update(model) in ("accepted", "not accepted")
    if value == 0.0 or normalize_advantage:
        # Nothing to learn from.
        assert not {name for name in changed(before, state(model)) if "policy_net" in name}


@pytest.mark.parametrize("fault", [NAN, INF, -INF])
@pytest.mark.parametrize("array", ["advantages", "returns", "actions", "log_probs", "values"])
@ACTIVATIONS
def test_rollouts_that_are_not_finite(array, fault, activation):
    model = copy_of_a_model(activation)
    getattr(model.rollout_buffer, array)[3] = fault
    # The rollout's log-probabilities and values are not part of what is computed.
    expected = "accepted" if array in ("log_probs", "values") else "undone"
    assert update(model) == expected


@pytest.mark.parametrize("fault", [NAN, INF, -INF])
@ACTIVATIONS
def test_observations_that_are_not_finite_in_a_rollout(fault, activation):
    model = copy_of_a_model(activation)
    model.rollout_buffer.observations[3, 0, 1] = fault
    before = state(model)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        model.train()
    after = state(model)
    assert all(bool(tensor.isfinite().all()) for tensor in after.values())
    # An infinite observation saturates a tanh, and need do no harm.
    assert not math.isnan(fault) or not changed(before, after)


SOLVERS = {
    "damped": {},
    "not damped": {"cg_damping": 0.0},
    "plain": {"cg_damping": 0.0, "preconditioner": None},
}


@pytest.mark.parametrize(("value", "solver", "activation"), each_once([0.0, 1.0, -5.0, 1e4], SOLVERS, NETWORKS))
def test_constant_observations(value, solver, activation):
    """Of the Fisher matrix all but a few eigenvalues are zero."""
    env = FaultyEnv(observation=lambda x: np.full_like(x, value))
    model = model_of(env, activation, **solver)
    # Where the mean action is in the thousands, every action is clipped to the same bound: there is nothing to improve.
    is_out_of_reach = activation is nn.GELU and value == 1e4
    assert update(model) == ("not accepted" if is_out_of_reach else "accepted")


@pytest.mark.parametrize(("value", "reward"), each_once([0.0, -5.0], [0.0, 1.0, 1e30]))
def test_no_variance_at_all(value, reward):
    """VecNormalize divides by standard deviations that fall to zero."""
    env = DummyVecEnv([lambda: FaultyEnv(reward=lambda _: reward, observation=lambda x: np.full_like(x, value))])
    model = model_of(VecNormalize(env))
    assert update(model) in ("accepted", "not accepted")
    assert np.isfinite(model.rollout_buffer.observations).all()
    assert np.isfinite(model.rollout_buffer.rewards).all()


@pytest.mark.parametrize("damping", [0.1, 0.0])
@pytest.mark.parametrize("preconditioner", ["kfac", None])
def test_a_dead_network(damping, preconditioner):
    model = model_of(FaultyEnv(), nn.ReLU, cg_damping=damping, preconditioner=preconditioner)
    model.policy.mlp_extractor.policy_net[0].bias.data.fill_(-1e6)
    collect(model)
    assert update(model) == "accepted"


LOG_STDS = [-100.0, -50.0, -20.0, -10.0, 2.0, 20.0, 40.0, 44.0, 80.0, 88.0, 100.0]


@pytest.mark.parametrize(("log_std", "activation"), each_once(LOG_STDS, NETWORKS))
def test_standard_deviations_at_their_bounds(log_std, activation):
    model = model_of(FaultyEnv(), activation)
    model.policy.log_std.data.fill_(log_std)
    collect(model)
    result = update(model)
    if -10 <= log_std <= 20:
        assert result == "accepted"


CHOICES = ["Discrete", "MultiDiscrete", "MultiBinary"]


@pytest.mark.parametrize(
    ("actions", "bias", "activation"), each_once(CHOICES, [20.0, 100.0, 1e4, 1e30, -1e30, 3e38], NETWORKS)
)
def test_probabilities_that_underflow(actions, bias, activation):
    model = copy_of_a_model(activation, actions)
    model.policy.action_net.bias.data[0] = bias
    collect(model)
    assert update(model) in ("accepted", "not accepted")


@pytest.mark.parametrize(("scale", "activation"), each_once([1e-40, 1e-20, 1e5, 1e10], NETWORKS))
def test_observations_of_any_size(scale, activation):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        model = model_of(FaultyEnv(observation=lambda x: (x * scale).astype(np.float32)), activation)
    assert update(model) in ("accepted", "not accepted")


HYPERPARAMETERS = st.fixed_dictionaries(
    {
        "n_steps": st.integers(2, 64),
        "batch_size": st.integers(1, 128),
        "gamma": st.floats(0, 1),
        "gae_lambda": st.floats(0, 1),
        "learning_rate": st.floats(0, 1e3) | st.just(1e30),
        "target_kl": st.floats(1e-12, 1e3),
        "cg_max_steps": st.integers(1, 20),
        "cg_damping": st.floats(0, 1e6),
        "cg_residual_tol": st.floats(0, 10),
        "cg_progress_tol": st.floats(0, 1),
        "cg_warm_start": st.booleans(),
        "line_search_shrinking_factor": st.floats(1e-6, 1 - 1e-6),
        "line_search_max_iter": st.integers(1, 12),
        "n_critic_updates": st.integers(0, 3),
        "ent_coef": st.floats(0, 1e6),
        "max_grad_norm": st.none() | st.floats(1e-6, 1e6),
        "adaptive_kl": st.booleans(),
        "fisher_chunk_size": st.none() | st.integers(1, 100),
        "preconditioner": st.sampled_from(["kfac", None]),
        "normalize_advantage": st.booleans(),
        "seed": st.integers(0, 100),
    }
)
# Of Gaussian actions alone.
NOISE = st.fixed_dictionaries(
    {
        "min_std": st.just(0.0) | st.floats(1e-3, 3.0),
        "max_std": st.none() | st.floats(1e-6, 3.0),
        "noise_correlation": st.just(0.0) | st.floats(-0.9, 0.9),
    }
)
SPACES = st.tuples(
    st.sampled_from([name for name in OBSERVATION_SPACES if "image" not in name and name != "Dict"]),
    st.sampled_from(list(ACTION_SPACES)),
)
REWARD_SCALES = st.sampled_from([0.0, 1e-30, 1e-3, 1.0, 1e3, 1e15, 1e30])


@pytest.mark.filterwarnings("ignore::UserWarning", "ignore:(overflow|invalid value) encountered:RuntimeWarning")
@pytest.mark.parametrize("n", [15, pytest.param(3000, marks=pytest.mark.slow)])
def test_whatever_the_settings_an_update_is_finite_and_within_the_trust_region(n):
    @settings(max_examples=n, deadline=None, derandomize=True, database=None, suppress_health_check=list(HealthCheck))
    @given(HYPERPARAMETERS, NOISE, SPACES, REWARD_SCALES, st.integers(1, 3))
    def fuzz(
        hyperparameters: dict[str, Any],
        noise: dict[str, Any],
        kinds: tuple[str, str],
        scale: float,
        sub_sampling_factor: int,
    ) -> None:
        observation_space, action_space = OBSERVATION_SPACES[kinds[0]], ACTION_SPACES[kinds[1]]
        env = ScaledEnv(observation_space, action_space, scale)
        policy, policy_kwargs = policy_for(observation_space)
        factor = min(sub_sampling_factor, hyperparameters["n_steps"])
        options = {**hyperparameters, "sub_sampling_factor": factor, "policy_kwargs": policy_kwargs, "device": "cpu"}
        if isinstance(action_space, spaces.Box):
            options |= noise
        model = with_rollout(TRPO(policy, env, **options))
        for _ in range(2):
            update(model)
            collect(model)

    fuzz()


class ScaledEnv(SpacesEnv):
    """
    An environment with rewards of another size.

    :param observation_space: any
    :param action_space: any
    :param scale: of rewards
    """

    def __init__(self, observation_space: spaces.Space, action_space: spaces.Space, scale: float) -> None:
        super().__init__(observation_space, action_space)
        self.scale = scale

    def step(self, action: Any) -> Any:
        obs, reward, *rest = super().step(action)
        return obs, self.scale * reward, *rest


def test_the_oracle_tells_a_step_that_is_too_long():
    model = model_of(FaultyEnv())
    line_search = model._line_search

    def too_long(surrogate: Any, parameters: Any, full_step: th.Tensor) -> Any:
        result = line_search(surrogate, parameters, full_step)
        parameters.write_(parameters.vector() + full_step)
        return result

    model._line_search = too_long  # type: ignore[method-assign]
    with pytest.raises(AssertionError):
        update(model)
