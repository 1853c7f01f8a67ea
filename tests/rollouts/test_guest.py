"""
A guest in the user's pipeline: nothing of the user's is changed, everything of the user's is called, and whoever looks
finds what SB3 would have shown.
"""

import contextlib
import copy
import dis
import functools
import pickle
import sys
import threading
import time
import warnings
from typing import Any

import gymnasium as gym
import numpy as np
import pytest
import torch as th
from gymnasium import spaces
from rollout_envs import PATHS, cart_pole, cart_poles, paths
from stable_baselines3.common.buffers import RolloutBuffer
from stable_baselines3.common.callbacks import BaseCallback
from stable_baselines3.common.env_util import make_vec_env
from stable_baselines3.common.on_policy_algorithm import OnPolicyAlgorithm
from stable_baselines3.common.vec_env import DummyVecEnv, SubprocVecEnv, VecEnv, VecEnvWrapper, VecNormalize
from torch.distributions import Distribution
from updates import changed, state

from sb3_trpo import TRPO
from sb3_trpo.rollouts import failures
from sb3_trpo.validation.values import UserError

N_STEPS = 16
SETTINGS: dict[str, Any] = {"n_steps": N_STEPS, "batch_size": 32, "n_critic_updates": 1, "seed": 0, "device": "cpu"}


class WithSb3Rollouts(TRPO):
    collect_rollouts = OnPolicyAlgorithm.collect_rollouts


def model_in(env: Any, algorithm: type[TRPO] = TRPO, **kwargs: Any) -> TRPO:
    return algorithm("MlpPolicy", env, policy_kwargs={"net_arch": [8]}, **SETTINGS, **kwargs)


def layers_of(env: VecEnv) -> list[VecEnv]:
    layers = [env]
    while isinstance(layers[-1], VecEnvWrapper):
        layers.append(layers[-1].venv)
    return layers


class Calls(BaseCallback):
    """
    Calls a function at each step.

    :param function: gets the callback
    """

    def __init__(self, function: Any) -> None:
        super().__init__()
        self.function = function

    def _on_step(self) -> bool:
        return self.function(self) is not False


@paths
def test_nothing_on_environments_and_policy_is_replaced_while_a_rollout_runs(path: str) -> None:
    env = VecNormalize(cart_poles("gaussian", 2))
    model = model_in(env, **PATHS[path])
    model.learn(1)
    objects = [*layers_of(env), *layers_of(env)[-1].envs, model.policy, model.policy.action_dist, model.rollout_buffer]
    before = [{name for name, value in vars(item).items() if callable(value)} for item in objects]
    hooks = (model.policy._forward_hooks, model.policy._forward_pre_hooks)
    seen = []

    def look(_: Any) -> None:
        seen.append([{name for name, value in vars(item).items() if callable(value)} for item in objects])
        assert not any(hooks)

    model.learn(2 * N_STEPS, Calls(look))
    assert seen
    assert all(names == before for names in seen)


@paths
@pytest.mark.parametrize("way", ["deepcopy", "pickle"])
def test_a_copy_that_a_callback_makes_steps_alone(way: str, path: str) -> None:
    env = VecNormalize(make_vec_env("Pendulum-v1", 2, seed=0))
    steps = []

    def look_ahead(callback: BaseCallback) -> None:
        if callback.n_calls not in (5, 2 * N_STEPS + 5):
            return
        # SB3's own copies come without the environments below.
        twin = copy.deepcopy(env) if way == "deepcopy" else pickle.loads(pickle.dumps(env))
        twin.set_venv(copy.deepcopy(env.venv))
        states = [single.unwrapped.state.copy() for single in env.unwrapped.envs]
        count = env.obs_rms.count
        for _ in range(3):
            steps.append(twin.step(np.zeros((2, 1), np.float32))[0])
        assert all((single.unwrapped.state == s).all() for single, s in zip(env.unwrapped.envs, states, strict=True))
        assert env.obs_rms.count == count
        clone = copy.deepcopy(callback.model.policy)
        assert not changed(callback.model.policy.state_dict(), clone.state_dict())

    model = model_in(env, **PATHS[path], noise_correlation=0.5)
    model.learn(3 * 2 * N_STEPS, Calls(look_ahead))
    assert len(steps) == 6
    other = VecNormalize(make_vec_env("Pendulum-v1", 2, seed=0))
    alone = model_in(other, **PATHS[path], noise_correlation=0.5).learn(3 * 2 * N_STEPS)
    assert not changed(state(alone), state(model))


