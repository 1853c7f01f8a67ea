"""
Whether an object does what its class says: the condition under which another way of doing the same may be taken.
"""

from types import FunctionType

from sb3_trpo.networks.untouched import is_as_written


def is_untouched(instance: object, *kinds: type) -> bool:
    """
    Tell whether an object is of one of these classes, with every method as its class was written.

    Users replace methods, on an object or on a class of Stable-Baselines3, to time, to capture, to correct. Then the
    method has to be called, and what does the same by other means does not do.

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
    # 1. A method that is set on the object hides the class's.
    # 2. One that is set on the class was written elsewhere.
    return not methods & own.keys() and all(is_as_written(kind, kind, name) for name in methods)
