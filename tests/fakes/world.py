"""A whole network and a service on it: what most tests begin with."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from io import BytesIO
from pathlib import Path
from typing import Any

import trio
from PIL import Image

from proxy.config import Config
from proxy.lifecycle import open_service
from proxy.model.identifiers import Cid, Did
from proxy.service import Service
from tests.fakes.network import FakeNetwork
from tests.fakes.sites import FakePds, FakePlc, FakeWeb, document, new_plc_did, pds_service


class World:
    """A directory, a PDS, and the configuration of a service that knows them.

    Args:
        nursery: runs the servers.
        folder: for the cache.
        client: ``fetch.client``.

    Attributes:
        network: what strangers' hosts are on.
        directory_network: what the directory alone is on, as on an operator's private address.
    """

    def __init__(self, nursery: trio.Nursery, folder: Path, client: str = "httpx2") -> None:
        self.network = FakeNetwork(nursery)
        self.directory_network = FakeNetwork(nursery)
        self.pds = FakePds()
        self.plc = FakePlc()
        self.network.add(self.pds)
        self.directory_network.add(self.plc)
        self.cache_path = folder / "cache"
        self.client = client

    @property
    def open_wires(self) -> int:
        """Connections that the service has not closed."""
        return len(self.network.open_wires) + len(self.directory_network.open_wires)

    def config(self, **sections: dict[str, Any]) -> Config:
        """The configuration, with more keys by section: ``config(fetch={"workers": 1})``."""
        own: dict[str, dict[str, Any]] = {
            "identity": {"plc_url": self.plc.url},
            "fetch": {"client": self.client, "allow_http": True},
            "cache": {"path": self.cache_path},
            # Processes of their own would take longer to start than most tests last.
            "process": {"isolation": "thread"},
        }
        for name, keys in sections.items():
            own[name] = own.get(name, {}) | keys
        return Config.model_validate(own)

    @asynccontextmanager
    async def service(self, config: Config | None = None, **parts: Any) -> AsyncIterator[Service]:
        """``open_service`` on these networks."""
        networks = (self.network, self.directory_network)
        async with open_service(config or self.config(), networks=networks, **parts) as service:
            yield service

    def make_account(self, pds: FakePds | None = None) -> Did:
        """A did:plc with an account on ``pds``, or on this world's."""
        did = new_plc_did()
        self.move_account(did, pds or self.pds)
        return did

    def move_account(self, did: Did, pds: FakePds) -> None:
        """Have the directory name ``pds``, with an empty account there."""
        pds.add_account(did)
        self.plc.documents[did] = document(did, pds_service(pds.url))

    def make_web_account(self, did: Did, pds: FakePds | None = None) -> FakeWeb:
        """The domain of a did:web, with an account on ``pds``, or on this world's."""
        pds = pds or self.pds
        web = FakeWeb(did)
        web.document = document(did, pds_service(pds.url))
        pds.add_account(did)
        self.network.add(web)
        return web

    def add_blob(
        self,
        data: bytes | None = None,
        *,
        did: Did | None = None,
        pds: FakePds | None = None,
        mime: str = "image/png",
    ) -> tuple[Did, Cid]:
        """A blob, a tiny picture if not specified, of a new account if not specified."""
        pds = pds or self.pds
        did = did or self.make_account(pds)
        return did, pds.add_blob(did, tiny_png() if data is None else data, mime)


def tiny_png(color: tuple[int, int, int] = (64, 128, 255), size: tuple[int, int] = (8, 6)) -> bytes:
    """A picture of a few dozen bytes."""
    return _encoded(Image.new("RGB", size, color), "PNG")


def tiny_jpeg(
    color: tuple[int, int, int] = (255, 128, 64), size: tuple[int, int] = (8, 6)
) -> bytes:
    """A picture of a few hundred bytes."""
    return _encoded(Image.new("RGB", size, color), "JPEG")


def _encoded(image: Image.Image, format: str) -> bytes:
    out = BytesIO()
    image.save(out, format)
    return out.getvalue()
