"""
What a rollout tells of its environments and actions: a few numbers for the log, and for the rules that read it.
"""

import sys
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from gymnasium import spaces
from stable_baselines3.common.buffers import RolloutBuffer

from sb3_trpo.validation.values import short

# So many numbers are enough for a standard deviation: all rows of small observations, a share of those of large ones.
MAX_ELEMENTS = 2**17
STATM = Path("/proc/self/statm")
MIB = 2**20


class EpisodeEnds:
    """The episodes that have ended in a rollout."""

    def __init__(self) -> None:
        self.n_terminated = 0
        self.n_truncated = 0
        # Step, environment and reward where an episode was truncated: the loop adds the value of what would follow.
        self.truncations: list[tuple[int, int, float]] = []
        # Where an info was seen first that SB3's log can't read, in words.
        self.unreadable = ""

    def note(
        self,
        step: int,
        rewards: np.ndarray,
        dones: np.ndarray,
        infos: Sequence[Mapping[str, Any]],
        when: Callable[[], str],
    ) -> None:
        """
        Look at a step in which an episode has ended.

        :param step: the step's number
        :param rewards: the rewards, (n_envs,)
        :param dones: whether episodes have ended, (n_envs,)
        :param infos: the step's infos
        :param when: a function that gives the moment in words, such as "after 10 steps"
        """
        for i in np.nonzero(dones)[0].tolist():
            if not (self.unreadable or _is_readable(infos[i])):
                self.unreadable = f" (first in environment {i}, {when()})"
            if infos[i].get("TimeLimit.truncated", False):
                self.n_truncated += 1
                self.truncations.append((step, i, float(rewards[i])))
            else:
                self.n_terminated += 1


def drop_unreadable(episodes: deque[Any] | None, successes: deque[Any] | None) -> list[str]:
    """
    Take out of the last episodes what SB3's log could not read, and would end the training with.

    Where SB3 can make its means, all stays as it is.

    :param episodes: what environments put under ``info["episode"]``
    :param successes: what they put under ``info["is_success"]``
    :return: what was taken out, as the beginnings of sentences
    """
    said = []
    # SB3 asks no more of the first than whether it is empty.
    if episodes and not (_can_average(episodes, "r") and _can_average(episodes, "l")):
        bad = _keep(episodes, _is_episode)
        said += [
            f'info["episode"] is {short(one)}, but must be a dictionary with numbers "r" and "l"' for one in bad[:1]
        ]
    if successes and not _can_average(successes):
        bad = _keep(successes, _is_number)
        said += [f'info["is_success"] is {short(one)}, but must be true or false' for one in bad[:1]]
    return said


def _can_average(items: deque[Any], key: str | None = None) -> bool:
    """
    Do what SB3's log does, to see whether it can.

    :param items: numbers, or dictionaries of numbers
    :param key: the key of the numbers
    :return: whether their mean can be had, or is not asked for
    """
    try:
        if key is None or len(items[0]) > 0:
            float(np.mean([item if key is None else item[key] for item in items]))
    except Exception:
        # Environments may put anything there.
        return False
    return True


def _keep(items: deque[Any], is_good: Callable[[Any], bool]) -> list[Any]:
    """
    Keep the good items of a queue.

    :param items: the queue, which is changed
    :param is_good: the function that tells which
    :return: the others
    """
    kept = [item for item in items if is_good(item)]
    bad = [item for item in items if not is_good(item)]
    items.clear()
    items.extend(kept)
    return bad


def _is_readable(info: Mapping[str, Any]) -> bool:
    """
    Tell whether SB3's log can read what an environment says of its last episode.

    :param info: the info of the step that ended it
    :return: whether it can
    """
    episode, success = info.get("episode"), info.get("is_success")
    return (episode is None or _is_episode(episode)) and (success is None or _is_number(success))


def _is_episode(episode: Any) -> bool:
    return isinstance(episode, dict) and _is_number(episode.get("r")) and _is_number(episode.get("l"))


def _is_number(value: Any) -> bool:
    return isinstance(value, (float, int)) or (np.ndim(value) == 0 and np.asarray(value).dtype.kind in "biuf")


