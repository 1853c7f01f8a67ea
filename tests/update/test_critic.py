import copy
import warnings
from collections.abc import Callable
from typing import Any

import pytest
import sb3_contrib
import torch as th
from combinations import each_once
from gymnasium import spaces
from small_models import VECTOR, Extractor, SpacesEnv
from stable_baselines3.common.policies import ActorCriticPolicy
from stable_baselines3.common.torch_layers import BaseFeaturesExtractor
from torch import nn
from torch.nn.functional import mse_loss
from updates import action_distributions, actor_state, changed, log, mean_kl, observations, pendulum, state

from sb3_trpo.update import critic, samples
from sb3_trpo.update.critic import CriticFit, CriticSettings, DrawRows, Regression, fit_critic, shuffle_rows

SETTINGS = CriticSettings(n_epochs=3, batch_size=100, max_grad_norm=None)


class HalfAdam(th.optim.Adam):
    """A user's own optimizer, which is an Adam and isn't."""

    @th.no_grad()
    def step(self, closure: Any = None) -> None:
        for group in self.param_groups:
            for parameter in group["params"]:
                if parameter.grad is not None:
                    parameter.grad.clamp_(min=0.0)
        super().step(closure)


# Every option of SB3's default optimizer, Adam, and others that users choose.
OPTIMIZERS: dict[str, tuple[type[th.optim.Optimizer], dict[str, Any]]] = {
    "Adam": (th.optim.Adam, {}),
    "Adam, other betas and eps": (th.optim.Adam, {"betas": (0.8, 0.95), "eps": 1e-3}),
    "Adam, weight decay": (th.optim.Adam, {"weight_decay": 0.1}),
    "Adam, amsgrad": (th.optim.Adam, {"amsgrad": True}),
    "Adam, maximize": (th.optim.Adam, {"maximize": True}),
    "Adam, decoupled weight decay": (th.optim.Adam, {"weight_decay": 0.1, "decoupled_weight_decay": True}),
    "Adam, fused": (th.optim.Adam, {"fused": True}),
    "Adam, derived from": (HalfAdam, {}),
    "AdamW": (th.optim.AdamW, {"weight_decay": 0.1}),
    "RMSprop": (th.optim.RMSprop, {}),
    "SGD": (th.optim.SGD, {"momentum": 0.9}),
}


def critic_parameters(policy: ActorCriticPolicy) -> list[nn.Parameter]:
    return [*policy.mlp_extractor.value_net.parameters(), *policy.value_net.parameters()]


def actor_parameters(policy: ActorCriticPolicy) -> list[nn.Parameter]:
    critic = set(map(id, critic_parameters(policy)))
    return [parameter for parameter in policy.parameters() if id(parameter) not in critic]


def fit(model: Any, settings: CriticSettings, is_builtin: bool, draw_rows: DrawRows[Any] = shuffle_rows) -> CriticFit:
    """
    Fit a model's critic.

    :param model: with a rollout
    :param settings: of the fit
    :param is_builtin: False leads to the general way
    :param draw_rows: draws an epoch's minibatches
    """
    policy = model.policy

    def predict_values(batch: Any) -> th.Tensor:
        return policy.predict_values(batch.observations)

    th.manual_seed(0)
    fixed = actor_parameters(policy)
    return fit_critic(Regression(policy, predict_values, rollout(model), settings, is_builtin, draw_rows), fixed)


def rollout(model: Any) -> Any:
    """Return the samples, in the same order each time."""
    buffer = copy.deepcopy(model.rollout_buffer)
    list(buffer.get())
    return buffer._get_samples(range(buffer.buffer_size * buffer.n_envs))


