"""``/img``: every status, every header, every way to spell a request."""

from __future__ import annotations

import json
import re
from collections.abc import Awaitable, Callable
from functools import partial
from io import BytesIO
from typing import Any

import pytest
import trio
import trio.testing
from PIL import Image, PngImagePlugin

import proxy.web.responder
from proxy.imaging.workers import forks
from proxy.model.formats import Format
from proxy.model.identifiers import Cid, Did
from proxy.model.presets import DEFAULT_PRESETS
from proxy.model.selection import Selection
from proxy.service import Service
from tests.fakes.faults import answers, gated, hang, redirects, reset, truncated, with_body
from tests.fakes.sites import cid_of, document, new_plc_did, pds_service
from tests.fakes.world import World, tiny_jpeg, tiny_png
from tests.imaging import sources
from tests.imaging.moving import saved
from tests.logs import logged_by
from tests.processes import files_in, until
from tests.web import SECURITY, SHARED, Client, Exchange, Reply, img, serving

pytestmark = pytest.mark.usefixtures("both_ways")

PLAIN = "text/plain; charset=utf-8"

OTHER_METHODS = ["POST", "PUT", "DELETE", "PATCH", "TRACE", "CONNECT", "PROPFIND", "get"]


def picture(format: str, size: tuple[int, int] = (16, 12), **options: Any) -> bytes:
    out = BytesIO()
    Image.linear_gradient("L").resize(size).convert("RGB").save(out, format, **options)
    return out.getvalue()


def moving(format: str) -> bytes:
    frames = [Image.new("RGB", (16, 12), color) for color in ("red", "lime", "blue")]
    out = BytesIO()
    frames[0].save(out, format, save_all=True, append_images=frames[1:], duration=50)
    return out.getvalue()


# What is answered when all is well.


async def test_a_200_has_exactly_the_headers_of_the_contract_no_more_and_no_less(
    world: World,
) -> None:
    did, cid = world.add_blob(tiny_jpeg())
    async with serving(world) as client:
        miss = await client.get(img(did, cid))
        hit = await client.get(img(did, cid))
    assert miss.status == hit.status == 200
    timing = miss.headers.pop("server-timing")
    assert re.fullmatch(
        r"resolve;dur=[\d.]+, fetch;dur=[\d.]+, queue;dur=[\d.]+, process;dur=[\d.]+", timing
    )
    expected = {
        "content-type": "image/jpeg",
        "content-length": str(len(miss.body)),
        "cache-control": "public, max-age=86400",
        "content-disposition": f'inline; filename="{cid}.jpg"',
        **SECURITY,
        **SHARED,
    }
    etag = miss.headers.pop("etag")
    assert re.fullmatch(rf'"avatar_thumbnail-{cid}-[0-9a-f]{{6,}}"', etag)
    assert miss.headers == {**expected, "x-cache": "miss"}
    # Nothing took place for a hit, so it has no durations to tell.
    assert hit.headers == {**expected, "etag": etag, "x-cache": "hit"}
    assert hit.body == miss.body
    assert Image.open(BytesIO(hit.body)).size == (128, 128)


FORMATS: list[tuple[str, Callable[[], bytes], str, str, str, str]] = [
    # name, source, preset, suffix, content type, extension
    ("jpeg", partial(picture, "JPEG"), "avatar_thumbnail", "", "image/jpeg", "jpg"),
    ("png", partial(picture, "PNG"), "avatar_thumbnail", "", "image/png", "png"),
    ("webp", partial(picture, "WEBP"), "avatar_thumbnail", "", "image/jpeg", "jpg"),
    ("avif", partial(picture, "AVIF"), "avatar_thumbnail", "", "image/jpeg", "jpg"),
    ("gif", partial(moving, "GIF"), "avatar_thumbnail", "", "image/jpeg", "jpg"),
    ("gif as it is", partial(moving, "GIF"), "content_full", "", "image/gif", "gif"),
    ("webp as it is", partial(moving, "WEBP"), "content_full", "", "image/webp", "webp"),
    ("to jpeg", partial(picture, "PNG"), "avatar_thumbnail", "@jpeg", "image/jpeg", "jpg"),
    ("to png", partial(picture, "JPEG"), "avatar_thumbnail", "@png", "image/png", "png"),
    ("to webp", partial(picture, "JPEG"), "avatar_thumbnail", "@webp", "image/webp", "webp"),
    ("to avif", partial(picture, "JPEG"), "avatar_thumbnail", "@avif", "image/avif", "avif"),
    ("gif to webp", partial(moving, "GIF"), "content_full", "@webp", "image/webp", "webp"),
]


@pytest.mark.parametrize("case", FORMATS, ids=lambda case: case[0])
async def test_type_and_file_name_are_those_of_the_bytes_that_are_sent(
    case: tuple[str, Callable[[], bytes], str, str, str, str], world: World
) -> None:
    _name, make, preset, suffix, content_type, extension = case
    did, cid = world.add_blob(make())
    async with serving(world) as client:
        for state in ("miss", "hit"):
            reply = await client.get(img(did, cid, preset, suffix))
            assert (reply.status, reply.headers["x-cache"]) == (200, state)
            assert reply.headers["content-type"] == content_type
            name = f'inline; filename="{cid}.{extension}"'
            assert reply.headers["content-disposition"] == name
            assert Image.open(BytesIO(reply.body)).get_format_mimetype() == content_type


