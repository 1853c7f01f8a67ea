"""
The update as a whole. What the mathematics does is tested in ``trust_region/``, every kind of space in
``test_spaces.py``.
"""

import copy
import random
from typing import Any

import numpy as np
import pytest
import torch as th
from combinations import each_once
from gymnasium import spaces
from small_models import VECTOR, Extractor, SpacesEnv, TwoHeadsPolicy
from stable_baselines3.common.env_util import make_vec_env
from stable_baselines3.common.logger import configure
from stable_baselines3.common.utils import LinearSchedule, set_random_seed
from stable_baselines3.common.vec_env import VecNormalize
from torch import nn
from updates import (
    actor_state,
    changed,
    collect,
    data_pointers,
    log,
    measure_kl,
    pendulum,
    state,
)

from sb3_trpo import TRPO
from sb3_trpo.trpo import KL_ADAPTATION, MAX_KL_SCALE
from sb3_trpo.trust_region.fisher import Fisher


def train_measured(model: Any) -> float:
    """
    Make an update, and see that its KL is what the log says.

    :param model: a model with a rollout
    :return: E[KL(old ‖ new)], as measured from the outside
    """
    measured = measure_kl(model)
    assert measured == pytest.approx(log(model)["train/kl_divergence_loss"], rel=1e-3, abs=1e-7)
    return measured


# ---- The trust region ----

MUJOCO = {"InvertedPendulum-v5": 1, "Hopper-v5": 3, "HalfCheetah-v5": 6, "Humanoid-v5": 17}


@pytest.mark.parametrize(("env_id", "target_kl"), each_once(list(MUJOCO), [0.003, 0.03]))
def test_kl_stays_within_delta_and_uses_it(env_id: str, target_kl: float) -> None:
    env = VecNormalize(make_vec_env(env_id, n_envs=4, seed=0))
    model = pendulum(env=env, n_steps=160, policy_kwargs={}, target_kl=target_kl)
    assert model.action_space.shape == (MUJOCO[env_id],)
    for _ in range(4):
        kl = train_measured(model)
        assert log(model)["train/is_line_search_success"] == 1.0
        assert 0.7 * target_kl <= kl <= target_kl
        collect(model)


@pytest.mark.parametrize(
    "kwargs",
    [
        {"env": "CartPole-v1"},
        {"env": SpacesEnv(VECTOR, spaces.MultiDiscrete([3, 2, 4]))},
        {"env": SpacesEnv(VECTOR, spaces.MultiBinary(5))},
        {"use_sde": True},
        {"use_sde": True, "sde_sample_freq": 4, "policy_kwargs": {"squash_output": True}},
        {"policy_kwargs": {"net_arch": [16], "activation_fn": nn.GELU}},
        {"policy": TwoHeadsPolicy, "policy_kwargs": {}},
        {"normalize_advantage": False},
        {"preconditioner": None},
        {"fisher_chunk_size": 100},
        {"sub_sampling_factor": 2},
    ],
    ids=lambda kwargs: ",".join(map(str, kwargs)),
)
def test_so_it_does_for_policies_and_settings_of_every_kind(kwargs: dict[str, Any]) -> None:
    model = pendulum(**{"target_kl": 0.01, **kwargs})
    kls = []
    for _ in range(4):
        kls.append(train_measured(model))
        collect(model)
    assert max(kls) <= 0.01
    # A single search may have to back off for want of improvement.
    assert sorted(kls)[1] >= 0.7 * 0.01


def test_target_kl_and_learning_rate_take_schedules() -> None:
    model = pendulum(target_kl=LinearSchedule(0.02, 0.0, 1.0), learning_rate=LinearSchedule(1e-3, 0.0, 1.0))
    model._current_progress_remaining = 0.25
    assert 0.7 * 0.005 <= train_measured(model) <= 0.005
    assert log(model)["train/target_kl"] == pytest.approx(0.005)
    assert log(model)["train/learning_rate"] == pytest.approx(2.5e-4)
    assert model.policy.optimizer.param_groups[0]["lr"] == pytest.approx(2.5e-4)