class Keeps(gym.Wrapper):
    """Keeps the infos that it has given, and gives the same dictionary again and again."""

    def __init__(self, env: gym.Env) -> None:
        super().__init__(env)
        self.info: dict[str, Any] = {"count": [0]}
        self.kept: list[Any] = []

    def step(self, action: Any) -> Any:
        obs, reward, terminated, truncated, info = self.env.step(action)
        self.info["count"][0] += 1
        self.info.pop("terminal_observation", None)
        self.info.pop("episode", None)
        self.info.update({key: value for key, value in info.items() if key == "episode"})
        self.kept.append(self.info)
        return obs, reward, terminated, truncated, self.info


@paths
def test_infos_stay_what_they_were_for_whoever_keeps_them(path: str) -> None:
    kept: dict[type, Any] = {}
    for algorithm in (TRPO, WithSb3Rollouts):
        infos: list[Any] = []
        envs = DummyVecEnv([lambda: Keeps(cart_pole("gaussian", 5)), lambda: Keeps(cart_pole("gaussian", 7))])
        model = model_in(VecNormalize(envs), algorithm, **PATHS[path])
        model.learn(64, Calls(lambda callback, infos=infos: infos.append(callback.locals["infos"])))
        last = [{key: value for key, value in env.info.items() if key != "episode"} for env in envs.envs]
        kept[algorithm] = (
            [[{key: value for key, value in info.items() if key != "episode"} for info in step] for step in infos],
            last,
        )
    np.testing.assert_equal(kept[TRPO], kept[WithSb3Rollouts])
    counts = [step[0]["count"][0] for step in kept[TRPO][0]]
    assert counts == list(range(1, len(counts) + 1))


@paths
def test_a_callback_finds_the_buffer_where_it_is(path: str) -> None:
    positions = []

    def look(callback: BaseCallback) -> None:
        buffer = callback.model.rollout_buffer
        positions.append(buffer.pos)
        assert not buffer.full
        np.testing.assert_equal(buffer.observations[buffer.pos :], 0.0)
        assert (buffer.observations[: buffer.pos] != 0.0).all()

    model_in(make_vec_env("Pendulum-v1", 2), **PATHS[path]).learn(2 * 2 * N_STEPS, Calls(look))
    assert positions == 2 * list(range(N_STEPS))


class Differentiable(gym.Wrapper):
    """Computes a gradient in each step, as a simulator written in torch or a learned reward does."""

    def step(self, action: Any) -> Any:
        obs, _, *rest = self.env.step(action)
        force = th.as_tensor(np.asarray(action, np.float32)).requires_grad_()
        force.square().sum().backward()
        assert force.grad is not None
        return obs, float(force.grad.sum()), *rest


class Learner(BaseCallback):
    """Trains a network of its own wherever callbacks are called."""

    def __init__(self) -> None:
        super().__init__()
        self.network = th.nn.Linear(3, 1)
        self.calls: list[str] = []

    def _train(self, when: str) -> None:
        self.network(th.ones(1, 3)).sum().backward()
        self.calls.append(when)

    def _on_rollout_start(self) -> None:
        self._train("start")

    def _on_step(self) -> bool:
        self._train("step")
        return True

    def _on_rollout_end(self) -> None:
        self._train("end")


@paths
def test_environments_and_callbacks_may_compute_gradients(path: str) -> None:
    learner = Learner()
    env = make_vec_env("Pendulum-v1", 2, wrapper_class=Differentiable)
    model_in(env, **PATHS[path]).learn(2 * N_STEPS, learner)
    assert learner.calls == ["start", *["step"] * N_STEPS, "end"]


