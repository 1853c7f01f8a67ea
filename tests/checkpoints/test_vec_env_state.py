"""
Vectorised environments go on where they were, with SB3's wrappers; where that can't be, the wrappers keep what they
have learned, and the environments are reset.
"""

import contextlib
from typing import Any

import numpy as np
import pytest
from gymnasium import spaces
from stable_baselines3.common.env_util import make_vec_env
from stable_baselines3.common.vec_env import (
    SubprocVecEnv,
    VecCheckNan,
    VecEnv,
    VecEnvWrapper,
    VecFrameStack,
    VecMonitor,
    VecNormalize,
    VecTransposeImage,
)
from test_env_state import OpaqueEnv

from sb3_trpo.checkpoints import Checkpointable
from sb3_trpo.checkpoints.tree import pack, unpack
from sb3_trpo.checkpoints.vec_env_state import Restored, restore_vec_env, save_vec_env

N_ENVS = 3


def make(seed: int, wrap: Any = lambda env: env, **kwargs: Any) -> VecEnv:
    env = wrap(make_vec_env("Pendulum-v1", N_ENVS, seed=seed, **kwargs))
    env.reset()
    return env


def play(env: VecEnv, n_steps: int, seed: int) -> list[bytes]:
    rng = np.random.default_rng(seed)
    seen = []
    for _ in range(n_steps):
        obs, rewards, dones, infos = env.step(rng.uniform(-2, 2, (env.num_envs, 1)).astype(np.float32))
        episodes = [(info["episode"]["r"], info["episode"]["l"]) for info in infos if "episode" in info]
        seen.append(np.asarray(obs).tobytes() + rewards.tobytes() + dones.tobytes() + str(episodes).encode())
    return seen


def through_a_file(state: dict[str, Any]) -> dict[str, Any]:
    return unpack(pack(state))


@pytest.mark.parametrize(
    "wrap",
    [
        lambda env: env,
        VecNormalize,
        lambda env: VecNormalize(env, norm_reward=False, training=False),
        lambda env: VecFrameStack(env, 3),
        lambda env: VecCheckNan(VecFrameStack(VecNormalize(VecMonitor(env)), 2)),
    ],
)
@pytest.mark.filterwarnings("ignore:The environment is already wrapped")
def test_they_go_on_as_if_nothing_had_happened(wrap):
    env, other = make(1, wrap), make(2, wrap)
    # An episode has 200 steps.
    play(env, 150, seed=0)
    play(other, 10, seed=9)
    saved = through_a_file(save_vec_env(env))
    assert saved["why_not"] == ""
    assert restore_vec_env(other, saved, seed=5) == Restored()
    assert play(other, 100, seed=1) == play(env, 100, seed=1)


def test_in_processes():
    kwargs: dict[str, Any] = {"vec_env_cls": SubprocVecEnv, "wrapper_class": Checkpointable}
    with contextlib.ExitStack() as stack:
        env, other = (make(seed, VecNormalize, **kwargs) for seed in (1, 2))
        stack.callback(env.close)
        stack.callback(other.close)
        play(env, 20, seed=0)
        saved = through_a_file(save_vec_env(env))
        assert restore_vec_env(other, saved, seed=5) == Restored()
        # Each with the random numbers of its process.
        for each in (env, other):
            each.unwrapped.env_method("reset")
        assert play(other, 20, seed=1) == play(env, 20, seed=1)


def test_in_processes_without_the_wrapper_they_are_reset():
    env = make(1, VecNormalize, vec_env_cls=SubprocVecEnv)
    try:
        assert "need the wrapper Checkpointable" in save_vec_env(env)["why_not"]
    finally:
        env.close()


def assert_reset_but_statistics_are_kept(env: Any, other: Any, why: str) -> None:
    play(env, 20, seed=0)
    saved = through_a_file(save_vec_env(env))
    restored = restore_vec_env(other, saved, seed=5)
    assert why in restored.why_reset
    # The reset has added one observation of each environment.
    assert other.obs_rms.count == pytest.approx(env.obs_rms.count + N_ENVS)
    assert other.ret_rms.mean == env.ret_rms.mean
    assert np.all(other.returns == 0)
    np.testing.assert_array_equal(restored.obs, other.normalize_obs(other.get_original_obs()))


