"""
Steps during a rollout: what is not finite is an error, and the environments are left as they were.
"""

from typing import Any

import numpy as np
import pytest
import torch as th
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from rollout_envs import WRAPPERS, Faulty, cart_pole
from stable_baselines3.common.envs import BitFlippingEnv
from stable_baselines3.common.monitor import Monitor
from stable_baselines3.common.running_mean_std import RunningMeanStd
from stable_baselines3.common.vec_env import DummyVecEnv, SubprocVecEnv, VecEnv, VecEnvWrapper, VecNormalize

from sb3_trpo import TRPO
from sb3_trpo.rollouts.steps import _update, check_finite, watched_steps

N_STEPS = 32
# Of the environment that goes wrong; in the second rollout.
BAD_ENV, BAD_STEP = 1, N_STEPS + 6


def faulty_cart_poles(fault: str, value: float = np.nan, step: int = BAD_STEP) -> DummyVecEnv:
    """
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


@pytest.mark.parametrize("value", [np.nan, -np.inf])
@pytest.mark.parametrize("wrapper", ["plain", "normalized", "stacked and normalized"])
@pytest.mark.parametrize("fault", ["observation", "reward", "last observation"])
@pytest.mark.parametrize("use_sde", [False, True], ids=["own loop", "SB3's loop"])
def test_the_error_names_environment_and_step_and_leaves_everything_savable(fault, wrapper, value, use_sde, tmp_path):
    model = model_of(WRAPPERS[wrapper](faulty_cart_poles(fault, value)), use_sde=use_sde)
    with pytest.raises(ValueError, match=f"{fault} of environment {BAD_ENV} is not finite after {3 * BAD_STEP} steps"):
        model.learn(400)
    assert model._n_updates == 1
    model.save(tmp_path / "model")
    for parameter in TRPO.load(tmp_path / "model", device="cpu").policy.parameters():
        assert bool(parameter.isfinite().all())
    normalization = model.get_vec_normalize_env()
    if normalization is not None:
        for statistics in (normalization.obs_rms, normalization.ret_rms):
            assert np.isfinite(statistics.mean).all()
            assert np.isfinite(statistics.var).all()


@pytest.mark.parametrize("use_sde", [False, True], ids=["own loop", "SB3's loop"])
@pytest.mark.parametrize("wrapper", ["plain", "normalized"])
def test_an_episode_may_begin_badly(wrapper, use_sde):
    class BadReset(Faulty):
        def reset(self, **kwargs: Any) -> Any:
            obs, info = self.env.reset(**kwargs)
            return np.full_like(obs, np.nan), info

    def make_env(bad: bool) -> Any:
        return lambda: BadReset(cart_pole("gaussian"), "", 0) if bad else cart_pole("gaussian")

    model = model_of(WRAPPERS[wrapper](DummyVecEnv([make_env(False), make_env(True)])), use_sde=use_sde)
    with pytest.raises(ValueError, match="observation of environment 1 is not finite after 0 steps"):
        model.learn(100)


@pytest.mark.parametrize("use_sde", [False, True], ids=["own loop", "SB3's loop"])
def test_a_wrapper_may_be_what_goes_wrong(use_sde):
    class BadWrapper(VecEnvWrapper):
        def reset(self) -> Any:
            return self.venv.reset()

        def step_wait(self) -> Any:
            obs, rewards, dones, infos = self.venv.step_wait()
            rewards[2] = np.inf
            return obs, rewards, dones, infos

    model = model_of(BadWrapper(faulty_cart_poles("none")), use_sde=use_sde)
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


def test_a_bad_last_observation_of_a_terminated_episode_is_not_used():
    class Falls(Faulty):
        def step(self, action: Any) -> Any:
            obs, reward, terminated, truncated, info = super().step(action)
            return obs, reward, terminated or truncated, False, info

    env = DummyVecEnv([lambda: Monitor(Falls(cart_pole("gaussian"), "last observation", 20))])
    model = model_of(env)
    model.learn(N_STEPS)
    assert np.isfinite(model.rollout_buffer.rewards).all()


@pytest.mark.parametrize("scale", [1.0, 1e30])
@pytest.mark.parametrize("dtype", [np.float16, np.float32, np.float64])
def test_large_numbers_are_finite(dtype, scale):
    # Their product overflows.
    array = np.full((2, 3), min(scale, 1e4 if dtype == np.float16 else scale), dtype)
    check_finite(array, array[:, 0], 0)
    array[1, 2] = np.inf
    with pytest.raises(ValueError, match="observation of environment 1"):
        check_finite(array, None, 0)


def test_every_part_of_a_dictionary_is_checked():
    obs = {"image": np.zeros((2, 3), np.uint8), "speed": np.zeros(2, np.float32), "flags": np.zeros(2, bool)}
    check_finite(obs, None, 0)
    obs["speed"][1] = np.nan
    with pytest.raises(ValueError, match="observation 'speed' of environment 1 is not finite after 7 steps"):
        check_finite(obs, None, 7)


def test_dictionaries_are_stepped():
    env = DummyVecEnv([lambda: BitFlippingEnv(n_bits=3, max_steps=2)])
    env.reset()
    with watched_steps(env, lambda: 0, are_kept=False) as step:
        obs, *_ = step(np.zeros(1, int))
    assert obs.keys() == env.observation_space.spaces.keys()


@pytest.mark.parametrize("wrapper", WRAPPERS)
def test_the_environments_get_their_own_methods_back(wrapper):
    env = WRAPPERS[wrapper](faulty_cart_poles("none"))
    layers = [env]
    while isinstance(layers[-1], VecEnvWrapper):
        layers.append(layers[-1].venv)
    attributes = [vars(layer).keys() for layer in layers]
    with pytest.raises(RuntimeError, match="on purpose"), watched_steps(env, lambda: 0, are_kept=False):
        raise RuntimeError("on purpose")
    assert [vars(layer).keys() for layer in layers] == attributes


def test_a_method_of_the_users_own_is_kept():
    env = faulty_cart_poles("none")
    calls = []

    def step_wait() -> Any:
        calls.append(1)
        return DummyVecEnv.step_wait(env)

    env.step_wait = step_wait
    model = model_of(VecNormalize(env)).learn(N_STEPS * 3)
    assert len(calls) == model.num_timesteps / 3
    assert env.step_wait is step_wait


def test_a_subclass_of_vec_normalize_is_asked():
    class Constant(VecNormalize):
        def normalize_obs(self, obs: Any) -> Any:
            return np.full_like(obs, 0.25, dtype=np.float32)

    model = model_of(Constant(faulty_cart_poles("none"))).learn(N_STEPS * 3)
    assert th.equal(th.as_tensor(model.rollout_buffer.observations), th.full((N_STEPS * 3, 4), 0.25))


@settings(deadline=None, max_examples=50)
@given(
    batches=st.lists(
        arrays(np.float64, st.tuples(st.integers(1, 9), st.just(3)), elements=st.floats(-1e6, 1e6)), min_size=1
    ),
    dtype=st.sampled_from([np.float16, np.float32, np.float64, np.int64]),
    scalar=st.booleans(),
)
def test_statistics_are_sb3s_bit_for_bit(batches, dtype, scalar):
    shape = () if scalar else (3,)
    ours, sb3s = RunningMeanStd(shape=shape), RunningMeanStd(shape=shape)
    for batch in batches:
        batch = (batch[:, 0] if scalar else batch).clip(-100, 100).astype(dtype)
        _update(ours, batch)
        sb3s.update(batch)
    np.testing.assert_equal((ours.mean, ours.var, ours.count), (sb3s.mean, sb3s.var, sb3s.count))
