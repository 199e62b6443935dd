"""The purge calls of Porxie: who may, what they do, and what they refuse."""

from __future__ import annotations

import base64
import json
from typing import Any

import pytest

from proxy.web.failed_tokens import MAX_FAILURES
from tests.fakes.world import World, tiny_png
from tests.web import Client, Reply, img, serving

TOKEN = "a-token-of-the-operator"
WITH_TOKEN = {"server": {"admin_token": TOKEN}}

PURGE_ACTOR = "/xrpc/dev.blooym.porxie.cache.purgeActor"
PURGE_BLOB = "/xrpc/dev.blooym.porxie.cache.purgeBlob"


def basic(password: str, user: str = "admin") -> tuple[str, str]:
    encoded = base64.b64encode(f"{user}:{password}".encode()).decode()
    return ("Authorization", f"Basic {encoded}")


async def call(client: Client, path: str, value: Any = None, *, password: str = TOKEN) -> Reply:
    body = b"" if value is None else json.dumps(value).encode()
    headers = (basic(password), ("Content-Type", "application/json"))
    return await client.ask(path, *headers, method="POST", body=body)


@pytest.mark.parametrize("is_in_query", [False, True])
async def test_an_actor_and_a_blob_are_purged_as_porxie_purges_them(
    world: World, is_in_query: bool
) -> None:
    """Catches a purge of another actor's pictures, or of one owner's copy of a blob alone."""
    did, cid = world.add_blob(tiny_png())
    other, _ = world.add_blob(tiny_png())

    async def purge(path: str, name: str, value: str) -> None:
        reply = await (
            call(client, f"{path}?{name}={value}")
            if is_in_query
            else call(client, path, {name: value})
        )
        assert (reply.status, reply.text) == (200, "{}\n"), reply

    async def states() -> list[str]:
        return [(await client.get(img(owner, cid))).headers["x-cache"] for owner in (did, other)]

    async with serving(world, world.config(**WITH_TOKEN)) as client:
        assert await states() == ["miss", "miss"]
        await purge(PURGE_ACTOR, "did", did)
        assert await states() == ["miss", "hit"]
        await purge(PURGE_BLOB, "cid", cid)
        assert await states() == ["miss", "miss"]


@pytest.mark.parametrize(
    "header",
    [
        None,
        ("Authorization", f"Bearer {TOKEN}"),
        ("Authorization", f"Basic {TOKEN}"),
        ("Authorization", "Basic"),
        ("Authorization", "Basic \xff"),
        basic("", "admin"),
        basic(TOKEN, "operator"),
        basic(f"{TOKEN}x"),
        basic(f":{TOKEN}"),
    ],
)
async def test_nobody_else_may_purge(world: World, header: tuple[str, str] | None) -> None:
    """Catches an empty password that equals no token, and a user of another name."""
    headers = () if header is None else (header,)
    async with serving(world, world.config(**WITH_TOKEN)) as client:
        reply = await client.ask(PURGE_BLOB, *headers, method="POST", body=b"{}")
        assert reply.status == 401
        assert reply.headers["www-authenticate"].lower().startswith("basic")
        assert reply.headers["cache-control"] == "no-store"


async def test_guesses_count_together_with_those_at_the_admin_routes(world: World) -> None:
    """Catches a second door with guesses of its own."""
    async with serving(world, world.config(**WITH_TOKEN)) as client:
        for number in range(MAX_FAILURES):
            assert (await call(client, PURGE_BLOB, password=f"wrong-{number}")).status == 401
        bearer = ("Authorization", f"Bearer {TOKEN}")
        assert (await client.get("/admin/blocks", bearer)).status == 429


async def test_without_a_configured_token_there_are_no_such_calls(world: World) -> None:
    """Catches a purge that anybody may ask for."""
    async with serving(world) as client:
        for path in (PURGE_ACTOR, PURGE_BLOB):
            assert (await call(client, path, {"did": "x"}, password="")).status == 404


@pytest.mark.parametrize(
    ("path", "value"),
    [
        (PURGE_BLOB, None),
        (PURGE_BLOB, []),
        (PURGE_BLOB, {}),
        (PURGE_BLOB, {"cid": 1}),
        (PURGE_BLOB, {"cid": "bafy"}),
        (PURGE_BLOB, {"did": "did:plc:ewvi7nxzyoun6zhxrhs64oiz"}),
        (PURGE_ACTOR, {"did": "alice.example"}),
        (PURGE_ACTOR, {"did": None}),
    ],
)
async def test_bad_input_is_a_400_as_xrpc_says_it(world: World, path: str, value: Any) -> None:
    """Catches a purge of everything for want of a name, and a 500."""
    async with serving(world, world.config(**WITH_TOKEN)) as client:
        reply = await call(client, path, value)
        assert reply.status == 400
        assert json.loads(reply.body)["error"] == "InvalidRequest"
