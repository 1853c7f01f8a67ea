"""
The README's learning curve, from runs of `make train` with several seeds:

    for seed in 0 1 2; do make train SEED=$seed; done
    .venv/bin/python benchmarks/learning_curve.py logs/trpo/HalfCheetah-v5_1 logs/trpo/HalfCheetah-v5_2 ...

Without folders it takes all runs on HalfCheetah-v5 under logs/. What is drawn is also written as numbers, to
results/learning_curve.json.
"""

import argparse
import json
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from matplotlib.figure import Figure
from matplotlib.ticker import EngFormatter

REPOSITORY = Path(__file__).resolve().parents[1]
PICTURE = REPOSITORY / "docs" / "images" / "halfcheetah.png"
NUMBERS = REPOSITORY / "benchmarks" / "results" / "learning_curve.json"


def read_evaluations(runs: Sequence[Path]) -> tuple[np.ndarray, np.ndarray]:
    """
    :param runs: RL Zoo's folders, one a seed, all evaluated at the same steps
    :return: the steps, (T,), and each run's mean return at each of them, (number of runs, T)
    """
    timesteps, returns = [], []
    for run in runs:
        with np.load(run / "evaluations.npz") as evaluations:
            timesteps.append(evaluations["timesteps"])
            returns.append(evaluations["results"].mean(axis=1))
    for run, steps in zip(runs, timesteps, strict=True):
        if not np.array_equal(steps, timesteps[0]):
            raise ValueError(f"{run} was evaluated at other steps than {runs[0]}: name the runs that belong together.")
    return timesteps[0], np.stack(returns)


def draw(task: str, timesteps: np.ndarray, returns: np.ndarray, picture: Path) -> None:
    """
    :param task: for the title
    :param timesteps: (T,)
    :param returns: (number of runs, T)
    :param picture: to write
    """
    figure = Figure(figsize=(7, 4), layout="constrained")
    axes = figure.add_subplot(title=task, xlabel="environment steps", ylabel="return, deterministic policy")
    mean, std = returns.mean(axis=0), returns.std(axis=0)
    axes.plot(timesteps, returns.T, color="C0", linewidth=0.7, alpha=0.6)
    axes.plot(timesteps, mean, color="C0", linewidth=2, label=f"mean ± std of {len(returns)} seeds")
    axes.fill_between(timesteps, mean - std, mean + std, color="C0", alpha=0.2, linewidth=0)
    axes.xaxis.set_major_formatter(EngFormatter())
    axes.grid(alpha=0.3)
    axes.legend(loc="upper left")
    picture.parent.mkdir(parents=True, exist_ok=True)
    # Without matplotlib's version the same data make the same file.
    figure.savefig(picture, dpi=120, metadata={"Software": None})


def write_numbers(runs: Sequence[Path], timesteps: np.ndarray, returns: np.ndarray, file: Path) -> None:
    """
    :param runs: RL Zoo's folders
    :param timesteps: (T,)
    :param returns: (number of runs, T)
    :param file: to write
    """
    numbers = {
        "runs": [run.name for run in runs],
        "timesteps": timesteps.tolist(),
        "returns": returns.round(1).tolist(),
    }
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text(json.dumps(numbers) + "\n")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("runs", nargs="*", type=Path, help="folders with an evaluations.npz")
    parser.add_argument("--out", type=Path, default=PICTURE, help="the picture (docs/images/halfcheetah.png)")
    parser.add_argument("--numbers", type=Path, default=NUMBERS, help="the numbers (results/learning_curve.json)")
    options = parser.parse_args()
    runs = options.runs or sorted((REPOSITORY / "logs" / "trpo").glob("HalfCheetah-v5_*"))
    if not runs:
        parser.error("no runs under logs/trpo: `make train` makes one.")
    timesteps, returns = read_evaluations(runs)
    draw(runs[0].name.rpartition("_")[0], timesteps, returns, options.out)
    write_numbers(runs, timesteps, returns, options.numbers)
    finals = ", ".join(f"{run.name} {final:.0f}" for run, final in zip(runs, returns[:, -1], strict=True))
    print(f"{options.out}: {finals}, mean {returns[:, -1].mean():.0f}")


if __name__ == "__main__":
    main()
