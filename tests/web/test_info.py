"""``/info``: served, cached, blocked and purged as a picture is."""

from __future__ import annotations

import json

import pytest
import trio

from proxy.imaging.decode import Original
from proxy.model.selection import Selection
from tests.fakes.faults import gated
from tests.fakes.world import World, tiny_jpeg, tiny_png
from tests.processes import files_in, until
from tests.web import SECURITY, SHARED, Reply, img, serving

pytestmark = pytest.mark.usefixtures("both_ways")


def info(did: str, cid: str) -> str:
    return f"/info/{did}/{cid}"


async def test_a_200_tells_of_the_picture_and_has_the_headers_of_one(world: World) -> None:
    did, cid = world.add_blob(tiny_png((64, 128, 255), (8, 6)))
    async with serving(world) as client:
        miss = await client.get(info(did, cid))
        hit = await client.get(info(did, cid))
        same = await client.get(info(did, cid), ("If-None-Match", miss.headers["etag"]))
    found = json.loads(miss.body)
    assert (found["width"], found["height"], found["type"]) == (8, 6, "image/png")
    assert found["color"] == "#4080ff"
    assert "process;dur=" in miss.headers.pop("server-timing")
    etag = miss.headers.pop("etag")
    assert etag.startswith(f'"info-{cid}-')
    expected = {
        "content-type": "application/json",
        "content-length": str(len(miss.body)),
        "cache-control": "public, max-age=86400",
        "content-disposition": f'inline; filename="{cid}.json"',
        **SECURITY,
        **SHARED,
    }
    assert miss.headers == {**expected, "x-cache": "miss"}
    assert hit.headers == {**expected, "etag": etag, "x-cache": "hit"}
    assert hit.body == miss.body
    assert (same.status, same.body) == (304, b"")


async def test_a_preset_named_info_is_another_result(world: World) -> None:
    """Catches one entry for both."""
    did, cid = world.add_blob(tiny_jpeg())
    preset = {"width": 32, "height": 32, "fit": "contain", "quality": 100}
    async with serving(world, world.config(presets={"info": preset})) as client:
        told = await client.get(info(did, cid))
        picture = await client.get(img(did, cid, "info"))
        again = await client.get(info(did, cid))
    assert picture.headers["content-type"] == "image/jpeg"
    assert (again.body, again.headers["x-cache"]) == (told.body, "hit")


async def test_the_placeholder_and_a_preset_that_are_asked_together_share_one_decode(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Catches a job of its own for what a decode would tell anyway."""
    opened = []
    real = Original.__init__

    def counted(self: Original, *args: object) -> None:
        opened.append(args)
        real(self, *args)  # type: ignore[arg-type]

    monkeypatch.setattr(Original, "__init__", counted)
    did, cid = world.add_blob(tiny_png())
    gate = trio.Event()
    world.pds.fault = gated(gate)
    replies: list[Reply] = []

    async with serving(world) as client:
        blobs = client.service._blobs

        async def ask(path: str) -> None:
            replies.append(await client.get(path))

        async with trio.open_nursery() as nursery:
            nursery.start_soon(ask, info(did, cid))
            nursery.start_soon(ask, img(did, cid))
            await until(lambda: sum(f._holders for f in blobs._flights.values()) == 2)
            gate.set()
    assert [reply.status for reply in replies] == [200, 200]
    assert len(opened) == 1


async def test_what_is_blocked_is_not_told_of_and_its_file_is_gone(world: World) -> None:
    """Catches a placeholder of a blocked picture, from the cache or by a 304."""
    did, cid = world.add_blob(tiny_png())
    async with serving(world) as client:
        reply = await client.get(info(did, cid))
        await until(lambda: len(files_in(world.cache_path)) == 1)
        await client.service.moderator.block(Selection(did, cid), by="test")
        blocked = await client.get(info(did, cid), ("If-None-Match", reply.headers["etag"]))
    assert (blocked.status, blocked.body) == (404, b"blob not found\n")
    assert files_in(world.cache_path) == []


@pytest.mark.parametrize(
    ("path", "status", "body"),
    [
        ("/info/did:plc:nope/{cid}", 400, b"invalid DID format"),
        ("/info/{did}/bafy", 400, b"invalid CID format"),
        ("/info/{did}/{cid}@json", 400, b"invalid CID format"),
        ("/info/{did}", 400, b"invalid request"),
    ],
)
async def test_what_is_wrong_is_said(path: str, status: int, body: bytes, world: World) -> None:
    did, cid = world.add_blob(tiny_png())
    async with serving(world) as client:
        reply = await client.get(path.format(did=did, cid=cid))
    assert reply.status == status
    assert reply.body.startswith(body)


async def test_what_is_no_picture_is_a_400(world: World) -> None:
    did, cid = world.add_blob(b'{"width": 1}')
    async with serving(world) as client:
        reply = await client.get(info(did, cid))
    assert (reply.status, reply.headers["content-type"]) == (400, "text/plain; charset=utf-8")
    assert reply.body.startswith(b"unsupported image format")
