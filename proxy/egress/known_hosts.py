"""What is told to operators of hosts: those that take longest, and circuits that are open. Pure."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from heapq import nlargest
from operator import attrgetter
from typing import TypeVar

MOST_HOSTS = 20
"""Hosts, and circuits, that are told of. Strangers choose how many there are."""


@dataclass(frozen=True, slots=True)
class HostPace:
    """How long a host takes.

    Attributes:
        host: its ``Origin.authority``.
        standing: ``prompt``, ``unknown`` or ``slow``, as it counts for its share of fetches.
        seconds: the average for which its recent fetches held a consumer.
    """

    host: str
    standing: str
    seconds: float


@dataclass(frozen=True, slots=True)
class OpenCircuit:
    """A host that is left alone.

    Attributes:
        host: its ``Origin.authority``, with the lane before it where that is judged apart.
        cause: the class of the failure that opened it, or ``AskedToWait``.
        seconds: until it is tried again; 0 while it is.
    """

    host: str
    cause: str
    seconds: float


@dataclass(frozen=True, slots=True)
class KnownHosts:
    """What a process knows: at most ``MOST_HOSTS`` of each, those with the most seconds first."""

    slowest: tuple[HostPace, ...] = ()
    circuits: tuple[OpenCircuit, ...] = ()


T = TypeVar("T", HostPace, OpenCircuit)


def longest(found: Iterable[T]) -> tuple[T, ...]:
    """Return those with the most seconds, in this order."""
    return tuple(nlargest(MOST_HOSTS, found, key=attrgetter("seconds")))


def merge_hosts(each: Sequence[KnownHosts]) -> KnownHosts:
    """Merge what several processes know: of a host that more than one knows, the most seconds."""
    return KnownHosts(
        _merged(pace for known in each for pace in known.slowest),
        _merged(circuit for known in each for circuit in known.circuits),
    )


def _merged(found: Iterable[T]) -> tuple[T, ...]:
    by_host: dict[str, T] = {}
    for one in found:
        if one.host not in by_host or one.seconds > by_host[one.host].seconds:
            by_host[one.host] = one
    return longest(by_host.values())