def rollout_statistics(
    buffer: RolloutBuffer,
    observation_space: spaces.Space[Any],
    clipping: spaces.Box | None,
    ends: EpisodeEnds,
    dones: np.ndarray,
) -> dict[str, float]:
    """
    Compute what the log has of a rollout.

    A number that can't be had of a buffer of the user's own is left out.

    :param buffer: the buffer, full
    :param observation_space: the environments' observation space
    :param clipping: the action space, if actions are clipped to it on their way to the environment
    :param ends: the episodes that have ended
    :param dones: whether the last step ended episodes, (n_envs,)
    :return: the numbers, by their keys in the log
    """
    numbers = {
        "rollout/terminated": float(ends.n_terminated),
        "rollout/truncated": float(ends.n_truncated),
    }
    shape = (buffer.buffer_size, buffer.n_envs)
    obs_std = _largest_std(buffer.observations, observation_space, shape)
    if obs_std is not None:
        numbers["rollout/obs_std_max"] = obs_std
    if clipping is not None and _is_array(buffer.actions, shape):
        numbers["rollout/clipped_actions"] = clipped_share(buffer.actions, clipping)
    if _is_array(buffer.rewards, shape) and _is_array(buffer.episode_starts, shape):
        rewards = buffer.rewards.astype(np.float64)
        for step, env, reward in ends.truncations:
            rewards[step, env] = reward
        is_end = np.concatenate([buffer.episode_starts[1:] > 0, np.asarray(dones, dtype=bool)[None]])
        returns = discounted_sums(rewards, is_end, buffer.gamma)
        numbers["train/return_mean"] = float(returns.mean())
        numbers["train/return_std"] = float(returns.std())
    return numbers


def clipped_share(actions: np.ndarray, action_space: spaces.Box) -> float:
    """
    Compute the share of actions that are at or beyond their bounds, as sampled.

    :param actions: the actions of the policy, (n_steps, n_envs, action dimensions)
    :param action_space: the bounds
    :return: the share of all action components
    """
    low, high = action_space.low.reshape(-1), action_space.high.reshape(-1)
    return float(np.count_nonzero((actions <= low) | (actions >= high)) / max(1, actions.size))


def discounted_sums(rewards: np.ndarray, is_end: np.ndarray, gamma: float) -> np.ndarray:
    """
    Compute returns of rewards alone: Σ γᵏ r_{t+k} to the end of the episode, or of the rollout.

    In ⌈log₂ n_steps⌉ passes over all steps, each of which doubles the steps that a sum has.

    :param rewards: the rewards, (n_steps, n_envs)
    :param is_end: whether a step ended an episode, (n_steps, n_envs)
    :param gamma: γ
    :return: the returns, (n_steps, n_envs)
    """
    sums = rewards.astype(np.float64)
    decay = np.where(is_end, 0.0, gamma)
    decay[-1] = 0.0
    n = 1
    while n < len(sums):
        sums[:-n] += decay[:-n] * sums[n:]
        decay[:-n] *= decay[n:]
        n *= 2
    return sums


def resident_memory() -> float | None:
    """
    Measure the memory that the process takes.

    :return: MiB; the most that it has taken, where the system does not tell what it takes now; None where it tells
        neither
    """
    try:
        import resource
    except ImportError:  # Windows
        return None
    try:
        return int(STATM.read_text().split()[1]) * resource.getpagesize() / MIB
    except (OSError, ValueError, IndexError):
        # Bytes on macOS, KiB elsewhere.
        unit = 1 if sys.platform == "darwin" else 1024
        return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit / MIB


def _largest_std(observations: Any, space: spaces.Space[Any], shape: tuple[int, int]) -> float | None:
    """
    Find the component of observations that varies most.

    :param observations: an array (n_steps, n_envs, ...), or a dictionary of such
    :param space: the observation space
    :param shape: n_steps and n_envs
    :return: the largest standard deviation; None without numbers of floating point (images have a range)
    """
    if isinstance(space, spaces.Dict) and isinstance(observations, Mapping):
        parts = [_largest_std(observations[key], space[key], shape) for key in space if key in observations]
        return max((part for part in parts if part is not None), default=None)
    if not isinstance(space, spaces.Box) or space.dtype is None or space.dtype.kind != "f":
        return None
    if not _is_array(observations, shape) or observations.size == 0:
        return None
    rows = observations.reshape(shape[0] * shape[1], -1)
    rows = rows[:: max(1, rows.size // MAX_ELEMENTS)]
    with np.errstate(over="ignore", invalid="ignore"):
        return float(rows.std(axis=0).max())


def _is_array(array: Any, shape: tuple[int, int]) -> bool:
    return isinstance(array, np.ndarray) and array.shape[:2] == shape
