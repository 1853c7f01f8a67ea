"""
Active checks: of a task, by random actions, and of an algorithm, by one update that is measured from the outside.

They find what no log shows: an environment that gives something else each time, a subclass of TRPO or a buffer whose
advantages, divergence or gradient are not what they are taken for.
"""

import math
from collections.abc import Callable, Sequence
from typing import Any

import gymnasium as gym
import numpy as np
import torch as th
from gymnasium import spaces

from sb3_trpo.diagnosis.environment_rules import OBS_STD, RETURNS
from sb3_trpo.diagnosis.finding import Finding, Severity
from sb3_trpo.extension_points import Samples
from sb3_trpo.rollouts.statistics import discounted_sums
from sb3_trpo.trpo import TRPO
from sb3_trpo.trust_region.families import family_and_z
from sb3_trpo.trust_region.fisher import Fisher
from sb3_trpo.trust_region.kl import DistributionParameters
from sb3_trpo.trust_region.linearization import Linearizations
from sb3_trpo.trust_region.surrogate import PolicyBatch, Surrogate

# Steps that are done twice, and steps of random actions whose numbers are looked at.
REPEATED_STEPS = 200
RANDOM_STEPS = 2000
GAMMA = 0.99
# Actions of a new policy have about this size; bounds so much larger or smaller leave it little to choose.
BOUNDS = (0.1, 10.0)
# KL at which a gradient is compared with a finite difference, and δ at which KL tells its two directions apart.
SMALL_KL = 1e-4
LARGE_KL = 0.1
TOLERANCE = 0.1
KL_TOLERANCE = 0.02


def check_task(make_env: Callable[[], gym.Env[Any, Any]]) -> list[Finding]:
    """
    Try a task with random actions.

    :param make_env: a function that makes the environment
    :return: what is wrong with it
    """
    first, second = make_env(), make_env()
    try:
        observations, rewards, ends, n_outside = _random_steps(first, RANDOM_STEPS)
        repeated = _random_steps(second, REPEATED_STEPS)
        again = _random_steps(first, REPEATED_STEPS)
        findings = [
            _check_determinism(repeated, again),
            _check_observation_space(first, n_outside),
            _check_action_bounds(first.action_space),
            _check_observations(first.observation_space, observations),
            _check_ends(ends),
            _check_rewards(rewards, ends),
        ]
    finally:
        first.close()
        second.close()
    return sorted((finding for finding in findings if finding), key=lambda finding: -finding.severity)


_Steps = tuple[list[Any], np.ndarray, np.ndarray, int]


def _random_steps(env: gym.Env[Any, Any], n_steps: int) -> _Steps:
    """
    Step an environment from seed 0 on.

    :param env: the environment
    :param n_steps: the number of steps
    :return: observations; rewards and whether episodes ended, (n_steps, 1); the number of observations outside of
        their space
    """
    env.action_space.seed(0)
    observations = [env.reset(seed=0)[0]]
    rewards, ends = np.zeros((n_steps, 1)), np.zeros((n_steps, 1), dtype=bool)
    for step in range(n_steps):
        obs, reward, terminated, truncated, _ = env.step(env.action_space.sample())
        observations.append(obs)
        rewards[step], ends[step] = float(reward), terminated or truncated
        if ends[step]:
            observations.append(env.reset()[0])
    n_outside = sum(not env.observation_space.contains(obs) for obs in observations)
    return observations, rewards, ends, n_outside


def _check_determinism(one: _Steps, other: _Steps) -> Finding | None:
    is_same = np.array_equal(one[1], other[1]) and len(one[0]) == len(other[0])
    if is_same and all(_is_equal(a, b) for a, b in zip(one[0], other[0], strict=True)):
        return None
    return Finding(
        "not-deterministic",
        Severity.WARNING,
        "the environment gives something else each time, so that no run can be repeated",
        f"two series of {REPEATED_STEPS} steps from seed 0 with the same actions differ",
        "draw random numbers from self.np_random only, and pass seed on to super().reset(seed=seed)",
    )


def _is_equal(a: Any, b: Any) -> bool:
    if isinstance(a, dict) and isinstance(b, dict):
        return a.keys() == b.keys() and all(_is_equal(a[key], b[key]) for key in a)
    return np.array_equal(np.asarray(a), np.asarray(b))


def _check_observation_space(env: gym.Env[Any, Any], n_outside: int) -> Finding | None:
    if not n_outside:
        return None
    return Finding(
        "space-mismatch",
        Severity.WARNING,
        "observations are not what the observation space says",
        f"{n_outside} observations of {RANDOM_STEPS} steps lie outside of {env.observation_space}",
        "let the space have the bounds, shape and type of the observations",
    )


