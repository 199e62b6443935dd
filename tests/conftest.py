"""Fixtures that several folders use."""

from __future__ import annotations

from collections.abc import Generator, Iterator
from pathlib import Path

import pytest
import structlog
import trio

from tests import examples, quick, time_limit
from tests.fakes.world import World
from tests.loop_stalls import LoopStalled, watching
from tests.open_files import RememberedConnection, remember_connections
from tests.web import WAYS, Way


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption(
        "--quick",
        action="store_true",
        help="the quick round: no test that takes long, the default client alone, fewer examples",
    )


def pytest_configure(config: pytest.Config) -> None:
    config.pluginmanager.register(time_limit)
    in_quick_round = bool(config.getoption("--quick"))
    examples.load_profile(quick=in_quick_round)
    if in_quick_round:
        config.pluginmanager.register(quick.QuickRound())


@pytest.hookimpl(wrapper=True, tryfirst=True)
def pytest_runtest_call() -> Generator[None, None, None]:
    """Fail a test in which the service held up the event loop."""
    with watching() as stalls:
        yield
    if stalls:
        raise LoopStalled("\n".join(f"{where}: {what}" for where, what in stalls.items()))


@pytest.fixture(params=["httpx2", pytest.param("asks", marks=pytest.mark.slow)])
def client_name(request: pytest.FixtureRequest) -> str:
    """``fetch.client``, one after the other; asks only where it is installed."""
    name: str = request.param
    if name == "asks":
        pytest.importorskip("asks")
    return name


@pytest.fixture
async def world(nursery: trio.Nursery, tmp_path: Path) -> World:
    """A network in memory, and a service's configuration for it."""
    return World(nursery, tmp_path)


@pytest.fixture
async def client_world(nursery: trio.Nursery, tmp_path: Path, client_name: str) -> World:
    """``world``, over each of the clients."""
    return World(nursery, tmp_path, client_name)


@pytest.fixture(params=WAYS)
def both_ways(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Way:
    """Runs a test through the server's interface, and through the door where that opens."""
    monkeypatch.setattr(Way, "name", request.param)
    monkeypatch.setattr(Way, "opened", 0)
    return Way()


@pytest.fixture(autouse=True)
def log_of_its_own() -> Iterator[None]:
    """Leave no log to later tests: it may write to the file of ``capsys``, which is closed."""
    yield
    structlog.reset_defaults()


@pytest.fixture(autouse=True)
def connections(monkeypatch: pytest.MonkeyPatch) -> Iterator[list[RememberedConnection]]:
    """The SQLite connections that a test opens in this process; it fails if it leaves one open.

    Python 3.13 warns of those, but only when they are collected: in another test, or never.
    """
    opened = remember_connections(monkeypatch)
    yield opened
    left = sum(not connection.is_closed for connection in opened)
    assert not left, f"{left} of {len(opened)} SQLite connections were left open"
