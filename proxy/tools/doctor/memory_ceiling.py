"""The most memory that a service takes: the sum of what bounds each of its parts. Pure."""

from __future__ import annotations

from proxy.accounts import did_documents
from proxy.cache import writer
from proxy.config import Config
from proxy.egress import circuit, conduct, guard
from proxy.imaging.memory_estimate import MIB, budget, waiting_room
from proxy.imaging.workers import fair_shares
from proxy.moderation import policy
from proxy.shared import negative_cache
from proxy.web.open_connections import MAX_CONNECTIONS
from proxy.web.slow_clients import UNTAKEN

SERVICE = 160 * MIB
"""Bytes of the service itself under load: Python, its libraries, connections."""

TABLES = (
    # Documents, handles and profiles; failures of blobs and of presets; hosts and their names, of
    # strangers and of the operator; shares of the processing pool.
    3 * did_documents.MAX_BYTES
    + 2 * negative_cache.MAX_BYTES
    + circuit.MAX_BYTES
    + conduct.MAX_BYTES
    + 2 * guard.KNOWN_BYTES
    + fair_shares.MAX_BYTES
    + 16 * MIB
)
"""Bytes of what strangers make the service remember: the bounds of the tables, and 16 MiB for paths
and addresses."""

WORKER = 192 * MIB
"""Bytes of a worker between two jobs: Python, the codecs, and remains of earlier jobs."""

CONNECTION = 48 * 1024
"""Bytes of a connection whose request has a head of 16 KiB. An idle one takes 18 KiB."""


def ceiling(config: Config, cpus: int) -> int:
    """Return the limit of resident memory, in bytes, of the service and its workers.

    Args:
        cpus: how many CPUs this process may use: the number of workers if ``process.threads`` is 0.
    """
    workers = config.process.threads or cpus
    # When a body is complete, it is in memory twice: as received, and joined.
    fetches = 2 * config.fetch.workers * config.fetch.max_source_bytes
    return (
        SERVICE
        + TABLES
        + (config.policy.max_entries * policy.VERDICT if config.policy.url else 0)
        + fetches
        + waiting_room(config)
        + int(config.cache.memory_mb * MIB)
        + UNTAKEN
        + writer.MAX_BYTES
        + MAX_CONNECTIONS * CONNECTION
        + workers * WORKER
        + budget(config)
    )
