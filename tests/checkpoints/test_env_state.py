"""
An environment that is restored goes on exactly as the one that was saved: observations, rewards, ends of episodes and
resets are the same, bit for bit.
"""

import random
from typing import Any

import gymnasium as gym
import numpy as np
import pytest
from gymnasium import spaces, wrappers
from stable_baselines3.common.monitor import Monitor

from sb3_trpo.checkpoints import Checkpointable
from sb3_trpo.checkpoints.env_state import restore_envs, save_envs
from sb3_trpo.checkpoints.tree_format import NotSavableError

CLASSIC = ("CartPole-v1", "Pendulum-v1", "Acrobot-v1", "MountainCar-v0", "MountainCarContinuous-v0")
# Gymnasium 1.0 has CliffWalking-v0.
TOY_TEXT = ("FrozenLake-v1", "Blackjack-v1", max(task for task in gym.registry if task.startswith("CliffWalking-v")))
MUJOCO = (
    "Ant-v5",
    "HalfCheetah-v5",
    "Hopper-v5",
    "Humanoid-v5",
    "HumanoidStandup-v5",
    "InvertedDoublePendulum-v5",
    "InvertedPendulum-v5",
    "Pusher-v5",
    "Reacher-v5",
    "Swimmer-v5",
    "Walker2d-v5",
)
# Into the third episode of tasks that do not end by themselves.
N_BEFORE, N_AFTER, MAX_EPISODE_STEPS = 45, 50, 20


def make(task: str) -> gym.Env:
    return Monitor(gym.make(task, max_episode_steps=MAX_EPISODE_STEPS))


def play(env: gym.Env, n_steps: int, seed: int, obs: Any = None) -> list[bytes]:
    """
    Play with random actions.

    :param env: after a reset
    :param n_steps: with random actions; a finished episode is followed by the next
    :param seed: of the actions
    :return: everything that comes back, as bytes
    """
    rng = np.random.default_rng(seed)
    space, seen = env.action_space, []
    for _ in range(n_steps):
        if isinstance(space, spaces.Box):
            action: Any = rng.uniform(space.low, space.high).astype(np.float32)
        else:
            action = int(rng.integers(space.n))  # type: ignore[attr-defined]
        obs, reward, terminated, truncated, _ = env.step(action)
        seen.append(np.asarray(obs).tobytes() + bytes(str((float(reward), terminated, truncated)), "ascii"))
        if terminated or truncated:
            obs, _ = env.reset()
            seen.append(np.asarray(obs).tobytes())
    return seen


def assert_goes_on(make_env: Any) -> None:
    """
    Check that an environment goes on where it was saved.

    :param make_env: makes an environment
    """
    env, other = make_env(), make_env()
    env.reset(seed=1)
    play(env, N_BEFORE, seed=2)
    saved = save_envs([env])
    expected = play(env, N_AFTER, seed=3)
    other.reset(seed=4)
    play(other, 7, seed=5)
    restore_envs([other], saved)
    assert play(other, N_AFTER, seed=3) == expected
    # Both ways again: a state that is saved does not change when its environment goes on.
    restore_envs([env], saved)
    assert play(env, N_AFTER, seed=3) == expected


@pytest.mark.parametrize("task", [*CLASSIC, *TOY_TEXT])
def test_it_goes_on_as_if_nothing_had_happened(task):
    assert_goes_on(lambda: make(task))


@pytest.mark.parametrize("task", MUJOCO)
def test_simulations_go_on_as_if_nothing_had_happened(task):
    pytest.importorskip("mujoco", reason="needs sb3-trpo[mujoco]")
    assert_goes_on(lambda: make(task))


@pytest.mark.parametrize(
    "wrap",
    [
        wrappers.NormalizeObservation,
        wrappers.NormalizeReward,
        lambda env: wrappers.RecordEpisodeStatistics(env, stats_key="statistics"),
        lambda env: wrappers.FrameStackObservation(env, 3),
        lambda env: wrappers.TransformReward(env, lambda reward: 2 * reward),
        lambda env: wrappers.RescaleAction(env, np.float32(-1), np.float32(1)),
        lambda env: wrappers.StickyAction(wrappers.TimeAwareObservation(env), 0.5),
    ],
)
def test_wrappers_go_on_too(wrap):
    assert_goes_on(lambda: wrap(make("Pendulum-v1")))


