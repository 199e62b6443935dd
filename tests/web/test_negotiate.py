"""``Accept``: who names a format gets it, everybody else gets what there was without it."""

from __future__ import annotations

import re

import pytest
from hypothesis import given
from hypothesis import strategies as st

import proxy.web.responder
from proxy.config import Config
from proxy.model.formats import Format
from proxy.model.keys import image_key
from proxy.web.negotiate import MAX_HEADER, choose, is_negotiable
from tests.fakes.world import World, tiny_png
from tests.logs import logged_by
from tests.web import img, serving

pytestmark = pytest.mark.usefixtures("both_ways")

AVIF, WEBP = Format.AVIF, Format.WEBP

CHROME = "image/avif,image/webp,image/apng,image/svg+xml,image/*,*/*;q=0.8"


@pytest.mark.parametrize(
    ("accept", "chosen"),
    [
        (None, None),
        ("", None),
        (CHROME, AVIF),
        ("image/webp,image/avif,image/png,image/*;q=0.8,*/*;q=0.5", AVIF),
        ("image/webp,*/*", WEBP),
        ("*/*", None),
        ("image/*", None),
        ("image/avif;q=0.5,image/webp;q=0.6", WEBP),
        ("image/avif;q=0.5,image/webp;q=0.5", AVIF),
        ("image/avif;q=0,image/webp;q=0.1", WEBP),
        ("image/avif;q=0.0", None),
        ("image/avif;q=0.4,image/jpeg", None),
        ("image/avif;q=0.4,image/jpeg;q=0.4", AVIF),
        ("image/avif;q=0.4,*/*;q=0.8", None),
        ("image/avif;q=0.4,image/avif", AVIF),
        ("IMAGE/AVIF", AVIF),
        (" image/avif ;q=1.0 , text/html", AVIF),
        ("image/avif;q=x", None),
        ("image/avif;v=1", None),
        ("image/avif-sequence", None),
        ("image/avif" + "," * MAX_HEADER, None),
    ],
)
def test_a_format_is_chosen_where_the_client_names_and_prefers_it(
    accept: str | None, chosen: Format | None
) -> None:
    """Catches */* taken for AVIF, which old browsers cannot show, and qualities passed over."""
    assert choose(accept, [AVIF, WEBP]) is chosen


def test_among_equals_the_configuration_decides() -> None:
    assert choose(CHROME, [WEBP, AVIF]) is WEBP
    assert choose(CHROME, [WEBP]) is WEBP
    assert choose(CHROME, []) is None


@given(st.text(max_size=200))
def test_any_header_can_be_read(accept: str) -> None:
    """Catches a 500 that a header brings about."""
    assert choose(accept, [AVIF]) in (None, AVIF)


@given(st.text(max_size=100))
def test_any_path_can_be_asked_about(path: str) -> None:
    assert not is_negotiable(Config().presets, path)


def negotiating(world: World, *formats: str) -> Config:
    return world.config(
        negotiate={"formats": list(formats)},
        presets={
            "still": {"width": 8, "fit": "contain", "quality": 50},
            "moving": {"width": 8, "fit": "contain", "quality": 50, "animated": True},
        },
    )


async def test_without_the_setting_accept_means_nothing(world: World) -> None:
    """Catches a format that a CDN in front, which knows nothing of it, gives everybody."""
    path = img(*world.add_blob())
    async with serving(world) as client:
        reply = await client.get(path, ("Accept", CHROME))
    assert reply.headers["content-type"] == "image/png"
    assert "vary" not in reply.headers