def reference_fit(model: Any, settings: CriticSettings) -> th.Tensor:
    """
    Fit as a PyTorch user would.

    :return: the losses
    """
    policy, data, losses = model.policy, rollout(model), []
    th.manual_seed(0)
    for _ in range(settings.n_epochs):
        order = th.randperm(len(data.returns))
        for i in range(0, len(order), settings.batch_size):
            index = order[i : i + settings.batch_size]
            loss = mse_loss(policy.predict_values(data.observations[index]).flatten(), data.returns[index])
            losses.append(loss.item())
            policy.optimizer.zero_grad()
            loss.backward()
            if settings.max_grad_norm is not None:
                nn.utils.clip_grad_norm_(critic_parameters(policy), settings.max_grad_norm)
            policy.optimizer.step()
    policy.optimizer.zero_grad()
    return th.tensor(losses)


def assert_same_fit(model: Any, reference: Any, fitted: CriticFit, losses: th.Tensor) -> None:
    th.testing.assert_close(fitted.losses, losses, rtol=1e-4, atol=0.0)
    ours, theirs = state(model), state(reference)
    assert ours.keys() == theirs.keys()
    for name, tensor in theirs.items():
        th.testing.assert_close(ours[name], tensor, rtol=1e-3, atol=1e-5, msg=lambda text, name=name: f"{name}: {text}")
        assert ours[name].dtype == tensor.dtype


WAYS = {"plain-unclipped": (True, None), "plain-clipped": (True, 0.5), "general-clipped": (False, 0.5)}


@pytest.mark.parametrize(("optimizer", "way"), each_once(list(OPTIMIZERS), WAYS))
def test_a_fit_is_that_of_a_loop_in_torch(optimizer: str, way: tuple[bool, float | None]) -> None:
    is_builtin, max_grad_norm = way
    optimizer_class, optimizer_kwargs = OPTIMIZERS[optimizer]
    kwargs = {"optimizer_class": optimizer_class, "optimizer_kwargs": optimizer_kwargs, "net_arch": [16, 16]}
    model, reference = pendulum(policy_kwargs=kwargs), pendulum(policy_kwargs=kwargs)
    settings = CriticSettings(n_epochs=3, batch_size=100, max_grad_norm=max_grad_norm)
    if optimizer == "SGD" and max_grad_norm is None:
        settings = CriticSettings(n_epochs=3, batch_size=100, max_grad_norm=5.0)  # or it diverges
    # Twice: the second begins with the optimizer's state.
    for _ in range(2):
        assert_same_fit(model, reference, fit(model, settings, is_builtin), reference_fit(reference, settings))


ACTIVATIONS = {each.__name__: each for each in (nn.Tanh, nn.ReLU, nn.Sigmoid, nn.GELU, nn.SiLU, nn.PReLU)}


@pytest.mark.parametrize(("activation_fn", "batch_size"), each_once(ACTIVATIONS, [7, 256, 1000]))
def test_the_same_holds_for_other_networks_and_batch_sizes(activation_fn: type[nn.Module], batch_size: int) -> None:
    kwargs = {"activation_fn": activation_fn, "net_arch": {"pi": [4], "vf": [8, 20, 8]}}
    settings = CriticSettings(n_epochs=1, batch_size=batch_size, max_grad_norm=None)
    model, reference = pendulum(policy_kwargs=kwargs), pendulum(policy_kwargs=kwargs)
    assert_same_fit(model, reference, fit(model, settings, True), reference_fit(reference, settings))


def test_minibatches_taken_one_by_one_are_those_of_the_shuffled_whole(monkeypatch: pytest.MonkeyPatch) -> None:
    """In chunks too, whose samples stand in another order."""
    models = [pendulum(), pendulum()]
    monkeypatch.setattr(samples, "MAX_CHUNK_ELEMENTS", 100)
    fit(models[0], SETTINGS, True)
    monkeypatch.setattr(critic, "MAX_SHUFFLED_ELEMENTS", 0)
    fit(models[1], SETTINGS, True)
    assert not changed(state(models[0]), state(models[1]))