@pytest.mark.parametrize("size", [(160, 12), (1700, 24)], ids=["fits", "too wide"])
@pytest.mark.parametrize("suffix", ["", "@webp"])
@pytest.mark.parametrize("format", ["GIF", "WEBP", "PNG", "AVIF"])
async def test_what_moves_is_served_moving_from_the_cache_too(
    format: str, suffix: str, size: tuple[int, int], world: World
) -> None:
    """Catches frames that are lost on the way, and a hit that is looked for in other formats."""
    photo = sources.photo(*size)
    frames = [Image.fromarray(each) for each in (photo, photo[::-1], photo[:, ::-1])]
    # So that a smaller WebP is not larger than a source that is one too.
    fine = {"lossless": True} if format == "WEBP" else {}
    did, cid = world.add_blob(saved(format, frames, duration=50, **fine))
    served = "WEBP" if suffix else format
    async with serving(world) as client:
        for state in ("miss", "hit"):
            reply = await client.get(img(did, cid, "content_full", suffix))
            assert (reply.status, reply.headers["x-cache"]) == (200, state)
            assert reply.headers["content-type"] == Format[served].content_type
            with Image.open(BytesIO(reply.body)) as image:
                assert (image.format, getattr(image, "n_frames", 1)) == (served, 3)
                assert image.width == min(size[0], 1600)


async def test_requests_that_share_a_miss_say_so_and_one_fetch_serves_them(world: World) -> None:
    did, cid = world.add_blob()
    gate, seen = trio.Event(), trio.Event()
    world.pds.fault = gated(gate, seen=seen)
    replies: list[Reply] = []

    async def ask() -> None:
        replies.append(await client.get(img(did, cid)))

    async with serving(world) as client:
        async with trio.open_nursery() as nursery:
            for _ in range(5):
                nursery.start_soon(ask)
            await seen.wait()
            await trio.testing.wait_all_tasks_blocked()
            gate.set()
        states = [reply.headers["x-cache"] for reply in replies]
        assert sorted(states) == ["coalesced"] * 4 + ["miss"]
        assert len({reply.body for reply in replies}) == 1
        assert await client.metric("imageproxy_coalesced_total") == 4
    assert world.pds.blob_requests == 1


async def test_head_answers_as_get_without_the_body_on_a_miss_and_on_a_hit(world: World) -> None:
    did, cid = world.add_blob()
    async with serving(world) as client:
        first = await client.head(img(did, cid))
        got = await client.get(img(did, cid))
        second = await client.head(img(did, cid))
    assert (first.status, first.body, first.headers["x-cache"]) == (200, b"", "miss")
    assert first.headers["content-length"] == str(len(got.body)) != "0"
    assert (second.status, second.body, second.pairs) == (200, b"", got.pairs)


@pytest.mark.parametrize("target", ["/img/nothing/plain/did:plc:a/b", "/blob/did:plc:a/b", "/img/"])
async def test_head_answers_an_error_as_get_does_without_the_body(
    target: str, world: World
) -> None:
    async with serving(world) as client:
        got, head = await client.get(target), await client.head(target)
    assert (head.status, head.pairs, head.body) == (got.status, got.pairs, b"")
    assert got.status == 400


async def test_options_says_what_a_page_of_another_origin_may_ask(world: World) -> None:
    """Catches a player whose preflight fails, and a 204 that announces a body."""
    did, cid = world.add_blob()
    async with serving(world) as client:
        for path in (img(did, cid), f"/blob/{did}/{cid}", f"/avatar/{did}", "/banner/x/y"):
            reply = await client.ask(
                path, ("Origin", "https://a.example"), ("Access-Control-Request-Method", "GET"),
                method="OPTIONS",
            )  # fmt: skip
            assert (reply.status, reply.body) == (204, b"")
            assert reply.headers == {
                "allow": "GET, HEAD, OPTIONS",
                "access-control-allow-methods": "GET, HEAD, OPTIONS",
                "access-control-allow-headers": "*",
                "access-control-max-age": "86400",
                **SECURITY,
            }
    assert world.pds.requests == world.plc.requests == []


@pytest.mark.parametrize("method", OTHER_METHODS)
async def test_any_other_method_is_a_405_with_allow_and_sends_no_request(
    method: str, world: World
) -> None:
    did, cid = world.add_blob()
    async with serving(world) as client:
        for target in (img(did, cid), f"/blob/{did}/{cid}", "/img/x", "/blob/"):
            reply = await client.ask(target, method=method, body=b"x" * 1000)
            assert (reply.status, reply.headers["allow"]) == (405, "GET, HEAD, OPTIONS")
            assert reply.headers["content-type"] == PLAIN
            assert "no-store" in reply.headers["cache-control"]
    assert world.pds.requests == world.plc.requests == []


# Conditional requests.


def quoted_variants(etag: str) -> dict[str, str]:
    return {
        "the tag": etag,
        "as a weak tag": f"W/{etag}",
        "in a list": f'"a", {etag}, "b"',
        "in a list without blanks": f'"a",{etag},"b"',
        "in a list with empty elements": f', ,"a",, {etag}',
        "after weak tags": f'W/"a", W/{etag}',
        "after a tag with a comma in it": f'"a,b", {etag}',
    }


