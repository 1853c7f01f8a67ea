"""
The average of the last policies: what it is the average of, and when it takes their place.
"""

from pathlib import Path
from typing import Any

import pytest
import torch as th
from stable_baselines3.common.callbacks import BaseCallback, StopTrainingOnMaxEpisodes
from stable_baselines3.common.env_util import make_vec_env
from updates import changed, state

from sb3_trpo import TRPO
from sb3_trpo.callbacks.policy_average import PolicyAverage
from sb3_trpo.checkpoints import Checkpoint

N_STEPS = 64


def make_model(**kwargs: Any) -> TRPO:
    env = make_vec_env("Pendulum-v1", 1, seed=0)
    return TRPO("MlpPolicy", env, n_steps=N_STEPS, batch_size=64, seed=0, device="cpu", **kwargs)


class Recorder(BaseCallback):
    """Keeps the policy after each update, and before the first."""

    def __init__(self) -> None:
        super().__init__()
        self.policies: list[list[th.Tensor]] = []

    def _on_rollout_start(self) -> None:
        self.policies.append([parameter.detach().clone() for parameter in self.model.policy.parameters()])

    def _on_step(self) -> bool:
        return True

    def _on_training_end(self) -> None:
        self._on_rollout_start()


@pytest.mark.parametrize(("share", "n_policies"), [(0.15, 2), (0.35, 4), (1.0, 11)])
def test_the_policy_becomes_the_average_of_the_last_ones(share: float, n_policies: int) -> None:
    """10 updates: after the last, progress is 0, after the one before .1, and so on; before the first it is 1."""
    model, recorder = make_model(), Recorder()
    model.learn(10 * N_STEPS, [recorder, PolicyAverage(share)])
    for parameter, *others in zip(model.policy.parameters(), *recorder.policies[-n_policies:], strict=True):
        th.testing.assert_close(parameter.detach(), th.stack(others).mean(dim=0))
    last = recorder.policies[-1]
    assert any(not th.equal(a, b) for a, b in zip(model.policy.parameters(), last, strict=True))


def test_training_itself_is_not_changed() -> None:
    recorders = [Recorder(), Recorder()]
    for recorder, others in zip(recorders, ([], [PolicyAverage(0.5)]), strict=True):
        make_model().learn(4 * N_STEPS, [recorder, *others])
    for a, b in zip(*(recorder.policies for recorder in recorders), strict=True):
        assert all(map(th.equal, a, b))


def test_a_training_that_is_stopped_early_keeps_its_policy() -> None:
    model, recorder = make_model(), Recorder()
    model.learn(100 * N_STEPS, [StopTrainingOnMaxEpisodes(1), PolicyAverage(0.1), recorder])
    assert all(map(th.equal, model.policy.parameters(), recorder.policies[-1]))


def test_a_policy_counts_once_although_its_rollout_was_stopped() -> None:
    model, recorder = make_model(), Recorder()
    # An episode of Pendulum ends after 200 steps, within the fourth rollout.
    model.learn(100 * N_STEPS, [recorder, PolicyAverage(1.0), StopTrainingOnMaxEpisodes(1)])
    *policies, same = recorder.policies
    assert len(policies) == 4
    assert all(map(th.equal, same, policies[-1]))
    for parameter, *others in zip(model.policy.parameters(), *policies, strict=True):
        th.testing.assert_close(parameter.detach(), th.stack(others).mean(dim=0))


def test_each_training_has_its_own_average() -> None:
    callback = PolicyAverage(0.5)
    states = [state(make_model().learn(4 * N_STEPS, callback)) for _ in range(2)]
    assert not changed(*states)


@pytest.mark.parametrize("is_first", [True, False], ids=["before", "after"])
def test_it_goes_on_from_a_checkpoint_bit_for_bit(is_first: bool, tmp_path: Path) -> None:
    def callbacks(checkpoint: Checkpoint) -> list[BaseCallback]:
        return [PolicyAverage(1.0), checkpoint] if is_first else [checkpoint, PolicyAverage(1.0)]

    whole = make_model()
    whole.learn(6 * N_STEPS, PolicyAverage(1.0))
    stopped = make_model()
    stopper = StopTrainingOnMaxEpisodes(1)
    stopped.learn(6 * N_STEPS, [*callbacks(Checkpoint(tmp_path / "checkpoint.zip", every=1)), stopper])
    assert stopped.num_timesteps < 6 * N_STEPS
    checkpoint = Checkpoint(tmp_path / "checkpoint.zip", every=1)
    resumed = checkpoint.load(make_vec_env("Pendulum-v1", 1, seed=0))
    resumed.learn(6 * N_STEPS, callbacks(checkpoint))
    assert not changed(state(whole), state(resumed))


@pytest.mark.parametrize("is_first", [True, False], ids=["before", "after"])
def test_a_training_that_becomes_longer_averages_at_its_new_end(is_first: bool, tmp_path: Path) -> None:
    """The first training averages from its eighth update on, which is in the middle of the second."""

    def callbacks(*others: BaseCallback) -> list[BaseCallback]:
        average = PolicyAverage(0.25)
        return [average, *others] if is_first else [*others, average]

    make_model().learn(10 * N_STEPS, callbacks(Checkpoint(tmp_path / "checkpoint.zip", every=1)))
    checkpoint, recorder = Checkpoint(tmp_path / "checkpoint.zip", every=1), Recorder()
    resumed = checkpoint.load(make_vec_env("Pendulum-v1", 1, seed=0))
    resumed.learn(16 * N_STEPS, [recorder, *callbacks(checkpoint)])
    # Updates 12 to 16.
    for parameter, *others in zip(resumed.policy.parameters(), *recorder.policies[-5:], strict=True):
        th.testing.assert_close(parameter.detach(), th.stack(others).mean(dim=0))


def test_the_first_policy_of_a_training_that_goes_on_is_far_from_its_end() -> None:
    model, average = make_model(), PolicyAverage(0.2)
    model.learn(4 * N_STEPS)
    recorder = Recorder()
    model.learn(4 * N_STEPS, [recorder, average], reset_num_timesteps=False)
    # SB3 counts the share of all eight: the last two policies are those after 7 and 8 updates.
    for parameter, *others in zip(model.policy.parameters(), *recorder.policies[-2:], strict=True):
        th.testing.assert_close(parameter.detach(), th.stack(others).mean(dim=0))


@pytest.mark.parametrize("share", [0.0, -0.1, 1.1, float("nan")])
def test_a_share_that_is_none_is_refused(share: float) -> None:
    with pytest.raises(ValueError, match=f"share is {share}, but must be above 0 and at most 1"):
        PolicyAverage(share)
