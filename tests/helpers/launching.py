"""
Several processes that train together, started as torchrun would start them, without its own process.
"""

import contextlib
import os
import socket
import subprocess
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path

HELPERS = Path(__file__).parent
REPOSITORY = HELPERS.parents[1]


def free_port() -> int:
    """
    Find a port that nobody listens at.

    :return: its number
    """
    with contextlib.closing(socket.socket()) as listener:
        listener.bind(("127.0.0.1", 0))
        return int(listener.getsockname()[1])


def environment(**variables: object) -> dict[str, str]:
    """
    Make the environment of a process in which the helpers and the package can be imported.

    :param variables: more variables
    :return: all variables
    """
    path = os.pathsep.join([str(REPOSITORY), str(HELPERS)])
    more = {name: str(value) for name, value in variables.items()}
    return {**os.environ, "PYTHONPATH": path, "OMP_NUM_THREADS": "1", **more}


@contextlib.contextmanager
def ranks(size: int, arguments: Sequence[object], **variables: object) -> Iterator[list["subprocess.Popen[str]"]]:
    """
    Run a script on several ranks, for the duration of a block.

    :param size: the number of ranks
    :param arguments: the script and its arguments
    :param variables: more environment variables
    :return: the processes, whose output is in their pipes
    """
    port = free_port()
    common = {"WORLD_SIZE": size, "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port, **variables}
    processes = [
        subprocess.Popen(
            [sys.executable, *map(str, arguments)],
            env=environment(RANK=rank, LOCAL_RANK=rank, **common),
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )
        for rank in range(size)
    ]
    try:
        yield processes
    finally:
        for process in processes:
            process.kill()
            process.communicate()


def run_ranks(size: int, arguments: Sequence[object], **variables: object) -> list[str]:
    """
    Run a script on several ranks until all have ended well.

    :param size: the number of ranks
    :param arguments: the script and its arguments
    :param variables: more environment variables
    :return: what each rank has printed
    """
    with ranks(size, arguments, **variables) as processes:
        outputs = [process.communicate(timeout=300)[0] for process in processes]
        assert [process.returncode for process in processes] == [0] * size, "\n".join(outputs)
    return outputs
