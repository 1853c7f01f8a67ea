"""
Every action space with every observation space, and every form of policy: training runs, KL stays within the trust
region, and the log tells the truth about it.
"""

import warnings
from typing import Any

import numpy as np
import pytest
import torch as th
from combinations import each_once
from gymnasium import spaces
from small_models import (
    ACTION_SPACES,
    LAYERS,
    N_STEPS,
    OBSERVATION_SPACES,
    TARGET_KL,
    VECTOR,
    Extractor,
    MeasuredTRPO,
    SpacesEnv,
    TwoHeadsPolicy,
    policy_for,
)
from stable_baselines3.common.distributions import DiagGaussianDistribution, SquashedDiagGaussianDistribution
from stable_baselines3.common.envs import (
    FakeImageEnv,
    IdentityEnv,
    IdentityEnvBox,
    IdentityEnvMultiBinary,
    IdentityEnvMultiDiscrete,
    SimpleMultiObsEnv,
)
from stable_baselines3.common.policies import ActorCriticPolicy
from stable_baselines3.common.vec_env import DummyVecEnv
from torch import nn

N_UPDATES = 2
BOX = ACTION_SPACES["Box"]


def train(policy: Any, env: Any, policy_kwargs: dict[str, Any] | None = None, **kwargs: Any) -> MeasuredTRPO:
    """Return a model after two updates, of which the properties that every model has are known to hold."""
    kwargs = {"n_steps": 2 * N_STEPS, "batch_size": N_STEPS, "n_critic_updates": 2, "seed": 0, **kwargs}
    model = MeasuredTRPO(policy, env, policy_kwargs=policy_kwargs, target_kl=TARGET_KL, device="cpu", **kwargs)
    before = {name: value.clone() for name, value in model.policy.state_dict().items()}
    with warnings.catch_warnings():
        # An update that had to be undone warns.
        warnings.simplefilter("error")
        # torch.compile on Python 3.13.0, for a flaw that 3.13.1 has no more.
        warnings.filterwarnings("ignore", "Guards may run slower", RuntimeWarning)
        # What a layer of the actor would learn outside of the step is said; it is meant here.
        warnings.filterwarnings("ignore", "TRPO: what .* would learn in training mode", UserWarning)
        model.learn(N_UPDATES * model.n_steps * model.n_envs)

    assert len(model.updates) == N_UPDATES
    for logged, measured in model.updates:
        assert measured == pytest.approx(logged, rel=1e-3, abs=1e-6)
        assert logged <= TARGET_KL
    assert any(logged > 0.3 * TARGET_KL for logged, _ in model.updates), "no update moved the policy"
    after = model.policy.state_dict()
    assert all(value.isfinite().all() for value in after.values())
    assert not th.equal(before["value_net.weight"], after["value_net.weight"]), "the critic did not move"
    return model


@pytest.mark.parametrize(("observation_space", "action_space"), each_once(OBSERVATION_SPACES, ACTION_SPACES))
def test_every_observation_space_with_every_action_space(observation_space, action_space):
    policy, policy_kwargs = policy_for(observation_space)
    model = train(policy, SpacesEnv(observation_space, action_space), policy_kwargs)
    action, _ = model.predict(model.observation_space.sample())
    assert action_space.contains(action if action.shape else int(action))


@pytest.mark.parametrize(
    ("dtype", "shape"),
    [(name, (2, 3)) for name in ("float16", "int8", "int16", "int32", "int64", "uint16", "uint32")]
    + [("float32", (1,)), ("float64", (2, 3, 4)), ("uint8", (1, 2, 1, 2))],
    ids=str,
)
def test_boxes_of_any_dtype_and_shape(dtype, shape):
    train("MlpPolicy", SpacesEnv(spaces.Box(0, 9, shape, dtype=dtype), BOX), {"net_arch": [8]})


@pytest.mark.parametrize(
    ("policy", "env"),
    [
        ("MlpPolicy", IdentityEnv(3)),
        ("MlpPolicy", IdentityEnvBox()),
        ("MlpPolicy", IdentityEnvMultiDiscrete(2)),
        ("MlpPolicy", IdentityEnvMultiBinary(2)),
        ("MultiInputPolicy", SimpleMultiObsEnv()),
        ("MultiInputPolicy", SimpleMultiObsEnv(discrete_actions=False, channel_last=False)),
        ("CnnPolicy", FakeImageEnv(screen_height=40, screen_width=40)),
        ("CnnPolicy", FakeImageEnv(screen_height=40, screen_width=40, n_channels=3, discrete=False)),
    ],
    ids=lambda value: value if isinstance(value, str) else type(value).__name__,
)
def test_environments_of_sb3(policy, env):
    extractors = {"MlpPolicy": {}, "MultiInputPolicy": {"cnn_output_dim": 8}, "CnnPolicy": {"features_dim": 8}}
    train(policy, env, {"net_arch": [8], "features_extractor_kwargs": extractors[policy]})


