import copy
import itertools
import math
import re
from typing import Any

import gymnasium as gym
import numpy as np
import pytest
import torch as th
from gymnasium import spaces
from sb3_contrib.common.recurrent.policies import RecurrentActorCriticPolicy
from sb3_contrib.common.recurrent.type_aliases import RNNStates
from stable_baselines3.common.buffers import RolloutBuffer
from stable_baselines3.common.callbacks import BaseCallback
from stable_baselines3.common.env_util import make_vec_env
from stable_baselines3.common.evaluation import evaluate_policy
from stable_baselines3.common.logger import configure
from stable_baselines3.common.policies import ActorCriticPolicy
from stable_baselines3.common.torch_layers import FlattenExtractor
from torch import nn
from updates import Crash, changed, state

from sb3_trpo import TRPO, MaskableRecurrentTRPO, RecurrentTRPO
from sb3_trpo.checkpoints import Checkpoint
from sb3_trpo.trust_region.fisher import Fisher
from sb3_trpo.trust_region.linearization import Linearizations
from sb3_trpo.update.sequences import SequenceSamples, every_sequence, run_lstm, sequence_chunks, shuffle_sequences
from sb3_trpo.validation.values import UserError

SMALL = {"lstm_hidden_size": 4, "net_arch": [5]}
ACTIONS = [spaces.Box(-1, 1, (2,)), spaces.Discrete(3), spaces.MultiDiscrete([2, 3]), spaces.MultiBinary(2)]
DICT = spaces.Dict({"a": spaces.Box(-1, 1, (3,)), "b": spaces.Discrete(2)})
IMAGE = spaces.Box(0, 255, (3, 36, 36), np.uint8)


class Game(gym.Env):
    """Random observations, rewards for large actions at random, and episodes of random length."""

    def __init__(self, action_space: Any = ACTIONS[1], obs_space: Any = None, longest: int = 9) -> None:
        self.action_space = action_space
        self.observation_space = spaces.Box(-1, 1, (3,)) if obs_space is None else obs_space
        self.longest = longest

    def _next(self) -> Any:
        self.observation_space.seed(int(self.np_random.integers(2**31)))
        return self.observation_space.sample()

    def reset(self, *, seed: int | None = None, options: Any = None) -> Any:
        super().reset(seed=seed)
        self._left, self._pays = int(self.np_random.integers(1, self.longest + 1)), 0.0
        return self._next(), {}

    def step(self, action: Any) -> Any:
        reward = self._pays * float(np.mean(action))
        self._pays = float(self.np_random.integers(2))
        self._left -= 1
        return self._next(), reward, self._left <= 0, False, {}


class ExactExtractor(FlattenExtractor):
    """SB3's, in double precision if asked."""

    dtype = th.float32

    def forward(self, observations: th.Tensor) -> th.Tensor:
        return super().forward(observations).to(self.dtype)


class Opened(RecurrentTRPO):
    """Shows what an update is made of."""

    def samples(self) -> SequenceSamples:
        return self._rollout_samples()

    def linearize(self, samples: SequenceSamples) -> Any:
        return self._make_actor().linearize(samples)

    def logits(self, samples: SequenceSamples) -> th.Tensor:
        with th.no_grad():
            return self._action_distribution(samples).distribution.logits


class Notes(BaseCallback):
    """Notes what a rollout begins with, and what the policy saw."""

    def _on_rollout_start(self) -> None:
        self.states = copy.deepcopy(self.model._last_lstm_states)
        self.obs: list[th.Tensor] = []
        self.starts: list[th.Tensor] = []

    def _on_step(self) -> bool:
        self.obs.append(self.locals["obs_tensor"].clone())
        self.starts.append(th.as_tensor(self.locals["self"]._last_episode_starts).float())
        return True


def envs(n: int = 2, **kwargs: Any) -> Any:
    return make_vec_env(lambda: Game(**kwargs), n_envs=n, seed=0)


def make(kind: type[TRPO] = RecurrentTRPO, policy: Any = "MlpLstmPolicy", env: Any = None, **kwargs: Any) -> Any:
    settings = {"n_steps": 32, "batch_size": 16, "seed": 0, "device": "cpu", "policy_kwargs": SMALL}
    return kind(policy, envs() if env is None else env, **{**settings, **kwargs})


