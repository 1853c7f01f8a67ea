"""
Rollouts, compared with those of SB3's own loop from the same seed.
"""

import copy
import pickle
from collections.abc import Callable
from typing import Any

import gymnasium as gym
import numpy as np
import pytest
import torch as th
from rollout_envs import ACTION_SPACES, PATHS, WRAPPERS, cart_poles, paths
from stable_baselines3.common.buffers import RolloutBuffer
from stable_baselines3.common.callbacks import BaseCallback, CallbackList, EvalCallback, EveryNTimesteps
from stable_baselines3.common.env_util import make_vec_env
from stable_baselines3.common.envs import BitFlippingEnv, FakeImageEnv
from stable_baselines3.common.on_policy_algorithm import OnPolicyAlgorithm
from stable_baselines3.common.policies import ActorCriticPolicy
from stable_baselines3.common.vec_env import SubprocVecEnv, VecEnv, VecNormalize, is_vecenv_wrapped

from sb3_trpo import TRPO
from sb3_trpo.rollouts import fast_rollout

N_STEPS = 32


class WithSb3Rollouts(TRPO):
    collect_rollouts = OnPolicyAlgorithm.collect_rollouts


class Watcher(BaseCallback):
    """
    Keeps what a callback is told.

    :param stop_at: ends the training at this call
    """

    def __init__(self, stop_at: int | None = None) -> None:
        super().__init__()
        self.stop_at = stop_at
        self.seen: list[dict[str, Any]] = []
        self.seen_at_end: list[dict[str, Any]] = []

    def _on_step(self) -> bool:
        self.seen.append(self._copies())
        return self.n_calls != self.stop_at

    def _on_rollout_end(self) -> None:
        self.seen_at_end.append(self._copies())

    def _copies(self) -> dict[str, Any]:
        kept = {"self", "env", "callback", "rollout_buffer"}
        return {name: x if name in kept else copy.deepcopy(x) for name, x in self.locals.items()}


def rollouts_of(
    algorithm: type[TRPO],
    make_env: Callable[[], VecEnv],
    callback: Any = None,
    n_rollouts: int = 2,
    policy: Any = "MlpPolicy",
    **kwargs: Any,
) -> tuple[TRPO, list[RolloutBuffer], list[bool]]:
    """Return a model that has not learnt anything from its rollouts, the rollouts, and whether each is complete."""
    model = algorithm(policy, make_env(), n_steps=N_STEPS, gamma=0.9, seed=1, device="cpu", **kwargs)
    # An untrained policy's actions hardly depend on the state.
    model.policy.action_net.weight.data *= 100
    _, callback = model._setup_learn(1000, callback)
    callback.on_training_start({}, {})
    buffers, complete = [], []
    for _ in range(n_rollouts):
        complete.append(model.collect_rollouts(model.env, callback, model.rollout_buffer, N_STEPS))
        buffers.append(copy.deepcopy(model.rollout_buffer))
    return model, buffers, complete


def assert_same_rollouts(ours: Any, sb3s: Any, exactly: bool) -> None:
    """
    Check that rollouts are the same.

    :param ours: from ``rollouts_of``
    :param sb3s: from ``rollouts_of``
    :param exactly: whether values and log-probabilities, too, are the same to the last bit
    """
    (model, buffers, complete), (sb3_model, sb3_buffers, sb3_complete) = ours, sb3s
    assert complete == sb3_complete
    for buffer, sb3_buffer in zip(buffers, sb3_buffers, strict=True):
        assert (buffer.pos, buffer.full) == (sb3_buffer.pos, sb3_buffer.full)
        # What comes after an early end is nobody's business.
        for name in ("actions", "episode_starts"):
            np.testing.assert_equal(getattr(buffer, name)[: buffer.pos], getattr(sb3_buffer, name)[: buffer.pos], name)
        np.testing.assert_equal(buffer.observations, sb3_buffer.observations)
        for name in ("values", "log_probs", "rewards", "advantages", "returns"):
            tolerance = 0.0 if exactly and name in ("values", "log_probs") else 1e-5
            x, sb3s_x = getattr(buffer, name)[: buffer.pos], getattr(sb3_buffer, name)[: buffer.pos]
            np.testing.assert_allclose(x, sb3s_x, rtol=tolerance, atol=tolerance, err_msg=name)
    np.testing.assert_equal(model._last_obs, sb3_model._last_obs)
    np.testing.assert_equal(model._last_episode_starts, sb3_model._last_episode_starts)
    assert model.num_timesteps == sb3_model.num_timesteps
    assert episodes(model) == episodes(sb3_model)
    if isinstance(model.env, VecNormalize):
        assert pickle.dumps(model.env) == pickle.dumps(sb3_model.env)
        np.testing.assert_equal(model.env.returns, sb3_model.env.returns)


