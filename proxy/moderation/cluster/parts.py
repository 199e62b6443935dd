"""Builds what a process of a cluster uses, from the configuration. Opens nothing yet."""

from __future__ import annotations

import sqlite3
import zlib
from contextlib import closing
from dataclasses import dataclass

from proxy.cache.layout import IMAGES
from proxy.config import Config
from proxy.coordination.cluster.engine import ClusterCoordination
from proxy.coordination.cluster.keeper import LeaseKeeper
from proxy.coordination.cluster.members import Members
from proxy.coordination.cluster.served_name import ServedName
from proxy.model.selection import Selection
from proxy.moderation.cluster.blocks import ClusterBlocks
from proxy.moderation.cluster.node_files import NodeFiles, Remove, own_decisions
from proxy.moderation.cluster.schema import is_new, is_up_to_date, migrate
from proxy.moderation.cluster.store import ClusterStore
from proxy.shared.postgres import PostgresDatabase, place_of

PATIENCE_SECONDS = 10.0
"""How long a statement about decisions may take; those of a bulk of 2000 take a second."""

ANSWER_SHARE = 1 / 3
"""The share of a lease that the answer to its renewal may take: there is time for another."""


@dataclass(frozen=True)
class Following:
    """The parts of a process that follows decisions and serves."""

    store: ClusterStore
    members: Members
    blocks: ClusterBlocks
    keeper: LeaseKeeper


def database_of(
    config: Config, writers: str, patience: float = PATIENCE_SECONDS
) -> PostgresDatabase:
    """A part's connections to the configured database.

    Args:
        writers: those of one name wait for each other.
        patience: seconds that a statement may take.
    """
    lock = zlib.crc32(writers.encode())
    return PostgresDatabase(config.cluster.url, lock=lock, patience=patience, prepare=migrate)


def store_of(config: Config) -> ClusterStore:
    """The store of decisions."""
    return ClusterStore(database_of(config, "decisions"), place_of(config.cluster.url))


def why_unusable(config: Config) -> str | None:
    """Why the database cannot be used from this machine; None: it can. Makes nothing. Blocks."""

    async def remove_nothing(*_selections: Selection) -> int:
        return 0

    place = place_of(config.cluster.url)
    with closing(PostgresDatabase(config.cluster.url, lock=0, patience=PATIENCE_SECONDS)) as found:
        try:
            with found.reading() as rows:
                is_empty = is_new(rows)
                is_up_to_date(rows)  # or this release cannot use them
            if not is_empty:
                store = ClusterStore(found, place)
                NodeFiles(config.cache.path, store, remove_nothing).check()
            elif own_decisions(config.cache.path)[0]:
                return f'{config.cache.path} has decisions: run "imageproxy cluster import"'
        except (sqlite3.Error, OSError) as error:
            return (error.strerror if isinstance(error, OSError) else None) or str(error)
    return None


def coordination_of(config: Config) -> ClusterCoordination:
    """Coordination with the processes on other machines."""

    def connections() -> PostgresDatabase:
        return database_of(config, "members", max(config.cluster.lease * ANSWER_SHARE, 0.5))

    return ClusterCoordination(config.cache.path, connections, config.cluster.lease)


def following_of(config: Config, remove: Remove) -> Following:
    """The parts of a process that serves.

    Args:
        remove: removes from the disk of this machine.
    """
    name = ServedName(config.cache.path, IMAGES)
    shares = bool(config.store.url)
    store, coordination = store_of(config), coordination_of(config)
    members = coordination.serving_replicas(name)
    return Following(
        store=store,
        members=members,
        blocks=ClusterBlocks(
            store, members, NodeFiles(config.cache.path, store, remove, shares=shares)
        ),
        keeper=LeaseKeeper(members, coordination.connections(), name),
    )