OPTIONS = [
    {"sub_sampling_factor": 3},
    {"fisher_chunk_size": 50},
    {"fisher_chunk_size": 50, "sub_sampling_factor": 3},
    {"preconditioner": None},
    {"normalize_advantage": False},
    {"cg_warm_start": True, "ent_coef": 0.01, "max_grad_norm": 0.5},
]


@pytest.mark.parametrize(
    ("kwargs", "observations"), each_once({" ".join(each): each for each in OPTIONS}, ["float32", "Dict"])
)
def test_options_with_vectors_and_dictionaries(observations, kwargs):
    observation_space = OBSERVATION_SPACES[observations]
    policy, policy_kwargs = policy_for(observation_space)
    train(policy, SpacesEnv(observation_space, BOX), policy_kwargs, **kwargs)


KINDS_OF_GSDE = [
    {},
    {"full_std": False},
    {"use_expln": True},
    {"squash_output": True},
    {"squash_output": True, "full_std": False, "use_expln": True, "log_std_init": -1.0},
]


@pytest.mark.parametrize(
    ("policy_kwargs", "sde_sample_freq"),
    each_once({" ".join(each) or "plain": each for each in KINDS_OF_GSDE}, [-1, 4]),
)
def test_state_dependent_exploration(policy_kwargs, sde_sample_freq):
    env = SpacesEnv(VECTOR, BOX)
    train("MlpPolicy", env, {"net_arch": [8], **policy_kwargs}, use_sde=True, sde_sample_freq=sde_sample_freq)


# Not MultiBinary's: where all bits are 0, and so all features of a new network, the noise is 0 too, and hardly any step
# is within the trust region.
@pytest.mark.parametrize("observations", ["image", "Dict", "Discrete", "MultiDiscrete"])
def test_state_dependent_exploration_of_other_observations(observations):
    policy, policy_kwargs = policy_for(OBSERVATION_SPACES[observations])
    train(policy, SpacesEnv(OBSERVATION_SPACES[observations], BOX), policy_kwargs, use_sde=True)


class LearnedExplorationPolicy(TwoHeadsPolicy):
    """With gSDE whose noise depends on features that the step moves as well."""

    def _get_action_dist_from_latent(self, latent_pi):
        self.action_dist.learn_features = True
        return self.action_dist.proba_distribution(self.action_net(latent_pi), self.log_std, latent_pi)


def test_state_dependent_exploration_with_learned_features():
    train(LearnedExplorationPolicy, SpacesEnv(VECTOR, BOX), use_sde=True)


@pytest.mark.parametrize(
    ("observations", "share_features_extractor"), each_once(["float32", "image", "Dict"], [True, False])
)
def test_features_extractor_shared_or_not(observations, share_features_extractor):
    observation_space = OBSERVATION_SPACES[observations]
    policy, policy_kwargs = policy_for(observation_space)
    policy_kwargs["share_features_extractor"] = share_features_extractor
    model = train(policy, SpacesEnv(observation_space, BOX), policy_kwargs)
    extractors = model.policy.pi_features_extractor, model.policy.vf_features_extractor
    assert (extractors[0] is extractors[1]) == share_features_extractor


@pytest.mark.parametrize("observations", ["image", "Dict"])
def test_critic_trains_features_of_its_own_by_default(observations):
    observation_space = OBSERVATION_SPACES[observations]
    policy, policy_kwargs = policy_for(observation_space)
    env = SpacesEnv(observation_space, BOX)
    start = MeasuredTRPO(policy, env, policy_kwargs=policy_kwargs, seed=0, device="cpu").policy.vf_features_extractor
    model = train(policy, env, policy_kwargs)
    assert model.policy.vf_features_extractor is not model.policy.pi_features_extractor
    moved = zip(start.parameters(), model.policy.vf_features_extractor.parameters(), strict=True)
    assert all(not th.equal(before, after) for before, after in moved)


@pytest.mark.parametrize(
    "net_arch",
    [None, [], [8], [8, 6], {"pi": [8], "vf": [6, 4]}, {"pi": [], "vf": [8]}, {"pi": [8], "vf": []}, {"vf": [8]}],
    ids=str,
)
@pytest.mark.parametrize("actions", ["Box", "Discrete"])
def test_every_form_of_net_arch(actions, net_arch):
    train("MlpPolicy", SpacesEnv(VECTOR, ACTION_SPACES[actions]), {"net_arch": net_arch})


@pytest.mark.parametrize("activation_fn", [nn.ReLU, nn.Sigmoid, nn.ELU, nn.LeakyReLU, nn.SiLU, nn.GELU])
def test_activations(activation_fn):
    train("MlpPolicy", SpacesEnv(VECTOR, BOX), {"net_arch": [8, 8], "activation_fn": activation_fn})


@pytest.mark.parametrize("optimizer_class", [th.optim.RMSprop, th.optim.SGD, th.optim.AdamW])
def test_optimizers(optimizer_class):
    train("MlpPolicy", SpacesEnv(VECTOR, BOX), {"net_arch": [8], "optimizer_class": optimizer_class})


