"""
Saving and loading of an algorithm: files that no crash breaks, and files that nobody has to trust.
"""

import io
import pathlib
from collections.abc import Iterable
from typing import Any, TypeVar

import torch as th
from stable_baselines3.common.on_policy_algorithm import OnPolicyAlgorithm
from stable_baselines3.common.type_aliases import GymEnv, Schedule

from sb3_trpo.saved_models.atomic import atomic_write
from sb3_trpo.saved_models.contrib import explain_target_kl, is_contribs, missing_gym_explained
from sb3_trpo.saved_models.untrusted import model_file

SelfAlgorithm = TypeVar("SelfAlgorithm", bound="SafelySaved")


class SafelySaved(OnPolicyAlgorithm):
    """
    ``save`` and ``load``, in SB3's file format.
    """

    target_kl: float | Schedule

    def save(
        self,
        path: str | pathlib.Path | io.BufferedIOBase,
        exclude: Iterable[str] | None = None,
        include: Iterable[str] | None = None,
    ) -> None:
        """
        Save the model; a crash on the way leaves the file that was there before.

        :param path: of the file, or an open file
        :param exclude: names of attributes to leave out, besides SB3's
        :param include: names of attributes to save although SB3 leaves them out
        """
        if isinstance(path, (str, pathlib.Path)):
            with atomic_write(path, "zip") as file:
                super().save(file, exclude, include)
        else:
            super().save(path, exclude, include)

    @classmethod
    def load(
        cls: type[SelfAlgorithm],
        path: str | pathlib.Path | io.BufferedIOBase,
        env: GymEnv | None = None,
        device: th.device | str = "auto",
        custom_objects: dict[str, Any] | None = None,
        print_system_info: bool = False,
        force_reset: bool = True,
        *,
        trusted: bool = True,
        **kwargs: Any,
    ) -> SelfAlgorithm:
        """
        Load a model, also one that sb3-contrib's TRPO has saved. It may run any code, unless ``trusted`` is False.

        :param path: of the file, or an open file
        :param env: to train in, in the place of the model's own; None is enough to predict
        :param device: cpu, cuda, ...
        :param custom_objects: attributes to be used in the place of the file's
        :param print_system_info: whether to print on what system the model was saved, and the present one
        :param force_reset: whether training starts with a reset of the environment
        :param trusted: whether the file comes from where no harm is meant; if not, it may hold weights, numbers and
            objects of a short list, and is refused if it holds anything else
        :param kwargs: attributes to be changed
        :return: the model
        :raises RefusedModelError: (a ValueError) if the file is not trusted and holds what it should not
        """
        given = {**kwargs, **(custom_objects or {})}
        with model_file(cls, path, custom_objects, trusted) as (file, attributes):
            with missing_gym_explained():
                model = super().load(file, env, device, attributes, print_system_info, force_reset, **kwargs)
            if "target_kl" not in given and is_contribs(file):
                explain_target_kl(model.target_kl, model.action_space, stacklevel=2)
        return model
