"""
Import, train, save, load and act, as a library and as a command, in a process that refuses every connection and every
look-up of a host, and ends with an error if there was one to refuse, whatever became of it.
"""

import importlib.util
import socket
import sys
from typing import Any

LOOKUPS = {"socket.getaddrinfo", "socket.gethostbyaddr", "socket.gethostbyname"}
# Not "socket.bind": urllib3 binds a socket to this very machine when it is imported, to see whether that has IPv6.
CONNECTIONS = {"socket.connect", "socket.sendmsg", "socket.sendto"}

refused: list[str] = []


def refuse(event: str, arguments: tuple[Any, ...]) -> None:
    """
    Refuse what touches the outside: an audit hook (PEP 578), which can't be removed.

    :param event: what is about to happen
    :param arguments: the host, or the socket and the address; processes of one machine talk through Unix sockets
    """
    if event in LOOKUPS or (event in CONNECTIONS and arguments[0].family != socket.AF_UNIX):
        refused.append(f"{event} {arguments}")
        raise OSError(f"no network here: {refused[-1]}")


def use_as_a_library() -> None:
    from stable_baselines3.common.env_util import make_vec_env
    from stable_baselines3.common.evaluation import evaluate_policy
    from stable_baselines3.common.vec_env import SubprocVecEnv

    from sb3_trpo import TRPO

    env = make_vec_env("CartPole-v1", 2, vec_env_cls=SubprocVecEnv)
    logs = "tensorboard" if importlib.util.find_spec("tensorboard") else None
    TRPO("MlpPolicy", env, n_steps=64, tensorboard_log=logs, device="cpu").learn(256).save("model")
    env.close()
    for trusted in (True, False):
        evaluate_policy(TRPO.load("model", trusted=trusted), make_vec_env("CartPole-v1"), n_eval_episodes=1)


def use_as_a_command() -> None:
    from sb3_trpo.cli import main

    short = ["--num-threads", "1", "--device", "cpu", "--verbose", "0", "--eval-episodes", "1"]
    main(["train", "--env", "CartPole-v1", "-n", "512", "-params", "n_steps:64", *short])
    main(["enjoy", "--env", "CartPole-v1", "-f", "logs", "--no-render", "-n", "10"])


if __name__ == "__main__":
    sys.addaudithook(refuse)
    use_as_a_library()
    if importlib.util.find_spec("rl_zoo3"):
        use_as_a_command()
    print("done")
    sys.exit("\n".join(refused) or 0)
