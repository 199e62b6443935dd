"""What waits for nothing is answered at once, by the same rules as what waits."""

from __future__ import annotations

import os

import pytest
import trio

from proxy.shared.cached_file import CachedFiles
from tests.fakes.world import World
from tests.required import skip_unless_required
from tests.web import PATIENCE, Client, Exchange, Reply, img, serving

pytestmark = pytest.mark.usefixtures("both_ways")

ANNOUNCED = [("Content-Length", "4"), ("Transfer-Encoding", "chunked")]


async def run(exchange: Exchange) -> Reply:
    with trio.fail_after(PATIENCE):
        reply = await exchange.run()
    assert reply is not None
    return reply


async def at_once(
    client: Client, target: str, *headers: tuple[str, str], method: str = "GET"
) -> Reply:
    """A request whose answer needs no task: nobody listens for a body, or for its client."""
    exchange = client.exchange(target, *headers, method=method)
    reply = await run(exchange)
    assert exchange.receives == 0
    return reply


async def test_a_hit_a_304_and_a_refusal_start_no_task_and_a_miss_does(world: World) -> None:
    """Catches a nursery for every request: it costs more than the hit."""
    did, cid = world.add_blob()
    async with serving(world) as client:
        missed = client.exchange(img(did, cid))
        assert (await run(missed)).headers["x-cache"] == "miss"
        assert missed.receives > 0
        hit = await at_once(client, img(did, cid))
        assert (hit.status, hit.headers["x-cache"]) == (200, "hit")
        etag = hit.headers["etag"]
        assert (await at_once(client, img(did, cid), ("If-None-Match", etag))).status == 304
        assert (await at_once(client, img(did, cid), ("If-None-Match", "*"))).status == 304
        tag = ("If-None-Match", f'"{cid}"')
        assert (await at_once(client, f"/blob/{did}/{cid}", tag)).status == 304
        assert (await at_once(client, "/img/nothing")).status == 400
        assert (await at_once(client, "/blob/nothing")).status == 400
        assert (await at_once(client, img(did, cid), method="POST")).status == 405


async def test_a_hit_has_the_same_answer_from_memory_from_disk_and_beside_a_body(
    world: World,
) -> None:
    """Catches a second copy of the rules: a header that only one of the ways knows."""
    did, cid = world.add_blob()
    async with serving(world) as client:
        await client.get(img(did, cid))
        fast = await at_once(client, img(did, cid))
        beside_a_body = await client.ask(img(did, cid), *ANNOUNCED[:1], body=b"body")
    async with serving(world, world.config(cache={"memory_mb": 0})) as client:
        exchange = client.exchange(img(did, cid))
        from_disk = await run(exchange)
        assert exchange.receives > 0
    for other in (beside_a_body, from_disk):
        assert (other.status, other.pairs, other.body) == (fast.status, fast.pairs, fast.body)
    assert fast.headers["x-cache"] == "hit"


async def test_head_of_a_hit_is_answered_at_once_as_get_without_the_body(world: World) -> None:
    did, cid = world.add_blob()
    async with serving(world) as client:
        got = await client.get(img(did, cid))
        got = await at_once(client, img(did, cid))
        head = await at_once(client, img(did, cid), method="HEAD")
    assert (head.status, head.pairs, head.body) == (got.status, got.pairs, b"")
    assert head.headers["content-length"] == str(len(got.body))


async def test_a_hit_from_disk_is_answered_at_once_from_its_second_time_on(world: World) -> None:
    """Catches a thread for what is in the page cache, and a block that only memory knows."""
    did, cid = world.add_blob()
    (world.cache_path.parent / "probe").write_bytes(b"x")
    if CachedFiles().read(os.fsencode(world.cache_path.parent / "probe"), 1) is None:
        skip_unless_required("needs Linux 5.12, and temporary files on a disk")
    async with serving(world, world.config(cache={"memory_mb": 0})) as client:
        await client.get(img(did, cid))
        exchange = client.exchange(img(did, cid))
        first = await run(exchange)
        while exchange.receives == 0:  # it was still in the queue of writes
            await trio.lowlevel.checkpoint()
            exchange = client.exchange(img(did, cid))
            first = await run(exchange)
        hit = await at_once(client, img(did, cid))
        assert (hit.status, hit.pairs, hit.body) == (first.status, first.pairs, first.body)
        assert hit.headers["x-cache"] == "hit"
        client.service.blocks._blocked.add(did, "")
        assert (await at_once(client, img(did, cid))).status == 404


@pytest.mark.parametrize("header", ANNOUNCED)
@pytest.mark.parametrize("of", ["a hit", "a refusal", "another method"])
async def test_a_body_that_is_announced_is_taken_also_where_the_answer_is_there_at_once(
    header: tuple[str, str], of: str, world: World
) -> None:
    """Catches an answer that leaves the body to a server that then waits for ever."""
    did, cid = world.add_blob()
    target = "/img/nothing" if of == "a refusal" else img(did, cid)
    method = "POST" if of == "another method" else "GET"
    async with serving(world) as client:
        await client.get(img(did, cid))
        exchange = client.exchange(target, header, body=b"body", method=method)
        reply = await run(exchange)
        assert reply.status == {"a hit": 200, "a refusal": 400, "another method": 405}[of]
        # The body, and then what comes after it.
        assert exchange.receives == 2


async def test_a_body_of_http_2_is_taken_though_it_was_not_announced(world: World) -> None:
    did, cid = world.add_blob()
    async with serving(world) as client:
        await client.get(img(did, cid))
        exchange = client.exchange(img(did, cid), body=b"body", http_version="2")
        assert (await run(exchange)).headers["x-cache"] == "hit"
        assert exchange.receives == 2


@pytest.mark.parametrize("header", [(), (("If-None-Match", "*"),)])
async def test_what_is_blocked_is_refused_at_once_though_memory_had_it(
    header: tuple[tuple[str, str], ...], world: World
) -> None:
    """Catches a short way that looks into memory before it looks at the blocks."""
    did, cid = world.add_blob()
    async with serving(world) as client:
        await client.get(img(did, cid))
        # In force, and nothing purged: the entry is still there.
        client.service.blocks._blocked.add(did, "")
        reply = await at_once(client, img(did, cid), *header)
        assert (reply.status, reply.body) == (404, b"blob not found\n")
        assert await client.metric("imageproxy_blocked_total") == 1
        client.service.blocks._blocked.discard(did, "")
        assert (await at_once(client, img(did, cid))).headers["x-cache"] == "hit"


async def test_every_answer_at_once_is_counted_like_one_that_was_waited_for(world: World) -> None:
    """Catches metrics that see misses alone."""
    did, cid = world.add_blob()
    async with serving(world) as client:
        for _ in range(3):
            await client.get(img(did, cid))
        await client.get(img(did, cid), ("If-None-Match", "*"))
        await client.get("/img/nothing")

        async def count(labels: str) -> float:
            return await client.metric(f"imageproxy_requests_total{{{labels}}}")

        preset = 'preset="avatar_thumbnail"'
        assert await count(f'cache="miss",{preset},status="200"') == 1
        assert await count(f'cache="hit",{preset},status="200"') == 2
        assert await count(f'cache="none",{preset},status="304"') == 1
        assert await count('cache="none",preset="none",status="400"') == 1
        durations = 'imageproxy_request_duration_seconds_count{cache="hit"}'
        assert await client.metric(durations) == 2
