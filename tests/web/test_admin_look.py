"""What a moderator is told below ``/admin``: what blocks something, the audit, look-ups."""

from __future__ import annotations

import json
import shutil
from collections.abc import AsyncIterator

import pytest
import trio
import trio.testing

import proxy.web.admin_look
from proxy.accounts.profiles import Profiles
from proxy.model.identifiers import Cid, Did
from proxy.model.selection import Selection
from proxy.web.admin_look import HANDLE_SECONDS
from tests.cache import blob_cid, owner
from tests.fakes.dns import FakeDns, serving_dns
from tests.fakes.sites import new_plc_did
from tests.fakes.world import World
from tests.logs import logged_by
from tests.web import serving
from tests.web.test_actors import ALICE, named, profile
from tests.web.test_admin import WITH_TOKEN, admin, told

DID, CID = owner(1), blob_cid(1)


@pytest.fixture
async def dns() -> AsyncIterator[FakeDns]:
    async with serving_dns() as dns:
        yield dns


def picture(cid: Cid, name: str = "blob") -> dict[str, str]:
    return {"cid": cid, "name": name, "alt": "", "medium": "image"}


async def test_a_check_says_which_decisions_block_something(world: World) -> None:
    """Catches "not blocked" for the picture of a blocked account, and nobody's name beside it."""
    async with serving(world, world.config(**WITH_TOKEN)) as client:
        for query in (f"did={DID}", f"cid={CID}", f"did={DID}&cid={CID}"):
            told_now = await told(client, "GET", f"check?{query}")
            assert told_now == {"blocked": False, "blocks": []}
        await client.service.moderator.block(Selection(did=DID), by="labeler", reason="a label")
        await told(client, "POST", "blocks", {"cid": CID, "reason": "a law"})
        blocks = (await told(client, "GET", f"check?did={DID}&cid={CID}"))["blocks"]
        assert [(each["did"], each["cid"], each["by"], each["reason"]) for each in blocks] == [
            (DID, None, "labeler", "a label"),
            (None, CID, "admin", "a law"),
        ]
        assert all(each["created_at"] > 1.7e9 for each in blocks)
        assert (await told(client, "GET", f"check?did={DID}"))["blocks"] == blocks[:1]
        assert (await told(client, "GET", f"check?cid={CID}"))["blocks"] == blocks[1:]
        assert not (await told(client, "GET", f"check?did={owner(2)}"))["blocked"]


async def test_the_audit_comes_in_pages_the_newest_first(world: World) -> None:
    """Catches a page that begins where the last one did, and an audit that is read whole."""
    async with serving(world, world.config(**WITH_TOKEN)) as client:
        assert await told(client, "GET", "audit") == {"decisions": [], "before": None}
        for number in range(5):
            reason = {"did": owner(number), "reason": str(number)}
            await told(client, "POST", "blocks", reason)
        seen: list[str] = []
        target = "audit?limit=2"
        while target:
            page = await told(client, "GET", target)
            seen += [each["reason"] for each in page["decisions"]]
            target = f"audit?limit=2&before={page['before']}" if page["before"] else ""
            # What is decided meanwhile shifts no page.
            await told(client, "POST", "purge", {"did": owner(9)})
        assert seen == ["4", "3", "2", "1", "0"]
        exact = await told(client, "GET", "audit?limit=5&before=6")
        assert (len(exact["decisions"]), exact["before"]) == (5, None)
        (first,) = (await told(client, "GET", "audit?before=2"))["decisions"]
        assert first.pop("at") > 1.7e9
        assert first == {
            "id": 1,
            "by": "admin",
            "action": "block",
            "did": owner(0),
            "cid": None,
            "reason": "0",
            "removed": 0,
        }


@pytest.mark.parametrize(
    ("target", "cause"),
    [
        ("check", "give did, cid, or both"),
        ("check?did=", "DID ''"),
        ("check?did=x", "DID 'x'"),
        ("check?cid=bafk", "CID 'bafk'"),
        (f"check?did={DID}&did={DID}", "did is given twice"),
        (f"check?DID={DID}", "unknown key 'DID'; known: did, cid"),
        ("audit?limit=0", "limit must be a number from 1 to 500"),
        ("audit?limit=501", "limit must be a number from 1 to 500"),
        ("audit?limit=1e2", "limit must be a number from 1 to 500"),
        ("audit?limit=-1", "limit must be a number from 1 to 500"),
        (f"audit?before={'9' * 5000}", f"before must be a number from 1 to {2**63 - 1}"),
        (f"audit?before={2**63}", f"before must be a number from 1 to {2**63 - 1}"),
        ("audit?befor=7", "unknown key 'befor'; known: limit, before"),
        ("lookup?query=x", "unknown key 'query'; known: q"),
        ("lookup", "invalid handle format"),
        ("lookup?q=did:plc:short", "invalid DID format"),
        ("lookup?q=https://example.com/x", "invalid request"),
    ],
)
async def test_a_query_that_is_wrong_is_a_400_that_says_why(
    target: str, cause: str, world: World
) -> None:
    """Catches a misspelled key that is answered as if it was not there."""
    async with serving(world, world.config(**WITH_TOKEN)) as client:
        reply = await admin(client, "GET", target)
    assert (reply.status, json.loads(reply.body)) == (400, {"error": cause})