def _check_action_bounds(space: spaces.Space[Any]) -> Finding | None:
    if not isinstance(space, spaces.Box):
        return None
    bounds = np.abs(np.concatenate([space.low.reshape(-1), space.high.reshape(-1)]))
    bounds = bounds[np.isfinite(bounds)]
    if not len(bounds) or (BOUNDS[0] <= bounds.max() <= BOUNDS[1]):
        return None
    return Finding(
        "action-bounds",
        Severity.WARNING,
        "the action space is of another size than a new policy's actions, which are of size 1",
        f"it goes from {space.low.min():g} to {space.high.max():g}",
        "rescale the actions to [-1, 1] (gymnasium.wrappers.RescaleAction)",
    )


def _check_observations(space: spaces.Space[Any], observations: list[Any]) -> Finding | None:
    if not isinstance(space, spaces.Box) or space.dtype is None or space.dtype.kind != "f":
        return None
    std = float(np.asarray(observations, dtype=np.float64).std(axis=0).max())
    if not std > OBS_STD:
        return None
    return Finding(
        "observations-not-normalised",
        Severity.WARNING,
        "observations are too large for a network as they are",
        f"the component that varies most has a standard deviation of {std:.3g} under random actions",
        "normalise observations (VecNormalize; `normalize: true` in a hyperparameter file)",
    )


def _check_ends(ends: np.ndarray) -> Finding | None:
    if ends.any():
        return None
    return Finding(
        "no-end-of-episodes",
        Severity.WARNING,
        "no episode ends under random actions",
        f"none of {RANDOM_STEPS} steps is terminated or truncated",
        "give the environment a time limit (gymnasium.wrappers.TimeLimit), so that it starts from many states",
    )


def _check_rewards(rewards: np.ndarray, ends: np.ndarray) -> Finding | None:
    if not rewards.any():
        return Finding(
            "rewards-all-equal",
            Severity.WARNING,
            "random actions find no reward",
            f"every reward of {RANDOM_STEPS} steps is 0",
            "reward steps towards the goal, or start some episodes near it",
        )
    size = float(np.sqrt(np.square(discounted_sums(rewards, ends, GAMMA)).mean()))
    if RETURNS[0] <= size <= RETURNS[1]:
        return None
    return Finding(
        "reward-scale",
        Severity.WARNING,
        f"rewards are too {'large' if size > 1 else 'small'} for a critic as they are",
        f"discounted sums of rewards are of size {size:.2g} under random actions",
        "normalise rewards (VecNormalize with the gamma of the algorithm)",
    )


def check_algorithm(model: TRPO) -> list[Finding]:
    """
    Measure an update from the outside: its advantages, its gradient, its KL divergence.

    It is for subclasses of TRPO, buffers, policies and distributions of one's own. The model makes a rollout for it,
    and keeps its weights.

    :param model: the algorithm, with an environment
    :return: what is not what it is taken for
    """
    _, callback = model._setup_learn(model.n_steps * model.n_envs, None)
    assert model.env is not None
    model.collect_rollouts(model.env, callback, model.rollout_buffer, model.n_steps)
    findings = [_check_advantages(model)]
    model.policy.set_training_mode(False)
    samples = model._rollout_samples()
    findings += [_check_gradient(model, samples), _check_kl(model, samples)]
    return [finding for finding in findings if finding]


def _check_advantages(model: TRPO) -> Finding | None:
    """
    Compare the buffer's advantages with their recursion, A_t = δ_t + γ λ A_{t+1} within an episode.

    :param model: the algorithm, with a rollout
    :return: the finding, if any
    """
    buffer = model.rollout_buffer
    values, advantages = (np.asarray(part, dtype=np.float64) for part in (buffer.values, buffer.advantages))
    goes_on = 1.0 - np.asarray(buffer.episode_starts[1:], dtype=np.float64)
    delta = buffer.rewards[:-1] + model.gamma * goes_on * values[1:] - values[:-1]
    expected = delta + model.gamma * model.gae_lambda * goes_on * advantages[1:]
    if not expected.size:
        return None
    error = np.abs(advantages[:-1] - expected)
    is_wrong = error > 1e-3 * (np.abs(expected) + advantages.std() + 1e-6)
    if not is_wrong.any():
        return None
    at_ends = is_wrong[goes_on == 0.0].sum()
    where = ", all of them at ends of episodes" if at_ends == is_wrong.sum() else ""
    return Finding(
        "gae-differs",
        Severity.ERROR,
        "the buffer's advantages are not those of generalised advantage estimation",
        f"{is_wrong.sum()} of {is_wrong.size} differ from their recursion, by {error.max():.2g} at most{where}",
        "look at compute_returns_and_advantage of the rollout buffer: γ, λ, and (1 - done) at the end of an episode",
    )


