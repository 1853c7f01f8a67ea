"""
Stable-Baselines3's own tools around a training run: callbacks, wrappers, loggers; the real ones, and what they leave
behind read back.
"""

import csv
from typing import Any

import numpy as np
import pytest
from gymnasium import spaces
from small_models import OBSERVATION_SPACES, VECTOR, SpacesEnv
from stable_baselines3.common.callbacks import (
    BaseCallback,
    CheckpointCallback,
    EvalCallback,
    EveryNTimesteps,
    StopTrainingOnMaxEpisodes,
    StopTrainingOnNoModelImprovement,
    StopTrainingOnRewardThreshold,
)
from stable_baselines3.common.env_checker import check_env
from stable_baselines3.common.env_util import make_vec_env
from stable_baselines3.common.envs import FakeImageEnv
from stable_baselines3.common.evaluation import evaluate_policy
from stable_baselines3.common.logger import configure
from stable_baselines3.common.monitor import load_results
from stable_baselines3.common.vec_env import DummyVecEnv, VecFrameStack, VecNormalize
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from sb3_trpo import TRPO

N_STEPS = 64
SETTINGS: dict[str, Any] = {"n_steps": N_STEPS, "batch_size": 64, "n_critic_updates": 2, "seed": 0, "device": "cpu"}
# An update is 128 steps.
N_ENVS = 2


def make_model(env: Any = None, **kwargs: Any) -> TRPO:
    return TRPO("MlpPolicy", env or make_vec_env("CartPole-v1", N_ENVS, seed=0), **SETTINGS, **kwargs)


def test_evaluations_and_checkpoints_with_normalised_environments(tmp_path):
    env = VecNormalize(make_vec_env("Pendulum-v1", N_ENVS, seed=0))
    eval_env = VecNormalize(make_vec_env("Pendulum-v1", 1, seed=1), training=False, norm_reward=False)
    evaluation = EvalCallback(
        eval_env, n_eval_episodes=2, eval_freq=N_STEPS, log_path=tmp_path, best_model_save_path=tmp_path, verbose=0
    )
    checkpoints = CheckpointCallback(N_STEPS, tmp_path / "checkpoints", save_vecnormalize=True)
    model = make_model(env).learn(3 * N_ENVS * N_STEPS, callback=[evaluation, checkpoints])

    with np.load(tmp_path / "evaluations.npz") as evaluations:
        assert evaluations["timesteps"].tolist() == [128, 256, 384]
        assert evaluation.best_mean_reward == evaluations["results"].mean(axis=1).max()
    # The last evaluation was after the last step.
    np.testing.assert_array_equal(eval_env.obs_rms.mean, env.obs_rms.mean)
    names = [f"checkpoints/rl_model_{steps}_steps.zip" for steps in (128, 256, 384)]
    assert [TRPO.load(tmp_path / name).num_timesteps for name in names] == [128, 256, 384]
    # The last checkpoint is made at the last step of the last rollout, before its update.
    assert TRPO.load(tmp_path / names[-1])._n_updates == model._n_updates - 1
    normalized = VecNormalize.load(
        str(tmp_path / "checkpoints/rl_model_vecnormalize_384_steps.pkl"), make_vec_env("Pendulum-v1", 1)
    )
    normalized.training = False
    mean, _ = evaluate_policy(TRPO.load(tmp_path / "best_model"), normalized, n_eval_episodes=1)
    assert -2000 < mean < 0


def test_training_stops_at_a_reward_threshold():
    stop = StopTrainingOnRewardThreshold(reward_threshold=1.0, verbose=0)
    evaluation = EvalCallback(
        make_vec_env("CartPole-v1", 1), callback_on_new_best=stop, eval_freq=N_STEPS // 2, n_eval_episodes=1, verbose=0
    )
    model = make_model().learn(10_000, callback=evaluation)
    assert model.num_timesteps == N_ENVS * N_STEPS // 2


def test_training_stops_after_some_episodes():
    stop = StopTrainingOnMaxEpisodes(max_episodes=3)
    model = make_model().learn(100_000, callback=stop)
    assert stop.n_episodes >= 3 * N_ENVS
    assert 0 < model.num_timesteps < 100_000


