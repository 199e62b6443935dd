"""The configured store of decisions, and the database of the CDN's queue within it."""

from __future__ import annotations

from proxy.config import Config
from proxy.moderation.cdn.queue import SCHEMA as CDN_SCHEMA
from proxy.moderation.decision_store import DecisionStore
from proxy.moderation.store import FILE_NAME, ModerationStore
from proxy.shared.sql import SqlDatabase
from proxy.shared.sqlite import Database


def moderation_store_of(config: Config) -> DecisionStore:
    """The configured store of decisions."""
    if config.cluster.url:
        # Imported late, as below: it needs an extra.
        from proxy.moderation.cluster import parts as cluster

        return cluster.store_of(config)
    return folder_store_of(config)


def folder_store_of(config: Config) -> ModerationStore:
    """The moderation store in the folder of the configured cache, as one machine has it."""
    return ModerationStore(config.cache.path / FILE_NAME)


def moderation_database_of(config: Config) -> SqlDatabase:
    """The database of the CDN's queue: that of the configured store of decisions."""
    if config.cluster.url:
        from proxy.moderation.cluster import parts as cluster

        return cluster.database_of(config, "cdn")
    path = config.cache.path / FILE_NAME
    return Database(path, CDN_SCHEMA, synchronous="FULL", may_make=False)
