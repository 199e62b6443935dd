"""``/blob``: the verified original."""

from __future__ import annotations

from io import BytesIO
from typing import Any

import pytest
from PIL import Image

import proxy.web.responder
from proxy.model.selection import Selection
from proxy.web.slow_clients import LARGE, Transfers
from tests.fakes.faults import with_body
from tests.fakes.sites import cid_of
from tests.fakes.world import World, tiny_jpeg, tiny_png
from tests.web import SECURITY, SHARED, img, serving


def encoded(format: str) -> bytes:
    out = BytesIO()
    Image.new("RGB", (16, 12), "teal").save(out, format)
    return out.getvalue()


MP4 = b"\x00\x00\x00\x18ftypisom\x00\x00\x02\x00isomiso2" + bytes(100)
WEBM = b"\x1a\x45\xdf\xa3" + bytes(100)
SVG = b'<svg xmlns="http://www.w3.org/2000/svg"><script>alert(1)</script></svg>'
HTML = b"<!doctype html><script>alert(1)</script>"


@pytest.mark.parametrize("format", ["JPEG", "PNG", "GIF", "WEBP", "AVIF"])
async def test_an_original_comes_byte_for_byte_as_an_attachment_of_the_type_of_its_content(
    format: str, world: World
) -> None:
    data = encoded(format)
    did, cid = world.add_blob(data, mime="text/html")
    async with serving(world) as client:
        reply = await client.get(f"/blob/{did}/{cid}")
    assert (reply.status, reply.body) == (200, data)
    assert reply.headers == {
        "content-type": f"image/{format.lower()}",  # and not what its owner claims
        "content-length": str(len(data)),
        "content-disposition": f'attachment; filename="{cid}"',
        "cache-control": "public, max-age=86400",
        "etag": f'"{cid}"',
        "accept-ranges": "bytes",
        **SECURITY,
        **SHARED,
    }


async def test_metadata_and_trailing_bytes_stay_as_the_cid_names_them(world: World) -> None:
    data = tiny_jpeg() + b"trailing bytes"
    did, cid = world.add_blob(data)
    async with serving(world) as client:
        assert (await client.get(f"/blob/{did}/{cid}")).body == data


async def test_head_answers_as_get_without_the_body(world: World) -> None:
    did, cid = world.add_blob()
    async with serving(world) as client:
        got, head = await client.get(f"/blob/{did}/{cid}"), await client.head(f"/blob/{did}/{cid}")
    assert (head.status, head.pairs, head.body) == (got.status, got.pairs, b"")


@pytest.mark.parametrize("data", [b"", b"only text", SVG, HTML, MP4, WEBM, b"%PDF-1.7"])
async def test_a_non_image_is_a_400_not_a_file_that_a_browser_would_run(
    data: bytes, world: World
) -> None:
    did, cid = world.add_blob(data, mime="image/png")
    async with serving(world) as client:
        reply = await client.get(f"/blob/{did}/{cid}")
    assert (reply.status, reply.body) == (400, b"unsupported image format\n")
    assert reply.headers["content-type"] == "text/plain; charset=utf-8"


ALLOWED: list[tuple[list[str], dict[str, bytes], dict[str, bytes]]] = [
    (["image/png"], {"image/png": tiny_png()}, {"image/jpeg": tiny_jpeg()}),
    (
        ["video/mp4", "image/*"],
        {"video/mp4": MP4, "image/jpeg": tiny_jpeg()},
        {"video/webm": WEBM, "": b"text"},
    ),
    (["video/*"], {"video/mp4": MP4, "video/webm": WEBM}, {"image/png": tiny_png()}),
    (["application/octet-stream"], {"application/octet-stream": HTML}, {"": tiny_png()}),
    ([], {}, {"image/png": tiny_png()}),
]


@pytest.mark.parametrize("case", ALLOWED, ids=lambda case: ",".join(case[0]) or "nothing")
async def test_the_allowed_types_are_those_of_the_configuration_and_no_others(
    case: tuple[list[str], dict[str, bytes], dict[str, bytes]], world: World
) -> None:
    types, served, refused = case
    async with serving(world, world.config(blob={"allowed_types": types})) as client:
        for content_type, data in served.items():
            did, cid = world.add_blob(data)
            reply = await client.get(f"/blob/{did}/{cid}")
            assert (reply.status, reply.headers["content-type"]) == (200, content_type)
            assert reply.headers["content-disposition"].startswith("attachment;")
        for data in refused.values():
            did, cid = world.add_blob(data)
            assert (await client.get(f"/blob/{did}/{cid}")).status == 400


