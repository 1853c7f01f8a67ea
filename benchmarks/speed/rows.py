"""
The rows of the table: what is measured, and at how many threads.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from speed.run import Run


@dataclass(frozen=True)
class Row:
    """
    A row of the speed benchmark.

    :param module: of this package, imported only when it is needed
    :param function: in it; takes a ``Run`` and returns what it measured
    :param title: in a few words
    :param threads: at how many threads of torch it is measured
    :param on_gpu: whether it can be measured on a GPU, too
    """

    module: str
    function: str
    title: str
    threads: tuple[int, ...] = (1, 2)
    on_gpu: bool = False

    def load(self) -> Callable[[Run], dict[str, Any]]:
        module = __import__(f"speed.{self.module}", fromlist=[self.function])
        return getattr(module, self.function)


ROWS = {
    "defaults": Row(
        "updates", "defaults", "`train()`, defaults: 64-64, 2048 steps, 15 CG, 10 critic epochs of 128", on_gpu=True
    ),
    "zoo": Row("updates", "zoo", "`train()`, RL Zoo's MuJoCo settings: 25 CG, 20 critic epochs of 128", on_gpu=True),
    "wide": Row("updates", "wide", "`train()`, 256-256, 5000 steps, 10 CG, 5 full-batch critic steps", on_gpu=True),
    "wide-relu": Row("updates", "wide_relu", "`train()`, 256-256 with ReLU, 5000 steps"),
    "wide-elu": Row("updates", "wide_elu", "`train()`, 256-256 with ELU, 5000 steps"),
    "wider-relu": Row("updates", "wider_relu", "`train()`, 400-300 with ReLU, 5000 steps"),
    "wider-elu": Row("updates", "wider_elu", "`train()`, 400-300 with ELU, 5000 steps"),
    "policy-step": Row("updates", "policy_step", "policy step and one full-batch critic step, 64-64, 2048 steps"),
    "wide-policy-step": Row("updates", "wide_policy_step", "the same, 256-256, 5000 steps"),
    "fisher": Row("fisher", "fisher_product", "one Fisher-vector product"),
    "direction": Row("direction", "direction", "the tolerance of conjugate gradient", threads=(1,)),
    "many": Row("many", "many", "pendulums in one array, 24 steps of each environment, 256-128-64 ELU"),
    "learn-1": Row("learning", "learn_1", "`learn()`, HalfCheetah-v5, 1 environment"),
    "learn-8": Row("learning", "learn_8", "`learn()`, HalfCheetah-v5, 8 environments in DummyVecEnv"),
    "learn-subproc-8": Row("learning", "learn_subproc_8", "`learn()`, HalfCheetah-v5, 8 environments in SubprocVecEnv"),
    "learn-subproc-64": Row(
        "learning", "learn_subproc_64", "`learn()`, HalfCheetah-v5, 64 environments in SubprocVecEnv"
    ),
    "variants": Row("variants", "variants", "`learn()` with callbacks, networks and observations of other kinds"),
    "masks": Row("twins", "masks", "`train()` with action masks", threads=(1,)),
    "lstm": Row("twins", "lstm", "`learn()` with an LSTM of 64 units, CartPole-v1 without velocities, 8 environments"),
    "envpool": Row("learning", "envpool", "`learn()`, HalfCheetah-v5, best settings of each"),
    "profile": Row("profiling", "profile", "where a `learn()` iteration goes", threads=(1,)),
    "budget": Row("budget", "budget", "where the time of `make train` goes", threads=(1,)),
    "growth": Row("growth", "growth", "growth with samples and parameters", threads=(1,), on_gpu=True),
    "images": Row("images", "images", "`train()`, 1024 images 4x84x84, NatureCNN, shared extractor", on_gpu=True),
}
