"""
The collectives of several ranks: each gives all of them what one process with everything would have.
"""

import multiprocessing
from typing import Any

import pytest
import torch as th
from launching import free_port
from rank_collectives import PRECISIONS, SAMPLES, use_each_as, vector

from sb3_trpo.ranks.alone import Share

# No powers of two: the last ranks hand their part to others.
SIZES = (3, pytest.param(5, marks=pytest.mark.slow))


@pytest.fixture(scope="module", params=SIZES)
def results(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> list[dict[str, Any]]:
    """
    Let ranks use each collective.

    :return: what each rank got
    """
    folder, size, port = tmp_path_factory.mktemp("collectives"), request.param, free_port()
    # Forks of a server that has imported torch.
    processes = [
        multiprocessing.get_context("forkserver").Process(target=use_each_as, args=(rank, size, port, folder))
        for rank in range(size)
    ]
    for process in processes:
        process.start()
    for process in processes:
        process.join(timeout=120)
    assert [process.exitcode for process in processes] == [0] * size
    return [th.load(folder / f"{rank}", weights_only=False) for rank in range(size)]


def test_all_ranks_have_the_same_bits(results: list[dict[str, Any]]) -> None:
    first = results[0]
    for other in results[1:]:
        for name in ("sum", "sum_each", "copied"):
            assert all(th.equal(a, b) for a, b in zip(first[name], other[name], strict=True))
        assert th.equal(first["mean"], other["mean"])
        for name in ("all", "counts", "gather", "broadcast"):
            assert first[name] == other[name]


def test_a_sum_is_that_of_all_vectors_in_their_precision(results: list[dict[str, Any]]) -> None:
    for dtype, total in zip(PRECISIONS, results[0]["sum"], strict=True):
        expected = sum(vector(rank, dtype).double() for rank in range(len(results)))
        assert total.dtype == dtype
        th.testing.assert_close(
            total.double(),
            expected,
            rtol=8 * th.finfo(dtype).eps,
            atol=float(expected.abs().max()) * th.finfo(dtype).eps,
        )


def test_tensors_that_are_summed_together_keep_their_shapes_and_precisions(results: list[dict[str, Any]]) -> None:
    matrix, number, double = results[0]["sum_each"]
    total = results[0]["sum"][0]
    assert (matrix.dtype, number.dtype, double.dtype) == (th.float32, th.float32, th.float64)
    th.testing.assert_close(matrix, total[:6].view(2, 3))
    th.testing.assert_close(number, total[6])
    th.testing.assert_close(double, total[7:9].double(), rtol=1e-6, atol=1e-5)


def test_a_mean_counts_the_samples_of_each_rank(results: list[dict[str, Any]]) -> None:
    counts = SAMPLES[: len(results)]
    expected = sum(n * vector(rank).double() for rank, n in enumerate(counts)) / sum(counts)
    for result in results:
        th.testing.assert_close(result["mean"].double(), expected, rtol=1e-5, atol=float(expected.abs().max()) * 1e-6)
        assert th.equal(result["mean_"], result["mean"])


def test_only_what_is_done_in_place_changes_its_argument(results: list[dict[str, Any]]) -> None:
    for rank, result in enumerate(results):
        assert th.equal(result["unchanged"], vector(rank))


def test_the_first_ranks_tensors_are_copied_bit_for_bit(results: list[dict[str, Any]]) -> None:
    for result in results:
        assert th.equal(result["copied"][0], vector(0))
        assert th.equal(result["copied"][1], vector(0)[:3].double())


def test_a_condition_holds_if_it_holds_on_all_ranks(results: list[dict[str, Any]]) -> None:
    assert results[0]["all"] == [True, False, False]


def test_counts_and_objects_come_in_the_order_of_ranks(results: list[dict[str, Any]]) -> None:
    size = len(results)
    assert results[0]["counts"] == [[SAMPLES[rank], rank] for rank in range(size)]
    assert results[0]["gather"] == [{"rank": rank} for rank in range(size)]
    assert results[0]["broadcast"] == "from 0"


def test_each_rank_knows_its_share(results: list[dict[str, Any]]) -> None:
    counts = SAMPLES[: len(results)]
    for rank, result in enumerate(results):
        assert result["share"] == Share(sum(counts[:rank]), sum(counts))
