"""
What is kept of episodes: what SB3's own method keeps, whatever the infos are.
"""

import sys
from collections import deque
from typing import Any

import numpy as np
import pytest
from gymnasium import spaces
from hypothesis import given, settings
from hypothesis import strategies as st
from stable_baselines3.common.base_class import BaseAlgorithm
from stable_baselines3.common.vec_env import VecEnv

from sb3_trpo import TRPO
from sb3_trpo.rollouts.infos import MANY, note_episodes

N_ENVS = MANY + 6


class Talkative(dict[str, Any]):
    """A dictionary that tells of an episode, although it is empty."""

    def get(self, key: str, default: Any = None) -> Any:
        return {"r": 5.0, "l": 2} if key == "episode" else default


class Batch(VecEnv):
    """Environments in one array, whose infos are empty but for ends of episodes."""

    def __init__(self) -> None:
        self.render_mode = None
        self.t = np.arange(N_ENVS) % 7
        super().__init__(N_ENVS, spaces.Box(-1, 1, (2,)), spaces.Box(-1, 1, (1,)))

    def reset(self) -> Any:
        return self._obs()

    def _obs(self) -> np.ndarray:
        return np.stack([self.t / 7, np.arange(N_ENVS) / N_ENVS], axis=1).astype(np.float32)

    def step_async(self, actions: np.ndarray) -> None:
        self.rewards = -np.square(actions).sum(axis=1)

    def step_wait(self) -> Any:
        self.t = self.t + 1
        dones, obs = self.t == 7, self._obs()
        infos: list[dict[str, Any]] = [{} for _ in range(N_ENVS)]
        for i in dones.nonzero()[0].tolist():
            infos[i] = {"terminal_observation": obs[i], "TimeLimit.truncated": i % 2 == 0}
            infos[i] |= {"episode": {"r": float(self.rewards[i]), "l": i}, "is_success": i % 3 == 0}
        self.t = self.t % 7
        return self._obs(), self.rewards, dones, infos

    def close(self) -> None: ...

    def get_attr(self, attr_name: str, indices: Any = None) -> Any:
        return [getattr(self, attr_name)] * N_ENVS

    def set_attr(self, attr_name: str, value: Any, indices: Any = None) -> None: ...

    def env_method(self, method_name: str, *args: Any, indices: Any = None, **kwargs: Any) -> Any: ...

    def env_is_wrapped(self, wrapper_class: Any, indices: Any = None) -> Any:
        return [False] * N_ENVS


@pytest.fixture(scope="module")
def model() -> TRPO:
    return TRPO("MlpPolicy", Batch(), n_steps=8, batch_size=80, device="cpu")


def kept(model: TRPO, note: Any, infos: Any, dones: np.ndarray) -> tuple[list[Any], list[Any]]:
    model.ep_info_buffer, model.ep_success_buffer = deque(maxlen=100), deque(maxlen=100)
    note(model, infos, dones)
    return list(model.ep_info_buffer), list(model.ep_success_buffer)


episodes = st.one_of(st.none(), st.fixed_dictionaries({"r": st.integers(), "l": st.integers(1)}), st.just({}))
an_info = st.fixed_dictionaries(
    {}, optional={"episode": episodes, "is_success": st.one_of(st.none(), st.booleans()), "x": st.integers()}
)
some = st.dictionaries(st.integers(0, N_ENVS - 1), st.one_of(an_info, st.just(Talkative())), max_size=8)


@given(some, st.sampled_from([list, tuple]), st.sampled_from([1, MANY, N_ENVS]), st.integers(0, 2**32))
@settings(deadline=None, max_examples=100)
def test_the_same_is_kept_as_by_sb3(model, given_by, kind, n, seed):
    infos = kind(given_by.get(i, {}) for i in range(n))
    dones = np.random.default_rng(seed).random(n) < 0.5
    assert kept(model, note_episodes, infos, dones) == kept(model, BaseAlgorithm._update_info_buffer, infos, dones)


def test_empty_infos_are_not_asked(model):
    infos: list[dict[str, Any]] = [{} for _ in range(N_ENVS)]
    infos[3] = {"episode": {"r": 1.0, "l": 2}}
    asked = 0

    def count(_: Any, event: str, function: Any) -> None:
        nonlocal asked
        asked += event == "c_call" and getattr(function, "__self__", None) in ({}, infos[3])

    sys.setprofile(count)
    try:
        note_episodes(model, infos, np.zeros(N_ENVS, dtype=bool))
    finally:
        sys.setprofile(None)
    assert 0 < asked < 10


@pytest.mark.parametrize("where", ["object", "class"])
def test_a_method_that_a_user_has_replaced_gets_every_info(where, monkeypatch):
    seen = []

    def own(infos: Any, dones: Any = None) -> None:
        seen.append((len(infos), len(dones)))

    model = TRPO("MlpPolicy", Batch(), n_steps=8, batch_size=80, device="cpu")
    if where == "object":
        model._update_info_buffer = own  # type: ignore[method-assign]
    else:
        monkeypatch.setattr(BaseAlgorithm, "_update_info_buffer", lambda _, *args: own(*args))
    model.learn(8 * N_ENVS)
    assert seen == [(N_ENVS, N_ENVS)] * 8


def test_a_training_keeps_the_episodes_that_sb3s_loop_keeps():
    class WithSb3Loop(TRPO):
        def _run_loop(self, *args: Any) -> bool:
            return super()._run_loop(*args)

    options: dict[str, Any] = {"n_steps": 8, "batch_size": 80, "stats_window_size": 1000, "seed": 0, "device": "cpu"}
    ours, sb3s = (algorithm("MlpPolicy", Batch(), **options).learn(8 * N_ENVS) for algorithm in (TRPO, WithSb3Loop))
    assert ours.ep_info_buffer == sb3s.ep_info_buffer
    assert ours.ep_success_buffer == sb3s.ep_success_buffer
    assert len(ours.ep_info_buffer) > N_ENVS