def test_parameters_of_different_ages_keep_their_own_counts_of_steps() -> None:
    """As after a layer was frozen for a while: Adam corrects the bias of each by its own age."""
    model, reference = pendulum(), pendulum()
    for each, fit_it in ((model, lambda m: fit(m, SETTINGS, True)), (reference, lambda m: reference_fit(m, SETTINGS))):
        layer = each.policy.mlp_extractor.value_net[0].requires_grad_(False)
        fit_it(each)
        layer.requires_grad_(True)
    assert_same_fit(model, reference, fit(model, SETTINGS, True), reference_fit(reference, SETTINGS))
    ages = {float(values["step"]) for values in model.policy.optimizer.state.values()}
    assert len(ages) == 2
    # Once more, when all have a state.
    assert_same_fit(model, reference, fit(model, SETTINGS, True), reference_fit(reference, SETTINGS))


def first_rows(samples: Any, batch_size: int) -> list[th.Tensor]:
    """Minibatches that leave out most of the samples, come in order and are of different sizes."""
    return [th.arange(3), th.arange(3, 3 + batch_size), th.tensor([200, 100])]


@pytest.mark.parametrize("is_builtin", [True, False], ids=["plain", "general"])
@pytest.mark.parametrize("chunk_elements", [2**21, 100])
def test_minibatches_have_the_rows_that_are_drawn_for_them(
    monkeypatch: pytest.MonkeyPatch, is_builtin: bool, chunk_elements: int
) -> None:
    monkeypatch.setattr(samples, "MAX_CHUNK_ELEMENTS", chunk_elements)
    model, reference = pendulum(), pendulum()
    fitted = fit(model, SETTINGS, is_builtin, draw_rows=first_rows)
    policy, data, losses = reference.policy, rollout(reference), []
    for _ in range(SETTINGS.n_epochs):
        for rows in first_rows(data, SETTINGS.batch_size):
            loss = mse_loss(policy.predict_values(data.observations[rows]).flatten(), data.returns[rows])
            losses.append(loss.item())
            policy.optimizer.zero_grad()
            loss.backward()
            policy.optimizer.step()
    assert_same_fit(model, reference, fitted, th.tensor(losses))


def test_the_ways_can_take_turns() -> None:
    model, reference = pendulum(), pendulum()
    for is_builtin in (True, False, True):
        assert_same_fit(model, reference, fit(model, SETTINGS, is_builtin), reference_fit(reference, SETTINGS))


@pytest.mark.parametrize("is_builtin", [True, False], ids=["plain", "general"])
def test_the_actor_stays_and_so_does_everything_in_memory(is_builtin: bool) -> None:
    model = pendulum()
    actor, pointers = actor_state(model), [p.data_ptr() for p in model.policy.parameters()]
    fit(model, SETTINGS, is_builtin)
    assert not changed(actor, actor_state(model))
    assert [p.data_ptr() for p in model.policy.parameters()] == pointers
    assert all(parameter.grad is None for parameter in model.policy.parameters())


def test_weight_decay_leaves_the_actor_alone() -> None:
    kwargs = {"optimizer_kwargs": {"weight_decay": 0.5}, "net_arch": [16]}
    model = pendulum(policy_kwargs=kwargs)
    # What a user's own code may have left there.
    model.policy.action_net.weight.grad = th.ones_like(model.policy.action_net.weight)
    actor = actor_state(model)
    fit(model, SETTINGS, is_builtin=False)
    assert not changed(actor, actor_state(model))


def freeze_first_layer(policy: ActorCriticPolicy) -> nn.Module:
    policy.mlp_extractor.value_net[0].requires_grad_(False)
    return policy.mlp_extractor.value_net[0]


def freeze_all(policy: ActorCriticPolicy) -> nn.Module:
    for parameter in critic_parameters(policy):
        parameter.requires_grad_(False)
    return policy.value_net


