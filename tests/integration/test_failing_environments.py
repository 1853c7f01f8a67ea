"""
Environments that fail: the error says which and at what step, no process is left behind, and the model lives on.
"""

import multiprocessing
import os
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import gymnasium as gym
import numpy as np
import pytest
from combinations import each_once
from rollout_envs import PATHS, paths
from small_models import ACTION_SPACES, VECTOR, SpacesEnv
from stable_baselines3.common.callbacks import BaseCallback
from stable_baselines3.common.vec_env import DummyVecEnv, SubprocVecEnv, VecMonitor, VecNormalize
from updates import changed, state

from sb3_trpo import TRPO

N_STEPS = 64
N_ENVS = 2
# In the second rollout.
FAILS_AT = N_STEPS + 7
# That an environment may take, where it blocks.
SECONDS = 2.0
FIRST_RESET = "in the reset before the first step"
SETTINGS: dict[str, Any] = {"n_steps": N_STEPS, "batch_size": 64, "n_critic_updates": 1, "seed": 0, "device": "cpu"}


class BrokenError(Exception):
    """Of the environment."""


class FailingEnv(SpacesEnv):
    """
    An environment that fails at one step.

    :param fault: what happens
    :param fails_at: at which step
    """

    def __init__(self, fault: str = "", fails_at: int = FAILS_AT) -> None:
        super().__init__(VECTOR, ACTION_SPACES["Box"])
        self.fault = fault
        self.steps_left = fails_at

    def step(self, action: Any) -> Any:
        obs, reward, *rest = super().step(action)
        self.steps_left -= 1
        if self.steps_left == 0:
            if self.fault == "raises":
                raise BrokenError("out of order")
            if self.fault == "exits":
                os._exit(3)
            if self.fault == "is killed":
                os.kill(os.getpid(), signal.SIGKILL)
            if self.fault == "wrong shape":
                obs = np.zeros(5, np.float32)
            if self.fault == "old Gym":
                return obs, reward, False, {}
            if self.fault == "blocks":
                time.sleep(3600)
        return obs, reward, *rest

    def reset(self, **kwargs: Any) -> Any:
        if self.fault == "raises at once":
            raise BrokenError("does not start")
        if self.fault == "exits at once":
            os._exit(3)
        if self.fault == "blocks at once":
            time.sleep(3600)
        if self.fault == "wrong shape at once":
            return np.zeros(5, np.float32), {}
        if self.fault == "raises in reset" and self.steps_left < FAILS_AT - N_STEPS:
            raise BrokenError("does not start")
        return super().reset(**kwargs)


class Forked(SubprocVecEnv):
    """Each process holds the pipes of the others open."""

    def __init__(self, env_fns: Any) -> None:
        super().__init__(env_fns, start_method="fork")


def make_env(kind: Any, fault: str, *, all_fail: bool = False) -> Any:
    """Return two environments, of which the second fails, or both."""
    return kind([lambda: FailingEnv(fault if all_fail else ""), lambda: FailingEnv(fault)])


def model_in(env: Any, **kwargs: Any) -> TRPO:
    return TRPO("MlpPolicy", env, policy_kwargs={"net_arch": [8]}, **SETTINGS, **kwargs)


class Watch(BaseCallback):
    """Notes the model's state at the start of each rollout."""

    state: dict[str, Any]

    def _on_rollout_start(self) -> None:
        self.state = state(self.model)

    def _on_step(self) -> bool:
        return True


def assert_lives_on(model: TRPO, watch: Watch, folder: Path) -> None:
    """
    Check that a model is whole after its training has failed.

    :param model: whose training has failed
    :param watch: its callback
    :param folder: for a file
    """
    assert not changed(watch.state, state(model))
    assert model._n_updates == 1
    model.save(folder / "model")
    loaded = TRPO.load(folder / "model", make_env(DummyVecEnv, ""), device="cpu")
    assert not changed(watch.state, state(loaded))
    loaded.learn(N_STEPS, reset_num_timesteps=False)
    model.set_env(make_env(DummyVecEnv, ""))
    model.learn(N_STEPS, reset_num_timesteps=False)
    assert changed(watch.state, state(model))


ENDS = {
    "raises": "ended with code 1",
    "raises in reset": "ended with code 1",
    "exits": "ended with code 3",
    "is killed": "was killed by signal 9",
}


