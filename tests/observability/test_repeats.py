"""Which of many lines that say the same are written."""

from __future__ import annotations

from collections import Counter
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from proxy.observability.repeats import MOST, SECONDS, Repeats

HOST = "pds.example"


def test_one_line_of_a_host_passes_each_minute_with_the_number_that_were_left_out() -> None:
    """Catches a number that is never told, and a minute that each line begins anew."""
    repeats = Repeats()
    assert repeats.admit(HOST, 100.0) == 0
    assert [repeats.admit(HOST, 100.0 + second) for second in range(1, 60)] == [None] * 59
    assert repeats.admit(HOST, 100.0 + SECONDS) == 59
    assert repeats.admit(HOST, 101.0 + SECONDS) is None
    assert repeats.admit(HOST, 100.0 + 2 * SECONDS) == 1
    assert repeats.admit(HOST, 100.0 + 5 * SECONDS) == 0


def test_hosts_do_not_silence_each_other() -> None:
    """Catches one clock for all: what fails first hides what fails next."""
    repeats = Repeats()
    assert [repeats.admit(f"{number}.example", 0.0) for number in range(9)] == [0] * 9


def test_hosts_beyond_the_most_share_one_line() -> None:
    """Catches a flood of names that is a flood of lines, or of memory."""
    repeats = Repeats()
    for number in range(MOST):
        assert repeats.admit(f"{number}.example", 0.0) == 0
    others = [f"other-{number}.example" for number in range(9)]
    assert [repeats.admit(each, 1.0) for each in others] == [0, *[None] * 8]
    assert len(repeats._told) == MOST
    # Those that are known go on by themselves.
    assert repeats.admit("0.example", 2.0) is None
    assert repeats.admit("other-0.example", 1.0 + SECONDS) == 0  # there is room again
    assert repeats.admit("1.example", 1.0 + SECONDS) == 0


def test_what_a_forgotten_host_had_left_out_is_told_with_the_others() -> None:
    """Catches a number that is lost with the host."""
    repeats = Repeats(most=1)
    repeats.admit("a.example", 0.0)
    assert repeats.admit("a.example", 1.0) is None
    assert repeats.admit("b.example", SECONDS) == 0
    assert repeats.admit("c.example", SECONDS) == 1


@given(
    st.lists(st.tuples(st.sampled_from("abcdef"), st.floats(0, 40, allow_nan=False)), max_size=200),
    st.integers(1, 4),
)
def test_every_line_is_written_or_counted_and_no_host_has_two_in_a_minute(
    steps: list[tuple[str, float]], most: int
) -> None:
    repeats, now, written, told = Repeats(most=most), 0.0, 0, 0
    last: dict[str, float] = {}
    hidden: Counter[str] = Counter()
    for key, pause in steps:
        now += pause
        left_out = repeats.admit(key, now)
        if left_out is None:
            hidden[key] += 1
            continue
        assert now - last.get(key, -SECONDS) >= SECONDS
        last[key] = now
        written += 1
        told += left_out
    waiting = repeats._others.left_out + sum(each.left_out for each in repeats._told.values())
    assert written + told + waiting == len(steps)
    assert told + waiting == hidden.total()
    assert len(repeats._told) <= most


@pytest.mark.parametrize(("times", "expected"), [(1, {}), (3, {"left_out": 2})])
def test_what_is_left_out_goes_to_the_hidden_line(times: int, expected: dict[str, Any]) -> None:
    """Catches a level by which nobody can see them all, and a field that is zero."""
    repeats = Repeats()
    lines: list[tuple[str, dict[str, Any]]] = []
    hidden: list[str] = []

    def write(now: float) -> None:
        repeats.write(
            HOST,
            now,
            lambda event, **fields: lines.append((event, fields)),
            lambda event, **fields: hidden.append(event),
            "request",
            status=502,
        )

    for _ in range(times):
        write(0.0)
    write(SECONDS)
    assert lines == [("request", {"status": 502}), ("request", {"status": 502, **expected})]
    assert hidden == ["request"] * (times - 1)