def test_without_a_state_they_are_reset():
    def make_opaque() -> Any:
        env = VecNormalize(make_vec_env(OpaqueEnv, N_ENVS, seed=0))
        env.reset()
        env.action_space = spaces.Box(0, 1, (1,))
        return env

    def discrete(env: Any) -> Any:
        step = env.venv.step_async
        env.venv.step_async = lambda actions: step(np.zeros(N_ENVS, int))
        return env

    assert_reset_but_statistics_are_kept(discrete(make_opaque()), make_opaque(), "OpaqueEnv['engine']")


class Halved(VecEnvWrapper):
    """Nobody knows what it holds."""

    def reset(self) -> Any:
        return self.venv.reset()

    def step_wait(self) -> Any:
        obs, rewards, dones, infos = self.venv.step_wait()
        return obs, rewards / 2, dones, infos


def test_with_a_wrapper_that_is_not_known_they_are_reset():
    env, other = (make(seed, lambda env: VecNormalize(Halved(env))) for seed in (1, 2))
    assert_reset_but_statistics_are_kept(env, other, "Halved has no get_checkpoint_state and set_checkpoint_state")


class Counted(Halved):
    """Says what it holds."""

    count = 0

    def step_wait(self) -> Any:
        self.count += 1
        obs, rewards, dones, infos = self.venv.step_wait()
        return obs, rewards * self.count, dones, infos

    def get_checkpoint_state(self) -> Any:
        return self.count

    def set_checkpoint_state(self, state: Any) -> None:
        self.count = state


def test_a_wrapper_can_offer_its_state():
    env, other = (make(seed, lambda env: VecNormalize(Counted(env))) for seed in (1, 2))
    play(env, 20, seed=0)
    assert restore_vec_env(other, through_a_file(save_vec_env(env)), seed=5) == Restored()
    assert play(other, 20, seed=1) == play(env, 20, seed=1)


def test_envpool_is_reset():
    pytest.importorskip("envpool", reason="needs sb3-trpo[envpool]")
    from sb3_trpo.envpool import make_envpool_vec_env

    env, other = (VecNormalize(make_envpool_vec_env("Pendulum-v1", N_ENVS, seed)) for seed in (1, 2))
    env.reset()
    other.reset()
    assert_reset_but_statistics_are_kept(env, other, "EnvPoolVecEnv gives no access")
    env.close()
    other.close()


def test_other_environments_are_told():
    saved = save_vec_env(make(0, VecNormalize))
    with pytest.raises(ValueError, match=r"checkpoint is of 3 environments in .*VecNormalize.* but there are 3"):
        restore_vec_env(make(0), saved, 0)
    fewer = VecNormalize(make_vec_env("Pendulum-v1", 2))
    with pytest.raises(ValueError, match="but there are 2"):
        restore_vec_env(fewer, saved, 0)
    images = make(0, lambda env: VecNormalize(VecFrameStack(env, 1)))
    assert not isinstance(images, VecTransposeImage)
    with pytest.raises(ValueError, match="VecFrameStack"):
        restore_vec_env(images, saved, 0)


def test_monitor_files_go_on(tmp_path):
    def make_logged(seed: int, is_new: bool) -> VecEnv:
        kwargs = {"monitor_dir": str(tmp_path), "monitor_kwargs": {"override_existing": is_new}}
        return make(seed, **kwargs)

    def rows() -> list[list[str]]:
        lines = (tmp_path / "0.monitor.csv").read_text().splitlines()
        return [line.split(",")[:2] for line in lines]

    env = make_logged(1, True)
    play(env, 450, seed=0)
    saved = through_a_file(save_vec_env(env))
    play(env, 600, seed=1)
    expected = rows()
    assert len(expected) == 2 + 5
    other = make_logged(2, False)
    restore_vec_env(other, saved, 0)
    assert rows() == expected[: 2 + 2]
    play(other, 600, seed=1)
    assert rows()[1:] == expected[1:]
