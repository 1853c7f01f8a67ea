"""
The command line, run for real: one short training, and every other command on what it left behind.
"""

import argparse
import contextlib
import csv
import errno
import io
import os
import pickle
import re
import resource
import signal
import subprocess
import sys
from pathlib import Path

import gymnasium
import numpy as np
import pytest
import yaml

pytest.importorskip("rl_zoo3", reason="needs sb3-trpo[zoo]")

import matplotlib.pyplot as plt
import rl_zoo3.train
from stable_baselines3.common.env_util import make_vec_env
from stable_baselines3.common.monitor import load_results
from stable_baselines3.common.save_util import load_from_zip_file
from stable_baselines3.common.vec_env import VecNormalize

from sb3_trpo import TRPO, __version__, diagnose
from sb3_trpo.cli import COMMANDS, Command, main
from sb3_trpo.rl_zoo.algorithms import ALGORITHMS
from sb3_trpo.rl_zoo.report import EVAL_SEED_OFFSET, N_EVAL_EPISODES, ReportingExperimentManager, draw_learning_curve

TASK = "MountainCarContinuous-v0"
HYPERPARAMETERS = ALGORITHMS["trpo"].hyperparameters
TASKS = yaml.safe_load(HYPERPARAMETERS.read_text())
SHORT = ["--seed", "0", "--num-threads", "1", "--device", "cpu", "--verbose", "0"]
RUN = Path("logs") / "trpo" / f"{TASK}_1"

# The plots are shown at the end; not on the screen of whoever runs the tests.
plt.switch_backend("Agg")


@pytest.fixture(scope="module")
def training(tmp_path_factory) -> tuple[Path, str]:
    """Return the folder in which ``train`` was run, and what it printed."""
    folder = tmp_path_factory.mktemp("training")
    train = ["train", "--env", TASK, "-n", "8192", "--eval-freq", "4096", "--eval-episodes", "2", *SHORT]
    output = io.StringIO()
    with pytest.MonkeyPatch.context() as patch, contextlib.redirect_stdout(output):
        patch.chdir(folder)
        main(train)
    return folder, output.getvalue()


@pytest.fixture
def trained(training, monkeypatch) -> None:
    """Work where ``train`` was run."""
    monkeypatch.chdir(training[0])


@pytest.fixture
def in_temporary_folder(tmp_path, monkeypatch) -> None:
    monkeypatch.chdir(tmp_path)


@pytest.mark.usefixtures("trained")
def test_train_leaves_the_files_that_tools_expect():
    for file in ("best_model.zip", f"{TASK}.zip", "0.monitor.csv", "7.monitor.csv", "progress.csv"):
        assert (RUN / file).stat().st_size > 0
    for file in ("config.yml", "args.yml", "vecnormalize.pkl"):
        assert (RUN / TASK / file).stat().st_size > 0
    with np.load(RUN / "evaluations.npz") as evaluations:
        assert evaluations["timesteps"].tolist() == [4096, 8192]
        assert evaluations["results"].shape == (2, 2)
    assert (RUN / "learning_curve.png").read_bytes().startswith(b"\x89PNG")
    for model in ("best_model.zip", f"{TASK}.zip"):
        assert TRPO.load(RUN / model, device="cpu").target_kl == TASKS[TASK]["target_kl"]


def test_train_ends_with_the_return_and_says_where_everything_is(training):
    output, _, diagnosis = training[1].partition("Diagnosis:")
    report = output.splitlines()[-4:]
    assert re.search(rf"deterministic, {N_EVAL_EPISODES} episodes: return -?\d+\.\d ± \d+\.\d$", report[0])
    for line, path in zip(report[1:], (RUN / f"{TASK}.zip", RUN, RUN / "learning_curve.png"), strict=True):
        assert line.endswith(f" {path}")
    assert diagnosis.strip().startswith("Nothing found")


@pytest.mark.usefixtures("trained")
def test_train_leaves_a_log_of_every_update():
    with (RUN / "progress.csv").open() as file:
        rows = list(csv.DictReader(file))
    updates = [row for row in rows if row["train/kl_divergence_loss"]]
    # An evaluation may have written an update's numbers before SB3 did. The last row has the last update's.
    assert [row["train/n_updates"] for row in updates] == [str(i + 1) for i in range(len(updates))]
    assert len(updates) == 8192 // (8 * TASKS[TASK]["n_steps"])
    assert updates[-1]["time/total_timesteps"] == "8192"
    assert rows[0]["rollout/obs_std_max"]
    record = diagnose(RUN).record
    assert record.settings.n_samples == 8 * TASKS[TASK]["n_steps"]
    assert record.settings.gae_lambda == TASKS[TASK]["gae_lambda"]


