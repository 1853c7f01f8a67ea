"""
Runs as the rules see them: a healthy one, in numbers as published runs have them, and what is changed in it.
"""

from collections.abc import Mapping

import numpy as np

from sb3_trpo.diagnosis.record import Record, Settings

N_ROWS = 60
HEALTHY: Mapping[str, float] = {
    "train/policy_objective": 0.1,
    "train/surrogate_improvement": 0.1,
    "train/value_loss": 0.05,
    "train/kl_divergence_loss": 0.028,
    "train/target_kl": 0.03,
    "train/explained_variance": 0.8,
    "train/is_line_search_success": 1.0,
    "train/std": 0.3,
    "train/std_min": 0.2,
    "train/entropy": -3.0,
    "train/cg_iterations": 8.0,
    "train/cg_residual": 0.1,
    "train/cg_stop": 0.0,
    "train/line_search_steps": 2.0,
    "train/rejected_by_kl": 1.0,
    "train/rejected_by_gain": 0.0,
    "train/step_fraction": 0.92,
    "train/grad_norm": 3.0,
    "train/expected_improvement": 0.2,
    "train/advantage_mean": 0.02,
    "train/advantage_std": 0.2,
    "train/return_mean": 1.0,
    "train/return_std": 1.0,
    "rollout/obs_std_max": 1.2,
    "rollout/clipped_actions": 0.1,
    "rollout/terminated": 1.0,
    "rollout/truncated": 1.0,
    "rollout/ep_len_mean": 500.0,
    "time/memory_mib": 400.0,
}
SETTINGS = Settings(n_samples=2048, action_dimensions=6, gae_lambda=0.95, ent_coef=0.0, least_max_std=float("inf"))


def healthy_log(n: int = N_ROWS) -> dict[str, np.ndarray]:
    """
    Make the log of a healthy run.

    :param n: the number of updates
    :return: its columns
    """
    rows = np.arange(n, dtype=float)
    log = {key: np.full(n, value) for key, value in HEALTHY.items()}
    return log | {
        "rollout/ep_rew_mean": 100.0 * rows,
        "train/n_updates": rows + 1.0,
        "time/total_timesteps": 2048.0 * (rows + 1.0),
    }


def record(settings: Settings = SETTINGS, progress: float = 1.0, n: int = N_ROWS, /, **columns: object) -> Record:
    """
    Make a record of a run.

    :param settings: its settings
    :param progress: the share of its steps that are done
    :param n: the number of updates
    :param columns: what differs from a healthy run: a number, or one for each update, by the key without its group
    :return: the record
    """
    log = healthy_log(n)
    names = {key.partition("/")[2]: key for key in log}
    for name, values in columns.items():
        log[names[name]] = np.broadcast_to(np.asarray(values, dtype=float), (n,)).copy()
    return Record(log, settings, progress)
