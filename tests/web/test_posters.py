"""``/vid``: the poster of a video."""

from __future__ import annotations

from io import BytesIO
from typing import Any

import pytest
import trio
from PIL import Image

from proxy import posters
from proxy.imaging.workers.pool import ProcessingPool
from proxy.model.selection import Selection
from tests.fakes.faults import gated
from tests.fakes.network import Conversation, honest
from tests.fakes.sites import Blob, FakePds
from tests.fakes.world import World, tiny_png
from tests.imaging.videos import BLACK, RED, video
from tests.processes import files_in, until
from tests.web import SECURITY, Reply, serving

SANDBOX: dict[str, Any] = {"process": {"isolation": "sandbox", "threads": 1}}


def vid(did: str, cid: str, preset: str = "") -> str:
    return f"/vid/{preset}{'/' if preset else ''}{did}/{cid}/thumbnail.jpg"


def color(data: bytes) -> tuple[int, ...]:
    pixel = Image.open(BytesIO(data)).convert("RGB").getpixel((4, 4))
    assert isinstance(pixel, tuple)
    return tuple(round(value) for value in pixel)


def is_near(one: tuple[int, ...], other: tuple[int, ...], by: int = 8) -> bool:
    return all(abs(a - b) <= by for a, b in zip(one, other, strict=True))


@pytest.mark.slow
@pytest.mark.parametrize(
    ("container", "codec"),
    [("mp4", "libx264"), ("mov", "libx264"), ("mp4", "libx265"), ("webm", "libvpx-vp9")],
)
async def test_a_video_has_a_poster_that_is_made_in_the_sandbox(
    container: str, codec: str, world: World
) -> None:
    """Catches a worker whose seccomp filter or limits FFmpeg does not live with."""
    did, cid = world.add_blob(video(container=container, codec=codec), mime="video/mp4")
    async with serving(world, world.config(**SANDBOX)) as client:
        reply = await client.get(vid(did, cid))
        again = await client.get(vid(did, cid))
    assert reply.status == 200, reply.body
    assert is_near(color(reply.body), RED)
    assert (reply.headers["x-cache"], again.headers["x-cache"]) == ("miss", "hit")
    assert again.body == reply.body
    expected = {
        "content-type": "image/jpeg",
        "cache-control": "public, max-age=86400",
        "content-disposition": f'inline; filename="{cid}.jpg"',
        **SECURITY,
    }
    assert expected.items() <= reply.headers.items()


async def test_the_preset_is_the_configured_one_or_the_one_of_the_path(world: World) -> None:
    """Catches a path whose preset is not used, and presets that share an entry."""
    did, cid = world.add_blob(video(), mime="video/mp4")
    async with serving(world, world.config(video={"preset": "avatar_thumbnail"})) as client:
        default, named = [
            await client.get(vid(did, cid, preset)) for preset in ("", "content_preview")
        ]
        wrong = await client.get(vid(did, cid, "nosuch"))
    sizes = [Image.open(BytesIO(each.body)).size for each in (default, named)]
    assert sizes == [(128, 128), (96, 64)]
    assert default.headers["etag"] != named.headers["etag"]
    assert (wrong.status, wrong.body.startswith(b"invalid preset")) == (400, True)


async def test_a_poster_and_a_picture_of_one_blob_and_preset_are_different_things(
    world: World,
) -> None:
    """Catches a poster that is refused because the video is no picture, and a shared ETag."""
    did, cid = world.add_blob(video(), mime="video/mp4")
    picture = f"/img/content_preview/plain/{did}/{cid}@jpeg"
    async with serving(world) as client:
        assert (await client.get(picture)).status == 400
        poster = await client.get(vid(did, cid, "content_preview"))
        assert poster.status == 200
        assert (await client.get(picture)).status == 400
        etag = poster.headers["etag"]
        unmodified = await client.get(vid(did, cid, "content_preview"), ("If-None-Match", etag))
    assert unmodified.status == 304


async def test_a_picture_has_no_poster(world: World) -> None:
    """Catches one that is made of whatever FFmpeg can open."""
    did, cid = world.add_blob(tiny_png())
    async with serving(world) as client:
        reply = await client.get(vid(did, cid))
    assert (reply.status, reply.body) == (400, b"unsupported image format\n")


