from typing import Any

import pytest
import stable_baselines3.common.policies as sb3_policies
import torch as th
from gymnasium import spaces
from small_models import ACTION_SPACES, OBSERVATION_SPACES, SpacesEnv, policy_for
from updates import action_distributions, actor_state, changed, log, mean_kl, observations, pendulum

from sb3_trpo import TRPO, CnnPolicy, MlpPolicy, MultiInputPolicy
from sb3_trpo.policies.policies import ActorCriticCnnPolicy, ActorCriticPolicy, MultiInputActorCriticPolicy

KINDS = {"image": CnnPolicy, "Dict": MultiInputPolicy}


def model_for(observations_of: str, **policy_kwargs: Any) -> Any:
    """
    Make a model with a rollout.

    :param observations_of: key of ``OBSERVATION_SPACES``
    :param policy_kwargs: further ones
    :return: a model with a rollout
    """
    space = OBSERVATION_SPACES[observations_of]
    policy, kwargs = policy_for(space)
    env = SpacesEnv(space, ACTION_SPACES["Box"])
    return pendulum(policy=policy, env=env, policy_kwargs={**kwargs, **policy_kwargs}, n_steps=128)


def test_the_names_are_sb3s() -> None:
    assert MlpPolicy is sb3_policies.ActorCriticPolicy is ActorCriticPolicy
    assert issubclass(CnnPolicy, ActorCriticCnnPolicy)
    assert issubclass(MultiInputPolicy, MultiInputActorCriticPolicy)
    assert {"MlpPolicy", "CnnPolicy", "MultiInputPolicy"} <= set(TRPO.policy_aliases)


@pytest.mark.parametrize("kind", KINDS)
def test_actor_and_critic_see_with_their_own_eyes(kind: str) -> None:
    policy = model_for(kind).policy
    assert type(policy) is KINDS[kind]
    ours = {id(parameter) for parameter in policy.pi_features_extractor.parameters()}
    assert ours
    assert not ours & {id(parameter) for parameter in policy.vf_features_extractor.parameters()}


@pytest.mark.parametrize("kind", KINDS)
def test_they_share_when_asked_to_and_then_the_policy_step_alone_moves_it(kind: str) -> None:
    model = model_for(kind, share_features_extractor=True)
    policy = model.policy
    assert policy.pi_features_extractor is policy.vf_features_extractor is policy.features_extractor
    obs = observations(model)
    old = action_distributions(policy, obs)
    model.train()
    assert mean_kl(old, policy, obs) == pytest.approx(log(model)["train/kl_divergence_loss"], rel=1e-3)
    assert 0.0 < log(model)["train/kl_divergence_loss"] <= model.target_kl


@pytest.mark.parametrize("share", [False, True])
@pytest.mark.parametrize("kind", KINDS)
def test_a_policy_saved_by_itself_is_loaded_as_it_was(kind: str, share: bool, tmp_path: Any) -> None:
    model = model_for(kind, share_features_extractor=share)
    model.policy.save(tmp_path / "policy")
    loaded = KINDS[kind].load(tmp_path / "policy", device="cpu")
    assert loaded.share_features_extractor == share
    assert loaded.state_dict().keys() == model.policy.state_dict().keys()
    assert all(th.equal(tensor, loaded.state_dict()[name]) for name, tensor in model.policy.state_dict().items())


def test_a_vectors_critic_is_its_own_anyway() -> None:
    model = pendulum(env=SpacesEnv(spaces.Box(-1.0, 1.0, (3,)), ACTION_SPACES["Discrete"]), learning_rate=0.0)
    before, actor = model.policy.value_net.weight.clone(), actor_state(model)
    model.train()
    assert th.equal(before, model.policy.value_net.weight)
    assert changed(actor, actor_state(model)) == set(actor)
