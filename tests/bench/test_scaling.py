"""The simulation of nodes: what must come out where it can be said without one."""

from __future__ import annotations

import statistics

import pytest

from bench.cluster.scaling import batch_rates, steady_rate


def test_one_node_under_load_does_what_its_core_can() -> None:
    """Catches a queue that loses time, or a core that does two pictures at once."""
    assert steady_rate(1, cost=0.1, latency=0.5, at_once=16) == pytest.approx(10, rel=0.01)
    assert batch_rates(1, pictures=50, cost=0.1) == pytest.approx([10] * 200)


def test_few_pictures_at_once_are_bound_by_what_they_wait_for() -> None:
    """Catches a simulation in which waiting for a PDS costs nothing."""
    assert steady_rate(1, cost=0.1, latency=0.9, at_once=1) == pytest.approx(1, rel=0.01)


def test_nodes_bring_less_than_their_number_where_the_hash_deals_unevenly() -> None:
    """Catches a simulation that deals the pictures out in turn."""
    assert 15 < statistics.median(batch_rates(2, pictures=50, cost=0.1)) < 20
    two, four = (steady_rate(nodes, cost=0.1, latency=0.5) for nodes in (2, 4))
    assert 15 < two < 20
    assert 1.5 * two < four < 2.1 * two
