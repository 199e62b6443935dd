"""The most memory that a service takes: the sum of what bounds each of its parts. Pure."""

from __future__ import annotations

from proxy.accounts import did_documents
from proxy.cache import lately_read, writer
from proxy.config import Config
from proxy.egress import circuit, conduct, guard
from proxy.imaging.memory_estimate import MIB, at_rest, budget, budget_within, waiting_room
from proxy.imaging.workers import fair_shares
from proxy.moderation import policy
from proxy.shared import negative_cache
from proxy.web.open_connections import MAX_CONNECTIONS
from proxy.web.slow_clients import UNTAKEN

TABLES = (
    # Documents, handles and profiles; failures of blobs and of presets; hosts and their names, of
    # strangers and of the operator; shares of the processing pool; files that were read.
    3 * did_documents.MAX_BYTES
    + 2 * negative_cache.MAX_BYTES
    + circuit.MAX_BYTES
    + conduct.MAX_BYTES
    + 2 * guard.KNOWN_BYTES
    + fair_shares.MAX_BYTES
    + lately_read.MAX_BYTES
    + 16 * MIB
)
"""Bytes of what strangers make the service remember: the bounds of the tables, and 16 MiB for paths
and addresses."""

CONNECTION = 48 * 1024
"""Bytes of a connection whose request has a head of 16 KiB. An idle one takes 18 KiB."""


def ceiling(config: Config, cpus: int, available: int | None = None) -> int:
    """Return the limit of resident memory, in bytes, of one process of the service and its workers.

    Args:
        cpus: how many CPUs this process may use: the number of workers if ``process.threads`` is 0.
        available: bytes that all processes may use together. If None, as many as they ask for.
    """
    workers = config.process.threads or cpus
    # When a body is complete, it is in memory twice: as received, and joined.
    fetches = 2 * config.fetch.workers * config.fetch.max_source_bytes
    if available is None:
        transforms = budget(config)
    else:
        transforms = budget_within(config, workers, available)
    return (
        at_rest(config, workers)
        + TABLES
        + (config.policy.max_entries * policy.VERDICT if config.policy.url else 0)
        + fetches
        + waiting_room(config)
        + UNTAKEN
        + writer.MAX_BYTES
        + MAX_CONNECTIONS * CONNECTION
        + transforms
    )