@pytest.mark.usefixtures("in_temporary_folder")
def test_train_ends_with_what_is_wrong(capsys):
    noise = ["-params", "policy_kwargs:dict(log_std_init=-5.0)", "n_steps:32", "use_sde:False"]
    with pytest.warns(UserWarning, match="hardly explores"):
        main(["train", "--env", TASK, "-n", "2560", "--eval-freq", "-1", *SHORT, *noise])
    report = capsys.readouterr().out.partition("Diagnosis:")[2].splitlines()
    assert 2 <= len(report) <= 3
    assert report[0].strip() == f"1 warning (sb3-trpo diagnose {RUN})"
    assert report[1].strip().startswith("the policy hardly explores any more: begin with more noise")


@pytest.mark.usefixtures("trained")
@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["enjoy", "--env", TASK, "-f", "logs", "--no-render", "-n", "10"], f"Loading {RUN / TASK}.zip"),
        (["enjoy", "--env", TASK, "-f", "logs", "--no-render", "-n", "10", "--load-best"], "best_model.zip"),
        (["all-plots", "--env", TASK, "-f", "logs"], "TRPO"),
    ],
)
def test_trpo_is_taken_for_granted(arguments, said, capsys):
    main(arguments)
    assert said in capsys.readouterr().out


@pytest.mark.usefixtures("trained")
def test_export(tmp_path, capsys):
    """The file acts as the model does behind its ``VecNormalize``, both loaded as SB3 loads them."""
    onnxruntime = pytest.importorskip("onnxruntime", reason="needs sb3-trpo[onnx]")
    main(["export", str(RUN), "-o", str(tmp_path / "policy")])
    (line,) = capsys.readouterr().out.splitlines()
    assert line == (
        f"Written to {tmp_path / 'policy.onnx'}, from {RUN / TASK}.zip: "
        "input observation (batch, 2) float; output action (batch, 1) float."
    )
    env = VecNormalize.load(str(RUN / TASK / "vecnormalize.pkl"), make_vec_env(TASK))
    observations = np.array([[-0.5, 0.01], [0.3, -0.05]], np.float32)
    expected, _ = TRPO.load(RUN / f"{TASK}.zip", device="cpu").predict(
        env.normalize_obs(observations), deterministic=True
    )
    session = onnxruntime.InferenceSession(tmp_path / "policy.onnx", providers=["CPUExecutionProvider"])
    (actions,) = session.run(["action"], {"observation": observations})
    np.testing.assert_allclose(actions, expected, rtol=1e-4, atol=1e-4)


@pytest.mark.usefixtures("trained")
@pytest.mark.parametrize("others", [["--episode-window", "2"], []])
def test_plot_train(others):
    main(["plot-train", "--env", TASK, "-f", "logs", *others])
    assert plt.gca().lines
    plt.close("all")
    assert Path("plot_train.png").stat().st_size > 0


@pytest.mark.usefixtures("trained")
def test_a_newest_run_without_a_model_names_one_that_has_it():
    stopped = Path("logs", "trpo", f"{TASK}_9")
    stopped.mkdir()
    with pytest.raises(SystemExit, match=r"No model found .*; --exp-id 1 has one"):
        main(["enjoy", "--env", TASK, "-f", "logs", "--no-render"])
    stopped.rmdir()


@pytest.mark.usefixtures("in_temporary_folder")
def test_modules_of_the_current_folder_are_found():
    Path("my_settings.py").write_text(
        "hyperparams = {'CartPole-v1': dict(policy='MlpPolicy', n_timesteps=64, n_steps=64, target_kl=0.0321)}"
    )
    Path("my_tasks.py").write_text("print('my tasks are imported')")
    path = list(sys.path)
    others = ["--gym-packages", "my_tasks", "--conf-file", "my_settings", "--eval-freq", "-1"]
    main(["train", "--env", "CartPole-v1", *others, *SHORT])
    assert TRPO.load("logs/trpo/CartPole-v1_1/CartPole-v1.zip", device="cpu").target_kl == 0.0321
    assert sys.path == path


def test_rl_zoo_stays_as_it_was():
    """Nothing of its ``train`` is replaced for longer than a command runs."""
    before = dict(vars(rl_zoo3.train))
    with pytest.raises(SystemExit):
        main(["train", "--trained-agent", "nowhere.zip"])
    assert dict(vars(rl_zoo3.train)) == before


