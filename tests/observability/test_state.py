"""The state of a server is that of all of its processes."""

from __future__ import annotations

import json
from typing import Any

import pytest

from proxy.egress.known_hosts import MOST_HOSTS, HostPace, KnownHosts, OpenCircuit
from proxy.observability.metrics import Metrics
from proxy.observability.metrics_snapshot import MetricsSnapshot
from proxy.observability.process_snapshot import ProcessSnapshot
from proxy.observability.state import CacheState, RequestsState, WaitingState, state_of

SLOW = HostPace("slow.example", "slow", 9.5)
DOWN = OpenCircuit("down.example", "ConnectFailed", 12.0)


def process(pid: int, *states: str, hosts: KnownHosts = KnownHosts()) -> ProcessSnapshot:  # noqa: B008
    metrics = Metrics()
    for name, value in {
        "blocks": 3,
        "cache_entries": 7,
        "cache_bytes": 70,
        "fetch_queue_depth": 2,
    }.items():
        metrics.gauge(name, lambda value=value: value)  # type: ignore[misc]
    for state in states:
        metrics.answered("avatar", 200, state, 0.01)
    metrics.rejected.labels("fetch").inc()
    return ProcessSnapshot(pid, metrics.snapshot(), hosts)


def test_counts_and_queues_are_added_and_what_is_shared_is_not() -> None:
    """Catches blocks that are counted once a worker, and the queue of one worker alone."""
    state = state_of([process(9, "hit", "hit", "none"), process(5, "miss", "coalesced")])
    assert state.requests == RequestsState(hit=2, miss=1, coalesced=1, none=1)
    assert [(worker.pid, worker.requests) for worker in state.workers] == [(5, 2), (9, 3)]
    assert state.waiting == WaitingState(fetches=4, transforms=0, cdn=0)
    assert (state.blocks, state.refused) == (3, 2)
    assert state.cache == CacheState(entries=7, bytes=70)


def test_a_host_that_several_processes_know_is_told_once_with_its_longest_time() -> None:
    """Catches a list in which one host stands for each worker, and one that grows with them."""
    mine = KnownHosts((HostPace("slow.example", "prompt", 1.0),), (DOWN,))
    others = KnownHosts(
        (SLOW, *(HostPace(f"{n}.example", "prompt", 0.1) for n in range(MOST_HOSTS)))
    )
    state = state_of([process(1, hosts=mine), process(2, hosts=others)])
    assert state.hosts[0] == SLOW
    assert len(state.hosts) == MOST_HOSTS
    assert state.circuits == (DOWN,)


def test_a_process_without_metrics_is_a_worker_that_answered_nothing() -> None:
    """Catches a route that fails while one worker starts, or where there is no /proc."""
    (worker,) = state_of([ProcessSnapshot(4, MetricsSnapshot(()), KnownHosts())]).workers
    assert (worker.pid, worker.memory_bytes, worker.requests) == (4, None, 0)


def test_a_snapshot_comes_over_a_socket_as_it_was() -> None:
    """Catches hosts that only the process that was asked knows."""
    snapshot = process(3, "hit", hosts=KnownHosts((SLOW,), (DOWN,)))
    assert state_of([ProcessSnapshot.from_json(snapshot.to_json())]) == state_of([snapshot])


@pytest.mark.parametrize(
    "document",
    [
        {"pid": 1},
        {"pid": 1, "metrics": {}, "hosts": {"slowest": [], "circuits": []}},
        {"pid": 1, "metrics": {"families": [], "shared": []}, "hosts": {"slowest": [{}]}},
        {"pid": None, "metrics": {"families": [], "shared": []}, "hosts": {}},
        [],
    ],
)
def test_an_incomplete_snapshot_is_refused(document: Any) -> None:
    """Catches a worker of another release that passes for one without hosts."""
    with pytest.raises(ValueError, match="no snapshot"):
        ProcessSnapshot.from_json(json.dumps(document).encode())
    with pytest.raises(ValueError):  # noqa: PT011 (JSON's own)
        ProcessSnapshot.from_json(json.dumps(document).encode()[:-1])
