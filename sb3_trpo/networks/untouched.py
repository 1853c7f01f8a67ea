"""
Whether a call does what is written in the class that it is made on, and nothing else.

Only then may other code do the same in its place. Classes alone do not tell: a method can be set on an instance or put
into SB3's own class, and torch can be told to do something else at each call.
"""

import sys
from collections.abc import Callable, Iterable, Sequence
from types import FunctionType
from typing import TypeGuard, TypeVar

import torch as th
from torch import nn
from torch.nn.modules import module as nn_module
from torch.overrides import _get_current_function_mode_stack
from torch.utils._device import DeviceContext
from torch.utils._python_dispatch import _get_current_dispatch_mode_stack

T = TypeVar("T")
# What a call of a module goes through before it comes to ``forward``.
_CALL = ("__call__", "_call_impl", "__getattr__")


def is_as_written(cls: type, base: type, name: str) -> bool:
    """
    Say whether a method of a class is what is written in the source of one of its bases.

    :param cls: the class, perhaps a user's
    :param base: the base
    :param name: the method's name
    :return: whether it is neither overridden on the way from the base nor replaced in the base itself, not even by a
        function that ``functools.wraps`` makes look like the original
    """
    owner = next((ancestor for ancestor in base.__mro__ if name in vars(ancestor)), None)
    function = getattr(cls, name, None)
    if owner is None or not isinstance(function, FunctionType):
        return False
    return function.__globals__ is vars(sys.modules[owner.__module__])


def why_module_is_touched(module: nn.Module, methods: Iterable[str] = ("forward",)) -> str:
    """
    Say why calling a module may do something else than its class says, forward or backward.

    :param module: a module of torch or SB3, or of a class derived from these
    :param methods: the methods that are called
    :return: the reason, in words that follow the module's name, such as "has a hook"; empty if there is none
    """
    # 1. A method set on the instance, which Python finds before the one of the class.
    for name in (*methods, "_call_impl"):
        if name in vars(module):
            return f"has a {name} of its own, set on the instance"
    # 2. Hooks on the module. The registers have no public names.
    if module._forward_hooks or module._forward_pre_hooks or module._backward_hooks or module._backward_pre_hooks:
        return "has a hook"
    for name, parameter in module.named_parameters(recurse=False):
        # 3. Hooks on a parameter, which change its gradient.
        if parameter._backward_hooks or parameter._post_accumulate_grad_hooks:
            return f"has a hook on its {name}"
        # 4. A tensor of another kind (distributed, quantised) has an arithmetic of its own.
        if type(parameter) is not nn.Parameter:
            return f"has a {type(parameter).__name__} for its {name}"
    return ""


def why_torch_is_touched() -> str:
    """
    Say why torch itself may do something else than it says.

    :return: the reason, in words that follow "because", such as "a hook for all modules is set"; empty if there is none
    """
    # 1. Hooks that are called for every module. The registers have no public names.
    if (
        nn_module._global_forward_hooks
        or nn_module._global_forward_pre_hooks
        or nn_module._global_backward_hooks
        or nn_module._global_backward_pre_hooks
    ):
        return "a hook for all modules is set"
    # 2. A call of any module that was replaced in torch's own class.
    if not all(is_as_written(nn.Module, nn.Module, name) for name in _CALL):
        return "torch.nn.Module has been patched"
    # 3. Modes, through which every function or operator goes. A default device is one, too, and harmless. torch has no
    #    public way to ask for those in force.
    get_function_modes: Callable[[], Sequence[object]] = _get_current_function_mode_stack
    for mode in (*get_function_modes(), *_get_current_dispatch_mode_stack()):
        if not isinstance(mode, DeviceContext):
            return f"torch is in a {type(mode).__name__}"
    # 4. Lower precision, which some functions take and others don't.
    return "torch is in autocast" if th.is_autocast_enabled() or th.is_autocast_enabled("cpu") else ""


def is_untouched(instance: object, *kinds: type[T]) -> TypeGuard[T]:
    """
    Tell whether an object is of one of these classes, with every method as its class was written.

    Users replace methods, on an object or on a class of Stable-Baselines3, to time, to capture, to correct. Then these
    methods have to be called, and code that does the same without them may not take their place.

    :param instance: the object
    :param kinds: the classes, of which the object's own class has to be one; a subclass is not enough
    :return: whether no method is replaced, neither on the object nor on its class or the classes below it
    """
    kind = type(instance)
    if kind not in kinds:
        return False
    own = vars(instance)
    methods = {
        name for base in kind.__mro__[:-1] for name, value in vars(base).items() if isinstance(value, FunctionType)
    }
    # 1. A method that is set on the object hides the method of the class.
    # 2. A method that is set on the class was written elsewhere.
    return not methods & own.keys() and all(is_as_written(kind, kind, name) for name in methods)