@pytest.mark.parametrize(("layer", "share_features_extractor"), each_once(list(LAYERS), [True, False]))
def test_layers_of_all_kinds(layer, share_features_extractor):
    policy_kwargs = {
        "features_extractor_class": Extractor,
        "features_extractor_kwargs": {"layer": layer},
        "share_features_extractor": share_features_extractor,
        "net_arch": [8],
    }
    train("MlpPolicy", SpacesEnv(VECTOR, BOX), policy_kwargs)


def test_batch_norm_of_the_actor_keeps_its_statistics():
    """What moves them moves the policy, and no trust region would bound it; those of the critic may move."""
    policy_kwargs = {
        "features_extractor_class": Extractor,
        "features_extractor_kwargs": {"layer": "batch-norm"},
        "share_features_extractor": False,
        "net_arch": [8],
    }
    policy = train("MlpPolicy", SpacesEnv(VECTOR, BOX), policy_kwargs).policy
    actors, critics = policy.pi_features_extractor.net[1], policy.vf_features_extractor.net[1]
    assert (actors.running_mean == 0).all()
    assert (actors.running_var == 1).all()
    assert actors.num_batches_tracked == 0
    # Its weights are the actor's own, as others are.
    assert (actors.weight != 1).all()
    assert (critics.running_mean != 0).all()
    assert critics.num_batches_tracked == N_UPDATES * 2 * 2


def compile_networks(policy):
    policy.mlp_extractor.policy_net = th.compile(policy.mlp_extractor.policy_net, backend="aot_eager")
    policy.mlp_extractor.value_net = th.compile(policy.mlp_extractor.value_net, backend="aot_eager")


def compile_in_place(policy):
    policy.mlp_extractor.policy_net.compile(backend="aot_eager")
    policy.action_net.compile(backend="aot_eager")


def compile_methods(policy):
    for name in ("forward", "get_distribution", "predict_values"):
        setattr(policy, name, th.compile(getattr(policy, name), backend="aot_eager"))


@pytest.mark.parametrize(
    "compile_policy", [compile_networks, compile_in_place, pytest.param(compile_methods, marks=pytest.mark.slow)]
)
def test_compiled_policies(compile_policy):
    class CompiledPolicy(ActorCriticPolicy):
        def _build(self, lr_schedule):
            super()._build(lr_schedule)
            compile_policy(self)

    th.compiler.reset()
    train(CompiledPolicy, SpacesEnv(VECTOR, BOX), {"net_arch": [8]})


def test_users_own_policy():
    train(TwoHeadsPolicy, SpacesEnv(VECTOR, BOX))


class OwnForwardPolicy(ActorCriticPolicy):
    """Nothing of SB3's but its interface: networks, methods, and a spread of the actions that depends on the state."""

    distribution_class: type[DiagGaussianDistribution] = DiagGaussianDistribution

    def _build(self, lr_schedule):
        n_observations, n_actions = (spaces.flatdim(space) for space in (self.observation_space, self.action_space))
        self.action_dist = self.distribution_class(n_actions)
        self.hidden = nn.Sequential(nn.Linear(n_observations, 8), nn.Tanh())
        self.mean, self.spread = nn.Linear(8, n_actions), nn.Linear(8, n_actions)
        self.critic, self.value_net = nn.Sequential(nn.Linear(n_observations, 8), nn.Tanh()), nn.Linear(8, 1)
        self.optimizer = self.optimizer_class(self.parameters(), lr=lr_schedule(1), **self.optimizer_kwargs)

    def get_distribution(self, obs):
        latent = self.hidden(obs)
        return self.action_dist.proba_distribution(self.mean(latent), self.spread(latent) - 1.0)

    def predict_values(self, obs):
        return self.value_net(self.critic(obs))

    def forward(self, obs, deterministic=False):
        distribution = self.get_distribution(obs)
        actions = distribution.get_actions(deterministic)
        return actions, self.predict_values(obs), distribution.log_prob(actions)

    def evaluate_actions(self, obs, actions):
        distribution = self.get_distribution(obs)
        return self.predict_values(obs), distribution.log_prob(actions), distribution.entropy()


class OwnSquashedPolicy(OwnForwardPolicy):
    distribution_class = SquashedDiagGaussianDistribution


@pytest.mark.parametrize("policy", [OwnForwardPolicy, OwnSquashedPolicy])
def test_users_own_forward_and_distribution(policy):
    model = train(policy, SpacesEnv(VECTOR, BOX))
    obs = th.as_tensor(model.rollout_buffer.observations[:9].reshape(9, -1))
    stds = model.policy.get_distribution(obs).distribution.stddev
    assert (stds.amax(dim=0) > 1.001 * stds.amin(dim=0)).all()


def test_users_own_policy_on_several_environments():
    train(TwoHeadsPolicy, DummyVecEnv([lambda: SpacesEnv(VECTOR, BOX)] * 3))


def test_environment_gets_actions_inside_of_its_box():
    # SpacesEnv refuses any other; a wide Gaussian over a narrow box leaves it at nearly every step.
    env = SpacesEnv(VECTOR, spaces.Box(-0.01, 0.01, (2,)))
    model = train("MlpPolicy", env, {"net_arch": [8], "log_std_init": 1.0})
    assert np.abs(model.rollout_buffer.actions).max() > 1.0
