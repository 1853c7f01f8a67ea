"""
Use each collective once, as one of several ranks, and leave what it gave: ``python rank_collectives.py FOLDER``.
"""

import sys
from pathlib import Path
from typing import Any

import torch as th

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


if __name__ == "__main__":
    joined = join(th.device("cpu"))
    th.save(use_each(joined), Path(sys.argv[1]) / f"{joined.rank}")
