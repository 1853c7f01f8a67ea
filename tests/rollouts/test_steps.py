"""
Steps of vectorised environments: what the quick way gives and leaves behind is what SB3's own classes do, bit for bit,
and their own methods are called wherever somebody has replaced them.
"""

import copy
import functools
import math
import pickle
import sys
from collections.abc import Callable
from types import SimpleNamespace
from typing import Any, NoReturn

import gymnasium as gym
import numpy as np
import pytest
import torch as th
from gymnasium import spaces
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from rollout_envs import PATHS, WRAPPERS, cart_poles, paths
from stable_baselines3.common.vec_env import DummyVecEnv, SubprocVecEnv, VecEnv, VecNormalize

from sb3_trpo import TRPO
from sb3_trpo.rollouts.steps import make_step

N_STEPS = 32


def raise_as_it_is(error: Exception, index: int) -> NoReturn:
    raise error


class Scripted(gym.Env):
    """
    Gives what is written.

    :param observations: of each step, then of the steps after
    :param space: their space
    :param ends: lengths of episodes; the second of each two is truncated
    """

    def __init__(self, observations: Any, space: spaces.Space, ends: int = 3) -> None:
        self.observations, self.observation_space, self.ends = observations, space, ends
        self.action_space = spaces.Discrete(2)
        self.t = 0

    def _next(self) -> Any:
        self.t += 1
        return self.observations[self.t % len(self.observations)]

    def reset(self, *, seed: int | None = None, options: Any = None) -> Any:
        return self._next(), {"began": self.t}

    def step(self, action: Any) -> Any:
        ended = self.t % self.ends == 0
        truncated = self.t % (2 * self.ends) == 0
        return self._next(), float(self.t) / 7, ended and not truncated, truncated, {"t": [self.t]}


def run(env: VecEnv, step: Callable[[np.ndarray], Any], n: int = 14) -> list[Any]:
    """Return all that the environments gave."""
    return [copy.deepcopy(env.reset()), *(copy.deepcopy(step(np.zeros(env.num_envs, int))) for _ in range(n))]


def assert_same_steps(make_env: Callable[[], VecEnv]) -> None:
    """
    Check that the quick step does what SB3's does.

    :param make_env: makes the same environments each time
    """
    ours, sb3s = make_env(), make_env()
    step, _ = make_step(ours, raise_as_it_is, SimpleNamespace())
    assert step != ours.step
    np.testing.assert_equal(run(ours, step), run(sb3s, sb3s.step))
    np.testing.assert_equal(ours.reset_infos, sb3s.reset_infos)
    if isinstance(ours, VecNormalize):
        assert pickle.dumps(ours) == pickle.dumps(sb3s)
        np.testing.assert_equal(ours.returns, sb3s.returns)
        np.testing.assert_equal(ours.get_original_obs(), sb3s.get_original_obs())
        np.testing.assert_equal(ours.get_original_reward(), sb3s.get_original_reward())


@settings(deadline=None, max_examples=40)
@given(
    numbers=arrays(np.float64, st.tuples(st.integers(1, 9), st.just(6)), elements=st.floats(-1e6, 1e6)),
    shape=st.sampled_from([(), (3,), (3, 2)]),
    dtype=st.sampled_from([np.float16, np.float32, np.float64, np.int64]),
    options=st.sampled_from([{}, {"norm_obs": False}, {"norm_reward": False}, {"training": False}, {"gamma": 0.5}]),
    n_envs=st.integers(1, 3),
)
def test_normalised_steps_are_sb3s_bit_for_bit(
    numbers: Any, shape: tuple[int, ...], dtype: Any, options: Any, n_envs: int
) -> None:
    limit = 100 if dtype in (np.float16, np.int64) else 1e6
    observations = numbers[:, : math.prod(shape)].reshape(-1, *shape).clip(-limit, limit).astype(dtype)
    space = spaces.Box(-limit, limit, shape, dtype)

    def make_env() -> VecEnv:
        envs = [lambda i=i: Scripted(observations + np.asarray(i, dtype), space, 2 + i) for i in range(n_envs)]
        return VecNormalize(DummyVecEnv(envs), **options)  # type: ignore[arg-type]

    assert_same_steps(make_env)


@pytest.mark.parametrize("normalize", [False, True])
def test_steps_of_dictionaries_are_sb3s_bit_for_bit(normalize: bool) -> None:
    space = spaces.Dict({"a": spaces.Box(-9, 9, (2,)), "b": spaces.Box(0, 255, (2, 2), np.uint8)})
    observations = [{"a": np.float32([i, -i]), "b": np.full((2, 2), i, np.uint8)} for i in range(5)]

    def make_env() -> VecEnv:
        env = DummyVecEnv([lambda: Scripted(observations, space), lambda: Scripted(observations[::-1], space, 2)])
        return VecNormalize(env, norm_obs_keys=["a"]) if normalize else env

    assert_same_steps(make_env)