@pytest.mark.parametrize("freeze", [freeze_first_layer, freeze_all])
def test_frozen_parameters_of_the_critic_stay(freeze: Callable[[ActorCriticPolicy], nn.Module]) -> None:
    model = pendulum()
    frozen = freeze(model.policy)
    before = [parameter.clone() for parameter in frozen.parameters()]
    others = state(model)
    model.train()
    assert all(th.equal(a, b) for a, b in zip(before, frozen.parameters(), strict=True))
    assert ("value_net.weight" in changed(others, state(model))) == (freeze is freeze_first_layer)


def test_a_critic_of_which_nothing_is_its_own_stops_no_update() -> None:
    kwargs = {
        "features_extractor_class": Extractor,
        "features_extractor_kwargs": {"layer": "layer-norm"},
        "share_features_extractor": True,
        "net_arch": [8],
    }
    model = pendulum(env=SpacesEnv(VECTOR, spaces.Box(-1, 1, (3,))), policy_kwargs=kwargs)
    for module in (model.policy.mlp_extractor.value_net, model.policy.value_net):
        module.requires_grad_(False)
    before = state(model)
    model.train()
    assert "action_net.weight" in changed(before, state(model))


@pytest.mark.parametrize("activation_fn", [nn.Tanh, nn.PReLU], ids=["plain", "general"])
@pytest.mark.parametrize("frozen", [False, True], ids=["learning", "frozen"])
@pytest.mark.parametrize("layer", ["layer-norm", "batch-norm", "dropout"])
def test_a_shared_extractor_stays_with_the_policy_step(
    layer: str, frozen: bool, activation_fn: type[nn.Module]
) -> None:
    env = SpacesEnv(VECTOR, spaces.Box(-1, 1, (3,)))
    kwargs = {
        "features_extractor_class": Extractor,
        "features_extractor_kwargs": {"layer": layer},
        "share_features_extractor": True,
        "activation_fn": activation_fn,
        "net_arch": [8],
    }
    model = pendulum(env=env, policy_kwargs=kwargs)
    model.policy.features_extractor.requires_grad_(not frozen)
    old, obs = copy.deepcopy(model.policy), observations(model)
    old_distributions = action_distributions(old, obs)
    model.train()
    assert mean_kl(old_distributions, model.policy, obs) == pytest.approx(
        log(model)["train/kl_divergence_loss"], rel=1e-3
    )
    assert not th.equal(old.value_net.weight, model.policy.value_net.weight)
    assert (old.features_extractor.net[0].weight == model.policy.features_extractor.net[0].weight).all() == frozen
    buffers = zip(old.features_extractor.buffers(), model.policy.features_extractor.buffers(), strict=True)
    assert all(th.equal(a, b) for a, b in buffers)


def test_the_critics_own_batch_norm_and_dropout_work_in_its_fit() -> None:
    kwargs = {
        "features_extractor_class": Extractor,
        "features_extractor_kwargs": {"layer": "batch-norm"},
        "share_features_extractor": False,
        "net_arch": [8],
    }
    model = pendulum(env=SpacesEnv(VECTOR, spaces.Box(-1, 1, (3,))), policy_kwargs=kwargs)
    model.train()
    assert (model.policy.vf_features_extractor.net[1].running_mean != 0.0).any()
    assert (model.policy.pi_features_extractor.net[1].running_mean == 0.0).all()
    assert not any(module.training for module in model.policy.modules())


def test_no_epochs_leave_the_critic_as_it_is() -> None:
    for is_builtin in (True, False):
        model = pendulum()
        before = state(model)
        fitted = fit(model, CriticSettings(0, 64, None), is_builtin)
        assert fitted.mean_loss == 0.0
        assert {name for name in changed(before, state(model)) if not name.startswith("optimizer.")} == set()


def test_a_bound_on_the_gradient_is_off_by_default_and_works() -> None:
    kwargs = {"policy_kwargs": {"optimizer_class": th.optim.SGD, "net_arch": [8]}, "learning_rate": 1.0}
    steps = {}
    for max_grad_norm in (0.01, 0.02):
        model = pendulum(n_critic_updates=1, batch_size=256, max_grad_norm=max_grad_norm, **kwargs)
        before = th.nn.utils.parameters_to_vector(critic_parameters(model.policy)).detach()
        model.train()
        step = th.nn.utils.parameters_to_vector(critic_parameters(model.policy)).detach() - before
        steps[max_grad_norm] = float(step.norm())
    assert steps == {norm: pytest.approx(norm, rel=1e-3) for norm in steps}
    assert pendulum().max_grad_norm is None