def test_schedules_end_at_the_end_although_the_last_rollout_goes_beyond_it() -> None:
    # SB3's LinearSchedule stops at its end by itself; RL Zoo's, and a user's function, go on below zero.
    model = TRPO(
        "MlpPolicy",
        "Pendulum-v1",
        n_steps=256,
        seed=0,
        device="cpu",
        target_kl=lambda progress: 0.02 * progress,
        learning_rate=lambda progress: 1e-3 * progress,
    )
    model.learn(1000)
    assert model.num_timesteps == 1024
    assert log(model)["train/target_kl"] == 0.0
    assert log(model)["train/learning_rate"] == 0.0


def test_a_target_that_is_set_later_counts() -> None:
    model = pendulum()
    model.target_kl = 0.002
    assert 0.7 * 0.002 <= train_measured(model) <= 0.002


def test_without_a_usable_preconditioner_the_update_does_without_and_says_so(tmp_path: Any) -> None:
    # Units that are off for every state have no curvature, and no damping makes up for it.
    model = pendulum(cg_damping=0.0, policy_kwargs={"activation_fn": nn.ReLU, "net_arch": [8]})
    with th.no_grad():
        model.policy.mlp_extractor.policy_net[0].bias.fill_(-1e3)
    model.set_logger(configure(str(tmp_path), ["log"]))
    train_measured(model)
    assert log(model)["train/is_line_search_success"] == 1.0
    assert "without its preconditioner" in (tmp_path / "log.txt").read_text()


# ---- What belongs to the policy step ----


def test_the_policy_step_uses_no_random_numbers() -> None:
    model = pendulum()
    samples = model._rollout_samples()
    before = th.get_rng_state(), random.getstate(), repr(np.random.get_state())  # noqa: NPY002
    model._improve_policy(samples)
    after = th.get_rng_state(), random.getstate(), repr(np.random.get_state())  # noqa: NPY002
    assert th.equal(before[0], after[0])
    assert before[1:] == after[1:]


