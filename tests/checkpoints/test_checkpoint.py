"""
A training that is killed and goes on ends as if it had not been killed, bit for bit; where the environments can't be
saved, it goes on with new episodes, and says so.
"""

import json
import os
import random
import resource
import signal
import subprocess
import sys
import zipfile
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pytest
import torch as th
from combinations import each_once
from stable_baselines3 import DQN, PPO
from stable_baselines3.common.base_class import BaseAlgorithm
from stable_baselines3.common.callbacks import BaseCallback, CallbackList, EvalCallback
from stable_baselines3.common.env_util import make_vec_env
from stable_baselines3.common.logger import Figure
from stable_baselines3.common.utils import LinearSchedule
from stable_baselines3.common.vec_env import SubprocVecEnv, VecFrameStack, VecNormalize
from updates import Crash, changed, state

from sb3_trpo import TRPO, GrowingHorizon, PolicyAverage
from sb3_trpo.checkpoints import Checkpoint, Checkpointable
from sb3_trpo.checkpoints.checkpoint import read_note
from sb3_trpo.checkpoints.offered_state import offers_state
from sb3_trpo.checkpoints.tree import pack, unpack
from sb3_trpo.validation.values import UserError

N_ENVS, N_STEPS = 2, 64
ROLLOUT = N_ENVS * N_STEPS
TOTAL = 6 * ROLLOUT
SETTINGS: dict[str, Any] = {"n_steps": N_STEPS, "batch_size": 32, "seed": 0, "device": "cpu"}
SETTINGS["policy_kwargs"] = {"net_arch": [8]}


class Setup:
    """
    What a training is made of.

    :param task: of Gymnasium
    :param wrap: its vectorised environments
    :param algorithm: to train with
    :param env_kwargs: of ``make_vec_env``
    :param kwargs: of the algorithm
    """

    def __init__(
        self,
        task: str,
        wrap: Any = lambda env: env,
        algorithm: Any = TRPO,
        env_kwargs: dict[str, Any] | None = None,
        **kwargs: Any,
    ) -> None:
        self.task, self.wrap, self.algorithm = task, wrap, algorithm
        self.env_kwargs = env_kwargs or {}
        self.kwargs = kwargs

    def env(self, seed: int = 0, n_envs: int = N_ENVS) -> Any:
        return self.wrap(make_vec_env(self.task, n_envs, seed=seed, **self.env_kwargs))

    def model(self) -> Any:
        return self.algorithm("MlpPolicy", self.env(), **{**SETTINGS, **self.kwargs})

    def evaluation(self, folder: Path) -> EvalCallback:
        # Three evaluations in a training.
        return EvalCallback(self.env(7, 1), eval_freq=2 * N_STEPS - 7, n_eval_episodes=2, verbose=0, log_path=folder)


def crash_and_go_on(setup: Setup, folder: Path, at: int, every: int = 2, callbacks: Any = None) -> tuple[Any, Any]:
    """
    Crash a training, and go on with it.

    :param setup: of the training
    :param folder: for the checkpoint
    :param at: step of the crash
    :param every: updates between checkpoints
    :param callbacks: makes further callbacks
    :return: the model at its end, and its Checkpoint
    """
    path = folder / "checkpoint.zip"
    others = callbacks or list
    model = setup.model()
    with pytest.raises(InterruptedError):
        model.learn(TOTAL, [Checkpoint(path, every), *others(), Crash(at)])
    checkpoint = Checkpoint(path, every)
    # Whatever the process has done before plays no part.
    th.manual_seed(99)
    random.seed(99)
    model.env.close()
    resumed = checkpoint.load(setup.env(seed=5), setup.algorithm, device="cpu")
    resumed.learn(TOTAL, [checkpoint, *others()])
    return resumed, checkpoint


