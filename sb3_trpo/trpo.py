"""
Trust region policy optimization (Schulman et al. 2015, https://arxiv.org/abs/1502.05477).

Start reading at ``TRPO.train``. It calls ``_improve_policy``, the policy step line by line as in the paper. README
lists the modules in the order in which a reader meets them from there.
"""

import math
from collections.abc import Callable, Sequence
from typing import Any, ClassVar, TypeAlias, TypeVar

import gymnasium as gym
import numpy as np
import torch as th
from gymnasium import spaces
from stable_baselines3.common.buffers import DictRolloutBuffer, RolloutBuffer
from stable_baselines3.common.callbacks import BaseCallback
from stable_baselines3.common.distributions import Distribution
from stable_baselines3.common.on_policy_algorithm import OnPolicyAlgorithm
from stable_baselines3.common.policies import ActorCriticPolicy, BasePolicy
from stable_baselines3.common.type_aliases import (
    DictRolloutBufferSamples,
    GymEnv,
    MaybeCallback,
    RolloutBufferSamples,
    Schedule,
)
from stable_baselines3.common.utils import explained_variance
from stable_baselines3.common.vec_env import VecEnv

from sb3_trpo.policies import (
    BetaCnnPolicy,
    BetaMultiInputPolicy,
    BetaPolicy,
    CnnPolicy,
    MlpPolicy,
    MultiInputPolicy,
)
from sb3_trpo.rollouts.collect import RolloutCollector
from sb3_trpo.rollouts.noise import check_noise
from sb3_trpo.rollouts.orphans import end_workers_with_training
from sb3_trpo.saved_models.algorithm import SafelySaved
from sb3_trpo.saved_models.portable import undo_portable
from sb3_trpo.trust_region.conjugate_gradient import Operator, Solution, Stop, conjugate_gradient
from sb3_trpo.trust_region.families import check_family
from sb3_trpo.trust_region.fisher import Fisher
from sb3_trpo.trust_region.flat import FlatParameters
from sb3_trpo.trust_region.line_search import LineSearchResult, backtracking_line_search
from sb3_trpo.trust_region.linearization import Linearizations
from sb3_trpo.trust_region.preconditioner import PreconditionerError, kronecker_preconditioner
from sb3_trpo.trust_region.surrogate import LogProb, PolicyBatch, Surrogate, normalize_advantages
from sb3_trpo.update.actor import Actor
from sb3_trpo.update.clipped_actions import log_prob_of_executed
from sb3_trpo.update.critic import CriticFit, CriticSettings, TrustRegion, fit_critic, shuffle_rows
from sb3_trpo.update.diagnostics import Advice, PolicyStep, record_update
from sb3_trpo.update.samples import chunks, select, whole_rollout
from sb3_trpo.update.std_bounds import std_bounds
from sb3_trpo.update.training_mode import find_fixed_statistics
from sb3_trpo.update.transaction import NonFiniteError, Transaction, check_before_rollout, skip_distribution_checks
from sb3_trpo.validation import (
    SUPPORTED_SPACES,
    check_environment,
    check_hyperparameters,
    check_observation_encoding,
    check_policy_and_env,
    check_ready_to_train,
    check_real,
    check_spaces,
    explain_unknown_arguments,
)

# What the rollout buffers give: named tuples of tensors with a row for each state.
Samples: TypeAlias = RolloutBufferSamples | DictRolloutBufferSamples

SelfTRPO = TypeVar("SelfTRPO", bound="TRPO")

# Adaptive KL: δ changes by this factor, and stays within this factor's fourth power of target_kl.
KL_ADAPTATION = 1.5
MAX_KL_SCALE = KL_ADAPTATION**4
# An error in so many updates in a row (a layer without a second derivative, memory that never suffices) won't go away.
MAX_FAILURES = 5


