"""Fixtures that several folders use."""

from __future__ import annotations

from pathlib import Path

import pytest
import trio

from tests.fakes.world import World


@pytest.fixture(params=["httpx2", "asks"])
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