def assert_same_end(expected: BaseAlgorithm, found: BaseAlgorithm) -> None:
    assert not changed(state(expected), state(found))
    assert expected.num_timesteps == found.num_timesteps == TOTAL
    assert expected._n_updates == found._n_updates  # type: ignore[attr-defined]
    np.testing.assert_array_equal(expected._last_obs, found._last_obs)  # type: ignore[arg-type]
    assert [(info["r"], info["l"]) for info in expected.ep_info_buffer or []] == [
        (info["r"], info["l"]) for info in found.ep_info_buffer or []
    ]
    first, second = expected.get_vec_normalize_env(), found.get_vec_normalize_env()
    if first is not None and second is not None:
        assert first.obs_rms.mean.tobytes() == second.obs_rms.mean.tobytes()  # type: ignore[union-attr]
        assert first.ret_rms.var.tobytes() == second.ret_rms.var.tobytes()


SETUPS = {
    "CartPole": Setup("CartPole-v1"),
    "every option": Setup(
        "Pendulum-v1",
        lambda env: VecFrameStack(VecNormalize(env), 2),
        cg_warm_start=True,
        adaptive_kl=True,
        ent_coef=0.01,
        noise_correlation=0.7,
        learning_rate=LinearSchedule(1e-3, 0.0, 1.0),
        target_kl=LinearSchedule(0.02, 0.0, 1.0),
        env_kwargs={"env_kwargs": {"g": 9.81}},
    ),
    "gSDE": Setup("Pendulum-v1", VecNormalize, use_sde=True, sde_sample_freq=5),
    "gSDE, noise once a rollout": Setup("Pendulum-v1", use_sde=True),
    "processes": Setup(
        "Pendulum-v1", VecNormalize, env_kwargs={"vec_env_cls": SubprocVecEnv, "wrapper_class": Checkpointable}
    ),
    "PPO": Setup("CartPole-v1", VecNormalize, algorithm=PPO, n_epochs=2),
}
MUJOCO = {task: Setup(task, VecNormalize) for task in ("InvertedPendulum-v5", "Hopper-v5")}


# Parts of "every option", or the same again by another way.
LONG = {"CartPole", "gSDE, noise once a rollout", "InvertedPendulum-v5"}


@pytest.mark.parametrize(
    "name", [pytest.param(name, marks=pytest.mark.slow if name in LONG else ()) for name in (*SETUPS, *MUJOCO)]
)
def test_a_crash_changes_nothing(name, tmp_path):
    if name in MUJOCO:
        pytest.importorskip("mujoco", reason="needs sb3-trpo[mujoco]")
    setup = {**SETUPS, **MUJOCO}[name]
    expected = setup.model()
    # In the middle of the fifth rollout; the last checkpoint was written before it, or one earlier.
    with_evaluations = "vec_env_cls" not in setup.env_kwargs

    def evaluations(folder: Path) -> list[Any]:
        return [setup.evaluation(folder)] if with_evaluations else []

    expected.learn(TOTAL, CallbackList(evaluations(tmp_path / "expected")))
    random_number = th.rand(1)
    found, checkpoint = crash_and_go_on(setup, tmp_path, 5 * ROLLOUT - 20, 3, lambda: evaluations(tmp_path / "found"))
    assert torch_is_where_it_was(random_number)
    assert checkpoint.why_reset == ""
    assert_same_end(expected, found)
    if with_evaluations:
        files = (np.load(tmp_path / folder / "evaluations.npz") for folder in ("expected", "found"))
        first, second = ({key: file[key].tolist() for key in file} for file in files)
        assert first == second
        assert len(first["timesteps"]) == 3
    expected.env.close()
    found.env.close()


def torch_is_where_it_was(random_number: th.Tensor) -> bool:
    return bool((th.rand(1) == random_number).all())


@pytest.mark.parametrize("at", [1, ROLLOUT, ROLLOUT + 1, 2 * ROLLOUT, TOTAL])
def test_wherever_the_crash_comes(at, tmp_path):
    setup = SETUPS["CartPole"]
    found, _ = crash_and_go_on(setup, tmp_path, at)
    assert_same_end(setup.model().learn(TOTAL), found)


def test_crash_after_crash(tmp_path):
    setup, path = SETUPS["CartPole"], tmp_path / "checkpoint.zip"
    expected = setup.model().learn(TOTAL)
    for at in (ROLLOUT + 10, ROLLOUT + 20, 3 * ROLLOUT + 5, 4 * ROLLOUT, 10**9):
        checkpoint = Checkpoint(path, 1)
        model = checkpoint.load(setup.env(), device="cpu") if checkpoint.exists() else setup.model()
        try:
            model.learn(TOTAL, [checkpoint, Crash(at)])
        except InterruptedError:
            continue
    assert_same_end(expected, model)
    # A training that has come to its end comes to it once more.
    checkpoint = Checkpoint(path, 1)
    again = checkpoint.load(setup.env(), device="cpu").learn(TOTAL, checkpoint)
    assert_same_end(expected, again)


