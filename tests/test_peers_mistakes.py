"""
What sb3-contrib's TRPO gets wrong, item by item, each as a property that must hold here.

Each property is also put to ``sb3_contrib.TRPO``, where it is expected to fail: that shows that the test can. When a
new version of sb3-contrib passes one of them, the test fails, and this list is to be shortened.
"""

import contextlib
import inspect
import warnings
from typing import Any

import pytest
import sb3_contrib
import torch as th
from gymnasium import spaces
from small_models import IMAGE, VECTOR, SpacesEnv
from stable_baselines3.common.policies import ActorCriticPolicy
from stable_baselines3.common.torch_layers import BaseFeaturesExtractor
from torch import nn
from updates import (
    actor_state,
    changed,
    collect,
    data_pointers,
    log,
    measure_kl,
    pendulum,
    with_rollout,
)

from sb3_trpo import TRPO

TARGET_KL = 0.01


@pytest.fixture(
    params=[
        pytest.param(TRPO, id="sb3_trpo"),
        pytest.param(sb3_contrib.TRPO, id="sb3-contrib", marks=pytest.mark.xfail(strict=True)),
    ]
)
def algorithm(request: pytest.FixtureRequest) -> Any:
    """Ours, and the one that is known to fail."""
    return request.param


def train_actor(model: Any) -> None:
    """
    Update a model's actor and nothing else.

    :param model: with a rollout; its critic draws no minibatches and moves nothing
    """
    model.n_critic_updates = 0
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # sb3-contrib's, on the mean of no losses
        model.train()


# ---- 1. KL averaged over action dimensions ----


@pytest.mark.parametrize("action_space", [spaces.Box(-1, 1, (17,)), spaces.MultiBinary(17)], ids=["Box", "MultiBinary"])
def test_the_bound_holds_for_the_sum_over_action_dimensions(algorithm: Any, action_space: spaces.Space) -> None:
    model = pendulum(algorithm, env=SpacesEnv(VECTOR, action_space), n_steps=640, target_kl=TARGET_KL)
    assert measure_kl(model) <= TARGET_KL * (1 + 1e-4)


# ---- 2. KL(new ‖ old) ----


def test_the_logged_kl_is_that_of_the_old_policy_to_the_new_one(algorithm: Any) -> None:
    # With one action, sum and mean are the same; with a larger bound, the two directions are not.
    model = pendulum(algorithm, target_kl=0.1)
    measured = measure_kl(model)
    assert log(model)["train/kl_divergence_loss"] == pytest.approx(measured, rel=1e-4)


# ---- 3. Damping in the step's length ----


def test_damping_does_not_use_up_the_trust_region(algorithm: Any) -> None:
    model = pendulum(algorithm, cg_damping=3.0, target_kl=TARGET_KL)
    assert measure_kl(model) >= 0.7 * TARGET_KL


# ---- 4. Actor parameters by their names ----


class ScaledExtractor(BaseFeaturesExtractor):
    """
    Its only parameter has a name that sounds like the critic's.

    :param observation_space: of vectors
    """

    def __init__(self, observation_space: spaces.Box) -> None:
        super().__init__(observation_space, features_dim=observation_space.shape[0])
        self.observed_value_scale = nn.Parameter(th.ones(self.features_dim))

    def forward(self, obs: th.Tensor) -> th.Tensor:
        return obs * self.observed_value_scale


def test_what_moves_the_actions_is_the_actors_whatever_its_name(algorithm: Any) -> None:
    model = pendulum(algorithm, policy_kwargs={"features_extractor_class": ScaledExtractor, "net_arch": [16]})
    train_actor(model)
    assert (model.policy.pi_features_extractor.observed_value_scale != 1.0).any()


# ---- 5. Frozen parameters; dictionaries with sub-sampling ----


