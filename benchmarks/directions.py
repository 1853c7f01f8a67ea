"""
Measure how good the direction of an update is, and what another λ or another damping would make of it.

    python benchmarks/directions.py --task HalfCheetah-v5 --seed 103 --at 150000 500000

A run's final return says little about one hyperparameter: it differs by thousands between seeds. A direction can be
judged by itself. At each of the named steps of a training the policy stands still for 100 rollouts. From each of them
the gradient of the surrogate and the direction x = (F + damping)⁻¹ gradient are computed as an update would. What x is
worth is its gain g·x / √(xᵀFx), the improvement per √KL, with F over states from all rollouts and g the mean gradient
of all *other* rollouts, at a λ near 1: data that x has not seen.

Every direction is noise for the most part. What λ, damping or clipping take out of it they may pay for with bias.
The gain from one rollout has both in it, and it is what counts: training is a sum of updates from one rollout each.
Directions from the mean of the gradients of 10 and of 50 rollouts have less noise, and show the bias by itself.
"""

import argparse
import copy
import json
import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import cast

import numpy as np
import torch as th
from campaign import command_line, overrides
from campaign.algorithms import allowed_keys, read_hyperparameters
from campaign.experiment import Experiment
from campaign.provenance import provenance
from campaign.specification import RunSpecification
from campaign.tables import table
from stable_baselines3.common.buffers import RolloutBuffer
from stable_baselines3.common.callbacks import BaseCallback

from sb3_trpo import TRPO
from sb3_trpo.trust_region.conjugate_gradient import conjugate_gradient
from sb3_trpo.trust_region.fisher import Fisher
from sb3_trpo.trust_region.linearization import Linearizations
from sb3_trpo.trust_region.preconditioner import kronecker_preconditioner
from sb3_trpo.trust_region.surrogate import Surrogate
from sb3_trpo.update.actor import Actor
from sb3_trpo.update.samples import select, whole_rollout

RESULTS = Path(__file__).parent / "results" / "directions"

# λ of what is taken for the truth: hardly any bias, and its noise averages out over all rollouts.
TRUTH_LAMBDA = 0.98
# Rollouts whose gradients are averaged before the direction is computed.
GROUPS = (1, 10, 50)
# Their ends meet: the rollout before and after shares episodes with a group, and takes no part in its truth.
N_NEIGHBOURS = 2
# States of F.
N_STATES = 2000


@dataclass(frozen=True)
class Choice:
    """
    A way to choose the direction.

    :param gae_lambda: λ of the advantages
    :param cg_damping: of the direction
    """

    gae_lambda: float
    cg_damping: float


# Of each choice and size of a group: mean gain, and its standard error over the groups.
Gains = dict[Choice, dict[int, tuple[float, float]]]


class StandStill(BaseCallback):
    """
    From each of the named steps on the policy stays as it is for some rollouts, which training's schedules don't count.
    The environments and their normalisation statistics do move on.

    :param at: steps of training, increasing
    :param n_rollouts: for which the policy stands still
    :param choices: to be judged
    """

    # Of the steps nothing is read.
    reads_values = False

    def __init__(self, at: Sequence[int], n_rollouts: int, choices: Sequence[Choice]) -> None:
        super().__init__()
        self.waiting = list(at)
        self.n_rollouts = n_rollouts
        self.choices = choices
        self.gains: dict[int, Gains] = {}
        self._buffers: list[RolloutBuffer] = []

    def _on_rollout_start(self) -> None:
        if self.waiting and self.model.num_timesteps >= self.waiting[0]:
            self.model.train = self._keep_rollout  # type: ignore[attr-defined]

    def _on_step(self) -> bool:
        # Nothing that comes after the last of them is of interest.
        return bool(self.waiting)

    def _keep_rollout(self) -> None:
        """
        In place of an update.
        """
        model = cast(TRPO, self.model)
        self._buffers.append(copy.deepcopy(model.rollout_buffer))
        model.num_timesteps -= model.n_steps * model.n_envs
        if len(self._buffers) == self.n_rollouts:
            self.gains[self.waiting.pop(0)] = judge(model, self._buffers, self.choices)
            self._buffers.clear()
            del model.train


