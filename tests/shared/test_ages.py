"""How old a stored time is, where the clock may have been ahead."""

from __future__ import annotations

import math

import pytest

from proxy.shared.ages import TOLERANCE, age_of, horizon


@pytest.mark.parametrize(
    ("stored", "age"),
    [
        (0.0, 1000.0),
        (990.0, 10.0),
        (1000.0, 0.0),
        (1000.0 + TOLERANCE, 0.0),
        (1001.0 + TOLERANCE, math.inf),
        (1e9, math.inf),
    ],
)
def test_a_time_from_the_future_counts_as_due(stored: float, age: float) -> None:
    """Catches a negative age, which is below every limit, and a small step that makes all due."""
    assert age_of(stored, 1000.0) == age
    assert (stored > horizon(1000.0)) == (age == math.inf)
