import math
import re
import warnings
from fractions import Fraction
from pathlib import Path
from typing import Any

import gymnasium as gym
import numpy as np
import pytest
import torch as th
from gymnasium import spaces
from small_models import VECTOR, SpacesEnv
from stable_baselines3 import PPO
from stable_baselines3.common.buffers import ReplayBuffer
from stable_baselines3.common.callbacks import CheckpointCallback
from stable_baselines3.common.env_util import make_vec_env
from stable_baselines3.common.torch_layers import BaseFeaturesExtractor, FlattenExtractor, NatureCNN
from stable_baselines3.common.utils import LinearSchedule
from updates import collect, pendulum, state

from sb3_trpo import TRPO
from sb3_trpo.validation.algorithm import SCHEDULED
from sb3_trpo.validation.values import UserError, read_schedule

# For each argument, what is not allowed, and words of the message that say what is.
NOT_ALLOWED: dict[str, tuple[list[Any], str]] = {
    "n_steps": ([0, -1, 2.5, math.nan, True, None, "many"], "an integer of at least 1"),
    "batch_size": ([0, -64, 64.5, math.nan], "an integer of at least 1"),
    "cg_max_steps": ([0, -1, math.nan], "an integer of at least 1"),
    "line_search_max_iter": ([0, -1, math.nan], "an integer of at least 1"),
    "sub_sampling_factor": ([0, -1, 1.5, math.nan], "an integer of at least 1"),
    "fisher_chunk_size": ([0, -1, 0.5], "an integer of at least 1"),
    "n_critic_updates": ([-1, 1.5, math.nan], "an integer of at least 0"),
    "sde_sample_freq": ([-2, 0.5, math.nan], "an integer of at least -1"),
    "learning_rate": ([-1e-3, math.nan, math.inf, "fast", None, lambda _: math.nan], "at least 0"),
    "target_kl": ([0, 0.0, -0.01, math.nan, math.inf, None, lambda _: -1.0], "above 0"),
    "gamma": ([-0.1, 1.1, math.nan], "between 0 and 1"),
    "gae_lambda": ([-0.1, 1.1, math.nan], "between 0 and 1"),
    "cg_damping": ([-0.1, math.nan, math.inf], "at least 0"),
    "cg_residual_tol": ([-0.1, math.nan], "at least 0"),
    "min_std": ([-0.1, math.nan, "0.1"], "at least 0"),
    "max_std": ([0, -0.1, math.nan, lambda _: 0.0], "above 0"),
    "noise_correlation": ([1, -1.0, 1.5, math.nan, "0.5", None], "above -1 and below 1"),
    "cg_progress_tol": ([-0.1, math.nan], "at least 0"),
    "ent_coef": ([-0.1, math.nan], "at least 0"),
    "line_search_shrinking_factor": ([0.0, 1.0, -0.5, 2, math.nan], "above 0 and below 1"),
    "max_grad_norm": ([-1.0, math.nan, math.inf], "above 0, or None"),
    "preconditioner": (["jacobi", 1, True], "'kfac', None"),
    "env_timeout": ([0, -1.0, math.nan, math.inf, "long"], "seconds above 0, or None"),
    "seed": (["3", -1, 3.5, math.nan], "an integer of at least 0"),
    "stats_window_size": (["5", -1, 2.5], "an integer of at least 0"),
    "device": (["gpu0", None, 1.5, []], "'auto', 'cpu', 'cuda'"),
    "tensorboard_log": ([5, True, b"runs"], "the path of a folder, or None"),
    "rollout_buffer_class": (["RolloutBuffer", int, ReplayBuffer, 1], "a class of rollout buffers"),
    "rollout_buffer_kwargs": (["x", 1, [1]], "a dictionary, or None"),
    "normalize_advantage": (["false", [], np.array([1, 0]), th.tensor([1, 0])], "one of True, False"),
}
CASES = [(name, value, allowed) for name, (values, allowed) in NOT_ALLOWED.items() for value in values]


class NeverStepped(gym.Env):
    """Fails the test that resets or steps it."""

    observation_space = VECTOR
    action_space = spaces.Box(-1, 1, (1,))

    def reset(self, *, seed: int | None = None, options: dict | None = None) -> tuple[Any, dict]:
        raise AssertionError("the environment was reset")

    def step(self, action: Any) -> tuple[Any, float, bool, bool, dict]:
        raise AssertionError("the environment was stepped")