async def test_a_client_that_names_a_format_gets_that_format(world: World) -> None:
    """Catches a second entry in the cache, and a tag that two formats share."""
    did, cid = world.add_blob()
    path = img(did, cid, "still")
    async with serving(world, negotiating(world, "avif", "webp")) as client:
        explicit = await client.get(f"{path}@webp")
        assert "vary" not in explicit.headers
        chosen = await client.get(path, ("Accept", "image/webp,*/*"))
        assert (chosen.headers["content-type"], chosen.body) == ("image/webp", explicit.body)
        assert chosen.headers["etag"] == explicit.headers["etag"]
        assert (chosen.headers["x-cache"], chosen.headers["vary"]) == ("hit", "Accept")
        plain = await client.get(path, ("Accept", "*/*"))
        assert (plain.headers["content-type"], plain.headers["vary"]) == ("image/png", "Accept")
        assert plain.headers["etag"] != chosen.headers["etag"]
        head = await client.head(path, ("Accept", CHROME))
        assert (head.headers["content-type"], head.headers["vary"]) == ("image/avif", "Accept")


async def test_a_304_is_of_the_format_that_the_client_would_get(world: World) -> None:
    """Catches a browser that goes on showing what it can no longer have."""
    did, cid = world.add_blob()
    config = negotiating(world, "avif")
    auto = image_key(config.presets, "still", did, cid).etag
    avif = image_key(config.presets, "still", did, cid, "avif").etag
    path = img(did, cid, "still")
    async with serving(world, config) as client:
        for tag, accept, status in [
            (avif, CHROME, 304),
            (auto, CHROME, 200),
            (auto, "*/*", 304),
            (avif, "*/*", 200),
        ]:
            reply = await client.get(path, ("Accept", accept), ("If-None-Match", tag))
            assert (reply.status, reply.headers["vary"]) == (status, "Accept")


async def test_errors_of_such_a_url_vary_too(world: World) -> None:
    """Catches a shared cache that cannot tell whose answer it keeps."""
    did = world.make_account()
    _, cid = world.add_blob()
    async with serving(world, negotiating(world, "avif")) as client:
        reply = await client.get(img(did, cid, "still"), ("Accept", CHROME))
        assert (reply.status, reply.text, reply.headers["vary"]) == (
            404, "blob not found\n", "Accept",
        )  # fmt: skip


async def test_what_may_move_is_left_as_it_is(world: World) -> None:
    """Catches an animation that becomes a still picture in a newer browser."""
    path = img(*world.add_blob(), preset="moving")
    async with serving(world, negotiating(world, "avif")) as client:
        reply = await client.get(path, ("Accept", CHROME))
    assert reply.headers["content-type"] == "image/png"
    assert "vary" not in reply.headers


async def test_what_a_format_cannot_hold_comes_in_the_sources(world: World) -> None:
    """Catches an error for a picture that every other client is served."""
    # WebP holds 16,383 pixels a side.
    did, cid = world.add_blob(tiny_png(size=(4, 17_000)))
    path = img(did, cid, "still")
    async with serving(world, negotiating(world, "webp")) as client:
        assert (await client.get(f"{path}@webp")).status == 400
        reply = await client.get(path, ("Accept", "image/webp"))
        assert (reply.status, reply.headers["content-type"]) == (200, "image/png")
        assert reply.headers["vary"] == "Accept"
        tag = ("If-None-Match", reply.headers["etag"])
        again = await client.get(path, ("Accept", "image/webp"), tag)
        assert (again.status, again.headers["etag"]) == (304, reply.headers["etag"])


async def test_a_request_that_is_negotiated_counts_once_whatever_comes_of_it(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Catches one line and one count for each format that was tried."""
    wide = img(*world.add_blob(tiny_png(size=(4, 17_000))), preset="still")
    text = img(*world.add_blob(b"no picture"), preset="still")
    async with serving(world, negotiating(world, "webp")) as client:
        with logged_by(proxy.web.responder, monkeypatch) as lines:
            for path, status in ((wide, 200), (text, 400)):
                assert (await client.get(path, ("Accept", "image/webp"))).status == status
        counted = (await client.get("/metrics")).text
    assert [line["status"] for line in lines if line["event"] == "request"] == [200, 400]
    for status in (200, 400):
        pattern = rf'^imageproxy_requests_total{{.*status="{status}".*}} (.*)$'
        found = re.findall(pattern, counted, re.MULTILINE)
        assert [float(value) for value in found] == [1]
