"""After a block a CDN has no copy left, in whatever spelling it was asked for."""

from __future__ import annotations

from typing import Any

import pytest

from proxy.config import Config
from tests.fakes.cdns import BASE, CDNS, SETTINGS, FakeCdn
from tests.fakes.streams import FakeJetstream
from tests.fakes.visitors import ORIGIN, Visitors
from tests.fakes.world import World
from tests.processes import files_in, until
from tests.web import serving

pytestmark = pytest.mark.slow

SPELLINGS = 7

CANNOT_BE_NAMED = {"a query", "%3A", "by name"}
"""What a purge by URL would not reach, and is not kept then."""


@pytest.fixture(params=CDNS)
def cdn(request: pytest.FixtureRequest, world: World) -> FakeCdn:
    made = CDNS[request.param]()
    world.directory_network.add(made)
    return made


def kind_of(cdn: FakeCdn) -> str:
    return next(kind for kind, made in CDNS.items() if isinstance(cdn, made))  # type: ignore[arg-type]


def config_of(world: World, cdn: FakeCdn, **more: Any) -> Config:
    sections = {"accounts": more.pop("accounts", {})}
    settings = {**SETTINGS[kind_of(cdn)], **more}
    return world.config(cdn=settings, server={"cdn_url": BASE}, **sections)


@pytest.mark.parametrize("what", ["owner", "bytes", "pair"])
async def test_by_tag_one_request_takes_every_copy_and_no_other(
    what: str, world: World, cdn: FakeCdn
) -> None:
    """Catches a spelling that outlasts a block, and a purge that takes a stranger's pictures."""
    visitors = Visitors(world, cdn)
    picture, other = visitors.add_pictures(2)
    async with serving(world, config_of(world, cdn)) as client:
        cdn.ask = client.ask
        for each in (picture, other):
            assert len(await visitors.look_at(each)) == SPELLINGS
            assert len(visitors.copies([each])) == SPELLINGS
        selection = picture.selections[("owner", "bytes", "pair").index(what)]
        await client.service.moderator.block(selection, by="a test")
        await until(lambda: visitors.copies([picture]) == [])
        assert len(cdn.requests) == 1
        assert await visitors.look_at(picture) == []
        assert len(visitors.copies([other])) == SPELLINGS


async def test_by_url_no_copy_is_left_because_the_others_are_never_kept(
    world: World, cdn: FakeCdn
) -> None:
    """Catches a purge by URL that leaves what was asked for with a query or an escape."""
    visitors = Visitors(world, cdn)
    (picture,) = visitors.add_pictures(1)
    async with serving(world, config_of(world, cdn, purge="urls", origins=[ORIGIN])) as client:
        cdn.ask = client.ask
        cdn.lift_limits()  # of a CloudFront, which has more spellings than it takes at once
        assert len(await visitors.look_at(picture)) == SPELLINGS
        kept = {copy.url for copy in visitors.copies([picture])}
        named = {
            BASE + target
            for name, (target, _headers, _method) in picture.spellings().items()
            if name not in CANNOT_BE_NAMED
        }
        assert kept == named
        await client.service.moderator.block(picture.selections[2], by="a test")
        await until(lambda: visitors.copies([picture]) == [])
        assert await visitors.look_at(picture) == []


async def test_what_comes_back_after_a_lift_is_kept_and_purged_as_before(
    world: World, cdn: FakeCdn
) -> None:
    """Catches a second block of the same that a CDN takes for a repetition of the first."""
    visitors = Visitors(world, cdn)
    (picture,) = visitors.add_pictures(1)
    async with serving(world, config_of(world, cdn)) as client:
        cdn.ask = client.ask
        for _ in range(2):
            assert len(await visitors.look_at(picture)) == SPELLINGS
            await client.service.moderator.block(picture.selections[0], by="a test")
            await until(lambda: visitors.copies([picture]) == [])
            await client.service.moderator.lift(picture.selections[0], by="a test")
        assert len(cdn.requests) == 2


async def test_an_account_that_is_gone_is_gone_at_the_cdn_when_nothing_of_it_is_cached_here(
    world: World, cdn: FakeCdn
) -> None:
    """Catches copies that a CDN keeps for a year of an account that is gone.

    What they were made of expired here long ago, or was never kept, as originals are not. At
    CloudFront, which charges for each tag, the accounts of a whole network cannot be named.
    """
    jetstream = FakeJetstream()
    world.directory_network.add(jetstream)
    visitors = Visitors(world, cdn)
    gone, cached, other = visitors.add_pictures(3)
    accounts = {"url": "wss://jetstream.example"}
    config = config_of(world, cdn, accounts=accounts)
    async with serving(world, config) as client:
        cdn.ask = client.ask
        await until(lambda: bool(jetstream.open))
        for picture in (gone, other):
            await cdn.get(f"/blob/{picture.did}/{picture.cid}")
        await visitors.look_at(cached)
        await until(lambda: len(files_in(config.cache.path)) == 3)
        for number, picture in enumerate((gone, cached), start=1):
            status = {"active": False, "did": picture.did, "seq": number, "status": "deleted"}
            event = {"did": picture.did, "time_us": number, "kind": "account", "account": status}
            jetstream.send(event)
        await until(lambda: visitors.copies([cached]) == [])
        if kind_of(cdn) != "cloudfront":
            await until(lambda: visitors.copies([gone]) == [])
        assert len(visitors.copies([other])) == 1
        assert len(cdn.purged) == (1 if kind_of(cdn) == "cloudfront" else 2)
