"""Decides when to leave a host alone: after repeated failures, and after ``Retry-After``.

Pure; time is an argument.
"""

from __future__ import annotations

from collections.abc import Mapping
from email.utils import parsedate_to_datetime

from proxy.egress.errors import AskedToWait, EgressError
from proxy.egress.known_hosts import OpenCircuit, longest
from proxy.shared.expiring_map import ExpiringMap
from proxy.shared.memory_cost import cost_of

FAILURES_TO_OPEN = 5
"""A host counts as down after this many connect failures and time-outs in a row."""

OPEN_SECONDS = 30.0
"""How long a host that is down is left alone before one fetch tries it again."""

MAX_RETRY_AFTER = 300.0
"""Seconds; a host that asks for a longer pause is asked again after this time."""

UNNAMED_PAUSE = 10.0
"""Seconds for a 429 that names no time, or one that is over."""

LEAST_EPOCH = 1e9
"""A ``RateLimit-Reset`` of at least this number is not a delay, but a time after 2001."""

MAX_BYTES = 8 * 1024**2
"""Bytes of circuits remembered: room for 10,000 hosts. Only hosts that fail are remembered."""

KEPT_SECONDS = 3600.0
"""How long a host is remembered after its last failure or pause."""


class Circuits:
    """A circuit for each host (``Origin.authority``) that fails.

    - Closed: fetches pass.
    - Open: they fail at once, with the class of the last failure.
    - Half-open, after ``OPEN_SECONDS``: one fetch passes. If it succeeds the circuit closes; if it
      fails the circuit opens again.
    - Held: open because the host asked for a pause. It stays open until the time that the host
      named, also when earlier fetches end during the pause.
    """

    def __init__(self) -> None:
        self._circuits: ExpiringMap[str, _Circuit] = ExpiringMap(MAX_BYTES, cost=cost_of)

    def __len__(self) -> int:
        return len(self._circuits)

    def check(self, host: str, now: float) -> bool:
        """Return if ``host`` may be asked; otherwise raise the error that a fetch probably gets.

        Returns:
            Whether the caller is the probe of a half-open circuit. A probe must report its outcome
            by ``succeeded``, ``failed`` or ``gave_up``.

        Raises:
            AskedToWait: ``hold`` was called, and its time is not over.
            EgressError: the circuit is open; the class is that of the failure that opened it.
        """
        circuit = self._circuits.get(host, now)
        if circuit is None or circuit.error is None:
            return False
        if now < circuit.held_until:
            left = circuit.held_until - now
            raise AskedToWait(f"{host} asked to be left alone for {left:.0f} s more", left)
        if now < circuit.open_until or circuit.is_probed:
            wait = max(circuit.open_until - now, 0)
            raise type(circuit.error)(f"{host} is left alone for {wait:.0f} s: {circuit.error}")
        circuit.is_probed = True
        return True

    def succeeded(self, host: str, now: float) -> None:
        """Note that ``host`` answered. A fetch that began before ``hold`` does not end the hold."""
        circuit = self._circuits.get(host, now)
        self._circuits.remove(host)
        if circuit is not None and now < circuit.held_until:
            self._circuits.put(host, _held(circuit.held_until), now + KEPT_SECONDS)

    def hold(self, host: str, seconds: float, now: float) -> None:
        """Note that ``host`` asked to be left alone for ``seconds`` (``Retry-After``)."""
        circuit = self._circuits.get(host, now)
        longest = 0.0 if circuit is None else circuit.held_until
        self._circuits.put(host, _held(max(now + seconds, longest)), now + KEPT_SECONDS)

    def failed(self, host: str, error: EgressError, now: float) -> None:
        """Note that ``host`` did not accept a connection, or took too long."""
        circuit = self._circuits.get(host, now) or _Circuit()
        circuit.failures += 1
        circuit.is_probed = False
        if circuit.failures >= FAILURES_TO_OPEN:
            # A copy: the traceback of ``error`` keeps all bytes that the fetch has received.
            circuit.error = type(error)(str(error))
            circuit.open_until = now + OPEN_SECONDS
        self._circuits.put(host, circuit, now + KEPT_SECONDS)

    def open(self, now: float) -> tuple[OpenCircuit, ...]:
        """The circuits that let no fetch pass, those that stay so for longest first."""
        return longest(
            OpenCircuit(host, type(circuit.error).__name__, max(until - now, 0.0))
            for host, circuit in self._circuits.items(now)
            if (until := max(circuit.open_until, circuit.held_until)) > now or circuit.is_probed
        )

    def gave_up(self, host: str, now: float) -> None:
        """Note that a probe ended without a result; another fetch may probe ``host``."""
        circuit = self._circuits.get(host, now)
        if circuit is not None:
            circuit.is_probed = False


class _Circuit:
    """The state of one host. The circuit is closed while ``error`` is None."""

    __slots__ = ("error", "failures", "held_until", "is_probed", "open_until")

    def __init__(self, error: EgressError | None = None, failures: int = 0) -> None:
        self.error = error
        self.failures = failures
        self.open_until = 0.0
        self.held_until = 0.0
        self.is_probed = False


def _held(until: float) -> _Circuit:
    """A circuit that is held until ``until``, and half-open after that.

    Half-open, not closed: a host that asked for fewer requests must not get all of them at once.
    """
    circuit = _Circuit(AskedToWait("Retry-After"), FAILURES_TO_OPEN)
    circuit.held_until = until
    return circuit


def pause_asked(status: int, headers: Mapping[str, str], wall_clock: float) -> float:
    """The pause in seconds that an answer asks for; 0 if it asks for none, as most do.

    RFC 6585, section 4, and RFC 9110, section 15.6.4. Bluesky's PDS sends ``RateLimit-Reset``
    instead, in seconds since the epoch; in the IETF's drafts this header is a delay.
    """
    if status not in (429, 503):
        return 0.0
    pause = retry_after(headers.get("retry-after"), wall_clock)
    if status == 503:
        return pause
    return pause or _until_reset(headers, wall_clock) or UNNAMED_PAUSE


def _until_reset(headers: Mapping[str, str], wall_clock: float) -> float:
    reset = headers.get("ratelimit-reset", "").strip()
    if not (reset.isascii() and reset.isdigit()):
        return 0.0
    seconds = float(reset[:12])
    if seconds >= LEAST_EPOCH:
        seconds -= wall_clock
    return min(max(seconds, 0.0), MAX_RETRY_AFTER)


def retry_after(value: str | None, wall_clock: float) -> float:
    """The seconds that a ``Retry-After`` asks to wait, from 0 to ``MAX_RETRY_AFTER``.

    0 if the header is absent or not valid.

    Args:
        value: a delay in seconds, or an HTTP date.
        wall_clock: seconds since the epoch; a date is compared with it.
    """
    if value is None:
        return 0.0
    value = value.strip()
    if value.isascii() and value.isdigit():
        return min(float(value[:9]), MAX_RETRY_AFTER)
    try:
        at = parsedate_to_datetime(value).timestamp()
    except (ValueError, OverflowError, TypeError):
        return 0.0
    return min(max(at - wall_clock, 0.0), MAX_RETRY_AFTER)
