"""The page for people at ``/``."""

from __future__ import annotations

from xml.etree import ElementTree

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


async def test_the_page_may_load_from_this_host_and_from_nowhere_else(world: World) -> None:
    async with serving(world) as client:
        reply = await client.get("/")
    policy = policy_of(reply.headers["content-security-policy"])
    assert policy["default-src"] == ["'none'"]
    assert policy["img-src"] == ["'self'", "blob:"]
    assert policy["connect-src"] == ["'self'"]
    assert policy["base-uri"] == policy["form-action"] == ["'none'"]
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
        assert '<link rel="icon" href="/icon.svg"' in (await client.get("/")).text
        icon = await client.get("/icon.svg")
    assert (icon.status, icon.headers["content-type"]) == (200, "image/svg+xml")
    assert icon.headers["x-content-type-options"] == "nosniff"
    ElementTree.fromstring(icon.body)  # noqa: S314 (ours)


async def test_the_page_may_not_be_framed(world: World) -> None:
    async with serving(world) as client:
        policy = policy_of((await client.get("/")).headers["content-security-policy"])
    # default-src does not cover it.
    assert policy.get("frame-ancestors") == ["'none'"]


async def test_the_page_answers_head_and_no_other_method(world: World) -> None:
    async with serving(world) as client:
        got, head = await client.get("/"), await client.head("/")
        assert head.status == 200
        assert head.headers["content-length"] == str(len(got.body))
        assert (await client.ask("/", method="POST")).status == 405
        assert (await client.get("/?did=%3Cscript%3E")).body == got.body
