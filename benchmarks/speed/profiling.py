"""
Measure where the time of a ``learn()`` iteration goes, ours and sb3-contrib's.
"""

from typing import Any

import sb3_contrib
from gymnasium.envs.mujoco import MujocoEnv
from gymnasium.envs.mujoco.half_cheetah_v5 import HalfCheetahEnv
from sb3_contrib.trpo import trpo as sb3_contrib_trpo
from stable_baselines3.common.env_util import make_vec_env
from stable_baselines3.common.logger import Logger
from stable_baselines3.common.on_policy_algorithm import OnPolicyAlgorithm
from stable_baselines3.common.policies import ActorCriticPolicy

import sb3_trpo
from sb3_trpo import trpo
from sb3_trpo.rollouts.fast_rollout import FastRollout
from sb3_trpo.trust_region.fisher import Fisher
from sb3_trpo.trust_region.surrogate import Surrogate
from speed.run import Run
from speed.stopwatch import Stopwatch
from speed.workload import TASK

N_ITERATIONS = 6

PHYSICS = "rollout: physics"
ENVIRONMENT = "rollout: the rest of the environment"
POLICY = "rollout: policy"
BOOKKEEPING = "rollout: bookkeeping"
GRADIENT = "update: gradient"
PRECONDITIONER = "update: preconditioner"
FISHER = "update: Fisher products"
CG = "update: the rest of conjugate gradient"
LINE_SEARCH = "update: line search"
CRITIC = "update: critic"
OTHER = "update: other"
LOG = "log"
PARTS = (
    PHYSICS,
    ENVIRONMENT,
    POLICY,
    BOOKKEEPING,
    GRADIENT,
    PRECONDITIONER,
    FISHER,
    CG,
    LINE_SEARCH,
    CRITIC,
    OTHER,
    LOG,
)

# What is timed: owner, name, part. Time in a function that is in the list itself counts for that one only.
OURS = (
    (MujocoEnv, "do_simulation", PHYSICS),
    (HalfCheetahEnv, "step", ENVIRONMENT),
    (FastRollout, "_act", POLICY),
    (FastRollout, "_fill_in", POLICY),
    (sb3_trpo.TRPO, "collect_rollouts", BOOKKEEPING),
    (sb3_trpo.TRPO, "train", OTHER),
    (Surrogate, "__init__", GRADIENT),
    (trpo, "kronecker_preconditioner", PRECONDITIONER),
    (Fisher, "__matmul__", FISHER),
    (trpo, "conjugate_gradient", CG),
    (trpo, "backtracking_line_search", LINE_SEARCH),
    (trpo, "fit_critic", CRITIC),
    (sb3_trpo.TRPO, "learn", LOG),
)
# sb3-contrib's line search and critic are no functions. The critic is what an update takes more than one without
# epochs; what is left then is the line search, with the conversion of the data.
THEIRS = (
    (MujocoEnv, "do_simulation", PHYSICS),
    (HalfCheetahEnv, "step", ENVIRONMENT),
    (ActorCriticPolicy, "forward", POLICY),
    (sb3_contrib.TRPO, "collect_rollouts", BOOKKEEPING),
    (sb3_contrib.TRPO, "train", LINE_SEARCH),
    (sb3_contrib.TRPO, "_compute_actor_grad", GRADIENT),
    (sb3_contrib.TRPO, "hessian_vector_product", FISHER),
    (sb3_contrib_trpo, "conjugate_gradient_solver", CG),
    (sb3_contrib.TRPO, "learn", LOG),
)


def profile(run: Run) -> dict[str, Any]:
    result = {}
    n_updates = run.pick(N_ITERATIONS, 1)
    for n_envs in (1, 8):
        batch = run.pick(2048, 64)
        ours = _profile(sb3_trpo.TRPO, OURS, n_envs, batch, n_updates)
        theirs = _profile(sb3_contrib.TRPO, THEIRS, n_envs, batch, n_updates)
        without = _profile(sb3_contrib.TRPO, THEIRS, n_envs, batch, n_updates, n_critic_updates=1)
        # The epochs are alike: ten less one are nine.
        nine = theirs[LINE_SEARCH] - without[LINE_SEARCH]
        theirs[CRITIC] = nine * 10 / 9
        theirs[LINE_SEARCH] -= theirs[CRITIC]
        result[str(n_envs)] = {"sb3_trpo": ours, "sb3-contrib": theirs}
    return {"milliseconds": result, "batch": batch}


def _profile(
    algorithm: type[OnPolicyAlgorithm],
    parts: tuple[tuple[Any, str, str], ...],
    n_envs: int,
    batch: int,
    n_updates: int,
    **hyperparameters: Any,
) -> dict[str, float]:
    """Return the milliseconds of each part in one iteration of ``learn()``."""
    env = make_vec_env(TASK, n_envs, seed=0)
    model = algorithm("MlpPolicy", env, n_steps=batch // n_envs, seed=0, device="cpu", **hyperparameters)
    model.set_logger(Logger(folder=None, output_formats=[]))
    model.learn(batch)
    watch = Stopwatch()
    with watch.watch(parts):
        model.learn(n_updates * batch, reset_num_timesteps=False)
    env.close()
    return {part: 1000 * seconds / n_updates for part, seconds in watch.seconds.items()}
