"""
``sb3-trpo export``: the policy of a run with its statistics, or one sentence. test_cli.py has the export of a real run.
"""

import pickle
import shutil
from pathlib import Path
from typing import Any

import hostile
import pytest
import sb3_contrib
import torch as th
from gymnasium import spaces
from small_models import ACTION_SPACES, OBSERVATION_SPACES, VECTOR, SpacesEnv, TwoHeadsPolicy, policy_for
from stable_baselines3 import A2C, PPO, SAC
from stable_baselines3.common.base_class import BaseAlgorithm
from stable_baselines3.common.vec_env import DummyVecEnv, VecEnv, VecFrameStack, VecNormalize

from sb3_trpo import TRPO, DeployedPolicy, MaskableRecurrentTRPO, MaskableTRPO, RecurrentTRPO
from sb3_trpo.cli import main
from sb3_trpo.commands.export import find_model, read_model

SHORT: dict[str, Any] = {"n_steps": 64, "batch_size": 64, "seed": 0, "device": "cpu"}


def make_run(folder: Path, model: BaseAlgorithm, normalize: bool = True) -> Path:
    """
    Leave a run as RL Zoo does.

    :param folder: to be made
    :param model: the final model
    :param normalize: whether its settings say that it was trained with ``VecNormalize``
    :return: the folder
    """
    (folder / "Task-v1").mkdir(parents=True)
    (folder / "Task-v1" / "args.yml").write_text("env: Task-v1\n")
    (folder / "Task-v1" / "config.yml").write_text(f"normalize: {str(normalize).lower()}\n")
    model.save(folder / "Task-v1.zip")
    statistics = model.get_vec_normalize_env()
    if statistics is not None:
        statistics.save(str(folder / "Task-v1" / "vecnormalize.pkl"))
    return folder