async def test_a_matching_etag_is_a_304_in_every_form_of_the_rfc_and_touches_no_pds(
    world: World,
) -> None:
    did, cid = world.add_blob()
    async with serving(world) as client:
        etag = (await client.get(img(did, cid))).headers["etag"]
        world.pds.requests.clear()
        world.plc.requests.clear()
        await client.service.moderator.purge(Selection(did), by="a test")
        for name, value in quoted_variants(etag).items():
            for method in ("GET", "HEAD"):
                reply = await client.ask(img(did, cid), ("If-None-Match", value), method=method)
                assert (reply.status, reply.body) == (304, b""), name
                assert reply.headers == {
                    "etag": etag,
                    "cache-control": "public, max-age=86400",
                    **SECURITY,
                }, name
        # One header in two lines is one list.
        lines = (("If-None-Match", '"a"'), ("If-None-Match", etag))
        assert (await client.get(img(did, cid), *lines)).status == 304
        # Nobody was asked, also for a picture that is no longer cached.
        assert world.pds.requests == world.plc.requests == []


@pytest.mark.parametrize("star", ["*", "  * "])
async def test_a_star_is_a_304_for_what_is_in_the_cache_and_for_nothing_else(
    star: str, world: World
) -> None:
    """Catches a 304 for a picture that does not exist (RFC 9110, section 13.1.2)."""
    did, cid = world.add_blob()
    missing = cid_of(b"nobody has this")
    any_tag = ("If-None-Match", star)
    async with serving(world) as client:
        assert (await client.get(img(did, missing), any_tag)).status == 404
        assert (await client.get(f"/blob/{did}/{missing}", any_tag)).status == 404
        made = await client.get(img(did, cid), any_tag)
        assert (made.status, made.headers["x-cache"]) == (200, "miss")
        for method in ("GET", "HEAD"):
            found = await client.ask(img(did, cid), any_tag, method=method)
            assert (found.status, found.body) == (304, b"")
            assert found.headers["etag"] == made.headers["etag"]
    async with serving(world, world.config(cache={"memory_mb": 0})) as client:
        assert (await client.get(img(did, cid), any_tag)).status == 304, "from the disk"
        await client.service.moderator.purge(Selection(did), by="a test")
        assert (await client.get(img(did, cid), any_tag)).status == 200
        # Originals are not in the cache.
        assert (await client.get(f"/blob/{did}/{cid}", any_tag)).status == 200


async def test_an_etag_of_another_preset_format_or_spelling_is_answered_with_the_picture(
    world: World,
) -> None:
    did, cid = world.add_blob()
    async with serving(world) as client:
        etag = (await client.get(img(did, cid))).headers["etag"]
        others = [
            (await client.get(img(did, cid, "avatar_small"))).headers["etag"],
            (await client.get(img(did, cid, suffix="@webp"))).headers["etag"],
            f'"avatar_thumbnail-{cid}"',  # the seed's, without a fingerprint
            etag.strip('"'),
            etag.upper(),
            etag.replace("-", "_"),
            f"w/{etag}",
            f'"{etag}',
            "",
            '""',
            '"*"',
            "\xff\xfe",
        ]
        assert len({etag, *others}) == len(others) + 1
        for other in others:
            reply = await client.get(img(did, cid), ("If-None-Match", other))
            assert (reply.status, reply.body != b"") == (200, True), other


async def test_a_304_is_answered_for_a_picture_that_was_never_asked_for_without_a_fetch(
    world: World,
) -> None:
    # The bytes of a CID never change, so a client that has the tag has the picture.
    did, cid = new_plc_did(), cid_of(b"nobody has this")
    async with serving(world) as client:
        fingerprint = client.service.config.presets["avatar"].fingerprint(None)
        etag = f'"avatar-{cid}-{fingerprint}"'
        reply = await client.get(img(did, cid, "avatar"), ("If-None-Match", etag))
        assert (reply.status, reply.headers["etag"]) == (304, etag)
    assert world.plc.requests == []


@pytest.mark.parametrize("by", ["did", "cid", "pair"])
async def test_what_is_blocked_is_a_404_before_the_cache_and_before_a_304(
    by: str, world: World
) -> None:
    did, cid = world.add_blob()
    selection = {"did": Selection(did), "cid": Selection(None, cid), "pair": Selection(did, cid)}
    async with serving(world) as client:
        served = await client.get(img(did, cid))
        await client.service.moderator.block(selection[by], by="a test")
        for headers in (
            (),
            (("If-None-Match", served.headers["etag"]),),
            (("If-None-Match", "*"),),
        ):
            for target in (img(did, cid), f"/blob/{did}/{cid}"):
                reply = await client.get(target, *headers)
                assert (reply.status, reply.body) == (404, b"blob not found\n")
                assert "etag" not in reply.headers
        assert files_in(world.cache_path) == []
        assert await client.metric("imageproxy_blocked_total") == 6


