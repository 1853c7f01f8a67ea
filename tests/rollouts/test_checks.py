"""
Checks of what environments give: what is not finite is an error that names environment and step, unless nobody minds,
and VecNormalize's statistics are never lost to it.
"""

import copy
import sys
from typing import Any

import gymnasium as gym
import numpy as np
import pytest
import torch as th
from gymnasium import spaces
from rollout_envs import PATHS, WRAPPERS, Faulty, cart_pole, paths
from stable_baselines3.common.callbacks import BaseCallback
from stable_baselines3.common.monitor import Monitor
from stable_baselines3.common.torch_layers import BaseFeaturesExtractor
from stable_baselines3.common.vec_env import DummyVecEnv, SubprocVecEnv, VecEnv, VecEnvWrapper, VecNormalize

from sb3_trpo import TRPO
from sb3_trpo.rollouts.checks import OutputChecks, is_finite

N_STEPS = 32
# Of the environment that goes wrong; in the second rollout.
BAD_ENV, BAD_STEP = 1, N_STEPS + 6


def faulty_cart_poles(fault: str, value: float = np.nan, step: int = BAD_STEP) -> DummyVecEnv:
    """
    Make three CartPoles, of which one goes wrong.

    :param fault: of environment ``BAD_ENV``, see ``Faulty``
    :param value: that it gives instead
    :param step: at which it does so
    :return: three environments
    """
    envs = [cart_pole("gaussian", 100) for _ in range(3)]
    envs[BAD_ENV] = Monitor(Faulty(envs[BAD_ENV], fault, step, value))
    return DummyVecEnv([lambda env=env: env for env in envs])  # type: ignore[misc]


def model_of(env: VecEnv, **kwargs: Any) -> TRPO:
    return TRPO("MlpPolicy", env, n_steps=N_STEPS, batch_size=96, seed=0, device="cpu", **kwargs)


def assert_statistics_are_finite(model: TRPO) -> None:
    normalization = model.get_vec_normalize_env()
    assert normalization is not None
    for statistics in (normalization.obs_rms, normalization.ret_rms):
        assert np.isfinite(statistics.mean).all()
        assert np.isfinite(statistics.var).all()
    assert np.isfinite(normalization.returns).all()


@pytest.mark.parametrize("value", [np.nan, -np.inf])
@pytest.mark.parametrize("wrapper", ["plain", "normalized", "stacked and normalized"])
@pytest.mark.parametrize("fault", ["observation", "reward", "last observation"])
@paths
def test_the_error_names_environment_and_step_and_leaves_everything_savable(fault, wrapper, value, path, tmp_path):
    if value == -np.inf and "normalized" in wrapper and fault == "last observation":
        pytest.skip("VecNormalize clips it to -10, which is what the algorithm sees")
    model = model_of(WRAPPERS[wrapper](faulty_cart_poles(fault, value)), **PATHS[path])
    with pytest.raises(ValueError, match=f"{fault} of environment {BAD_ENV} is not finite after {3 * BAD_STEP} steps"):
        model.learn(400)
    assert model._n_updates == 1
    model.save(tmp_path / "model")
    for parameter in TRPO.load(tmp_path / "model", device="cpu").policy.parameters():
        assert bool(parameter.isfinite().all())
    if model.get_vec_normalize_env() is not None:
        assert_statistics_are_finite(model)


@paths
@pytest.mark.parametrize("wrapper", ["plain", "normalized"])
def test_an_episode_may_begin_badly(wrapper, path):
    class BadReset(Faulty):
        def reset(self, **kwargs: Any) -> Any:
            obs, info = self.env.reset(**kwargs)
            return np.full_like(obs, np.nan), info

    def make_env(bad: bool) -> Any:
        return lambda: BadReset(cart_pole("gaussian"), "", 0) if bad else cart_pole("gaussian")

    model = model_of(WRAPPERS[wrapper](DummyVecEnv([make_env(False), make_env(True)])), **PATHS[path])
    with pytest.raises(ValueError, match="observation of environment 1 is not finite after 0 steps"):
        model.learn(100)


