"""The pages at ``/``, for everybody, and at ``/admin``, for moderators."""

from __future__ import annotations

import html
import re
from typing import Any
from urllib.parse import parse_qs, urlencode
from xml.etree import ElementTree

import pytest
import trio.testing

from proxy import posters
from proxy.model.presets import DEFAULT_PRESETS, Preset
from proxy.model.references import parse_reference
from proxy.model.selection import Selection
from proxy.web.found import MAX_LISTED, thumb_preset
from proxy.web.page import PATIENCE, preview_preset
from tests.fakes import faults
from tests.fakes.sites import cid_of
from tests.fakes.world import World
from tests.web import serving


def policy_of(header: str) -> dict[str, list[str]]:
    parts = [directive.split() for directive in header.split(";")]
    return {name: sources for name, *sources in parts}


async def test_the_page_names_every_configured_preset_not_the_default_ones(world: World) -> None:
    presets = {"tiny_square": {"width": 8, "height": 8, "fit": "cover", "quality": 50}}
    async with serving(world, world.config(presets=presets)) as client:
        reply = await client.get("/")
    assert (reply.status, reply.headers["content-type"]) == (200, "text/html; charset=utf-8")
    assert 'data-preset="tiny_square"' in reply.text
    assert 'data-preset="avatar"' not in reply.text


PAGES = pytest.mark.parametrize("path", ["/", "/admin"])
WITH_TOKEN = {"server": {"admin_token": "a-token-of-the-operator"}}


@PAGES
async def test_a_page_may_load_from_this_host_and_from_nowhere_else(
    path: str, world: World
) -> None:
    async with serving(world, world.config(**WITH_TOKEN)) as client:
        reply = await client.get(path)
    policy = policy_of(reply.headers["content-security-policy"])
    assert policy["default-src"] == ["'none'"]
    assert policy["img-src"] == ["'self'", "blob:"]
    assert policy["connect-src"] == ["'self'"]
    assert policy["base-uri"] == ["'none'"]
    assert policy["form-action"] == ["'self'" if path == "/" else "'none'"]
    for sources in policy.values():
        assert not {"*", "https:", "http:", "data:", "'unsafe-eval'", "'unsafe-inline'"} & set(
            sources
        )
    assert reply.headers["x-content-type-options"] == "nosniff"
    assert reply.headers["referrer-policy"] == "no-referrer"
    # Nothing in it asks for what the policy would refuse.
    for outside in ("https://", "http://", 'src="//', "@import"):
        assert outside not in reply.text.replace("http://www.w3.org/", "")


async def test_the_page_has_an_icon_that_its_policy_allows(world: World) -> None:
    """Catches a console that complains of /favicon.ico on every visit."""
    async with serving(world) as client:
        assert '<link rel="icon" href="icon.svg"' in (await client.get("/")).text
        icon = await client.get("/icon.svg")
    assert (icon.status, icon.headers["content-type"]) == (200, "image/svg+xml")
    assert icon.headers["x-content-type-options"] == "nosniff"
    ElementTree.fromstring(icon.body)  # noqa: S314 (ours)


@PAGES
async def test_a_page_may_not_be_framed(path: str, world: World) -> None:
    async with serving(world, world.config(**WITH_TOKEN)) as client:
        policy = policy_of((await client.get(path)).headers["content-security-policy"])
    # default-src does not cover it.
    assert policy.get("frame-ancestors") == ["'none'"]


@PAGES
async def test_a_page_answers_head_and_no_other_method(path: str, world: World) -> None:
    async with serving(world, world.config(**WITH_TOKEN)) as client:
        got, head = await client.get(path), await client.head(path)
        assert head.status == 200
        assert head.headers["content-length"] == str(len(got.body))
        assert (await client.ask(path, method="POST")).status == 405
        assert (await client.get(f"{path}?did=%3Cscript%3E")).body == got.body


async def test_the_page_of_moderators_has_no_secret_and_stays_in_no_cache(world: World) -> None:
    """Catches a token in the page, which anybody gets who asks."""
    async with serving(world, world.config(**WITH_TOKEN)) as client:
        reply = await client.get("/admin")
    assert (reply.status, reply.headers["content-type"]) == (200, "text/html; charset=utf-8")
    assert reply.headers["cache-control"] == "no-store"
    assert "a-token-of-the-operator" not in reply.text


