"""Presets that change while the application serves."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import pytest
import trio

from proxy.config import Config
from proxy.lifecycle import open_service
from proxy.model.presets import DEFAULT_PRESETS, Preset
from proxy.service import Service
from proxy.web import app
from tests.fakes.world import World
from tests.processes import until
from tests.rooms import ROOT
from tests.web import Client, img, serving
from tests.web.test_actors import PROFILE, blob

pytestmark = pytest.mark.usefixtures("both_ways")

SQUARE = {"width": 8, "height": 8, "fit": "cover", "quality": 50}
WIDE = {"width": 16, "height": 8, "fit": "cover", "quality": 50}
KEPT = {"avatar": DEFAULT_PRESETS["avatar"], "banner": DEFAULT_PRESETS["banner"]}


def change(client: Client, **presets: dict[str, Any]) -> None:
    """Have these presets, and those that other sections name."""
    config = Config(presets={**KEPT, **{n: Preset(**each) for n, each in presets.items()}})
    client.app.presets.now = config.preset_table


async def test_the_next_request_has_the_presets_that_are_in_force_now(world: World) -> None:
    """Catches a parsed path, a hit or an ETag of before that outlives its preset."""
    did, cid = world.add_blob()
    async with serving(world, world.config(presets={**KEPT, "one": SQUARE, "two": WIDE})) as client:
        one, two = img(did, cid, "one"), img(did, cid, "two")
        first, other = await client.get(one), await client.get(two)
        change(client, one={**SQUARE, "quality": 60}, three=SQUARE)
        changed = await client.get(one)
        assert (changed.status, changed.headers["x-cache"]) == (200, "miss")
        assert changed.headers["etag"] != first.headers["etag"]
        stale = await client.get(one, ("If-None-Match", first.headers["etag"]))
        assert (stale.status, stale.body) == (200, changed.body)
        gone = await client.get(two, ("If-None-Match", other.headers["etag"]))
        assert gone.status == 400
        assert gone.text == "invalid preset: two (avatar, banner, one, three)\n"
        assert (await client.get(img(did, cid, "three"))).status == 200
        change(client, one=SQUARE, two=WIDE)
        back = await client.get(two)
        assert (back.headers["x-cache"], back.headers["etag"]) == ("hit", other.headers["etag"])


async def test_a_request_under_way_ends_with_the_preset_that_it_began_with(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Catches pixels of the new preset below the ETag of the old one, and a preset that is gone."""
    did, cid = world.add_blob()
    async with serving(world, world.config(presets={**KEPT, "one": SQUARE})) as client:
        fetch = client.service._fetcher.fetch

        async def changing(*given: Any, **more: Any) -> bytes:
            data = await fetch(*given, **more)
            change(client)
            return data

        monkeypatch.setattr(client.service._fetcher, "fetch", changing)
        before = client.app.presets.now.by_name["one"].fingerprint(None)
        reply = await client.get(img(did, cid, "one"))
        assert (reply.status, reply.headers["etag"]) == (200, f'"one-{cid}-{before}"')
        assert (await client.get(img(did, cid, "one"))).status == 400


async def test_the_pages_show_the_presets_that_are_in_force_now(world: World) -> None:
    """Catches a page that was drawn at the start, and one whose script its policy refuses."""
    token = {"admin_token": "a-token-of-the-operator"}
    async with serving(world, world.config(server=token)) as client:
        change(client, tiny={"width": 700, "fit": "contain", "quality": 50})
        page, admin = await client.get("/"), await client.get("/admin")
        assert 'data-preset="tiny"' in page.text
        assert 'data-preset="avatar_small"' not in page.text
        assert 'data-preview="tiny"' in admin.text
        assert page.headers["content-security-policy"].count("sha256-") == 2


async def test_avatars_follow_the_name_of_their_preset(world: World) -> None:
    """Catches presets of a new table under the names that an old one chose."""
    did, cid = world.add_blob()
    record = {"$type": PROFILE, "avatar": blob(cid)}
    world.pds.add_record(did, f"{PROFILE}/self", record)
    async with serving(world) as client:
        before = await client.get(f"/avatar/{did}")
        config = Config.model_validate({"actors": {"avatar_preset": "face"}})
        named = {"face": Preset(**SQUARE), "banner": DEFAULT_PRESETS["banner"]}
        client.app.presets.now = config.model_copy(update={"presets": named}).preset_table
        after = await client.get(f"/avatar/{did}")
    assert before.headers["location"] == img(did, cid, "avatar")
    assert after.headers["location"] == img(did, cid, "face")


async def test_a_service_that_crashed_starts_again_with_the_presets_of_now(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Catches a restart inside the process that goes back to what the start had."""
    crash = trio.Event()

    async def crashing() -> None:
        await crash.wait()
        raise RuntimeError("a defect")

    @asynccontextmanager
    async def opened(*given: Any, **more: Any) -> AsyncIterator[Service]:
        async with trio.open_nursery() as nursery:
            if not crash.is_set():
                nursery.start_soon(crashing)
            async with open_service(*given, **more) as service:
                yield service
            nursery.cancel_scope.cancel()

    monkeypatch.setattr(app, "open_service", opened)
    monkeypatch.setattr(app, "RESTART_PAUSE", 0.0)
    did, cid = world.add_blob()
    async with serving(world) as client:
        change(client, tiny=SQUARE)
        first = client.service
        crash.set()
        await until(lambda: client.app.responder.service not in (None, first))
        image = await client.service.get_image("tiny", did, cid)
        assert image.etag == (await client.get(img(did, cid, "tiny"))).headers["etag"]


def test_what_serves_asks_nobody_but_the_table_of_now() -> None:
    """Catches one more place that reads the presets of the start."""
    serving_code = [
        *(ROOT / "proxy/web").glob("*.py"),
        *(ROOT / "proxy/moderation").rglob("*.py"),
        *(ROOT / "proxy" / f"{name}.py" for name in ("service", "posters", "wiring", "lifecycle")),
    ]
    names = ("config.presets", "avatar_preset", "banner_preset", "video.preset")
    found = [path.name for path in serving_code if any(n in path.read_text() for n in names)]
    assert len(serving_code) > 50
    assert found == []
