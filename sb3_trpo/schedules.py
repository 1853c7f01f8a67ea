"""
Hyperparameters that change in the course of training, as functions of the remaining progress, which falls from 1 to 0.
"""

from stable_baselines3.common.type_aliases import Schedule
from stable_baselines3.common.utils import LinearSchedule

FORMS = (
    "a number, lin_START (falls to 0), lin_START_END, or fade_VALUE_SHARE (falls to 0 in the last share of training)"
)


class FadingSchedule:
    """
    Constant at first, then linearly to 0.

    :param value: at first
    :param share: of training that the fall takes, above 0 and at most 1
    """

    def __init__(self, value: float, share: float) -> None:
        if not 0.0 < share <= 1.0:
            raise ValueError(f"share is {share!r}, but must be above 0 and at most 1.")
        self.value = value
        self.share = share

    def __call__(self, progress_remaining: float) -> float:
        return self.value * min(1.0, progress_remaining / self.share)

    def __repr__(self) -> str:
        return f"FadingSchedule(value={self.value}, share={self.share})"


def read_schedule(name: str, text: str) -> Schedule:
    """
    :param name: of the hyperparameter
    :param text: in one of ``FORMS``, as in a hyperparameter file
    :return: the schedule
    :raises ValueError: if it is in none of them
    """
    kind, *numbers = text.split("_")
    try:
        match kind, [float(number) for number in numbers]:
            case "lin", [start]:
                return LinearSchedule(start, 0.0, 1.0)
            case "lin", [start, end]:
                return LinearSchedule(start, end, 1.0)
            case "fade", [value, share]:
                return FadingSchedule(value, share)
    except ValueError:
        pass
    raise ValueError(f"{name} is {text!r}, but must be {FORMS}.")