@pytest.mark.parametrize(("fault", "path"), each_once(list(ENDS), list(PATHS)))
def test_a_process_that_ends_is_named_and_none_is_left(fault, path, tmp_path):
    how = ENDS[fault]
    inner = make_env(SubprocVecEnv, fault)
    model, watch = model_in(VecNormalize(VecMonitor(inner)), **PATHS[path]), Watch()
    at = N_ENVS * (80 if fault == "raises in reset" else FAILS_AT)
    with pytest.raises(RuntimeError, match=rf"Environment 1 of 2 failed after {at} steps: its process {how}"):
        model.learn(10_000, watch)
    assert not any(process.is_alive() for process in inner.processes)
    assert not multiprocessing.active_children()
    model.env.close()
    assert_lives_on(model, watch, tmp_path)


@pytest.mark.parametrize(
    ("fault", "when"), [("raises", f"after {N_ENVS * FAILS_AT} steps"), ("exits at once", FIRST_RESET)]
)
def test_the_end_of_a_forked_process_is_seen(fault, when):
    inner = make_env(Forked, fault)
    with pytest.raises(RuntimeError, match=f"Environment 1 of 2 failed {when}: its process ended"):
        model_in(VecNormalize(inner)).learn(10_000)
    assert not any(process.is_alive() for process in inner.processes)


class Kill(Watch):
    """Kills an environment's process from outside, between two steps."""

    def _on_step(self) -> bool:
        if self.n_calls == FAILS_AT:
            process = self.training_env.unwrapped.processes[0]
            process.kill()
            process.join()
        return True


def test_a_process_that_was_killed_between_steps_is_named(tmp_path):
    env = make_env(SubprocVecEnv, "")
    model, watch = model_in(env), Kill()
    with pytest.raises(
        RuntimeError, match=rf"Environment 0 of 2 failed after {N_ENVS * (FAILS_AT + 1)} steps.*signal 9"
    ):
        model.learn(10_000, watch)
    assert not any(process.is_alive() for process in env.processes)
    assert_lives_on(model, watch, tmp_path)


@pytest.mark.skipif(sys.version_info < (3, 11), reason="exceptions have no notes")
@pytest.mark.parametrize(
    ("fault", "error", "at"),
    [
        ("raises", BrokenError, FAILS_AT),
        ("raises in reset", BrokenError, 80),
        ("wrong shape", ValueError, FAILS_AT),
    ],
)
@paths
def test_an_environments_own_exception_is_told_with_its_number(fault, error, at, path, tmp_path):
    model, watch = model_in(make_env(DummyVecEnv, fault), **PATHS[path]), Watch()
    with pytest.raises(error) as caught:
        model.learn(10_000, watch)
    assert caught.value.__notes__ == [f"This happened in environment 1 of 2, after {N_ENVS * at} steps."]
    assert_lives_on(model, watch, tmp_path)


@pytest.mark.skipif(sys.version_info < (3, 11), reason="exceptions have no notes")
@pytest.mark.parametrize("fault", ["raises", "wrong shape", "old Gym"])
def test_what_sb3s_own_step_stumbles_over_is_told_with_the_environments_number(fault):
    # Below a wrapper that is not ours, the environments are stepped by SB3's method.
    with pytest.raises((BrokenError, ValueError)) as caught:
        model_in(VecMonitor(make_env(DummyVecEnv, fault))).learn(10_000)
    assert caught.value.__notes__ == [f"This happened in environment 1 of 2, after {N_ENVS * FAILS_AT} steps."]


@pytest.mark.skipif(sys.version_info < (3, 11), reason="exceptions have no notes")
def test_a_wrong_shape_out_of_another_process_is_told_with_its_number(tmp_path):
    model, watch = model_in(make_env(SubprocVecEnv, "wrong shape")), Watch()
    with pytest.raises(ValueError, match="same shape") as caught:
        model.learn(10_000, watch)
    assert caught.value.__notes__ == [f"This happened in environment 1 of 2, after {N_ENVS * FAILS_AT} steps."]
    model.env.close()
    assert_lives_on(model, watch, tmp_path)


@paths
def test_the_same_wrong_shape_everywhere(path, tmp_path):
    model, watch = model_in(make_env(SubprocVecEnv, "wrong shape", all_fail=True), **PATHS[path]), Watch()
    with pytest.raises(ValueError, match=rf"shape \(5,\) after {N_ENVS * FAILS_AT} steps, but .* \(3,\)"):
        model.learn(10_000, watch)
    model.env.close()
    assert_lives_on(model, watch, tmp_path)