async def test_a_blocked_blob_cannot_be_told_from_one_that_does_not_exist(world: World) -> None:
    did, cid = world.add_blob()
    async with serving(world) as client:
        await client.service.moderator.block(
            Selection(did), by="a test", reason="nobody's business"
        )
        blocked = await client.get(img(did, cid))
        missing = await client.get(img(world.make_account(), cid_of(b"not there")))
    assert (blocked.status, blocked.pairs, blocked.body) == (
        missing.status,
        missing.pairs,
        missing.body,
    )


# The error table.

ONE_PIXEL_TOO_MANY = {"process": {"max_megapixels": (16 * 12 - 1) / 1e6}}


async def no_such_blob(world: World) -> str:
    return img(world.make_account(), cid_of(b"not there"))


async def no_such_did(world: World) -> str:
    return img(new_plc_did(), cid_of(b"anything"))


async def text_blob(world: World) -> str:
    return img(*world.add_blob(b"only text"))


async def empty_blob(world: World) -> str:
    return img(*world.add_blob(b""))


async def large_picture(world: World) -> str:
    return img(*world.add_blob(picture("PNG")))


async def large_blob(world: World) -> str:
    return img(*world.add_blob(picture("PNG") + bytes(2000)))


async def corrupt_png(world: World) -> str:
    data = picture("PNG")
    return img(*world.add_blob(data[:40] + bytes(len(data) - 40)))


async def truncated_jpeg(world: World) -> str:
    return img(*world.add_blob(picture("JPEG", (300, 200))[:-900]))


def directory_says(*services: Any) -> Callable[[World], Awaitable[str]]:
    async def prepare(world: World) -> str:
        did, cid = world.add_blob()
        world.plc.documents[did] = document(did, *services)
        return img(did, cid)

    return prepare


async def garbage_document(world: World) -> str:
    did, cid = world.add_blob()
    world.plc.documents[did] = "<html>not a document</html>"
    return img(did, cid)


async def document_of_another(world: World) -> str:
    did, cid = world.add_blob()
    world.plc.documents[did] = document(new_plc_did(), pds_service(world.pds.url))
    return img(did, cid)


async def directory_down(world: World) -> str:
    world.plc.refuses = -1
    return img(*world.add_blob())


def directory_plays(fault: Any) -> Callable[[World], Awaitable[str]]:
    async def prepare(world: World) -> str:
        world.plc.fault = fault
        return img(*world.add_blob())

    return prepare


async def directory_hangs(world: World) -> str:
    world.plc.fault = hang
    return img(*world.add_blob())


async def web_domain_unknown(world: World) -> str:
    return img("did:web:nowhere.example", cid_of(b"anything"))


async def pds_down(world: World) -> str:
    world.pds.refuses = -1
    return img(*world.add_blob())


def pds_plays(fault: Any) -> Callable[[World], Awaitable[str]]:
    async def prepare(world: World) -> str:
        world.pds.fault = fault
        return img(*world.add_blob())

    return prepare


async def forbidden_pds(world: World) -> str:
    world.network.forbids.add(world.pds.host)
    return img(*world.add_blob())


def spelled(path: str) -> Callable[[World], Awaitable[str]]:
    async def prepare(world: World) -> str:
        did, cid = world.add_blob()
        return path.format(did=did, cid=cid)

    return prepare


PATH = "/img/{preset}/plain/{did}/{cid}"

