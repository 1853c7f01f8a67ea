"""
Which modules of a policy are in training mode, in which dropout draws and normalisers track their inputs.

The modules of the critic alone are while it is fitted. Those of the actor never are: what they learn would move the
policy outside of its trust region, and a policy that is drawn anew at each evaluation has no KL divergence.
"""

import contextlib
import copy
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from typing import Any

import torch as th
from torch import nn

from sb3_trpo.networks.plain_policy import ALWAYS_SAME


@dataclass(frozen=True)
class Call:
    """
    The first call of a module.

    :param args: the positional arguments
    :param kwargs: the keyword arguments
    """

    args: tuple[Any, ...]
    kwargs: dict[str, Any]


def record_calls(policy: nn.Module, evaluate: Callable[[], object]) -> dict[nn.Module, Call]:
    """
    Record which modules of a policy an evaluation calls.

    :param policy: the policy
    :param evaluate: a function that evaluates the policy, or a part of it
    :return: the modules that were called, each with its first call, but for those of ``torch.jit``, which take no hooks
    """
    calls: dict[nn.Module, Call] = {}

    def note(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        calls.setdefault(module, Call(args, kwargs))

    with contextlib.ExitStack() as stack:
        for module in policy.modules():
            if not isinstance(module, th.jit.ScriptModule):
                stack.enter_context(module.register_forward_pre_hook(note, with_kwargs=True))
        with th.no_grad():
            evaluate()
    return calls


@contextlib.contextmanager
def train_critic(
    policy: nn.Module, free: Iterable[nn.Parameter], evaluate_actor: Callable[[], object] | None
) -> Iterator[None]:
    """
    Put the modules that belong to the critic alone into training mode, in the block.

    A module does if the actor neither calls it nor has a parameter in it. Without a way to see what the actor calls, a
    module without parameters counts as the actor's.

    :param policy: the policy, in evaluation mode before and after
    :param free: the parameters that the critic may move
    :param evaluate_actor: a function that evaluates the actor; None if there is none
    """
    own = {id(parameter) for parameter in free}
    by_actor: set[nn.Module] | None = None
    if evaluate_actor is not None:
        # Modules that are always the same need no evaluation to find out whose they are.
        is_needed = any(not _has_parameters(module) and type(module) not in ALWAYS_SAME for module in policy.modules())
        by_actor = set(record_calls(policy, evaluate_actor)) if is_needed else set()

    def train(module: nn.Module) -> None:
        is_free = all(id(parameter) in own for parameter in module.parameters())
        if by_actor is None or isinstance(module, th.jit.ScriptModule):
            is_free = is_free and _has_parameters(module)
        elif is_free:
            is_free = by_actor.isdisjoint(module.modules())
        if is_free:
            module.train(True)
        else:
            for child in module.children():
                train(child)

    try:
        train(policy)
        yield
    finally:
        policy.train(False)


def find_fixed_statistics(policy: nn.Module, evaluate_actor: Callable[[], object]) -> list[str]:
    """
    Find the modules of the actor that would learn without a gradient, in training mode, and do not.

    :param policy: the policy, in evaluation mode
    :param evaluate_actor: a function that evaluates the actor
    :return: the modules whose buffers change in training mode, such as "features_extractor.norm (RunningNorm)"
    """
    names = {module: name for name, module in policy.named_modules() if any(True for _ in module.buffers(False))}
    if not names:
        return []
    calls = record_calls(policy, evaluate_actor)
    return [
        f"{name} ({type(module).__name__})"
        for module, name in names.items()
        if module in calls and _learns(module, calls[module])
    ]


def _learns(module: nn.Module, call: Call) -> bool:
    """
    Try on a copy whether a call in training mode changes a module's buffers.

    :param module: the module, which stays as it is
    :param call: the call to repeat
    :return: whether it does
    """
    devices = {tensor.device for tensor in module.buffers() if tensor.device.type == "cuda"}
    with th.random.fork_rng(devices), th.no_grad():
        try:
            trial = copy.deepcopy(module).train(True)
            before = [buffer.clone() for buffer in trial.buffers(False)]
            trial(*call.args, **call.kwargs)
        except Exception:  # a user's module may refuse whatever it likes
            return False
        after = list(trial.buffers(False))
    return not all(map(th.equal, before, after))


def _has_parameters(module: nn.Module) -> bool:
    return any(True for _ in module.parameters())