async def test_a_look_up_shows_a_moderator_what_is_blocked_too(world: World, dns: FakeDns) -> None:
    """Catches a block that cannot be lifted because nobody finds what it is about."""
    did, (avatar, banner) = profile(world, avatar=b"1", banner=b"2")
    async with serving(world, named(world, dns, did, server=WITH_TOKEN["server"])) as client:
        await told(client, "POST", "blocks", {"did": did})
        await told(client, "POST", "blocks", {"cid": avatar})
        assert json.loads((await client.get(f"/lookup?q={ALICE}")).body)["pictures"] == []
        for query in (ALICE, did, f"https://bsky.app/profile/{ALICE}"):
            assert await told(client, "GET", f"lookup?q={query}") == {
                "did": did,
                "handle": ALICE,
                "pictures": [picture(avatar, "avatar"), picture(banner, "banner")],
                "problem": None,
            }
        url = f"https://img.example.com/img/avatar/plain/{did}/{banner}@webp"
        found = await told(client, "GET", f"lookup?q={url}")
        assert (found["did"], found["pictures"]) == (did, [picture(banner)])


async def test_a_cid_alone_is_a_picture_of_nobody_known(world: World) -> None:
    """Catches a picture that can be blocked everywhere, but not looked up."""
    async with serving(world, world.config(**WITH_TOKEN)) as client:
        for text in (CID, f"%20{CID}%0a"):
            assert await told(client, "GET", f"lookup?q={text}") == {
                "did": None,
                "handle": None,
                "pictures": [picture(CID)],
                "problem": None,
            }
    assert world.pds.requests == []


async def test_an_account_that_is_gone_can_be_decided_about(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Catches an account that cannot be blocked before its server is back, and no cause logged."""
    nobody = new_plc_did()
    async with serving(world, world.config(**WITH_TOKEN)) as client:
        with logged_by(proxy.web.admin_look, monkeypatch) as lines:
            found = await told(client, "GET", f"lookup?q={nobody}")
            post = f"at://{nobody}/app.bsky.feed.post/3k"
            assert (await told(client, "GET", f"lookup?q={post}"))["did"] == nobody
    assert found == {"did": nobody, "handle": None, "pictures": [], "problem": "no such account"}
    assert [line["event"] for line in lines] == ["admin look-up failed"] * 2
    assert all(nobody in line["cause"] for line in lines)


async def test_a_domain_that_hangs_holds_no_moderator_up(
    world: World, monkeypatch: pytest.MonkeyPatch, mock_clock: trio.testing.MockClock
) -> None:
    """Catches an account that delays its block by the handle that it gives itself."""
    did, (avatar,) = profile(world, avatar=b"1")
    asked = trio.Event()

    async def hang(self: Profiles, did: Did) -> None:
        asked.set()
        await trio.sleep_forever()

    monkeypatch.setattr(Profiles, "handle_of", hang)
    async with serving(world, world.config(**WITH_TOKEN)) as client, trio.open_nursery() as nursery:

        async def look_up() -> None:
            found = await told(client, "GET", f"lookup?q={did}")
            assert (found["handle"], found["pictures"]) == (None, [picture(avatar, "avatar")])

        nursery.start_soon(look_up)
        await asked.wait()
        mock_clock.jump(HANDLE_SECONDS)


async def test_a_handle_that_is_nobodys_is_a_404(world: World, dns: FakeDns) -> None:
    """Catches a handle that leads to no account taken for one."""
    config = named(world, dns, world.make_account(), server=WITH_TOKEN["server"])
    async with serving(world, config) as client:
        dns.records[f"_atproto.{ALICE}"] = [f"did={new_plc_did()}"]
        reply = await admin(client, "GET", f"lookup?q={ALICE}")
    assert (reply.status, json.loads(reply.body)) == (404, {"error": "no such account"})


async def test_a_store_that_cannot_be_read_is_a_503_and_not_unblocked(world: World) -> None:
    """Catches "not blocked" told of what nobody knows."""
    async with serving(world, world.config(**WITH_TOKEN)) as client:
        client.service.moderator.store.close()
        for path in world.cache_path.glob("moderation.sqlite3*"):
            path.rename(path.with_name(f"away-{path.name}"))
        (world.cache_path / "moderation.sqlite3").mkdir()
        for target in (f"check?did={DID}", "audit"):
            reply = await admin(client, "GET", target)
            assert (reply.status, json.loads(reply.body)) == (
                503,
                {"error": "the store could not be read"},
            )
        shutil.rmtree(world.cache_path / "moderation.sqlite3")
        for path in world.cache_path.glob("away-*"):
            path.rename(path.with_name(path.name.removeprefix("away-")))