@paths
def test_what_the_policy_has_computed_holds_no_graph(path: str) -> None:
    def look(callback: BaseCallback) -> None:
        tensors = (callback.locals["values"], callback.locals["log_probs"])
        assert not any(tensor.requires_grad for tensor in tensors)

    model_in(make_vec_env("Pendulum-v1", 2), **PATHS[path]).learn(2 * N_STEPS, Calls(look))


def test_who_switches_gradients_off_around_a_training_learns_all_the_same() -> None:
    with th.no_grad():
        model = model_in(make_vec_env("Pendulum-v1", 2, seed=0)).learn(4 * N_STEPS)
    other = model_in(make_vec_env("Pendulum-v1", 2, seed=0)).learn(4 * N_STEPS)
    assert not changed(state(model), state(other))
    model = model_in(make_vec_env("Pendulum-v1", 2))
    with th.inference_mode(), pytest.raises(UserError, match="inference_mode"):
        model.learn(2 * N_STEPS)


@paths
def test_what_a_callback_writes_into_rewards_and_infos_counts(path: str) -> None:
    def write(callback: BaseCallback) -> None:
        callback.locals["rewards"][:] = 7.0
        for info, done in zip(callback.locals["infos"], callback.locals["dones"], strict=True):
            if done:
                info["TimeLimit.truncated"] = False

    model = model_in(cart_poles("gaussian", 2), **PATHS[path]).learn(N_STEPS * 2, Calls(write))
    assert (model.rollout_buffer.rewards == 7.0).all()


class Simulator:
    """Batched, and no VecEnv."""

    def __init__(self) -> None:
        self.t = 0


class Foreign(VecEnv):
    """A VecEnv by others: its ``unwrapped`` is a simulator, it gives infos that hold None, and steps in one piece."""

    def __init__(self) -> None:
        self.simulator = Simulator()
        super().__init__(3, spaces.Box(-1, 1, (2,)), spaces.Box(-1, 1, (1,)))

    @property
    def unwrapped(self) -> Any:
        return self.simulator

    def reset(self, level: int = 0) -> Any:
        self.level = level
        return np.zeros((3, 2), np.float32)

    def step(self, actions: Any) -> Any:
        self.simulator.t += 1
        done = self.simulator.t % 5 == 0
        obs = np.full((3, 2), self.simulator.t % 5 / 5, np.float32)
        infos = [{"episode": None, "terminal_observation": obs[0] if done else None} for _ in range(3)]
        return obs, -np.square(actions).sum(1).astype(np.float32), np.full(3, done), infos

    def step_async(self, actions: Any) -> None:
        self.actions = actions

    def step_wait(self) -> Any:
        return self.step(self.actions)

    def close(self) -> None: ...

    def get_attr(self, attr_name: str, indices: Any = None) -> Any:
        if attr_name == "render_mode":
            return [None] * 3
        raise AttributeError(attr_name)

    def set_attr(self, attr_name: str, value: Any, indices: Any = None) -> None:
        raise NotImplementedError

    def env_method(self, method_name: str, *args: Any, indices: Any = None, **kwargs: Any) -> Any:
        raise NotImplementedError

    def env_is_wrapped(self, wrapper_class: Any, indices: Any = None) -> Any:
        return [False] * 3


class Levels(VecEnvWrapper):
    def reset(self) -> Any:
        return self.venv.reset(level=3)

    def step_wait(self) -> Any:
        return self.venv.step_wait()


@paths
@pytest.mark.parametrize("wrap", [lambda env: env, VecNormalize, Levels, lambda env: VecNormalize(Levels(env))])
def test_environments_by_others_train_as_with_sb3s_loop(wrap: Any, path: str) -> None:
    models = []
    for algorithm in (TRPO, WithSb3Rollouts):
        models.append(model_in(wrap(Foreign()), algorithm, **PATHS[path]).learn(2 * 3 * N_STEPS))
    ours, sb3s = models
    for name in ("observations", "actions", "rewards"):
        np.testing.assert_allclose(
            getattr(ours.rollout_buffer, name), getattr(sb3s.rollout_buffer, name), rtol=1e-4, atol=1e-5
        )
    assert layers_of(ours.env)[-1].simulator.t == 2 * N_STEPS