def step_by_step(policy: Any, states: RNNStates, obs: list[th.Tensor], starts: list[th.Tensor]) -> list[Any]:
    """By sb3-contrib's own method, one step after the other: the action distributions."""
    memory, result = states.pi, []
    with th.no_grad():
        for observation, start in zip(obs, starts, strict=True):
            distribution, memory = policy.get_distribution(observation, memory, start)
            result.append(copy.deepcopy(distribution.distribution))
    return result


def kl(old: Any, new: Any) -> th.Tensor:
    if isinstance(old, list):
        return sum((kl(p, q) for p, q in zip(old, new, strict=True)), th.zeros(()))
    divergence = th.distributions.kl_divergence(old, new)
    return divergence.reshape(len(divergence), -1).sum(dim=1)


def test_fisher_goes_through_time() -> None:
    kwargs = {"lstm_hidden_size": 2, "net_arch": [], "features_extractor_class": ExactExtractor}
    model = make(Opened, n_steps=12, policy_kwargs=kwargs)
    model.learn(48)
    policy = model.policy.double()
    policy.features_extractor.dtype = th.float64
    samples = model.samples()
    # The second rollout goes on in the middle of episodes.
    assert samples.states["pi"][samples.starts].abs().sum() > 0
    samples = samples._replace(states={name: states.double() for name, states in samples.states.items()})
    linearization = model.linearize(samples)
    fisher = Fisher(Linearizations(lambda _: linearization, [samples]))
    columns = th.stack([fisher @ unit for unit in th.eye(len(fisher.parameters), dtype=th.float64)])

    # J by differences, of what an LSTM computes that is stepped by hand.
    @th.no_grad()
    def logits() -> th.Tensor:
        rows = []
        for row in range(len(samples.starts)):
            if samples.starts[row]:
                h, c = samples.states["pi"][row].unsqueeze(2)
            _, (h, c) = policy.lstm_actor(samples.observations[row].double().view(1, 1, -1), (h, c))
            rows.append(policy.action_net(h[-1, 0]))
        return th.stack(rows)

    probs = logits().softmax(dim=1)
    differences = []
    for parameter in fisher.parameters:
        flat = parameter.data.view(-1)
        for i in range(len(flat)):
            sides = []
            for side in (1e-5, -1e-5):
                flat[i] += side
                sides.append(logits())
                flat[i] -= side
            differences.append((sides[0] - sides[1]) / 2e-5)
    jacobian = th.stack(differences, dim=2)
    metric = th.diag_embed(probs) - probs.unsqueeze(2) * probs.unsqueeze(1)
    explicit = th.einsum("nap,nab,nbq->pq", jacobian, metric, jacobian) / len(probs)
    th.testing.assert_close(columns, explicit, rtol=1e-6, atol=1e-10)
    # Weights of the recurrence have a part in it.
    assert explicit.diagonal().count_nonzero() > len(explicit) * 0.9


@pytest.mark.parametrize("action_space", ACTIONS, ids=str)
def test_kl_stays_within_delta_measured_step_by_step(action_space: Any) -> None:
    model = make(env=envs(action_space=action_space))
    for _ in range(2):
        old, notes = copy.deepcopy(model.policy), Notes()
        model.learn(64, callback=notes, reset_num_timesteps=False)
        pairs = zip(
            *(step_by_step(one, notes.states, notes.obs, notes.starts) for one in (old, model.policy)), strict=True
        )
        measured = float(th.cat([kl(p, q) for p, q in pairs]).mean())
        assert 0.3 * 0.01 < measured <= 0.01 * (1 + 1e-3)
        assert measured == pytest.approx(model.logger.name_to_value["train/kl_divergence_loss"], rel=1e-3)


def test_memory_begins_anew_with_an_episode() -> None:
    model = make(Opened)
    model.learn(64)
    samples = model.samples()
    before = model.logits(samples)
    first, second, *_ = samples.starts.nonzero().flatten().tolist()
    assert second - first > 1
    changed = samples._replace(observations=samples.observations.clone())
    changed.observations[first] = -changed.observations[first]
    after = model.logits(changed)
    assert th.equal(before[second:], after[second:])
    assert (before[first:second] != after[first:second]).any(dim=1).all()