def episodes(model: TRPO) -> list[tuple[float, int]]:
    assert model.ep_info_buffer is not None
    return [(episode["r"], episode["l"]) for episode in model.ep_info_buffer]


def both(*args: Any, **kwargs: Any) -> tuple[Any, Any]:
    """Return ``rollouts_of`` TRPO and of SB3's loop, which leave the random generators in the same state."""
    ours = rollouts_of(TRPO, *args, **kwargs)
    state = random_state()
    sb3s = rollouts_of(WithSb3Rollouts, *args, **kwargs)
    np.testing.assert_equal(random_state(), state)
    return ours, sb3s


def random_state() -> tuple[Any, ...]:
    # SB3 seeds and uses NumPy's global generator.
    return (th.get_rng_state().numpy(), *np.random.get_state()[1:])  # noqa: NPY002


@pytest.mark.parametrize("n_envs", [1, 3])
@pytest.mark.parametrize("distribution", ACTION_SPACES)
def test_every_distribution(distribution, n_envs):
    ours, sb3s = both(lambda: cart_poles(distribution, n_envs))
    assert_same_rollouts(ours, sb3s, exactly=False)
    assert episodes(ours[0])


@pytest.mark.parametrize("wrapper", WRAPPERS)
def test_every_wrapper(wrapper):
    assert_same_rollouts(*both(lambda: WRAPPERS[wrapper](cart_poles("gaussian", 2))), exactly=False)


def test_normalization_of_one_environment_and_of_float64():
    for make_env in (
        lambda: VecNormalize(cart_poles("gaussian", 1)),
        lambda: VecNormalize(make_vec_env("InvertedPendulum-v5", 3)),
    ):
        assert_same_rollouts(*both(make_env), exactly=False)


def test_environments_in_processes():
    ours, sb3s = both(lambda: VecNormalize(cart_poles("categorical", 2, SubprocVecEnv)))
    assert_same_rollouts(ours, sb3s, exactly=False)
    ours[0].env.close()
    sb3s[0].env.close()


def test_envpool():
    pytest.importorskip("envpool", reason="needs sb3-trpo[envpool]")
    from sb3_trpo.envpool import make_envpool_vec_env

    ours, sb3s = both(lambda: VecNormalize(make_envpool_vec_env("Hopper-v5", 4)))
    assert_same_rollouts(ours, sb3s, exactly=False)
    assert episodes(ours[0])


def test_long_rollouts_are_evaluated_in_parts(monkeypatch):
    monkeypatch.setattr(fast_rollout, "MAX_ROWS", 7)
    assert_same_rollouts(*both(lambda: cart_poles("gaussian", 2)), exactly=False)


def test_truncated_episodes_are_bootstrapped_and_terminated_ones_are_not():
    watcher = Watcher()
    model, (buffer,), _ = rollouts_of(TRPO, lambda: cart_poles("categorical", 2), watcher, n_rollouts=1)
    ends = {"terminated": 0, "truncated": 0}
    for rewards, seen in zip(buffer.rewards, watcher.seen, strict=True):
        for reward, done, info in zip(rewards, seen["dones"], seen["infos"], strict=True):
            rest = 0.0
            if done:
                ends["truncated" if info["TimeLimit.truncated"] else "terminated"] += 1
            if info["TimeLimit.truncated"]:
                obs, _ = model.policy.obs_to_tensor(info["terminal_observation"])
                rest = model.gamma * model.policy.predict_values(obs).item()
            # CartPole pays 1 for each step.
            assert reward == pytest.approx(1.0 + rest, rel=1e-6)
    assert min(ends.values()) > 0