def test_our_own_commands_import_nothing_that_reads_the_current_folder():
    own = [name for name, command in COMMANDS.items() if type(command) is Command]
    assert "enjoy-untrusted" in own
    code = "import sys; from sb3_trpo.cli import COMMANDS, Command, main\n"
    code += f"for name in {own}:\n    try: main([name, '--help'])\n    except SystemExit: pass\n"
    code += "print(sorted({'rl_zoo3', 'matplotlib'} & sys.modules.keys()))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=300)
    assert done.stdout.splitlines()[-1] == "[]", done.stderr


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="Linux may have no display")
@pytest.mark.usefixtures("trained")
def test_without_a_display_enjoy_says_what_works(monkeypatch):
    for name in ("DISPLAY", "WAYLAND_DISPLAY", "SDL_VIDEODRIVER", "MUJOCO_GL"):
        monkeypatch.delenv(name, raising=False)
    with pytest.raises(SystemExit, match=r"no display .* --no-render, or record it"):
        main(["enjoy", "--env", TASK, "-f", "logs"])
    main(["enjoy", "--env", TASK, "-f", "logs", "--no-render", "-n", "10"])
    assert os.environ["MUJOCO_GL"] == "egl"


@pytest.mark.usefixtures("trained")
def test_record_video():
    pytest.importorskip("pygame", reason="needs sb3-trpo[box2d]")
    main(["record-video", "--env", TASK, "-f", "logs", "-n", "10", "-o", "videos"])
    assert list(Path("videos").glob("*.mp4"))


@pytest.mark.usefixtures("in_temporary_folder")
def test_users_conf_file_wins(capsys):
    Path("mine.yml").write_text("CartPole-v1: {policy: MlpPolicy, n_timesteps: 64, n_steps: 64, target_kl: 0.0123}\n")
    main(["train", "--env", "CartPole-v1", "--conf-file", "mine.yml", "--eval-freq", "-1", *SHORT])
    data, _, _ = load_from_zip_file("logs/trpo/CartPole-v1_1/CartPole-v1.zip")
    assert data["target_kl"] == 0.0123
    assert "Loading hyperparameters from: mine.yml" in capsys.readouterr().out


@pytest.mark.usefixtures("in_temporary_folder")
def test_other_algorithms_keep_their_class_and_hyperparameters(capsys):
    assert rl_zoo3.ALGOS["ppo"].__module__.startswith("stable_baselines3.")
    short_run = ["-params", "n_steps:16", "n_envs:1", "batch_size:16", "--eval-freq", "-1", "-n", "16"]
    main(["train", "--algo", "ppo", "--env", "CartPole-v1", *short_run, *SHORT])
    assert Path("logs/ppo/CartPole-v1_1/CartPole-v1.zip").exists()
    assert str(HYPERPARAMETERS) not in capsys.readouterr().out


@pytest.mark.usefixtures("in_temporary_folder")
def test_training_in_envpool(capsys):
    pytest.importorskip("envpool", reason="needs sb3-trpo[envpool]")
    n_envs, n_steps, episode_length = 20, 110, 200
    size = ["-params", f"n_envs:{n_envs}", f"n_steps:{n_steps}", "normalize:True", "-n", "4400", "--eval-freq", "2200"]
    main(["train", "--env", "Pendulum-v1", "--vec-env", "envpool", "--eval-episodes", "2", *size, *SHORT])
    run = Path("logs/trpo/Pendulum-v1_1")
    episodes = load_results(str(run))
    assert episodes["l"].tolist() == [episode_length] * n_envs
    assert episodes["r"].between(-episode_length * 16.28, 0).all()
    with np.load(run / "evaluations.npz") as evaluations:
        assert evaluations["timesteps"].tolist() == [2200, 4400]
    with (run / "Pendulum-v1" / "vecnormalize.pkl").open("rb") as file:
        assert pickle.load(file).obs_rms.count > 4400
    assert (run / "learning_curve.png").exists()
    capsys.readouterr()

    main(["enjoy", "--env", "Pendulum-v1", "-f", "logs", "--no-render", "-n", "10"])
    assert f"Loading {run}/Pendulum-v1.zip" in capsys.readouterr().out
    # Training goes on in Gymnasium's environments.
    continued = ["-i", str(run / "Pendulum-v1.zip"), "-params", "n_envs:1", f"n_steps:{n_steps}", "normalize:True"]
    main(["train", "--env", "Pendulum-v1", *continued, "-n", "110", "--eval-freq", "-1", *SHORT])
    assert Path("logs/trpo/Pendulum-v1_2/Pendulum-v1.zip").exists()