def test_padding_changes_nothing() -> None:
    th.manual_seed(0)
    lstm = nn.LSTM(3, 4)
    short, long = th.randn(2, 3), th.randn(7, 3)
    states = th.randn(9, 2, 1, 4)
    starts = th.tensor([1, 0, 1, 0, 0, 0, 0, 0, 0]).bool()
    with_padding = run_lstm(lstm, th.cat([short, long]), starts, states)
    without = run_lstm(lstm, th.cat([short, long[:2]]), starts[:4], states[:4])
    assert th.equal(with_padding[:4], without)
    weights = [th.autograd.grad(output[:2].square().sum(), lstm.parameters()) for output in (with_padding, without)]
    for padded, plain in zip(*weights, strict=True):
        th.testing.assert_close(padded, plain, rtol=1e-6, atol=1e-8)
    # Each alone, by torch.
    for rows in (slice(0, 2), slice(2, 9)):
        h, c = states[rows.start].unsqueeze(2)
        alone, _ = lstm(th.cat([short, long])[rows].unsqueeze(1), (h.contiguous(), c.contiguous()))
        th.testing.assert_close(with_padding[rows], alone.squeeze(1))


def random_samples(lengths: list[int]) -> SequenceSamples:
    starts = th.cat([th.arange(n) == 0 for n in lengths])
    rows = th.arange(len(starts)).float()
    return SequenceSamples(rows.view(-1, 1), rows, rows, rows, rows, rows, starts, {"pi": rows.view(-1, 1, 1, 1)})


def sequences(samples: SequenceSamples) -> list[list[int]]:
    firsts = [*samples.starts.nonzero().flatten().tolist(), len(samples.starts)]
    return [samples.actions[a:b].int().tolist() for a, b in itertools.pairwise(firsts)]


@pytest.mark.parametrize("size", [1, 4, 7, 100])
def test_chunks_minibatches_and_thinning_take_whole_sequences(size: int) -> None:
    samples = random_samples([3, 1, 5, 2, 2, 8])
    whole = sequences(samples)
    chunks = sequence_chunks(samples, size)
    assert [one for chunk in chunks for one in sequences(chunk)] == whole
    assert all(len(chunk.starts) <= size or len(sequences(chunk)) == 1 for chunk in chunks)
    minibatches = shuffle_sequences(samples, size)
    parts = [type(samples)(*(f[rows] if isinstance(f, th.Tensor) else f for f in samples)) for rows in minibatches]
    assert sorted(one for part in parts for one in sequences(part)) == sorted(whole)
    assert sequences(every_sequence(samples, 2)) == whole[::2]


def test_chunks_and_thinning_lead_to_nearly_the_same_step() -> None:
    steps = []
    for kwargs in ({}, {"fisher_chunk_size": 10}, {"sub_sampling_factor": 2}):
        model = make(n_critic_updates=0, cg_residual_tol=1e-5, cg_progress_tol=0.0, **kwargs)
        before = nn.utils.parameters_to_vector(model.policy.parameters()).detach().clone()
        model.learn(64)
        steps.append(nn.utils.parameters_to_vector(model.policy.parameters()).detach() - before)
    th.testing.assert_close(steps[1], steps[0], rtol=1e-2, atol=1e-4)
    assert float(nn.functional.cosine_similarity(steps[2], steps[0], dim=0)) > 0.5


class PassThrough(nn.LSTM):
    """Remembers nothing."""

    def forward(self, inputs: th.Tensor, states: Any) -> Any:
        return inputs, states


class Watched(ActorCriticPolicy):
    """A policy that autograd has to take apart."""

    def get_distribution(self, obs: Any) -> Any:
        return super().get_distribution(obs)

    def predict_values(self, obs: Any) -> Any:
        return super().predict_values(obs)


