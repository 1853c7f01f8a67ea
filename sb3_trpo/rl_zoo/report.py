"""
What ``sb3-trpo train`` adds at the end of a run: the final policy's return, and a picture of how it came about.
"""

import copy
from collections.abc import Callable, Mapping
from pathlib import Path
from types import MappingProxyType
from typing import Any

import numpy as np
import optuna
import yaml
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from rl_zoo3.hyperparams_opt import HYPERPARAMS_CONVERTER
from sb3_contrib.common.maskable.evaluation import evaluate_policy as evaluate_maskable_policy
from stable_baselines3.common.base_class import BaseAlgorithm
from stable_baselines3.common.evaluation import evaluate_policy
from stable_baselines3.common.monitor import LoadMonitorResultsError, load_results
from stable_baselines3.common.utils import LinearSchedule
from stable_baselines3.common.vec_env import sync_envs_normalization

from sb3_trpo.diagnosis.diagnose import diagnose
from sb3_trpo.rl_zoo.manager import TrainingManager
from sb3_trpo.rl_zoo.masked_runs import takes_masks
from sb3_trpo.validation.values import UserError

N_EVAL_EPISODES = 20
# The seeds of training and of EvalCallback's environments count up from the run's seed; these start far from both.
EVAL_SEED_OFFSET = 1_000_000
# The most episodes in the running mean of the training return, as in the logger's ``rollout/ep_rew_mean``.
RUNNING_MEAN_EPISODES = 100
# With so many, a short training would be one flat line: the mean is over no more than this share of its episodes.
RUNNING_MEAN_SHARE = 0.1


class ReportingExperimentManager(TrainingManager):
    """An experiment manager that evaluates the final policy after it has saved it, and says where everything is."""

    # The search, and what is not searched.
    study: optuna.Study | None = None
    unprocessed: Mapping[str, Any] = MappingProxyType({})

    def read_hyperparameters(self) -> tuple[dict[str, Any], dict[str, Any]]:
        """
        Read the hyperparameters, and keep them as they are in the file.

        :return: the hyperparameters twice, to process and to save
        """
        hyperparams, saved_hyperparams = super().read_hyperparameters()
        self.unprocessed = copy.deepcopy(dict(saved_hyperparams))
        return hyperparams, saved_hyperparams

    def save_trained_model(self, model: BaseAlgorithm) -> None:
        """
        Save the model, evaluate it, and report.

        :param model: the trained model; its environments may be closed
        """
        super().save_trained_model(model)
        run = Path(self.save_path)
        mean, std = self.evaluate(model)
        curve = draw_learning_curve(run, f"{self.algo.upper()} on {self.env_name}", self.ranks.size)

        kind = "deterministic" if self.deterministic_eval else "stochastic"
        print(f"\nFinal policy, {kind}, {N_EVAL_EPISODES} episodes: return {mean:.1f} ± {std:.1f}")
        print(f"Model:          {run / self.env_name}.zip")
        print(f"Logs:           {run}")
        if self.tensorboard_log is not None:
            print(f"TensorBoard:    {model.logger.get_dir()}")
        print(f"Learning curve: {curve or 'none, no episode has ended'}")
        print_diagnosis(run)

    def objective(self, trial: optuna.Trial) -> float:
        """
        Train with what a trial draws.

        :param trial: the trial
        :return: the return of the last evaluation
        """
        self.study = trial.study
        return super().objective(trial)

    def hyperparameters_optimization(self) -> None:
        """Search for hyperparameters, and print the best ones as an entry for a file of hyperparameters."""
        super().hyperparameters_optimization()
        if self.study is None:
            return
        best = HYPERPARAMS_CONVERTER[self.algo](self.study.best_trial.params)
        entry = to_entry({**self.unprocessed, "n_timesteps": self.n_timesteps, **best})
        print(f"\nThe best trial as an entry for --conf-file:\n\n{yaml.safe_dump({str(self.env_name): entry})}")

    def evaluate(self, model: BaseAlgorithm) -> tuple[float, float]:
        """
        Evaluate the policy on environments of its own, with the normalisation statistics frozen as they are.

        :param model: the trained model
        :return: the mean and standard deviation of the unnormalised return over ``N_EVAL_EPISODES`` episodes
        """
        env = self.create_envs(min(self.n_envs, N_EVAL_EPISODES), eval_env=True)
        if model.env is not None:
            sync_envs_normalization(model.env, env)
        env.seed(self.seed + EVAL_SEED_OFFSET)
        try:
            evaluate: Callable[..., Any] = evaluate_maskable_policy if takes_masks(self.algo) else evaluate_policy
            mean, std = evaluate(model, env, N_EVAL_EPISODES, deterministic=self.deterministic_eval)
        finally:
            env.close()
        assert isinstance(mean, float)
        assert isinstance(std, float)
        return mean, std