@pytest.mark.parametrize("policy_kwargs", [{"net_arch": []}, {"activation_fn": th.nn.ReLU, "net_arch": [8, 8, 8]}])
def test_every_plain_network(policy_kwargs):
    assert_same_rollouts(*both(lambda: cart_poles("gaussian", 2), policy_kwargs=policy_kwargs), exactly=False)


def test_images_seen_by_a_plain_network():
    # SB3 scales and transposes them before a FlattenExtractor sees them.
    assert_same_rollouts(*both(lambda: make_vec_env(random_images, 2)), exactly=False)


@pytest.mark.parametrize("distribution", ["gaussian", "categorical"])
@pytest.mark.parametrize("wrapper", ["plain", "normalized"])
def test_callbacks_find_what_they_find_in_sb3(wrapper, distribution):
    watchers = []
    for algorithm in (TRPO, WithSb3Rollouts):
        watchers.append(Watcher())
        rollouts_of(algorithm, lambda: WRAPPERS[wrapper](cart_poles(distribution, 2)), watchers[-1])
    ours, sb3s = watchers
    assert len(ours.seen) == len(sb3s.seen) == 2 * N_STEPS
    assert len(ours.seen_at_end) == len(sb3s.seen_at_end) == 2
    for seen, sb3_seen in zip(ours.seen + ours.seen_at_end, sb3s.seen + sb3s.seen_at_end, strict=True):
        # The others are loop variables of SB3's bootstrapping.
        promised = sb3_seen.keys() - {"idx", "done", "terminal_obs", "terminal_value"}
        assert promised <= seen.keys()
        for name in promised - {"self", "env", "callback", "rollout_buffer", "infos"}:
            x, sb3s_x = as_array(seen[name]), as_array(sb3_seen[name])
            # At the end of a rollout the rewards contain values.
            tolerance = 1e-5 if name == "rewards" and seen["n_steps"] == N_STEPS else 0.0
            np.testing.assert_allclose(x, sb3s_x, rtol=tolerance, err_msg=name)
        for info, sb3_info in zip(seen["infos"], sb3_seen["infos"], strict=True):
            assert info.keys() == sb3_info.keys()
            np.testing.assert_equal(info.get("terminal_observation"), sb3_info.get("terminal_observation"))
        assert seen["self"] is ours.model
        assert seen["env"] is ours.training_env
        assert seen["rollout_buffer"] is ours.model.rollout_buffer
        assert seen["callback"] is ours


def random_images() -> gym.Env:
    env = FakeImageEnv(screen_height=36, screen_width=36, discrete=False)
    env.observation_space.seed(3)
    return env


def as_array(x: Any) -> Any:
    return x.numpy() if isinstance(x, th.Tensor) else x


def test_values_are_sb3s_to_the_last_bit_where_a_callback_may_read_them():
    assert_same_rollouts(*both(lambda: VecNormalize(cart_poles("gaussian", 2)), Watcher()), exactly=True)


def test_a_reading_callback_is_found_below_others():
    watcher = Watcher()
    nested = CallbackList([EveryNTimesteps(2, CallbackList([watcher]))])
    rollouts_of(TRPO, lambda: cart_poles("gaussian", 2), nested)
    assert all("log_probs" in seen for seen in watcher.seen)
    assert watcher.seen


@pytest.mark.parametrize("stop_at", [1, 2, N_STEPS - 1, N_STEPS])
def test_a_callback_ends_the_rollout(stop_at):
    ours = rollouts_of(TRPO, lambda: cart_poles("gaussian", 2), Watcher(stop_at), n_rollouts=1)
    sb3s = rollouts_of(WithSb3Rollouts, lambda: cart_poles("gaussian", 2), Watcher(stop_at), n_rollouts=1)
    assert ours[2] == [False]
    assert_same_rollouts(ours, sb3s, exactly=True)


