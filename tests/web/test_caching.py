"""What caches are told: for how long they may keep what this service can no longer see."""

from __future__ import annotations

from typing import Any

import pytest

from proxy.config import Config
from proxy.model.cache_tags import content_tag, owner_tag
from proxy.web.caching import caching_of
from tests.fakes.cdns import BASE, SETTINGS
from tests.fakes.sites import cid_of
from tests.fakes.world import World, tiny_png
from tests.web import img, serving
from tests.web.test_actors import set_profile

pytestmark = pytest.mark.usefixtures("both_ways")

CDN = SETTINGS["bunny"]


def control(**sections: dict[str, Any]) -> str:
    own = {"server": {"cdn_url": "https://img.example"}, **sections}
    return caching_of(Config.model_validate(own)).control


def test_a_browser_asks_again_after_a_day() -> None:
    """Catches a year, and ``immutable``: a browser that never learns of a block."""
    assert control() == "public, max-age=86400"


@pytest.mark.parametrize("lifetimes", [{}, {"shared": 60}])
def test_only_a_cache_that_is_purged_keeps_a_copy_for_longer(lifetimes: dict[str, int]) -> None:
    """Catches ``s-maxage`` without a CDN: some cache of a provider keeps it, and nobody can say."""
    assert "s-maxage" not in control(cache_control=lifetimes)
    assert control(cdn=CDN) == "public, max-age=86400, s-maxage=31536000"


def test_both_lifetimes_are_the_operators() -> None:
    """Catches a setting that is read and not sent."""
    lifetimes = {"browser": 60, "shared": 3600}
    assert control(cache_control=lifetimes, cdn=CDN) == "public, max-age=60, s-maxage=3600"
    assert control(cache_control={"browser": 0}) == "public, max-age=0"


@pytest.mark.parametrize(
    ("kind", "field"),
    [("cloudflare", "cache-tag"), ("bunny", "cdn-tag"), ("cloudfront", "cache-tag")],
)
async def test_pictures_originals_and_redirects_have_the_tags_of_owner_and_bytes(
    kind: str, field: str, world: World
) -> None:
    """Catches an answer without tags: its copies are out of reach of every purge."""
    did = world.make_account()
    set_profile(world, did, avatar=tiny_png())
    cid = cid_of(tiny_png())
    tags = f"{owner_tag(did)},{content_tag(cid)}"
    config = world.config(cdn=SETTINGS[kind], server={"cdn_url": BASE})
    async with serving(world, config) as client:
        for target in (img(did, cid), f"{img(did, cid)}@webp", f"/blob/{did}/{cid}"):
            for method in ("GET", "HEAD"):
                reply = await client.ask(target, method=method)
                assert (reply.status, reply.headers[field]) == (200, tags), target
            reply = await client.get(target, ("If-None-Match", reply.headers["etag"]))
            assert (reply.status, reply.headers[field]) == (304, tags), target
        reply = await client.get(f"/avatar/{did}")
        assert (reply.status, reply.headers[field]) == (302, tags)


async def test_without_a_cdn_there_are_no_tags(world: World) -> None:
    """Catches headers that strangers read, and nobody needs."""
    did, cid = world.add_blob()
    async with serving(world) as client:
        headers = (await client.get(img(did, cid))).headers
    assert not {"cache-tag", "cdn-tag"} & headers.keys()
