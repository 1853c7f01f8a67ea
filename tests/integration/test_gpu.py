"""
On a GPU: what the CPU does, and nothing waits for the device but the decisions. `make test-gpu` runs these tests.
"""

import copy
import warnings
from typing import Any

import numpy as np
import pytest
import torch as th
from small_models import ACTION_SPACES, LAYERS, OBSERVATION_SPACES, Extractor, SpacesEnv, policy_for
from stable_baselines3.common.env_util import make_vec_env
from stable_baselines3.common.on_policy_algorithm import OnPolicyAlgorithm
from torch import nn
from updates import Crash, action_distributions, changed, collect, log, mean_kl, observations, state, with_rollout

from sb3_trpo import TRPO
from sb3_trpo.checkpoints import Checkpoint
from sb3_trpo.trust_region.conjugate_gradient import conjugate_gradient
from sb3_trpo.trust_region.fisher import Fisher

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not th.cuda.is_available(), reason="torch finds no GPU"),
]

SETTINGS: dict[str, Any] = {"n_steps": 128, "batch_size": 64, "n_critic_updates": 2, "seed": 0}
TARGET_KL = 0.01
# A network that is written out, one that autograd differentiates, and what else SB3 has.
KINDS: dict[str, tuple[str, str, dict[str, Any]]] = {
    "Box": ("float32", "Box", {}),
    "Box, autograd": ("float32", "Box", {"policy_kwargs": {"net_arch": [8], "activation_fn": nn.ELU}}),
    "gSDE": ("float32", "Box", {"use_sde": True}),
    "Discrete": ("float64-2d", "Discrete", {}),
    "MultiDiscrete": ("uint8", "MultiDiscrete", {"cg_warm_start": True, "adaptive_kl": True, "ent_coef": 0.01}),
    "MultiBinary": ("Discrete", "MultiBinary", {"sub_sampling_factor": 2, "fisher_chunk_size": 40}),
    "image": ("image", "Discrete", {}),
    "Dict": ("Dict", "Box", {"preconditioner": None, "max_grad_norm": 0.5}),
    "noise": ("float32", "Box", {"min_std": 0.99, "noise_correlation": 0.5}),
    "less noise": ("float32", "Box", {"max_std": 0.5}),
}
kinds = pytest.mark.parametrize("kind", KINDS)


@pytest.fixture(autouse=True)
def full_precision() -> Any:
    """cuDNN's convolutions round their inputs to 10 bits unless told otherwise."""
    with th.backends.cudnn.flags(enabled=True, allow_tf32=False, deterministic=True):
        yield


def model_of(kind: str, device: str, algorithm: type[TRPO] = TRPO, **changes: Any) -> TRPO:
    obs, actions, kwargs = KINDS[kind]
    policy, policy_kwargs = policy_for(OBSERVATION_SPACES[obs])
    env = SpacesEnv(OBSERVATION_SPACES[obs], ACTION_SPACES[actions])
    return algorithm(policy, env, **{"policy_kwargs": policy_kwargs, **SETTINGS, **kwargs, **changes}, device=device)


def on_cpu(model: TRPO, kind: str) -> TRPO:
    """
    Copy a model from the GPU to the CPU.

    :param model: on the GPU, with a rollout
    :param kind: what it was made of
    :return: a model on the CPU with the same weights and the same rollout
    """
    twin = with_rollout(model_of(kind, "cpu"))
    twin.policy.load_state_dict(model.policy.state_dict())
    for name, array in vars(model.rollout_buffer).items():
        if isinstance(array, (np.ndarray, dict)):
            setattr(twin.rollout_buffer, name, copy.deepcopy(array))
    return twin