@paths
def test_a_wrapper_may_be_what_goes_wrong(path):
    class BadWrapper(VecEnvWrapper):
        def reset(self) -> Any:
            return self.venv.reset()

        def step_wait(self) -> Any:
            obs, rewards, dones, infos = self.venv.step_wait()
            rewards[2] = np.inf
            return obs, rewards, dones, infos

    model = model_of(BadWrapper(faulty_cart_poles("none")), **PATHS[path])
    with pytest.raises(ValueError, match="reward of environment 2 is not finite after 3 steps"):
        model.learn(100)


def test_the_error_comes_out_of_another_process():
    envs = [lambda: cart_pole("gaussian"), lambda: Faulty(cart_pole("gaussian"), "observation", 3)]
    model = model_of(SubprocVecEnv(envs))
    try:
        with pytest.raises(ValueError, match="observation of environment 1 is not finite after 6 steps"):
            model.learn(100)
    finally:
        model.env.close()


class GivesVec(VecEnvWrapper):
    """
    Environments whose rewards and infos are what a function makes of them.

    :param change: makes rewards and infos of rewards, dones and infos
    """

    def __init__(self, change: Any) -> None:
        super().__init__(DummyVecEnv([lambda: cart_pole("gaussian", 5) for _ in range(2)]))
        self.change = change

    def reset(self) -> Any:
        return self.venv.reset()

    def step_wait(self) -> Any:
        obs, rewards, dones, infos = self.venv.step_wait()
        rewards, infos = self.change(rewards, infos)
        return obs, rewards, dones, infos


@pytest.mark.parametrize("reward", [None, "1.0", 1j, [1.0]])
@paths
def test_a_reward_that_is_no_number_is_named(reward: Any, path: str) -> None:
    def change(rewards: np.ndarray, infos: Any) -> Any:
        changed = rewards.astype(object)
        changed[1] = reward
        return changed, infos

    with pytest.raises(ValueError, match=r"reward of environment 1 is .* after 2 steps, but must be a number"):
        model_of(GivesVec(change), **PATHS[path]).learn(100)


@pytest.mark.parametrize("reward", [1e39, -1e300])
@paths
def test_a_reward_beyond_the_buffers_range_is_named(reward: float, path: str) -> None:
    def change(rewards: np.ndarray, infos: Any) -> Any:
        return np.array([1.0, reward]), infos

    with pytest.raises(ValueError, match="reward of environment 1 is not finite after 2 steps"):
        model_of(GivesVec(change), **PATHS[path]).learn(100)


@pytest.mark.parametrize("kind", [list, th.as_tensor, tuple])
@paths
def test_a_last_observation_is_what_numpy_makes_of_it(kind: Any, path: str) -> None:
    def change(rewards: np.ndarray, infos: Any) -> Any:
        for info in infos:
            if "terminal_observation" in info:
                info["terminal_observation"] = kind(info["terminal_observation"])
        return rewards, infos

    model = model_of(GivesVec(change), **PATHS[path]).learn(100)
    plain = model_of(GivesVec(lambda rewards, infos: (rewards, infos)), **PATHS[path]).learn(100)
    np.testing.assert_array_equal(model.rollout_buffer.rewards, plain.rollout_buffer.rewards)


@pytest.mark.skipif(sys.version_info < (3, 11), reason="exceptions have no notes")
@pytest.mark.parametrize("last", [None, np.zeros(7), "text"])
def test_a_last_observation_that_can_not_be_normalised_is_told_with_the_environments_number(last: Any) -> None:
    def change(rewards: np.ndarray, infos: Any) -> Any:
        if "terminal_observation" in infos[1]:
            infos[1]["terminal_observation"] = last
        return rewards, infos

    with pytest.raises((TypeError, ValueError)) as caught:
        model_of(VecNormalize(GivesVec(change))).learn(100)
    assert caught.value.__notes__ == ["This happened in environment 1 of 2, after 10 steps."]


def test_a_bad_last_observation_of_a_terminated_episode_is_not_used():
    class Falls(Faulty):
        def step(self, action: Any) -> Any:
            obs, reward, terminated, truncated, info = super().step(action)
            return obs, reward, terminated or truncated, False, info

    env = DummyVecEnv([lambda: Monitor(Falls(cart_pole("gaussian"), "last observation", 20))])
    model = model_of(env)
    model.learn(N_STEPS)
    assert np.isfinite(model.rollout_buffer.rewards).all()