@pytest.mark.parametrize(
    ("name", "said"),
    [("gamma", "which the algorithm gives"), ("lambda", "no such argument"), ("x", "similar name")],
)
def test_arguments_of_the_rollout_buffer_that_it_has_not_are_named(name: str, said: str) -> None:
    with pytest.raises(UserError, match=f"^rollout_buffer_kwargs has '{name}', .*{said}"):
        TRPO("MlpPolicy", NeverStepped(), rollout_buffer_kwargs={name: 1})


@pytest.mark.parametrize("name", SCHEDULED)
@pytest.mark.parametrize("schedule", [lambda: 1.0, lambda _, __: 1.0, lambda p: 1.0 / (p - 1.0)])
def test_schedules_that_fail_are_named(name: str, schedule: Any) -> None:
    with pytest.raises(UserError, match=f"^{name} is .* but must be a number, or a function of the remaining progress"):
        TRPO("MlpPolicy", NeverStepped(), **{name: schedule})


@pytest.mark.parametrize("name", SCHEDULED)
def test_schedules_that_fail_later_are_named(name: str) -> None:
    model = TRPO("MlpPolicy", "Pendulum-v1", n_steps=64, batch_size=32, device="cpu", **{name: lambda p: 1.0 / p})
    with pytest.raises(UserError, match=f"^{name} is a schedule that gives no number: .*division by zero"):
        model.learn(64)


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (("1000",), "total_timesteps is '1000', but must be a number of steps"),
        ((None,), "total_timesteps is None, but must be a number of steps"),
        ((math.nan,), "total_timesteps is nan, but must be a number of steps"),
        ((64, 5), "callback is 5, but must be a callback, a list of callbacks"),
        ((64, (None,)), "callback is (None,), but must be a callback, a list of callbacks"),
        ((64, [5]), "callback is [5], but must be a callback, a list of callbacks"),
        ((64, CheckpointCallback), "callback is the class CheckpointCallback, but must be an object of it"),
        ((64, [CheckpointCallback]), "callback is the class CheckpointCallback, but must be an object of it"),
        ((64, None, 0), "log_interval is 0, but must be"),
        ((64, None, "1"), "log_interval is '1', but must be"),
        ((64, None, 1, 5), "tb_log_name is 5, but must be a text, or None"),
    ],
)
def test_arguments_of_learn_that_are_not_allowed_are_named(arguments: tuple[Any, ...], said: str) -> None:
    model = TRPO("MlpPolicy", NeverStepped(), n_steps=64, batch_size=32, device="cpu")
    with pytest.raises(UserError, match=re.escape(said)):
        model.learn(*arguments)


@pytest.mark.parametrize(("name", "value", "allowed"), CASES)
def test_what_is_not_allowed_is_named_with_its_value(name: str, value: Any, allowed: str) -> None:
    with pytest.raises(ValueError, match=re.escape(allowed)) as error:
        TRPO("MlpPolicy", NeverStepped(), **{name: value})
    message = str(error.value)
    assert message.startswith(name)
    assert repr(value(1.0) if callable(value) and not isinstance(value, type) else value) in message
    assert message.count(".\n") == 0, "one sentence"


@pytest.mark.parametrize(
    "kwargs",
    [
        {"learning_rate": 0.0},
        {"learning_rate": LinearSchedule(1e-3, 0.0, 1.0), "target_kl": LinearSchedule(0.02, 0.0, 1.0)},
        {"n_critic_updates": 0, "gamma": 1, "gae_lambda": 0},
        # Of so few samples the Kronecker factors are singular, which the preconditioner would warn of.
        {"cg_damping": 0.0, "cg_residual_tol": 0.0, "preconditioner": None},
        {"n_steps": np.int64(64), "target_kl": np.float32(0.01), "batch_size": np.int32(64)},
        {"sub_sampling_factor": 8, "fisher_chunk_size": 1},
        {"max_grad_norm": 0.0},
    ],
)
def test_the_ends_of_what_is_allowed_train(kwargs: dict[str, Any]) -> None:
    model = pendulum(**{"n_steps": 64, **kwargs})
    before = state(model)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        model.train()
    assert not (state(model)["log_std"] == before["log_std"]).all()


