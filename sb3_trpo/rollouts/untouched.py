"""
Whether an object does what its class says, so that other code may do the same in its place.
"""

from types import FunctionType

from sb3_trpo.networks.untouched import is_as_written


def is_untouched(instance: object, *kinds: type) -> bool:
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