def test_checkpoints_do_not_change_what_is_learned(tmp_path):
    setup = Setup("Pendulum-v1", VecNormalize, use_sde=True)
    plain = setup.model().learn(TOTAL)
    with_checkpoints = setup.model().learn(TOTAL, Checkpoint(tmp_path / "checkpoint.zip", 1))
    assert_same_end(plain, with_checkpoints)


def test_without_a_state_training_goes_on_with_new_episodes(tmp_path):
    pytest.importorskip("Box2D", reason="needs sb3-trpo[box2d]")
    setup = Setup("LunarLander-v3", VecNormalize)
    with pytest.warns(UserWarning, match=r"goes on with new episodes, not where they were: LunarLander\['world'\]"):
        found, checkpoint = crash_and_go_on(setup, tmp_path, 3 * ROLLOUT)
    assert "world" in checkpoint.why_reset
    assert found.num_timesteps == TOTAL
    # Each step's observations, and those of three resets, are in the statistics: 2 updates, then 4.
    assert found.get_vec_normalize_env().obs_rms.count == pytest.approx(TOTAL + 2 * N_ENVS + 1e-4, abs=1e-3)


def test_envpool_goes_on_with_new_episodes(tmp_path):
    pytest.importorskip("envpool", reason="needs sb3-trpo[envpool]")
    from sb3_trpo.envpool import make_envpool_vec_env

    path = tmp_path / "checkpoint.zip"
    # Without a wrapper its observations lie in the pool's memory.
    TRPO("MlpPolicy", make_envpool_vec_env("Pendulum-v1", N_ENVS, 0), **SETTINGS).learn(
        4 * ROLLOUT, Checkpoint(path, 3)
    )
    checkpoint = Checkpoint(path)
    model = checkpoint.load(make_envpool_vec_env("Pendulum-v1", N_ENVS, 0), device="cpu")
    with pytest.warns(UserWarning, match="goes on with new episodes.*EnvPoolVecEnv"):
        model.learn(TOTAL, checkpoint)
    assert model.num_timesteps == TOTAL


def test_a_checkpoint_is_a_model_too(tmp_path):
    setup, path = SETUPS["every option"], tmp_path / "checkpoint.zip"
    model = setup.model().learn(TOTAL, Checkpoint(path, 5))
    for trusted in (True, False):
        loaded = TRPO.load(path, device="cpu", trusted=trusted)
        assert loaded.num_timesteps == 5 * ROLLOUT
        obs = setup.env().reset()
        assert loaded.predict(obs)[0].shape == model.predict(obs)[0].shape
    with zipfile.ZipFile(path) as archive:
        assert {"data", "policy.pth", "training_state"} <= set(archive.namelist())


def test_it_can_be_read_without_trust(tmp_path):
    setup, path = SETUPS["every option"], tmp_path / "checkpoint.zip"
    expected = setup.model().learn(TOTAL, Checkpoint(path, 4))
    checkpoint = Checkpoint(path, 4)
    found = checkpoint.load(setup.env(), device="cpu", trusted=False)
    assert_same_end(expected, found.learn(TOTAL, checkpoint))


def test_log_goes_on_in_the_same_folder(tmp_path):
    pytest.importorskip("tensorboard", reason="needs sb3-trpo[zoo]")
    setup = Setup("CartPole-v1", tensorboard_log=str(tmp_path / "logs"))
    found, _ = crash_and_go_on(setup, tmp_path, 5 * ROLLOUT)
    assert [folder.name for folder in (tmp_path / "logs").iterdir()] == ["TRPO_1"]
    assert found.logger.get_dir() == str(tmp_path / "logs" / "TRPO_1")


class Tally(BaseCallback):
    """Counts episodes, and offers the count."""

    n_episodes = 0

    def _on_step(self) -> bool:
        self.n_episodes += int(np.count_nonzero(self.locals["dones"]))
        return True

    def get_checkpoint_state(self) -> Any:
        return self.n_episodes

    def set_checkpoint_state(self, state: Any) -> None:
        self.n_episodes = state