@PAGES
async def test_a_page_knows_whether_posters_are_made(
    path: str, world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Catches an extra that is said to be missing where it is installed."""
    for found, mark in ((object(), ' data-video="true">'), (None, ' data-video="">')):
        monkeypatch.setattr(posters, "find_spec", lambda name, found=found: found)
        async with serving(world, world.config(**WITH_TOKEN)) as client:
            assert mark in (await client.get(path)).text


async def test_what_pages_share_is_in_each_of_them_and_leaves_no_mark(world: World) -> None:
    """Catches a page without its style, and a handler that the policy would refuse."""
    async with serving(world, world.config(**WITH_TOKEN)) as client:
        page = (await client.get("/admin")).text
    for shared in ("--accent: light-dark(", "function sentenceOf("):
        assert page.count(shared) == 1
    assert "common.css" not in page
    assert "common.js" not in page
    for inline in (" onclick=", " onload=", " onerror=", " style=", "innerHTML", "insertAdjacent"):
        assert inline not in page


def preset(width: int, fit: str) -> Preset:
    return Preset.model_validate({"width": width, "height": width, "fit": fit, "quality": 80})


@pytest.mark.parametrize(
    ("presets", "chosen"),
    [
        (DEFAULT_PRESETS, "content_preview"),
        ({"a": preset(2000, "contain"), "b": preset(700, "contain")}, "b"),
        ({"a": preset(300, "contain"), "b": preset(500, "contain")}, "b"),
        ({"a": preset(300, "contain"), "b": preset(700, "cover")}, "a"),
        ({"a": preset(300, "cover"), "b": preset(700, "cover"), "c": preset(900, "cover")}, "b"),
    ],
)
def test_a_moderator_sees_a_whole_picture_and_enough_of_it(
    presets: dict[str, Preset], chosen: str
) -> None:
    """Catches a thumbnail, a picture cut at its sides, and two megapixels for a small frame."""
    assert preview_preset(presets) == chosen


def links_of(page: str) -> list[str]:
    """What the examples look up."""
    found = page[page.index('id="examples"') : page.index('id="what"')]
    return [
        parse_qs(html.unescape(query))["q"][0] for query in re.findall(r'href="\?([^"]*)"', found)
    ]


async def test_the_examples_are_of_the_network_that_is_configured(world: World) -> None:
    """Catches bsky.app offered by a proxy that does not know it, and a link that leads nowhere."""
    public = {"identity": {"plc_url": "https://plc.directory"}}
    development = {"fetch": {"allow_private_hosts": True}}
    for sections, handle in ((public, "bsky.app"), (development, "alice.test")):
        async with serving(world, world.config(**sections)) as client:
            found = links_of((await client.get("/")).text)
        assert found[0] == handle
        for text in found:
            assert parse_reference(text, own_names=handle == "alice.test")
    async with serving(world) as client:
        page = (await client.get("/")).text
    assert links_of(page) == []
    assert "<code>alice.example.com</code>" in page


def blob(cid: str) -> dict[str, Any]:
    return {"$type": "blob", "ref": {"$link": cid}, "mimeType": "image/png", "size": 1}


def images(*cids: str, alt: str = "") -> dict[str, Any]:
    return {"embed": {"images": [{"alt": alt, "image": blob(cid)} for cid in cids]}}


async def test_without_a_script_the_form_gets_a_list_under_the_same_policy(world: World) -> None:
    """Catches a policy that the list loosens, a list that a cache gives to somebody else, and a
    form that forgets the format for the next picture."""
    did = world.make_account()
    cid = cid_of(b"1")
    post = world.pds.add_record(did, "app.bsky.feed.post/3k", images(cid))
    async with serving(world) as client:
        plain = await client.get("/")
        reply = await client.get(f"/?q={post}&cid=&format=webp&list=1")
    policy = "content-security-policy"
    assert (reply.status, reply.headers[policy]) == (200, plain.headers[policy])
    assert reply.headers["cache-control"] == "no-store"
    assert f'href="img/avatar/plain/{did}/{cid}@webp"' in reply.text
    assert f'src="img/avatar_small/plain/{did}/{cid}"' in reply.text
    assert "<ol" not in plain.text
    assert f'name="q" value="{post}"' in reply.text
    assert "<option selected>webp</option>" in reply.text
    assert "selected" not in re.findall("<select name.*", plain.text)[0]


async def test_a_page_with_a_question_comes_at_once_and_asks_nobody(world: World) -> None:
    """Catches a white window at a dead PDS, and a question that is asked twice."""
    did = world.make_account()
    world.pds.fault = faults.hang
    query = {"q": f'{did}"><script>', "cid": "b&c", "format": "webp"}
    async with serving(world) as client:
        plain = await client.get("/")
        reply = await client.get(f"/?{urlencode(query)}")
    assert not world.pds.requests
    assert (reply.status, reply.headers["cache-control"]) == (200, "no-store")
    policy = "content-security-policy"
    assert reply.headers[policy] == plain.headers[policy]
    assert "http-equiv" not in plain.text
    refresh = '<noscript><meta http-equiv="refresh" content="0; url=([^"]*)"></noscript>'
    (url,) = re.findall(refresh, reply.text)
    asked = parse_qs(html.unescape(url).removeprefix("?"))
    assert asked == {name: [text] for name, text in query.items()} | {"list": ["1"]}
    assert reply.text.count("<script>") == 1


async def test_a_list_does_not_lead_on_to_itself(world: World) -> None:
    """Catches a browser without JavaScript that asks for ever."""
    did = world.make_account()
    async with serving(world) as client:
        assert "http-equiv" not in (await client.get(f"/?q={did}&list=1")).text


async def test_what_strangers_wrote_is_text_in_the_list(world: World) -> None:
    """Catches a description that is markup, and one that ends the element it is in."""
    did = world.make_account()
    bad = "</section><script>alert(1)</script><!-- found -->\"'"
    record = {"embed": [{bad: blob(cid_of(b"1")), "alt": bad}]}
    post = world.pds.add_record(did, "app.bsky.feed.post/3k", record)
    async with serving(world) as client:
        plain = (await client.get("/")).text
        for query, status in ((post, 200), (bad, 400), (f"{did} {bad}", 400)):
            reply = await client.get(f"/?{urlencode({'q': query, 'list': 1})}")
            assert reply.status == status
            assert reply.text.count("<script>") == 1
            assert reply.text.count("</section>") == plain.count("</section>")
            assert "&lt;script&gt;" in reply.text


async def test_a_list_has_an_end(world: World) -> None:
    """Catches a gallery that fills a megabyte with links."""
    did = world.make_account()
    cids = [cid_of(b"%d" % number) for number in range(60)]
    post = world.pds.add_record(did, "app.bsky.feed.post/3k", images(*cids))
    async with serving(world) as client:
        reply = await client.get(f"/?q={post}&list=1")
    assert reply.text.count('<li class="card">') == MAX_LISTED
    assert f"{MAX_LISTED} of 60." in reply.text


async def test_a_list_is_not_waited_for_for_ever(
    world: World, mock_clock: trio.testing.MockClock
) -> None:
    """Catches a dead PDS that a person waits for as long as a picture may take."""
    did = world.make_account()
    world.pds.fault = faults.hang
    async with serving(world) as client, trio.open_nursery() as nursery:

        async def look() -> None:
            reply = await client.get(f"/?q={did}&list=1")
            assert (reply.status, reply.headers["content-type"][:9]) == (504, "text/html")
            assert "request timed out" in reply.text

        nursery.start_soon(look)
        while not world.pds.requests:
            await trio.lowlevel.checkpoint()
        mock_clock.jump(PATIENCE)


async def test_a_list_shows_nothing_that_is_blocked_and_says_what_is_gone(world: World) -> None:
    """Catches a second way to a blocked picture, and a quote that is missing without a word."""
    did = world.make_account()
    shown, blocked = cid_of(b"1"), cid_of(b"2")
    gone = f"at://{did}/app.bsky.feed.post/2"
    record = images(shown, blocked) | {
        "quote": {"$type": "app.bsky.embed.record", "record": {"uri": gone}}
    }
    post = world.pds.add_record(did, "app.bsky.feed.post/3k", record)
    async with serving(world) as client:
        await client.service.moderator.block(Selection(did, blocked), by="test")
        text = (await client.get(f"/?q={post}&list=1")).text
    assert shown in text
    assert blocked not in text
    assert f"Not shown: {gone}: no such record." in text


async def test_a_video_in_the_list_leads_to_its_posters(world: World) -> None:
    """Catches a link to an image that is none."""
    did = world.make_account()
    film = blob(cid_of(b"1")) | {"mimeType": "video/mp4"}
    post = world.pds.add_record(did, "app.bsky.feed.post/3k", {"embed": {"video": film}})
    async with serving(world) as client:
        text = (await client.get(f"/?q={post}&format=webp&list=1")).text
    assert f'href="vid/banner/{did}/{cid_of(b"1")}/thumbnail.jpg"' in text
    assert f"img/banner/plain/{did}" not in text


@pytest.mark.parametrize(
    ("widths", "chosen"), [((128, 1000, 360), "p360"), ((100, 90), "p100"), ((208, 300), "p208")]
)
def test_a_thumbnail_is_the_smallest_preset_that_is_wide_enough(
    widths: tuple[int, ...], chosen: str
) -> None:
    """Catches a thumbnail of a megabyte, and a preset that is not there."""
    assert thumb_preset({f"p{width}": preset(width, "cover") for width in widths}) == chosen