def test_learning_ends_where_a_callback_ends_it():
    model = TRPO("MlpPolicy", cart_poles("gaussian", 2), n_steps=N_STEPS, device="cpu", batch_size=64)
    model.learn(10_000, Watcher(stop_at=N_STEPS + 5))
    assert model.num_timesteps == 2 * (N_STEPS + 5)
    assert model._n_updates == 1


class ForwardOfItsOwn(ActorCriticPolicy):
    def forward(self, obs: th.Tensor, deterministic: bool = False) -> Any:
        return super().forward(obs, deterministic)


class OtherForward(ActorCriticPolicy):
    def forward(self, obs: th.Tensor, deterministic: bool = False) -> Any:
        actions, values, log_probs = super().forward(obs, deterministic)
        return actions, values + 1.0, log_probs


class OtherBuffer(RolloutBuffer):
    def add(self, obs: Any, action: Any, reward: Any, *args: Any) -> None:
        super().add(obs, action, reward + 1.0, *args)


NOT_PLAIN: dict[str, Any] = {
    "images": (lambda: make_vec_env(random_images, 2), {"policy": "CnnPolicy"}),
    "PReLU": (lambda: cart_poles("gaussian", 2), {"policy_kwargs": {"activation_fn": th.nn.PReLU}}),
    "forward": (lambda: cart_poles("gaussian", 2), {"policy": OtherForward}),
    "buffer": (lambda: cart_poles("gaussian", 2), {"rollout_buffer_class": OtherBuffer}),
    "normalized PReLU": (
        lambda: VecNormalize(cart_poles("gaussian", 2)),
        {"policy_kwargs": {"activation_fn": th.nn.PReLU}},
    ),
}
PLAIN: dict[str, Any] = {
    "dict": (lambda: make_vec_env(BitFlippingEnv, 2), {"policy": "MultiInputPolicy"}),
    "discrete": (lambda: make_vec_env("FrozenLake-v1", 2), {}),
    "gSDE": (lambda: cart_poles("gaussian", 2), {"use_sde": True, "sde_sample_freq": 4}),
    "gSDE, one environment": (lambda: cart_poles("gaussian", 1), {"use_sde": True}),
    "gSDE, squashed": (
        lambda: cart_poles("gaussian", 3),
        {"use_sde": True, "sde_sample_freq": 5, "policy_kwargs": {"squash_output": True}},
    ),
    "gSDE, one std for all actions": (
        lambda: VecNormalize(cart_poles("gaussian", 2)),
        {"use_sde": True, "policy_kwargs": {"full_std": False, "use_expln": True, "net_arch": []}},
    ),
    "ELU": (lambda: cart_poles("gaussian", 2), {"policy_kwargs": {"activation_fn": th.nn.ELU}}),
}


@pytest.mark.parametrize("kind", NOT_PLAIN)
def test_what_is_not_covered_is_left_to_sb3(kind):
    make_env, kwargs = NOT_PLAIN[kind]
    assert_same_rollouts(*both(make_env, **kwargs), exactly=True)


@pytest.mark.parametrize("kind", PLAIN)
def test_what_is_covered_beside_vectors_and_tanh(kind):
    make_env, kwargs = PLAIN[kind]
    assert_same_rollouts(*both(make_env, **kwargs), exactly=False)


@pytest.mark.parametrize("kind", [*PLAIN, *NOT_PLAIN])
def test_the_log_says_which_path_is_taken_and_why_not_the_fast_one(kind, capsys):
    make_env, kwargs = {**PLAIN, **NOT_PLAIN}[kind]
    policy = kwargs.get("policy", "MlpPolicy")
    kwargs = {name: value for name, value in kwargs.items() if name != "policy"}
    TRPO(policy, make_env(), n_steps=N_STEPS, device="cpu", batch_size=64, verbose=1, **kwargs).learn(3 * N_STEPS)
    said = [line for line in capsys.readouterr().out.splitlines() if line.startswith("Rollouts are collected")]
    assert len(said) == 1
    assert ("by the fast path" in said[0]) == (kind in PLAIN)
    assert ("because" in said[0]) == (kind in NOT_PLAIN)


