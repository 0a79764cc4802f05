import math

import pytest

from distill.report.numbers import count, duration, percent, points, signed, size


@pytest.mark.parametrize(
    ("function", "value", "text"),
    [
        (percent, 0.9621, "96.2 %"),
        (percent, 1.0, "100.0 %"),
        (percent, None, "–"),
        (percent, math.nan, "–"),
        (points, 0.031, "+3.1"),
        (points, -0.031, "−3.1"),
        (points, -0.0001, "0.0"),
        (signed, -3, "−3"),
        (signed, 0, "0"),
        (count, 4652008, "4,652,008"),
        (count, None, "–"),
        (size, 0, "0 B"),
        (size, 999, "999 B"),
        (size, 1000, "1 kB"),
        (size, 92_400, "92.4 kB"),
        (size, 246_120, "246 kB"),
        (size, 999_900, "1 MB"),
        (size, 13_602_144, "13.6 MB"),
        (size, 2_500_000_000_000, "2500 GB"),
        (size, None, "–"),
        (duration, 0.04, "0.0 s"),
        (duration, 59.94, "59.9 s"),
        (duration, 59.97, "1 min 00 s"),
        (duration, 75, "1 min 15 s"),
        (duration, 3599.7, "1 h 00 min"),
        (duration, 4000, "1 h 07 min"),
        (duration, None, "–"),
    ],
)
def test_as_people_read_it(function, value, text):
    assert function(value).replace("\u00a0", " ") == text
