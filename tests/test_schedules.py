"""
Schedules: their values, and what is said of text that is none.
"""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from sb3_trpo.schedules import FadingSchedule, read_schedule

progress = st.floats(0.0, 1.0)


@given(value=st.floats(0.0, 10.0), share=st.floats(0.01, 1.0), first=progress, second=progress)
def test_a_fading_schedule_is_constant_and_then_falls_to_zero(value, share, first, second) -> None:
    schedule = FadingSchedule(value, share)
    assert schedule(1.0) == schedule(share) == value
    assert schedule(0.0) == 0.0
    assert schedule(share / 2) == pytest.approx(value / 2)
    earlier, later = max(first, second), min(first, second)
    assert 0.0 <= schedule(later) <= schedule(earlier) <= value


@pytest.mark.parametrize(
    ("text", "values"),
    [("lin_0.06", (0.06, 0.03, 0.0)), ("lin_0.4_0.2", (0.4, 0.3, 0.2)), ("fade_0.03_0.5", (0.03, 0.03, 0.0))],
)
def test_text_in_a_file(text, values) -> None:
    assert tuple(map(read_schedule("target_kl", text), (1.0, 0.5, 0.0))) == pytest.approx(values)


@pytest.mark.parametrize("text", ["", "lin", "lin_", "lin_a", "lin_1_2_3", "fade_1", "fade_1_0", "fade_1_2", "0.1"])
def test_other_text_is_refused_with_the_forms_that_there_are(text) -> None:
    with pytest.raises(ValueError, match=f"min_std is '{text}', but must be a number, lin_START .*fade_VALUE_SHARE"):
        read_schedule("min_std", text)