@pytest.mark.parametrize("action_space", ACTIONS, ids=str)
def test_without_memory_the_update_is_trpos(action_space: Any) -> None:
    env = envs(action_space=action_space, longest=1)
    recurrent = make(env=env, policy_kwargs={"lstm_hidden_size": 3, "net_arch": [5]})
    policy = recurrent.policy
    policy.lstm_actor, policy.lstm_critic = PassThrough(3, 3), PassThrough(3, 3)
    plain = make(TRPO, Watched, env, policy_kwargs={"net_arch": [5]})
    plain.policy.load_state_dict({k: v for k, v in policy.state_dict().items() if not k.startswith("lstm")})
    for model in (recurrent, plain):
        model.set_random_seed(0)
        model.learn(128)
    for name, value in plain.policy.state_dict().items():
        assert th.equal(value, policy.state_dict()[name]), name


@pytest.mark.parametrize(
    ("policy", "obs_space", "kwargs"),
    [
        ("MultiInputLstmPolicy", DICT, {}),
        ("CnnLstmPolicy", IMAGE, {"n_steps": 8}),
        ("MlpLstmPolicy", None, {"policy_kwargs": {**SMALL, "shared_lstm": True, "enable_critic_lstm": False}}),
        ("MlpLstmPolicy", None, {"policy_kwargs": {**SMALL, "enable_critic_lstm": False}}),
        ("MlpLstmPolicy", None, {"policy_kwargs": {**SMALL, "n_lstm_layers": 2}}),
        ("MlpLstmPolicy", None, {"policy_kwargs": {**SMALL, "share_features_extractor": False}}),
    ],
    ids=["dictionary", "image", "shared LSTM", "critic without", "two layers", "own features"],
)
def test_policies_of_every_kind_learn(policy: str, obs_space: Any, kwargs: Any) -> None:
    model = make(policy=policy, env=envs(obs_space=obs_space), **kwargs)
    before = copy.deepcopy(model.policy.state_dict())
    model.learn(2 * model.n_steps * model.n_envs)
    assert 0 < model.logger.name_to_value["train/kl_divergence_loss"] <= 0.01 * (1 + 1e-6)
    # Every parameter is trained, by the policy step or by the critic's fit.
    unmoved = [name for name, value in model.policy.state_dict().items() if th.equal(value, before[name])]
    assert unmoved == []


@pytest.mark.parametrize(("options", "bias"), [({}, 1.0), ({"forget_bias": 2.5}, 2.5), ({"forget_bias": 0.0}, None)])
def test_forget_gates_are_open_at_the_beginning(options: Any, bias: float | None) -> None:
    kwargs = {**SMALL, "n_lstm_layers": 2, **options}
    policy = make(policy_kwargs=kwargs).policy
    theirs = make(policy=RecurrentActorCriticPolicy, policy_kwargs={**SMALL, "n_lstm_layers": 2}).policy
    for name, parameter in policy.named_parameters():
        other = theirs.state_dict()[name]
        if bias is None or not name.startswith("lstm") or "bias" not in name:
            assert th.equal(parameter, other), name
        else:
            gates, others = parameter.view(4, -1), other.view(4, -1)
            assert th.equal(gates[[0, 2, 3]], others[[0, 2, 3]])
            assert (gates[1] == (bias if "bias_ih" in name else 0.0)).all()


def test_gsde_and_correlated_noise() -> None:
    env = envs(action_space=ACTIONS[0])
    for kwargs in ({"use_sde": True, "sde_sample_freq": 4}, {"noise_correlation": 0.5}):
        model = make(env=env, **kwargs).learn(128)
        assert 0 < model.logger.name_to_value["train/kl_divergence_loss"] <= 0.01 * (1 + 1e-6)


@pytest.mark.parametrize("argument", [{"bidirectional": True}, {"batch_first": True}, {"proj_size": 4}])
def test_forms_of_lstm_that_have_no_place_are_named(argument: dict[str, Any]) -> None:
    with pytest.raises(UserError, match=f"^policy_kwargs\\['lstm_kwargs'\\] has '{next(iter(argument))}'"):
        RecurrentTRPO("MlpLstmPolicy", "Pendulum-v1", policy_kwargs={"lstm_kwargs": argument}, device="cpu")


