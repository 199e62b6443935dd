"""``OPTIONS`` (RFC 9110, section 9.3.7), of every route that there is."""

from __future__ import annotations

import re

import pytest

from proxy.web.app import create_app
from tests.fakes.world import World
from tests.web import SECURITY, serving

TOKEN = "a-token-of-the-operator"

PICTURES = ("/img/", "/blob/", "/info/", "/vid/", "/avatar/", "/banner/")
"""What pages of other origins ask for: a preflight is answered (Fetch, section 3.3.2)."""

BEFORE_THE_FRAMEWORK = ("/img/a/plain/b/c", "/blob/a/b", "/info/a/b", "/vid/a/b/thumbnail.jpg")


def methods_of_routes(world: World) -> dict[str, set[str]]:
    """Those of each path of the application, below /admin too."""
    app = create_app(world.config(server={"admin_token": TOKEN}))
    found = {path: {"GET", "HEAD", "OPTIONS"} for path in BEFORE_THE_FRAMEWORK}
    for rule in app.url_map.iter_rules():
        path = re.sub("<[^>]*>", "x", rule.rule)
        found.setdefault(path, set()).update(rule.methods or ())
    return found


async def test_every_route_tells_its_methods(world: World) -> None:
    """Catches a route told wrongly of, a 200 here and a 204 there, or an unstable order."""
    routes = methods_of_routes(world)
    assert {"/", "/lookup", "/healthz", "/readyz", "/metrics", "/admin/blocks"} < {*routes}
    async with serving(world, world.config(server={"admin_token": TOKEN})) as client:
        for path, methods in routes.items():
            scheme = (
                "Basic YWRtaW46" + "YS10b2tlbi1vZi10aGUtb3BlcmF0b3I="
                if "/xrpc/" in path
                else f"Bearer {TOKEN}"
            )
            reply = await client.ask(path, ("Authorization", scheme), method="OPTIONS")
            assert (reply.status, reply.body) == (204, b""), path
            assert reply.headers["allow"] == ", ".join(sorted(methods)), path
            # A 204 has no length (RFC 9110, section 8.6).
            assert "content-length" not in reply.headers, path
            is_for_all = path.startswith(PICTURES)
            assert ("access-control-allow-methods" in reply.headers) == is_for_all, path
            if is_for_all:
                assert SECURITY.items() <= reply.headers.items()


@pytest.mark.parametrize("path", ["/admin/blocks", "/admin/purge"])
async def test_what_needs_a_token_tells_nothing_without_one(path: str, world: World) -> None:
    """Catches a preflight that lets pages of other origins use a moderator's token."""
    async with serving(world, world.config(server={"admin_token": TOKEN})) as client:
        reply = await client.ask(path, ("Origin", "https://app.example"), method="OPTIONS")
        assert reply.status == 401
        assert "allow" not in reply.headers
        assert "access-control-allow-methods" not in reply.headers


async def test_what_is_not_there_has_no_methods(world: World) -> None:
    async with serving(world) as client:
        assert (await client.ask("/nothing", method="OPTIONS")).status == 404
