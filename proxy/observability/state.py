"""The state of a server, as ``GET /admin/state`` tells it: of all of its processes. Pure."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from proxy.egress.known_hosts import HostPace, OpenCircuit, merge_hosts
from proxy.observability.metrics_snapshot import MetricsSnapshot, merge
from proxy.observability.process_snapshot import ProcessSnapshot


@dataclass(frozen=True, slots=True)
class WorkerState:
    """A process that serves.

    Attributes:
        started_at: seconds since the epoch.
        memory_bytes: resident, without its image workers.
        requests: for images, that it answered.

    ``started_at`` and ``memory_bytes`` are None where there is no /proc.
    """

    pid: int
    started_at: float | None
    memory_bytes: int | None
    requests: int


@dataclass(frozen=True, slots=True)
class RequestsState:
    """Image requests answered since the start, by cache state (``none``: of no use to a cache)."""

    hit: int
    miss: int
    coalesced: int
    none: int


@dataclass(frozen=True, slots=True)
class WaitingState:
    """Queue lengths: fetches, transforms, and purges that a CDN has yet to get."""

    fetches: int
    transforms: int
    cdn: int


@dataclass(frozen=True, slots=True)
class CacheState:
    """What is on disk; None where a cache of somebody else's is used."""

    entries: int | None
    bytes: int | None


@dataclass(frozen=True, slots=True)
class State:
    """The state of a server.

    Attributes:
        workers: by process id.
        refused: requests refused as busy since the start.
        memory_bytes: of all workers that tell it.
        hosts: those that took longest in the last minutes.
        circuits: hosts that are left alone.
    """

    workers: tuple[WorkerState, ...]
    requests: RequestsState
    waiting: WaitingState
    refused: int
    memory_bytes: int
    cache: CacheState
    blocks: int
    hosts: tuple[HostPace, ...]
    circuits: tuple[OpenCircuit, ...]


def state_of(snapshots: Sequence[ProcessSnapshot]) -> State:
    """Return the state of the server whose processes these are."""
    workers = sorted((_worker_of(each) for each in snapshots), key=lambda each: each.pid)
    merged = merge(each.metrics for each in snapshots)
    hosts = merge_hosts([each.hosts for each in snapshots])
    by_state = {name: int(_sum(merged, "requests", cache=name) or 0) for name in _STATES}
    return State(
        workers=tuple(workers),
        requests=RequestsState(**by_state),
        waiting=WaitingState(
            fetches=_whole(merged, "fetch_queue_depth") or 0,
            transforms=_whole(merged, "process_waiting") or 0,
            cdn=_whole(merged, "cdn_pending") or 0,
        ),
        refused=_whole(merged, "rejected") or 0,
        memory_bytes=sum(each.memory_bytes or 0 for each in workers),
        cache=CacheState(_whole(merged, "cache_entries"), _whole(merged, "cache_bytes")),
        blocks=_whole(merged, "blocks") or 0,
        hosts=hosts.slowest,
        circuits=hosts.circuits,
    )


_STATES = ("hit", "miss", "coalesced", "none")


def _worker_of(snapshot: ProcessSnapshot) -> WorkerState:
    metrics = snapshot.metrics
    memory = _of_family(metrics, "process_resident_memory_bytes")
    return WorkerState(
        pid=snapshot.pid,
        started_at=_of_family(metrics, "process_start_time_seconds"),
        memory_bytes=None if memory is None else int(memory),
        requests=_whole(metrics, "requests") or 0,
    )


def _whole(snapshot: MetricsSnapshot, name: str) -> int | None:
    value = _sum(snapshot, name)
    return None if value is None else int(value)


def _sum(snapshot: MetricsSnapshot, name: str, **labels: str) -> float | None:
    return _of_family(snapshot, f"imageproxy_{name}", **labels)


def _of_family(snapshot: MetricsSnapshot, name: str, **labels: str) -> float | None:
    """The sum over the series of a metric that have these labels; None without the metric."""
    for family in snapshot.families:
        if family.name == name:
            return sum(
                sample.value
                for sample in family.samples
                if labels.items() <= sample.labels.items() and not sample.name.endswith("_created")
            )
    return None
