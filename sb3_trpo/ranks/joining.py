"""
Where the ranks come from: ``torchrun`` and its like, or a program that has set up ``torch.distributed`` itself.
"""

import atexit
import datetime
import os
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch as th
import torch.distributed as dist

from sb3_trpo.ranks.alone import ALONE, Ranks
from sb3_trpo.validation.values import UserError

if TYPE_CHECKING:
    from sb3_trpo.ranks.connected import ConnectedRanks

# How long a rank waits for the others, in seconds: within an update, where all take about the same, and from one update
# to the next, where the first rank may evaluate the policy.
UPDATE_TIMEOUT, ROLLOUT_TIMEOUT = 60.0, 1800.0
UPDATE_VARIABLE, ROLLOUT_VARIABLE = "SB3_TRPO_UPDATE_TIMEOUT", "SB3_TRPO_ROLLOUT_TIMEOUT"
MAX_RANKS, MAX_PORT = 2**20, 2**16 - 1
# What torchrun sets in the environment of each process.
_LAUNCHED = ("RANK", "WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT")


@dataclass
class _Joined:
    """
    The connection of this process.

    :param world: torch's default group at the time, for it may be replaced
    :param backend: the backends of our own group
    :param ranks: the ranks
    """

    world: "dist.ProcessGroup"
    backend: str
    ranks: "ConnectedRanks"


_joined: list[_Joined] = []


def launched_as() -> tuple[int, int]:
    """
    Find out as which of how many ranks this process was launched, without talking to the others.

    :return: the number of the rank, and that of all
    :raises UserError: if the variables that say so are none that a launcher sets
    """
    if not dist.is_available():
        return 0, 1
    if dist.is_initialized():
        return dist.get_rank(), dist.get_world_size()
    if not all(os.environ.get(name) for name in _LAUNCHED):
        return 0, 1
    size = _whole("WORLD_SIZE", 1, MAX_RANKS)
    return _whole("RANK", 0, size - 1), size


def device_of_rank(device: th.device | str) -> th.device | str:
    """
    Choose the GPU of this rank, where there are several on a machine.

    :param device: the device that the user has named
    :return: for a GPU without a number that of ``LOCAL_RANK``; any other device as it is
    """
    is_open = str(device) in ("auto", "cuda") and launched_as()[1] > 1 and th.cuda.is_available()
    if not is_open:
        return device
    return th.device("cuda", _whole("LOCAL_RANK", 0, MAX_RANKS) % th.cuda.device_count())


def join(device: th.device) -> Ranks:
    """
    Connect this process with the other ranks, if it was launched as one of several.

    :param device: the device that the model is on
    :return: the ranks; alone if there are no others
    """
    rank, size = launched_as()
    if size == 1:
        return ALONE
    # There are builds of torch without them.
    from torch._C._distributed_c10d import PrefixStore

    from sb3_trpo.ranks.blame import Blame
    from sb3_trpo.ranks.connected import ConnectedRanks

    backend = "cpu:gloo,cuda:nccl" if device.type == "cuda" and dist.is_nccl_available() else "gloo"
    timeouts = (_seconds(UPDATE_VARIABLE, UPDATE_TIMEOUT), _seconds(ROLLOUT_VARIABLE, ROLLOUT_TIMEOUT))
    if not dist.is_initialized():
        _initialize(backend, rank, size, datetime.timedelta(seconds=timeouts[1]))
    world = dist.group.WORLD
    assert world is not None
    for joined in _joined:
        if joined.world is world and joined.backend == backend and joined.ranks.is_connected:
            return joined.ranks
    group = dist.new_group(timeout=datetime.timedelta(seconds=timeouts[1]), backend=backend)
    assert isinstance(group, dist.ProcessGroup)
    # torch has no public way to the store of a group that others have made.
    store = PrefixStore(f"sb3_trpo/{group.group_name}", dist.distributed_c10d._get_default_store())
    sums_on = device if "nccl" in backend else th.device("cpu")
    ranks = ConnectedRanks(group, sums_on, Blame(store, rank, size), *timeouts)
    _joined[:] = [*(joined for joined in _joined if joined.world is world), _Joined(world, backend, ranks)]
    return ranks


def _initialize(backend: str, rank: int, size: int, timeout: datetime.timedelta) -> None:
    """
    Set up ``torch.distributed`` as torchrun's variables say.

    :param backend: the backends of the default group
    :param rank: the number of this rank
    :param size: the number of ranks
    :param timeout: how long to wait for the others
    :raises LostRankError: if they do not come
    """
    from torch._C._distributed_c10d import PrefixStore, Store, TCPStore

    from sb3_trpo.ranks.blame import LostRankError

    host, port = os.environ["MASTER_ADDR"], _whole("MASTER_PORT", 0, MAX_PORT)
    # torchrun's own process keeps the store, if it says so.
    is_master = rank == 0 and os.environ.get("TORCHELASTIC_USE_AGENT_STORE") != "True"
    try:
        store: Store = TCPStore(host, port, size, is_master, timeout)
        # After a restart the store still has the addresses of processes that have ended.
        store = PrefixStore(f"sb3_trpo/{os.environ.get('TORCHELASTIC_RESTART_COUNT', '0')}", store)
        dist.init_process_group(backend, store=store, rank=rank, world_size=size, timeout=timeout)
    except RuntimeError as error:
        raise LostRankError(
            f"Rank {rank} of {size} (RANK, WORLD_SIZE) did not meet the others at {host}:{port} (MASTER_ADDR, "
            f"MASTER_PORT) within {timeout.total_seconds():g} seconds ({ROLLOUT_VARIABLE}): {_first_line(error)}."
        ) from error
    # Without it, a rank that ends early may take others down with it, with an error from inside of gloo.
    atexit.register(_finish)


def _finish() -> None:
    if dist.is_initialized():
        _joined.clear()
        dist.destroy_process_group()


def _first_line(error: Exception) -> str:
    return str(error).strip().partition("\n")[0].rstrip(".")


def _whole(name: str, least: int, most: int) -> int:
    """
    Read a whole number that a launcher has set.

    :param name: the variable's name
    :param least: the least allowed value, which it has where it is not set
    :param most: the largest allowed value
    :return: the number
    :raises UserError: if it is none, or beyond
    """
    text = os.environ.get(name, "") or str(least)
    if not (text.isascii() and text.isdecimal() and least <= int(text) <= most):
        raise UserError(
            f"The environment variable {name} is {text!r}, but must be a whole number from {least} to {most}, as "
            "torchrun sets it."
        )
    return int(text)


def _seconds(name: str, default: float) -> float:
    text = os.environ.get(name, "")
    try:
        seconds = float(text) if text else default
    except ValueError:
        seconds = 0.0
    if not seconds > 0.0:
        raise UserError(f"{name} is {text!r}, but must be a number of seconds above 0.")
    return seconds