def test_the_loss_after_as_many_epochs_is_that_of_sb3_contrib() -> None:
    losses = []
    for algorithm in (None, sb3_contrib.TRPO):
        model = pendulum(*([algorithm] if algorithm else []), n_critic_updates=20, gamma=0.9, learning_rate=3e-3)
        model.train()
        samples = rollout(model)
        with th.no_grad():
            losses.append(float(mse_loss(model.policy.predict_values(samples.observations).flatten(), samples.returns)))
    assert losses[0] == pytest.approx(losses[1], rel=0.05)


class Encoder(BaseFeaturesExtractor):
    """An encoder that the critic alone trains."""

    def __init__(self, observation_space: spaces.Box) -> None:
        super().__init__(observation_space, features_dim=8)
        self.net = nn.Sequential(nn.Linear(observation_space.shape[0], 8), nn.Tanh())

    def forward(self, observations: th.Tensor) -> th.Tensor:
        return self.net(observations)


class Detached(ActorCriticPolicy):
    """The actor sees the encoder's output, and its gradient does not."""

    def get_distribution(self, obs: th.Tensor) -> Any:
        latent = self.mlp_extractor.forward_actor(self.features_extractor(obs).detach())
        return self._get_action_dist_from_latent(latent)


class DetachedByHook(ActorCriticPolicy):
    """SB3's methods, and an extractor that is detached on the way to the actor."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.mlp_extractor.policy_net.register_forward_pre_hook(lambda _, inputs: (inputs[0].detach(),))


class SpyOnTheCritic(ActorCriticPolicy):
    """The actor uses what the critic's last layer holds, by no call of a module."""

    def get_distribution(self, obs: th.Tensor) -> Any:
        features = self.features_extractor(obs).detach()
        values = nn.functional.linear(self.mlp_extractor.forward_critic(features), self.value_net.weight.detach())
        latent = self.mlp_extractor.forward_actor(features) + values.detach()
        return self._get_action_dist_from_latent(latent)


def detached(policy: type[ActorCriticPolicy], **kwargs: Any) -> Any:
    """
    Make a model with a rollout, whose critic makes large steps.

    :param policy: the policy's class
    :param kwargs: of the model
    :return: a model with a rollout, whose critic makes large steps
    """
    policy_kwargs = {"features_extractor_class": Encoder, "net_arch": [8]}
    kwargs = {"learning_rate": 0.05, "policy_kwargs": policy_kwargs, **kwargs}
    model = pendulum(policy=policy, env=SpacesEnv(VECTOR, spaces.Box(-1, 1, (3,))), **kwargs)
    # A new one acts almost the same in all states.
    model.policy.action_net.weight.data.mul_(100.0)
    return model


@pytest.mark.parametrize("policy", [Detached, DetachedByHook, SpyOnTheCritic])
def test_the_policy_stays_in_its_trust_region_whatever_the_critic_moves(policy: type[ActorCriticPolicy]) -> None:
    model = detached(policy, target_kl=0.01)
    obs, names = observations(model), set(model.policy.state_dict())
    said: list[str] = []
    for _ in range(2):
        old, before = action_distributions(model.policy, obs), state(model)
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            model.train()
        said.extend(str(warning.message) for warning in caught)
        kl = mean_kl(old, model.policy, obs)
        assert 0.0 < kl <= 0.01 * (1 + 1e-5)
        assert kl == pytest.approx(log(model)["train/kl_divergence_loss"], rel=1e-3)
        moved = changed(before, state(model)) & names
        assert "action_net.weight" in moved
        assert "features_extractor.net.0.weight" not in moved
        # What the policy does not depend on is trained all the same.
        assert "value_net.bias" in moved
    assert len(said) == 1
    assert "critic does not train features_extractor.net.0.weight" in said[0]