@pytest.mark.parametrize("where", ["object", "class"])
@pytest.mark.parametrize("name", ["add", "compute_returns_and_advantage", "reset", "get"])
def test_a_buffers_method_that_a_user_has_replaced_is_called(
    name: str, where: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = model_in("Pendulum-v1")
    calls = []
    original = getattr(RolloutBuffer, name)

    @functools.wraps(original)
    def replaced(self: Any, *args: Any, **kwargs: Any) -> Any:
        calls.append(1)
        return original(self, *args, **kwargs)

    if where == "class":
        monkeypatch.setattr(RolloutBuffer, name, replaced)
    else:
        model.rollout_buffer.__dict__[name] = functools.partial(replaced, model.rollout_buffer)
    model.learn(N_STEPS)
    assert len(calls) >= (N_STEPS if name == "add" else 1)


@paths
@pytest.mark.parametrize("moment", ["rollout's start", "step", "rollout's end"])
def test_a_callback_may_give_other_environments(moment: str, path: str, recwarn: pytest.WarningsRecorder) -> None:
    other = make_vec_env("Pendulum-v1", 2, seed=5)

    class Moves(BaseCallback):
        def _move(self) -> None:
            if self.model.env is not other:
                self.model.set_env(other)

        def _on_step(self) -> bool:
            if moment == "step" and self.n_calls == 5:
                self._move()
            return True

        def _on_rollout_start(self) -> None:
            if moment == "rollout's start":
                self._move()

        def _on_rollout_end(self) -> None:
            if moment == "rollout's end":
                self._move()

    model = model_in(make_vec_env("Pendulum-v1", 2, seed=0), **PATHS[path]).learn(3 * 2 * N_STEPS, Moves())
    assert model.num_timesteps == 3 * 2 * N_STEPS
    assert other.envs[0].unwrapped.state is not None
    assert model.logger.name_to_value["train/is_line_search_success"] == 1.0
    assert [str(w.message) for w in recwarn if "undone" in str(w.message)] == []
    assert model.rollout_buffer.episode_starts.sum() == 0  # Pendulum's episodes are longer than two rollouts


SPOILT = {
    "clear": lambda shown: shown.clear(),
    "set": lambda shown: shown.update(
        dict.fromkeys(["actions", "new_obs", "rewards", "dones", "infos", "self", "env"])
    ),
    "pop": lambda shown: [shown.pop(name) for name in ("log_probs", "values", "obs_tensor")],
}


@paths
@pytest.mark.parametrize("spoil", SPOILT.values(), ids=SPOILT)
def test_what_a_callback_makes_of_its_dictionary_is_its_own_business(spoil: Any, path: str) -> None:
    """As with SB3's loop, which writes all of it anew at each step."""
    seen: list[set[str]] = []

    class Spoiler(BaseCallback):
        def _on_step(self) -> bool:
            seen.append(set(self.locals))
            spoil(self.locals)
            return True

        def _on_rollout_end(self) -> None:
            seen.append(set(self.locals))

    plain = model_in(make_vec_env("Pendulum-v1", 2, seed=0), **PATHS[path]).learn(2 * 2 * N_STEPS)
    spoilt = model_in(make_vec_env("Pendulum-v1", 2, seed=0), **PATHS[path]).learn(2 * 2 * N_STEPS, Spoiler())
    # Values that are read step by step differ by rounding from those of the whole rollout.
    for name, tensor in state(plain).items():
        th.testing.assert_close(state(spoilt)[name], tensor, rtol=1e-3, atol=1e-4)
    names = {"self", "env", "callback", "rollout_buffer", "actions", "rewards", "values", "log_probs", "obs_tensor"}
    assert all(names <= each for each in seen)


class Slow(gym.Wrapper):
    def step(self, action: Any) -> Any:
        time.sleep(1.0)
        return self.env.step(action)


@pytest.mark.parametrize("kind", [DummyVecEnv, SubprocVecEnv])
def test_a_slow_environment_is_a_warning_said_once(kind: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(failures, "SECONDS_TO_A_WARNING", 0.2)
    env = kind([lambda: cart_pole("gaussian"), lambda: Slow(cart_pole("gaussian"))])
    model = TRPO("MlpPolicy", env, **{**SETTINGS, "n_steps": 3, "batch_size": 6})
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        model.learn(2 * 3 * 2)
    said = [str(warning.message) for warning in caught if "not answered" in str(warning.message)]
    assert len(said) == 1
    assert "env_timeout" in said[0]
    assert ("Environment 1 of 2 has" in said[0]) == (kind is SubprocVecEnv)
    env.close()


def test_switches_of_torch_are_as_they_were_after_trainings_in_threads() -> None:
    before = Distribution._validate_args, th.backends.cuda.flash_sdp_enabled(), th.backends.cudnn.enabled
    models = [model_in("Pendulum-v1", use_sde=i % 2 == 0) for i in range(4)]
    threads = [threading.Thread(target=model.learn, args=((4 + i) * N_STEPS,)) for i, model in enumerate(models)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert all(model._n_updates == 4 + i for i, model in enumerate(models))
    assert (Distribution._validate_args, th.backends.cuda.flash_sdp_enabled(), th.backends.cudnn.enabled) == before


def _leaves_block(frame: Any) -> bool:
    """
    Tell whether a frame is between a ``with`` block and its ``__exit__``.

    A trace function is called there. A signal is not: Python looks for signals at calls and jumps.
    """
    code, at = frame.f_code.co_code, frame.f_lasti
    is_none = dis.opname[code[at]] == "LOAD_CONST" and frame.f_code.co_consts[code[at + 1]] is None
    return is_none and dis.opname[code[at + 2]] in ("LOAD_CONST", "DUP_TOP")


class InterruptedAtLine:
    """
    Raises KeyboardInterrupt before a line of the package is run.

    :param n: how many lines of it are run before
    """

    def __init__(self, n: int) -> None:
        self.n = n

    def __enter__(self) -> None:
        sys.settrace(self._trace)

    def __exit__(self, *_: object) -> None:
        sys.settrace(None)

    def _trace(self, frame: Any, event: str, _: object) -> Any:
        if "sb3_trpo" not in frame.f_code.co_filename or "tests" in frame.f_code.co_filename:
            return None
        if event == "line" and not _leaves_block(frame):
            self.n -= 1
            if self.n == 0:
                sys.settrace(None)
                raise KeyboardInterrupt
        return self._trace


@paths
def test_ctrl_c_at_any_line_leaves_nothing_behind(path: str) -> None:
    rng = np.random.default_rng(0)
    switches = Distribution._validate_args, th.backends.cuda.flash_sdp_enabled()
    env = VecNormalize(cart_poles("gaussian", 2))
    model = model_in(env, **PATHS[path], noise_correlation=0.5)
    model.learn(N_STEPS)
    kind = type(model.policy.action_dist)
    for n in rng.integers(1, 6000, 25):
        with InterruptedAtLine(int(n)), contextlib.suppress(KeyboardInterrupt):
            model.learn(2 * N_STEPS, reset_num_timesteps=False)
        assert (Distribution._validate_args, th.backends.cuda.flash_sdp_enabled()) == switches
        assert type(model.policy.action_dist) is kind
        assert not model.policy._forward_hooks
        assert not model.policy._forward_pre_hooks
        assert all(bool(parameter.isfinite().all()) for parameter in model.policy.parameters())
        assert not any(callable(value) for layer in layers_of(env) for value in vars(layer).values())
    before = state(model)
    model.learn(2 * N_STEPS, reset_num_timesteps=False)
    assert changed(before, state(model))
