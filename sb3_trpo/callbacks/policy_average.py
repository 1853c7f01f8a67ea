"""
The average of the policies of the end of training, in place of the last of them.
"""

from typing import Any

import torch as th
from stable_baselines3.common.callbacks import BaseCallback

from sb3_trpo.validation.values import UserError, check_real


class PolicyAverage(BaseCallback):
    """
    A callback that makes the final policy the average of the policies after each of the last updates.

    It is an averaging of iterates (Polyak & Juditsky 1992, https://doi.org/10.1137/0330046).

    A policy that still learns goes back and forth around the best one. On tasks where a robot may fall, one update may
    be the difference between never falling and falling in every other episode. The average costs no step of the
    environment. It is no step of TRPO: no trust region bounds the way to it.

    :param share: the last part of training, over whose updates the average is taken, above 0 and at most 1
    :param verbose: 1 prints the number of policies in the average
    """

    # The policy has to be the same on all.
    runs_on_all_ranks = True

    def __init__(self, share: float = 0.1, verbose: int = 0) -> None:
        super().__init__(verbose)
        check_real("share", share, "above 0 and at most 1", lambda x: 0 < x <= 1)
        self.share = share
        self._sum: list[th.Tensor] = []
        self._n_policies = 0
        # The steps after which the first of these policies acted.
        self._first_at = 0
        self._last_update: int | None = None

    def _on_training_start(self) -> None:
        # On the CPU, for there are devices without numbers of this precision.
        self._sum = [th.zeros(parameter.shape, dtype=th.float64) for parameter in self.model.policy.parameters()]
        self._n_policies = 0
        self._last_update = None

    def _on_rollout_start(self) -> None:
        # There is no update after a rollout that a callback ends.
        is_new = self.model._n_updates != self._last_update
        if is_new and self._is_near_end(self.model.num_timesteps):
            for total, parameter in zip(self._sum, self.model.policy.parameters(), strict=True):
                total.add_(parameter.detach().cpu())
            if self._n_policies == 0:
                self._first_at = self.model.num_timesteps
            self._n_policies += 1
        self._last_update = self.model._n_updates

    def _is_near_end(self, n_steps: int) -> bool:
        # SB3's own number is that of the last training until the first rollout has ended.
        return 1.0 - n_steps / self.model._total_timesteps <= self.share

    def _on_step(self) -> bool:
        return True

    @th.no_grad()
    def _on_training_end(self) -> None:
        # After the last update there is no rollout. Where training was stopped early, there may be nothing to average.
        self._on_rollout_start()
        if self._n_policies == 0:
            return
        for total, parameter in zip(self._sum, self.model.policy.parameters(), strict=True):
            parameter.copy_(total / self._n_policies)
        if self.verbose > 0:
            print(f"The policy is the average of the last {self._n_policies}.")

    def get_checkpoint_state(self) -> dict[str, Any]:
        """
        Give the state that ``Checkpoint`` saves.

        :return: the sum of the policies so far, their number, and the steps after which the first of them acted
        """
        sums = [total.clone() for total in self._sum]
        return {"sum": sums, "n_policies": self._n_policies, "first_at": self._first_at}

    def set_checkpoint_state(self, state: dict[str, Any]) -> None:
        """
        Go on from a state.

        A training that has become longer has its end elsewhere: policies that are no longer near it are left out, all
        of them, for only their sum is known.

        :param state: the state, from ``get_checkpoint_state``
        :raises UserError: if it belongs to another policy
        """
        sums, n_policies = [th.as_tensor(saved) for saved in state["sum"]], state["n_policies"]
        if [total.shape for total in sums] != [total.shape for total in self._sum] or not n_policies >= 0:
            raise UserError("The state of PolicyAverage is that of a policy with other parameters.")
        if n_policies > 0 and not self._is_near_end(state["first_at"]):
            return
        for total, saved in zip(self._sum, sums, strict=True):
            total.copy_(saved)
        self._n_policies, self._first_at = int(n_policies), int(state["first_at"])