ERRORS: dict[str, tuple[int, str, Callable[[World], Awaitable[str]], dict[str, Any]]] = {
    "unknown preset": (400, "invalid preset: huge", spelled("/img/huge/plain/{did}/{cid}"), {}),
    "preset in capitals": (400, "invalid preset: A", spelled("/img/Avatar/plain/{did}/{cid}"), {}),
    "empty preset": (400, "invalid preset: ", spelled("/img//plain/{did}/{cid}"), {}),
    "bad DID": (400, "invalid DID format", spelled("/img/avatar/plain/did:plc:a/{cid}"), {}),
    "DID method": (400, "invalid DID format", spelled("/img/avatar/plain/did:key:zQ3/{cid}"), {}),
    "empty DID": (400, "invalid DID format", spelled("/img/avatar/plain//{cid}"), {}),
    "web DID in capitals": (
        400,
        "invalid DID format",
        spelled("/img/avatar/plain/did:web:Example.com/{cid}"),
        {},
    ),
    "bad CID": (400, "invalid CID format", spelled("/img/avatar/plain/{did}/bafk"), {}),
    "empty CID": (400, "invalid CID format", spelled("/img/avatar/plain/{did}/"), {}),
    "bad format": (400, "invalid format", spelled("/img/avatar/plain/{did}/{cid}@gif"), {}),
    "another format": (
        400,
        "invalid format: bmp (jpeg, png, webp, avif)\n",
        spelled("/img/avatar/plain/{did}/{cid}@bmp"),
        {},
    ),
    "trailing slash": (
        400,
        "invalid request: a trailing slash\n",
        spelled("/img/avatar/plain/{did}/{cid}/"),
        {},
    ),
    "empty format": (400, "invalid format", spelled("/img/avatar/plain/{did}/{cid}@"), {}),
    "two formats": (400, "invalid format", spelled("/img/avatar/plain/{did}/{cid}@png@png"), {}),
    "text": (400, "unsupported image format", text_blob, {}),
    "nothing": (400, "unsupported image format", empty_blob, {}),
    "pixels": (400, "image too large", large_picture, ONE_PIXEL_TOO_MANY),
    "bytes": (400, "image too large", large_blob, {"fetch": {"max_source_mb": 0.001}}),
    "no such blob": (404, "blob not found", no_such_blob, {}),
    "no such DID": (404, "blob not found", no_such_did, {}),
    "corrupt": (422, "image could not be decoded", corrupt_png, {}),
    "cut off": (422, "image could not be decoded", truncated_jpeg, {}),
    "garbage from the directory": (502, "failed to resolve DID", garbage_document, {}),
    "a document of another": (502, "failed to resolve DID", document_of_another, {}),
    "directory down": (502, "failed to resolve DID", directory_down, {}),
    "domain unknown": (502, "failed to resolve DID", web_domain_unknown, {}),
    "no PDS": (502, "no PDS endpoint found", directory_says(), {}),
    "no endpoint": (502, "no PDS endpoint found", directory_says(pds_service({"a": 1})), {}),
    "PDS down": (502, "failed to fetch blob from PDS", pds_down, {}),
    "reset": (502, "failed to fetch blob from PDS", pds_plays(reset), {}),
    "forbidden": (502, "failed to fetch blob from PDS", forbidden_pds, {}),
    "bad status": (502, "failed to fetch blob from PDS", pds_plays(answers(500)), {}),
    "PDS is asked too often": (503, "busy", pds_plays(answers(429)), {}),
    "PDS names a pause": (503, "busy", pds_plays(answers(429, b"", ("Retry-After", "9"))), {}),
    "directory is asked too often": (503, "busy", directory_plays(answers(429)), {}),
    "400 of another kind": (502, "failed to fetch blob from PDS", pds_plays(answers(400)), {}),
    "redirects": (502, "failed to fetch blob from PDS", pds_plays(redirects("/xrpc/a?b")), {}),
    "truncated": (502, "failed to fetch blob from PDS", pds_plays(truncated), {}),
    "other bytes": (
        502,
        "blob does not match its CID",
        pds_plays(with_body(lambda data: data + b" ")),
        {},
    ),
    "PDS hangs": (504, "request timed out", pds_plays(hang), {"fetch": {"timeout": 0.1}}),
    "directory hangs": (504, "request timed out", directory_hangs, {"fetch": {"timeout": 0.1}}),
}


def check_error(reply: Reply, status: int, beginning: str) -> None:
    assert (reply.status, reply.text[: len(beginning)]) == (status, beginning)
    assert reply.text.endswith("\n")
    assert reply.text.count("\n") == 1
    expected = {
        "content-type": PLAIN,
        "content-length": str(len(reply.body)),
        "cache-control": "public, max-age=60" if status == 404 else "no-store",
        **SECURITY,
    }
    if status == 503:
        assert re.fullmatch(r"[1-9]\d*", reply.headers.pop("retry-after"))
    assert reply.headers == expected


@pytest.mark.parametrize("name", ERRORS)
async def test_every_row_of_the_error_table_has_its_status_line_and_headers(
    name: str, world: World
) -> None:
    status, beginning, prepare, sections = ERRORS[name]
    target = await prepare(world)
    async with serving(world, world.config(**sections)) as client:
        reply = await client.get(target)
        check_error(reply, status, beginning)
        for secret in ("pds.example", "plc.example", "/", "Traceback", "did:", "10.", "127."):
            assert secret not in reply.text
        # The server goes on.
        assert (await client.get("/healthz")).status == 200
    assert files_in(world.cache_path) == []


async def test_a_full_fetch_channel_is_a_503_with_retry_after_while_hits_are_served(
    world: World,
) -> None:
    warm = world.add_blob()
    cold = [world.add_blob(tiny_png((0, 0, shade))) for shade in range(3)]
    small = {"fetch": {"queue_size": 1, "workers": 1, "per_host": 1}}
    gate, seen = trio.Event(), trio.Event()
    async with serving(world, world.config(**small)) as client, trio.open_nursery() as nursery:
        assert (await client.get(img(*warm))).status == 200
        # Resolved beforehand, as the directory is asked through the same channel.
        for did, _cid in cold:
            await client.get(img(did, cid_of(b"not there")))
        world.pds.fault = gated(gate, seen=seen)
        nursery.start_soon(client.get, img(*cold[0]))
        await seen.wait()
        nursery.start_soon(client.get, img(*cold[1]))
        await until_metric(client, "imageproxy_fetch_queue_depth", 1)
        check_error(await client.get(img(*cold[2])), 503, "busy")
        assert await client.metric('imageproxy_rejected_total{stage="fetch"}') == 1
        assert (await client.get(img(*warm))).headers["x-cache"] == "hit"
        gate.set()


async def until_metric(client: Client, sample: str, value: float) -> None:
    async def reached() -> bool:
        return await client.metric(sample) == value

    await until(reached)