@pytest.mark.parametrize(
    ("name", "value", "said"),
    [
        ("lstm_kwargs", "x", "is 'x', but must be a dictionary, or None"),
        ("lstm_kwargs", [1], "is [1], but must be a dictionary, or None"),
        ("lstm_kwargs", {"num_layers": 3}, "has 'num_layers', which is the policy's own argument 'n_lstm_layers'"),
        ("lstm_kwargs", {"hidden_size": 5}, "has 'hidden_size', which is the policy's own argument 'lstm_hidden_size'"),
        ("lstm_kwargs", {"input_size": 3}, "has 'input_size', but an LSTM may only be given 'bias' and 'dropout'"),
        ("lstm_kwargs", {"device": "meta"}, "has 'device', but an LSTM may only be given"),
        ("lstm_kwargs", {1: 2}, "has 1, but an LSTM may only be given"),
        ("lstm_kwargs", {"dropout": "x"}, "['dropout'] is 'x', but must be between 0 and 1"),
        ("lstm_kwargs", {"dropout": 2}, "['dropout'] is 2, but must be between 0 and 1"),
        ("lstm_kwargs", {"bias": None}, "['bias'] is None, but must be one of True, False"),
        ("lstm_hidden_size", 0, "is 0, but must be an integer of at least 1"),
        ("n_lstm_layers", -1, "is -1, but must be an integer of at least 1"),
        ("forget_bias", None, "is None, but must be a number"),
        ("forget_bias", math.nan, "is nan, but must be a number"),
    ],
)
@pytest.mark.parametrize("algorithm", [RecurrentTRPO, MaskableRecurrentTRPO])
def test_arguments_of_the_lstm_that_are_not_allowed_are_named(algorithm: Any, name: str, value: Any, said: str) -> None:
    with pytest.raises(UserError, match=re.escape(f"policy_kwargs['{name}']") + ".*" + re.escape(said)):
        algorithm("MlpLstmPolicy", "CartPole-v1", policy_kwargs={name: value}, device="cpu")


def test_a_shared_lstm_beside_one_of_the_critics_is_named() -> None:
    with pytest.raises(UserError, match=r"^policy_kwargs\['shared_lstm'\] is True, .*'enable_critic_lstm': False, too"):
        make(policy_kwargs={**SMALL, "shared_lstm": True})
    with pytest.raises(AssertionError):  # as with sb3-contrib
        make(policy_kwargs={**SMALL, "shared_lstm": True})


@pytest.mark.parametrize("lstm_kwargs", [None, {}, {"bias": 0}, {"dropout": 0}, {"bidirectional": False}])
def test_arguments_of_the_lstm_that_are_allowed_train(lstm_kwargs: Any) -> None:
    model = make(policy_kwargs={**SMALL, "lstm_kwargs": lstm_kwargs})
    assert model.policy.lstm_actor.bias == ("bias" not in (lstm_kwargs or {}))
    model.learn(64)


def test_states_and_starts_that_do_not_fit_are_named() -> None:
    model = RecurrentTRPO("MlpLstmPolicy", "Pendulum-v1", policy_kwargs={"lstm_hidden_size": 8}, device="cpu")
    obs, right = np.zeros((2, 3), np.float32), np.zeros((1, 2, 8), np.float32)
    for wrong in (right, (right,), (right[:, :1], right[:, :1]), (right, right[..., :3]), "state", 5, (), 3 * (right,)):
        with pytest.raises(UserError, match=r"^state is .* two arrays of shape .* \(1, 2, 8\)"):
            model.predict(obs, wrong)
    for starts in (np.zeros(1), np.zeros(3), True):
        with pytest.raises(UserError, match=r"^episode_start has \d values, but must have 2"):
            model.predict(obs, episode_start=starts)
    for wrong in ((right * np.nan, right), (right, right + np.inf), (right.astype(str), right)):
        with pytest.raises(UserError, match=r"^state has numbers that are not finite"):
            model.predict(obs, wrong)
    for starts in ([np.nan, 0.0], ["a", "b"], [0.5, 0.5], [None, None], [2, 0]):
        with pytest.raises(UserError, match=r"^episode_start is .* true or false for each observation"):
            model.predict(obs, episode_start=starts)
    assert model.predict(obs, (right, right), [False, True])[0].shape == (2, 1)
    assert model.predict(obs[0], None, np.ones(1))[0].shape == (1,)


