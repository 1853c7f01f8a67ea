"""
Training on several ranks, which are processes as torchrun starts them: each update is that of one process with all
environments, and a rank that is lost ends the others.
"""

import json
import shutil
import subprocess
import sys
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
import torch as th
from launching import HELPERS, environment, ranks, run_ranks
from rank_training import SETTINGS, digest
from rank_updates import KINDS, update
from stable_baselines3.common.env_util import make_vec_env

from sb3_trpo import TRPO

# The share of the update by which sums in another order may change it.
ROUNDING = 5e-6
# The logged numbers are differences and ratios of others, of which less is left.
LOG_ROUNDING = 1e-3
# With convolutions, which take seconds.
SLOW = [kind for kind in KINDS if "image" in kind or "Dict" in kind]
QUICK = [kind for kind in KINDS if kind not in SLOW]


def vector(state: dict[str, th.Tensor], prefix: str = "") -> th.Tensor:
    """
    Put a part of a model's state into one vector.

    :param state: from ``updates.state``
    :param prefix: of the names to take; "" for all that are the policy's, and "optimizer." for those of the optimizer
    :return: all numbers, in double precision
    """
    chosen = [tensor for name, tensor in state.items() if name.startswith("optimizer.") == bool(prefix)]
    return th.cat([tensor.double().flatten() for tensor in chosen])


def check_exact(kind: str, folder: Path, size: int) -> None:
    """
    Compare the step of several ranks with that of one process.

    :param kind: of the model
    :param folder: with the results of the ranks
    :param size: the number of ranks
    """
    results: list[dict[str, Any]] = [th.load(folder / f"{kind}.{rank}", weights_only=False) for rank in range(size)]
    expected = update(kind, size=size)
    first = results[0]
    for other in results[1:]:
        assert all(th.equal(other["after"][name], tensor) for name, tensor in first["after"].items())
        assert other["logged"] == first["logged"]
    for prefix in ("", "optimizer."):
        after, wanted = vector(first["after"], prefix), vector(expected["after"], prefix)
        step = wanted if prefix else wanted - vector(expected["before"])
        assert step.norm() > 0
        assert (after - wanted).norm() <= ROUNDING * step.norm()
    for logged, wanted_log in zip(first["logged"], expected["logged"], strict=True):
        for name in ("train/cg_iterations", "train/line_search_steps", "train/is_line_search_success"):
            assert logged[name] == wanted_log[name]
        assert logged == pytest.approx(wanted_log, rel=LOG_ROUNDING, abs=1e-9)


