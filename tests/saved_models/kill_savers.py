"""
Kill processes while they save, and load what is left: ``kill_savers.py FOLDER N_KILLS SEED``.

Each saver is a fork that saves model after model over the same file until the system's timer ends it. In the model of
number k every weight and every moment of the optimizer is k, so that a mixture of two would be seen. Prints, as JSON,
how many savers were killed with a file half written, and what was wrong with the files that they left.
"""

import json
import os
import random
import signal
import sys
from pathlib import Path

import torch as th

from sb3_trpo import TRPO


def number(model: TRPO, k: int) -> None:
    """
    Set every number of a model.

    :param model: of which every number is set to k
    :param k: see above
    """
    model.num_timesteps = k
    with th.no_grad():
        for parameter in model.policy.parameters():
            parameter.fill_(k)
        for state in model.policy.optimizer.state.values():
            state["exp_avg"].fill_(k)


def save_until_killed(model: TRPO, path: Path, life: float) -> None:
    """
    Save a model again and again until the process is killed.

    :param model: the model to be saved, with other numbers each time
    :param path: the file
    :param life: seconds of a processor, so that it does not matter what else runs; then the system ends the process
    """
    signal.setitimer(signal.ITIMER_PROF, life)
    k = model.num_timesteps
    while True:
        k += 1
        number(model, k)
        model.save(path)


def what_is_wrong(path: Path, before: int) -> tuple[str, int]:
    """
    Find out what is wrong with a saved model.

    :param path: of a saved model
    :param before: the number of the model that was there before
    :return: a complaint, if any; the model's number
    """
    try:
        model = TRPO.load(path, device="cpu")
    except Exception as error:
        return repr(error), before
    k = model.num_timesteps
    moments = [state["exp_avg"] for state in model.policy.optimizer.state.values()]
    is_whole = len(moments) > 0 and all(bool((x == k).all()) for x in [*model.policy.parameters(), *moments])
    return "" if is_whole and k >= before else f"a mixture of models, {before} and {k}", k


def main(folder: Path, n_kills: int, seed: int) -> None:
    th.set_num_threads(1)
    rng = random.Random(seed)
    path = folder / "model.zip"
    model = TRPO("MlpPolicy", "Pendulum-v1", n_steps=32, batch_size=32, policy_kwargs={"net_arch": [32]}, device="cpu")
    # The optimizer's state is there after an update.
    model.learn(32)
    number(model, 0)
    model.save(path)
    complaints, n_half_written, k = [], 0, 0
    for _ in range(n_kills):
        number(model, k)
        life = rng.uniform(0.001, 0.08)
        saver = os.fork()
        if saver == 0:
            save_until_killed(model, path, life)
        os.waitpid(saver, 0)
        complaint, k = what_is_wrong(path, k)
        complaints += [complaint] if complaint else []
        for abandoned in folder.glob(".*.tmp"):
            n_half_written += 1
            abandoned.unlink()
    print(json.dumps({"half written": n_half_written, "saved": k, "complaints": complaints}))


if __name__ == "__main__":
    main(Path(sys.argv[1]), int(sys.argv[2]), int(sys.argv[3]))