def test_predict_takes_and_gives_states() -> None:
    model = make().learn(64)
    obs = np.random.default_rng(0).uniform(-1, 1, (5, 2, 3)).astype(np.float32)
    state, starts = None, np.ones(2, dtype=bool)
    for observation in obs:
        _, state = model.predict(observation, state=state, episode_start=starts, deterministic=True)
        starts = np.zeros(2, dtype=bool)
    assert state[0].shape == (1, 2, 4)
    _, anew = model.predict(obs[-1], state=state, episode_start=np.ones(2, dtype=bool))
    _, fresh = model.predict(obs[-1])
    assert np.array_equal(anew[0], fresh[0])
    assert not np.array_equal(state[0], fresh[0])
    mean, _ = evaluate_policy(model, envs(), n_eval_episodes=4, warn=False)
    assert np.isfinite(mean)


@pytest.mark.parametrize("trusted", [True, False])
def test_a_saved_model_acts_and_learns_as_before(tmp_path: Any, trusted: bool) -> None:
    model = make().learn(64)
    model.save(tmp_path / "model.zip")
    loaded = RecurrentTRPO.load(tmp_path / "model.zip", env=envs(), device="cpu", trusted=trusted)
    obs = np.random.default_rng(0).uniform(-1, 1, (2, 3)).astype(np.float32)
    for one, other in zip(
        model.predict(obs, deterministic=True)[1], loaded.predict(obs, deterministic=True)[1], strict=True
    ):
        assert np.array_equal(one, other)
    loaded.set_logger(configure(None, []))
    loaded.learn(64)


def test_what_is_remembered_can_be_kept_and_given_back() -> None:
    model, other = make().learn(64), make()
    assert all(float(part.abs().sum()) > 0 for states in model._last_lstm_states for part in states)
    other.set_checkpoint_state(model.get_checkpoint_state())
    for a, b in zip(model._last_lstm_states, other._last_lstm_states, strict=True):
        assert all(th.equal(x, y) for x, y in zip(a, b, strict=True))


def test_observations_that_are_not_finite_are_refused_by_environment_and_step() -> None:
    class Broken(Game):
        def _next(self) -> Any:
            obs = super()._next()
            return obs * np.nan if self.np_random.random() < 0.1 else obs

    model = make(env=make_vec_env(Broken, n_envs=2, seed=0))
    with pytest.raises(ValueError, match=r"environment \d.* after \d+ steps"):
        model.learn(64)


def test_what_has_no_memory_is_refused() -> None:
    with pytest.raises(ValueError, match="subclass of sb3_contrib's RecurrentActorCriticPolicy"):
        make(policy=ActorCriticPolicy, policy_kwargs={})
    with pytest.raises(ValueError, match="rollout_buffer_class is RolloutBuffer"):
        make(rollout_buffer_class=RolloutBuffer)
    with pytest.raises(ValueError, match="n_steps is 1, but must be at least 2"):
        make(n_steps=1, batch_size=2)


def test_a_crash_changes_nothing(tmp_path: Any) -> None:
    def make_env(seed: int) -> Any:
        return make_vec_env("CartPole-v1", n_envs=2, seed=seed)

    expected = make(env=make_env(0)).learn(256, Checkpoint(tmp_path / "other.zip", every=1))
    with pytest.raises(InterruptedError):
        make(env=make_env(0)).learn(256, [Checkpoint(tmp_path / "checkpoint.zip", every=1), Crash(170)])
    checkpoint = Checkpoint(tmp_path / "checkpoint.zip", every=1)
    resumed = checkpoint.load(make_env(5), RecurrentTRPO, device="cpu")
    th.manual_seed(99)
    resumed.learn(256, [checkpoint])
    assert resumed.num_timesteps == 256
    assert not changed(state(expected), state(resumed))
    for a, b in zip(expected._last_lstm_states, resumed._last_lstm_states, strict=True):
        assert all(th.equal(x, y) for x, y in zip(a, b, strict=True))
