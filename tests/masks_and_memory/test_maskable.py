import contextlib
import copy
import re
import subprocess
import sys
from typing import Any

import gymnasium as gym
import numpy as np
import pytest
import torch as th
from gymnasium import spaces
from masked_game import MASKED_SPACES, MaskedGame, sizes_of
from sb3_contrib.common.envs import (
    InvalidActionEnvDiscrete,
    InvalidActionEnvMultiBinary,
    InvalidActionEnvMultiDiscrete,
)
from sb3_contrib.common.maskable.callbacks import MaskableEvalCallback
from sb3_contrib.common.maskable.evaluation import evaluate_policy
from sb3_contrib.common.maskable.policies import MaskableActorCriticPolicy
from sb3_contrib.common.wrappers import ActionMasker
from stable_baselines3.common.buffers import RolloutBuffer
from stable_baselines3.common.callbacks import BaseCallback
from stable_baselines3.common.env_util import make_vec_env
from stable_baselines3.common.logger import configure
from stable_baselines3.common.vec_env import DummyVecEnv, SubprocVecEnv

from sb3_trpo import TRPO, MaskableTRPO
from sb3_trpo.trust_region.fisher import Fisher
from sb3_trpo.trust_region.linearization import Linearizations
from sb3_trpo.trust_region.mlp_linearization import MlpLinearization
from sb3_trpo.validation.values import UserError

DICT = spaces.Dict({"a": spaces.Box(-1, 1, (3,)), "b": spaces.Discrete(2)})
IMAGE = spaces.Box(0, 255, (3, 36, 36), np.uint8)


class Forgiving(MaskedGame):
    """A forbidden choice is counted, and is no error."""

    n_broken = 0

    def step(self, action: Any) -> Any:
        self.n_broken += not np.concatenate(self._masks)[action]
        self._masks = [np.ones(size, bool) for size in sizes_of(self.action_space)]
        return super().step(action)


class Watched(MaskableActorCriticPolicy):
    """A policy that autograd has to take apart, in any precision."""

    def extract_features(self, obs: Any, features_extractor: Any = None) -> Any:
        return super().extract_features(obs, features_extractor).to(self.action_net.weight.dtype)

    def get_distribution(self, obs: Any, action_masks: Any = None) -> Any:
        distribution = self._get_action_dist_from_latent(self.mlp_extractor.forward_actor(self.extract_features(obs)))
        if action_masks is not None:
            distribution.apply_masking(action_masks)
        return distribution


class Opened(MaskableTRPO):
    """Shows what an update is made of."""

    def linearize(self) -> tuple[Any, Any]:
        samples = self._rollout_samples()
        return samples, self._make_actor().linearize(samples)


def trained(
    kind: type[TRPO] = MaskableTRPO, policy: Any = "MlpPolicy", env: Any = None, n: int = 1, **kwargs: Any
) -> Any:
    env = make_vec_env(lambda: MaskedGame(), n_envs=2, seed=0) if env is None else env
    model = kind(policy, env, **{"n_steps": 32, "batch_size": 64, "seed": 0, "device": "cpu", **kwargs})
    return model.learn(n * model.n_steps * model.n_envs)


def log_probs(policy: Any, obs: th.Tensor, masks: th.Tensor, sizes: list[int]) -> list[th.Tensor]:
    """By hand: of each sub-action, ln π of its choices, -inf for those that are forbidden."""
    latent = policy.mlp_extractor.forward_actor(obs)
    parts = zip(policy.action_net(latent).split(sizes, dim=1), masks.split(sizes, dim=1), strict=True)
    return [logits.masked_fill(~mask, -th.inf).log_softmax(dim=1) for logits, mask in parts]


