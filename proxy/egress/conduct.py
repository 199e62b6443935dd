"""Remembers how promptly hosts answered, to judge how much of a channel a fetch may hold.

Pure; time is an argument.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from enum import IntEnum

from proxy.egress.addresses import Address
from proxy.egress.endpoint import Origin
from proxy.egress.known_hosts import HostPace, longest
from proxy.egress.neighbours import block_of, groups_by_name
from proxy.egress.time_to_answer import Pace
from proxy.shared.expiring_map import ExpiringMap

HALF_LIFE = 300.0
"""Seconds after which what a host did counts for half."""

PROMPT_SECONDS = 2.0
"""An answer may take this long, and the time of its bytes at ``ORDINARY_RATE``. Time beyond that is
wasted."""

FAILING_SECONDS = 0.5
"""The same for a fetch without an answer: a connection that is refused, far away."""

COST_CLASS = 0.25
"""Seconds. Answers of prompt hosts that take as long, up to this, cost the same."""

ORDINARY_RATE = 64 * 1024
"""Bytes a second. A home connection with a slow uplink has twice as many."""

SLOW_SECONDS = 1.0
"""A host that wastes this much for each prompt answer is slow."""

KNOWN_ANSWERS = 0.25
"""A host with fewer prompt answers is not known: its only one was two half-lives ago."""

MAX_ANSWERS = 4.0
"""Prompt answers that count for a host by itself. With more, a host could save them up, and then
hold consumers for as long as it likes."""

MAX_BYTES = 4 * 1024**2
"""Memory of what is remembered."""

ENTRY_BYTES = 640
"""Memory of one entry, without the text of its key."""

HOST = "host "
"""What the key of a host begins with; those of groups do not."""


class Standing(IntEnum):
    """What may be expected of a host, the best first."""

    PROMPT = 0
    UNKNOWN = 1
    SLOW = 2


@dataclass(frozen=True, slots=True)
class Judgement:
    """What is known about a host.

    Attributes:
        cost: what its fetches cost, to be compared with hosts of the same standing: of prompt ones
            the ``COST_CLASS`` of their answers, of slow ones what they wasted for each answer.
        groups: its registered domain, and its address block if it was connected to.
        pace: seconds for which its recent fetches held a consumer; None if there were none.
    """

    standing: Standing
    cost: float
    groups: tuple[str, ...]
    pace: float | None = None

    @property
    def rank(self) -> tuple[Standing, float]:
        """The least is served first."""
        return self.standing, self.cost


class _Record:
    """Prompt answers, the seconds that they took, and wasted seconds, as they counted at a time."""

    __slots__ = ("answers", "at", "pace", "taken", "wasted")

    def __init__(self, at: float) -> None:
        self.answers = 0.0
        self.taken = 0.0
        self.wasted = 0.0
        self.pace = Pace()
        self.at = at

    def age(self, now: float) -> None:
        factor = 0.5 ** ((now - self.at) / HALF_LIFE)
        self.answers *= factor
        self.taken *= factor
        self.wasted *= factor
        self.at = now

    @property
    def burden(self) -> float:
        return self.wasted / (1 + self.answers)

    @property
    def standing(self) -> Standing:
        """What the host is by itself."""
        if self.burden >= SLOW_SECONDS:
            return Standing.SLOW
        return Standing.PROMPT if self.answers >= KNOWN_ANSWERS else Standing.UNKNOWN

    @property
    def cost_class(self) -> float:
        """How many times ``COST_CLASS`` an answer took, rounded down. There must be answers."""
        return float(self.taken / self.answers // COST_CLASS)


class Conduct:
    """How promptly hosts, registered domains and address blocks answered.

    A host that is known is judged by itself: one bad server of a large operator, or a bad neighbour
    in a block, costs it nothing. A host that is not known is judged by its domain and its block, so
    that new names do not help.
    """

    def __init__(self) -> None:
        self._records: ExpiringMap[str, _Record] = ExpiringMap(
            MAX_BYTES // 2, cost=lambda key, _: ENTRY_BYTES + len(key)
        )
        self._blocks: ExpiringMap[str, str] = ExpiringMap(
            MAX_BYTES // 2, cost=lambda key, _: ENTRY_BYTES + len(key)
        )

    def connects(self, host: str, address: Address) -> None:
        """Note that a connection to ``host`` goes to ``address``."""
        self._blocks.put(host, block_of(address))

    def judge(self, origin: Origin, now: float) -> Judgement:
        """What is known about the host of ``origin``."""
        groups = self._groups_of(origin, now)
        own = self._record(HOST + origin.authority, now)
        pace = None if own is None else own.pace.seconds(now)
        if own is not None and own.standing is Standing.SLOW:
            return Judgement(Standing.SLOW, own.burden, groups, pace)
        if own is not None and own.standing is Standing.PROMPT:
            return Judgement(Standing.PROMPT, own.cost_class, groups, pace)
        burdens = [record.burden for each in groups if (record := self._record(each, now))]
        burden = max(burdens, default=0.0)
        if burden >= SLOW_SECONDS:
            return Judgement(Standing.SLOW, burden, groups, pace)
        return Judgement(Standing.UNKNOWN, 0.0, groups, pace)

    def ended(
        self, origin: Origin, seconds: float, received: int, answered: bool, now: float
    ) -> None:
        """Note how a fetch ended.

        Args:
            seconds: how long it held a consumer.
            received: the bytes of its body.
            answered: whether it had its answer.
        """
        taken = max(seconds - received / ORDINARY_RATE, 0.0)
        wasted = max(taken - (PROMPT_SECONDS if answered else FAILING_SECONDS), 0.0)
        if not wasted and not answered:
            return  # it failed at once, which costs nobody anything
        host = HOST + origin.authority
        for key in (host, *self._groups_of(origin, now)):
            record = self._record(key, now) or _Record(now)
            record.wasted += wasted
            if not wasted:
                record.answers += 1
                record.taken += taken
            record.pace.add(seconds, now)
            if key == host and record.answers > MAX_ANSWERS:
                record.taken *= MAX_ANSWERS / record.answers
                record.answers = MAX_ANSWERS
            self._records.put(key, record)

    def slowest(self, now: float) -> tuple[HostPace, ...]:
        """The hosts whose recent fetches took longest, the longest first."""
        return longest(self._paces(now))

    def _paces(self, now: float) -> Iterator[HostPace]:
        for key, record in self._records.items(now):
            seconds = record.pace.seconds(now)
            if key.startswith(HOST) and seconds is not None:
                record.age(now)
                yield HostPace(key.removeprefix(HOST), record.standing.name.lower(), seconds)

    def _groups_of(self, origin: Origin, now: float) -> tuple[str, ...]:
        groups = groups_by_name(origin.host)
        block = self._blocks.get(origin.host, now)
        return groups if block is None or block in groups else (*groups, block)

    def _record(self, key: str, now: float) -> _Record | None:
        record = self._records.get(key, now)
        if record is not None:
            record.age(now)
        return record