@pytest.mark.parametrize("name", SCHEDULED)
@pytest.mark.parametrize(
    ("text", "ends"), [("lin_0.06", (0.06, 0.0)), ("lin_0.4_0.2", (0.4, 0.2)), ("lin_0_1e-3", (0, 1e-3))]
)
def test_texts_are_schedules(name: str, text: str, ends: tuple[float, float]) -> None:
    schedule = read_schedule(name, text)
    assert [schedule(1.0), schedule(0.5), schedule(0.0)] == pytest.approx([ends[0], sum(ends) / 2, ends[1]])


def test_texts_are_taken_by_constructor_and_load(tmp_path: Any) -> None:
    model = pendulum(**dict.fromkeys(SCHEDULED, "lin_0.4_0.2"))
    assert [getattr(model, name)(0.5) for name in SCHEDULED] == pytest.approx([0.3] * 4)
    model.save(tmp_path / "model")
    loaded = TRPO.load(tmp_path / "model", device="cpu", target_kl="lin_0.1")
    assert [loaded.target_kl(0.5), loaded.min_std(0.5)] == pytest.approx([0.05, 0.3])  # type: ignore[operator]


@pytest.mark.parametrize(
    "text", ["0.06", "", "lin", "lin_", "lin_fast", "lin_1_2_3", "cos_0.06", "lin_nan", "lin_1_-1"]
)
def test_other_texts_are_no_schedules(text: str) -> None:
    with pytest.raises(ValueError, match=f"min_std is '{text}', but must be a number, a schedule, lin_START"):
        pendulum(min_std=text)


@pytest.mark.parametrize(
    ("kwargs", "taken"),
    [
        ({"seed": np.int64(3), "stats_window_size": np.int64(5)}, {"seed": 3, "_stats_window_size": 5}),
        ({"seed": 3.0, "stats_window_size": 5.0}, {"seed": 3, "_stats_window_size": 5}),
        ({"gamma": Fraction(1, 2), "ent_coef": Fraction(1, 8)}, {"gamma": 0.5, "ent_coef": 0.125}),
        ({"learning_rate": Fraction(1, 4), "max_grad_norm": Fraction(1, 2)}, {"learning_rate": 0.25}),
        ({"target_kl": Fraction(1, 64), "cg_damping": np.float16(0.5)}, {"target_kl": 1 / 64, "cg_damping": 0.5}),
    ],
    ids=str,
)
def test_numbers_of_any_kind_are_what_they_stand_for(kwargs: dict[str, Any], taken: dict[str, Any]) -> None:
    model = TRPO("MlpPolicy", "Pendulum-v1", n_steps=64, batch_size=64, device="cpu", **kwargs).learn(64)
    for name, value in taken.items():
        assert getattr(model, name) == value
        assert type(getattr(model, name)) is type(value)


def test_a_seed_beyond_numpys_is_named() -> None:
    with pytest.raises(ValueError, match="seed is 4294967296, but must be at most 4294967295"):
        TRPO("MlpPolicy", NeverStepped(), seed=2**32)


def test_sub_sampling_beyond_the_batch_is_not_allowed() -> None:
    env = make_vec_env(NeverStepped, n_envs=2)
    TRPO("MlpPolicy", env, n_steps=64, sub_sampling_factor=128)
    with pytest.raises(ValueError, match=r"sub_sampling_factor is 129, .*at most n_steps \* n_envs = 128"):
        TRPO("MlpPolicy", env, n_steps=64, sub_sampling_factor=129)


def test_one_step_with_normalised_advantages_is_an_assertion_as_in_ppo() -> None:
    with pytest.raises(AssertionError, match=r"n_steps \* n_envs"):
        TRPO("MlpPolicy", NeverStepped(), n_steps=1, batch_size=1)


@pytest.mark.filterwarnings("ignore:TRPO. n_steps")
def test_one_step_without_normalised_advantages_trains() -> None:
    TRPO("MlpPolicy", "Pendulum-v1", n_steps=1, batch_size=1, normalize_advantage=False, device="cpu").learn(3)


def test_a_batch_size_that_does_not_divide_the_rollout_warns() -> None:
    with pytest.warns(UserWarning, match="batch_size = 48 does not divide n_steps \\* n_envs = 64"):
        TRPO("MlpPolicy", NeverStepped(), n_steps=64, batch_size=48)