def test_an_encoder_that_moves_the_policy_too_little_is_trained() -> None:
    model = detached(Detached, target_kl=10.0, learning_rate=1e-3)
    before = state(model)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        model.train()
    assert "features_extractor.net.0.weight" in changed(before, state(model))


class RunningNorm(nn.Module):
    """Normalises by the mean of all that it has seen in training mode, and has no parameter."""

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("mean", th.zeros(8))
        self.register_buffer("count", th.zeros(()))

    def forward(self, x: th.Tensor) -> th.Tensor:
        if self.training:
            self.count += 1
            self.mean += (x.detach().mean(dim=0) - self.mean) / self.count
        return x - self.mean


class Normalised(BaseFeaturesExtractor):
    def __init__(self, observation_space: spaces.Box, norm: Callable[[], nn.Module], first: bool = True) -> None:
        super().__init__(observation_space, features_dim=8)
        self.layer = nn.Linear(observation_space.shape[0], 8) if first else nn.ZeroPad1d((0, 8 - VECTOR.shape[0]))
        self.norm = norm()

    def forward(self, observations: th.Tensor) -> th.Tensor:
        return self.norm(self.layer(observations))


NORMS: dict[str, Callable[[], nn.Module]] = {
    "running": RunningNorm,
    "batch": lambda: nn.BatchNorm1d(8, affine=False),
    "batch, affine": lambda: nn.BatchNorm1d(8),
}


def normalised(norm: str, first: bool, **kwargs: Any) -> Any:
    kwargs = {
        "features_extractor_class": Normalised,
        "features_extractor_kwargs": {"norm": NORMS[norm], "first": first},
        "net_arch": [8],
        **kwargs,
    }
    return pendulum(env=SpacesEnv(VECTOR, spaces.Box(-1, 1, (3,))), policy_kwargs=kwargs)


@pytest.mark.parametrize("first", [True, False], ids=["after a layer", "alone"])
@pytest.mark.parametrize("norm", NORMS)
def test_a_normaliser_learns_in_the_critic_alone_and_one_of_the_actor_is_named(norm: str, first: bool) -> None:
    model = normalised(norm, first, share_features_extractor=False)
    policy = model.policy
    before = [buffer.clone() for buffer in policy.pi_features_extractor.buffers()]
    with pytest.warns(UserWarning, match=r"features_extractor\.norm \((RunningNorm|BatchNorm1d)\)"):
        model.train()
    assert all(map(th.equal, before, policy.pi_features_extractor.buffers()))
    assert not any(map(th.equal, before, policy.vf_features_extractor.buffers())) or norm == "batch, affine"
    assert not th.equal(before[0], next(policy.vf_features_extractor.buffers()))
    assert not any(module.training for module in policy.modules())
    # Once.
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        model.train()


@pytest.mark.parametrize("first", [True, False], ids=["after a layer", "alone"])
@pytest.mark.parametrize("activation_fn", [nn.Tanh, nn.PReLU], ids=["plain", "general"])
@pytest.mark.parametrize("norm", NORMS)
def test_a_shared_normaliser_stays_with_the_policy(norm: str, activation_fn: type[nn.Module], first: bool) -> None:
    model = normalised(norm, first, share_features_extractor=True, activation_fn=activation_fn)
    before = [buffer.clone() for buffer in model.policy.features_extractor.buffers()]
    obs = observations(model)
    old = action_distributions(model.policy, obs)
    with pytest.warns(UserWarning, match=r"features_extractor\.norm"):
        model.train()
    assert all(map(th.equal, before, model.policy.features_extractor.buffers()))
    assert mean_kl(old, model.policy, obs) == pytest.approx(log(model)["train/kl_divergence_loss"], rel=1e-3)