@kinds
def test_an_update_is_that_of_the_cpu(kind):
    model = with_rollout(model_of(kind, "cuda", n_critic_updates=1, batch_size=128))
    twin = on_cpu(model, kind)
    twin.batch_size, twin.n_critic_updates = 128, 1
    before = state(twin)
    model.train()
    twin.train()
    assert all(parameter.is_cuda for parameter in model.policy.parameters())
    assert log(model)["train/is_line_search_success"] == log(twin)["train/is_line_search_success"] == 1
    for key in ("train/kl_divergence_loss", "train/policy_objective", "train/value_loss"):
        assert log(model)[key] == pytest.approx(log(twin)[key], rel=1e-3, abs=1e-6), key
    after = {name: tensor.cpu() for name, tensor in model.policy.state_dict().items()}
    for name, expected in twin.policy.state_dict().items():
        step = (expected - before[name]).abs().max()
        # A critic step of Adam from its first gradient has the size of the learning rate, whatever the gradient's.
        tolerance = 2.1e-3 if "value" in name or "vf" in name else 0.02 * float(step) + 1e-6
        assert (after[name] - expected).abs().max() <= tolerance, name


@kinds
def test_the_constraint_holds_by_the_cpus_arithmetic_too(kind):
    model = with_rollout(model_of(kind, "cuda"))
    for _ in range(5):
        twin = on_cpu(model, kind)
        obs = observations(twin)
        old = action_distributions(twin.policy, obs)
        model.train()
        twin.policy.load_state_dict(model.policy.state_dict())
        kl = mean_kl(old, twin.policy, obs)
        assert 0.05 * TARGET_KL < kl <= 1.001 * TARGET_KL
        assert log(model)["train/kl_divergence_loss"] == pytest.approx(kl, rel=1e-3)
        collect(model)


class Sb3sLoop(TRPO):
    """TRPO with the rollouts of SB3's own loop."""

    def collect_rollouts(self, *args: Any) -> bool:
        return OnPolicyAlgorithm.collect_rollouts(self, *args)


@pytest.mark.parametrize("kind", ["Box", "Discrete", "MultiDiscrete", "MultiBinary"])
def test_a_rollout_is_sb3s(kind):
    ours, sb3s = (with_rollout(model_of(kind, "cuda", algorithm)) for algorithm in (TRPO, Sb3sLoop))
    for name in ("observations", "actions", "episode_starts"):
        np.testing.assert_array_equal(getattr(ours.rollout_buffer, name), getattr(sb3s.rollout_buffer, name), name)
    for name in ("rewards", "values", "log_probs", "advantages", "returns"):
        x, y = getattr(ours.rollout_buffer, name), getattr(sb3s.rollout_buffer, name)
        np.testing.assert_allclose(x, y, rtol=1e-4, atol=1e-4, err_msg=name)


@pytest.mark.parametrize("layer", LAYERS)
def test_layers_of_any_kind(layer):
    policy_kwargs = {"features_extractor_class": Extractor, "features_extractor_kwargs": {"layer": layer}}
    model = with_rollout(model_of("Box", "cuda", policy_kwargs={**policy_kwargs, "net_arch": [8]}))
    model.train()
    assert log(model)["train/is_line_search_success"] == 1
    assert 0 < log(model)["train/kl_divergence_loss"] <= TARGET_KL


@pytest.mark.parametrize("kind", ["Box", "Box, autograd", "MultiDiscrete"])
def test_the_same_seed_gives_the_same_weights(kind):
    first, second = (state(model_of(kind, "cuda").learn(384)) for _ in range(2))
    assert not changed(first, second)


@kinds
def test_a_saved_model_moves_between_devices(kind, tmp_path):
    model = model_of(kind, "cuda").learn(256)
    model.save(tmp_path / "model")
    there = TRPO.load(tmp_path / "model", env=model.env, device="cpu")
    there.save(tmp_path / "model")
    back = TRPO.load(tmp_path / "model", env=model.env, device="cuda")
    assert not changed(state(model), state(there))
    assert not changed(state(model), state(back))
    obs = model.env.reset()
    np.testing.assert_allclose(*(m.predict(obs, deterministic=True)[0] for m in (model, there)), rtol=1e-4, atol=1e-5)
    # Both can go on.
    for loaded in (there, back):
        loaded.learn(128)
        assert changed(state(model), state(loaded))


