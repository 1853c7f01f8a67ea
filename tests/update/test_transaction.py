import copy
import itertools
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch as th
from stable_baselines3.common.callbacks import BaseCallback
from stable_baselines3.common.logger import configure
from stable_baselines3.common.utils import set_random_seed
from torch import nn
from updates import actor_state, changed, collect, data_pointers, log, pendulum, state

from sb3_trpo import TRPO
from sb3_trpo.trpo import MAX_FAILURES
from sb3_trpo.trust_region.fisher import Fisher
from sb3_trpo.trust_region.surrogate import Surrogate
from sb3_trpo.update.flat_adam import FlatAdam
from sb3_trpo.update.transaction import NonFiniteError, Transaction

# Each stage of an update, by a piece of it that runs there, and the call at which it is to fail.
STAGES = {
    "gradient": (Surrogate, "__init__", 1),
    "Fisher product": (Fisher, "__matmul__", 1),
    "line search": (Surrogate, "evaluate", 1),
    "critic": (FlatAdam, "step", 3),
    "critic's last write": (FlatAdam, "commit", 1),
}


def updated_model(**kwargs: Any) -> TRPO:
    """Return a model whose optimizer has a state, after one good update, with a new rollout."""
    model = pendulum(**kwargs)
    model.train()
    collect(model)
    return model


def train(model: TRPO, n_updates: int) -> None:
    """
    Make all updates of a model's rollouts.

    :param model: with a rollout, of which all updates are made
    :param n_updates: number of updates
    """
    for _ in range(n_updates):
        model.train()


def raise_at(monkeypatch: pytest.MonkeyPatch, stage: str, error: BaseException) -> None:
    """
    Let a stage do its work, and then raise.

    :param monkeypatch: which undoes it
    :param stage: of ``STAGES``
    :param error: to be raised
    """
    owner, name, at = STAGES[stage]
    real, calls = getattr(owner, name), itertools.count(1)

    def failing(*args: Any, **kwargs: Any) -> Any:
        result = real(*args, **kwargs)
        if next(calls) == at:
            raise error
        return result

    monkeypatch.setattr(owner, name, failing)


@pytest.mark.parametrize("stage", STAGES)
def test_an_error_at_any_stage_undoes_the_update_and_training_goes_on(
    stage: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Any
) -> None:
    model = updated_model()
    model.set_logger(configure(str(tmp_path), ["log"]))
    before, pointers = state(model), data_pointers(model)
    with monkeypatch.context() as patch:
        raise_at(patch, stage, RuntimeError("out of luck"))
        with pytest.warns(UserWarning, match="Update 2 was undone.*out of luck"):
            model.train()
    assert not changed(before, state(model))
    assert data_pointers(model) == pointers
    assert "out of luck" in (tmp_path / "log.txt").read_text()
    assert log(model)["train/is_line_search_success"] == 0.0
    assert model._n_updates == 2

    model.train()
    assert log(model)["train/is_line_search_success"] == 1.0
    assert {"log_std", "value_net.weight", "optimizer.value_net.weight.step"} <= changed(before, state(model))
    assert data_pointers(model) == pointers


def test_an_undone_update_leaves_no_trace_in_later_ones(monkeypatch: pytest.MonkeyPatch) -> None:
    options = {"cg_warm_start": True, "adaptive_kl": True}
    undisturbed, disturbed = updated_model(**options), updated_model(**options)
    with monkeypatch.context() as patch:
        raise_at(patch, "critic", RuntimeError("out of luck"))
        with pytest.warns(UserWarning, match="undone"):
            disturbed.train()
    for model in (undisturbed, disturbed):
        set_random_seed(0)
        model.train()
    assert not changed(state(undisturbed), state(disturbed))
    assert th.equal(undisturbed.cg_direction, disturbed.cg_direction)
    assert undisturbed.kl_scale == disturbed.kl_scale


def nan_advantages(model: TRPO) -> None:
    model.rollout_buffer.advantages[3] = np.nan


def infinite_advantages(model: TRPO) -> None:
    model.rollout_buffer.advantages[3] = np.inf


def nan_returns(model: TRPO) -> None:
    model.rollout_buffer.returns[3] = np.nan


def returns_that_overflow(model: TRPO) -> None:
    # Their squares fit no float32; divided by Adam's infinite second moment, every step is 0.
    model.rollout_buffer.returns[:] = 1e30


def a_learning_rate_that_overflows(model: TRPO) -> None:
    model.lr_schedule = lambda _: 1e38


@pytest.mark.parametrize(
    "spoil", [nan_advantages, infinite_advantages, nan_returns, returns_that_overflow, a_learning_rate_that_overflows]
)
@pytest.mark.parametrize("plain", [True, False], ids=["plain", "general"])
def test_what_is_not_finite_undoes_the_update(spoil: Callable[[TRPO], None], plain: bool) -> None:
    model = updated_model(policy_kwargs={"net_arch": [8], "activation_fn": nn.Tanh if plain else nn.GELU})
    before, lr_schedule, buffer = state(model), model.lr_schedule, copy.deepcopy(model.rollout_buffer)
    spoil(model)
    with pytest.warns(UserWarning, match=r"Update 2 was undone.*not finite"):
        model.train()
    assert not changed(before, state(model))

    model.lr_schedule, model.rollout_buffer = lr_schedule, buffer
    model.train()
    assert log(model)["train/is_line_search_success"] == 1.0
    assert {"log_std", "value_net.weight"} <= changed(before, state(model))