@paths
def test_a_number_too_large_for_the_statistics_is_named_and_they_are_put_back(path: str) -> None:
    # Finite, but its square is not in single precision.
    env = VecNormalize(faulty_cart_poles("observation", 1e25))
    model = model_of(env, **PATHS[path])
    before: list[Any] = []

    class Notes(BaseCallback):
        def _on_step(self) -> bool:
            before[:] = [env.obs_rms.mean.copy(), env.obs_rms.var.copy(), env.obs_rms.count]
            return True

    with pytest.raises(ValueError, match=f"observation of environment {BAD_ENV} .* after {3 * BAD_STEP} steps"):
        model.learn(400, Notes())
    np.testing.assert_equal([env.obs_rms.mean, env.obs_rms.var, env.obs_rms.count], before)
    assert_statistics_are_finite(model)


def test_a_bad_first_observation_does_not_stay_in_the_statistics() -> None:
    class BadReset(Faulty):
        def reset(self, **kwargs: Any) -> Any:
            obs, info = self.env.reset(**kwargs)
            return np.full_like(obs, np.nan), info

    env = VecNormalize(DummyVecEnv([lambda: cart_pole("gaussian"), lambda: BadReset(cart_pole("gaussian"), "", 0)]))
    model = model_of(env)
    with pytest.raises(ValueError, match="observation of environment 1"):
        model.learn(100)
    assert_statistics_are_finite(model)


class Holes(gym.Wrapper):
    """Observations with holes in them."""

    def step(self, action: Any) -> Any:
        obs, *rest = self.env.step(action)
        obs = np.array(obs)
        obs[self.np_random.integers(4)] = np.nan
        return (obs, *rest)


class Fills(BaseFeaturesExtractor):
    """A hole counts as 0, and a flag says that it was one."""

    def __init__(self, space: spaces.Box) -> None:
        super().__init__(space, 2 * space.shape[0])

    def forward(self, obs: th.Tensor) -> th.Tensor:
        return th.cat([obs.nan_to_num(0.0), obs.isnan().float()], dim=1)


def test_a_network_that_is_made_for_holes_gets_them() -> None:
    class Copies(BaseCallback):
        def _on_step(self) -> bool:
            return isinstance(copy.deepcopy(self.model.policy), type(self.model.policy))

    env = DummyVecEnv([lambda: Monitor(Holes(cart_pole("gaussian")))])
    model = model_of(env, policy_kwargs={"features_extractor_class": Fills}).learn(3 * N_STEPS, Copies())
    assert np.isnan(model.rollout_buffer.observations).any()
    assert all(bool(parameter.isfinite().all()) for parameter in model.policy.parameters())
    with pytest.raises(ValueError, match="observation of environment 0 is not finite"):
        model_of(env).learn(3 * N_STEPS)


def test_a_wrapper_that_cleans_up_is_trusted() -> None:
    class Cleaner(VecEnvWrapper):
        def reset(self) -> Any:
            return np.nan_to_num(self.venv.reset())

        def step_wait(self) -> Any:
            obs, rewards, dones, infos = self.venv.step_wait()
            for i in dones.nonzero()[0]:
                infos[i]["terminal_observation"] = np.nan_to_num(infos[i]["terminal_observation"])
            return np.nan_to_num(obs), np.nan_to_num(rewards), dones, infos

    env = DummyVecEnv([lambda: Holes(cart_pole("gaussian")), lambda: Faulty(cart_pole("gaussian"), "reward", 5)])
    model = model_of(Cleaner(env)).learn(2 * N_STEPS)
    assert np.isfinite(model.rollout_buffer.observations).all()


def test_the_checks_can_be_switched_off() -> None:
    class Pays(gym.Wrapper):
        def step(self, action: Any) -> Any:
            obs, _, *rest = self.env.step(action)
            return (obs, np.inf, *rest)

    env = VecNormalize(DummyVecEnv([lambda: Pays(cart_pole("gaussian"))]))
    model = model_of(env, check_env_outputs=False)
    with pytest.warns(UserWarning, match="undone"):
        model.learn(N_STEPS)
    assert_statistics_are_finite(model)
    assert all(bool(parameter.isfinite().all()) for parameter in model.policy.parameters())


