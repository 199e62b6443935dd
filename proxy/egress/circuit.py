"""When to leave a host alone: repeated failures, and ``Retry-After``. Pure; time is an argument."""

from __future__ import annotations

from collections.abc import Mapping
from email.utils import parsedate_to_datetime

from proxy.egress.errors import AskedToWait, EgressError
from proxy.shared.expiring_map import ExpiringMap

FAILURES_TO_OPEN = 5
"""Connect failures and time-outs in a row after which a host is taken to be down."""

OPEN_SECONDS = 30.0
"""How long a host that is down is left alone before one fetch tries it again."""

MAX_RETRY_AFTER = 300.0
"""Seconds; a host may ask for more, but is asked again after these."""

LEAST_EPOCH = 1e9
"""Of a ``RateLimit-Reset``: what is larger is no delay, but a time after 2001."""

MAX_HOSTS = 10_000
"""Hosts remembered; only those that fail are."""


class Circuits:
    """A circuit for each host (``Origin.authority``) that fails.

    Closed: fetches pass. Open: they fail at once, as the last one did. Half-open, after a while:
    one fetch passes; its success closes the circuit, its failure opens it anew. Held: open because
    the host asked for it, until the time it named, whatever fetches end meanwhile.
    """

    def __init__(self) -> None:
        self._circuits: ExpiringMap[str, _Circuit] = ExpiringMap(MAX_HOSTS)

    def __len__(self) -> int:
        return len(self._circuits)

    def check(self, host: str, now: float) -> bool:
        """Pass, or raise what a fetch from ``host`` would probably end in.

        Returns:
            Whether the caller is the probe of a half-open circuit; it must report the outcome by
            ``succeeded``, ``failed`` or ``gave_up``.

        Raises:
            AskedToWait: ``hold``.
            EgressError: of the class of the failure that opened the circuit.
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
        """``host`` answered. An answer to what was asked before ``hold`` does not end the hold."""
        circuit = self._circuits.get(host, now)
        self._circuits.remove(host)
        if circuit is not None and now < circuit.held_until:
            self._circuits.put(host, _held(circuit.held_until))

    def hold(self, host: str, seconds: float, now: float) -> None:
        """``host`` asked to be left alone for a while (``Retry-After``)."""
        circuit = self._circuits.get(host, now)
        longest = 0.0 if circuit is None else circuit.held_until
        self._circuits.put(host, _held(max(now + seconds, longest)))

    def failed(self, host: str, error: EgressError, now: float) -> None:
        """``host`` could not be connected to, or took too long."""
        circuit = self._circuits.get(host, now) or _Circuit()
        circuit.failures += 1
        circuit.is_probed = False
        if circuit.failures >= FAILURES_TO_OPEN:
            circuit.error = error
            circuit.open_until = now + OPEN_SECONDS
        self._circuits.put(host, circuit)

    def gave_up(self, host: str, now: float) -> None:
        """A probe ended without telling anything about ``host``; another may probe it."""
        circuit = self._circuits.get(host, now)
        if circuit is not None:
            circuit.is_probed = False


class _Circuit:
    """Closed while ``error`` is None."""

    def __init__(self, error: EgressError | None = None, failures: int = 0) -> None:
        self.error = error
        self.failures = failures
        self.open_until = 0.0
        self.held_until = 0.0
        self.is_probed = False


def _held(until: float) -> _Circuit:
    """Half-open after ``until``: all at once is not what a host asked for that asked for less."""
    circuit = _Circuit(AskedToWait("Retry-After"), FAILURES_TO_OPEN)
    circuit.held_until = until
    return circuit


def pause_asked(status: int, headers: Mapping[str, str], wall_clock: float) -> float:
    """Seconds that an answer asks to be left alone for; 0 where it names no time.

    RFC 6585, section 4, and RFC 9110, section 15.6.4. Bluesky's PDS sends ``RateLimit-Reset``
    instead, seconds since the epoch; in the IETF's drafts that is a delay.
    """
    if status not in (429, 503):
        return 0.0
    named = headers.get("retry-after")
    if named is not None or status == 503:
        return retry_after(named, wall_clock)
    reset = headers.get("ratelimit-reset", "").strip()
    if not (reset.isascii() and reset.isdigit()):
        return 0.0
    seconds = float(reset[:12])
    if seconds >= LEAST_EPOCH:
        seconds -= wall_clock
    return min(max(seconds, 0.0), MAX_RETRY_AFTER)


def retry_after(value: str | None, wall_clock: float) -> float:
    """Seconds that a ``Retry-After`` asks to wait, 0 to ``MAX_RETRY_AFTER``; 0 where it is none.

    Args:
        value: delay in seconds, or an HTTP date.
        wall_clock: seconds since the epoch, which a date is compared with.
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