def judge(model: TRPO, buffers: Sequence[RolloutBuffer], choices: Sequence[Choice]) -> Gains:
    """
    Judge the directions that choices lead to.

    :param model: with the policy that collected the rollouts
    :param buffers: the rollouts, in their order
    :param choices: to be judged
    :return: what their directions gain
    """
    fisher = pooled_fisher(model, buffers)
    truth = gradients(model, buffers, TRUTH_LAMBDA)
    by_lambda = {lam: gradients(model, buffers, lam) for lam in {choice.gae_lambda for choice in choices}}
    return {
        choice: {
            size: gain(fisher, by_lambda[choice.gae_lambda], truth, choice.cg_damping, size)
            for size in GROUPS
            if size + 2 * N_NEIGHBOURS < len(buffers)
        }
        for choice in choices
    }


def pooled_fisher(model: TRPO, buffers: Sequence[RolloutBuffer]) -> Fisher:
    """
    Measure F over many rollouts.

    :param model: of the policy
    :param buffers: rollouts
    :return: F over states from all of them
    """
    thinned = [select(whole_rollout(copy.copy(b)), slice(None, None, len(buffers))) for b in buffers]
    states = type(thinned[0])(*map(th.cat, zip(*thinned, strict=True)))
    n_states = len(states.observations)
    states = select(states, slice(None, None, max(1, n_states // N_STATES)))
    return Fisher(Linearizations(actor_of(model).linearize, [states]))


def actor_of(model: TRPO) -> Actor:
    return Actor(model.policy, model._action_distribution, model._is_builtin("_action_distribution"))


def gradients(model: TRPO, buffers: Sequence[RolloutBuffer], gae_lambda: float) -> th.Tensor:
    """
    Compute each rollout's gradient.

    :param model: of the policy
    :param buffers: rollouts
    :param gae_lambda: λ of their advantages
    :return: gradient of the surrogate in each rollout, all in the same units, (n_rollouts, P)
    """
    result, scales = [], []
    actor = actor_of(model)
    for buffer in buffers:
        samples = whole_rollout(with_lambda(buffer, gae_lambda))
        batches = model._policy_batches(samples)
        linearizations = Linearizations(actor.linearize, [batch.samples for batch in batches])
        surrogate = Surrogate(actor.distribution, batches, linearizations, model.ent_coef, model._log_prob())
        result.append(surrogate.gradient)
        scales.append(float(samples.advantages.std()) if model.normalize_advantage else 1.0)
    # An update gives its advantages a standard deviation of 1; in a mean, rollouts are to count by what is in them.
    scale = th.tensor(scales) / float(np.mean(scales))
    return th.stack(result) * scale.unsqueeze(1)


def with_lambda(buffer: RolloutBuffer, gae_lambda: float) -> RolloutBuffer:
    """
    Compute the advantages of a rollout anew.

    :param buffer: with the advantages of some λ
    :param gae_lambda: another
    :return: the same rollout with the advantages of this one
    """
    result = copy.copy(buffer)
    result.advantages, result.gae_lambda = np.empty_like(buffer.advantages), gae_lambda
    # The last step's advantage is r + γ V(s') − V(s), whatever λ is, and V(s') is there 0 where the episode ended.
    last_values = (buffer.advantages[-1] + buffer.values[-1] - buffer.rewards[-1]) / buffer.gamma
    result.compute_returns_and_advantage(th.as_tensor(last_values), dones=np.zeros(buffer.n_envs))
    return result


def gain(fisher: Fisher, each: th.Tensor, truth: th.Tensor, damping: float, size: int) -> tuple[float, float]:
    """
    Measure what directions gain on rollouts that they were not made of.

    :param fisher: F
    :param each: the rollouts' gradients, (n_rollouts, P)
    :param truth: the same at a λ near 1, (n_rollouts, P)
    :param damping: of the directions
    :param size: rollouts that a direction is made of; what is left over at the end takes no part
    :return: mean of g·x / √(xᵀFx) over the groups, and its standard error (nan for one group)
    """
    n_rollouts, total = len(each), truth.sum(dim=0)
    preconditioner = kronecker_preconditioner(fisher.linearizations.first(), damping)
    gains = []
    for start in range(0, n_rollouts - size + 1, size):
        first, end = max(0, start - N_NEIGHBOURS), min(n_rollouts, start + size + N_NEIGHBOURS)
        g = (total - truth[first:end].sum(dim=0)) / (n_rollouts - (end - first))
        solution = conjugate_gradient(
            lambda v: (fisher @ v).add_(v, alpha=damping),
            each[start : start + size].mean(dim=0),
            max_steps=100,
            residual_tol=0.02,
            preconditioner=preconditioner,
        )
        gains.append(float(g.dot(solution.x)) / math.sqrt(fisher.quadratic_form(solution.x, solution.product, damping)))
    error = float(np.std(gains, ddof=1)) / math.sqrt(len(gains)) if len(gains) > 1 else math.nan
    return float(np.mean(gains)), error


def gains_table(gains: Gains) -> str:
    """
    Write the table of one policy's gains.

    :param gains: of one policy
    :return: the table in Markdown, in thousandths
    """
    sizes = list(next(iter(gains.values())))
    rows = [
        [f"{choice.gae_lambda:g}", f"{choice.cg_damping:g}"]
        + [f"{1e3 * mean:.1f} ± {1e3 * error:.1f}" for mean, error in by_size.values()]
        for choice, by_size in gains.items()
    ]
    return table(["λ", "damping", *(f"mean of {size}" if size > 1 else "one rollout" for size in sizes)], rows)


def make_run(options: argparse.Namespace) -> RunSpecification:
    """
    Make the training whose policies are judged.

    :param options: the command line's
    :return: the training that is to stand still now and then
    """
    if options.rollouts <= 1 + 2 * N_NEIGHBOURS:
        raise ValueError(f"rollouts={options.rollouts} must be more than {1 + 2 * N_NEIGHBOURS}.")
    if not 0 <= min(options.at) <= max(options.at) < options.steps:
        raise ValueError(f"at={options.at} must all lie below steps={options.steps}, and not below 0.")
    command_line.check_task(options.task)
    hyperparams, source = read_hyperparameters("sb3_trpo", options.task)
    hyperparams = overrides.apply(hyperparams, options.set, allowed_keys("sb3_trpo"))
    return RunSpecification(
        "learning", options.task, "sb3_trpo", options.seed, options.steps, hyperparams, protocol={}, source=source
    )


def measure(run: RunSpecification, at: Sequence[int], n_rollouts: int, choices: Sequence[Choice]) -> dict[int, Gains]:
    """
    Train, and judge directions on the way.

    :param run: the training
    :param at: steps of it
    :param n_rollouts: for which it stands still at each
    :param choices: to be judged
    :return: what their directions gain at each
    """
    experiment = Experiment(run)
    model = experiment.make_model()
    stand_still = StandStill(sorted(set(at)), n_rollouts, choices)
    callbacks = [stand_still, *experiment.callbacks]
    model.learn(run.n_timesteps, callback=callbacks, log_interval=None)  # type: ignore[arg-type]
    return stand_still.gains


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--task", default="HalfCheetah-v5", help="Gymnasium id")
    parser.add_argument("--seed", type=int, default=103)
    parser.add_argument("--steps", type=int, default=1_000_000, help="of the training, which its schedules depend on")
    parser.add_argument("--at", nargs="+", type=int, default=[150_000, 500_000], help="steps to stand still at")
    parser.add_argument("--rollouts", type=int, default=100, help="for which the policy stands still")
    parser.add_argument("--lambdas", nargs="+", type=float, default=[0.7, 0.8, 0.9, 0.95, 0.97])
    parser.add_argument("--dampings", nargs="+", type=float, default=[0.1, 1.0])
    parser.add_argument("--set", action="append", default=[], metavar="KEY=VALUE", help="hyperparameters")
    options = parser.parse_args()
    th.set_num_threads(1)
    choices = [Choice(lam, damping) for damping in options.dampings for lam in options.lambdas]
    try:
        run = make_run(options)
    except (ImportError, ValueError) as error:
        parser.error(str(error))
    for step, gains in measure(run, options.at, options.rollouts, choices).items():
        path = RESULTS / options.task / f"seed-{options.seed}-{step}.json"
        path.parent.mkdir(parents=True, exist_ok=True)
        rows = [{**asdict(choice), "gain": by_size} for choice, by_size in gains.items()]
        result = {"run": run.to_dict(), "step": step, "rollouts": options.rollouts, "gains": rows, **provenance()}
        path.write_text(json.dumps(result, indent=1, default=str) + "\n")
        print(f"\n{options.task}, seed {options.seed}, after {step} steps:\n\n{gains_table(gains)}", flush=True)


if __name__ == "__main__":
    main()
