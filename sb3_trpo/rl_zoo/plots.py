"""
``sb3-trpo plot-train``: RL Zoo's ``plot_train``, which never shows an empty picture, and leaves a file on a server.

RL Zoo draws a mean over 100 episodes (``--episode-window``), and nothing of a run that has fewer.
"""

import os
import sys
from collections.abc import Iterator
from pathlib import Path

import matplotlib.pyplot as plt
from rl_zoo3.plots import plot_train as rl_zoo_plot_train
from stable_baselines3.common.monitor import LoadMonitorResultsError, load_results

from sb3_trpo.rl_zoo.commands import make_reader
from sb3_trpo.validation.values import UserError

PICTURE = "plot_train.png"
COLUMNS = {"success": "is_success", "reward": "r", "length": "l"}


def plot_train() -> None:
    """
    Run RL Zoo's function with the arguments in ``sys.argv``, and a window that the longest run fills.

    :raises UserError: if there is nothing to draw
    """
    parser = make_reader()
    parser.add_argument("-a", "--algo", default="trpo")
    parser.add_argument("-e", "--env", nargs="+")
    parser.add_argument("-f", "--exp-folder")
    parser.add_argument("-max", "--max-timesteps", type=int)
    parser.add_argument("-y", "--y-axis", default="reward")
    parser.add_argument("-w", "--episode-window", type=int, default=100)
    args, others = parser.parse_known_args(sys.argv[1:])
    # RL Zoo's parser says what is missing or wrong.
    if args.env and args.exp_folder and args.y_axis in COLUMNS and not {"-h", "--help"} & set(others):
        folder = Path(args.exp_folder, args.algo)
        counts = _count_episodes(folder, args.env, COLUMNS[args.y_axis], args.max_timesteps)
        longest = max(counts, default=0)
        if longest == 0:
            raise UserError(f"{folder} holds no run of {' or '.join(args.env)} that has ended an episode.")
        if longest < args.episode_window:
            window = max(1, longest // 10)
            print(f"No run has {args.episode_window} episodes: the mean is over {window}.")
            sys.argv += ["--episode-window", str(window)]
    rl_zoo_plot_train()  # type: ignore[no-untyped-call]  # RL Zoo gives it no types.
    # Without a display Matplotlib shows nothing, and says so nowhere.
    if plt.get_backend().lower() == "agg" and plt.get_fignums():
        plt.savefig(PICTURE)
        print(f"There is no display. The picture is in {PICTURE}.")


def _count_episodes(folder: Path, tasks: list[str], column: str, max_timesteps: int | None) -> Iterator[int]:
    """
    Count the episodes that there are to draw.

    :param folder: the folder with runs, one folder each
    :param tasks: the tasks; a run's name holds one of them
    :param column: the column of monitor files that is drawn
    :param max_timesteps: the number of steps that are drawn; None draws all
    :return: the number of episodes of each run
    :raises UserError: if there is no such folder
    """
    if not folder.is_dir():
        raise UserError(f"{folder} is no folder with runs.")
    for entry in os.scandir(folder):
        if not entry.is_dir() or not any(task in entry.name for task in tasks):
            continue
        try:
            episodes = load_results(entry.path)
        except LoadMonitorResultsError:
            continue
        if max_timesteps is not None:
            episodes = episodes[episodes["l"].cumsum() <= max_timesteps]
        if column in episodes:
            yield len(episodes)