def test_updates_without_finite_data_never_end_training() -> None:
    model = updated_model()
    nan_advantages(model)
    before = state(model)
    with pytest.warns(UserWarning, match="undone") as warnings:
        train(model, 2 * MAX_FAILURES)
    # The first update is told, and later, once, that it goes on like this.
    first, second = (str(item.message) for item in warnings)
    assert "Update 2 was undone" in first
    assert "updates are undone" in second
    assert not changed(before, state(model))


def test_an_error_that_comes_back_every_time_is_raised(monkeypatch: pytest.MonkeyPatch) -> None:
    model = updated_model()
    before = state(model)

    def broken(*_: Any) -> Any:
        raise RuntimeError("never works")

    monkeypatch.setattr(Fisher, "__matmul__", broken)
    with pytest.warns(UserWarning, match="never works"):
        train(model, MAX_FAILURES - 1)
    with pytest.raises(RuntimeError, match="never works"):
        model.train()
    assert not changed(before, state(model))


@pytest.mark.filterwarnings("ignore:TRPO. Update")
def test_one_good_update_in_between_starts_the_count_again(monkeypatch: pytest.MonkeyPatch) -> None:
    model = updated_model()
    for i in range(2 * MAX_FAILURES):
        with monkeypatch.context() as patch:
            if i % MAX_FAILURES > 0:
                raise_at(patch, "critic", RuntimeError("out of luck"))
            model.train()
    assert model._n_updates == 1 + 2 * MAX_FAILURES


@pytest.mark.parametrize("stage", STAGES)
@pytest.mark.parametrize("error", [TypeError("a bug"), KeyboardInterrupt()], ids=["TypeError", "KeyboardInterrupt"])
def test_bugs_and_interrupts_are_raised_with_the_policy_restored(
    stage: str, error: BaseException, monkeypatch: pytest.MonkeyPatch, tmp_path: Any
) -> None:
    model = updated_model()
    before = state(model)
    with monkeypatch.context() as patch:
        raise_at(patch, stage, error)
        with pytest.raises(type(error)):
            model.train()
    assert not changed(before, state(model))
    assert model._n_updates == 1
    model.save(tmp_path / "model")
    assert not changed(before, state(TRPO.load(tmp_path / "model", device="cpu")))


class InterruptAt(BaseCallback):
    """
    What Ctrl-C does in the middle of a rollout.

    :param n_steps: at which step
    """

    def __init__(self, n_steps: int) -> None:
        super().__init__()
        self.interrupt_at = n_steps
        self.state_after_update: dict[str, th.Tensor] = {}

    def _on_rollout_start(self) -> None:
        self.state_after_update = state(self.model)

    def _on_step(self) -> bool:
        if self.num_timesteps == self.interrupt_at:
            raise KeyboardInterrupt
        return True


@pytest.mark.parametrize("use_sde", [False, True], ids=["lean", "SB3's loop"])
def test_an_interrupted_rollout_leaves_the_last_update(use_sde: bool, tmp_path: Any) -> None:
    model = pendulum(n_steps=64, use_sde=use_sde)
    callback = InterruptAt(64 * 3 + 20)
    with pytest.raises(KeyboardInterrupt):
        model.learn(10_000, callback)
    assert not changed(callback.state_after_update, state(model))
    model.save(tmp_path / "model")
    loaded = TRPO.load(tmp_path / "model", device="cpu")
    assert not changed(callback.state_after_update, state(loaded))
    model.learn(200)


def test_a_failed_search_moves_the_critic_alone() -> None:
    model = updated_model(line_search_max_iter=3)
    # Against its own gradient, no step improves the surrogate.
    model._scale_to_trust_region = lambda fisher, solution: -0.1 * solution.x
    before, actor = state(model), actor_state(model)
    model.train()
    assert log(model)["train/is_line_search_success"] == 0.0
    assert log(model)["train/line_search_steps"] == 3
    assert log(model)["train/kl_divergence_loss"] == 0.0
    assert log(model)["train/step_fraction"] == 0.0
    assert not changed(actor, actor_state(model))
    assert {"value_net.weight", "optimizer.value_net.weight.step"} <= changed(before, state(model))


def test_buffers_are_restored_and_may_hold_infinities() -> None:
    policy = pendulum().policy
    policy.register_buffer("mask", th.tensor([0.0, -th.inf]))
    policy.register_buffer("mean", th.zeros(2))

    def fill(value: float) -> None:
        with Transaction(policy) as transaction:
            policy.mean.fill_(value)
            transaction.check_finite()

    fill(1.0)
    with pytest.raises(NonFiniteError, match="mean"):
        fill(th.nan)
    assert th.equal(policy.mean, th.ones(2))


def test_an_optimizer_without_a_state_has_none_afterwards() -> None:
    policy = pendulum().policy
    parameter = policy.value_net.weight

    def step_and_fail() -> None:
        with Transaction(policy):
            parameter.grad = th.ones_like(parameter)
            policy.optimizer.step()
            raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        step_and_fail()
    assert not policy.optimizer.state
    assert parameter.grad is None
