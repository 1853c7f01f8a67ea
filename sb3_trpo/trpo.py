"""
Trust region policy optimization (Schulman et al. 2015, https://arxiv.org/abs/1502.05477).

Start reading at ``TRPO.train``. It calls ``_improve_policy``, the policy step line by line as in the paper.
docs/how-it-works.md lists the modules in the order in which a reader meets them from there.
"""

import math
from collections.abc import Callable, Mapping
from typing import Any, ClassVar

import torch as th
from stable_baselines3.common.buffers import RolloutBuffer
from stable_baselines3.common.policies import ActorCriticPolicy, BasePolicy
from stable_baselines3.common.type_aliases import GymEnv, Schedule
from stable_baselines3.common.utils import safe_mean

from sb3_trpo.diagnosis.advice import Advice
from sb3_trpo.diagnosis.policy_rules import small_batch
from sb3_trpo.diagnosis.record import Record, Settings, action_dimensions
from sb3_trpo.diagnosis.set_up_rules import fixed_statistics, held_parameters, no_preconditioner, undone_update
from sb3_trpo.extension_points import ExtensibleTRPO, Samples
from sb3_trpo.policies.policies import (
    BetaCnnPolicy,
    BetaMultiInputPolicy,
    BetaPolicy,
    CnnPolicy,
    MlpPolicy,
    MultiInputPolicy,
)
from sb3_trpo.ranks.agreement import check_agreement
from sb3_trpo.ranks.joining import device_of_rank, launched_as
from sb3_trpo.trust_region.conjugate_gradient import Operator, Solution, Stop, conjugate_gradient
from sb3_trpo.trust_region.families import keep_distribution
from sb3_trpo.trust_region.fisher import Fisher
from sb3_trpo.trust_region.flat import FlatParameters
from sb3_trpo.trust_region.line_search import LineSearchResult, backtracking_line_search
from sb3_trpo.trust_region.linearization import Linearizations
from sb3_trpo.trust_region.preconditioner import PreconditionerError, kronecker_preconditioner
from sb3_trpo.trust_region.shared_switches import skip_distribution_checks
from sb3_trpo.trust_region.surrogate import PolicyBatch, Surrogate, normalize_advantages
from sb3_trpo.update.actor import Actor
from sb3_trpo.update.critic import CriticFit, CriticSettings, Regression, TrustRegion, fit_critic
from sb3_trpo.update.diagnostics import PolicyStep, describe_update
from sb3_trpo.update.pooled_numbers import pool_numbers
from sb3_trpo.update.std_bounds import std_bounds
from sb3_trpo.update.training_mode import find_fixed_statistics
from sb3_trpo.update.transaction import NonFiniteError, Transaction
from sb3_trpo.validation.algorithm import (
    check_environment,
    check_hyperparameters,
    check_policy_and_env,
    check_ready_to_train,
    explain_unknown_arguments,
)
from sb3_trpo.validation.base_arguments import check_base_arguments
from sb3_trpo.validation.values import UserError, check_integer, check_real

# Adaptive KL: δ changes by this factor, and stays within this factor's fourth power of target_kl.
KL_ADAPTATION = 1.5
MAX_KL_SCALE = KL_ADAPTATION**4
# An error in so many updates in a row (a layer without a second derivative, memory that never suffices) won't go away.
MAX_FAILURES = 5


