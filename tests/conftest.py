import multiprocessing
import os
from collections.abc import Iterator

import pytest
import torch as th

# One thread: on few cores the tests' small matrices lose more to OpenMP's spinning than they gain,
# and the order of summation stays the same from machine to machine.
th.set_num_threads(1)
# Environments in processes of their own: each of these is a fork of a server that has imported what takes seconds.
multiprocessing.set_forkserver_preload(["torch", "stable_baselines3.common.env_util"])


def pytest_configure(config: pytest.Config) -> None:
    """Most tests ask for the same bits twice, which is a CPU's business: a GPU is for those marked so."""
    if "gpu" not in (config.option.markexpr or "").replace("not gpu", ""):
        os.environ["CUDA_VISIBLE_DEVICES"] = ""


@pytest.fixture(autouse=True, scope="session")
def logs_in_pytests_folder(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """SB3 makes a folder for the log of each model, in the system's temporary folder unless told otherwise."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("SB3_LOGDIR", str(tmp_path_factory.mktemp("logs")))
        yield


@pytest.fixture(autouse=True)
def distributions_check_their_arguments() -> None:
    """As in a new process: the first use of torch.compile switches these checks off for good."""
    th.distributions.Distribution.set_default_validate_args(__debug__)


@pytest.fixture(autouse=True)
def no_process_is_left() -> Iterator[None]:
    """Fail the test that leaves a process, not the one that later finds it."""
    before = set(multiprocessing.active_children())
    yield
    left = set(multiprocessing.active_children()) - before
    for process in left:
        process.kill()
        process.join()
    assert not left
