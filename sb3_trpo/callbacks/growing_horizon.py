"""
A discount factor that grows during training.
"""

from typing import cast

from stable_baselines3.common.callbacks import BaseCallback
from stable_baselines3.common.on_policy_algorithm import OnPolicyAlgorithm

from sb3_trpo.validation.values import check_real


class GrowingHorizon(BaseCallback):
    """
    A callback that lets the discount factor γ grow during training.

    The horizon 1 / (1 − γ) grows by the same factor in equal times (a γ that grows with training: François-Lavet et al.
    2015, https://arxiv.org/abs/1512.02011).

    A short horizon makes learning quick, and in the end it is the wrong objective. With γ = 0.99 at 8 ms a step, a
    robot looks 0.8 s ahead: it gains by becoming faster even when it then falls every few seconds. Its discounted
    return goes up, and the return of its episodes goes down. A long horizon from the beginning teaches it to stand
    still.

    The algorithm keeps the last γ when training ends. The reward's scale in ``VecNormalize`` goes on with its own γ.

    :param start: the γ of the first rollout, at least 0 and below 1
    :param end: the γ of the end of training, at least ``start`` and below 1
    :param verbose: the verbosity of SB3's callbacks, which has no effect here
    """

    # The discount factor has to be the same on all.
    runs_on_all_ranks = True

    def __init__(self, start: float = 0.99, end: float = 0.998, verbose: int = 0) -> None:
        super().__init__(verbose)
        check_real("start", start, "at least 0 and below 1", lambda x: 0 <= x < 1)
        check_real("end", end, f"at least start ({start}) and below 1", lambda x: start <= x < 1)
        self.start = start
        self.end = end

    def _init_callback(self) -> None:
        if not isinstance(self.model, OnPolicyAlgorithm):
            raise ValueError(
                "GrowingHorizon is for on-policy algorithms, which have a rollout buffer, but was given to a "
                f"{type(self.model).__name__}."
            )

    def _on_rollout_start(self) -> None:
        algorithm = cast(OnPolicyAlgorithm, self.model)
        # The last rollout may go beyond the steps that were asked for.
        progress = 1.0 - max(0.0, algorithm._current_progress_remaining)
        gamma = 1.0 - (1.0 - self.start) * ((1.0 - self.end) / (1.0 - self.start)) ** progress
        algorithm.gamma = algorithm.rollout_buffer.gamma = gamma
        self.logger.record("train/gamma", gamma)

    def _on_step(self) -> bool:
        return True