def test_correlated_noise_is_the_same_on_every_way() -> None:
    def rollouts(policy: Any, callback: Any) -> Any:
        return rollouts_of(TRPO, lambda: cart_poles("gaussian", 2), callback, policy=policy, noise_correlation=0.7)

    lean = rollouts("MlpPolicy", None)
    assert_same_rollouts(lean, rollouts("MlpPolicy", Watcher()), exactly=False)
    assert_same_rollouts(lean, rollouts(ForwardOfItsOwn, None), exactly=False)


@pytest.mark.parametrize("is_hook", [True, False])
def test_hooks_and_patches_are_called_at_every_step(is_hook):
    model = TRPO("MlpPolicy", cart_poles("gaussian", 2), n_steps=N_STEPS, device="cpu", batch_size=64)
    calls = []
    if is_hook:
        model.policy.value_net.register_forward_hook(lambda *_: calls.append(1))
    else:
        forward = model.policy.forward
        model.policy.forward = lambda *args: calls.append(1) or forward(*args)
    _, callback = model._setup_learn(1000, None)
    model.collect_rollouts(model.env, callback, model.rollout_buffer, N_STEPS)
    assert len(calls) >= N_STEPS


@paths
def test_interrupted_training_goes_on_from_the_last_finished_update(path, tmp_path):
    class Interrupter(BaseCallback):
        def _on_step(self) -> bool:
            if self.n_calls == N_STEPS + 7:
                raise KeyboardInterrupt
            return True

    def make_model() -> TRPO:
        env = VecNormalize(cart_poles("gaussian", 2))
        return TRPO("MlpPolicy", env, n_steps=N_STEPS, device="cpu", batch_size=64, **PATHS[path], seed=0)

    once = make_model().learn(2 * N_STEPS)
    model = make_model()
    with pytest.raises(KeyboardInterrupt):
        model.learn(10_000, Interrupter())
    model.save(tmp_path / "model")
    loaded = TRPO.load(tmp_path / "model", device="cpu")
    for name, parameter in once.policy.state_dict().items():
        th.testing.assert_close(loaded.policy.state_dict()[name], parameter)
    assert "step_wait" not in vars(model.env.unwrapped)
    model.learn(2 * N_STEPS, reset_num_timesteps=False)
    assert model._n_updates == 2


@paths
def test_callbacks_work_on_the_environments_themselves(path, tmp_path):
    class Saver(BaseCallback):
        def _on_step(self) -> bool:
            env = self.locals["env"]
            assert env is self.model.env
            assert is_vecenv_wrapped(env, VecNormalize)
            assert env.unwrapped.envs[0].get_wrapper_attr("spec").id == "CartPole-v1"
            if self.n_calls == 5:
                env.save(tmp_path / "statistics.pkl")
            return True

    env = VecNormalize(cart_poles("gaussian", 2))
    evaluation = EvalCallback(VecNormalize(cart_poles("gaussian", 1), training=False), eval_freq=10, verbose=0)
    model = TRPO("MlpPolicy", env, n_steps=N_STEPS, device="cpu", batch_size=64, **PATHS[path])
    model.learn(2 * N_STEPS, [Saver(), evaluation])
    assert VecNormalize.load(tmp_path / "statistics.pkl", cart_poles("gaussian", 2)).obs_rms.count > 5
    assert np.isfinite(evaluation.last_mean_reward)
    assert evaluation.eval_env.obs_rms.count > 10


def test_an_environment_may_reuse_its_arrays():
    class Reusing(gym.Wrapper):
        """Keeps the last observation in one array, and leaves it to the next step to change it."""

        def __init__(self, env: gym.Env) -> None:
            super().__init__(env)
            self.array = np.zeros(4, dtype=np.float32)

        def step(self, action: Any) -> Any:
            obs, *rest = self.env.step(action)
            self.array[:] = obs
            return (self.array, *rest)

    def make_env() -> VecEnv:
        return make_vec_env(lambda: Reusing(gym.make("CartPole-v1", max_episode_steps=8)), 2)

    assert_same_rollouts(*both(make_env), exactly=False)
