"""Circuits: when a host is left alone."""

from __future__ import annotations

import gc
import weakref

import pytest
from hypothesis import given
from hypothesis import strategies as st

from proxy.egress.circuit import (
    FAILURES_TO_OPEN,
    KEPT_SECONDS,
    MAX_RETRY_AFTER,
    OPEN_SECONDS,
    UNNAMED_PAUSE,
    Circuits,
    pause_asked,
    retry_after,
)
from proxy.egress.errors import AskedToWait, ConnectFailed, EgressError, TimedOut
from proxy.egress.known_hosts import OpenCircuit

HOST = "pds.example"


def opened(now: float = 0.0) -> Circuits:
    """Circuits of which that of ``HOST`` has opened."""
    circuits = Circuits()
    for _ in range(FAILURES_TO_OPEN):
        circuits.check(HOST, now)
        circuits.failed(HOST, TimedOut("slow"), now)
    return circuits


def test_a_host_is_tried_until_it_failed_often_enough_in_a_row() -> None:
    """Catches a circuit that opens at the first failure: one lost packet would cut a host off."""
    circuits = Circuits()
    for _ in range(FAILURES_TO_OPEN - 1):
        circuits.failed(HOST, ConnectFailed("refused"), 0)
        circuits.check(HOST, 0)
    circuits.failed(HOST, ConnectFailed("refused"), 0)
    with pytest.raises(ConnectFailed):
        circuits.check(HOST, 0)


def test_failures_with_a_success_between_them_never_open_the_circuit() -> None:
    """Catches a count that is not reset: any busy host would be cut off in the end."""
    circuits = Circuits()
    for _ in range(FAILURES_TO_OPEN * 3):
        circuits.failed(HOST, TimedOut("slow"), 0)
        circuits.succeeded(HOST, 0)
    circuits.check(HOST, 0)


def test_an_open_circuit_fails_as_the_last_fetch_did() -> None:
    """Catches one error for all: a host that hangs is a 504, and must stay one."""
    with pytest.raises(TimedOut):
        opened().check(HOST, OPEN_SECONDS / 2)


def test_other_hosts_pass_an_open_circuit() -> None:
    """Catches a circuit shared by hosts."""
    opened().check("other.example", 0)


def test_a_half_open_circuit_lets_exactly_one_fetch_through() -> None:
    """Catches a stampede at the moment the circuit half-opens."""
    circuits = opened()
    circuits.check(HOST, OPEN_SECONDS)
    with pytest.raises(TimedOut):
        circuits.check(HOST, OPEN_SECONDS)


def test_a_probe_that_succeeds_closes_the_circuit() -> None:
    """Catches a circuit that stays half-open, serving one fetch at a time."""
    circuits = opened()
    circuits.check(HOST, OPEN_SECONDS)
    circuits.succeeded(HOST, OPEN_SECONDS)
    for _ in range(3):
        circuits.check(HOST, OPEN_SECONDS)
    assert len(circuits) == 0


def test_a_probe_that_fails_opens_the_circuit_for_as_long_again() -> None:
    """Catches a probe after which everybody tries at once."""
    circuits = opened()
    circuits.check(HOST, OPEN_SECONDS)
    circuits.failed(HOST, TimedOut("slow"), OPEN_SECONDS)
    with pytest.raises(TimedOut):
        circuits.check(HOST, OPEN_SECONDS * 1.5)
    circuits.check(HOST, OPEN_SECONDS * 2)


def test_a_probe_that_was_cancelled_leaves_the_next_one_free() -> None:
    """Catches a host that is never tried again because its probe's client went away."""
    circuits = opened()
    circuits.check(HOST, OPEN_SECONDS)
    circuits.gave_up(HOST, OPEN_SECONDS)
    circuits.check(HOST, OPEN_SECONDS)


def test_a_host_that_asked_for_a_pause_is_left_alone_for_it_and_no_longer() -> None:
    """Catches a ``Retry-After`` that is not honoured, and one that never ends."""
    circuits = Circuits()
    circuits.hold(HOST, 20, now=100)
    with pytest.raises(AskedToWait) as caught:
        circuits.check(HOST, 119)
    assert caught.value.seconds == 1
    circuits.check(HOST, 120)


def test_a_fetch_that_ends_meanwhile_shortens_no_pause() -> None:
    """Catches an answer to an older question that ends the pause, and a failure that cuts it."""
    circuits = Circuits()
    circuits.hold(HOST, 300, now=100)
    circuits.succeeded(HOST, 101)
    circuits.failed(HOST, ConnectFailed("refused"), 102)
    circuits.hold(HOST, 5, now=103)
    circuits.gave_up(HOST, 103)
    for now in (104, 102 + OPEN_SECONDS, 399):
        with pytest.raises(AskedToWait):
            circuits.check(HOST, now)
    circuits.check(HOST, 400)


def test_after_a_pause_one_fetch_tries_the_host_and_its_success_lets_all_pass() -> None:
    """Catches a stampede on a host that asked for less, and a circuit that stays half-open."""
    circuits = Circuits()
    circuits.hold(HOST, 20, now=100)
    assert circuits.check(HOST, 120)
    with pytest.raises(EgressError):
        circuits.check(HOST, 120)
    circuits.succeeded(HOST, 121)
    assert not circuits.check(HOST, 121)
    assert len(circuits) == 0