def test_frozen_parameters_stay(algorithm: Any) -> None:
    model = pendulum(algorithm)
    frozen = model.policy.mlp_extractor.policy_net[0]
    frozen.requires_grad_(False)
    before = frozen.weight.clone()
    assert 0.0 < measure_kl(model) <= TARGET_KL
    assert th.equal(frozen.weight, before)


def test_dictionaries_can_be_sub_sampled(algorithm: Any) -> None:
    space = spaces.Dict({"a": VECTOR, "b": VECTOR})
    env = SpacesEnv(space, spaces.Box(-1, 1, (1,)))
    model = pendulum(algorithm, policy="MultiInputPolicy", env=env, sub_sampling_factor=4)
    assert 0.0 < measure_kl(model) <= TARGET_KL


# ---- 6. Advantages that are not finite ----


def test_one_nan_advantage_leaves_the_policy_as_it_was(algorithm: Any) -> None:
    model = pendulum(algorithm)
    before = actor_state(model)
    model.rollout_buffer.advantages[0] = float("nan")
    # sb3-contrib raises the error, we warn; what counts is what is left behind.
    with contextlib.suppress(ValueError), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        model.train()
    assert not changed(before, actor_state(model))


# ---- 7. Conjugate gradient ----


def test_the_policy_step_uses_no_random_numbers(algorithm: Any) -> None:
    model = pendulum(algorithm)
    before = th.get_rng_state()
    train_actor(model)
    assert th.equal(before, th.get_rng_state())


def step_with_advantages_scaled(algorithm: Any, factor: float) -> th.Tensor:
    """
    Make an update with advantages of another size.

    :param algorithm: its class
    :param factor: of the advantages
    :return: what one update adds to the actor's parameters
    """
    model = pendulum(algorithm, normalize_advantage=False)
    model.rollout_buffer.advantages *= factor
    before = actor_state(model)
    train_actor(model)
    after = actor_state(model)
    return th.cat([(after[name] - before[name]).flatten() for name in sorted(before)])


def test_tiny_advantages_give_the_same_step(algorithm: Any) -> None:
    step, other = (step_with_advantages_scaled(algorithm, factor) for factor in (1.0, 1e-6))
    assert th.cosine_similarity(step, other, dim=0) > 0.9999
    assert float(step.norm()) == pytest.approx(float(other.norm()), rel=1e-3)


def test_large_advantages_give_the_same_step() -> None:
    step, other = (step_with_advantages_scaled(TRPO, factor) for factor in (1.0, 1e6))
    assert th.cosine_similarity(step, other, dim=0) > 0.9999
    assert float(step.norm()) == pytest.approx(float(other.norm()), rel=1e-3)


# ---- 8. Parameters replaced; training mode during the line search ----


def test_parameters_stay_where_they_are_in_memory(algorithm: Any) -> None:
    model = pendulum(algorithm)
    before = data_pointers(model)
    model.train()
    assert data_pointers(model) == before


class DropoutExtractor(BaseFeaturesExtractor):
    """
    A features extractor with dropout.

    :param observation_space: of vectors
    """

    def __init__(self, observation_space: spaces.Box) -> None:
        super().__init__(observation_space, features_dim=16)
        self.net = nn.Sequential(nn.Linear(observation_space.shape[0], 16), nn.Tanh(), nn.Dropout(0.3))

    def forward(self, obs: th.Tensor) -> th.Tensor:
        return self.net(obs)


def test_dropout_is_off_in_the_policy_step(algorithm: Any) -> None:
    # With so small a bound, the direction of KL, a test of its own, changes it by less than a per cent.
    policy_kwargs = {"features_extractor_class": DropoutExtractor, "net_arch": [16]}
    model = pendulum(algorithm, policy_kwargs=policy_kwargs, target_kl=1e-4)
    measured = measure_kl(model)
    assert log(model)["train/kl_divergence_loss"] == pytest.approx(measured, rel=0.03)
    assert measured > 0.7e-4


# ---- 9. A critic of images that only the actor trains ----