class TRPO(SafelySaved, RolloutCollector):
    """
    Trust region policy optimization (TRPO).

    Each update maximises the surrogate E[π_θ(a|s)/π_old(a|s) A(s, a)] subject to E[KL(π_old(·|s) ‖ π_θ(·|s))] ≤ δ, by
    one natural gradient step and a line search, and fits the critic by regression. An action that is clipped on its way
    to the environment counts by the probability of all that are clipped to the same (see
    ``sb3_trpo.update.clipped_actions``).

    The arguments up to ``_init_setup_model`` are those of sb3-contrib's TRPO; the others can be given by name only.

    :param policy: the policy to use (MlpPolicy, CnnPolicy, MultiInputPolicy, or a class)
    :param env: the environment to learn from (if registered in Gymnasium, can be a string)
    :param learning_rate: the critic's; a number, or a function of the remaining progress (from 1 to 0)
    :param n_steps: steps of each environment per update; an update sees ``n_steps * n_envs`` of them
    :param batch_size: minibatch size of the critic
    :param gamma: discount factor
    :param cg_max_steps: maximum number of conjugate gradient iterations
    :param cg_damping: λ in (F + λ I) x = g, the system that conjugate gradient solves; the step's length is taken from
        F alone, so that damping does not use up the trust region
    :param line_search_shrinking_factor: largest reduction of the step from one try of the line search to the next
    :param line_search_max_iter: maximum number of tries
    :param n_critic_updates: epochs of the critic per update
    :param gae_lambda: λ of generalised advantage estimation
    :param use_sde: whether to use generalised state-dependent exploration (gSDE)
    :param sde_sample_freq: with gSDE, draw a new noise matrix every so many steps; -1 draws one per rollout
    :param rollout_buffer_class: rollout buffer class to use; None chooses by the observation space
    :param rollout_buffer_kwargs: keyword arguments of the rollout buffer
    :param normalize_advantage: whether to give the advantages of an update mean 0 and standard deviation 1
    :param target_kl: δ, the bound on E[KL(π_old ‖ π_new)] in nats, summed over action dimensions; a number, or a
        function of the remaining progress
    :param sub_sampling_factor: compute the Fisher product on every so-manieth state only; gradient and line search see
        all of them
    :param stats_window_size: episodes over which rollout statistics are averaged
    :param tensorboard_log: folder for TensorBoard; None writes none
    :param policy_kwargs: additional arguments of the policy
    :param verbose: 0 no output, 1 info, 2 debug
    :param seed: of the pseudo-random generators
    :param device: cpu, cuda, ...; auto takes the GPU if there is one
    :param _init_setup_model: whether to build the network at once
    :param cg_residual_tol: conjugate gradient stops when the residual has fallen to this share of the gradient (in the
        preconditioner's norm)
    :param cg_progress_tol: conjugate gradient stops after an iteration that has added less than this share to what it
        maximises, gᵀx − ½ xᵀ(F + λ I)x; what the direction is then worth, and at other tolerances, is a table in
        ``benchmarks/RESULTS.md``
    :param cg_warm_start: whether conjugate gradient starts from the last update's direction
    :param ent_coef: coefficient of the entropy in the surrogate
    :param min_std: the standard deviation of Gaussian actions that an update does not go below; a number, or a function
        of the remaining progress; 0 for none, as it must be for other actions and with gSDE
    :param max_std: the standard deviation of Gaussian actions that updates bring it down to, likewise; it counts where
        it is below ``min_std``; about a sixteenth of δ goes into the way down, in each update; None for none
    :param noise_correlation: correlation of the noise in Gaussian actions from each step to the next, above -1 and
        below 1; 0 for independent noise. Each action's own distribution stays π(·|s); that noise which lasts leaves a
        trace in the states is neglected, as it is in all on-policy training with such noise (Hollenstein et al. 2024,
        https://arxiv.org/abs/2312.11091)
    :param max_grad_norm: bound on the norm of the critic's gradient; None leaves it as it is
    :param adaptive_kl: whether to adapt δ: it grows by a factor of 1.5 when KL stayed below δ/1.5, shrinks by it when
        the line search had to back off or failed, and stays within a factor of 5 of ``target_kl``. With the
        hyperparameters that ship steps end just inside of δ, so that it hardly ever changes, and does not grow back
    :param fisher_chunk_size: states at a time in gradient, Fisher product and line search, to bound the memory; None
        takes all at once, unless their observations are as large as images
    :param preconditioner: of conjugate gradient; ``"kfac"`` reaches in three to five iterations what takes 15 without
        (see ``benchmarks/RESULTS.md``); None uses none
    :param env_timeout: the seconds that an environment in another process (``SubprocVecEnv``) may take for a step or a
        reset before training ends with an error; None waits as long as it takes, with a warning after a minute
    :param check_env_outputs: whether an observation or reward that is not finite, or an observation of another shape
        than the space says, ends training with an error; observations that the policy's network can handle are none
    """

    # The action spaces that the algorithm takes; a subclass may take fewer.
    supported_action_spaces: ClassVar[tuple[type[spaces.Space], ...]] = SUPPORTED_SPACES

    policy_aliases: ClassVar[dict[str, type[BasePolicy]]] = {
        "MlpPolicy": MlpPolicy,
        "CnnPolicy": CnnPolicy,
        "MultiInputPolicy": MultiInputPolicy,
        "BetaPolicy": BetaPolicy,
        "BetaCnnPolicy": BetaCnnPolicy,
        "BetaMultiInputPolicy": BetaMultiInputPolicy,
    }

    @explain_unknown_arguments
    def __init__(
        self,
        policy: str | type[ActorCriticPolicy],
        env: GymEnv | str,
        learning_rate: float | Schedule = 1e-3,
        n_steps: int = 2048,
        batch_size: int = 128,
        gamma: float = 0.99,
        cg_max_steps: int = 15,
        cg_damping: float = 0.1,
        line_search_shrinking_factor: float = 0.8,
        line_search_max_iter: int = 10,
        n_critic_updates: int = 10,
        gae_lambda: float = 0.95,
        use_sde: bool = False,
        sde_sample_freq: int = -1,
        rollout_buffer_class: type[RolloutBuffer] | None = None,
        rollout_buffer_kwargs: dict[str, Any] | None = None,
        normalize_advantage: bool = True,
        target_kl: float | Schedule = 0.01,
        sub_sampling_factor: int = 1,
        stats_window_size: int = 100,
        tensorboard_log: str | None = None,
        policy_kwargs: dict[str, Any] | None = None,
        verbose: int = 0,
        seed: int | None = None,
        device: th.device | str = "auto",
        _init_setup_model: bool = True,
        *,
        cg_residual_tol: float = 0.07,
        cg_progress_tol: float = 0.0125,
        cg_warm_start: bool = False,
        ent_coef: float = 0.0,
        min_std: float | Schedule = 0.0,
        max_std: float | Schedule | None = None,
        noise_correlation: float = 0.0,
        max_grad_norm: float | None = None,
        adaptive_kl: bool = False,
        fisher_chunk_size: int | None = None,
        preconditioner: str | None = "kfac",
        env_timeout: float | None = None,
        check_env_outputs: bool = True,
    ) -> None:
        self.batch_size = batch_size
        self.cg_max_steps = cg_max_steps
        self.cg_damping = cg_damping
        self.cg_residual_tol = cg_residual_tol
        self.cg_progress_tol = cg_progress_tol
        self.cg_warm_start = cg_warm_start
        self.preconditioner = preconditioner
        self.fisher_chunk_size = fisher_chunk_size
        self.sub_sampling_factor = sub_sampling_factor
        self.line_search_shrinking_factor = line_search_shrinking_factor
        self.line_search_max_iter = line_search_max_iter
        self.target_kl = target_kl
        self.adaptive_kl = adaptive_kl
        self.min_std = min_std
        self.max_std = max_std
        self.noise_correlation = noise_correlation
        self.n_critic_updates = n_critic_updates
        self.normalize_advantage = normalize_advantage
        self.env_timeout = env_timeout
        self.check_env_outputs = check_env_outputs
        # What the base class will hold; set here so that everything is checked before an environment is made.
        self.learning_rate, self.n_steps, self.gamma, self.gae_lambda = learning_rate, n_steps, gamma, gae_lambda
        self.ent_coef, self.max_grad_norm = ent_coef, max_grad_norm  # type: ignore[assignment]
        self.use_sde, self.sde_sample_freq = use_sde, sde_sample_freq
        check_hyperparameters(self)
        check_policy_and_env(policy, env, is_complete=_init_setup_model)

        super().__init__(
            policy,
            env,
            learning_rate=learning_rate,
            n_steps=self.n_steps,
            gamma=gamma,
            gae_lambda=gae_lambda,
            ent_coef=ent_coef,
            vf_coef=0.0,  # the critic has a loss of its own
            max_grad_norm=max_grad_norm,  # type: ignore[arg-type]
            use_sde=use_sde,
            sde_sample_freq=self.sde_sample_freq,
            rollout_buffer_class=rollout_buffer_class,
            rollout_buffer_kwargs=rollout_buffer_kwargs,
            stats_window_size=stats_window_size,
            tensorboard_log=tensorboard_log,
            policy_kwargs=policy_kwargs,
            verbose=verbose,
            device=device,
            seed=seed,
            _init_setup_model=False,
        )
        # The last search direction, for warm starts, (P,). Empty before the first.
        self.cg_direction = th.zeros(0, device=self.device)
        self._last_noise = None
        self._stepped_env = self._why_not_fast = None
        self._said = set()
        # What adaptive KL multiplies target_kl by.
        self.kl_scale = 1.0
        self._advice = Advice()
        # Updates in a row that were undone.
        self._n_failures = 0

        if self.env is not None:
            check_environment(self, self.env)
            self._advice.on_setup(self.n_steps * self.n_envs, self.action_space)
        if _init_setup_model:
            self._setup_model()

    def train(self) -> None:
        """
        Update the policy with the current rollout: one trust-region step for the actor, a regression for the critic.

        Whatever goes wrong on the way, the policy is put back to what it was before. Training then goes on after an
        error of the numbers (not finite, singular, out of memory); any other error is a bug, and is raised.
        """
        self._begin_update()
        try:
            with skip_distribution_checks(), Transaction(self.policy) as transaction:
                samples = self._rollout_samples()
                policy_step = self._improve_policy(samples)
                critic_fit = self._fit_critic(samples, policy_step)
                transaction.check_finite()
        except (ArithmeticError, RuntimeError) as error:
            self._report_failure(error)
        else:
            self._n_failures = 0
            self._report(policy_step, critic_fit)
            self._advise_on_modules(samples, critic_fit)
            self._prepare_next(policy_step)
        self._n_updates += 1
        self.logger.record("train/n_updates", self._n_updates, exclude="tensorboard")

    def _improve_policy(self, samples: Samples) -> PolicyStep:
        """
        One step of the paper's algorithm (section 6 and appendix C).

        :param samples: the rollout
        :return: what was done
        """
        batches = self._policy_batches(samples)
        actor = Actor(self.policy, self._action_distribution, self._is_builtin("_action_distribution"))
        linearizations = Linearizations(actor.linearize, [batch.samples for batch in batches])

        # L(θ) and KL(θ_old ‖ θ), with g = ∇L(θ_old)
        surrogate = Surrogate(actor.distribution, batches, linearizations, self.ent_coef, self._log_prob())
        fisher = self._fisher(actor, linearizations, samples)
        g = surrogate.gradient
        # x ≈ (F + λI)⁻¹ g
        solution = self._search_direction(fisher, g)
        # θ = θ_old + √(2δ / xᵀFx) x, and back from there until KL ≤ δ and L has improved
        full_step = self._scale_to_trust_region(fisher, solution)
        result = self._line_search(surrogate, fisher.parameters, full_step)
        return PolicyStep(fisher.parameters, surrogate, float(g.norm()), solution, float(g.dot(full_step)), result)

    # ---- Extension points: what a policy with masks, memory or data of its own says in other words ----

    def _action_distribution(self, samples: Samples) -> Distribution:
        """
        Evaluate the policy: the only thing that the policy step asks of it.

        :param samples: rollout samples of N states
        :return: π(·|s) for each of them
        """
        return self.policy.get_distribution(samples.observations)

    def _log_prob(self) -> LogProb:
        """
        Make what gives ln π(a|s) to the surrogate.

        :return: the function from action distributions and actions
        """
        return log_prob_of_executed(self.policy)

    def _values(self, samples: Samples) -> th.Tensor:
        """
        Evaluate the critic.

        :param samples: rollout samples of N states
        :return: V(s), (N, 1)
        """
        return self.policy.predict_values(samples.observations)

    def _rollout_samples(self) -> Samples:
        """
        Read the rollout buffer.

        :return: the whole rollout, as tensors
        """
        return whole_rollout(self.rollout_buffer)

    def _chunks(self, samples: Samples) -> Sequence[Samples]:
        """
        Split samples into chunks, which are evaluated one after the other to bound the memory.

        :param samples: rollout samples
        :return: chunks of about ``fisher_chunk_size`` states
        """
        return chunks(samples, self.fisher_chunk_size)

    def _every(self, samples: Samples, step: int) -> Samples:
        """
        Take a part of the samples that stands for all.

        :param samples: rollout samples
        :param step: k
        :return: every k-th of them
        """
        return select(samples, slice(None, None, step))

    def _draw_minibatches(self, samples: Samples, batch_size: int) -> Sequence[th.Tensor]:
        """
        Draw the critic's minibatches for one epoch.

        :param samples: the rollout
        :param batch_size: samples of a minibatch
        :return: for each minibatch the rows of the samples that are in it, in order
        """
        return shuffle_rows(samples, batch_size)

    def _policy_batch(self, chunk: Samples) -> PolicyBatch:
        """
        Say which actions were taken in a chunk's states, and how good they were.

        :param chunk: rollout samples of which ``_action_distribution`` makes N distributions
        :return: the chunk with N actions and N advantages
        """
        actions = chunk.actions
        if isinstance(self.action_space, spaces.Discrete):
            actions = actions.long().flatten()
        return PolicyBatch(chunk, actions, chunk.advantages)

    def _make_policy(self) -> ActorCriticPolicy:
        """
        Make the policy.

        :return: the policy, new
        """
        return self.policy_class(  # type: ignore[return-value]
            self.observation_space, self.action_space, self.lr_schedule, use_sde=self.use_sde, **self.policy_kwargs
        )

    def _make_rollout_buffer(self) -> RolloutBuffer:
        """
        Make the rollout buffer.

        :return: the buffer, empty
        """
        if self.rollout_buffer_class is None:
            is_dict = isinstance(self.observation_space, spaces.Dict)
            self.rollout_buffer_class = DictRolloutBuffer if is_dict else RolloutBuffer
        return self.rollout_buffer_class(
            self.n_steps,
            self.observation_space,
            self.action_space,
            device=self.device,
            gamma=self.gamma,
            gae_lambda=self.gae_lambda,
            n_envs=self.n_envs,
            **self.rollout_buffer_kwargs,
        )

    def _is_builtin(self, method: str) -> bool:
        """
        Tell whether an extension point is as it is here: neither a subclass's nor set on the instance.

        :param method: its name
        :return: whether it is
        """
        return method not in vars(self) and getattr(type(self), method) is getattr(TRPO, method)

    # ---- The steps of an update ----

    def _begin_update(self) -> None:
        """
        Bring policy, progress and learning rate to where an update begins.

        :raises UserError: if there is no rollout or no logger, as in a training loop of the user's own
        """
        check_ready_to_train(self)
        self.policy.set_training_mode(False)
        # The last rollout may go beyond the steps that were asked for, where a linear schedule is negative.
        self._current_progress_remaining = max(0.0, self._current_progress_remaining)
        self._now("learning_rate", self.lr_schedule)
        self._update_learning_rate(self.policy.optimizer)

    def _policy_batches(self, samples: Samples) -> list[PolicyBatch]:
        """
        Normalise the advantages, and split the rollout.

        :param samples: the rollout
        :return: states, actions and advantages, in chunks
        """
        batches = [self._policy_batch(chunk) for chunk in self._chunks(samples)]
        if not self.normalize_advantage:
            return batches
        return normalize_advantages(batches)

    def _fisher(self, actor: Actor, linearizations: Linearizations, samples: Samples) -> Fisher:
        """
        :param actor: makes linearisations
        :param linearizations: of all samples
        :param samples: the rollout
        :return: F over every ``sub_sampling_factor``-th state
        :raises ValueError: if there is no parameter to move
        """
        if self.sub_sampling_factor > 1 or actor.hides_features:
            thinned = self._every(samples, self.sub_sampling_factor)
            linearizations = Linearizations(actor.linearize_for_fisher, self._chunks(thinned))
        fisher = Fisher(linearizations)
        if len(fisher.parameters) == 0:
            raise ValueError("Every parameter that the policy's actions depend on is frozen: none can be trained.")
        return fisher

    def _search_direction(self, fisher: Fisher, g: th.Tensor) -> Solution:
        """
        :param fisher: F
        :param g: ∇L, (P,)
        :return: x ≈ (F + λI)⁻¹ g
        """
        solution = conjugate_gradient(
            lambda v: (fisher @ v).add_(v, alpha=self.cg_damping),
            g,
            max_steps=self.cg_max_steps,
            residual_tol=self.cg_residual_tol,
            progress_tol=self.cg_progress_tol,
            preconditioner=self._preconditioner(fisher),
            x0=self.cg_direction if self.cg_warm_start and self.cg_direction.shape == g.shape else None,
        )
        if solution.stop is Stop.NOT_FINITE:
            raise NonFiniteError("the surrogate's gradient or the search direction is not finite")
        return solution

    def _preconditioner(self, fisher: Fisher) -> Operator | None:
        """
        :param fisher: F
        :return: r -> P⁻¹ r with P ≈ F + λI; None if there is to be none, or it can't be had
        """
        if self.preconditioner is None:
            return None
        try:
            return kronecker_preconditioner(fisher.linearizations.first(), self.cg_damping)
        except PreconditionerError as error:
            message = f"conjugate gradient goes without its preconditioner in this update ({str(error).rstrip('.')})."
            self.logger.info(f"Update {self._n_updates + 1}: {message}")
            self._advice.observe("preconditioner", True, message, patience=1)
            return None

    def _scale_to_trust_region(self, fisher: Fisher, solution: Solution) -> th.Tensor:
        """
        :param fisher: F
        :param solution: x
        :return: √(2δ / xᵀFx) x, where ½ (step)ᵀF(step) = δ; zeros if no step can be told, (P,)
        """
        curvature = fisher.quadratic_form(solution.x, solution.product, self.cg_damping)
        if not 0.0 < curvature < math.inf:
            return th.zeros_like(solution.x)
        return solution.x * math.sqrt(2.0 * self._max_kl() / curvature)

    def _line_search(self, surrogate: Surrogate, parameters: FlatParameters, full_step: th.Tensor) -> LineSearchResult:
        """
        :param surrogate: L(θ) and KL(θ_old ‖ θ)
        :param parameters: θ, moved by the accepted share of the step
        :param full_step: the longest step to try, (P,)
        :return: what was done
        """
        return backtracking_line_search(
            surrogate.evaluate,
            parameters,
            full_step,
            project=self._std_bounds(),
            max_kl=self._max_kl(),
            shrinking_factor=self.line_search_shrinking_factor,
            max_iter=self.line_search_max_iter,
        )

    def _std_bounds(self) -> Callable[[], object] | None:
        """
        :return: brings the noise, at the parameters as they are, between its bounds; None if it has none
        """
        max_std = math.inf if self.max_std is None else self._now("max_std", self.max_std)
        return std_bounds(self.policy, self._now("min_std", self.min_std), max_std, self._max_kl())

    def _fit_critic(self, samples: Samples, step: PolicyStep) -> CriticFit:
        settings = CriticSettings(self.n_critic_updates, int(self.batch_size), self.max_grad_norm or None)
        return fit_critic(
            self.policy,
            self._values,
            samples,
            step.parameters,
            settings,
            self._is_builtin("_values"),
            self._draw_minibatches,
            TrustRegion(lambda: step.surrogate.evaluate()[0], self._max_kl()),
        )

    def _max_kl(self) -> float:
        """
        :return: δ of this update
        """
        return self._now("target_kl", self.target_kl) * (self.kl_scale if self.adaptive_kl else 1.0)

    def _now(self, name: str, value: float | Schedule) -> float:
        """
        :param name: of a hyperparameter
        :param value: the same
        :return: what it is in this update
        """
        number = value(self._current_progress_remaining) if callable(value) else value
        check_real(name, number, "at least 0 throughout training", lambda x: x >= 0)
        return float(number)

    def _prepare_next(self, step: PolicyStep) -> None:
        """
        Where the next update starts its conjugate gradient, and what it multiplies δ by.

        :param step: of this update
        """
        if self.cg_warm_start:
            self.cg_direction = step.solution.x
        if self.adaptive_kl:
            search = step.line_search
            if search.fraction <= self.line_search_shrinking_factor:
                self.kl_scale = max(self.kl_scale / KL_ADAPTATION, 1.0 / MAX_KL_SCALE)
            elif search.kl < self._max_kl() / KL_ADAPTATION:
                self.kl_scale = min(self.kl_scale * KL_ADAPTATION, MAX_KL_SCALE)

    def _report(self, step: PolicyStep, critic_fit: CriticFit) -> None:
        """
        :param step: of the policy
        :param critic_fit: of the critic
        """
        returns = self.rollout_buffer.returns.flatten()
        explained = float(explained_variance(self.rollout_buffer.values.flatten(), returns))
        record_update(self.logger, self.policy, step, critic_fit.mean_loss, explained, self._max_kl())
        self._advice.on_policy_step(step.solution.residual, step.line_search.success)
        self._advice.on_critic_step(critic_fit.mean_loss, float(np.square(returns).mean()))

    def _advise_on_modules(self, samples: Samples, critic_fit: CriticFit) -> None:
        """
        :param samples: the rollout
        :param critic_fit: of the critic
        """
        self._advice.on_held_parameters(critic_fit.held)
        if not self._advice.has_observed("statistics"):
            chunk = self._chunks(samples)[0]
            self._advice.on_statistics(find_fixed_statistics(self.policy, lambda: self._action_distribution(chunk)))

    def _report_failure(self, error: Exception) -> None:
        """
        :param error: why the update was undone
        :raises RuntimeError: the error itself, if updates keep failing for another cause than their data
        """
        self._n_failures += 1
        if self._n_failures >= MAX_FAILURES and not isinstance(error, NonFiniteError):
            raise error
        self.logger.record("train/is_line_search_success", 0.0)
        self.logger.record("train/kl_divergence_loss", 0.0)
        message = f"Update {self._n_updates + 1} was undone, the policy is as it was before: {error}."
        self.logger.warn(message)
        self._advice.observe("undone update", True, message, patience=1)

    def collect_rollouts(
        self, env: VecEnv, callback: BaseCallback, rollout_buffer: RolloutBuffer, n_rollout_steps: int
    ) -> bool:
        """
        Fill the buffer with steps of the current policy (see ``sb3_trpo.rollouts``).

        :param env: the training environments
        :param callback: the callback, called at each step, and at the beginning and end of the rollout
        :param rollout_buffer: the buffer to fill
        :param n_rollout_steps: steps of each environment
        :return: whether the rollout is complete, rather than ended by the callback
        :raises NonFiniteError: if the policy's weights are not finite
        """
        check_before_rollout(self.policy)
        return super().collect_rollouts(env, callback, rollout_buffer, n_rollout_steps)

    def learn(
        self: SelfTRPO,
        total_timesteps: int,
        callback: MaybeCallback = None,
        log_interval: int = 1,
        tb_log_name: str = "TRPO",
        reset_num_timesteps: bool = True,
        progress_bar: bool = False,
    ) -> SelfTRPO:
        with end_workers_with_training(self.env):
            return super().learn(
                total_timesteps, callback, log_interval, tb_log_name, reset_num_timesteps, progress_bar
            )

    def _setup_model(self) -> None:
        undo_portable(self)
        # Once more, for a loaded model's arguments come later than the constructor.
        check_hyperparameters(self)
        check_observation_encoding(self)
        self._setup_lr_schedule()
        self.set_random_seed(self.seed)
        self.rollout_buffer = self._make_rollout_buffer()
        self.policy = self._make_policy().to(self.device)
        check_family(self.policy)
        self._maybe_recommend_cpu()
        self._advice.on_policy(self.policy)
        check_noise(self.policy, self.min_std, self.max_std, self.noise_correlation)

    @classmethod
    def _wrap_env(cls, env: GymEnv, verbose: int = 0, monitor_wrapper: bool = True) -> VecEnv:
        # An environment of the old Gym has spaces of another kind, which SB3 converts.
        if isinstance(env, (gym.Env, VecEnv)):
            check_spaces(env.observation_space, env.action_space, cls.supported_action_spaces)
        return OnPolicyAlgorithm._wrap_env(env, verbose, monitor_wrapper)

    def get_checkpoint_state(self) -> dict[str, Any]:
        """
        Give what goes on in a training and is in no saved model; ``Checkpoint`` keeps it.

        A subclass with more (the states of an LSTM) adds it here: numbers, arrays, tensors, containers of these.

        :return: the state, by name
        """
        return {"last_noise": self._last_noise}

    def set_checkpoint_state(self, state: dict[str, Any]) -> None:
        """
        Go on from a state.

        :param state: what ``get_checkpoint_state`` has returned
        """
        self._last_noise = state["last_noise"]

    def _excluded_save_params(self) -> list[str]:
        return [
            *super()._excluded_save_params(),
            "_advice",
            "_last_noise",
            "_stepped_env",
            "_why_not_fast",
            "_said",
        ]
