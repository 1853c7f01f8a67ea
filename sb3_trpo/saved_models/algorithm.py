"""
Saving and loading of an algorithm: files that no crash breaks, that sb3-contrib reads, and that nobody has to trust.
"""

import contextlib
import io
import pathlib
from collections.abc import Iterable, Iterator
from typing import Any, TypeVar

import torch as th
from stable_baselines3.common.on_policy_algorithm import OnPolicyAlgorithm
from stable_baselines3.common.type_aliases import GymEnv, Schedule, TensorDict

from sb3_trpo.saved_models.atomic import atomic_write
from sb3_trpo.saved_models.contrib import explain_missing_gym, warn_of_methods_not_called, warn_of_smaller_steps
from sb3_trpo.saved_models.foreign import LEFT_OVER, explain_take_over, take_over
from sb3_trpo.saved_models.origin import ModelPath, Origin, origin_of, read_data
from sb3_trpo.saved_models.parameters import fit_parameters, read_parameters
from sb3_trpo.saved_models.portable import make_portable
from sb3_trpo.saved_models.untrusted import Attributes, given_in_place, read_untrusted
from sb3_trpo.validation.base_arguments import check_device
from sb3_trpo.validation.values import UserError, check_choice, short, warn_user

SelfAlgorithm = TypeVar("SelfAlgorithm", bound="SafelySaved")


class SafelySaved(OnPolicyAlgorithm):
    """An algorithm with ``save``, ``load`` and ``set_parameters`` in SB3's file format."""

    target_kl: float | Schedule

    def __init_subclass__(cls, **kwargs: Any) -> None:
        super().__init_subclass__(**kwargs)
        warn_of_methods_not_called(cls, SafelySaved)

    def save(
        self,
        path: str | pathlib.Path | io.BufferedIOBase,
        exclude: Iterable[str] | None = None,
        include: Iterable[str] | None = None,
    ) -> None:
        """
        Save the model; a crash on the way leaves the file that was there before.

        :param path: the file's path, or an open file
        :param exclude: the names of attributes to leave out, besides those that SB3 leaves out
        :param include: the names of attributes to save although SB3 leaves them out
        """
        portable = make_portable(self)
        if isinstance(path, (str, pathlib.Path)):
            with atomic_write(path, "zip") as file:
                super(SafelySaved, portable).save(file, exclude, include)
        else:
            super(SafelySaved, portable).save(path, exclude, include)

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
        Load a model, also one that sb3-contrib's TRPO has saved.

        Loading may run any code that the file holds, unless ``trusted`` is False. A model of PPO or A2C becomes a TRPO
        with its policy and weights, with a warning.

        :param path: the file's path, or an open file
        :param env: the environment to train in; None is enough to predict
        :param device: the device, such as cpu or cuda
        :param custom_objects: the attributes to use in the place of the file's
        :param print_system_info: whether to print the system on which the model was saved, and the current one
        :param force_reset: whether training starts with a reset of the environment
        :param trusted: whether the file comes from where no harm is meant; if not, it may hold weights, numbers and
            objects of a short list, and is refused if it holds anything else; schedules that are functions of its
            author's can be given anew, as in ``learning_rate=3e-4``
        :param kwargs: the attributes to change
        :return: the model
        :raises UserError: if nothing of the file can become such a model
        :raises RefusedModelError: (a UserError) if the file is not trusted and holds what it should not
        """
        check_choice("trusted", trusted, (True, False))
        check_device(device)
        if custom_objects is not None and not isinstance(custom_objects, dict):
            raise UserError(
                f"custom_objects is {short(custom_objects)}, but must be a dictionary of attributes by their names, or "
                "None."
            )
        given = {**(custom_objects or {}), **kwargs}
        in_place = custom_objects or {} if trusted else {**(custom_objects or {}), **given_in_place(given)}
        readable = _readable(cls, path, in_place, trusted)
        with readable as (file, attributes, origin, target_kl), explain_missing_gym():
            model = super().load(file, env, device, attributes, print_system_info, force_reset, **kwargs)
        if origin is Origin.CONTRIB:
            saved = target_kl if isinstance(target_kl, (int, float)) else model.target_kl
            warn_of_smaller_steps(saved, given.get("target_kl"), model.action_space)
        elif origin in (Origin.PPO, Origin.A2C):
            for name in LEFT_OVER:
                vars(model).pop(name, None)
            warn_user(explain_take_over(origin))
        return model

    def set_parameters(
        self,
        load_path_or_dict: str | TensorDict,
        exact_match: bool = True,
        device: th.device | str = "auto",
    ) -> None:
        """
        Take over the weights of another model, all of them or none.

        The optimizer's state comes with them where it fits. Where it does not, it begins anew, with a warning. That is
        so with a PPO for images, whose actor and critic share their features.

        :param load_path_or_dict: a saved model, or the result of ``get_parameters``
        :param exact_match: whether all parameters must be there, and no others
        :param device: the device to read a file to
        :raises UserError: if the weights do not fit; nothing is changed then
        """
        parameters = read_parameters(load_path_or_dict, device)
        names, _ = self._get_torch_save_params()
        super().set_parameters(fit_parameters(self, names, parameters, exact_match), exact_match, device)


@contextlib.contextmanager
def _readable(
    algorithm_class: type, path: ModelPath, given: Attributes, trusted: bool
) -> Iterator[tuple[ModelPath, Attributes, Origin, object]]:
    """
    Give what SB3's ``load``, which is called in the block, is to read.

    :param algorithm_class: the class of the model
    :param path: the file's path, or an open file
    :param given: the attributes that the user gives in the place of the file's
    :param trusted: whether the file is read as it is
    :return: a file, the attributes to use in the place of its own, the algorithm that saved it, and its target_kl
    """
    if trusted:
        data = read_data(path)
        if not data:
            raise UserError(
                f"{path} can't be loaded: it is no model that an algorithm has saved, or a damaged one (a policy that "
                "was saved alone is loaded by its class, as in MlpPolicy.load)."
            )
        try:
            attributes = {**_take_over(algorithm_class, data, given), **given}
        except UserError as error:
            raise UserError(f"{path} can't be loaded: {error}.") from None
        yield path, attributes, origin_of(data), data.get("target_kl")
        return
    found: list[tuple[Origin, object]] = []

    def replace(data: Any) -> Attributes:
        found.append((origin_of(data), data.get("target_kl")))
        return {**_take_over(algorithm_class, data, given), **given}

    with read_untrusted(algorithm_class, path, replace) as (file, attributes):
        yield file, attributes, *found[0]


def _take_over(algorithm_class: type, data: dict[str, object], given: Attributes) -> Attributes:
    # A policy that the user gives may be of any kind.
    if not isinstance(given.get("policy_class", object), type):
        raise UserError(f"policy_class is {short(given['policy_class'])}, but must be a class")
    return take_over(algorithm_class, {**data, **{name: given[name] for name in ("policy_class",) if name in given}})