def test_the_critic_learns_what_to_see(algorithm: Any) -> None:
    weights = []
    for n_epochs in (1, 4):
        env = SpacesEnv(IMAGE, spaces.Box(-1, 1, (1,)))
        kwargs = {"features_extractor_kwargs": {"features_dim": 8}, "net_arch": [8]}
        model = pendulum(algorithm, policy="CnnPolicy", env=env, policy_kwargs=kwargs, n_steps=64)
        model.n_critic_updates = n_epochs
        model.train()
        weights.append(model.policy.vf_features_extractor.cnn[0].weight)
    assert not th.equal(weights[0], weights[1])


# ---- 10. The log ----


def test_the_log_tells_how_the_step_came_about(algorithm: Any) -> None:
    model = pendulum(algorithm)
    model.train()
    keys = {"cg_iterations", "cg_residual", "line_search_steps", "step_fraction", "entropy"}
    assert {f"train/{key}" for key in keys} <= log(model).keys()


# ---- 11. Where an action that is clipped was drawn ----


def test_how_far_beyond_a_bound_an_action_was_makes_no_difference(algorithm: Any) -> None:
    after = []
    for factor in (1.0, 3.0):
        model = pendulum(algorithm, policy_kwargs={"net_arch": [16], "log_std_init": 1.0})
        actions = model.rollout_buffer.actions
        inside = actions.clip(-2.0, 2.0)
        assert 0.2 < (actions != inside).mean() < 0.8
        actions[:] = inside + factor * (actions - inside)
        train_actor(model)
        after.append(actor_state(model))
    assert not changed(*after)


# ---- 12. What users' scripts rely on (nothing that sb3-contrib could fail) ----


def test_the_constructor_begins_with_the_same_parameters() -> None:
    ours = list(inspect.signature(TRPO).parameters.values())
    theirs = list(inspect.signature(sb3_contrib.TRPO).parameters.values())
    shared, extra = ours[: len(theirs)], ours[len(theirs) :]
    assert [(p.name, p.default, p.kind) for p in shared] == [(p.name, p.default, p.kind) for p in theirs]
    assert {p.kind for p in extra} == {inspect.Parameter.KEYWORD_ONLY}


def test_learn_has_the_same_parameters() -> None:
    ours, theirs = (inspect.signature(cls.learn).parameters for cls in (TRPO, sb3_contrib.TRPO))
    assert list(ours) == list(theirs)
    # None stands for the class's own name, which subclasses change.
    defaults = {name: TRPO.log_name if name == "tb_log_name" else ours[name].default for name in ours}
    assert defaults == {name: parameter.default for name, parameter in theirs.items()}


def test_the_log_has_the_same_keys() -> None:
    keys = []
    for cls in (TRPO, sb3_contrib.TRPO):
        model = pendulum(cls)
        model.train()
        keys.append({key for key in log(model) if key.startswith("train/")})
    assert keys[1] <= keys[0]


@pytest.mark.parametrize("policy", ["MlpPolicy", "CnnPolicy"])
def test_models_saved_by_the_other_go_on_here(policy: str, tmp_path: Any) -> None:
    env = SpacesEnv(IMAGE if policy == "CnnPolicy" else VECTOR, spaces.Box(-1, 1, (1,)))
    theirs = pendulum(sb3_contrib.TRPO, policy=policy, env=env, n_steps=64, policy_kwargs={"net_arch": [8]})
    theirs.train()
    theirs.save(tmp_path / "model")
    ours = TRPO.load(tmp_path / "model", env=env, device="cpu")
    obs = theirs.env.reset()
    assert (ours.predict(obs, deterministic=True)[0] == theirs.predict(obs, deterministic=True)[0]).all()
    with_rollout(ours)
    assert 0.0 < measure_kl(ours) <= TARGET_KL
    assert type(ours.policy) is type(theirs.policy)
    assert isinstance(ours.policy, ActorCriticPolicy)
    collect(ours)