def _check_gradient(model: TRPO, samples: Samples) -> Finding | None:
    """
    Compare the surrogate's gradient with a finite difference along it.

    :param model: the algorithm
    :param samples: its rollout
    :return: the finding, if any
    """
    batches = model._policy_batches(samples)
    actor = model._make_actor()
    linearizations = Linearizations(actor.linearize, [batch.samples for batch in batches])
    fisher = Fisher(linearizations)
    surrogate = Surrogate(actor.distribution, batches, linearizations, 0.0, model._log_prob())
    g = surrogate.gradient
    norm = float(g.norm())
    if norm == 0.0:
        if all(float(batch.advantages.abs().max()) == 0.0 for batch in batches):
            return None
        return _gradient_differs("it is 0, although advantages are not")
    unit = g / norm
    curvature = float(unit.dot(fisher @ unit))
    length = math.sqrt(2.0 * SMALL_KL / curvature) if curvature > 0.0 else 1e-2 / norm
    old = fisher.parameters.vector()
    gains = []
    before = [_log_probs(model, batch) for batch in batches]
    try:
        for sign in (1.0, -1.0):
            fisher.parameters.write_(old.add(unit, alpha=sign * length))
            after = [_log_probs(model, batch) for batch in batches]
            gains.append(
                sum(
                    float(((new - lp).expm1() * batch.advantages).sum())
                    for new, lp, batch in zip(after, before, batches, strict=True)
                )
                / sum(map(len, batches))
            )
    finally:
        fisher.parameters.write_(old)
    difference = (gains[0] - gains[1]) / (2.0 * length)
    if abs(difference - norm) <= TOLERANCE * max(abs(difference), norm):
        return None
    return _gradient_differs(f"along it the surrogate rises by {difference:.3g}, and its norm says {norm:.3g}")


def _gradient_differs(evidence: str) -> Finding:
    return Finding(
        "gradient-differs",
        Severity.ERROR,
        "the surrogate's gradient is not its slope",
        evidence,
        "look for a detach where the new policy needs its gradient, or for none where the old one must have none",
    )


@th.no_grad()
def _log_probs(model: TRPO, batch: PolicyBatch[Samples]) -> th.Tensor:
    return model._log_prob()(model._action_distribution(batch.samples), batch.actions).clone()


def _check_kl(model: TRPO, samples: Samples) -> Finding | None:
    """
    Compare the KL divergence that a policy step reports with both directions of it.

    :param model: the algorithm
    :param samples: its rollout
    :return: the finding, if any
    """
    target_kl, kl_scale = model.target_kl, model.kl_scale
    old = {name: tensor.clone() for name, tensor in model.policy.state_dict().items()}
    chunks = model._chunks(samples)
    # A large step, for a small one is as far in one direction as in the other.
    model.target_kl, model.kl_scale = LARGE_KL, 1.0
    try:
        before = [_outputs(model, chunk) for chunk in chunks]
        reported = model._improve_policy(samples).line_search
        after = [_outputs(model, chunk) for chunk in chunks]
    finally:
        model.target_kl, model.kl_scale = target_kl, kl_scale
        model.policy.load_state_dict(old)
    if not reported.success:
        return None
    forward = _mean_kl(model, chunks, before, after)
    backward = _mean_kl(model, chunks, after, before)
    if abs(reported.kl - forward) <= KL_TOLERANCE * max(forward, 1e-6):
        return None
    is_backward = abs(reported.kl - backward) <= KL_TOLERANCE * backward
    return Finding(
        "kl-differs",
        Severity.ERROR,
        "the step is bounded by KL(new ‖ old), the wrong direction"
        if is_backward
        else "the KL divergence that bounds the step is not KL(old ‖ new)",
        f"a step has {reported.kl:.4g}, but KL(old ‖ new) = {forward:.4g} and KL(new ‖ old) = {backward:.4g}",
        "measure KL from a copy of the old distribution to the new one, summed over action dimensions",
    )


@th.no_grad()
def _outputs(model: TRPO, chunk: Samples) -> DistributionParameters:
    _, z = family_and_z(model._action_distribution(chunk))
    return tuple(part.clone() for part in z)


@th.no_grad()
def _mean_kl(
    model: TRPO,
    chunks: Sequence[Samples],
    one: Sequence[DistributionParameters],
    other: Sequence[DistributionParameters],
) -> float:
    divergences = []
    for chunk, z_one, z_other in zip(chunks, one, other, strict=True):
        family, _ = family_and_z(model._action_distribution(chunk))
        divergences.append(family.kl_divergence(z_one, z_other))
    return float(th.cat(divergences).mean())
