"""When a term counts."""

import pytest
from pydantic import ValidationError

from distill.objectives.base import Schedule


def over(schedule: Schedule, epochs: int = 4, steps: int = 2) -> list[float]:
    return [round(schedule.factor(step, steps, epochs), 6) for step in range(epochs * steps)]


@pytest.mark.parametrize(
    ("schedule", "expected"),
    [
        (Schedule(), [1] * 8),
        (Schedule(warmup=2), [0.25, 0.5, 0.75, 1, 1, 1, 1, 1]),
        (Schedule(start=1), [0, 0, 1, 1, 1, 1, 1, 1]),
        (Schedule(until=3), [1, 1, 1, 1, 1, 1, 0, 0]),
        (Schedule(start=1, warmup=1, until=3), [0, 0, 0.5, 1, 1, 1, 0, 0]),
        (Schedule(final=0), [0.875, 0.75, 0.625, 0.5, 0.375, 0.25, 0.125, 0]),
        (Schedule(warmup=2, final=3), [0.25, 0.5, 0.75, 1, 1.5, 2, 2.5, 3]),
        (Schedule(final=2, until=2), [1.25, 1.5, 1.75, 2, 0, 0, 0, 0]),
        (Schedule(warmup=8), [0.0625, 0.125, 0.1875, 0.25, 0.3125, 0.375, 0.4375, 0.5]),
    ],
)
def test_the_factor_at_every_step(schedule: Schedule, expected: list[float]) -> None:
    assert over(schedule) == pytest.approx(expected)


def test_an_end_before_the_warm_up_is_over_is_refused() -> None:
    with pytest.raises(ValidationError, match="must not come before the end of the warm-up, 3, but is 2"):
        Schedule(start=1, warmup=2, until=2)
