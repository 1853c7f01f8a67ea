"""
Train once, with evaluations on the way, as the protocol of the learning benchmarks says.

Evaluations happen between two updates: the first time that a rollout starts at or after each multiple of `eval_freq`
steps. The final policy plays `n_final_episodes`, and the first `n_eval_episodes` of these are the curve's last point.
"""

import time
from collections import defaultdict
from collections.abc import Callable, Iterable
from typing import Any

import numpy as np
from stable_baselines3.common.callbacks import BaseCallback
from stable_baselines3.common.utils import safe_mean

from campaign.evaluation import FIRST_EVALUATION_SEED, deterministic_policy, run_episodes
from campaign.experiment import Experiment
from campaign.specification import RunSpecification

PROTOCOL = {"eval_freq": 50_000, "n_eval_episodes": 20, "n_final_episodes": 100}
# More would only be stepped together for a larger share of the time; each costs memory.
MAX_EVALUATION_ENVS = 20

Report = Callable[[int], None]


class EvaluationCallback(BaseCallback):
    """
    A callback that evaluates the policy now and then.

    :param experiment: makes the evaluation environments
    :param protocol: with the keys of ``PROTOCOL``
    :param report: is told the number of steps done, once an update
    """

    # So that rollouts need not compute them step by step.
    reads_values = False

    def __init__(self, experiment: Experiment, protocol: dict[str, int], report: Report) -> None:
        super().__init__()
        self.protocol = protocol
        self.report = report
        self.envs = experiment.make_evaluation_envs(min(protocol["n_eval_episodes"], MAX_EVALUATION_ENVS))
        self.seconds = 0.0
        self.curve: dict[str, list[Any]] = {"timesteps": [], "results": [], "ep_lengths": []}
        self.diagnostics: dict[str, list[float]] = defaultdict(list)
        self._since_last: dict[str, list[float]] = defaultdict(list)

    def _on_rollout_start(self) -> None:
        steps = self.model.num_timesteps
        self.report(steps)
        self._collect_log()
        if steps // self.protocol["eval_freq"] > self._last_timestep // self.protocol["eval_freq"]:
            self.evaluate(self.protocol["n_eval_episodes"])

    def _on_step(self) -> bool:
        return True

    @property
    def _last_timestep(self) -> int:
        return self.curve["timesteps"][-1] if self.curve["timesteps"] else 0

    def evaluate(self, n_episodes: int) -> tuple[np.ndarray, np.ndarray]:
        """
        Evaluate the policy as it is, and add a point to the curve.

        :param n_episodes: at least ``n_eval_episodes``, which are the first of them
        :return: returns and lengths of the episodes
        """
        start = time.perf_counter()
        seeds = range(FIRST_EVALUATION_SEED, FIRST_EVALUATION_SEED + n_episodes)
        returns, lengths = run_episodes(self.envs, deterministic_policy(self.model), seeds)
        n_eval_episodes = self.protocol["n_eval_episodes"]
        self.curve["timesteps"].append(self.model.num_timesteps)
        self.curve["results"].append(returns[:n_eval_episodes])
        self.curve["ep_lengths"].append(lengths[:n_eval_episodes])
        self._summarize_log()
        self.seconds += time.perf_counter() - start
        return returns, lengths

    def _collect_log(self) -> None:
        for key, value in self.model.logger.name_to_value.items():
            if key.startswith("train/") and np.isscalar(value):
                self._since_last[key].append(float(value))  # type: ignore[arg-type]

    def _summarize_log(self) -> None:
        """
        Means over the updates since the last evaluation: what is needed to understand a run that failed.
        """
        episodes: Iterable[dict[str, float]] = self.model.ep_info_buffer or []
        self._since_last["rollout/ep_rew_mean"] = [safe_mean([episode["r"] for episode in episodes])]
        self._since_last["rollout/ep_len_mean"] = [safe_mean([episode["l"] for episode in episodes])]
        n_points = len(self.curve["timesteps"])
        for key, values in self._since_last.items():
            column = self.diagnostics[key]
            column += [np.nan] * (n_points - 1 - len(column))
            column.append(float(f"{np.mean(values):.5g}"))
        self._since_last.clear()


def learning_run(run: RunSpecification, report: Report) -> tuple[dict[str, Any], dict[str, np.ndarray]]:
    """
    Train, and evaluate on the way.

    :param run: what to train, and by which protocol to measure it
    :param report: is told the number of steps done
    :return: scores and times, and the curve
    """
    start, cpu_start = time.perf_counter(), time.process_time()
    experiment = Experiment(run)
    model = experiment.make_model()
    callback = EvaluationCallback(experiment, run.protocol, report)

    learn_start = time.perf_counter()
    # Without an interval SB3 never clears its log, so that the callback finds the last update's values.
    callbacks = [callback, *experiment.callbacks]
    model.learn(run.n_timesteps, callback=callbacks, log_interval=None)  # type: ignore[arg-type]
    training_seconds = time.perf_counter() - learn_start - callback.seconds
    callback._collect_log()
    returns, lengths = callback.evaluate(run.protocol["n_final_episodes"])

    values = {
        "score": float(returns.mean()),
        "training_score": callback.diagnostics["rollout/ep_rew_mean"][-1],
        "n_timesteps_done": model.num_timesteps,
        "training_steps_per_second": round(model.num_timesteps / training_seconds, 1),
        "seconds": {
            "total": round(time.perf_counter() - start, 1),
            "training": round(training_seconds, 1),
            "evaluation": round(callback.seconds, 1),
            "cpu": round(time.process_time() - cpu_start, 1),
        },
        "diagnostics": dict(callback.diagnostics),
        "final_returns": [round(float(value), 3) for value in returns],
        "final_lengths": lengths.tolist(),
    }
    values["score"] = float(np.mean(values["final_returns"]))
    curve = {
        "timesteps": np.array(callback.curve["timesteps"], dtype=np.int64),
        "results": np.array(callback.curve["results"], dtype=np.float64),
        "ep_lengths": np.array(callback.curve["ep_lengths"], dtype=np.int64),
    }
    return values, curve
