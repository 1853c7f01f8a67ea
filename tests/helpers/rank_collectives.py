"""
Use each collective once, as one of several ranks, and leave what it gave.
"""

import os
from pathlib import Path
from typing import Any

import torch as th
import torch.distributed as dist

from sb3_trpo.ranks.alone import Ranks
from sb3_trpo.ranks.joining import join

LENGTH = 1000
PRECISIONS = (th.float32, th.float64)
# The samples of each rank; some have none.
SAMPLES = (3, 0, 5, 2, 1)


def vector(rank: int, dtype: th.dtype = th.float32) -> th.Tensor:
    """
    Make the vector of a rank, which the others can make, too.

    :param rank: the number of the rank
    :param dtype: the precision
    :return: numbers of different sizes, (LENGTH,)
    """
    generator = th.Generator().manual_seed(rank)
    return (th.randn(LENGTH, generator=generator, dtype=th.float64) * 10.0**rank).to(dtype)


def use_each(ranks: Ranks) -> dict[str, Any]:
    """
    Use each collective once.

    :param ranks: the ranks
    :return: what each gave
    """
    rank, n = ranks.rank, SAMPLES[ranks.rank]
    own = vector(rank)
    in_place, copied = own.clone(), [own.clone(), own[:3].double()]
    ranks.mean_(in_place, n)
    ranks.copy_first_(copied)
    return {
        "sum": [ranks.sum(vector(rank, dtype)) for dtype in PRECISIONS],
        "sum_each": ranks.sum_each([own[:6].view(2, 3), own[6], own[7:9].double()]),
        "mean": ranks.mean(own, n),
        "mean_": in_place,
        "copied": copied,
        "all": [ranks.all(True), ranks.all(rank != 1), ranks.all(False)],
        "counts": ranks.counts([n, rank]),
        "share": ranks.share(n),
        "gather": ranks.gather({"rank": rank}),
        "broadcast": ranks.broadcast(f"from {rank}"),
        "unchanged": own,
    }


def use_each_as(rank: int, size: int, port: int, folder: Path) -> None:
    """
    Use each collective once, in a process of its own.

    :param rank: the number of this rank
    :param size: the number of ranks
    :param port: where they meet
    :param folder: the folder for what each collective gave
    """
    th.set_num_threads(1)
    os.environ |= {"RANK": str(rank), "WORLD_SIZE": str(size), "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
    th.save(use_each(join(th.device("cpu"))), folder / f"{rank}")
    dist.destroy_process_group()
