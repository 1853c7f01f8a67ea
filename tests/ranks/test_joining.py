"""
What launchers say in environment variables: it is read, and what no launcher says is named at once.
"""

import socket
from typing import Any

import pytest
import torch.distributed as dist

from sb3_trpo import TRPO
from sb3_trpo.ranks.blame import LostRankError
from sb3_trpo.ranks.joining import launched_as
from sb3_trpo.validation.values import UserError

LAUNCHED = {"RANK": "0", "WORLD_SIZE": "2", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": "29511"}


@pytest.fixture
def launch(monkeypatch: pytest.MonkeyPatch) -> Any:
    """Return a function that sets what a launcher sets."""

    def set_all(**variables: Any) -> None:
        for name, value in {**LAUNCHED, **variables}.items():
            monkeypatch.setenv(name, str(value))

    return set_all


@pytest.mark.parametrize(
    ("name", "value", "allowed"),
    [
        ("WORLD_SIZE", "abc", "from 1 to"),
        ("WORLD_SIZE", "0", "from 1 to"),
        ("WORLD_SIZE", "-2", "from 1 to"),
        ("WORLD_SIZE", "2.0", "from 1 to"),
        ("WORLD_SIZE", "9" * 30, "from 1 to"),
        ("RANK", "2", "from 0 to 1"),
        ("RANK", "-1", "from 0 to 1"),
        ("RANK", "first", "from 0 to 1"),
        ("RANK", "²", "from 0 to 1"),
    ],
)
def test_what_no_launcher_says_is_named_at_once(launch: Any, name: str, value: str, allowed: str) -> None:
    launch(**{name: value})
    said = f"^The environment variable {name} is '{value}', but must be a whole number {allowed}"
    with pytest.raises(UserError, match=said):
        TRPO("MlpPolicy", "Pendulum-v1", device="cpu")
    TRPO("MlpPolicy", "Pendulum-v1", device="cpu", distributed=False)


@pytest.mark.parametrize("port", ["xx", "-1", "65536"])
def test_a_port_that_is_none_is_named_when_training_begins(launch: Any, port: str) -> None:
    launch(MASTER_PORT=port)
    model = TRPO("MlpPolicy", "Pendulum-v1", n_steps=64, batch_size=64, device="cpu")
    with pytest.raises(UserError, match=f"^The environment variable MASTER_PORT is '{port}', but must be a whole"):
        model.learn(64)
    assert not dist.is_initialized()


@pytest.mark.parametrize("rank", [0, 1])
def test_others_that_do_not_come_are_told_with_where_and_how_long(launch: Any, rank: int) -> None:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    launch(RANK=rank, MASTER_PORT=port, SB3_TRPO_ROLLOUT_TIMEOUT="1")
    model = TRPO("MlpPolicy", "Pendulum-v1", n_steps=64, batch_size=64, device="cpu")
    said = rf"^Rank {rank} of 2 \(RANK, WORLD_SIZE\) did not meet the others at 127.0.0.1:{port} .* within 1 seconds"
    with pytest.raises(LostRankError, match=said):
        model.learn(64)
    assert not dist.is_initialized()


def test_one_of_one_and_what_is_not_launched_are_alone(launch: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    launch(WORLD_SIZE="1")
    assert launched_as() == (0, 1)
    launch(WORLD_SIZE="abc")
    monkeypatch.delenv("RANK")
    assert launched_as() == (0, 1)