@pytest.mark.parametrize("space", [spaces.Box(-1, 1, (2,)), spaces.Discrete(3)], ids=["box", "discrete"])
@paths
def test_no_action_that_is_not_finite_reaches_an_environment(space: spaces.Space, path: str) -> None:
    actions = []

    class Huge(gym.Env):
        observation_space, action_space = spaces.Box(-np.inf, np.inf, (3,)), space
        t = 0

        def reset(self, *, seed: int | None = None, options: Any = None) -> Any:
            return np.zeros(3, np.float32), {}

        def step(self, action: Any) -> Any:
            self.t += 1
            actions.append(action)
            obs = np.full(3, 3.4e38 if self.t == 40 else 1.0, np.float32)
            return obs, 0.0, False, False, {}

    relu = {"activation_fn": th.nn.ReLU, "net_arch": [64]}
    model = model_of(DummyVecEnv([Huge]), policy_kwargs=relu, **PATHS[path])
    with th.no_grad():
        model.policy.mlp_extractor.policy_net[0].weight *= 10
    with pytest.raises(ValueError, match=r"environment 0|constraint"):
        model.learn(3 * N_STEPS)
    assert len(actions) == 40
    assert np.isfinite(actions).all()


def test_a_wrapper_that_forgets_the_last_observation_is_told_what_to_do() -> None:
    class AddsOne(VecEnvWrapper):
        def __init__(self, venv: VecEnv) -> None:
            super().__init__(venv, spaces.Box(-np.inf, np.inf, (5,)))

        def _add(self, obs: Any) -> Any:
            return np.concatenate([obs, np.ones((len(obs), 1), np.float32)], axis=1)

        def reset(self) -> Any:
            return self._add(self.venv.reset())

        def step_wait(self) -> Any:
            obs, rewards, dones, infos = self.venv.step_wait()
            return self._add(obs), rewards, dones, infos

    with pytest.raises(ValueError, match=r"last observation of .* environment 0 .*\(4,\), .*terminal_observation"):
        model_of(AddsOne(DummyVecEnv([lambda: cart_pole("gaussian", 3)]))).learn(N_STEPS)


def test_an_observation_that_is_a_number_may_be_the_last() -> None:
    model = model_of(DummyVecEnv([lambda: gym.make("FrozenLake-v1", max_episode_steps=3)])).learn(N_STEPS)
    assert model._n_updates == 1


def test_shapes_are_not_checked_where_checks_are_off() -> None:
    env = DummyVecEnv([lambda: cart_pole("gaussian")])
    wrong = np.zeros((1, 7), np.float32)
    for is_on in (False, True):
        checks = OutputChecks(env, lambda: "now", can_handle=lambda _: False, is_on=is_on)
        for check in (
            checks.check_reset,
            lambda obs, c=checks: c.check_step(obs, np.zeros(1)),
        ):
            if is_on:
                with pytest.raises(ValueError, match=r"shape \(7,\) now"):
                    check(wrong)
            else:
                check(wrong)


@pytest.mark.parametrize("scale", [1.0, 1e30])
@pytest.mark.parametrize("dtype", [np.float16, np.float32, np.float64])
def test_large_numbers_are_finite(dtype: Any, scale: float) -> None:
    # Their product overflows.
    array = np.full((2, 3), min(scale, 1e4 if dtype == np.float16 else scale), dtype)
    assert is_finite(array)
    array[1, 2] = np.inf
    assert not is_finite(array)


def test_every_part_of_a_dictionary_is_checked() -> None:
    class Dictionaries(gym.Env):
        observation_space = spaces.Dict({"image": spaces.Box(0, 9, (3,), np.uint8), "speed": spaces.Box(-1, 1, ())})
        action_space = spaces.Discrete(2)

        def reset(self, *, seed: int | None = None, options: Any = None) -> Any:
            return {"image": np.zeros(3, np.uint8), "speed": np.float32(0)}, {}

        def step(self, action: Any) -> Any:
            return *self.reset()[:1], 0.0, False, False, {}

    env = DummyVecEnv([Dictionaries, Dictionaries])
    checks = OutputChecks(env, lambda: "after 7 steps", can_handle=lambda _: False, is_on=True)
    obs, rewards = env.reset(), np.zeros(2)
    checks.check_step(obs, rewards)
    obs["speed"][1] = np.nan
    with pytest.raises(ValueError, match="observation 'speed' of environment 1 is not finite after 7 steps"):
        checks.check_step(obs, rewards)