BOX = spaces.Box(-1, 1, (2,))
MATRIX = [[2, 3], [3, 2]]
ACTION_SPACES_REFUSED = [
    (
        spaces.Tuple([spaces.Discrete(2), spaces.Discrete(2)]),
        "must be one of Box, Discrete, MultiDiscrete, MultiBinary",
    ),
    (spaces.Text(5), "must be one of Box, Discrete, MultiDiscrete, MultiBinary"),
    (spaces.Dict(a=spaces.Discrete(2)), "must be one of Box, Discrete, MultiDiscrete, MultiBinary"),
    (spaces.MultiDiscrete(MATRIX), "must have one dimension"),
    (spaces.MultiBinary([2, 2]), "must have one dimension"),
    (spaces.Box(-1, 1, (0,)), "must have at least one element"),
    (spaces.MultiBinary([2]), "must be made with a number, as in MultiBinary(2)"),
    (spaces.Box(-np.inf, np.inf, (2,)), "must have bounds that are finite"),
    (spaces.Box(np.float32([0, -np.inf]), np.float32([np.inf, 0])), "must have bounds that are finite"),
    (spaces.Box(-1, 1, (2,), np.dtype(">f4")), "must have numbers in this machine's byte order, such as float32"),
    (spaces.Box(-1, 1, (2,), np.float16), "must have the type float32, which actions have, or float64"),
]
OBSERVATION_SPACES_REFUSED = [
    (spaces.Tuple([BOX, BOX]), "must be one of Box, Discrete, MultiDiscrete, MultiBinary, or a Dict of these"),
    (spaces.Text(5), "must be one of Box, Discrete, MultiDiscrete, MultiBinary, or a Dict of these"),
    (spaces.Dict(a=spaces.Dict(b=BOX)), "must be one of Box, Discrete, MultiDiscrete, MultiBinary."),
    (spaces.Dict(), "must have at least one entry"),
    (spaces.MultiDiscrete(MATRIX), "must have one dimension"),
    (spaces.Dict(a=BOX, b=spaces.MultiDiscrete(MATRIX)), "must have one dimension"),
    (spaces.Box(-1, 1, (0,)), "must have at least one element"),
    (spaces.Box(-1, 1, ()), "must have at least one dimension"),
    (spaces.Dict(a=BOX, b=spaces.Box(-1, 1, ())), "must have at least one dimension"),
    (spaces.Discrete(3, start=1), "must start at 0"),
    (spaces.MultiDiscrete([3, 2], start=[0, 1]), "must start at 0"),
    (spaces.Dict(a=BOX, b=spaces.Discrete(3, start=-1)), "must start at 0"),
    (spaces.Box(-1, 1, (2,), np.dtype(">f8")), "must have numbers in this machine's byte order, such as float64"),
    *((spaces.Dict({name: BOX}), "must have a name that torch.nn.ModuleDict takes") for name in ("a.b", "", "type", 3)),
]


def refusal(observation_space: spaces.Space, action_space: spaces.Space) -> str:
    env = NeverStepped()
    env.observation_space, env.action_space = observation_space, action_space
    with pytest.raises(ValueError, match="must") as error:
        TRPO("MultiInputPolicy" if isinstance(observation_space, spaces.Dict) else "MlpPolicy", env)
    return str(error.value)


@pytest.mark.parametrize(("space", "requirement"), ACTION_SPACES_REFUSED, ids=str)
def test_action_spaces_that_cannot_work_are_named(space: spaces.Space, requirement: str) -> None:
    message = refusal(VECTOR, space)
    assert message.startswith(f"The action space is {' '.join(str(space).split())}, but {requirement}")
    assert "\n" not in message


@pytest.mark.parametrize(("space", "requirement"), OBSERVATION_SPACES_REFUSED, ids=str)
def test_observation_spaces_that_cannot_work_are_named(space: spaces.Space, requirement: str) -> None:
    message = refusal(space, BOX)
    assert message.startswith("The observation space ")
    assert requirement in message
    assert "\n" not in message


