"""
Whether the ranks are still the same: their parameters bit for bit, and the numbers that they go on with.
"""

import zlib
from collections.abc import Iterable, Mapping

import torch as th

from sb3_trpo.ranks.alone import Ranks

# A sum of many equal numbers is rounded. A checksum is a whole number, and so are its sums.
ROUNDING = 1e-14


class ApartError(Exception):
    """
    The ranks differ where they have to be the same.

    It is no ``RuntimeError``, after which an update would be undone and training go on.
    """


def check_agreement(parameters: Iterable[th.Tensor], numbers: Mapping[str, float], ranks: Ranks) -> None:
    """
    Compare parameters and numbers of all ranks, in one collective.

    :param parameters: the parameters
    :param numbers: the numbers, by name
    :param ranks: the ranks
    :raises ApartError: on a rank that differs from the mean of all; on at least one, if any two are different
    """
    if ranks.is_alone:
        return
    checksum = 0
    for parameter in parameters:
        checksum = zlib.crc32(parameter.detach().cpu().contiguous().numpy().tobytes(), checksum)
    own = th.tensor([float(checksum), *numbers.values()], dtype=th.float64)
    # If all agree with the sum, all are the same; no need to know the others' numbers.
    expected = own * ranks.size
    is_same = ((ranks.sum(own) - expected).abs() <= ROUNDING * expected.abs()).tolist()
    if not is_same[0]:
        raise ApartError(
            f"The ranks have come apart: the parameters of rank {ranks.rank} are not those of all {ranks.size} ranks, "
            "though all start with the same and take the same steps. Something else changes them on some ranks only, "
            "such as a callback (see runs_on_all_ranks), or the ranks' processors round in different ways."
        )
    for (name, value), same in zip(numbers.items(), is_same[1:], strict=True):
        if not same:
            raise ApartError(
                f"The ranks have come apart: {name} is {value} on rank {ranks.rank}, and another number on others. "
                "What changes it, such as a callback, has to run on all ranks (runs_on_all_ranks = True)."
            )
