"""
Measure the true return J before and after single updates, at several stages of training.

J is the mean undiscounted return of the stochastic policy. Before and after an update it is measured on the same
episodes: same initial states, same noise in the actions, same normalisation statistics, so that the parameters are all
that differs. An update is everything that an algorithm does with one rollout.
"""

import time
from collections.abc import Callable
from typing import Any

import numpy as np
from stable_baselines3.common.callbacks import BaseCallback
from stable_baselines3.common.on_policy_algorithm import OnPolicyAlgorithm

from campaign.evaluation import FIRST_EVALUATION_SEED, GaussianNoise, run_episodes, stochastic_policy
from campaign.experiment import Experiment
from campaign.specification import RunSpecification

PROTOCOL = {"stages": [50_000, 200_000, 500_000, 900_000], "n_updates": 10, "n_episodes": 100}
MAX_ENVS = 50


class ImprovementCallback(BaseCallback):
    """
    Measures ``n_updates`` updates from each stage on.

    :param experiment: makes the environments
    :param protocol: with the keys of ``PROTOCOL``; stages in steps, ascending
    :param report: is told the number of steps done, once an update
    """

    model: OnPolicyAlgorithm
    # So that rollouts need not compute them step by step.
    reads_values = False

    def __init__(self, experiment: Experiment, protocol: dict[str, Any], report: Callable[[int], None]) -> None:
        super().__init__()
        self.protocol = protocol
        self.report = report
        self.envs = experiment.make_evaluation_envs(min(protocol["n_episodes"], MAX_ENVS))
        spec = self.envs[0].spec
        if spec is None or spec.max_episode_steps is None:
            raise ValueError(f"task={experiment.run.task!r} must have a limit of steps per episode.")
        self.max_episode_steps = spec.max_episode_steps
        self.timesteps: list[int] = []
        self.before: list[np.ndarray] = []
        self.after: list[np.ndarray] = []

        self.n_measurements = len(protocol["stages"]) * protocol["n_updates"]

    @property
    def _is_due(self) -> bool:
        measured = len(self.before)
        if measured == self.n_measurements:
            return False
        return self.model.num_timesteps >= self.protocol["stages"][measured // self.protocol["n_updates"]]

    def _on_rollout_end(self) -> None:
        if self._is_due:
            self.timesteps.append(self.model.num_timesteps)
            self.before.append(self._returns())

    def _on_rollout_start(self) -> None:
        self.report(self.model.num_timesteps)
        self.complete()

    def complete(self) -> None:
        """
        Measure the policy after an update if it was measured before it.
        """
        if len(self.after) < len(self.before):
            # The statistics are those of the rollout's end: nothing has been stepped since.
            self.after.append(self._returns())

    def _on_step(self) -> bool:
        # What would be trained after the last measurement is not needed.
        return len(self.after) < self.n_measurements

    def _returns(self) -> np.ndarray:
        # Each update has episodes of its own: otherwise one lucky set of them would decide about all.
        update, n_episodes = len(self.after), self.protocol["n_episodes"]
        first_seed = FIRST_EVALUATION_SEED + update * n_episodes
        n_actions = int(np.prod(self.model.policy.action_space.shape or ()))
        noise = GaussianNoise(n_episodes, self.max_episode_steps, n_actions, seed=first_seed)
        seeds = range(first_seed, first_seed + n_episodes)
        return run_episodes(self.envs, stochastic_policy(self.model, noise), seeds)[0]


def improvement_run(
    run: RunSpecification, report: Callable[[int], None]
) -> tuple[dict[str, Any], dict[str, np.ndarray]]:
    """
    Train, and measure what updates do to the mean return.

    :param run: what to train, and when to measure how many updates
    :param report: is told the number of steps done
    :return: times, and the returns before and after each measured update (updates, episodes)
    """
    start = time.perf_counter()
    experiment = Experiment(run)
    model = experiment.make_model()
    assert isinstance(model, OnPolicyAlgorithm)
    callback = ImprovementCallback(experiment, run.protocol, report)
    model.learn(run.n_timesteps, callback=callback, log_interval=None)  # type: ignore[arg-type]
    callback.complete()
    seconds = {"total": round(time.perf_counter() - start, 1)}
    arrays: dict[str, np.ndarray] = {
        "timesteps": np.array(callback.timesteps, dtype=np.int64),
        "returns_before": np.array(callback.before, dtype=np.float32),
        "returns_after": np.array(callback.after, dtype=np.float32),
    }
    return {"n_timesteps_done": model.num_timesteps, "seconds": seconds}, arrays