@pytest.fixture(scope="module")
def two_ranks(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """
    Let two ranks make an update of each kind.

    :return: the folder with all that two ranks have left
    """
    folder = tmp_path_factory.mktemp("two_ranks")
    run_ranks(2, [HELPERS / "rank_suite.py", folder, *QUICK])
    return folder


@pytest.mark.parametrize("kind", QUICK)
def test_two_ranks_take_the_step_of_one_process_with_all_environments(kind: str, two_ranks: Path) -> None:
    check_exact(kind, two_ranks, 2)


@pytest.mark.slow
@pytest.mark.parametrize("size", [2, 3, 4])
def test_any_number_of_ranks_takes_the_same_step(size: int, tmp_path: Path) -> None:
    run_ranks(size, [HELPERS / "rank_updates.py", tmp_path, *KINDS])
    for kind in KINDS:
        check_exact(kind, tmp_path, size)


def read(folder: Path, name: str, size: int) -> list[Any]:
    """
    Read what ranks have left.

    :param folder: with what ranks have left
    :param name: of the files
    :param size: the number of ranks
    :return: the content, by rank
    """
    return [json.loads((folder / f"{name}.{rank}").read_text()) for rank in range(size)]


@pytest.fixture(scope="module")
def starts(two_ranks: Path) -> list[Any]:
    """
    Let two ranks begin trainings that differ.

    :return: what two ranks have seen, by rank and case
    """
    return read(two_ranks, "seen", 2)


@pytest.mark.parametrize(
    ("case", "values"),
    [
        ("other steps", ("n_steps", "64", "96")),
        ("other environments", ("number of environments", "2", "3")),
        ("other schedule", ("target_kl", "[0.01, 0.01, 0.01]", "[0.011, 0.0105, 0.01]")),
        ("other total", ("total_timesteps", "256", "257")),
    ],
)
def test_ranks_that_would_not_do_the_same_are_refused_with_both_values(
    case: str, values: tuple[str, ...], starts: list[Any]
) -> None:
    for seen in starts:
        assert seen[case]["type"] == "UserError"
        assert all(value in seen[case]["text"] for value in values)


@pytest.mark.parametrize(("case", "named"), [("other weight", "parameters"), ("other gamma", "gamma")])
def test_ranks_that_have_come_apart_stop_and_say_so(case: str, named: str, starts: list[Any]) -> None:
    for seen in starts:
        assert seen[case]["type"] == "ApartError"
        assert named in seen[case]["text"]


def test_an_error_on_one_rank_ends_the_others_which_name_rank_and_cause(starts: list[Any]) -> None:
    assert starts[1]["error"] == {"type": "LookupError", "text": "no luck", "warnings": []}
    assert starts[0]["error"]["type"] == "LostRankError"
    assert "rank 1 has raised LookupError: no luck" in starts[0]["error"]["text"]


def test_a_stop_on_one_rank_is_a_stop_on_all(starts: list[Any]) -> None:
    assert starts[0]["stop"] == starts[1]["stop"]
    assert starts[0]["stop"]["steps"] < 2000


def test_ranks_that_opt_out_train_alone(starts: list[Any]) -> None:
    alone = TRPO("MlpPolicy", make_vec_env("Pendulum-v1", 2), **SETTINGS).learn(256)
    assert [seen["alone"]["digest"] for seen in starts] == [digest(alone)] * 2


def test_the_same_first_observations_are_warned_of_once(starts: list[Any]) -> None:
    (message,) = starts[0]["twins"]["warnings"]
    assert "Ranks 0, 1 begin with the same observations" in message
    assert starts[1]["twins"]["warnings"] == []


def test_one_rank_under_torchrun_is_plain_python_bit_for_bit(monkeypatch: pytest.MonkeyPatch) -> None:
    def train() -> str:
        return digest(TRPO("MlpPolicy", make_vec_env("Pendulum-v1", 2), **SETTINGS).learn(256))

    plain = train()
    for name, value in {"RANK": "0", "WORLD_SIZE": "1", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": "1"}.items():
        monkeypatch.setenv(name, value)
    assert train() == plain
    assert not th.distributed.is_initialized()


@pytest.fixture(scope="module")
def trained(two_ranks: Path) -> tuple[Path, list[Any]]:
    """
    Train on two ranks.

    :return: the folder of a training on two ranks, and what each has ended with
    """
    return two_ranks, read(two_ranks, "result", 2)


def test_all_ranks_end_the_same(trained: tuple[Path, list[Any]]) -> None:
    first, other = trained[1]
    of_one = ("calls", "logs")
    assert {name: value for name, value in first.items() if name not in of_one} == {
        name: value for name, value in other.items() if name not in of_one
    }


def test_steps_and_statistics_count_those_of_all_ranks(trained: tuple[Path, list[Any]]) -> None:
    first = trained[1][0]
    n_envs = 4
    assert first["steps"] == 1024
    # With the first observations, and what VecNormalize begins with.
    assert first["n_observed"] == pytest.approx(first["steps"] + n_envs + 1e-4)
    assert len(first["episodes"]) == n_envs * (first["steps"] // n_envs // 200)
    assert len(set(first["episodes"])) == len(first["episodes"])


def test_an_iteration_has_as_many_sums_as_it_needs(trained: tuple[Path, list[Any]]) -> None:
    """One for each quantity, whatever its size: a guard against one for each tensor."""
    first = trained[1][0]
    n_parameters, n_epochs = first["parameters"]
    n_minibatches = n_epochs * SETTINGS["n_steps"] * 2 // SETTINGS["batch_size"]
    # Advantages, gradient, entropy; three counts and the factors; F's curvature where digits are lost; the log's
    # numbers, the agreement, the end of the rollout.
    n_others = 11
    costs = first["costs"]
    assert len(costs) >= 3
    for (sums, n_bytes, *_), (later_sums, later_bytes, n_products, n_tries) in pairwise(costs):
        n_sums = later_sums - sums
        assert n_minibatches < n_sums <= n_minibatches + n_others + n_products + n_tries
        # Each sum has some of the parameters, or few numbers; the factors are about as large as four layers of 65.
        assert later_bytes - n_bytes <= 4 * n_parameters * (n_minibatches + n_products + 2) + 8 * 4 * 65**2


def test_callbacks_run_once_and_those_that_say_so_on_all_ranks(trained: tuple[Path, list[Any]]) -> None:
    first, other = trained[1]
    assert (first["calls"], other["calls"]) == (256, 0)
    assert first["gamma"] == other["gamma"] > 0.99


def test_a_checkpoint_goes_on_with_another_number_of_ranks(trained: tuple[Path, list[Any]], tmp_path: Path) -> None:
    """Here alone; the environments of the first rank go on."""
    shutil.copy(trained[0] / "checkpoint.zip", tmp_path)
    # In a process of its own: RL Zoo, where a test has imported it, changes what Gymnasium makes.
    run_ranks(1, [HELPERS / "rank_training.py", tmp_path])
    (result,) = read(tmp_path, "result", 1)
    assert result["steps"] == trained[1][0]["steps"]
    assert result["why_reset"] == ""


@pytest.mark.slow
def test_the_same_training_twice_is_the_same_bit_for_bit(trained: tuple[Path, list[Any]], tmp_path: Path) -> None:
    run_ranks(2, [HELPERS / "rank_training.py", tmp_path])
    # Sums are counted from the process's start, and the other process did other things before.
    of_process = ("costs",)
    again, before = (
        [{name: value for name, value in result.items() if name not in of_process} for result in results]
        for results in (read(tmp_path, "result", 2), trained[1])
    )
    assert again == before


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["raise", "kill", "hang", "stop"])
def test_a_rank_that_is_lost_ends_the_others_in_time_and_is_named(
    kind: str, trained: tuple[Path, list[Any]], tmp_path: Path
) -> None:
    limits = {"SB3_TRPO_UPDATE_TIMEOUT": 3, "SB3_TRPO_ROLLOUT_TIMEOUT": 20}
    with ranks(2, [HELPERS / "rank_training.py", tmp_path, kind, 600], **limits) as processes:
        assert processes[0].wait(timeout=300) == 1
    seen = json.loads((tmp_path / "result.0").read_text())
    assert seen["type"] == "LostRankError"
    assert "rank 1 has " in seen["text"]
    assert ("the fault of this test" in seen["text"]) == (kind == "raise")
    assert seen["seconds"] < 60

    run_ranks(2, [HELPERS / "rank_training.py", tmp_path])
    assert [result["digest"] for result in read(tmp_path, "result", 2)] == [trained[1][0]["digest"]] * 2


@pytest.mark.slow
def test_torchrun_restarts_a_killed_training_which_goes_on(trained: tuple[Path, list[Any]], tmp_path: Path) -> None:
    torchrun = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
    command = [*torchrun, "--max-restarts", "2", str(HELPERS / "rank_training.py"), str(tmp_path), "kill", "600"]
    result = subprocess.run(command, env=environment(), capture_output=True, text=True, timeout=300)
    assert result.returncode == 0, result.stderr
    assert [result["digest"] for result in read(tmp_path, "result", 2)] == [trained[1][0]["digest"]] * 2


@pytest.mark.slow
@pytest.mark.parametrize("size", [1, 3])
def test_a_checkpoint_goes_on_on_any_number_of_ranks(size: int, tmp_path: Path) -> None:
    with ranks(2, [HELPERS / "rank_training.py", tmp_path, "raise", 600]) as processes:
        assert processes[1].wait(timeout=300) == 1
    run_ranks(size, [HELPERS / "rank_training.py", tmp_path])
    results = read(tmp_path, "result", size)
    assert len({result["digest"] for result in results}) == 1
    assert [bool(result["why_reset"]) for result in results] == [rank >= 2 for rank in range(size)]
    assert results[0]["steps"] >= 1000