@pytest.mark.parametrize("policy", ["MlpPolicy", Watched])
@pytest.mark.parametrize("space", MASKED_SPACES, ids=str)
def test_fisher_is_that_of_the_masked_distribution(space: Any, policy: Any) -> None:
    env = make_vec_env(lambda: MaskedGame(space), n_envs=2, seed=0)
    model = trained(Opened, policy, env, n_steps=8, batch_size=16, policy_kwargs={"net_arch": [4]})
    if policy is Watched:
        model.policy.double()
    samples, linearization = model.linearize()
    assert isinstance(linearization, MlpLinearization) == (policy == "MlpPolicy")
    fisher = Fisher(Linearizations(lambda _: linearization, [samples]))
    units = th.eye(len(fisher.parameters), dtype=next(model.policy.parameters()).dtype)
    columns = th.stack([fisher @ unit for unit in units]).double()

    # θ has the actor's parameters in the policy's order.
    with th.no_grad():
        # The policy keeps its last distribution, and can't be copied with a graph behind it.
        model.policy.get_distribution(samples.observations)
    exact = copy.deepcopy(model.policy).double()
    parameters = [p for name, p in exact.named_parameters() if "policy_net" in name or "action_net" in name]
    explicit = th.zeros_like(columns)
    for log_prob in log_probs(exact, samples.observations.double(), samples.action_masks, sizes_of(space)):
        for state, choice in (log_prob > -th.inf).nonzero().tolist():
            score = th.autograd.grad(log_prob[state, choice], parameters, retain_graph=True)
            flat = th.cat([part.flatten() for part in score])
            explicit += log_prob[state, choice].exp().detach() * th.outer(flat, flat) / len(log_prob)
    rtol, atol = (1e-9, 1e-12) if policy is Watched else (1e-4, 1e-6)
    th.testing.assert_close(columns, explicit, rtol=rtol, atol=atol)


@pytest.mark.parametrize("space", MASKED_SPACES[:2], ids=str)
def test_with_all_choices_allowed_the_update_is_trpos(space: Any) -> None:
    # MultiBinary is left out: sb3-contrib's policy has two logits for a bit where SB3's has one.
    env = make_vec_env(lambda: MaskedGame(space, p_allowed=1.0), n_envs=2, seed=0)
    masked = MaskableTRPO("MlpPolicy", env, n_steps=32, batch_size=64, seed=0, device="cpu")
    plain = TRPO("MlpPolicy", env, n_steps=32, batch_size=64, seed=0, device="cpu")
    for name, value in masked.policy.state_dict().items():
        assert th.equal(value, plain.policy.state_dict()[name])
    masked.learn(64)
    masked.policy.load_state_dict(plain.policy.state_dict())
    masked.policy.optimizer.load_state_dict(plain.policy.optimizer.state_dict())
    # The same rollout for both.
    for model in (masked, plain):
        model.learn(64)
    for name in ("observations", "actions", "values", "log_probs", "advantages", "returns"):
        setattr(plain.rollout_buffer, name, copy.deepcopy(getattr(masked.rollout_buffer, name)))
    plain.rollout_buffer.generator_ready = masked.rollout_buffer.generator_ready
    plain.policy.load_state_dict(masked.policy.state_dict())
    plain.policy.optimizer.load_state_dict(copy.deepcopy(masked.policy.optimizer.state_dict()))
    for model in (masked, plain):
        th.manual_seed(1)
        model.train()
    for name, value in masked.policy.state_dict().items():
        assert th.equal(value, plain.policy.state_dict()[name]), name


@pytest.mark.parametrize("preconditioner", ["kfac", None])
def test_what_all_states_forbid_is_not_touched(preconditioner: str | None) -> None:
    class Blocked(MaskedGame):
        def _next(self) -> Any:
            obs = super()._next()
            self._masks[0][3] = False
            self._masks[0][0] = True
            return obs

    env = make_vec_env(Blocked, n_envs=2, seed=0)
    model = MaskableTRPO("MlpPolicy", env, n_steps=32, batch_size=64, seed=0, preconditioner=preconditioner)
    before = copy.deepcopy(model.policy.action_net.state_dict())
    model.learn(3 * 64)
    for name, value in model.policy.action_net.state_dict().items():
        # The preconditioner's eigenvectors mix rows by rounding.
        th.testing.assert_close(value[3], before[name][3], rtol=0, atol=0 if preconditioner is None else 1e-6)
        assert not th.allclose(value[0], before[name][0], rtol=0, atol=1e-4)


@pytest.mark.parametrize("space", MASKED_SPACES, ids=str)
def test_kl_of_the_masked_distribution_stays_within_delta(space: Any) -> None:
    env = make_vec_env(lambda: MaskedGame(space), n_envs=2, seed=0)
    model = trained(env=env)
    for delta in (0.01, 0.1):
        model.target_kl = delta
        old = copy.deepcopy(model.policy).double()
        states = RolloutStates()
        model.learn(64, callback=states, reset_num_timesteps=False)
        obs = th.as_tensor(np.concatenate(states.obs)).double()
        masks = th.as_tensor(np.concatenate(states.masks).reshape(len(obs), -1))
        new = copy.deepcopy(model.policy).double()
        kl = th.zeros(len(obs), dtype=th.float64)
        for p, q in zip(*(log_probs(one, obs, masks, sizes_of(space)) for one in (old, new)), strict=True):
            kl += th.where(p > -th.inf, p.exp() * (p - q), 0.0).sum(dim=1)
        measured = float(kl.mean())
        assert 0.3 * delta < measured <= delta * (1 + 1e-6)
        assert measured == pytest.approx(model.logger.name_to_value["train/kl_divergence_loss"], rel=1e-5)


