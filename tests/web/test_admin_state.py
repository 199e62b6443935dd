"""``GET /admin/state``: what metrics may not tell, to those who have a token."""

from __future__ import annotations

import os

from tests.fakes import faults
from tests.fakes.world import World
from tests.web import img, serving
from tests.web.test_admin import WITH_TOKEN, told


async def test_the_state_names_what_was_counted_and_the_hosts_that_metrics_may_not(
    world: World,
) -> None:
    """Catches figures of no process, and a host that finds its way into the metrics."""
    did, cid = world.add_blob()
    async with serving(world, world.config(**WITH_TOKEN)) as client:
        await client.get(img(did, cid))
        await client.get(img(did, cid))
        await told(client, "POST", "blocks", {"did": did})
        world.pds.faults = [faults.answers(429, b"", ("Retry-After", "90"))]
        refused = img(*world.add_blob(b"another"))
        assert (await client.get(refused)).status == 503
        state = await told(client, "GET", "state")
        metrics = (await client.get("/metrics")).text
        assert (await client.head("/metrics")).status == 200
    assert state["requests"] == {"hit": 1, "miss": 1, "coalesced": 0, "none": 1}
    assert state["waiting"] == {"fetches": 0, "transforms": 0, "cdn": 0}
    assert state["blocks"] == 1
    (worker,) = state["workers"]
    assert (worker["pid"], worker["requests"]) == (os.getpid(), 3)
    assert state["memory_bytes"] == worker["memory_bytes"]
    (circuit,) = state["circuits"]
    assert (circuit["host"], circuit["cause"]) == ("pds.example", "AskedToWait")
    assert 80 < circuit["seconds"] <= 90
    (host,) = state["hosts"]
    assert (host["host"], host["standing"]) == ("pds.example", "prompt")
    assert "pds.example" not in metrics