def test_a_checkpoint_goes_on_bit_for_bit(tmp_path):
    def make() -> TRPO:
        return TRPO("MlpPolicy", "Pendulum-v1", **SETTINGS, device="cuda", use_sde=True, sde_sample_freq=4)

    def checkpoint() -> Checkpoint:
        return Checkpoint(tmp_path / "checkpoint.zip", every=1)

    whole = make().learn(768)
    with pytest.raises(InterruptedError):
        make().learn(768, callback=[checkpoint(), Crash(at=400)])
    goes_on = checkpoint()
    resumed = goes_on.load(make_vec_env("Pendulum-v1", seed=0), device="cuda")
    resumed.learn(768, callback=goes_on)
    assert not goes_on.why_reset
    assert resumed.num_timesteps == whole.num_timesteps
    assert not changed(state(whole), state(resumed))


@kinds
def test_a_failed_update_leaves_the_policy_as_it_was(kind):
    model = with_rollout(model_of(kind, "cuda"))
    model.train()
    collect(model)
    before = state(model)
    model.rollout_buffer.returns[3] = np.nan
    with pytest.warns(UserWarning, match="undone"):
        model.train()
    assert log(model)["train/is_line_search_success"] == 0
    assert not changed(before, state(model))


def test_a_device_without_memory_left_leaves_the_policy_as_it_was():
    policy_kwargs = {"net_arch": [4096], "activation_fn": nn.ELU}
    model = with_rollout(model_of("Box", "cuda", n_steps=4096, policy_kwargs=policy_kwargs, fisher_chunk_size=4096))
    before = state(model)
    th.cuda.empty_cache()
    in_use = th.cuda.memory_reserved() / th.cuda.get_device_properties(0).total_memory
    th.cuda.set_per_process_memory_fraction(in_use + 0.0001)
    try:
        with pytest.warns(UserWarning, match="memory"):
            model.train()
    finally:
        th.cuda.set_per_process_memory_fraction(1.0)
    assert log(model)["train/is_line_search_success"] == 0
    assert not changed(before, state(model))
    # With what it needs, training goes on.
    model.train()
    assert log(model)["train/is_line_search_success"] == 1
    assert changed(before, state(model))


# ---- waiting for the device ----


class Waits:
    """Counts how often the host waits for the device."""

    def __enter__(self) -> "Waits":
        self._catch = warnings.catch_warnings(record=True)
        self._caught = self._catch.__enter__()
        warnings.simplefilter("always")
        th.cuda.set_sync_debug_mode("warn")
        return self

    def __exit__(self, *args: Any) -> None:
        th.cuda.set_sync_debug_mode("default")
        self._catch.__exit__(*args)

    @property
    def count(self) -> int:
        return sum("synchronizing CUDA operation" in str(warning.message) for warning in self._caught)


def test_waits_are_counted():
    x = th.ones(3, device="cuda")
    with Waits() as waits:
        y = (2 * x).sum()
        assert waits.count == 0
        float(y)
        assert waits.count == 1


class Watched(TRPO):
    """Counts the waits of conjugate gradient with K-FAC, and those of the line search."""

    def _search_direction(self, fisher: Fisher, g: th.Tensor) -> Any:
        precondition = self._make_preconditioner(fisher)
        operator = lambda v: (fisher @ v).add_(v, alpha=self.cg_damping)  # noqa: E731
        # Whatever is made at the first product.
        precondition(operator(g))
        with Waits() as waits:
            solution = conjugate_gradient(operator, g, max_steps=10, residual_tol=0.0, preconditioner=precondition)
        self.cg_waits, self.cg_iterations = waits.count, solution.iterations
        return solution

    def _line_search(self, *args: Any) -> Any:
        with Waits() as waits:
            result = super()._line_search(*args)
        self.search_waits, self.n_evaluations = waits.count, result.n_evaluations
        return result


@pytest.mark.parametrize("kind", ["Box", "Box, autograd", "Discrete", "image"])
def test_nothing_but_decisions_waits_for_the_device(kind):
    model: Any = with_rollout(model_of(kind, "cuda", Watched))
    model.train()
    assert model.cg_iterations >= 3
    # α and β of each iteration; the scale of b, its norm, and bᵀx.
    assert model.cg_waits <= 2 * model.cg_iterations + 3
    # KL and improvement come together.
    assert model.search_waits == model.n_evaluations