async def test_without_the_extra_no_video_is_fetched(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Catches a download of 300 MB of which nothing can be made."""
    monkeypatch.setattr(posters, "find_spec", lambda name: None)
    did, cid = world.add_blob(video(), mime="video/mp4")
    async with serving(world) as client:
        reply = await client.get(vid(did, cid))
    assert (reply.status, reply.body) == (400, b"unsupported image format\n")
    assert not world.pds.requests


@pytest.mark.parametrize(
    "path",
    [
        "/vid/",
        "/vid/{did}/{cid}",
        "/vid/{did}/{cid}/thumbnail.png",
        "/vid/{did}/{cid}/thumbnail.jpg@webp",
        "/vid/{did}/{cid}@avif/thumbnail.jpg",
        "/vid/{cid}/{did}/thumbnail.jpg",
    ],
)
async def test_another_path_is_a_400(path: str, world: World) -> None:
    """Catches a grammar that is looser than the documented one."""
    did, cid = world.add_blob(video(), mime="video/mp4")
    async with serving(world) as client:
        assert (await client.get(path.format(did=did, cid=cid))).status == 400


async def test_a_video_over_its_limit_is_too_large_and_one_over_that_of_pictures_is_not(
    world: World,
) -> None:
    """Catches the limit of pictures on videos, and none at all."""
    did, cid = world.add_blob(video(), mime="video/mp4")
    long = video([RED] * 200, size=(192, 128))
    did2, cid2 = world.add_blob(long + bytes(10_000), mime="video/mp4")
    limits: dict[str, Any] = {
        "fetch": {"max_source_mb": 0.001},
        "video": {"max_source_mb": 0.01},
    }
    async with serving(world, world.config(**limits)) as client:
        assert (await client.get(vid(did, cid))).status == 200
        reply = await client.get(vid(did2, cid2))
    assert (reply.status, reply.body) == (400, b"image too large\n")


async def test_a_video_that_is_not_its_cids_is_refused(world: World) -> None:
    """Catches a poster that is made before the hash is known."""
    did, cid = world.add_blob(video(), mime="video/mp4")
    world.pds.accounts[did].blobs[cid] = Blob(video([BLACK, RED, RED]), "video/mp4")
    async with serving(world) as client:
        reply = await client.get(vid(did, cid))
    assert (reply.status, reply.body) == (502, b"blob does not match its CID\n")


async def test_a_host_that_sends_videos_slowly_keeps_no_other_host_waiting(
    world: World, nursery: trio.Nursery
) -> None:
    """Catches places for videos that one PDS has all of, for as long as it likes."""
    gate = trio.Event()
    slow = [world.add_blob(video([RED] * count), mime="video/mp4") for count in range(2, 8)]
    world.pds.fault = gated(gate)
    prompt = FakePds("prompt.example.org")
    world.network.add(prompt)
    did, cid = world.add_blob(video(), mime="video/mp4", pds=prompt)
    async with serving(world) as client:
        for each in slow:
            nursery.start_soon(client.get, vid(*each))
        await until(lambda: world.pds.blob_requests == posters.OF_HOST)
        assert (await client.get(vid(did, cid))).status == 200
        assert world.pds.blob_requests == posters.OF_HOST
        gate.set()
        await until(lambda: world.pds.blob_requests == len(slow))


async def test_no_file_of_a_video_stays(world: World) -> None:
    """Catches a file that has a name, which a crash would leave behind."""
    did, cid = world.add_blob(video(), mime="video/mp4")
    async with serving(world) as client:
        before = {str(each) for each in world.cache_path.rglob("*")}
        assert (await client.get(vid(did, cid))).status == 200
        after = {str(each) for each in world.cache_path.rglob("*")}
        await client.service.written()
    known = ("/images", "/writing", "/flights.lock", "/index-1")
    assert not {each for each in after - before if not any(name in each for name in known)}


async def test_requests_for_one_poster_share_a_fetch(world: World) -> None:
    """Catches a download for each viewer."""
    did, cid = world.add_blob(video(), mime="video/mp4")
    async with serving(world) as client, trio.open_nursery() as nursery:
        for _ in range(5):
            nursery.start_soon(client.get, vid(did, cid))
    assert world.pds.blob_requests == 1


async def test_a_cdn_keeps_posters_only_where_it_is_purged_by_tag(world: World) -> None:
    """Catches a copy in a CDN that a purge by URL would not reach."""
    did, cid = world.add_blob(video(), mime="video/mp4")
    for purge, control in (("urls", "private, max-age=86400"), ("tags", "public")):
        cdn: dict[str, Any] = {
            "kind": "cloudflare",
            "purge": purge,
            "zone": "0" * 32,
            "token": "secret-token",
        }
        config = world.config(cdn=cdn, server={"base_url": "https://img.example"})
        async with serving(world, config) as client:
            headers = (await client.get(vid(did, cid))).headers
        assert headers["cache-control"].startswith(control)
        assert "cache-tag" in headers


async def test_a_block_reaches_posters(world: World) -> None:
    """Catches a poster that is served from the cache, or as unmodified, after a block."""
    did, cid = world.add_blob(video(), mime="video/mp4")
    async with serving(world) as client:
        etag = (await client.get(vid(did, cid))).headers["etag"]
        await client.service.moderator.block(Selection(did, None), by="a test")
        for headers in ((), (("If-None-Match", etag),)):
            assert (await client.get(vid(did, cid), *headers)).status == 404


class Halfway:
    """Holds the making of a poster at one place, until the gate opens.

    Attributes:
        reached: set when something waits there.
    """

    def __init__(self, world: World, monkeypatch: pytest.MonkeyPatch, place: str) -> None:
        self.reached, self.gate = trio.Event(), trio.Event()
        real: Any = ProcessingPool.poster

        async def send(conversation: Conversation) -> None:
            data = conversation.response.encoded()
            await conversation.send(data[: len(data) // 2])
            await self._wait()
            await conversation.send(data[len(data) // 2 :])

        async def poster(pool: ProcessingPool, *args: Any, **options: Any) -> Any:
            if place == "fetched":
                await self._wait()
            made = await real(pool, *args, **options)
            if place == "decoded":
                await self._wait()
            return made

        if place == "fetching":
            world.pds.fault = send
        else:
            monkeypatch.setattr(ProcessingPool, "poster", poster)

    async def _wait(self) -> None:
        self.reached.set()
        await self.gate.wait()


@pytest.mark.parametrize("decision", ["block", "purge"])
@pytest.mark.parametrize("place", ["fetching", "fetched", "decoded"])
async def test_a_decision_wins_over_a_poster_under_way(
    place: str, decision: str, world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Catches a byte of what was blocked or purged meanwhile, and a file that comes back."""
    did, cid = world.add_blob(video(), mime="video/mp4")
    half = Halfway(world, monkeypatch, place)
    replies: list[Reply] = []

    async def ask() -> None:
        replies.append(await client.get(vid(did, cid)))

    async with serving(world) as client:
        moderator = client.service.moderator
        async with trio.open_nursery() as nursery:
            nursery.start_soon(ask)
            await half.reached.wait()
            if decision == "block":
                await moderator.block(Selection(did, None), by="a test")
            else:
                await moderator.purge(Selection(did, None), by="a test")
            half.gate.set()
        await client.service.written()
        assert [reply.status for reply in replies] == [404 if decision == "block" else 200]
        world.pds.fault = honest
        if decision == "block":
            assert files_in(world.cache_path) == []
            assert await moderator.lift(Selection(did, None), by="a test")
            assert (await client.get(vid(did, cid))).headers["x-cache"] == "miss"
        else:
            assert (await client.get(vid(did, cid))).headers["x-cache"] == "hit"
        assert world.pds.blob_requests == 2, "what was fetched before is not used after it"


async def test_a_blocked_video_is_not_fetched(world: World) -> None:
    """Catches a download of 300 MB for an answer that is known before it."""
    did, cid = world.add_blob(video(), mime="video/mp4")
    async with serving(world) as client:
        await client.service.moderator.block(Selection(None, cid), by="a test")
        assert (await client.get(vid(did, cid))).status == 404
    assert world.pds.requests == []


async def test_a_purge_removes_the_file_of_a_poster(world: World) -> None:
    """Catches posters that a purge does not know of."""
    did, cid = world.add_blob(video(), mime="video/mp4")
    async with serving(world) as client:
        assert (await client.get(vid(did, cid))).status == 200
        await client.service.written()
        await until(lambda: len(files_in(world.cache_path)) == 1)
        assert await client.service.moderator.purge(Selection(did, cid), by="a test") == 1
        assert files_in(world.cache_path) == []
        assert (await client.get(vid(did, cid))).headers["x-cache"] == "miss"
