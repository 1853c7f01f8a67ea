"""
The rule behind the hyperparameters of MuJoCo's tasks, for every continuous task that has no entry.

``benchmarks/TUNING.md`` says what each line was measured on. The rule is in units of time, because a step lasts from
8 to 50 ms, depending on the task. So it needs the length of a step besides the spaces.
"""

import math
from dataclasses import dataclass
from typing import Any, TypeGuard

import gymnasium as gym
from gymnasium import spaces
from stable_baselines3.common.preprocessing import is_image_space

# The largest actions in the tasks that the rule was measured on lie in this range, and there the noise at first did not
# depend on them. Outside of it the noise is in proportion.
MEASURED_ACTIONS = (0.4, 3.0)
# With 348 inputs (Humanoid) a critic overfits a rollout of 2048 samples; with 105 (Ant) it does not. In between is the
# geometric mean.
MANY_INPUTS = 191
# Seconds: of a step that does not say how long it lasts, of the horizon of the advantages, of the horizon at the end.
DEFAULT_STEP = 0.02
ADVANTAGE_HORIZON = 0.25
REWARD_HORIZON = 4.0
LARGEST_GAMMA = 0.9995


@dataclass(frozen=True)
class Task:
    """
    What the rule knows of a task.

    :param n_inputs: the numbers in an observation
    :param n_actions: the numbers in an action
    :param largest_action: half of the widest range of an action
    :param step: the length of a step in seconds
    :param step_is_known: whether the environment says how long a step lasts
    """

    n_inputs: int
    n_actions: int
    largest_action: float
    step: float
    step_is_known: bool = True


def read_task(env: gym.Env) -> Task | None:
    """
    Read what the rule needs off an environment.

    :param env: the environment
    :return: the task; None if the rule is not for it: its actions are not continuous and bounded, or it has images
    """
    action_space, observation_space = env.action_space, env.observation_space
    if not isinstance(action_space, spaces.Box) or not action_space.is_bounded() or not action_space.shape:
        return None
    if not isinstance(observation_space, spaces.Box) or is_image_space(observation_space):
        return None
    step = _length_of_step(env)
    return Task(
        n_inputs=math.prod(observation_space.shape),
        n_actions=math.prod(action_space.shape),
        largest_action=float((action_space.high - action_space.low).max()) / 2,
        step=step or DEFAULT_STEP,
        step_is_known=step is not None,
    )


def hyperparameters_by_rule(task: Task) -> dict[str, Any]:
    """
    Give the hyperparameters that differ from the entry ``default``.

    :param task: the task
    :return: the hyperparameters, as in an entry
    """
    low, high = MEASURED_ACTIONS
    scale = task.largest_action / min(max(task.largest_action, low), high)
    # What moves a body is σ √t, over all actions together.
    std = 0.2246 * scale / math.sqrt(task.n_actions * task.step)
    damping = 0.1 / std**2  # F has the unit 1/σ²
    hyperparams: dict[str, Any] = {
        "gae_lambda": round(1.0 - min(max(task.step / ADVANTAGE_HORIZON, 0.01), 0.5), 2),
        "cg_damping": _round(damping),
        "target_kl": 0.03,
        "callback": [{"sb3_trpo.PolicyAverage": {"share": 0.1}}],
        "policy_kwargs": {"log_std_init": round(math.log(std), 2)},
        "min_std": f"lin_{_round(0.63 * std)}_{_round(0.21 * std)}",
        "max_std": f"lin_{_round(2.1 * std)}_{_round(0.1 * std)}",
        "noise_correlation": 0.0,
    }
    gamma = min(1.0 - task.step / REWARD_HORIZON, LARGEST_GAMMA)
    if gamma > 0.99:
        horizon = {"sb3_trpo.GrowingHorizon": {"start": 0.99, "end": round(gamma, 5)}}
        hyperparams["callback"].insert(0, horizon)
    if task.n_inputs > MANY_INPUTS:
        hyperparams |= {
            "gae_lambda": min(0.6, hyperparams["gae_lambda"]),
            "n_critic_updates": 5,
            "cg_damping": _round(10.0 * damping),
            "target_kl": "lin_0.08_0.02",
        }
    return hyperparams


def describe(task: Task) -> str:
    """
    Say what the rule went by.

    :param task: the task
    :return: a phrase
    """
    known = "" if task.step_is_known else " (assumed: metadata['render_fps'] does not say)"
    return f"{task.n_inputs} inputs, {task.n_actions} actions, steps of {1000 * task.step:g} ms{known}"


def _length_of_step(env: gym.Env) -> float | None:
    """
    Find out how long a step lasts.

    :param env: the environment
    :return: seconds; None if the environment does not say
    """
    # MuJoCo's environments round the frames, and keep the time itself.
    seconds = getattr(env.unwrapped, "dt", None)
    if _is_positive(seconds):
        return float(seconds)
    frames = env.unwrapped.metadata.get("render_fps")
    return 1.0 / frames if _is_positive(frames) else None


def _is_positive(number: Any) -> TypeGuard[float]:
    return isinstance(number, (int, float)) and 0.0 < number < math.inf


def _round(number: float) -> float:
    """
    Keep two digits, as the entries have them.

    :param number: the number
    :return: the number with two significant digits
    """
    return float(f"{number:.2g}")
