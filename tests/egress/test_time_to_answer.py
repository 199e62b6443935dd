"""The estimate of when a fetch has its answer, against a model of a host's consumers."""

from __future__ import annotations

import heapq

from hypothesis import given
from hypothesis import strategies as st

from proxy.egress.time_to_answer import RECENT_SECONDS, Pace, comes_too_late, seconds_to_answer


def last_answer(each: float, ahead: int, at_once: int) -> float:
    """When the last of so many fetches ends, if those that run end at even distances."""
    ends = [each * (number + 1) / at_once for number in range(min(ahead, at_once))]
    heapq.heapify(ends)
    for _ in range(ahead - len(ends)):
        heapq.heappush(ends, heapq.heappop(ends) + each)
    return heapq.heappop(ends) + each if len(ends) == at_once else each


@given(each=st.floats(0.01, 60), ahead=st.integers(0, 300), at_once=st.integers(1, 32))
def test_the_estimate_is_what_a_host_of_even_pace_takes(
    each: float, ahead: int, at_once: int
) -> None:
    """Catches a turn too many or too few, and consumers that are counted as one."""
    assert abs(seconds_to_answer(each, ahead, at_once) - last_answer(each, ahead, at_once)) < 1e-6


@given(each=st.floats(0, 1000), ahead=st.integers(0, 7))
def test_a_fetch_that_waits_for_none_of_its_host_is_never_late(each: float, ahead: int) -> None:
    """Catches a host that took long once, and is refused although nothing of it is under way."""
    assert not comes_too_late(each, ahead, 8, 30)


def test_what_can_just_be_answered_is_not_late() -> None:
    """Catches a bound that is off by one fetch."""
    assert not comes_too_late(3, 8 + 71, 8, 30)
    assert comes_too_late(3, 8 + 72, 8, 30)


def test_the_pace_follows_what_a_host_does_now_and_one_fetch_does_not_change_it_much() -> None:
    """Catches an average over all time, and one that is the last fetch."""
    pace = Pace()
    assert pace.seconds(0) is None
    pace.add(0.1, 0)
    assert pace.seconds(0) == 0.1
    pace.add(8.1, 1)
    assert pace.seconds(1) == 1.1
    for _ in range(24):
        pace.add(8.1, 2)
    assert 7.5 < (pace.seconds(2) or 0) < 8.1


def test_a_pace_of_long_ago_is_none() -> None:
    """Catches a host that is refused by what it did an hour before."""
    pace = Pace()
    pace.add(30, 0)
    assert pace.seconds(RECENT_SECONDS) == 30
    assert pace.seconds(RECENT_SECONDS + 1) is None
    pace.add(0.1, RECENT_SECONDS + 1)
    assert pace.seconds(RECENT_SECONDS + 1) == 0.1
