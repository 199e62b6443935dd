"""A CDN that is purged by URL keeps nothing that a purge by URL could not name."""

from __future__ import annotations

from typing import Any

import pytest

from proxy.config import Config
from tests.fakes.cdns import BASE, SETTINGS
from tests.fakes.world import World
from tests.web import img, serving

pytestmark = pytest.mark.usefixtures("both_ways")

ORIGIN = "https://app.example"
SHARED = "public, max-age=86400, s-maxage=31536000"
PRIVATE = "private, max-age=86400"


def config_of(world: World, kind: str = "cloudflare", **cdn: Any) -> Config:
    return world.config(cdn={**SETTINGS[kind], **cdn}, server={"cdn_url": BASE})


async def test_by_tag_a_cdn_may_keep_every_spelling(world: World) -> None:
    """Catches a hit rate that is given away: a purge by tag reaches all of these."""
    did, cid = world.add_blob()
    path = img(did, cid)
    async with serving(world, config_of(world)) as client:
        for target in (path, f"{path}?x=1", path.replace(":", "%3A"), f"/blob/{did}/{cid}"):
            reply = await client.get(target, ("Origin", ORIGIN))
            assert (reply.status, reply.headers["cache-control"]) == (200, SHARED), target


@pytest.mark.parametrize("kind", SETTINGS)
async def test_by_url_a_cdn_may_keep_what_a_purge_names_and_nothing_else(
    kind: str, world: World
) -> None:
    """Catches a copy under a query, an escape or an ``Origin``, which outlasts every purge."""
    did, cid = world.add_blob()
    path, blob = img(did, cid), f"/blob/{did}/{cid}"
    async with serving(world, config_of(world, kind, purge="urls", origins=[ORIGIN])) as client:
        for target in (path, f"{path}@webp", blob):
            for headers in ((), (("Origin", ORIGIN),)):
                reply = await client.get(target, *headers)
                assert (reply.status, reply.headers["cache-control"]) == (200, SHARED), target
                reply = await client.get(target, *headers, ("If-None-Match", reply.headers["etag"]))
                assert (reply.status, reply.headers["cache-control"]) == (304, SHARED), target
            reply = await client.get(target, ("Origin", "https://other.example"))
            assert (reply.status, reply.headers["cache-control"]) == (200, PRIVATE), target
        for target in (f"{path}?x=1", path.replace(":", "%3A"), path.replace("/plain", "/%70lain")):
            for method in ("GET", "HEAD"):
                reply = await client.ask(target, method=method)
                assert (reply.status, reply.headers["cache-control"]) == (200, PRIVATE), target
            reply = await client.get(target, ("If-None-Match", reply.headers["etag"]))
            assert (reply.status, reply.headers["cache-control"]) == (304, PRIVATE), target


async def test_an_error_is_kept_as_ever(world: World) -> None:
    """Catches a dead link with a query that every reader asks a PDS for."""
    did, cid = world.add_blob()
    world.pds.accounts[did].blobs.clear()
    async with serving(world, config_of(world, purge="urls")) as client:
        for target in (img(did, cid), img(did, cid) + "?x=1"):
            reply = await client.get(target)
            assert (reply.status, reply.headers["cache-control"]) == (404, "public, max-age=60")