def envs(observations: str = "float32", actions: str = "Box", n: int = 2) -> VecEnv:
    return DummyVecEnv([lambda: SpacesEnv(OBSERVATION_SPACES[observations], ACTION_SPACES[actions])] * n)


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return the folder of a run whose schedules are functions."""
    model = TRPO("MlpPolicy", VecNormalize(envs(), clip_obs=3.0), learning_rate=lambda left: 1e-3 * left, **SHORT)
    return make_run(tmp_path_factory.mktemp("runs") / "Task-v1_1", model.learn(128))


def refused(*arguments: object) -> str:
    with pytest.raises(SystemExit) as end:
        main(["export", *map(str, arguments)])
    text = str(end.value.code)
    assert text.startswith("sb3-trpo export: ")
    assert "\n" not in text
    return text


@pytest.mark.parametrize("algorithm", [TRPO, PPO, A2C, sb3_contrib.TRPO])
@pytest.mark.parametrize("observations", ["float32", "float64-2d", "Dict", "image"])
def test_a_model_comes_with_its_statistics(algorithm: Any, observations: str, tmp_path: Path) -> None:
    """And says nothing, whatever it was trained by: its hyperparameters are not exported."""
    space = OBSERVATION_SPACES[observations]
    policy, policy_kwargs = policy_for(space)
    keys = ["vector"] if isinstance(space, spaces.Dict) else None
    env = envs(observations) if observations == "image" else VecNormalize(envs(observations), norm_obs_keys=keys)
    model = algorithm(policy, env, policy_kwargs=policy_kwargs, n_steps=64, seed=0, device="cpu").learn(128)
    make_run(tmp_path / "run", model, observations != "image")
    read = DeployedPolicy(read_model(find_model(tmp_path / "run")))
    expected = DeployedPolicy(model)
    assert read.observation_space == expected.observation_space
    drawn = expected.observation_space.sample()
    batch: Any = (
        {k: th.as_tensor(v)[None] for k, v in drawn.items()} if isinstance(drawn, dict) else th.tensor(drawn)[None]
    )
    assert th.equal(read(batch), expected(batch))


def test_a_folder_of_ones_own_may_hold_a_model_and_its_statistics(run: Path, tmp_path: Path) -> None:
    shutil.copy(run / "Task-v1.zip", tmp_path / "model.zip")
    shutil.copy(run / "Task-v1" / "vecnormalize.pkl", tmp_path)
    obs = th.ones(1, *OBSERVATION_SPACES["float32"].shape)
    read = read_model(find_model(tmp_path))
    assert read.get_vec_normalize_env() is not None
    assert th.equal(DeployedPolicy(read)(obs), DeployedPolicy(read_model(find_model(run)))(obs))


def test_what_exists_stays(run: Path, tmp_path: Path) -> None:
    (tmp_path / "policy.onnx").write_text("mine")
    for output in (tmp_path / "policy.onnx", tmp_path / "policy"):
        assert "policy.onnx exists: give another name with --output." in refused(run, "-o", output)
    assert (tmp_path / "policy.onnx").read_text() == "mine"


def test_where_no_model_can_be_told(run: Path, tmp_path: Path) -> None:
    assert "'nowhere' is no folder" in refused("nowhere")
    assert "has no model (a .zip)" in refused(tmp_path)
    assert f"is no run, but holds 1: name one, such as {run}." in refused(run.parent)
    stopped = shutil.copytree(run, tmp_path / "Task-v1_2")
    (stopped / "Task-v1.zip").rename(stopped / "best_model.zip")
    assert "has no final model, but best_model.zip: name the one that you mean" in refused(stopped)
    (tmp_path / "model.zip").write_text("no archive")
    assert "model.zip is no model of Stable-Baselines3." in refused(tmp_path / "model.zip")


def test_a_policy_without_its_statistics_is_refused(run: Path, tmp_path: Path) -> None:
    broken = shutil.copytree(run, tmp_path / "Task-v1_3")
    (broken / "Task-v1" / "vecnormalize.pkl").unlink()
    assert "was trained with VecNormalize, but" in refused(broken)
    # Four frames reach the policy, of which each was normalised.
    stacked = VecFrameStack(VecNormalize(envs()), 4)
    make_run(tmp_path / "stacked", TRPO("MlpPolicy", stacked, **SHORT))
    assert "its statistics are not those of the environment's observations" in refused(tmp_path / "stacked")


MASKED = SpacesEnv(VECTOR, ACTION_SPACES["Discrete"])


@pytest.mark.parametrize(
    ("make", "reason"),
    [
        (lambda: MaskableTRPO("MlpPolicy", MASKED, **SHORT), "takes masks or has a memory"),
        (lambda: RecurrentTRPO("MlpLstmPolicy", "CartPole-v1", **SHORT), "takes masks or has a memory"),
        (lambda: MaskableRecurrentTRPO("MlpLstmPolicy", MASKED, **SHORT), "takes masks or has a memory"),
        (lambda: sb3_contrib.RecurrentPPO("MlpLstmPolicy", "CartPole-v1", **SHORT), "takes masks or has a memory"),
        (lambda: SAC("MlpPolicy", "Pendulum-v1", buffer_size=100), "only policies of TRPO, PPO and A2C can"),
        (
            lambda: TRPO(TwoHeadsPolicy, "CartPole-v1", **SHORT),
            "A model with classes of your own is exported in Python",
        ),
    ],
)
def test_what_can_not_be_exported_is_said_in_a_sentence(make: Any, reason: str, tmp_path: Path) -> None:
    make().save(tmp_path / "model.zip")
    assert reason in refused(tmp_path)
    assert [file.name for file in tmp_path.iterdir()] == ["model.zip"]


def test_code_does_not_run(run: Path, tmp_path: Path) -> None:
    trace = tmp_path / "trace"
    evil = shutil.copytree(run, tmp_path / "Task-v1_4")
    (evil / "Task-v1" / "vecnormalize.pkl").write_bytes(pickle.dumps({"obs_rms": hostile.Payload(trace)}))
    assert hostile.HOLDS_OPEN in refused(evil)
    (evil / "Task-v1.zip").write_bytes(
        hostile.with_attributes(
            hostile.members_of(TRPO("MlpPolicy", "CartPole-v1", **SHORT)),
            gamma=hostile.serialized(hostile.Payload(trace)),
        )
    )
    assert hostile.HOLDS_OPEN in refused(evil)
    assert not trace.exists()