class Impatient(Watch):
    """Waits a few seconds only, once the processes have started and done a rollout."""

    def _on_rollout_end(self) -> None:
        self.model.env_timeout = SECONDS


def test_a_process_that_blocks_is_named_and_none_is_left(tmp_path):
    inner = make_env(SubprocVecEnv, "blocks")
    model, watch = model_in(VecNormalize(VecMonitor(inner))), Impatient()
    with pytest.raises(RuntimeError, match=rf"Environment 1 of 2 did not answer after {N_ENVS * FAILS_AT} steps"):
        model.learn(10_000, watch)
    assert not any(process.is_alive() for process in inner.processes)
    assert not multiprocessing.active_children()
    model.env.close()
    assert_lives_on(model, watch, tmp_path)


def test_waiting_is_limited_only_while_training():
    env = make_env(SubprocVecEnv, "")
    model_in(env, env_timeout=60.0).learn(N_STEPS * N_ENVS)
    for remote in env.remotes:
        with socket.socket(fileno=os.dup(remote.fileno())) as end:
            assert end.getsockopt(socket.SOL_SOCKET, socket.SO_RCVTIMEO, 16) == bytes(16)
    env.close()


def started(env: Any) -> Any:
    """Return the environments once their processes answer."""
    env.get_attr("fault")
    return env


@pytest.mark.parametrize(
    ("fault", "how"),
    [
        ("raises at once", "failed {}: its process ended with code 1"),
        ("exits at once", "failed {}: its process ended with code 3"),
        ("blocks at once", "did not answer {}, for longer than env_timeout allows"),
    ],
)
def test_a_process_that_fails_in_the_first_reset_is_named_and_none_is_left(fault, how):
    inner = started(make_env(SubprocVecEnv, fault))
    model = model_in(VecNormalize(inner), env_timeout=SECONDS)
    with pytest.raises(RuntimeError, match=f"Environment 1 of 2 {how.format(FIRST_RESET)}"):
        model.learn(10_000)
    assert not any(process.is_alive() for process in inner.processes)
    assert not multiprocessing.active_children()
    assert_can_be_trained(model)


@pytest.mark.skipif(sys.version_info < (3, 11), reason="exceptions have no notes")
@pytest.mark.parametrize(
    ("kind", "fault", "error"),
    [
        (DummyVecEnv, "raises at once", BrokenError),
        (DummyVecEnv, "wrong shape at once", ValueError),
        (SubprocVecEnv, "wrong shape at once", ValueError),
    ],
)
def test_an_exception_in_the_first_reset_is_told_with_the_environments_number(kind, fault, error):
    model = model_in(make_env(kind, fault))
    with pytest.raises(error) as caught:
        model.learn(10_000)
    assert caught.value.__notes__ == [f"This happened in environment 1 of 2, {FIRST_RESET}."]
    model.env.close()
    assert_can_be_trained(model)


def test_the_same_wrong_shape_everywhere_in_the_first_reset():
    model = model_in(make_env(SubprocVecEnv, "wrong shape at once", all_fail=True))
    with pytest.raises(ValueError, match=rf"shape \(5,\) {FIRST_RESET}, but .* \(3,\)"):
        model.learn(10_000)
    model.env.close()
    assert_can_be_trained(model)


def assert_can_be_trained(model: TRPO) -> None:
    """
    Check that a model can be trained after its first training has failed before it began.

    :param model: whose first training has failed before it began
    """
    before = state(model)
    model.set_env(make_env(DummyVecEnv, ""))
    model.learn(N_STEPS)
    assert changed(before, state(model))


class Fails(BaseCallback):
    def _on_step(self) -> bool:
        raise BrokenError("a callback's")


def test_an_exception_of_a_callback_is_not_the_environments():
    model = model_in(make_env(DummyVecEnv, ""))
    with pytest.raises(BrokenError) as caught:
        model.learn(10_000, Fails())
    assert not hasattr(caught.value, "__notes__")


class Tells(BaseCallback):
    """Prints a line when training has begun."""

    def _on_training_start(self) -> None:
        print("training", flush=True)

    def _on_step(self) -> bool:
        return True