def test_observations_of_a_number_are_stepped() -> None:
    assert_same_steps(lambda: DummyVecEnv([lambda: Scripted([0, 3, 1], spaces.Discrete(4))]))


@pytest.mark.parametrize("wrapper", WRAPPERS)
def test_a_step_leaves_no_attribute_behind(wrapper: str) -> None:
    env = WRAPPERS[wrapper](cart_poles("gaussian", 2))
    layers = [env]
    while hasattr(layers[-1], "venv"):
        layers.append(layers[-1].venv)
    env.reset()
    env.step(np.zeros((2, 2, 3)))
    attributes = [set(vars(layer)) for layer in layers]
    step, _ = make_step(env, raise_as_it_is, SimpleNamespace())
    step(np.zeros((2, 2, 3)))
    assert [set(vars(layer)) for layer in layers] == attributes


def model_of(env: VecEnv, **kwargs: Any) -> TRPO:
    return TRPO("MlpPolicy", env, n_steps=N_STEPS, batch_size=96, seed=0, device="cpu", **kwargs)


@pytest.mark.parametrize("name", ["step", "step_async", "step_wait"])
@pytest.mark.parametrize("layer", ["dummy", "normalize"])
@pytest.mark.parametrize("where", ["object", "class"])
def test_a_method_that_a_user_has_replaced_is_called(
    name: str, layer: str, where: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    dummy = cart_poles("gaussian", 3)
    env = VecNormalize(dummy)
    target: Any = {"dummy": dummy, "normalize": env}[layer]
    # SB3's wrappers step what they wrap in two halves.
    if (name, layer) == ("step", "dummy"):
        env = target
    calls = []
    original = getattr(type(target), name)

    def replaced(self: Any, *args: Any) -> Any:
        calls.append(1)
        return original(self, *args)

    monkeypatch.setattr(
        type(target) if where == "class" else target, name, replaced if where == "class" else replaced.__get__(target)
    )
    model = model_of(env).learn(N_STEPS * 3)
    assert len(calls) == model.num_timesteps / 3


def test_a_subclass_of_vec_normalize_is_asked() -> None:
    class Constant(VecNormalize):
        def normalize_obs(self, obs: Any) -> Any:
            return np.full_like(obs, 0.25, dtype=np.float32)

    model = model_of(Constant(cart_poles("gaussian", 3))).learn(N_STEPS * 3)
    assert th.equal(th.as_tensor(model.rollout_buffer.observations), th.full((N_STEPS * 3, 4), 0.25))


class Spoiled(gym.Wrapper):
    """
    Gives something else in its fifth step.

    :param env: the environment
    :param spoil: a function of what a step gives
    """

    def __init__(self, env: gym.Env, spoil: Callable[..., Any]) -> None:
        super().__init__(env)
        self.spoil, self.n_steps = spoil, 0

    def step(self, action: Any) -> Any:
        self.n_steps += 1
        result = self.env.step(action)
        return self.spoil(*result) if self.n_steps == 5 else result


FORKED = functools.partial(SubprocVecEnv, start_method="fork")
NO_NUMBERS = {
    "an array as a reward": (lambda o, r, *rest: (o, np.array([1.0]), *rest), r"array\(\[1\.\]\).* a number"),
    "a list as a reward": (lambda o, r, *rest: (o, [1.0], *rest), r"\[1\.0\].* a number"),
    "a dictionary as a reward": (lambda o, r, *rest: (o, {}, *rest), r"\{\}.* a number"),
    "a vector that is too short": (lambda o, *rest: (o[:2], *rest), r"\(2,\).* same shape \(3,\)"),
    "a number for a vector": (lambda o, *rest: (0.5, *rest), r"0\.5 .* same shape \(3,\)"),
    "one element for a vector": (lambda o, *rest: (o[:1], *rest), r"\(1,\).* same shape \(3,\)"),
    "nothing for a vector": (lambda o, *rest: (None, *rest), r"None .* same shape \(3,\)"),
    "lists of different lengths": (lambda o, *rest: ([[1.0], [1.0, 2.0], []], *rest), r"same shape \(3,\)"),
    "an observation and its info": (lambda o, *rest: ((o, {}), *rest), r"same shape \(3,\)"),
}
NO_RESULTS = {
    "nothing": (lambda *_: None, "None, but must give five things"),
    "Gym's four": (lambda o, r, done, _, info: (o, r, done, info), "but must give five things: .*Gym's old interface"),
    "several ends": (lambda o, r, *_: (o, r, np.zeros(2), np.ones(2), {}), "terminated is .* true or false"),
    "no info": (lambda *four_and_info: (*four_and_info[:4], None), "An info is None, but must be a dictionary"),
}


@pytest.mark.skipif(sys.version_info < (3, 11), reason="exceptions have no notes")
@pytest.mark.parametrize("kind", [DummyVecEnv, FORKED])
@pytest.mark.parametrize("fault", NO_NUMBERS)
def test_what_is_no_number_or_of_another_size_is_shown_with_its_environment(fault: str, kind: Any) -> None:
    spoil, said = NO_NUMBERS[fault]
    assert_told(kind, spoil, said)


@pytest.mark.skipif(sys.version_info < (3, 11), reason="exceptions have no notes")
@pytest.mark.parametrize("fault", NO_RESULTS)
def test_a_step_that_gives_something_else_is_shown_with_its_environment(fault: str) -> None:
    spoil, said = NO_RESULTS[fault]
    assert_told(DummyVecEnv, spoil, said)


@pytest.mark.skipif(sys.version_info < (3, 11), reason="exceptions have no notes")
@pytest.mark.parametrize(
    "spoil", [lambda *x: (*x[:2], np.array([True]), *x[3:]), lambda o, r, *x: (o, th.tensor(r, requires_grad=True), *x)]
)
def test_what_another_process_gives_is_shown_with_its_environment(spoil: Any) -> None:
    assert_told(FORKED, spoil, "where a number has to be")


def assert_told(kind: Any, spoil: Callable[..., Any], said: str) -> None:
    def make(is_spoiled: bool) -> gym.Env:
        env = gym.make("Pendulum-v1")
        return Spoiled(env, spoil) if is_spoiled else env

    env = kind([functools.partial(make, False), functools.partial(make, True)])
    model = TRPO("MlpPolicy", env, n_steps=16, batch_size=32, device="cpu")
    try:
        with pytest.raises((ValueError, TypeError), match=said) as caught:
            model.learn(32)
    finally:
        env.close()
    assert caught.value.__notes__ == ["This happened in environment 1 of 2, after 10 steps."]


NO_NUMBERS_BUT_TAKEN = {
    "a text as a reward": (lambda o, r, *rest: (o, "1.5", *rest), "A reward is '1.5', but must be a number"),
    "bytes as a reward": (lambda o, r, *rest: (o, b"2", *rest), "A reward is b'2', but must be a number"),
    "a text as an end": (lambda o, r, _, *rest: (o, r, "False", *rest), "terminated is 'False', but must be true or"),
    "nan as an end": (lambda o, r, _, *rest: (o, r, np.nan, *rest), "terminated is nan, but must be true or false"),
    "texts": (lambda o, *rest: (np.array(["1", "2", "3"]), *rest), "An observation is .* must be of real numbers"),
}


@pytest.mark.skipif(sys.version_info < (3, 11), reason="exceptions have no notes")
@pytest.mark.parametrize("fault", NO_NUMBERS_BUT_TAKEN)
def test_what_numpy_takes_for_a_number_is_shown_when_the_episode_ends(fault: str) -> None:
    spoil, said = NO_NUMBERS_BUT_TAKEN[fault]
    assert_told(DummyVecEnv, lambda o, r, terminated, truncated, info: spoil(o, r, True, True, info), said)


def test_rewards_that_are_arrays_everywhere_are_shown() -> None:
    env = FORKED(2 * [lambda: Spoiled(gym.make("Pendulum-v1"), NO_NUMBERS["an array as a reward"][0])])
    with pytest.raises(ValueError, match="where a number has to be"):
        TRPO("MlpPolicy", env, n_steps=16, batch_size=32, device="cpu").learn(32)
    env.close()


def test_an_axis_of_one_is_left_out_as_sb3_does() -> None:
    env = DummyVecEnv([lambda: Spoiled(gym.make("Pendulum-v1"), lambda o, *rest: (o[None], *rest))])
    model = TRPO("MlpPolicy", env, n_steps=16, batch_size=16, device="cpu").learn(16)
    assert np.isfinite(model.rollout_buffer.observations).all()


@pytest.mark.parametrize(
    "space", [spaces.MultiDiscrete([2, 3], dtype=np.uint8), spaces.MultiDiscrete([2, 3], dtype=np.int32)]
)
@paths
def test_environments_get_choices_of_their_spaces_type(path: str, space: spaces.Space) -> None:
    class Strict(gym.Env):
        observation_space, action_space = spaces.Box(-1, 1, (3,)), space

        def reset(self, *, seed: int | None = None, options: Any = None) -> Any:
            return np.zeros(3, np.float32), {}

        def step(self, action: Any) -> Any:
            assert self.action_space.contains(action)
            return np.zeros(3, np.float32), 0.0, False, False, {}

    model = TRPO("MlpPolicy", Strict(), n_steps=16, batch_size=16, device="cpu", **PATHS[path]).learn(32)
    assert space.contains(model.predict(np.zeros(3, np.float32))[0])
