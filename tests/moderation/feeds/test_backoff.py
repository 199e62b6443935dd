"""Waits between connections: never none, never a tight loop, never without end."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from proxy.moderation.feeds.backoff import FIRST_SECONDS, LONGEST_SECONDS, STEADY_SECONDS, Backoff


def test_waits_double_up_to_a_bound() -> None:
    """Catches: the waits do not double or grow without bound."""
    backoff = Backoff()
    waits = [backoff.after(0, chance=1) for _ in range(2000)]
    assert waits[:9] == [FIRST_SECONDS * 2**n for n in range(9)]
    assert max(waits) == waits[-1] == LONGEST_SECONDS


def test_a_server_that_drops_every_connection_is_asked_less_often() -> None:
    """Catches: a server that drops every connection is asked again at once."""
    backoff = Backoff()
    assert [backoff.after(STEADY_SECONDS - 0.1, 1) for _ in range(3)] == [1, 2, 4]


def test_one_steady_connection_makes_up_for_those_that_failed() -> None:
    """Catches: one steady connection does not make up for those that failed."""
    backoff = Backoff()
    for _ in range(20):
        backoff.after(0, 1)
    assert backoff.after(STEADY_SECONDS, 1) == FIRST_SECONDS


@given(st.lists(st.tuples(st.floats(0, 1000), st.floats(0, 1), st.floats(0, 300)), max_size=50))
def test_no_wait_is_shorter_than_the_server_asked_for_or_than_half_of_its_step(
    tries: list[tuple[float, float, float]],
) -> None:
    """Catches: a wait is shorter than the server asked for or than half of its turn."""
    backoff = Backoff()
    for lasted, chance, asked in tries:
        wait = backoff.after(lasted, chance, asked)
        assert wait >= max(asked, FIRST_SECONDS / 2)
        assert wait <= max(asked, LONGEST_SECONDS)