def print_diagnosis(run: Path) -> None:
    """
    Print what the rules find in a run, in three lines at most.

    :param run: the folder of the run
    """
    try:
        diagnosis = diagnose(run)
    except (UserError, OSError):
        # Without a log, as after a training that was interrupted in its first rollout.
        return
    hint = f" (sb3-trpo diagnose {run})" if diagnosis.findings else ""
    print(f"Diagnosis:      {diagnosis.headline()}{hint}")
    for finding in diagnosis.findings[:2]:
        print(f"                {finding.problem}: {finding.change}")


def to_entry(hyperparams: Mapping[str, Any]) -> dict[str, Any]:
    """
    Write hyperparameters as RL Zoo reads them from files.

    :param hyperparams: the hyperparameters; schedules, and classes of torch in ``policy_kwargs``, are written as texts
    :return: the same ones, as numbers, texts, lists and dictionaries
    """
    return {name: _to_plain(value) for name, value in sorted(hyperparams.items())}


def _to_plain(value: Any) -> Any:
    if isinstance(value, LinearSchedule):
        return f"lin_{value.start:g}_{value.end:g}"
    if isinstance(value, dict) and any(isinstance(item, type) for item in value.values()):
        # RL Zoo evaluates such texts, in which torch.nn is called nn.
        items = (f"{k}={f'nn.{v.__name__}' if isinstance(v, type) else repr(v)}" for k, v in value.items())
        return f"dict({', '.join(items)})"
    return value


def draw_learning_curve(run: Path, title: str, n_ranks: int = 1) -> Path | None:
    """
    Draw a run's training return (running mean) and evaluations (mean and standard deviation) over environment steps.

    :param run: the folder with RL Zoo's ``*.monitor.csv`` and, if there were evaluations, ``evaluations.npz``
    :param title: the title of the picture
    :param n_ranks: the number of ranks, of which only the first has left monitor files
    :return: the path of the picture, ``learning_curve.png`` in the same folder; None if there is nothing to draw
    """
    figure = Figure(figsize=(7, 4.5), layout="constrained")
    axes = figure.add_subplot(title=title, xlabel="environment steps", ylabel="return")
    drawn = [_draw_training(axes, run, n_ranks), _draw_evaluations(axes, run)]
    if not any(drawn):
        return None
    axes.grid(alpha=0.3)
    axes.legend()
    picture = run / "learning_curve.png"
    figure.savefig(picture, dpi=150)
    return picture


def _draw_training(axes: Axes, run: Path, n_ranks: int) -> bool:
    """
    Draw the running mean of the training return.

    :param axes: the place to draw in
    :param run: the folder of the run
    :param n_ranks: the number of ranks
    :return: whether there was anything to draw
    """
    try:
        episodes = load_results(str(run))
    except LoadMonitorResultsError:
        return False
    if episodes.empty:
        return False
    n_episodes = min(RUNNING_MEAN_EPISODES, max(1, int(RUNNING_MEAN_SHARE * len(episodes))))
    returns = episodes["r"].rolling(n_episodes, min_periods=1).mean()
    label = "training" if n_episodes == 1 else f"training, mean of the last {n_episodes} episodes"
    # A line of a single point would be invisible.
    marker = "." if len(episodes) == 1 else None
    axes.plot(n_ranks * episodes["l"].cumsum(), returns, label=label, alpha=0.7, marker=marker)
    return True


def _draw_evaluations(axes: Axes, run: Path) -> bool:
    """
    Draw mean and standard deviation of the evaluations.

    :param axes: the place to draw in
    :param run: the folder of the run
    :return: whether there was anything to draw
    """
    if not (run / "evaluations.npz").exists():
        return False
    with np.load(run / "evaluations.npz") as evaluations:
        steps, returns = evaluations["timesteps"], evaluations["results"]
    mean, std = returns.mean(axis=1), returns.std(axis=1)
    (line,) = axes.plot(steps, mean, marker=".", label=f"evaluation, mean ± std of {returns.shape[1]} episodes")
    axes.fill_between(steps, mean - std, mean + std, color=line.get_color(), alpha=0.2)
    return True