@pytest.mark.parametrize("factor", [1, 2, 64])
def test_sub_sampling_thins_the_fisher_product_only(factor: int, monkeypatch: pytest.MonkeyPatch) -> None:
    sizes = []
    real = Fisher.__matmul__
    monkeypatch.setattr(
        Fisher, "__matmul__", lambda fisher, v: sizes.append(sum(map(len, fisher.linearizations))) or real(fisher, v)
    )
    model, whole = pendulum(sub_sampling_factor=factor), pendulum()
    for each in (model, whole):
        set_random_seed(0)
        each.train()
        if each is model:
            assert set(sizes) == {256 // factor}
    # The gradient is that of all states; KL was measured on all of them.
    assert log(model)["train/grad_norm"] == pytest.approx(log(whole)["train/grad_norm"], rel=1e-5)
    assert log(model)["train/entropy"] == log(whole)["train/entropy"]
    assert log(model)["train/kl_divergence_loss"] <= 0.01


@pytest.mark.parametrize("layer", ["dropout", "batch-norm"])
@pytest.mark.parametrize("share", [False, True])
def test_the_policy_step_sees_the_policy_in_evaluation_mode(layer: str, share: bool) -> None:
    kwargs = {
        "features_extractor_class": Extractor,
        "features_extractor_kwargs": {"layer": layer},
        "share_features_extractor": share,
        "net_arch": [8],
    }
    model = pendulum(env=SpacesEnv(VECTOR, spaces.Box(-1, 1, (2,))), policy_kwargs=kwargs)
    model.policy.set_training_mode(True)
    buffers = [buffer.clone() for buffer in model.policy.pi_features_extractor.buffers()]
    assert 0.7 * 0.01 <= train_measured(model) <= 0.01
    assert all(map(th.equal, buffers, model.policy.pi_features_extractor.buffers()))


@pytest.mark.parametrize("frozen", ["log_std", "mlp_extractor.policy_net.0", "action_net"])
def test_frozen_parameters_stay_and_the_others_move(frozen: str) -> None:
    model = pendulum()
    owner = dict(model.policy.named_modules()).get(frozen) or model.policy.get_parameter(frozen)
    owner.requires_grad_(False)
    before = actor_state(model)
    assert 0.7 * 0.01 <= train_measured(model) <= 0.01
    assert changed(before, actor_state(model)) == {name for name in before if not name.startswith(frozen)}


def test_of_an_actor_with_a_frozen_network_the_spread_is_trained() -> None:
    model = pendulum()
    for name in ("mlp_extractor.policy_net", "action_net"):
        model.policy.get_submodule(name).requires_grad_(False)
    before = state(model)
    model.train()
    assert {name for name in changed(before, state(model)) if "optimizer" not in name} == {
        "log_std",
        *(name for name in before if "value_net" in name),
    }


@pytest.mark.parametrize("chunk_size", [None, 100])
def test_an_actor_without_a_trainable_parameter_is_an_error(chunk_size: int | None) -> None:
    model = pendulum(env="CartPole-v1", fisher_chunk_size=chunk_size)
    for name in ("mlp_extractor.policy_net", "action_net"):
        model.policy.get_submodule(name).requires_grad_(False)
    before = state(model)
    with pytest.raises(ValueError, match="Every parameter that the policy's actions depend on is frozen"):
        model.train()
    assert not changed(before, state(model))


def test_what_actor_and_critic_share_is_moved_by_the_policy_step_only() -> None:
    model = pendulum(policy=TwoHeadsPolicy, policy_kwargs={}, learning_rate=0.1)
    before = state(model)
    train_measured(model)
    moved = changed(before, state(model))
    assert {"mlp_extractor.trunk.weight", "mlp_extractor.pi.weight", "mlp_extractor.vf.weight"} <= moved
    assert not any(name.startswith("optimizer.mlp_extractor.trunk") for name in moved)


# ---- Options that are off by default ----


def test_options_are_off_by_default() -> None:
    model = pendulum()
    assert (model.ent_coef, model.max_grad_norm, model.fisher_chunk_size) == (0.0, None, None)
    assert (model.adaptive_kl, model.cg_warm_start, model.kl_scale) == (False, False, 1.0)
    for _ in range(3):
        model.train()
    assert model.kl_scale == 1.0
    assert len(model.cg_direction) == 0


def test_an_entropy_bonus_keeps_the_policy_open() -> None:
    entropies = []
    for ent_coef in (0.0, 10.0):
        model = pendulum(ent_coef=ent_coef)
        for _ in range(3):
            model.train()
        entropies.append(log(model)["train/entropy"])
    assert entropies[1] > entropies[0] + 0.1


def test_adaptive_kl_grows_while_there_is_room() -> None:
    model = pendulum(adaptive_kl=True)
    # Steps of half the length have a quarter of the KL.
    scale = model._scale_to_trust_region
    model._scale_to_trust_region = lambda fisher, solution: 0.5 * scale(fisher, solution)
    bounds = []
    for _ in range(8):
        model.train()
        bounds.append(log(model)["train/target_kl"])
        assert log(model)["train/kl_divergence_loss"] <= bounds[-1]
    expected = [0.01 * min(KL_ADAPTATION**i, MAX_KL_SCALE) for i in range(8)]
    assert bounds == pytest.approx(expected)


def test_adaptive_kl_shrinks_when_the_search_fails() -> None:
    model = pendulum(adaptive_kl=True, line_search_max_iter=1)
    scale = model._scale_to_trust_region
    model._scale_to_trust_region = lambda fisher, solution: 10.0 * scale(fisher, solution)
    bounds = []
    for _ in range(4):
        model.train()
        bounds.append(log(model)["train/target_kl"])
    assert bounds == pytest.approx([0.01 / KL_ADAPTATION**i for i in range(4)])


def test_adaptive_kl_shrinks_when_the_search_backs_off_and_is_bounded() -> None:
    model = pendulum(adaptive_kl=True, line_search_max_iter=20)
    scale = model._scale_to_trust_region
    model._scale_to_trust_region = lambda fisher, solution: 4.0 * scale(fisher, solution)
    for _ in range(7):
        model.train()
        assert log(model)["train/is_line_search_success"] == 1.0
    assert model.kl_scale == pytest.approx(1.0 / MAX_KL_SCALE)


def test_a_warm_start_begins_where_the_last_update_ended() -> None:
    iterations = {}
    for cg_warm_start in (False, True):
        model = pendulum(cg_warm_start=cg_warm_start, preconditioner=None, cg_residual_tol=0.02, cg_progress_tol=0.0)
        samples, before = model._rollout_samples(), copy.deepcopy(model.policy.state_dict())
        model._prepare_next(model._improve_policy(samples))
        # The same system again: to a warm start, it is solved.
        model.policy.load_state_dict(before)
        iterations[cg_warm_start] = model._improve_policy(samples).solution.iterations
    assert iterations[True] == 0 < iterations[False]


@pytest.mark.parametrize("size", [1, 7, 100, 256, 1000])
def test_chunks_do_not_matter(size: int) -> None:
    whole, chunked = pendulum(sub_sampling_factor=2), pendulum(sub_sampling_factor=2, fisher_chunk_size=size)
    # The preconditioner's factors are those of the first chunk.
    whole.preconditioner = chunked.preconditioner = None
    for model in (whole, chunked):
        set_random_seed(0)
        model.train()
    for name, tensor in actor_state(whole).items():
        th.testing.assert_close(actor_state(chunked)[name], tensor, rtol=1e-3, atol=1e-5)


# ---- Again and again ----


def test_parameters_stay_where_they_are_in_memory() -> None:
    model = pendulum()
    pointers = data_pointers(model)
    model.learn(3 * 256)
    assert data_pointers(model) == pointers


@pytest.mark.parametrize(
    "kwargs", [{}, {"use_sde": True}, {"env": "CartPole-v1"}, {"preconditioner": None}], ids=lambda kwargs: str(kwargs)
)
def test_the_same_seed_gives_the_same_weights(kwargs: dict[str, Any]) -> None:
    models = [pendulum(**kwargs, seed=seed).learn(4 * 256) for seed in (3, 3, 4)]
    assert not changed(state(models[0]), state(models[1]))
    assert changed(state(models[0]), state(models[2]))


@pytest.mark.parametrize("device", ["cpu", th.device("cpu"), "auto"])
def test_a_loaded_model_goes_on_as_if_nothing_had_been(device: Any, tmp_path: Any) -> None:
    model = pendulum(
        adaptive_kl=True,
        cg_warm_start=True,
        cg_residual_tol=0.001,
        cg_progress_tol=0.0,
        target_kl=LinearSchedule(0.02, 0, 1),
    )
    for _ in range(3):
        model.train()
    model.kl_scale = KL_ADAPTATION
    model.save(tmp_path / "model")
    loaded = TRPO.load(tmp_path / "model", env=model.get_env(), device=device)
    assert not changed(state(model), state(loaded))
    assert th.equal(model.cg_direction, loaded.cg_direction)
    assert loaded.kl_scale == KL_ADAPTATION

    loaded.rollout_buffer = copy.deepcopy(model.rollout_buffer)
    loaded.set_logger(model.logger)
    logs = []
    for each in (model, loaded):
        set_random_seed(0)
        each.train()
        logs.append(dict(log(each)))
    assert not changed(state(model), state(loaded))
    assert logs[0] == logs[1]
    loaded.learn(300, reset_num_timesteps=False)