def test_a_callback_can_offer_its_state(tmp_path):
    setup = SETUPS["CartPole"]
    counted = Tally()
    setup.model().learn(TOTAL, counted)
    tallies: list[Tally] = []

    def tally() -> list[BaseCallback]:
        tallies.append(Tally())
        return [tallies[-1]]

    crash_and_go_on(setup, tmp_path, 5 * ROLLOUT, callbacks=tally)
    assert tallies[-1].n_episodes == counted.n_episodes > 0
    assert tallies[-1].n_calls == counted.n_calls


def test_a_checkpoint_is_not_overwritten_by_another_training(tmp_path):
    setup, path = SETUPS["CartPole"], tmp_path / "checkpoint.zip"
    checkpoint = Checkpoint(path, 1)
    model = setup.model().learn(ROLLOUT, checkpoint)
    before = path.read_bytes()
    with pytest.raises(FileExistsError, match="is the checkpoint of another training: go on from it"):
        setup.model().learn(ROLLOUT, Checkpoint(path))
    assert path.read_bytes() == before
    # The same training may go on.
    model.learn(ROLLOUT, checkpoint, reset_num_timesteps=False)
    assert TRPO.load(path, device="cpu").num_timesteps == ROLLOUT


def test_bad_input_gets_one_sentence(tmp_path):
    with pytest.raises(ValueError, match="every is 0, but must be an integer of at least 1"):
        Checkpoint(tmp_path / "c.zip", 0)
    SETUPS["CartPole"].model().save(tmp_path / "model.zip")
    with pytest.raises(ValueError, match=r"model.zip is no checkpoint: it has no state of a training"):
        Checkpoint(tmp_path / "model.zip").load(SETUPS["CartPole"].env(), device="cpu")
    (tmp_path / "text.zip").write_text("no zip")
    with pytest.raises(ValueError, match="zip"):
        Checkpoint(tmp_path / "text.zip").load(SETUPS["CartPole"].env(), device="cpu")
    with pytest.raises(ValueError, match="for algorithms without a replay buffer"):
        DQN("MlpPolicy", "CartPole-v1", device="cpu").learn(10, Checkpoint(tmp_path / "d.zip"))
    checkpoint = Checkpoint(tmp_path / "c.zip")
    SETUPS["CartPole"].model().learn(ROLLOUT, checkpoint)
    other = Checkpoint(tmp_path / "c.zip")
    model = other.load(VecNormalize(SETUPS["CartPole"].env()), device="cpu")
    with pytest.raises(ValueError, match="The checkpoint is of 2 environments"):
        model.learn(ROLLOUT, other)


SCRIPT = """
import os, signal, sys
from pathlib import Path
import test_checkpoint as t

class Kill(t.BaseCallback):
    def _on_training_start(self):
        self.at = self.model.num_timesteps + int(sys.argv[4])
        # At any line at all, when so much time of a processor is used; it does not matter what else runs.
        signal.setitimer(signal.ITIMER_PROF, float(sys.argv[5]))

    def _on_step(self):
        if self.model.num_timesteps > self.at:
            os.kill(os.getpid(), signal.SIGKILL)
        return True

if __name__ == "__main__":
    setup = t.Setup(sys.argv[2], t.VecNormalize)
    checkpoint = t.Checkpoint(Path(sys.argv[1], "checkpoint"), 1)
    model = checkpoint.load(setup.env(), device="cpu") if checkpoint.exists() else setup.model()
    model.learn(int(sys.argv[3]), [checkpoint, Kill()] if len(sys.argv) > 4 else checkpoint)
    model.save(Path(sys.argv[1], "model.zip"))
"""