def test_a_failure_during_a_short_pause_extends_it() -> None:
    """Catches a host that is down and is asked again because it once asked for a second."""
    circuits = Circuits()
    circuits.hold(HOST, 1, now=100)
    circuits.failed(HOST, ConnectFailed("refused"), 100)
    with pytest.raises(EgressError):
        circuits.check(HOST, 100 + OPEN_SECONDS / 2)
    circuits.check(HOST, 100 + OPEN_SECONDS)


def test_an_open_circuit_keeps_nothing_of_the_fetch_that_failed() -> None:
    """Catches: the error is kept with its traceback, and so with what the fetch had received."""

    class Body:
        pass

    def fail() -> weakref.ref[Body]:
        body = Body()
        try:
            raise TimedOut("too slow")
        except TimedOut as error:
            circuits.failed(HOST, error, 0)
        return weakref.ref(body)

    circuits = Circuits()
    bodies = [fail() for _ in range(FAILURES_TO_OPEN)]
    gc.collect()
    assert [body() for body in bodies] == [None] * FAILURES_TO_OPEN
    with pytest.raises(TimedOut, match="too slow"):
        circuits.check(HOST, 0)


def test_only_so_many_hosts_are_remembered() -> None:
    """Catches memory that strangers can fill with names."""
    circuits = Circuits()
    for number in range(20_000):
        circuits.failed(f"{number}.example", ConnectFailed("refused"), 0)
    assert 5_000 < len(circuits) < 20_000


def test_a_host_that_failed_long_ago_is_forgotten() -> None:
    """Catches memory for each host that ever failed."""
    circuits = opened()
    assert not circuits.check(HOST, KEPT_SECONDS)
    assert len(circuits) == 0


@pytest.mark.parametrize(
    ("value", "seconds"),
    [
        (None, 0),
        ("0", 0),
        ("7", 7),
        (" 7 ", 7),
        ("999999999999999999999", MAX_RETRY_AFTER),
        ("-1", 0),
        ("soon", 0),
        ("", 0),
        ("\u0667", 0),
        ("Thu, 01 Jan 1970 00:01:10 GMT", 10),
        ("Thu, 01 Jan 1970 00:00:10 GMT", 0),
        ("Fri, 31 Dec 9999 23:59:59 GMT", MAX_RETRY_AFTER),
    ],
)
def test_retry_after_is_read_in_both_its_forms(value: str | None, seconds: float) -> None:
    """Catches dates taken for garbage, and pauses without a bound."""
    assert retry_after(value, wall_clock=60) == seconds


NOW = 1_800_000_000.0


@pytest.mark.parametrize(
    ("status", "headers", "seconds"),
    [
        (429, {}, UNNAMED_PAUSE),
        (429, {"retry-after": "7"}, 7),
        (503, {"retry-after": "7"}, 7),
        (200, {"retry-after": "7"}, 0),
        (429, {"ratelimit-reset": "1800000012"}, 12),
        (429, {"ratelimit-reset": "1799999999"}, UNNAMED_PAUSE),
        (429, {"ratelimit-reset": "1900000000"}, MAX_RETRY_AFTER),
        (429, {"ratelimit-reset": "12"}, 12),
        (429, {"ratelimit-reset": "9" * 400}, MAX_RETRY_AFTER),
        (429, {"ratelimit-reset": "soon"}, UNNAMED_PAUSE),
        (429, {"ratelimit-reset": "\u0667"}, UNNAMED_PAUSE),
        (429, {"retry-after": "0"}, UNNAMED_PAUSE),
        (503, {"retry-after": "0"}, 0),
        (503, {}, 0),
        (429, {"ratelimit-reset": "12", "retry-after": "7"}, 7),
        # Sent with every answer: it asks for nothing unless the limit is reached.
        (200, {"ratelimit-reset": "1800000012"}, 0),
        (503, {"ratelimit-reset": "1800000012"}, 0),
    ],
)
def test_a_pause_is_read_from_what_servers_send(
    status: int, headers: dict[str, str], seconds: float
) -> None:
    """Catches the reference PDS' way of saying it, which is not the standard's."""
    assert pause_asked(status, headers, NOW) == seconds


@given(st.text())
def test_no_retry_after_raises_or_exceeds_its_bound(value: str) -> None:
    """Catches a header of a stranger that ends in a 500."""
    assert 0 <= retry_after(value, wall_clock=0) <= MAX_RETRY_AFTER


def test_the_circuits_that_are_open_are_told_with_their_cause_and_the_time_left() -> None:
    """Catches a host that failed once in the list, one that is over, and one that asked to wait."""
    circuits = opened()
    circuits.failed("once.example", TimedOut("slow"), 0)
    circuits.hold("polite.example", 60, 0)
    assert circuits.open(10) == (
        OpenCircuit("polite.example", "AskedToWait", 50),
        OpenCircuit(HOST, "TimedOut", OPEN_SECONDS - 10),
    )
    assert circuits.check(HOST, OPEN_SECONDS)
    assert circuits.open(OPEN_SECONDS + 1)[-1] == OpenCircuit(HOST, "TimedOut", 0), "it is probed"
    circuits.succeeded(HOST, OPEN_SECONDS + 1)
    assert [circuit.host for circuit in circuits.open(OPEN_SECONDS + 2)] == ["polite.example"]
    assert circuits.open(61) == ()