class TRPO(ExtensibleTRPO):
    """
    Trust region policy optimization (TRPO).

    Each update maximises the surrogate E[π_θ(a|s)/π_old(a|s) A(s, a)] subject to E[KL(π_old(· | s) ‖ π_θ(· | s))] ≤ δ,
    by one natural gradient step and a line search, and fits the critic by regression. An action that is clipped on its
    way to the environment counts by the probability of all that are clipped to the same (see
    ``sb3_trpo.update.clipped_actions``).

    The arguments up to ``_init_setup_model`` are those of sb3-contrib's TRPO; the others can be given by name only.
    A schedule is a function of the remaining progress, which goes from 1 to 0, or a text as in hyperparameter files:
    ``lin_0.06_0.02`` goes from 0.06 to 0.02, and ``lin_0.06`` falls to 0.

    :param policy: the policy: a name (MlpPolicy, CnnPolicy, MultiInputPolicy, BetaPolicy, ...), or a class
    :param env: the environment to learn from, or the id of one that Gymnasium knows
    :param learning_rate: the critic's learning rate: a number, or a schedule
    :param n_steps: the steps of each environment per update; an update sees ``n_steps * n_envs`` of them
    :param batch_size: the samples of a minibatch of the critic
    :param gamma: the discount factor
    :param cg_max_steps: the largest number of conjugate gradient iterations
    :param cg_damping: λ in (F + λ I) x = g, the system that conjugate gradient solves; the step's length is taken from
        F alone, so that damping does not use up the trust region
    :param line_search_shrinking_factor: the largest reduction of the step from one try of the line search to the next
    :param line_search_max_iter: the largest number of tries
    :param n_critic_updates: the epochs of the critic per update
    :param gae_lambda: λ of generalised advantage estimation
    :param use_sde: whether to use generalised state-dependent exploration (gSDE)
    :param sde_sample_freq: with gSDE, the steps after which a new noise matrix is drawn; -1 draws one per rollout
    :param rollout_buffer_class: the class of the rollout buffer; None chooses by the observation space
    :param rollout_buffer_kwargs: the keyword arguments of the rollout buffer
    :param normalize_advantage: whether to give the advantages of an update mean 0 and standard deviation 1
    :param target_kl: δ, the bound on E[KL(π_old ‖ π_new)] in nats, summed over action dimensions: a number,
        or a schedule
    :param sub_sampling_factor: k; the Fisher product takes every k-th state only, gradient and line search take all
    :param stats_window_size: the number of episodes over which rollout statistics are averaged
    :param tensorboard_log: the folder for TensorBoard; None writes none
    :param policy_kwargs: the additional arguments of the policy
    :param verbose: 0 for no output, 1 for info, 2 for debug
    :param seed: the seed of the pseudo-random generators
    :param device: the device: cpu, cuda, ...; auto takes the GPU if there is one
    :param _init_setup_model: whether to build the network at once
    :param cg_residual_tol: the share of the gradient, in the preconditioner's norm, at which conjugate gradient stops
        when the residual has fallen to it
    :param cg_progress_tol: the share of what conjugate gradient maximises, gᵀx − ½ xᵀ(F + λ I)x, below which an
        iteration's addition is the last; a table in ``benchmarks/RESULTS.md`` says what the direction is then worth
    :param cg_warm_start: whether conjugate gradient starts from the last update's direction
    :param ent_coef: the coefficient of the entropy in the surrogate
    :param min_std: the standard deviation of Gaussian actions that an update does not go below: a number, or a
        schedule; 0 for none, as it must be for other actions and with gSDE
    :param max_std: the standard deviation of Gaussian actions that updates bring it down to: a number, a schedule, or
        None. The way down takes about a sixteenth of δ in each update. Where ``min_std`` is larger, ``max_std`` counts
    :param noise_correlation: the correlation of the noise in Gaussian actions from each step to the next, above -1 and
        below 1; 0 for independent noise. Each action's own distribution stays π(· | s). Lasting noise also shows in the
        states that follow. That is neglected, as in all on-policy training with such noise (Hollenstein et al. 2024,
        https://arxiv.org/abs/2312.11091)
    :param max_grad_norm: the bound on the norm of the critic's gradient; None leaves it as it is
    :param adaptive_kl: whether to adapt δ. It grows by a factor of 1.5 when KL stayed below δ/1.5. It shrinks by that
        factor when the line search failed, or shortened the step to ``line_search_shrinking_factor`` or less. It stays
        within a factor of 5 of ``target_kl``. With the hyperparameters that ship, it hardly ever changes
    :param fisher_chunk_size: the states that gradient, Fisher product and line search take at a time, to bound the
        memory; None takes all at once, unless their observations are as large as images
    :param preconditioner: the preconditioner of conjugate gradient; ``"kfac"`` reaches in three to five iterations what
        takes 15 without (see ``benchmarks/RESULTS.md``); None uses none
    :param env_timeout: the seconds that an environment in another process (``SubprocVecEnv``) may take for a step or a
        reset before training ends with an error; None waits as long as it takes, with a warning after a minute
    :param check_env_outputs: whether training ends with an error at an observation or reward that is not finite, or at
        an observation of another shape than the space says. Observations that are not finite are let through if the
        policy makes finite numbers of them
    :param distributed: whether processes that were launched together (``torchrun``) train together, each with
        ``n_envs`` environments; without, or launched alone, nothing is different (see ``docs/distributed.md``)
    """

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
        learning_rate: float | Schedule | str = 1e-3,
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
        target_kl: float | Schedule | str = 0.01,
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
        min_std: float | Schedule | str = 0.0,
        max_std: float | Schedule | str | None = None,
        noise_correlation: float = 0.0,
        max_grad_norm: float | None = None,
        adaptive_kl: bool = False,
        fisher_chunk_size: int | None = None,
        preconditioner: str | None = "kfac",
        env_timeout: float | None = None,
        check_env_outputs: bool = True,
        distributed: bool = True,
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
        # Texts become schedules in check_hyperparameters.
        self.target_kl = target_kl  # type: ignore[assignment]
        self.adaptive_kl = adaptive_kl
        self.min_std, self.max_std = min_std, max_std  # type: ignore[assignment]
        self.noise_correlation = noise_correlation
        self.n_critic_updates = n_critic_updates
        self.normalize_advantage = normalize_advantage
        self.env_timeout = env_timeout
        self.check_env_outputs = check_env_outputs
        self.distributed = distributed
        check_base_arguments(device, tensorboard_log, rollout_buffer_class, rollout_buffer_kwargs)
        if distributed:
            # Of what the base class prints, once is enough.
            verbose = verbose if launched_as()[0] == 0 else 0
            device = device_of_rank(device)
        # What the base class will hold; set here so that everything is checked before an environment is made.
        self.learning_rate = learning_rate  # type: ignore[assignment]
        self.n_steps, self.gamma, self.gae_lambda = n_steps, gamma, gae_lambda
        self.ent_coef, self.max_grad_norm = ent_coef, max_grad_norm  # type: ignore[assignment]
        self.use_sde, self.sde_sample_freq = use_sde, sde_sample_freq
        check_hyperparameters(self)
        check_integer("verbose", verbose, minimum=0)
        check_policy_and_env(policy, env, self.policy_aliases, is_complete=_init_setup_model)

        super().__init__(
            policy,
            env,
            learning_rate=self.learning_rate,
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
        self._said: set[str] = set()
        self._rollout_numbers: dict[str, float] = {}
        # What adaptive KL multiplies target_kl by.
        self.kl_scale = 1.0
        self._advice = Advice()
        self._knows_statistics = False
        # Updates in a row that were undone.
        self._n_failures = 0

        if self.env is not None:
            check_environment(self, self.env)
            size = Settings(self.n_steps * self.n_envs, action_dimensions(self.action_space))
            self._advice.give(small_batch(Record(settings=size)))
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
            with (
                # Whatever the caller has switched off.
                th.enable_grad(),
                skip_distribution_checks(),
                keep_distribution(self.policy),
                Transaction(self.policy) as transaction,
            ):
                samples = self._rollout_samples()
                policy_step = self._improve_policy(samples)
                critic_fit = self._fit_critic(samples, policy_step)
                transaction.check_finite()
        except (ArithmeticError, RuntimeError) as error:
            self._report_failure(error)
        else:
            self._report(samples, policy_step, critic_fit)
            self._prepare_next(policy_step)
        self._n_updates += 1
        self.logger.record("train/n_updates", self._n_updates, exclude="tensorboard")

    def _improve_policy(self, samples: Samples) -> PolicyStep:
        """
        Take one step of the paper's algorithm (section 6 and appendix C).

        :param samples: the rollout
        :return: what was done
        """
        batches = self._policy_batches(samples)
        actor = self._make_actor()
        chunks = [batch.samples for batch in batches]
        linearizations = Linearizations(actor.linearize, chunks, self._representative(samples))

        # F comes first: with it the parameters that z depends on are found, and checked to be trainable.
        fisher = self._fisher(actor, linearizations, samples)
        # L(θ) and KL(θ_old ‖ θ), with g = ∇L(θ_old)
        surrogate = Surrogate(actor.distribution, batches, linearizations, self.ent_coef, self._log_prob(), self.ranks)
        g = surrogate.gradient
        # x ≈ (F + λI)⁻¹ g
        solution = self._search_direction(fisher, g)
        # θ = θ_old + √(2δ / xᵀFx) x, and back from there until KL ≤ δ and L has improved
        full_step = self._scale_to_trust_region(fisher, solution)
        result = self._line_search(surrogate, fisher.parameters, full_step)
        return PolicyStep(fisher.parameters, surrogate, float(g.norm()), solution, float(g.dot(full_step)), result)

    def _begin_update(self) -> None:
        """
        Bring policy, progress and learning rate to where an update begins.

        :raises UserError: if there is no rollout or no logger, as in a training loop of the user's own, or a
            callback has made something of the algorithm that is not allowed
        """
        check_ready_to_train(self)
        self._check_changes()
        self.policy.set_training_mode(False)
        # The last rollout may go beyond the steps that were asked for, where a linear schedule is negative.
        self._current_progress_remaining = max(0.0, float(self._current_progress_remaining))
        self._now("learning_rate", self.lr_schedule)
        self._update_learning_rate(self.policy.optimizer)

    def _policy_batches(self, samples: Samples) -> list[PolicyBatch[Samples]]:
        """
        Split the rollout into chunks, and normalise the advantages over all of them.

        :param samples: the rollout
        :return: states, actions and advantages, in chunks
        """
        batches = [self._policy_batch(chunk) for chunk in self._chunks(samples)]
        return normalize_advantages(batches, self.ranks) if self.normalize_advantage else batches

    def _fisher(self, actor: Actor[Samples], linearizations: Linearizations[Samples], samples: Samples) -> Fisher:
        """
        Make the Fisher matrix, over every ``sub_sampling_factor``-th state.

        :param actor: what makes linearisations
        :param linearizations: the linearisations of all samples
        :param samples: the rollout
        :return: F
        :raises UserError: if there is no parameter to move
        """
        if self.sub_sampling_factor > 1 or actor.hides_features:
            thinned = self._thin(samples, self.sub_sampling_factor)
            chunks = self._chunks(thinned)
            linearizations = Linearizations(actor.linearize_for_fisher, chunks, self._representative(thinned))
        fisher = Fisher(linearizations, self.ranks)
        if len(fisher.parameters) == 0:
            raise UserError("Every parameter that the policy's actions depend on is frozen: none can be trained.")
        return fisher

    def _search_direction(self, fisher: Fisher, g: th.Tensor) -> Solution:
        """
        Solve for the natural gradient by conjugate gradient.

        :param fisher: F
        :param g: ∇L, (P,)
        :return: x ≈ (F + λI)⁻¹ g
        :raises NonFiniteError: if a number on the way is not finite
        """
        solution = conjugate_gradient(
            lambda v: (fisher @ v).add_(v, alpha=self.cg_damping),
            g,
            max_steps=self.cg_max_steps,
            residual_tol=self.cg_residual_tol,
            progress_tol=self.cg_progress_tol,
            preconditioner=self._make_preconditioner(fisher),
            x0=self.cg_direction if self.cg_warm_start and self.cg_direction.shape == g.shape else None,
        )
        if solution.stop is Stop.NOT_FINITE:
            raise NonFiniteError("the surrogate's gradient or the search direction is not finite")
        return solution

    def _make_preconditioner(self, fisher: Fisher) -> Operator | None:
        """
        Make the preconditioner of conjugate gradient.

        :param fisher: F
        :return: r -> P⁻¹ r with P ≈ F + λI; None if there is to be none, or it can't be had
        """
        if self.preconditioner is None:
            return None
        try:
            return kronecker_preconditioner(fisher.linearizations.representative(), self.cg_damping, self.ranks)
        except PreconditionerError as error:
            finding = no_preconditioner(str(error).rstrip("."))
            self.logger.info(f"Update {self._n_updates + 1}: {finding.problem} ({finding.evidence}).")
            self._advice.give(finding)
            return None

    def _scale_to_trust_region(self, fisher: Fisher, solution: Solution) -> th.Tensor:
        """
        Scale the direction to where the quadratic model of KL is δ.

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
        Shorten the step until it is in the trust region and an improvement.

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
        Make what keeps the noise between its bounds.

        :return: the function that brings it there, at the parameters as they are; None if it has no bounds
        """
        max_std = math.inf if self.max_std is None else self._now("max_std", self.max_std)
        return std_bounds(self.policy, self._now("min_std", self.min_std), max_std, self._max_kl())

    def _fit_critic(self, samples: Samples, step: PolicyStep) -> CriticFit:
        """
        Fit the critic to the returns, with the actor as it is.

        :param samples: the rollout
        :param step: what the policy step has done
        :return: what was done
        """
        regression = Regression(
            self.policy,
            self._values,
            samples,
            CriticSettings(self.n_critic_updates, self.batch_size, self.max_grad_norm or None),
            self._is_builtin("_values"),
            self._draw_minibatches,
            TrustRegion(lambda: step.surrogate.evaluate()[0], self._max_kl()),
            self.ranks,
        )
        fit = fit_critic(regression, step.parameters)
        # What normalisers of the critic have learned, each from its rank's samples.
        self.ranks.copy_first_(list(self.policy.buffers()))
        return fit

    def _max_kl(self) -> float:
        """
        Give the bound on KL.

        :return: δ of this update
        """
        return self._now("target_kl", self.target_kl) * (self.kl_scale if self.adaptive_kl else 1.0)

    def _now(self, name: str, value: float | Schedule) -> float:
        """
        Give a hyperparameter as it is in this update.

        :param name: its name
        :param value: the number, or the schedule
        :return: the number
        :raises UserError: if the schedule gives a number that is not allowed
        """
        try:
            number = value(self._current_progress_remaining) if callable(value) else value
        except Exception as error:
            # The schedule is the user's function, of which SB3 makes a float.
            raise UserError(f"{name} is a schedule that gives no number: {error}.") from error
        check_real(name, number, "at least 0 throughout training", lambda x: x >= 0)
        return float(number)

    def _prepare_next(self, step: PolicyStep) -> None:
        """
        Keep what the next update begins with: a direction for conjugate gradient, and what δ is multiplied by.

        :param step: the policy step of this update
        """
        if self.cg_warm_start:
            self.cg_direction = step.solution.x
        if self.adaptive_kl:
            search = step.line_search
            if search.fraction <= self.line_search_shrinking_factor:
                self.kl_scale = max(self.kl_scale / KL_ADAPTATION, 1.0 / MAX_KL_SCALE)
            elif search.kl < self._max_kl() / KL_ADAPTATION:
                self.kl_scale = min(self.kl_scale * KL_ADAPTATION, MAX_KL_SCALE)

    def _report(self, samples: Samples, step: PolicyStep, critic_fit: CriticFit) -> None:
        """
        Log an update, and look at it for trouble.

        :param samples: the rollout
        :param step: the policy step
        :param critic_fit: the critic's fit
        """
        self._n_failures = 0
        numbers = describe_update(self.policy, self.rollout_buffer, step, critic_fit.mean_loss, self._max_kl())
        numbers |= pool_numbers(self.rollout_buffer, {**self._rollout_numbers, **numbers}, self.ranks)
        settings = {"gamma": self.gamma, "learning_rate": self.lr_schedule(self._current_progress_remaining)}
        check_agreement(self.policy.parameters(), {**settings, "target_kl": self._max_kl()}, self.ranks)
        self._log_update(numbers)
        self._advice.give(held_parameters(critic_fit.held))
        if not self._knows_statistics:
            self._knows_statistics = True
            chunk = self._chunks(samples)[0]
            modules = find_fixed_statistics(self.policy, lambda: self._action_distribution(chunk))
            self._advice.give(fixed_statistics(modules))

    def _log_update(self, numbers: Mapping[str, float]) -> None:
        """
        Log an update, and let the rules look at it.

        :param numbers: the update's numbers, by their keys
        """
        row = {**self._rollout_numbers, **numbers}
        for key, value in row.items():
            if key.startswith("train/"):
                self.logger.record(key, value)
        if self.ep_info_buffer and self.ep_info_buffer[0]:
            row["rollout/ep_rew_mean"] = safe_mean([episode["r"] for episode in self.ep_info_buffer])
            row["rollout/ep_len_mean"] = safe_mean([episode["l"] for episode in self.ep_info_buffer])
        self._advice.observe(row, Settings.of(self), 1.0 - self._current_progress_remaining)

    def _report_failure(self, error: Exception) -> None:
        """
        Say that an update was undone.

        :param error: the reason
        :raises RuntimeError: the error itself, if updates keep failing for another cause than their data; on several
            ranks at once, for they would come apart
        """
        self._n_failures += 1
        if self.ranks.come_apart_by(error) or (
            self._n_failures >= MAX_FAILURES and not isinstance(error, NonFiniteError)
        ):
            raise error
        self._log_update({"train/is_line_search_success": 0.0, "train/kl_divergence_loss": 0.0})
        finding = undone_update(self._n_updates + 1, str(error).rstrip("."))
        self.logger.warn(f"{finding.problem}: {finding.evidence}.")
        self._advice.give(finding)

    def _setup_model(self) -> None:
        # Once more, for a loaded model's arguments come later than the constructor.
        check_hyperparameters(self)
        super()._setup_model()
