"""Stores that end with the test that opened them, in SQLite and in PostgreSQL."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack, closing
from pathlib import Path

import pytest

from proxy.moderation.cluster.schema import migrate
from proxy.moderation.cluster.store import ClusterStore
from proxy.moderation.decision_store import DecisionStore
from proxy.moderation.store import ModerationStore
from proxy.shared.postgres import PostgresDatabase
from tests.moderation import AnyStoreIn, StoreIn, open_store
from tests.postgres import Postgres, run_postgres


@pytest.fixture
def store_in() -> Iterator[StoreIn]:
    """Opens stores, each as another process would; they are closed at the end of the test."""
    with ExitStack() as opened:

        def open_here(folder: Path) -> ModerationStore:
            return opened.enter_context(closing(open_store(folder)))

        yield open_here


@pytest.fixture(scope="session")
def postgres() -> Iterator[Postgres]:
    """A PostgreSQL for all tests, each of which has databases of its own in it."""
    with run_postgres() as server:
        yield server


@pytest.fixture
def database_url(postgres: Postgres) -> str:
    """The URL of a new, empty database."""
    return postgres.new_database()


@pytest.fixture(params=["sqlite", pytest.param("postgresql", marks=pytest.mark.slow)])
def any_store_in(request: pytest.FixtureRequest) -> Iterator[AnyStoreIn]:
    """``store_in`` over both kinds of databases: for each folder, a database."""
    if request.param == "sqlite":
        yield request.getfixturevalue("store_in")
        return
    server: Postgres = request.getfixturevalue("postgres")
    urls: dict[Path, str] = {}
    with ExitStack() as opened:

        def open_there(folder: Path) -> DecisionStore:
            url = urls.get(folder) or urls.setdefault(folder, server.new_database())
            database = PostgresDatabase(url, lock=1, patience=30, prepare=migrate)
            return opened.enter_context(closing(ClusterStore(database, "a test")))

        yield open_there