async def test_a_matching_etag_is_a_304_without_a_fetch_unless_the_blob_is_blocked(
    world: World,
) -> None:
    did, cid = world.add_blob()
    async with serving(world) as client:
        for value in (f'"{cid}"', f'W/"{cid}"', f'"a", "{cid}"'):
            reply = await client.get(f"/blob/{did}/{cid}", ("If-None-Match", value))
            assert (reply.status, reply.body) == (304, b"")
            assert reply.headers == {
                "etag": f'"{cid}"',
                "cache-control": "public, max-age=86400",
                **SECURITY,
            }
        assert world.pds.requests == world.plc.requests == []
        await client.service.moderator.block(Selection(None, cid), by="a test")
        reply = await client.get(f"/blob/{did}/{cid}", ("If-None-Match", f'"{cid}"'))
        assert (reply.status, "etag" in reply.headers) == (404, False)


async def test_an_original_is_not_fetched_while_clients_leave_too_many_untaken(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Catches slow clients that are cut, ask again, and have 10 MB fetched each time."""
    transfers = Transfers(4 * LARGE)
    monkeypatch.setattr(proxy.web.responder, "TRANSFERS", transfers)
    did, cid = world.add_blob()
    async with serving(world) as client:
        with transfers.begin(bytes(2 * LARGE + 1)):
            reply = await client.get(f"/blob/{did}/{cid}")
            assert (reply.status, reply.headers["retry-after"]) == (503, "2")
            assert world.pds.blob_requests == 0
            assert (await client.get(img(did, cid))).status == 200
        with transfers.begin(bytes(2 * LARGE)):
            assert (await client.get(f"/blob/{did}/{cid}")).status == 200


async def test_the_etag_of_an_original_is_not_that_of_a_picture_made_from_it(
    world: World,
) -> None:
    did, cid = world.add_blob()
    async with serving(world) as client:
        etag = (await client.get(img(did, cid))).headers["etag"]
        reply = await client.get(f"/blob/{did}/{cid}", ("If-None-Match", etag))
        assert reply.status == 200


async def test_bytes_that_are_not_the_cids_are_never_passed_on(world: World) -> None:
    did, cid = world.add_blob()
    world.pds.fault = with_body(lambda data: data[:-1] + b"?")
    async with serving(world) as client:
        reply = await client.get(f"/blob/{did}/{cid}")
    assert (reply.status, reply.body) == (502, b"blob does not match its CID\n")


REFUSED: dict[str, tuple[int, str, dict[str, Any]]] = {
    "/blob/did:plc:a/{cid}": (400, "invalid DID format\n", {}),
    "/blob/{did}/bafk": (400, "invalid CID format\n", {}),
    "/blob/{did}/{cid}@png": (400, "invalid CID format\n", {}),
    "/blob/{did}/{cid}/": (400, "invalid request: a trailing slash\n", {}),
    "/blob/{did}": (400, "invalid request\n", {}),
    "/blob/": (400, "invalid request\n", {}),
    "/blob/{did}/{cid}%00": (400, "invalid CID format\n", {}),
    "/blob//{did}/{cid}": (400, "invalid request\n", {}),
    "/blob/{did}/" + cid_of(b"not there"): (404, "blob not found\n", {}),
    "/blob/{did}/{cid}": (400, "image too large\n", {"fetch": {"max_source_mb": 0.00001}}),
}


@pytest.mark.parametrize("path", REFUSED)
async def test_refusals_are_those_of_images(path: str, world: World) -> None:
    status, text, sections = REFUSED[path]
    did, cid = world.add_blob()
    async with serving(world, world.config(**sections)) as client:
        reply = await client.get(path.format(did=did, cid=cid))
    assert (reply.status, reply.text) == (status, text)
    assert reply.headers == {
        "content-type": "text/plain; charset=utf-8",
        "content-length": str(len(reply.body)),
        "cache-control": "public, max-age=60" if status == 404 else "no-store",
        **SECURITY,
    }


async def test_originals_are_not_kept_on_disk_as_results(world: World) -> None:
    did, cid = world.add_blob()
    async with serving(world) as client:
        assert (await client.get(f"/blob/{did}/{cid}")).status == 200
    images = world.cache_path / "images"
    assert [path for path in images.rglob("*") if path.is_file()] == []