IMAGE = spaces.Box(0, 255, (3, 40, 40), np.uint8)
SMALL_IMAGE = spaces.Box(0, 255, (3, 20, 40), np.uint8)
NO_IMAGES = [
    ("CnnPolicy", BOX, {}, "takes images, a Box of three dimensions: use 'MlpPolicy'"),
    ("BetaCnnPolicy", BOX, {}, "takes images, a Box of three dimensions: use 'MlpPolicy'"),
    ("CnnPolicy", spaces.Discrete(3), {}, "takes images, a Box of three dimensions: use 'MlpPolicy'"),
    ("CnnPolicy", spaces.Box(0, 255, (40, 40), np.uint8), {}, "takes images, a Box of three dimensions"),
    ("CnnPolicy", spaces.Box(0, 1, (3, 40, 40)), {}, "others with policy_kwargs={'normalize_images': False}"),
    ("CnnPolicy", SMALL_IMAGE, {}, "must have at least 36 pixels in height and width"),
    ("CnnPolicy", spaces.Box(0, 1, (40, 40, 3)), {"normalize_images": False}, "must have at least 36 pixels"),
    ("MultiInputPolicy", spaces.Dict(a=BOX, b=SMALL_IMAGE), {}, "must have at least 36 pixels in height and width"),
    ("MlpPolicy", BOX, {"features_extractor_class": NatureCNN}, "takes images, a Box of three dimensions"),
]


@pytest.mark.parametrize(("policy", "space", "policy_kwargs", "requirement"), NO_IMAGES)
def test_observations_that_convolutions_cannot_take_are_named(policy, space, policy_kwargs, requirement) -> None:
    env = NeverStepped()
    env.observation_space, env.action_space = space, BOX
    with pytest.raises(UserError) as error:
        TRPO(policy, env, policy_kwargs=policy_kwargs)
    # What SB3 raises, too.
    assert isinstance(error.value, AssertionError)
    assert str(error.value).startswith("The observation space ")
    assert requirement in str(error.value)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("policy", "space", "policy_kwargs"),
    [
        ("CnnPolicy", IMAGE, {}),
        ("CnnPolicy", spaces.Box(0, 1, (3, 40, 40)), {"normalize_images": False}),
        ("CnnPolicy", BOX, {"features_extractor_class": FlattenExtractor}),
        ("MlpPolicy", SMALL_IMAGE, {}),
        ("MultiInputPolicy", spaces.Dict(a=IMAGE, b=BOX, c=spaces.Box(0, 255, (9, 9), np.uint8)), {}),
    ],
)
def test_observations_that_convolutions_can_take_are_taken(policy, space, policy_kwargs) -> None:
    TRPO(policy, SpacesEnv(space, BOX), policy_kwargs=policy_kwargs, device="cpu")


@pytest.mark.parametrize(
    "space",
    [
        space
        for space, words in OBSERVATION_SPACES_REFUSED
        if space != spaces.Dict() and space.shape != (0,) and "byte order" not in words
    ],
    ids=str,
)
def test_flattened_observations_work_as_the_error_says(space: spaces.Space) -> None:
    env = gym.wrappers.FlattenObservation(SpacesEnv(space, BOX))
    TRPO("MlpPolicy", env, n_steps=128, batch_size=64, n_critic_updates=1, device="cpu").learn(128)


@pytest.mark.parametrize("space", [spaces.MultiDiscrete(MATRIX), spaces.MultiBinary([2, 2])], ids=str)
def test_reshaped_actions_work_as_the_error_says(space: spaces.Space) -> None:
    flat = spaces.MultiDiscrete([2, 3, 3, 2]) if isinstance(space, spaces.MultiDiscrete) else spaces.MultiBinary(4)
    env = gym.wrappers.TransformAction(SpacesEnv(VECTOR, space), lambda a: a.reshape(2, 2).astype(space.dtype), flat)
    TRPO("MlpPolicy", env, n_steps=128, batch_size=64, n_critic_updates=1, device="cpu").learn(128)


class Scalars(BaseFeaturesExtractor):
    """Takes observations without a dimension, which SB3's own extractors can't."""

    def __init__(self, observation_space: spaces.Box) -> None:
        super().__init__(observation_space, features_dim=1)

    def forward(self, observations: th.Tensor) -> th.Tensor:
        return observations.reshape(-1, 1)


def test_users_own_features_extractor_decides_what_it_takes(tmp_path: Any) -> None:
    env = SpacesEnv(spaces.Box(-1, 1, ()), BOX)
    kwargs: dict[str, Any] = {"n_steps": 128, "batch_size": 64, "device": "cpu"}
    model = TRPO("MlpPolicy", env, policy_kwargs={"features_extractor_class": Scalars}, **kwargs).learn(128)
    model.save(tmp_path / "model")
    TRPO.load(tmp_path / "model", env, device="cpu").learn(128)


