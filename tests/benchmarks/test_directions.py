"""
What a direction is worth: exact where the answer is known, and measured without leaving a trace in the training.
"""

import math
from types import SimpleNamespace

import directions
import numpy as np
import pytest
import torch as th
from directions import Choice, gain, gains_table, make_run, measure, with_lambda
from stable_baselines3.common.buffers import RolloutBuffer

from sb3_trpo import TRPO
from sb3_trpo.trust_region.fisher import Fisher
from sb3_trpo.trust_region.linearization import Linearizations
from sb3_trpo.update.actor import Actor
from sb3_trpo.update.samples import whole_rollout

OPTIONS = SimpleNamespace(task="Pendulum-v1", seed=0, steps=1000, at=[256], rollouts=14, set=["n_envs=2", "n_steps=32"])


@pytest.fixture(scope="module")
def model() -> TRPO:
    result = TRPO("MlpPolicy", "Pendulum-v1", n_steps=64, seed=0, device="cpu", policy_kwargs={"net_arch": [4]})
    return result.learn(64)


@pytest.fixture(scope="module")
def fisher(model: TRPO) -> Fisher:
    actor = Actor(model.policy, model._action_distribution, True)
    return Fisher(Linearizations(actor.linearize, [whole_rollout(model.rollout_buffer)]))


def dense(fisher: Fisher) -> th.Tensor:
    return th.stack([fisher @ row for row in th.eye(len(fisher.parameters))])


@pytest.mark.parametrize("damping", [0.01, 1.0])
def test_gain_is_that_of_the_dense_formula(fisher, damping):
    n_parameters = len(fisher.parameters)
    each, truth = th.randn(2, 9, n_parameters, generator=th.Generator().manual_seed(1)).unbind()
    f = dense(fisher).double()
    expected = []
    for i in range(9):
        others = [j for j in range(9) if abs(i - j) > directions.N_NEIGHBOURS]
        x = th.linalg.solve(f + damping * th.eye(n_parameters), each[i].double())
        expected.append(float(truth[others].mean(0).double() @ x / (x @ f @ x).sqrt()))
    mean, error = gain(fisher, each, truth, damping, 1)
    assert mean == pytest.approx(np.mean(expected), rel=0.03)
    assert error == pytest.approx(np.std(expected, ddof=1) / 3, rel=0.1)


def test_no_direction_gains_more_than_the_natural_gradient(fisher):
    g = th.randn(1, len(fisher.parameters), generator=th.Generator().manual_seed(2))
    # With the direction's own gradient for the truth, in all rollouts.
    truth = g.expand(9, -1)
    best, _ = gain(fisher, truth, truth, 1e-3, 1)
    others = th.randn(9, g.shape[1], generator=th.Generator().manual_seed(3))
    assert gain(fisher, others, truth, 1e-3, 1)[0] < best
    assert gain(fisher, truth, truth, 1.0, 1)[0] < best


def test_noise_averages_out(fisher):
    generator = th.Generator().manual_seed(4)
    signal = th.randn(len(fisher.parameters), generator=generator)
    each = signal + 5 * th.randn(60, len(signal), generator=generator)
    truth = signal.expand(60, -1)
    gains = [gain(fisher, each, truth, 0.1, size)[0] for size in (1, 10, 50)]
    assert gains[0] < gains[1] < gains[2]


@pytest.mark.parametrize("gae_lambda", [0.0, 0.5, 1.0])
def test_advantages_of_another_lambda_are_those_it_would_have_had(gae_lambda):
    rng = np.random.default_rng(0)
    model = TRPO("MlpPolicy", "Pendulum-v1", n_steps=8, seed=0, device="cpu")
    buffer = RolloutBuffer(8, model.observation_space, model.action_space, gae_lambda=0.9, gamma=0.97, n_envs=3)
    buffer.rewards, buffer.values = rng.normal(size=(2, 8, 3)).astype(np.float32)
    buffer.episode_starts = (rng.random((8, 3)) < 0.3).astype(np.float32)
    last_values, dones = th.tensor([1.0, 2.0, 3.0]), np.array([0, 1, 0])
    buffer.compute_returns_and_advantage(last_values, dones)
    original = buffer.advantages.copy()
    changed = with_lambda(buffer, gae_lambda)
    np.testing.assert_array_equal(buffer.advantages, original)
    buffer.gae_lambda = gae_lambda
    buffer.compute_returns_and_advantage(last_values, dones)
    np.testing.assert_allclose(changed.advantages, buffer.advantages, atol=1e-5)


def test_the_policy_stands_still_while_it_is_judged(monkeypatch):
    standing, updates = [], []

    def judge(model, buffers, choices):
        assert model.num_timesteps == 256
        for buffer in buffers:
            samples = whole_rollout(buffer)
            log_prob = model.policy.get_distribution(samples.observations).log_prob(samples.actions)
            th.testing.assert_close(log_prob.detach(), samples.old_log_prob, atol=1e-4, rtol=0)
        standing.append(len(buffers))
        updates.append(model._n_updates)
        return {}

    monkeypatch.setattr(directions, "judge", judge)
    assert measure(make_run(OPTIONS), OPTIONS.at, OPTIONS.rollouts, []) == {256: {}}
    assert standing == [14]
    assert updates == [4]


def test_each_choice_is_judged_from_one_rollout_and_from_the_mean_of_ten():
    choices = [Choice(0.9, 0.1), Choice(0.5, 1.0)]
    (gains,) = measure(make_run(OPTIONS), OPTIONS.at, 16, choices).values()
    assert list(gains) == choices
    for by_size in gains.values():
        assert list(by_size) == [1, 10]
        assert np.isfinite(by_size[1]).all()
        assert math.isnan(by_size[10][1])
    assert gains_table(gains).splitlines()[2].startswith("| 0.9 | 0.1 |")


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"rollouts": 5}, "rollouts=5 must be more than 5"),
        ({"at": [1000]}, r"at=\[1000\] must all lie below steps=1000"),
    ],
)
def test_impossible_requests_are_refused(changed, message):
    with pytest.raises(ValueError, match=message):
        make_run(SimpleNamespace(**{**vars(OPTIONS), **changed}))