@pytest.mark.parametrize(
    ("start_method", "fault", "ended_by"),
    [
        ("forkserver", "blocks", signal.SIGTERM),
        pytest.param("fork", "", signal.SIGKILL, marks=pytest.mark.slow),
        pytest.param("forkserver", "", signal.SIGKILL, marks=pytest.mark.slow),
        pytest.param("fork", "blocks", signal.SIGTERM, marks=pytest.mark.slow),
    ],
)
def test_no_process_outlives_a_training_that_is_killed(start_method, fault, ended_by):
    script = (
        "import functools, multiprocessing, test_failing_environments as t\n"
        "multiprocessing.set_forkserver_preload(['torch', 'stable_baselines3'])\n"
        "if __name__ == '__main__':\n"
        f"    kind = functools.partial(t.SubprocVecEnv, start_method={start_method!r})\n"
        f"    env = t.make_env(kind, {fault!r}, all_fail=True)\n"
        "    print(*[process.pid for process in env.processes], flush=True)\n"
        "    t.model_in(env).learn(10**9, t.Tells())\n"
    )
    here = Path(__file__).parent
    path = os.pathsep.join([str(here), str(here.parent / "helpers")])
    training = subprocess.Popen(
        [sys.executable, "-c", script], stdout=subprocess.PIPE, text=True, env={**os.environ, "PYTHONPATH": path}
    )
    assert training.stdout is not None
    workers = [Path("/proc") / pid for pid in training.stdout.readline().split()]
    assert len(workers) == N_ENVS
    assert training.stdout.readline() == "training\n"
    assert all(is_running(worker) for worker in workers)
    time.sleep(1.0)
    training.send_signal(ended_by)
    training.wait()
    training.stdout.close()
    deadline = time.monotonic() + 30
    while any(map(is_running, workers)) and time.monotonic() < deadline:
        time.sleep(0.05)
    assert not any(map(is_running, workers))


def is_running(process: Path) -> bool:
    """
    Tell whether a process runs.

    :param process: its folder in /proc
    :return: whether it runs; one that has ended and that nobody has asked for does not
    """
    try:
        return (process / "stat").read_text().rpartition(")")[2].split()[0] not in "ZX"
    except OSError:
        return False


class Odd(gym.Wrapper):
    """
    Gives something else in each step, or in each reset.

    :param step: a function of what a step gives, or None
    :param reset: a function of what a reset gives, or None
    """

    def __init__(self, step: Any = None, reset: Any = None) -> None:
        super().__init__(gym.make("Pendulum-v1"))
        self.spoil_step, self.spoil_reset = step, reset

    def step(self, action: Any) -> Any:
        result = super().step(action)
        return self.spoil_step(*result) if self.spoil_step else result

    def reset(self, **kwargs: Any) -> Any:
        result = super().reset(**kwargs)
        return self.spoil_reset(*result) if self.spoil_reset else result


class OldReset(gym.Wrapper):
    """Has the reset of the old Gym."""

    def reset(self) -> Any:
        return self.env.reset()


@pytest.mark.skipif(sys.version_info < (3, 11), reason="exceptions have no notes")
@pytest.mark.parametrize(
    ("make", "said"),
    [
        (lambda: Odd(lambda o, r, done, _, info: (o, r, done, info)), "after 1 steps. A step must give five things:"),
        (lambda: Odd(lambda o, r, *rest: (o, np.array([1.0]), *rest)), "The reward is array([1.]), but must be"),
        (lambda: Odd(lambda o, r, *rest: (o, 1j, *rest)), "The reward is 1j, but must be a number."),
        (lambda: Odd(lambda o, r, *rest: (o, 10**400, *rest)), "The reward is a whole number of 1329 bits, but must"),
        (lambda: Odd(lambda o, r, *rest: (o, None, *rest)), "The reward is None, but must be a number."),
        (lambda: Odd(None, lambda o, info: o), "before the first step. A reset must give two things"),
        (lambda: Odd(None, lambda o, info: None), "before the first step. A reset must give two things"),
        (lambda: OldReset(gym.make("Pendulum-v1")), "A reset must take the arguments seed and options."),
    ],
)
def test_what_the_monitor_around_an_environment_can_not_read_is_told(make: Any, said: str) -> None:
    model = TRPO("MlpPolicy", make(), n_steps=16, batch_size=16, device="cpu")
    with pytest.raises((ValueError, TypeError, OverflowError)) as caught:
        model.learn(16)
    (note,) = caught.value.__notes__
    assert note.startswith("This happened in environment 0 of 1, ")
    assert said in note