@pytest.mark.usefixtures("in_temporary_folder")
@pytest.mark.parametrize(
    ("arguments", "named"),
    [
        pytest.param(
            ["--env", "Taxi-v4"],
            "'Taxi-v4'",
            marks=pytest.mark.skipif("Taxi-v4" not in gymnasium.registry, reason="needs Gymnasium 1.3"),
        ),
        (["--env", "Pendulum-v1", "--env-kwargs", "grafity:9.8"], "'grafity'"),
        (["--env", "Pendulum-v1", "-params", "env_wrapper:'gymnasium.wrappers.FlattenObservation'"], "env_wrapper"),
        (["--env", "Pendulum-v1", "-params", "n_envs:0"], "n_envs"),
        (["--env", "Pendulum-v1", "-params", "target_kl:-0.1"], "target_kl"),
    ],
)
def test_bad_input_of_an_envpool_run_gets_one_sentence(arguments, named):
    pytest.importorskip("envpool", reason="needs sb3-trpo[envpool]")
    with pytest.raises(SystemExit) as end:
        main(["train", "--vec-env", "envpool", "--eval-freq", "-1", *arguments, *SHORT])
    assert isinstance(end.value.code, str)
    assert "\n" not in end.value.code
    assert named in end.value.code


@pytest.mark.usefixtures("in_temporary_folder")
def test_final_evaluation_uses_the_training_statistics_and_leaves_them_alone():
    manager = ReportingExperimentManager(
        argparse.Namespace(env="Pendulum-v1"),
        "trpo",
        "Pendulum-v1",
        "logs",
        n_timesteps=1024,
        eval_freq=-1,
        hyperparams={"normalize": True},
        seed=0,
        log_interval=1,
        verbose=0,
        device="cpu",
    )
    model, _ = manager.setup_experiment()
    manager.learn(model)
    statistics = model.get_vec_normalize_env().obs_rms
    count, mean = statistics.count, statistics.mean.copy()

    result = manager.evaluate(model)
    assert manager.evaluate(model) == result
    # A step of Pendulum costs at most 16.28, an episode has 200; the normalised return would be far smaller.
    assert -200 * 16.28 < result[0] < -200
    assert statistics.count == count
    np.testing.assert_array_equal(statistics.mean, mean)

    statistics.mean += 3
    assert manager.evaluate(model) != result


def test_evaluation_seeds_are_far_from_training_seeds():
    assert max(task["n_envs"] for task in TASKS.values()) < EVAL_SEED_OFFSET


def test_no_episode_no_learning_curve(tmp_path):
    assert draw_learning_curve(tmp_path, title="nothing yet") is None
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("name", COMMANDS)
def test_every_command_has_help(name, capsys):
    with pytest.raises(SystemExit) as end:
        main([name, "--help"])
    assert end.value.code == 0
    assert "--help" in capsys.readouterr().out


def test_help_lists_the_commands(capsys):
    main([])
    without_arguments = capsys.readouterr().out
    main(["--help"])
    assert capsys.readouterr().out == without_arguments
    assert all(name in without_arguments for name in COMMANDS)


def test_version(capsys):
    main(["--version"])
    assert capsys.readouterr().out == f"{__version__}\n"