def run(folder: Path, task: str, total: int, *life: object) -> int:
    """
    Train in a process of its own, which is killed perhaps.

    :param folder: the folder of the training
    :param task: a task of Gymnasium
    :param total: the number of steps
    :param life: after how many steps, and how many seconds of a processor, the process is killed; nothing for never
    :return: the exit code of a process that begins the training, or goes on with it
    """
    here = Path(__file__).parent
    path = os.pathsep.join([str(here), str(here.parent / "helpers"), *filter(None, [os.environ.get("PYTHONPATH")])])
    env = {**os.environ, "PYTHONPATH": path, "OMP_NUM_THREADS": "1"}
    command = [sys.executable, "-W", "ignore", "-c", SCRIPT, str(folder), task, str(total), *map(str, life)]
    return subprocess.run(command, env=env, check=False).returncode


@pytest.mark.parametrize(
    ("task", "n_kills"),
    [
        pytest.param("Pendulum-v1", 1, marks=pytest.mark.slow),
        pytest.param("HalfCheetah-v5", 20, marks=pytest.mark.slow),
    ],
)
def test_killed_processes(task, n_kills, tmp_path):
    rng, total = random.Random(0), (3 * n_kills + 1) * ROLLOUT
    for _ in range(n_kills):
        # Before its fourth checkpoint, so that none comes to the end.
        assert run(tmp_path, task, total, rng.randint(1, 3 * ROLLOUT), rng.uniform(1.0, 20.0)) < 0
        assert TRPO.load(tmp_path / "checkpoint.zip", device="cpu").num_timesteps < total
    assert run(tmp_path, task, total) == 0
    expected = Setup(task, VecNormalize).model().learn(total)
    found = TRPO.load(tmp_path / "model.zip", device="cpu")
    assert found.num_timesteps == expected.num_timesteps
    assert not changed(state(expected), state(found))


