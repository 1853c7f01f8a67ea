"""
Two machines that train together: network namespaces joined by a cable, one ``torchrun --nnodes 2`` in each.

    sudo python benchmarks/two_machines.py --env HalfCheetah-v5 --delays 0 1

A delay of 0 is a plain veth pair. Any other, in milliseconds on each way, is added by a small program that carries the
packets from one namespace to the other, for not every kernel can delay them itself (netem). The same training in two
processes of one machine stands beside it. All must end with the same parameters, bit for bit. The last line is JSON.
"""

import argparse
import contextlib
import fcntl
import json
import multiprocessing
import os
import pathlib
import selectors
import statistics
import struct
import subprocess
import sys
import time
from collections import deque
from collections.abc import Iterator

from distributed import TASKS, leave, run

NAMESPACES = ("sb3_trpo_a", "sb3_trpo_b")
DEVICES = ("sb3trpo0", "sb3trpo1")
ADDRESSES = ("10.77.0.1", "10.77.0.2")
PORT = 29_500
# From linux/if_tun.h.
TUNSETIFF, IFF_TUN, IFF_NO_PI = 0x400454CA, 0x0001, 0x1000
MAX_PACKET = 65_536


def ip(*arguments: str) -> None:
    """
    Run the command ``ip``.

    :param arguments: its arguments
    """
    subprocess.run(["ip", *arguments], check=True)


def open_tun(name: str) -> int:
    """
    Make a network device whose packets are read and written here.

    :param name: the device's name
    :return: the file's number
    """
    file = os.open("/dev/net/tun", os.O_RDWR)
    fcntl.ioctl(file, TUNSETIFF, struct.pack("16sH", name.encode(), IFF_TUN | IFF_NO_PI))
    return file


def carry(files: tuple[int, int], delay: float) -> None:
    """
    Carry packets from each device to the other, without end.

    :param files: the devices
    :param delay: how long each packet takes, in seconds
    """
    other = dict(zip(files, reversed(files), strict=True))
    waiting: deque[tuple[float, int, bytes]] = deque()
    with selectors.DefaultSelector() as selector:
        for file in files:
            selector.register(file, selectors.EVENT_READ)
        while True:
            for key, _ in selector.select(max(0.0, waiting[0][0] - time.monotonic()) if waiting else None):
                packet = os.read(key.fd, MAX_PACKET)
                waiting.append((time.monotonic() + delay, other[key.fd], packet))
            while waiting and waiting[0][0] <= time.monotonic():
                _, file, packet = waiting.popleft()
                # An end that is not up yet takes none.
                with contextlib.suppress(OSError):
                    os.write(file, packet)


@contextlib.contextmanager
def join_namespaces(delay: float) -> Iterator[None]:
    """
    Make two network namespaces and a cable between them, for the duration of a block.

    :param delay: how long each packet takes, in seconds
    """
    with contextlib.ExitStack() as stack:
        for namespace in NAMESPACES:
            ip("netns", "add", namespace)
            stack.callback(ip, "netns", "del", namespace)
        if delay:
            files = (open_tun(DEVICES[0]), open_tun(DEVICES[1]))
            carrier = multiprocessing.get_context("fork").Process(target=carry, args=(files, delay))
            carrier.start()
            stack.callback(carrier.join)
            stack.callback(carrier.kill)
            for file, device, namespace in zip(files, DEVICES, NAMESPACES, strict=True):
                os.close(file)
                ip("link", "set", device, "netns", namespace)
        else:
            first, second = zip(DEVICES, NAMESPACES, strict=True)
            ip(
                "link",
                "add",
                first[0],
                "netns",
                first[1],
                "type",
                "veth",
                "peer",
                "name",
                second[0],
                "netns",
                second[1],
            )
        for device, namespace, address in zip(DEVICES, NAMESPACES, ADDRESSES, strict=True):
            ip("-n", namespace, "address", "add", f"{address}/24", "dev", device)
            ip("-n", namespace, "link", "set", device, "up")
            ip("-n", namespace, "link", "set", "lo", "up")
        yield


def train_in_namespaces(worker: list[str]) -> list[dict[str, object]]:
    """
    Train with one rank in each namespace.

    :param worker: the arguments of ``distributed.py``
    :return: what each rank has found
    """
    script = pathlib.Path(__file__).with_name("distributed.py")
    launcher = [sys.executable, "-m", "torch.distributed.run", "--nnodes", "2", "--nproc-per-node", "1"]
    launcher += ["--rdzv-backend", "c10d", "--rdzv-endpoint", f"{ADDRESSES[0]}:{PORT}"]
    processes = []
    for namespace, device, address in zip(NAMESPACES, DEVICES, ADDRESSES, strict=True):
        # A namespace has no name server that knows its address, from which torchrun would tell whose the endpoint is.
        is_host = str(address == ADDRESSES[0]).lower()
        command = [*launcher, "--rdzv-conf", f"is_host={is_host}", "--local-addr", address]
        command += [str(script), *worker, "--worker"]
        processes.append(
            subprocess.Popen(
                ["ip", "netns", "exec", namespace, *command],
                env={**os.environ, "OMP_NUM_THREADS": "1", "GLOO_SOCKET_IFNAME": device},
                stdout=subprocess.PIPE,
                text=True,
            )
        )
    outputs = [process.communicate()[0] for process in processes]
    if any(process.returncode for process in processes):
        sys.exit("a process has failed")
    return [json.loads(output.splitlines()[-1]) for output in outputs]


def main() -> None:
    """Run the command."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n\n")[0])
    parser.add_argument("--env", choices=TASKS, default="HalfCheetah-v5")
    parser.add_argument("--delays", type=float, nargs="+", default=[0.0, 1.0], help="milliseconds on each way")
    parser.add_argument("--iterations", type=int, default=10, help="of each training")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--output", type=pathlib.Path, help="a file for the result")
    arguments = parser.parse_args()
    if os.geteuid() != 0:
        sys.exit("Only root may make network namespaces: run this with sudo.")
    worker = ["scaling", "--env", arguments.env, "--iterations", str(arguments.iterations)]
    ways = {"one machine": None, **{f"{delay:g} ms": 1e-3 * delay for delay in arguments.delays}}
    times: dict[str, list[float]] = {name: [] for name in ways}
    load, parameters, counts = os.getloadavg()[0], set(), {}
    for _ in range(arguments.rounds):
        for name, delay in ways.items():
            if delay is None:
                results = run(worker, 2, together=True)
            else:
                with join_namespaces(delay):
                    results = train_in_namespaces(worker)
            times[name].append(max(result["milliseconds"] for result in results))
            parameters |= {result["parameters"] for result in results}
            counts = {key: results[0][key] for key in ("sums", "bytes")}
    if len(parameters) != 1:
        sys.exit("the trainings have ended with different parameters")
    medians = {name: round(statistics.median(values), 1) for name, values in times.items()}
    machine = {"cores": os.cpu_count(), "load before": load}
    leave({"env": arguments.env, **machine, "milliseconds": medians, "rounds": times, **counts}, arguments.output)


if __name__ == "__main__":
    main()