def test_episode_and_counters_of_monitor_go_on():
    env, other = make("Pendulum-v1"), make("Pendulum-v1")
    env.reset(seed=1)
    play(env, N_BEFORE, seed=2)
    other.reset(seed=1)
    restore_envs([other], save_envs([env]))
    for name in ("rewards", "episode_returns", "episode_lengths", "episode_times", "total_steps", "t_start"):
        assert vars(other)[name] == vars(env)[name]
    # Objects of their own.
    assert other.rewards is not env.rewards  # type: ignore[attr-defined]


def test_saving_changes_nothing():
    env, other = make("Pendulum-v1"), make("Pendulum-v1")
    for each in (env, other):
        each.reset(seed=1)
    seen = []
    for i in range(5):
        save_envs([env])
        seen += play(env, 3, seed=i)
    assert seen == [item for i in range(5) for item in play(other, 3, seed=i)]
    # Random numbers that nobody has asked for yet are not made by saving.
    fresh = make("Pendulum-v1")
    save_envs([fresh])
    assert fresh.unwrapped._np_random is None


class Engine:
    """Has a state of which nothing is known."""


class OpaqueEnv(gym.Env):
    """Counts to a random number, in an engine."""

    observation_space = spaces.Box(0, 100, (1,))
    action_space = spaces.Discrete(2)

    def __init__(self) -> None:
        self.engine = Engine()

    def reset(self, *, seed: int | None = None, options: dict | None = None) -> tuple[Any, dict]:
        super().reset(seed=seed)
        self.engine.count = 0  # type: ignore[attr-defined]
        return np.zeros(1, np.float32), {}

    def step(self, action: Any) -> tuple[Any, float, bool, bool, dict]:
        self.engine.count += 1  # type: ignore[attr-defined]
        count = self.engine.count  # type: ignore[attr-defined]
        return np.full(1, count, np.float32), float(self.np_random.random()), count > 10, False, {}


class OpenEnv(OpaqueEnv):
    """Offers its state."""

    def get_checkpoint_state(self) -> Any:
        return {"count": self.engine.count}  # type: ignore[attr-defined]

    def set_checkpoint_state(self, state: Any) -> None:
        self.engine.count = state["count"]  # type: ignore[attr-defined]


def test_what_can_not_be_saved_is_named():
    env = Monitor(OpaqueEnv())
    env.reset(seed=0)
    with pytest.raises(NotSavableError, match=r"OpaqueEnv\['engine'\] is a .*Engine"):
        save_envs([env])


def test_an_environment_can_offer_its_state():
    assert_goes_on(lambda: Monitor(OpenEnv()))


def test_box2d_can_not_be_saved():
    pytest.importorskip("Box2D", reason="needs sb3-trpo[box2d]")
    env = make("LunarLander-v3")
    env.reset(seed=0)
    with pytest.raises(NotSavableError, match=r"LunarLander\['world'\]"):
        save_envs([env])


def test_another_environment_is_told():
    saved = save_envs([make("Pendulum-v1")])
    for other in (make("CartPole-v1"), Monitor(make("Pendulum-v1"))):
        with pytest.raises(ValueError, match=r"checkpoint is of an environment .*PendulumEnv.* but this one is"):
            restore_envs([other], saved)


def test_a_simulation_of_another_robot_is_told():
    pytest.importorskip("mujoco", reason="needs sb3-trpo[mujoco]")
    env, other = make("InvertedPendulum-v5"), make("InvertedPendulum-v5")
    env.reset(seed=0)
    other.reset(seed=0)
    other.unwrapped.model.body_mass[1] *= 1.5  # type: ignore[attr-defined]
    with pytest.raises(NotSavableError, match="model is not the one that was saved"):
        restore_envs([other], save_envs([env]))


def test_checkpointable_is_the_outermost_or_says_so():
    env, other = Checkpointable(make("Pendulum-v1")), Checkpointable(make("Pendulum-v1"))
    assert "has to be the outermost" in str(env.save_state())
    for each in (env, other):
        each.is_outermost = True
        each.reset(seed=0)
    play(env, 5, seed=0)
    state = env.save_state()
    expected = play(env, N_AFTER, seed=1), random.random()
    assert isinstance(state, bytes)
    assert other.restore_state(state) == ("", "", [])
    # With the random numbers of the process.
    assert (play(other, N_AFTER, seed=1), random.random()) == expected
    stranger = Checkpointable(make("CartPole-v1"))
    assert "but this one is" in stranger.restore_state(state)[1]
    opaque = Checkpointable(OpaqueEnv())
    opaque.is_outermost = True
    assert "'engine'" in str(opaque.save_state())