def test_a_checkpoint_takes_the_place_of_the_last_as_a_whole(tmp_path):
    setup, path = SETUPS["CartPole"], tmp_path / "checkpoint.zip"
    checkpoint = Checkpoint(path, 1)
    model = setup.model().learn(ROLLOUT, checkpoint)
    before = path.read_bytes()
    # A limit on the size of files, in the middle of the next.
    limits, handler = resource.getrlimit(resource.RLIMIT_FSIZE), signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (len(before) // 2, limits[1]))
    try:
        with pytest.warns(
            UserWarning, match=rf"No checkpoint was written after {ROLLOUT} steps: .*File too large.*{path}"
        ):
            model.learn(ROLLOUT, checkpoint, reset_num_timesteps=False)
        with pytest.raises(OSError, match="File too large"):
            setup.model().learn(ROLLOUT, Checkpoint(tmp_path / "other.zip"))
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
        signal.signal(signal.SIGXFSZ, handler)
    assert model.num_timesteps == 2 * ROLLOUT
    assert path.read_bytes() == before
    assert [file.name for file in tmp_path.iterdir()] == ["checkpoint.zip"]


NAMES = ["checkpoint.zip", "checkpoint", "v1.5", "folder", "link", "dangling", "new/one", "~/home"]


@pytest.mark.parametrize(("name", "kind"), each_once(NAMES, {"str": str, "Path": Path}))
@pytest.mark.filterwarnings("ignore:Path .* does not exist", "ignore:Path .* is a folder")
def test_every_path_leads_to_the_same_file(name, kind, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HOME", str(tmp_path))
    (tmp_path / "folder.zip").mkdir()
    (tmp_path / "link.zip").symlink_to("real.zip")
    (tmp_path / "dangling.zip").symlink_to("elsewhere.zip")
    setup = SETUPS["CartPole"]
    first, again = Checkpoint(kind(name), 1), Checkpoint(kind(name), 1)
    assert not first.exists()
    # A task may change the current folder.
    (tmp_path / "other").mkdir()
    monkeypatch.chdir(tmp_path / "other")
    setup.model().learn(2 * ROLLOUT, first)
    assert again.exists()
    assert again.load(setup.env(), device="cpu").num_timesteps == ROLLOUT
    with pytest.raises(FileExistsError, match="of another training"):
        setup.model().learn(ROLLOUT, Checkpoint(first.path))


def test_what_a_checkpoint_holds_is_data(tmp_path):
    path = tmp_path / "checkpoint.zip"
    SETUPS["every option"].model().learn(ROLLOUT, Checkpoint(path, note={"made by": "a test"}))
    with zipfile.ZipFile(path) as archive:
        content = archive.read("training_state")
    length = int.from_bytes(content[8:16], "little")
    tree = json.loads(content[16 : 16 + length])
    assert tree[0] == "dict"
    # No pickle in it, at any depth.
    assert b"\x80\x04\x95" not in content
    assert b"\x80\x05\x95" not in content


def changed_by_a_stranger(path: Path, change: Any) -> None:
    """
    Change a checkpoint as a stranger could.

    :param path: a checkpoint
    :param change: changes what ``training_state`` holds, in place
    """
    with zipfile.ZipFile(path) as archive:
        members = {name: archive.read(name) for name in archive.namelist()}
    file = unpack(members["training_state"])
    training = unpack(file["state"])
    change(training)
    members["training_state"] = pack({**file, "state": pack(training)})
    with zipfile.ZipFile(path, "w") as archive:
        for name, content in members.items():
            archive.writestr(name, content)


def set_paths(training: dict[str, Any]) -> None:
    for callback in training["callbacks"]:
        for name in ("path", "log_path", "best_model_save_path"):
            callback["numbers"][name] = "victim/of_a_stranger"


@pytest.mark.parametrize("trusted", [True, False])
def test_no_path_of_a_callback_is_set(trusted, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    setup, path = SETUPS["CartPole"], tmp_path / "checkpoint.zip"
    setup.model().learn(2 * ROLLOUT, [Checkpoint(path, 1), setup.evaluation(tmp_path / "logs")])
    changed_by_a_stranger(path, set_paths)
    checkpoint, evaluation = Checkpoint(path, 1), setup.evaluation(tmp_path / "logs")
    checkpoint.load(setup.env(), device="cpu", trusted=trusted).learn(TOTAL, [checkpoint, evaluation])
    assert checkpoint.path == path
    assert not (tmp_path / "victim").exists()


MISFITS: dict[str, Any] = {
    "a text as a count": lambda training: training["counters"].update(num_timesteps="1"),
    "a negative count": lambda training: training["counters"].update(num_timesteps=-1),
    "observations of another shape": lambda training: training["observations"].update(_last_obs=np.zeros((9, 9))),
    "a text as a reward": lambda training: training["callbacks"][0]["numbers"].update(n_calls="x"),
    "no callbacks": lambda training: training.pop("callbacks"),
    "an environment that is none": lambda training: training.update(env=3),
    "torch's random numbers are few": lambda training: training.update(torch=[np.zeros(3, np.uint8)]),
    "episodes that are none": lambda training: training["episodes"].update(ep_info_buffer=3),
}


@pytest.mark.parametrize("name", MISFITS)
def test_values_of_another_type_or_shape_are_told(name, tmp_path):
    setup, path = SETUPS["CartPole"], tmp_path / "checkpoint.zip"
    setup.model().learn(2 * ROLLOUT, Checkpoint(path, 1))
    changed_by_a_stranger(path, MISFITS[name])
    checkpoint = Checkpoint(path, 1)
    model = checkpoint.load(setup.env(), device="cpu", trusted=False)
    with pytest.raises(UserError, match=r"does not fit this training|is damaged"):
        model.learn(TOTAL, checkpoint)


@pytest.mark.parametrize(
    "damage", ["cut", "changed", "empty", "text", "folder", "a model", "foreign state", "gone", "device"]
)
def test_whatever_lies_there_is_told_in_one_sentence(damage, tmp_path):
    setup, path = SETUPS["CartPole"], tmp_path / "checkpoint.zip"
    setup.model().learn(ROLLOUT, Checkpoint(path))
    content = path.read_bytes()
    path.unlink()
    if damage == "folder":
        path.mkdir()
    elif damage == "device":
        path.symlink_to("/dev/zero")
    elif damage == "a model":
        setup.model().save(path)
    elif damage == "foreign state":
        with zipfile.ZipFile(path, "w") as archive:
            archive.writestr("training_state", b"something else")
    elif damage != "gone":
        middle = len(content) // 2
        changes = {"cut": content[:middle], "empty": b"", "text": b"no zip"}
        path.write_bytes(changes.get(damage, content[:middle] + bytes(99) + content[middle + 99 :]))
    with pytest.raises(UserError, match=r"checkpoint\.zip") as told:
        read_note(path)
    assert "\n" not in str(told.value)


def test_evaluation_environments_that_are_reset_are_told(tmp_path):
    # Processes without the wrapper that lets checkpoints in.
    setup = Setup("CartPole-v1")
    envs = []

    def evaluation() -> list[BaseCallback]:
        envs.append(make_vec_env("CartPole-v1", 1, seed=7, vec_env_cls=SubprocVecEnv))
        return [EvalCallback(envs[-1], eval_freq=2 * N_STEPS - 7, n_eval_episodes=1, verbose=0)]

    with pytest.warns(UserWarning, match="evaluation environments of EvalCallback go on with new episodes"):
        crash_and_go_on(setup, tmp_path, 5 * ROLLOUT, callbacks=evaluation)
    for env in envs:
        env.close()


class Foreign(PPO):
    """Keeps a state of its own, and says nothing of it."""


class LstmStates(NamedTuple):
    """Of the actor and of the critic."""

    pi: tuple[th.Tensor, ...]
    vf: tuple[th.Tensor, ...]


class Recurrent(TRPO):
    """Keeps the states of an LSTM, and says so."""

    lstm_states = LstmStates((th.zeros(1, 2, 4), th.zeros(1, 2, 4)), (th.zeros(1, 2, 4), th.zeros(1, 2, 4)))

    def collect_rollouts(self, *args: Any, **kwargs: Any) -> bool:
        self.lstm_states = LstmStates(*[tuple(x + 1 for x in pair) for pair in self.lstm_states])
        return super().collect_rollouts(*args, **kwargs)

    def get_checkpoint_state(self) -> dict[str, Any]:
        return {**super().get_checkpoint_state(), "lstm_states": self.lstm_states}

    def set_checkpoint_state(self, state: dict[str, Any]) -> None:
        super().set_checkpoint_state(state)
        self.lstm_states = state["lstm_states"]

    def _excluded_save_params(self) -> list[str]:
        return [*super()._excluded_save_params(), "lstm_states"]


def test_an_algorithm_that_does_not_say_what_its_state_is_is_named(tmp_path):
    model = Setup("CartPole-v1", algorithm=Foreign, n_epochs=1).model()
    with pytest.warns(UserWarning, match="Foreign does not say what its state is"):
        model.learn(ROLLOUT, Checkpoint(tmp_path / "checkpoint.zip"))


def test_an_algorithm_can_offer_its_state(tmp_path):
    setup = Setup("Pendulum-v1", algorithm=Recurrent, noise_correlation=0.5)
    expected = setup.model().learn(TOTAL)
    found, _ = crash_and_go_on(setup, tmp_path, 5 * ROLLOUT)
    assert_same_end(expected, found)
    assert type(found.lstm_states) is LstmStates
    assert th.equal(found.lstm_states.pi[0], expected.lstm_states.pi[0])


class Broken(Tally):
    """Can't say what its state is."""

    def get_checkpoint_state(self) -> Any:
        raise RuntimeError("not now")


class Drawing(BaseCallback):
    """Logs what no file can hold, and puts it into episodes."""

    def _on_step(self) -> bool:
        self.logger.record("drawing", Figure(None, close=True))
        self.model.ep_info_buffer.append({"r": 1.0, "l": 1, "t": 0.0, "x": object()})  # type: ignore[union-attr]
        return True


@pytest.mark.parametrize("make", [Broken, Drawing])
def test_no_checkpoint_ends_a_training(make, tmp_path):
    setup, path = SETUPS["CartPole"], tmp_path / "checkpoint.zip"
    assert setup.model().learn(TOTAL, [Checkpoint(path, 1), make()]).num_timesteps == TOTAL
    checkpoint = Checkpoint(path, 1)
    model = checkpoint.load(setup.env(), device="cpu")
    if make is Broken:
        with pytest.warns(UserWarning, match="state of Broken could not be saved .*not now"):
            model.learn(TOTAL, [checkpoint, make()])
    else:
        model.learn(TOTAL, [checkpoint, make()])
    assert model.num_timesteps == TOTAL


@pytest.mark.parametrize("make", [PolicyAverage, Tally])
def test_callbacks_that_offer_a_state_are_told_from_others(make):
    assert offers_state(make())
    assert not offers_state(GrowingHorizon())