async def test_a_defect_is_a_500_that_tells_nothing_and_the_next_request_is_served(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    did, cid = world.add_blob()

    async def broken(*_arguments: object) -> None:
        raise RuntimeError("/etc/secret at 10.0.0.1")

    async with serving(world) as client:
        with monkeypatch.context() as patch:
            patch.setattr(Service, "get", broken)
            check_error(await client.get(img(did, cid)), 500, "internal server error")
        assert (await client.get(img(did, cid))).status == 200


IMPORTS_LATE = """
import sys; sys.path[:] = sys.argv[2:]
from PIL import PngImagePlugin
def load_end(self):
    if self.size != (24, 16):  # that of the pictures which a worker tries first
        import wave
PngImagePlugin.PngImageFile.load_end = load_end
from proxy.imaging.workers.fork_server import main
main(int(sys.argv[1]))
"""


@pytest.mark.parametrize("isolation", ["thread", "sandbox"])
async def test_a_defect_in_a_decoder_is_a_500_that_is_logged_counted_and_not_remembered(
    isolation: str, world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Catches a module that the sandbox keeps from a decoder, told as a broken picture."""
    did, cid = world.add_blob(tiny_png())
    defects = "imageproxy_image_defects_total"
    monkeypatch.setattr(forks, "BOOTSTRAP", IMPORTS_LATE)
    async with serving(world, world.config(process={"isolation": isolation})) as client:
        assert await client.metric(defects) == 0
        with monkeypatch.context() as patch, logged_by(proxy.web.responder, monkeypatch) as lines:

            def load_end(_: object) -> None:
                raise ImportError("no module named wave")

            if isolation == "thread":
                patch.setattr(PngImagePlugin.PngImageFile, "load_end", load_end)
            for asked in (1, 2):
                check_error(await client.get(img(did, cid)), 500, "internal server error")
                assert await client.metric(defects) == asked
        told = [line for line in lines if line["event"] == "defect"]
        assert [line["log_level"] for line in told] == ["error"] * 2
        assert all("wave" in str(line["exc_info"]) for line in told)
        if isolation == "thread":
            assert (await client.get(img(did, cid))).status == 200
            assert await client.metric(defects) == 2


@pytest.mark.parametrize("target", ["/img/huge/plain/a/b", "/img/avatar/plain/a/b"])
async def test_errors_are_plain_text_not_json_and_not_html(target: str, world: World) -> None:
    async with serving(world) as client:
        reply = await client.get(target, ("Accept", "application/json, text/html"))
    assert reply.headers["content-type"] == PLAIN
    assert not reply.text.startswith(("{", "<"))


# Forbidden destinations.


async def test_a_forbidden_destination_looks_like_a_refused_connection_to_the_byte(
    world: World,
) -> None:
    endpoints = {
        "refused": "https://closed.example",
        "no such name": "https://nowhere.example",
        "refused by the guard at the connection": "https://forbidden.example",
        "an address of this machine": "https://127.0.0.1",
        "an address of this network": "https://10.0.0.1:8443",
        "cloud metadata": "http://169.254.169.254",
        "a port of another service": "https://pds.example:22",
        "not an origin": "https://user@pds.example/path?query",
        "not a URL": "file:///etc/passwd",
    }
    world.network.forbids.add("forbidden.example")
    replies = {}
    async with serving(world) as client:
        for name, endpoint in endpoints.items():
            did = new_plc_did()
            world.plc.documents[did] = document(did, pds_service(endpoint))
            replies[name] = await client.get(img(did, cid_of(b"anything")))
        # Inside, they are told apart.
        forbidden = 'imageproxy_fetch_duration_seconds_count{outcome="forbidden"}'
        assert await client.metric(forbidden) == len(endpoints) - 2
    check_error(replies["refused"], 502, "failed to fetch blob from PDS")
    for name, reply in replies.items():
        assert reply == replies["refused"], name


async def test_a_forbidden_domain_of_a_web_did_looks_like_a_refused_connection_to_the_byte(
    world: World,
) -> None:
    world.network.forbids.add("forbidden.example")
    cid = cid_of(b"anything")
    async with serving(world) as client:
        refused = await client.get(img("did:web:nowhere.example", cid))
        check_error(refused, 502, "failed to resolve DID")
        for did in ("did:web:forbidden.example", "did:web:host.internal", "did:web:localhost"):
            assert await client.get(img(did, cid)) == refused, did
    assert ("localhost", 80) not in world.network.asked


# Spellings.


async def one_entry(
    world: World, spell: Callable[[Did, Cid], list[str]], *, status: int = 200
) -> None:
    """Every spelling is the picture that the plain path is, and none makes another entry."""
    did, cid = world.add_blob()
    async with serving(world) as client:
        plain = await client.get(img(did, cid))
        assert plain.status == 200
        for target in spell(did, cid):
            reply = await client.get(target)
            assert reply.status == status, target
            if status == 200:
                assert reply.headers["x-cache"] == "hit", target
                assert reply.headers["etag"] == plain.headers["etag"]
    # The application has ended, and all writes are done.
    assert len(files_in(world.cache_path)) == 1
    assert world.pds.blob_requests == 1


async def test_a_query_string_makes_no_second_entry_and_no_second_fetch(world: World) -> None:
    await one_entry(
        world,
        lambda did, cid: [
            img(did, cid) + query
            for query in (
                "?",
                "?w=1",
                "?cid=other&did=other",
                "?@png",
                "?/../../x",
                "?%00%ff",
                "??",
            )
        ],
    )


async def test_jpg_is_the_entry_of_jpeg(world: World) -> None:
    """Catches a second entry, and another ETag, for URLs made for Bluesky's CDN."""
    did, cid = world.add_blob()
    async with serving(world) as client:
        made = await client.get(img(did, cid, suffix="@jpeg"))
        other = await client.get(img(did, cid, suffix="@jpg"))
    assert (made.status, other.status, other.headers["x-cache"]) == (200, 200, "hit")
    assert other.headers["etag"] == made.headers["etag"]


async def test_percent_encoding_is_undone_once_and_makes_no_second_entry(world: World) -> None:
    await one_entry(
        world,
        lambda did, cid: [
            img(did, cid).replace(":", "%3A"),
            img(did, cid).replace(":", "%3a"),
            img(did, cid).replace("img", "%69mg"),
            img(did, cid).replace("plain/", "plain%2F"),
            "".join(c if c == "/" else f"%{ord(c):02x}" for c in img(did, cid)),
        ],
    )


async def test_every_other_spelling_is_refused_instead_of_being_a_second_entry(
    world: World,
) -> None:
    await one_entry(
        world,
        lambda did, cid: [
            img(did, cid).replace(":", "%253A"),  # encoded twice
            img(did.upper(), cid),
            img(did.replace("did:", "DID:"), cid),
            img(did, cid.upper()),
            img(did, cid + "="),
            img(did, f"z{cid[1:]}"),
            img(did, cid) + "/",
            img(did, cid) + "/extra",
            img(did, cid) + "%00",
            img(did, cid) + "%20",
            img(did, cid) + "%0d%0aX-Evil:%201",
            img(did, cid).replace("/plain/", "/plain//"),
            img(did, cid).replace("/plain/", "/PLAIN/"),
            img(did, cid).replace("/plain/", "/plain/./"),
            img(did, cid).replace("/plain/", "/x/../plain/"),
            img(did, cid).replace("/img/", "/img//"),
            img(did, cid).replace("/img/", "/img/%2e%2e/img/"),
            img(did + "%20", cid),
            img(did + "%00", cid),
            img("%ff%fe", cid),
            img(did, "%ff%fe" + cid),
            img(did, "%e2%80%8b" + cid),  # a zero-width blank
            img(did, cid, suffix="@JPEG"),
            img(did, cid, suffix="@JPG"),
            "/img/" + "a" * 100_000,
            "/img/" + "%2f" * 10_000,
            img(did, cid) + "a" * 100_000,
            img("did:web:" + "a." * 50_000 + "example", cid),
            "/img/",
            "/img/avatar",
        ],
        status=400,
    )


async def test_a_path_with_another_beginning_is_not_an_image(world: World) -> None:
    await one_entry(
        world,
        lambda did, cid: [
            "/" + img(did, cid),
            "/./" + img(did, cid)[1:],
            "/IMG" + img(did, cid)[4:],
        ],
        status=404,
    )


async def test_a_web_did_with_a_port_is_one_owner_in_its_one_spelling(world: World) -> None:
    did = Did("did:web:localhost%3A8000")
    web = world.make_web_account(did)
    assert (web.host, web.port) == ("localhost", 8000)
    cid = world.pds.add_blob(did, tiny_png())
    config = world.config(fetch={"allow_private_hosts": True})
    async with serving(world, config) as client:
        path = f"/img/avatar_thumbnail/plain/did:web:localhost%253A8000/{cid}"
        assert (await client.get(path)).headers["x-cache"] == "miss"
        assert (await client.get(path)).headers["x-cache"] == "hit"
        for other in (
            "localhost%3A8000",
            "localhost:8000",
            "localhost%253a8000",
            "localhost%25253A8000",
        ):
            reply = await client.get(f"/img/avatar_thumbnail/plain/did:web:{other}/{cid}")
            assert (reply.status, reply.text) == (400, "invalid DID format\n"), other
    assert len(files_in(world.cache_path)) == 1


async def test_a_name_that_is_echoed_is_cut_and_escaped(world: World) -> None:
    async with serving(world) as client:
        reply = await client.get("/img/%0d%0aX:%201%3Cscript%3E%ff/plain/a/b")
        assert reply.text.startswith("invalid preset: \\r\\nX: 1<script>\\ufffd (")
        assert reply.headers["content-type"] == PLAIN
        long = await client.get(f"/img/{'%F0%9F%98%80' * 1000}/plain/a/b")
        assert len(long.body) < 1000


UNUSUAL_HEADERS = {
    "accept-encoding": [("Accept-Encoding", "gzip, br, zstd")],
    "no encoding at all": [("Accept-Encoding", "identity;q=0, *;q=0")],
    "range": [("Range", "bytes=0-9")],
    "if-range": [("Range", "bytes=0-9"), ("If-Range", '"a"')],
    "if-modified-since": [("If-Modified-Since", "Wed, 21 Oct 2099 07:28:00 GMT")],
    "if-match": [("If-Match", '"a"')],
    "accept": [("Accept", "text/html")],
    "origin": [("Origin", "https://evil.example")],
    "expect": [("Expect", "100-continue")],
    "override": [("X-HTTP-Method-Override", "DELETE"), ("X-Original-URL", "/admin/blocks")],
    "forwarded": [("X-Forwarded-For", "127.0.0.1"), ("Forwarded", "for=127.0.0.1")],
    "authorization": [("Authorization", "Bearer x"), ("Cookie", "a=b")],
    "junk": [("X-Junk", "\xff\x00\x01" * 100), ("Cache-Control", "no-cache, only-if-cached")],
}


@pytest.mark.parametrize("name", UNUSUAL_HEADERS)
async def test_no_other_request_header_changes_what_is_answered(name: str, world: World) -> None:
    did, cid = world.add_blob()
    async with serving(world) as client:
        await client.get(img(did, cid))
        plain = await client.get(img(did, cid))
        assert await client.get(img(did, cid), *UNUSUAL_HEADERS[name]) == plain
        missing = img(did, cid_of(b"not there"))
        plain = await client.get(missing)
        assert await client.get(missing, *UNUSUAL_HEADERS[name]) == plain


# Clients that go away.


async def asked(exchange: Exchange, replies: list[Reply | None]) -> None:
    replies.append(await exchange.run())


async def test_a_client_that_goes_away_ends_the_work_that_nobody_else_waits_for(
    world: World,
) -> None:
    did, cid = world.add_blob()
    seen = trio.Event()
    world.pds.fault = gated(trio.Event(), seen=seen)
    replies: list[Reply | None] = []
    async with serving(world) as client, trio.open_nursery() as nursery:
        exchange = client.exchange(img(did, cid))
        nursery.start_soon(asked, exchange, replies)
        await seen.wait()
        exchange.leave()
        # The fetch has ended, and its worker is free: the next one is served.
        cancelled = 'imageproxy_fetch_duration_seconds_count{outcome="cancelled"}'
        await until_metric(client, cancelled, 1)
        assert replies == [None]
        world.pds.fault = with_body(lambda data: data)
        assert (await client.get(img(did, cid))).headers["x-cache"] == "miss"


async def test_a_client_that_goes_away_leaves_the_work_to_the_others_that_wait(
    world: World,
) -> None:
    did, cid = world.add_blob()
    gate, seen = trio.Event(), trio.Event()
    world.pds.fault = gated(gate, seen=seen)
    left: list[Reply | None] = []
    stayed: list[Reply | None] = []
    async with serving(world) as client, trio.open_nursery() as nursery:
        first = client.exchange(img(did, cid))
        nursery.start_soon(asked, first, left)
        await seen.wait()
        nursery.start_soon(asked, client.exchange(img(did, cid)), stayed)
        nursery.start_soon(asked, client.exchange(f"/blob/{did}/{cid}"), stayed)
        await trio.testing.wait_all_tasks_blocked()
        first.leave()
        await trio.testing.wait_all_tasks_blocked()
        assert left == [None]
        gate.set()
    assert [reply.status if reply else None for reply in stayed] == [200, 200]
    assert world.pds.blob_requests == 1


async def test_images_are_404_where_the_service_is_turned_off(world: World) -> None:
    did, cid = world.add_blob()
    async with serving(world, world.config(server={"enabled": False})) as client:
        for target in (img(did, cid), f"/blob/{did}/{cid}"):
            reply = await client.get(target)
            assert (reply.status, reply.headers["content-type"]) == (404, PLAIN)
        assert (await client.get("/healthz")).status == 200
    assert world.plc.requests == []


async def test_what_one_network_is_asked_the_other_is_not(world: World) -> None:
    """The directory is trusted on a private address; nobody else may use its network."""
    did, cid = world.add_blob()
    async with serving(world) as client:
        assert (await client.get(img(did, cid))).status == 200
    assert world.directory_network.asked == [(world.plc.host, 443)]
    assert world.network.asked == [(world.pds.host, 443)]


async def test_a_png_that_is_a_photograph_has_the_type_and_name_of_the_jpeg_it_becomes(
    world: World,
) -> None:
    """Catches a type that follows the source, and an entry of yesterday's PNG."""
    source = sources.png(sources.photo(160, 120))
    did, cid = world.add_blob(source)
    drawn = world.add_blob(sources.png(sources.pixel_art(160, 120)))
    settings = {**DEFAULT_PRESETS["avatar_small"].model_dump(), "png": "photographs-to-jpeg"}
    async with serving(world) as client:
        before = await client.get(img(did, cid, "avatar_small"))
    async with serving(world, world.config(presets={"avatar_small": settings})) as client:
        for state in ("miss", "hit"):
            reply = await client.get(img(did, cid, "avatar_small"))
            assert reply.headers["x-cache"] == state
            assert reply.headers["content-type"] == "image/jpeg"
            assert reply.headers["content-disposition"] == f'inline; filename="{cid}.jpg"'
            assert reply.headers["etag"] != before.headers["etag"]
        art = await client.get(img(*drawn, "avatar_small"))
        named = await client.get(f"{img(did, cid, 'avatar_small')}@png")
        told = await client.get(f"/info/{did}/{cid}")
    types = [each.headers["content-type"] for each in (before, art, named)]
    assert types == ["image/png"] * 3
    assert json.loads(told.body)["type"] == "image/png"