def test_callback_sees_losses_and_may_change_the_model():
    """What PPO's users do in callbacks: read the log, move a hyperparameter, add a key of their own."""

    class Tightens(BaseCallback):
        seen: list[float]

        def _on_training_start(self) -> None:
            self.seen = []

        def _on_step(self) -> bool:
            return True

        def _on_rollout_end(self) -> None:
            assert self.locals["rollout_buffer"].full
            self.logger.record("own/key", 1.0)
            if "train/kl_divergence_loss" in self.logger.name_to_value:
                self.seen.append(self.logger.name_to_value["train/kl_divergence_loss"])
            self.model.n_critic_updates = 1

    callback = Tightens()
    model = make_model().learn(3 * N_ENVS * N_STEPS, callback=callback)
    assert len(callback.seen) == 2
    assert all(0 < kl <= 0.01 for kl in callback.seen)
    assert model.n_critic_updates == 1


def test_functions_and_wrapped_callbacks():
    """A plain function, a callback at every so-many steps, and training that ends when it no longer helps."""
    seen, counter = [], []

    class Counts(BaseCallback):
        def _on_step(self) -> bool:
            counter.append(self.num_timesteps)
            return True

    model = make_model()
    model.learn(N_ENVS * N_STEPS, callback=lambda found, _: seen.append(found["n_steps"]) or True)
    assert seen == list(range(N_STEPS))
    model.learn(N_ENVS * N_STEPS, callback=EveryNTimesteps(32, Counts()))
    assert counter == [32, 64, 96, 128]

    patience = StopTrainingOnNoModelImprovement(max_no_improvement_evals=1, min_evals=1, verbose=0)
    evaluation = EvalCallback(
        # The return is always 0.
        make_vec_env(lambda: SpacesEnv(VECTOR, spaces.Discrete(1)), 1),
        callback_after_eval=patience,
        eval_freq=8,
        n_eval_episodes=1,
        verbose=0,
        warn=False,
    )
    model = make_model(SpacesEnv(VECTOR, spaces.Discrete(1))).learn(10_000, callback=evaluation)
    assert model.num_timesteps == 3 * 8


def test_tensorboard_files_hold_the_log(tmp_path):
    make_model(tensorboard_log=str(tmp_path)).learn(4 * N_ENVS * N_STEPS, tb_log_name="run")
    events = EventAccumulator(str(tmp_path / "run_1"))
    events.Reload()
    kl = events.Scalars("train/kl_divergence_loss")
    # An update is written with the next rollout's figures.
    assert [event.step for event in kl] == [256, 384, 512]
    assert all(0 < event.value <= 0.01 for event in kl)
    assert {"rollout/ep_rew_mean", "time/fps", "train/value_loss", "train/cg_iterations"} <= set(
        events.Tags()["scalars"]
    )


def test_tables_hold_the_log(tmp_path):
    model = make_model()
    model.set_logger(configure(str(tmp_path), ["csv", "json"]))
    model.learn(3 * N_ENVS * N_STEPS)
    with (tmp_path / "progress.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert [row["train/n_updates"] for row in rows] == ["", "1", "2"]
    assert all(0 < float(row["train/kl_divergence_loss"]) <= 0.01 for row in rows[1:])
    assert len((tmp_path / "progress.json").read_text().splitlines()) == 3


def test_monitor_files_hold_the_episodes(tmp_path):
    env = make_vec_env("CartPole-v1", N_ENVS, seed=0, monitor_dir=str(tmp_path))
    model = make_model(env).learn(2 * N_ENVS * N_STEPS)
    env.close()
    episodes = load_results(str(tmp_path))
    assert sorted(episodes["r"]) == sorted(info["r"] for info in model.ep_info_buffer)
    assert (episodes["r"] == episodes["l"]).all()


def test_progress_bar(capsys):
    make_model().learn(N_ENVS * N_STEPS, progress_bar=True)
    printed = capsys.readouterr()
    assert "128/128" in printed.out + printed.err


def test_stacked_frames():
    images = [lambda: FakeImageEnv(screen_height=36, screen_width=36, n_channels=1, discrete=True)] * N_ENVS
    env = VecFrameStack(DummyVecEnv(images), n_stack=4)
    policy_kwargs = {"features_extractor_kwargs": {"features_dim": 8}}
    model = TRPO("CnnPolicy", env, policy_kwargs=policy_kwargs, **SETTINGS).learn(N_ENVS * N_STEPS)
    assert model.observation_space.shape == (4, 36, 36)
    assert model.logger.name_to_value["train/is_line_search_success"] == 1


@pytest.mark.parametrize("observations", ["float32", "Discrete"])
def test_environment_that_sb3_has_checked(observations):
    env = SpacesEnv(OBSERVATION_SPACES[observations], VECTOR)
    check_env(env, warn=True, skip_render_check=True)
    make_model(env).learn(N_STEPS)