@pytest.mark.parametrize(
    ("arguments", "named"),
    [
        (["trian"], "'trian'"),
        (["train", "--env", "HalfCheeta-v5"], "HalfCheetah-v5"),
        (["train", "--trained-agent", "nowhere.zip"], "trained_agent"),
        (["train", "-params", "target_kll:0.1"], "target_kl?"),
        (["train", "-params", "policy:MlpPolicy"], "MlpPolicy"),
        (["train", "--conf-file", "nowhere.yml"], "nowhere.yml"),
        (["train", "--conf-file", "broken.yml"], "broken.yml"),
        (["train", "--conf-file", "no.module"], "no.module"),
        (["train", "--gym-packages", "nowhere"], "'nowhere'"),
        (["train", "--conf-file", "words.yml"], "policy_kwargs['activation_fn'] is 'nn.ReLU'"),
        (["train", "--conf-file", "rate.yml"], "learning_rate is '1e-3'"),
        (["train", "-params", "policy_kwargs:'dict(activation_fn=ReLU)'"], "name 'ReLU' is not defined"),
        (["train", "-params", "normalize:'dict('"], "never closed"),
        (["train", "-params", "env_wrapper:'nowhere.Wrapper'"], "'nowhere'"),
        (["train", "-params", "policy:'MlpPolcy'"], "policy is 'MlpPolcy'"),
        (["train", "-params", "policy:3"], "policy is 3"),
        (["train", "-params", "n_envs:'4'"], "n_envs is '4'"),
        (["train", "-params", "n_envs:-1"], "n_envs is -1"),
        (["train", "-params", "frame_stack:'a'"], "frame_stack is 'a'"),
        (["train", "--env-kwargs", "grafity:1"], "'grafity'"),
        (["train", "--env-kwargs", "grafity:1", "--vec-env", "subproc"], "'grafity'"),
        # A task without an entry: the rule makes an environment before RL Zoo does.
        (["train", "--env", "InvertedPendulum-v4", "--env-kwargs", "grafity:1"], "'grafity'"),
        (["train", "--eval-env-kwargs", "grafity:1"], "'grafity'"),
        (["train", "--env-kwargs", "gravity"], "name:value"),
        (["train", "-params", "target_kl:-1.0"], "target_kl"),
        (["enjoy", "--env", TASK, "-f", "logs"], "No model found"),
        (["plot-train", "--env", TASK, "-f", "logs"], "logs/trpo"),
    ],
)
@pytest.mark.usefixtures("in_temporary_folder")
def test_bad_input_gets_one_sentence(arguments, named):
    Path("broken.yml").write_text("CartPole-v1: [\n")
    task = "CartPole-v1: {policy: MlpPolicy, n_timesteps: 64, n_steps: 64, %s}\n"
    Path("words.yml").write_text(task % "policy_kwargs: {activation_fn: nn.ReLU}")
    Path("rate.yml").write_text(task % "learning_rate: 1e-3")
    Path("logs/trpo").mkdir(parents=True)
    with pytest.raises(SystemExit) as end:
        main(arguments)
    assert isinstance(end.value.code, str)
    assert "\n" not in end.value.code
    assert named in end.value.code


def test_ctrl_c_ends_a_command_without_a_traceback(monkeypatch):
    class Interrupted(Command):
        def run(self):
            raise KeyboardInterrupt

    monkeypatch.setitem(COMMANDS, "interrupted", Interrupted("is interrupted", ""))
    with pytest.raises(SystemExit) as end:
        main(["interrupted"])
    assert end.value.code == 130


@pytest.mark.usefixtures("in_temporary_folder")
def test_a_full_disk_gets_one_sentence_and_leaves_no_half_of_a_model():
    Path("short.yml").write_text("CartPole-v1: {policy: MlpPolicy, n_timesteps: 64, n_steps: 64, batch_size: 64}\n")
    # A limit on the size of files fails as a full disk does: in the middle of a write.
    limits, handler = resource.getrlimit(resource.RLIMIT_FSIZE), signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (20_000, limits[1]))
    try:
        with pytest.raises(SystemExit) as end:
            main(["train", "--env", "CartPole-v1", "--conf-file", "short.yml", "--eval-freq", "-1", *SHORT])
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
        signal.signal(signal.SIGXFSZ, handler)
    model = Path("logs/trpo/CartPole-v1_1/CartPole-v1.zip").resolve()
    assert end.value.code == f"sb3-trpo train: [Errno {errno.EFBIG}] File too large: '{model}'"
    assert not list(model.parent.glob(".*.tmp"))
    assert not model.exists()


@pytest.mark.parametrize(
    ("module", "extra", "statement"),
    [
        ("rl_zoo3", "zoo", "main(['train'])"),
        pytest.param("rl_zoo3", "zoo", "import sb3_trpo.rl_zoo", marks=pytest.mark.slow),
        pytest.param(
            "envpool",
            "envpool",
            "main(['train', '--vec-env', 'envpool', '--eval-freq', '-1'])",
            marks=pytest.mark.slow,
        ),
    ],
)
@pytest.mark.usefixtures("in_temporary_folder")
def test_what_is_not_installed_is_named(module, extra, statement):
    code = f"import sys; sys.modules[{module!r}] = None; from sb3_trpo.cli import main; {statement}"
    result = subprocess.run(
        [sys.executable, "-c", code],
        capture_output=True,
        text=True,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
        timeout=300,
    )
    assert result.returncode == 1
    # From a folder or an index: that process may find another note of the package's origin.
    assert re.search(rf"`pip install '.*\[{extra}\]", result.stderr.splitlines()[-1])
    if "main" in statement:
        assert "Traceback" not in result.stderr