def test_arguments_of_a_loaded_model_are_checked_too(tmp_path: Any) -> None:
    pendulum().save(tmp_path / "model")
    with pytest.raises(ValueError, match="cg_damping is nan"):
        TRPO.load(tmp_path / "model", custom_objects={"cg_damping": math.nan})


def test_a_target_that_becomes_negative_is_named_and_the_policy_stays() -> None:
    model = pendulum(target_kl=LinearSchedule(0.01, -0.01, 1.0))
    model._current_progress_remaining = 0.0
    before = state(model)
    with pytest.raises(ValueError, match=r"target_kl is -0.01, but must be at least 0 throughout training"):
        model.train()
    assert set(before) == set(state(model))
    assert all((before[name] == tensor).all() for name, tensor in state(model).items())


class SpoiledPendulum(gym.Wrapper):
    """
    A Pendulum that goes wrong at one step.

    :param what: "observation" or "reward", or "" for neither
    :param value: which it is instead
    :param at: at which step
    """

    def __init__(self, what: str, value: float, at: int) -> None:
        super().__init__(gym.make("Pendulum-v1"))
        self.what, self.value, self.at = what, value, at
        self.n_steps = 0

    def step(self, action: Any) -> tuple[Any, Any, bool, bool, dict]:
        obs, reward, terminated, truncated, info = super().step(action)
        self.n_steps += 1
        if self.n_steps == self.at and self.what == "observation":
            obs[1] = self.value
        if self.n_steps == self.at and self.what == "reward":
            reward = self.value
        return obs, reward, terminated, truncated, info


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
@pytest.mark.parametrize("what", ["observation", "reward"])
@pytest.mark.parametrize("use_sde", [False, True], ids=["lean", "SB3's loop"])
def test_environments_that_give_no_finite_numbers_are_named(
    what: str, value: float, use_sde: bool, tmp_path: Any
) -> None:
    kinds = iter(["", what, ""])
    env = make_vec_env(lambda: SpoiledPendulum(next(kinds), value, at=100), n_envs=3)
    model = pendulum(env=env, n_steps=64, use_sde=use_sde)
    model.train()
    before = state(model)
    with pytest.raises(ValueError, match=rf"{what}.* environment 1 .*300 steps"):
        collect(model)
    assert all((before[name] == tensor).all() for name, tensor in state(model).items())
    model.save(tmp_path / "model")
    loaded = state(TRPO.load(tmp_path / "model", device="cpu"))
    assert all((before[name] == tensor).all() for name, tensor in loaded.items())


class SpoiledSpeed(SpacesEnv):
    """Dictionaries of which one entry is not finite at the 70th step."""

    def __init__(self) -> None:
        super().__init__(spaces.Dict({"angle": VECTOR, "speed": VECTOR}), spaces.Box(-1, 1, (1,)))
        self.n_steps_left = 70

    def step(self, action: Any) -> tuple[Any, float, bool, bool, dict]:
        obs, *rest = super().step(action)
        self.n_steps_left -= 1
        if self.n_steps_left == 0:
            obs["speed"][2] = np.nan
        return obs, *rest


def test_a_dictionary_that_is_not_finite_is_named_by_its_key() -> None:
    model = pendulum(policy="MultiInputPolicy", env=SpoiledSpeed(), n_steps=64)
    with pytest.raises(ValueError, match=r"observation 'speed' of environment 0 .* 70 steps"):
        collect(model)


def test_warnings_name_the_users_line() -> None:
    with pytest.warns(UserWarning, match="batch_size = 100 does not divide") as caught:
        TRPO("MlpPolicy", "Pendulum-v1", batch_size=100, device="cpu")
    assert {warning.filename for warning in caught} == {__file__}


def test_warnings_name_the_users_line_through_saving_loading_and_learning(tmp_path: Path) -> None:
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        PPO("MlpPolicy", "Pendulum-v1", n_steps=16, batch_size=16, device="cpu").save(tmp_path / "ppo")
        model = TRPO.load(tmp_path / "ppo", make_vec_env("Pendulum-v1"), device="cpu", batch_size=16)
        model.learn(6 * 16)
        model.save(tmp_path / "new" / "model")
    said = " ".join(str(warning.message) for warning in caught)
    assert all(words in said for words in ("was saved by", "(This is said once.)", "does not exist"))
    assert {warning.filename for warning in caught} == {__file__}