class RolloutStates(BaseCallback):
    """Notes observations and masks."""

    def __init__(self) -> None:
        super().__init__()
        self.obs: list[Any] = []
        self.masks: list[Any] = []

    def _on_step(self) -> bool:
        self.obs.append(self.locals["obs_tensor"].numpy())
        self.masks.append(np.asarray(self.locals["action_masks"]))
        return True


def test_where_there_is_no_choice_nothing_is_learned_and_all_is_finite() -> None:
    env = make_vec_env(lambda: MaskedGame(p_allowed=0.0), n_envs=2, seed=0)
    model = MaskableTRPO("MlpPolicy", env, n_steps=32, batch_size=64, seed=0, device="cpu")
    before = copy.deepcopy(model.policy.action_net.state_dict())
    model.learn(128)
    assert model.logger.name_to_value["train/kl_divergence_loss"] == 0.0
    assert model.logger.name_to_value["train/entropy"] == pytest.approx(0.0, abs=1e-6)
    for name, value in model.policy.action_net.state_dict().items():
        assert th.equal(value, before[name])


@pytest.mark.parametrize("policy", ["MlpPolicy", Watched])
def test_both_paths_take_the_same_step(policy: Any) -> None:
    by_path = trained(policy=policy)
    reference = trained()
    for name, value in by_path.policy.state_dict().items():
        th.testing.assert_close(value, reference.policy.state_dict()[name], rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize(
    ("policy", "obs_space", "kwargs"),
    [("MultiInputPolicy", DICT, {}), ("CnnPolicy", IMAGE, {"n_steps": 8, "batch_size": 16})],
    ids=["dictionary", "image"],
)
def test_dictionaries_and_images(policy: str, obs_space: Any, kwargs: Any) -> None:
    env = make_vec_env(lambda: MaskedGame(obs_space=obs_space), n_envs=2, seed=0)
    model = trained(policy=policy, env=env, **kwargs)
    assert 0 < model.logger.name_to_value["train/kl_divergence_loss"] <= 0.01 * (1 + 1e-6)


def test_predict_obeys_masks() -> None:
    model = trained()
    obs = model.observation_space.sample()
    for choice in range(5):
        for deterministic in (True, False):
            action, state = model.predict(obs, deterministic=deterministic, action_masks=np.arange(5) == choice)
            assert action == choice
            assert state is None
    assert len({int(model.predict(obs)[0]) for _ in range(200)}) > 1


def test_contribs_evaluation_and_callback(tmp_path: Any) -> None:
    env = make_vec_env(lambda: MaskedGame(), n_envs=2, seed=0)
    callback = MaskableEvalCallback(
        make_vec_env(lambda: MaskedGame(), seed=1), eval_freq=16, n_eval_episodes=2, verbose=0
    )
    model = MaskableTRPO("MlpPolicy", env, n_steps=32, batch_size=64, device="cpu").learn(64, callback=callback)
    assert np.isfinite(callback.last_mean_reward)
    mean, _ = evaluate_policy(model, env, n_eval_episodes=4, warn=False)
    assert 0 <= mean <= 10


def test_masks_are_left_alone_if_so_asked() -> None:
    env = make_vec_env(lambda: gym.wrappers.TimeLimit(gym.make("CartPole-v1"), 20), n_envs=2, seed=0)
    model = MaskableTRPO("MlpPolicy", env, n_steps=32, batch_size=64, device="cpu").learn(64, use_masking=False)
    assert model.num_timesteps == 64
    with pytest.raises(ValueError, match=r"Environment 0 of 2 has no method action_masks\(\) after 0 steps"):
        model.learn(64)


@pytest.mark.parametrize("use_masking", [None, False, True])
def test_one_rollout_can_go_without_masks(use_masking: bool | None) -> None:
    model = trained(env=make_vec_env(lambda: MaskedGame(p_allowed=0.5), n_envs=2, seed=0))
    forgiving = make_vec_env(lambda: Forgiving(), n_envs=2, seed=0)
    model.set_env(forgiving)
    _, callback = model._setup_learn(64)
    options = {} if use_masking is None else {"use_masking": use_masking}
    assert model.collect_rollouts(forgiving, callback, model.rollout_buffer, 32, **options)
    n_broken = sum(forgiving.get_attr("n_broken"))
    assert (n_broken == 0) == (use_masking is not False)
    # It was for that rollout only.
    model.collect_rollouts(forgiving, callback, model.rollout_buffer, 32)
    assert sum(forgiving.get_attr("n_broken")) == n_broken


def test_environments_in_other_processes_outlive_the_question_for_masks() -> None:
    env = make_vec_env("CartPole-v1", n_envs=2, seed=0, vec_env_cls=SubprocVecEnv)
    with contextlib.closing(env):
        model = MaskableTRPO("MlpPolicy", env, n_steps=32, batch_size=64, device="cpu")
        with pytest.raises(ValueError, match=r"Environment 0 of 2 has no method action_masks\(\) after 0 steps"):
            model.learn(64)
        assert model.learn(64, use_masking=False).num_timesteps == 64


def test_masks_come_from_a_wrapper_and_from_other_processes() -> None:
    def make() -> Any:
        return ActionMasker(MaskedGame(), lambda env: env.unwrapped.action_masks().tolist())

    env = SubprocVecEnv([make, make])
    with contextlib.closing(env):
        model = MaskableTRPO("MlpPolicy", env, n_steps=32, batch_size=64, device="cpu").learn(64)
        assert model.num_timesteps == 64
        model.set_env(env)


@pytest.mark.parametrize(
    ("masks", "said"),
    [
        (np.ones(4, dtype=bool), r"of shape \(4,\) and type bool, but must be 5 booleans"),
        (np.zeros(5, dtype=bool), "all false"),
        (np.array([0.0, 0.5, 1.0, 1.0, 1.0]), "must be booleans, or 0 and 1"),
        (np.array([np.nan, 1, 1, 1, 1]), "must be booleans, or 0 and 1"),
        (np.array(["yes"] * 5), "of shape"),
        (None, "of shape"),
        ([[True, True], [True, False, True]], "must be one row of booleans: np.concatenate them"),
    ],
    ids=["shape", "all false", "fraction", "nan", "words", "none", "nested"],
)
def test_masks_that_are_none_say_where(masks: Any, said: str) -> None:
    class Broken(MaskedGame):
        def action_masks(self) -> Any:
            return masks if self.steps_left == 7 else super().action_masks()

    games = [lambda: MaskedGame(), lambda: Broken()]
    env = make_vec_env(lambda: games.pop(0)(), n_envs=2, seed=0)
    model = MaskableTRPO("MlpPolicy", env, n_steps=32, batch_size=64, device="cpu")
    with pytest.raises(ValueError, match=rf"environment 1 of 2 after 6 steps are .*{said}"):
        model.learn(64)


class Failing(MaskedGame):
    """Raises when it is asked for masks, at one moment of an episode."""

    def action_masks(self) -> Any:
        if self.steps_left == 7:
            raise KeyError("no rules")
        return super().action_masks()


@pytest.mark.parametrize("kind", [DummyVecEnv, SubprocVecEnv])
def test_an_environment_that_raises_when_it_is_asked_for_masks_is_named(kind: Any) -> None:
    model = MaskableTRPO("MlpPolicy", kind([MaskedGame, Failing]), n_steps=32, batch_size=64, device="cpu")
    with pytest.raises((KeyError, RuntimeError)) as error:
        model.learn(64)
    told = " ".join([str(error.value), *getattr(error.value, "__notes__", [])])
    assert re.search("[Ee]nvironment 1 of 2.* after 6 steps", told)
    model.env.close()


def test_masks_as_an_attribute_are_named() -> None:
    class Attribute(MaskedGame):
        action_masks = np.ones(5, dtype=bool)

    with pytest.raises(TypeError) as error:
        MaskableTRPO("MlpPolicy", Attribute(), n_steps=32, batch_size=32, device="cpu").learn(32)
    assert "environment 0 of 1" in error.value.__notes__[0]


@pytest.mark.parametrize("n", [None, 1, 2])
@pytest.mark.parametrize(
    ("masks", "said"),
    [(np.ones((3, 5)), "must be"), ([1], "must be"), ("all", "must be"), ("none", "all false"), (7 * [0.5], "must be")],
)
def test_masks_that_predict_can_not_take_are_named(masks: Any, said: str, n: int | None) -> None:
    model = MaskableTRPO("MlpPolicy", MaskedGame(), n_steps=32, batch_size=32, device="cpu")
    obs = np.zeros((3,) if n is None else (n, 3), np.float32)
    masks = np.zeros(5 * (n or 1)) if isinstance(masks, str) and masks == "none" else masks
    with pytest.raises(UserError, match=rf"^The masks given to predict\(\) are .*{said}"):
        model.predict(obs, action_masks=masks)


def test_a_sub_action_without_a_choice_is_refused() -> None:
    class Broken(MaskedGame):
        def action_masks(self) -> Any:
            return np.array([True, True, True, False, False, False, False])

    env = make_vec_env(lambda: Broken(MASKED_SPACES[1]), n_envs=1, seed=0)
    with pytest.raises(ValueError, match="every choice of a sub-action is forbidden"):
        MaskableTRPO("MlpPolicy", env, n_steps=32, batch_size=32, device="cpu").learn(32)


def test_continuous_actions_and_policies_without_masks_are_refused() -> None:
    with pytest.raises(ValueError, match=r"action space is Box.* must be one of Discrete, MultiDiscrete, MultiBinary"):
        MaskableTRPO("MlpPolicy", "Pendulum-v1")
    with pytest.raises(ValueError, match="subclass of sb3_contrib's MaskableActorCriticPolicy"):
        MaskableTRPO(TRPO.policy_aliases["MlpPolicy"], MaskedGame())
    with pytest.raises(ValueError, match="rollout_buffer_class is RolloutBuffer"):
        MaskableTRPO("MlpPolicy", MaskedGame(), rollout_buffer_class=RolloutBuffer)


@pytest.mark.parametrize("trusted", [True, False])
def test_a_saved_model_acts_and_learns_as_before(tmp_path: Any, trusted: bool) -> None:
    model = trained()
    model.save(tmp_path / "model.zip")
    loaded = MaskableTRPO.load(tmp_path / "model.zip", env=model.get_env(), device="cpu", trusted=trusted)
    obs = np.stack([model.observation_space.sample() for _ in range(20)])
    masks = np.random.default_rng(0).random((20, 5)) < 0.5
    masks[:, 0] = True
    for policy_of in (model, loaded):
        actions, _ = policy_of.predict(obs, deterministic=True, action_masks=masks)
        assert masks[np.arange(20), actions].all()
    assert np.array_equal(
        model.predict(obs, deterministic=True, action_masks=masks)[0],
        loaded.predict(obs, deterministic=True, action_masks=masks)[0],
    )
    loaded.set_logger(configure(None, []))
    loaded.learn(64)


@pytest.mark.parametrize(
    "make_env",
    [
        lambda: InvalidActionEnvDiscrete(dim=20, n_invalid_actions=10),
        lambda: InvalidActionEnvMultiDiscrete(dims=[4, 4], n_invalid_actions=2),
        lambda: InvalidActionEnvMultiBinary(dims=3, n_invalid_actions=1),
    ],
    ids=["Discrete", "MultiDiscrete", "MultiBinary"],
)
def test_contribs_environments_where_a_forbidden_choice_is_an_error(make_env: Any) -> None:
    model = MaskableTRPO("MlpPolicy", make_env(), n_steps=64, batch_size=32, seed=0, device="cpu").learn(256)
    assert model.num_timesteps == 256
    evaluate_policy(model, make_env(), n_eval_episodes=2, warn=False)


def test_without_sb3_contrib_a_sentence_says_what_to_install() -> None:
    code = "import sys, sb3_trpo\nsys.modules['sb3_contrib'] = None\n"
    code += "for name in ('MaskableTRPO', 'RecurrentTRPO', 'MaskableRecurrentTRPO'):\n"
    code += "    try: getattr(sb3_trpo, name)\n    except ModuleNotFoundError as error: print(error)\n"
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    sentences = result.stdout.splitlines()
    assert len(sentences) == 3
    for sentence in sentences:
        assert "TRPO needs sb3-contrib" in sentence
        assert "pip install 'sb3-trpo[contrib]'" in sentence
