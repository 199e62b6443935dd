"""``/admin``: who may, what it does, and what it refuses."""

from __future__ import annotations

import json
import sqlite3
from contextlib import closing
from typing import Any

import pytest
import trio
import trio.testing

import proxy.web.admin_access
from proxy.coordination.replicas import FolderReplicas
from proxy.model.identifiers import Cid, Did
from proxy.model.selection import Selection
from proxy.web.admin_input import MAX_REASON
from proxy.web.failed_tokens import MAX_FAILURES, WINDOW
from proxy.web.hypercorn_protocols import MAX_BODY
from tests.cache import owner
from tests.fakes.faults import gated
from tests.fakes.network import honest
from tests.fakes.sites import cid_of, new_plc_did
from tests.fakes.world import World, tiny_png
from tests.logs import logged_by
from tests.processes import files_in
from tests.web import Client, Reply, img, serving

TOKEN = "a-token-of-the-operator"

ROUTES = [
    ("GET", "/admin/state"),
    ("POST", "/admin/purge"),
    ("GET", "/admin/blocks"),
    ("POST", "/admin/blocks"),
    ("DELETE", "/admin/blocks"),
    ("GET", "/admin/check"),
    ("GET", "/admin/audit"),
    ("GET", "/admin/lookup"),
]

PRESETS = ["avatar_thumbnail", "avatar_small", "banner"]

WITH_TOKEN = {"server": {"admin_token": TOKEN}}


async def admin(client: Client, method: str, route: str, value: Any = None) -> Reply:
    body = b"" if value is None else json.dumps(value).encode()
    headers = (("Authorization", f"Bearer {TOKEN}"), ("Content-Type", "application/json"))
    return await client.ask(f"/admin/{route}", *headers, method=method, body=body)


async def told(client: Client, method: str, route: str, value: Any = None) -> Any:
    """The decoded answer of a request that succeeds."""
    reply = await admin(client, method, route, value)
    assert (reply.status, reply.headers["content-type"]) == (200, "application/json"), reply
    return json.loads(reply.body)


async def fill(world: World, *blobs: tuple[Did, Cid]) -> None:
    """Have every preset of ``PRESETS`` on disk; the application's end waits for its writes."""
    async with serving(world) as client:
        for did, cid in blobs:
            for preset in PRESETS:
                assert (await client.get(img(did, cid, preset))).status == 200
    assert len(files_in(world.cache_path)) == len(blobs) * len(PRESETS)


@pytest.mark.parametrize("method", ["GET", "POST", "DELETE", "PUT", "OPTIONS"])
@pytest.mark.parametrize("path", ["/admin", *sorted({path for _, path in ROUTES})])
async def test_without_a_configured_token_nothing_of_it_exists_for_any_method(
    method: str, path: str, world: World
) -> None:
    async with serving(world) as client:
        for headers in (
            (),
            (("Authorization", "Bearer "),),
            (("Authorization", "Bearer"),),
            (("Authorization", "Bearer None"),),
        ):
            reply = await client.ask(path, *headers, method=method, body=b"{}")
            nowhere = await client.ask("/nowhere", *headers, method=method, body=b"{}")
            assert (reply.status, reply.body, reply.pairs) == (404, nowhere.body, nowhere.pairs)


WRONG = [
    None,
    "",
    "Bearer",
    "Bearer ",
    "Bearer wrong",
    f"Bearer {TOKEN}x",
    f"Bearer {TOKEN[:-1]}",
    f"Bearer {TOKEN.upper()}",
    f"Bearer {TOKEN} {TOKEN}",
    f"Bearer{TOKEN}",
    f"Basic {TOKEN}",
    f"Token {TOKEN}",
    TOKEN,
    "Bearer \xff\xfe\x00",
    f"Bearer \xff{TOKEN}",
    "Basic YWRtaW46YWRtaW4=",
]


@pytest.mark.parametrize("given", WRONG)
async def test_a_wrong_token_is_a_401_and_does_nothing(given: str | None, world: World) -> None:
    did, cid = world.add_blob()
    headers = () if given is None else (("Authorization", given),)
    body = json.dumps({"did": did}).encode()
    async with serving(world, world.config(**WITH_TOKEN)) as client:
        await client.get(img(did, cid))
        for method, path in ROUTES:
            reply = await client.ask(path, *headers, method=method, body=body)
            assert (reply.status, reply.text) == (401, "unauthorized\n")
            assert reply.headers["content-type"] == "text/plain; charset=utf-8"
            # RFC 9110, section 15.5.2: a 401 says how to authenticate.
            assert reply.headers["www-authenticate"].lower().startswith("bearer")
        assert (await client.get(img(did, cid))).headers["x-cache"] == "hit"
        assert (await told(client, "GET", "blocks")) == {"blocks": []}


def bearer(token: str) -> tuple[str, str]:
    return ("Authorization", f"Bearer {token}")


async def test_an_address_that_tried_too_many_wrong_tokens_waits_and_others_do_not(
    world: World, mock_clock: trio.testing.MockClock
) -> None:
    """Catches guessing without an end, and a limit for all that locks the operator out."""
    async with serving(world, world.config(**WITH_TOKEN)) as client:
        for number in range(MAX_FAILURES):
            reply = await client.get("/admin/blocks", bearer(f"wrong-{number}"))
            assert reply.status == 401
        for token in ("wrong", TOKEN):
            reply = await client.get("/admin/blocks", bearer(token))
            assert (reply.status, reply.text) == (429, "too many requests\n")
            assert 0 < int(reply.headers["retry-after"]) <= WINDOW
            assert reply.headers["cache-control"] == "no-store"
        other = await client.ask("/admin/blocks", bearer(TOKEN), address="192.0.2.2")
        assert other.status == 200
        mock_clock.jump(int(reply.headers["retry-after"]))
        assert (await client.get("/admin/blocks", bearer(TOKEN))).status == 200
        assert await client.metric('imageproxy_admin_requests_total{status="429"}') == 2


async def test_requests_without_a_token_and_with_the_right_one_are_no_wrong_tokens(
    world: World,
) -> None:
    """Catches a probe that locks its own machine out."""
    async with serving(world, world.config(**WITH_TOKEN)) as client:
        for _ in range(2 * MAX_FAILURES):
            assert (await client.get("/admin/blocks")).status == 401
            assert (await client.get("/admin/blocks", bearer(TOKEN))).status == 200


async def test_a_reason_is_bounded(world: World) -> None:
    """Catches an audit that one request fills."""
    did, _ = world.add_blob()
    async with serving(world, world.config(**WITH_TOKEN)) as client:
        longest = {"did": did, "reason": "é" * MAX_REASON}
        assert (await admin(client, "POST", "blocks", longest)).status == 200
        for method, route in (("POST", "blocks"), ("DELETE", "blocks"), ("POST", "purge")):
            reply = await admin(client, method, route, {"did": did, "reason": "é" * 1001})
            assert reply.status == 400
            assert "at most 1000 characters" in json.loads(reply.body)["error"]


async def test_a_body_that_is_too_large_is_a_413(world: World) -> None:
    """Catches a megabyte of JSON that is parsed on the event loop; over HTTP/2 too."""
    async with serving(world, world.config(**WITH_TOKEN)) as client:
        reply = await admin(client, "POST", "purge", {"reason": "x" * MAX_BODY})
        assert reply.status == 413


async def test_the_scheme_is_read_without_case_as_the_rfc_asks(world: World) -> None:
    async with serving(world, world.config(**WITH_TOKEN)) as client:
        for scheme in ("bearer", "BEARER"):
            reply = await client.get("/admin/blocks", ("Authorization", f"{scheme} {TOKEN}"))
            assert reply.status == 200


async def test_a_purge_removes_an_owner_a_blob_or_a_pair_and_counts_what_it_removed(
    world: World,
) -> None:
    data, other = tiny_png(), tiny_png((1, 2, 3))
    alice, bob = world.make_account(), world.make_account()
    blobs = [
        (alice, world.pds.add_blob(alice, data)),
        (alice, world.pds.add_blob(alice, other)),
        (bob, world.pds.add_blob(bob, data)),
    ]
    shared = blobs[0][1]
    await fill(world, *blobs)
    async with serving(world, world.config(**WITH_TOKEN)) as client:
        for did, cid in blobs:  # in the memory of this process too
            assert (await client.get(img(did, cid))).headers["x-cache"] == "hit"
        pair = {"did": alice, "cid": shared}
        assert await told(client, "POST", "purge", pair) == {"removed": 3}
        assert await told(client, "POST", "purge", pair) == {"removed": 0}
        states = [(await client.get(img(*blob))).headers["x-cache"] for blob in blobs]
        assert states == ["miss", "hit", "hit"]
    assert len(files_in(world.cache_path)) == 7
    async with serving(world, world.config(**WITH_TOKEN)) as client:
        assert await told(client, "POST", "purge", {"cid": shared}) == {"removed": 4}
        assert await told(client, "POST", "purge", {"did": alice}) == {"removed": 3}
        assert await told(client, "POST", "purge", {"did": bob, "cid": None}) == {"removed": 0}
    assert files_in(world.cache_path) == []


async def test_a_block_purges_before_it_answers_and_holds_until_it_is_lifted(
    world: World,
) -> None:
    did, cid = world.add_blob()
    await fill(world, (did, cid))
    async with serving(world, world.config(**WITH_TOKEN)) as client:
        assert (await client.get(img(did, cid))).status == 200
        block = {"did": did, "cid": cid, "reason": "a court said so"}
        assert await told(client, "POST", "blocks", block) == {"removed": 3}
        assert files_in(world.cache_path) == []
        assert (await client.get(img(did, cid))).status == 404
        (listed,) = (await told(client, "GET", "blocks"))["blocks"]
        assert listed.pop("created_at") > 1.7e9
        assert listed == {**block, "by": "admin"}
        assert await told(client, "DELETE", "blocks", {"did": did, "cid": cid}) == {"lifted": True}
        assert await told(client, "DELETE", "blocks", {"did": did, "cid": cid}) == {"lifted": False}
        assert (await client.get(img(did, cid))).headers["x-cache"] == "miss"


async def test_lifting_a_block_lifts_that_block_and_not_those_it_overlaps(world: World) -> None:
    did, cid = world.add_blob()
    async with serving(world, world.config(**WITH_TOKEN)) as client:
        blocks = [{"did": did}, {"cid": cid}, {"did": did, "cid": cid}]
        for block in blocks:
            await told(client, "POST", "blocks", block)
        listed = (await told(client, "GET", "blocks"))["blocks"]
        assert [(block["did"], block["cid"]) for block in listed] == [
            (did, None),
            (None, cid),
            (did, cid),
        ]
        for block in blocks:
            assert (await client.get(img(did, cid))).status == 404
            assert await told(client, "DELETE", "blocks", block) == {"lifted": True}
        assert (await client.get(img(did, cid))).status == 200


async def test_blocking_again_changes_the_reason_and_makes_no_second_block(world: World) -> None:
    did = new_plc_did()
    async with serving(world, world.config(**WITH_TOKEN)) as client:
        for reason in ("spam", "abuse"):
            await told(client, "POST", "blocks", {"did": did, "reason": reason})
        (block,) = (await told(client, "GET", "blocks"))["blocks"]
        assert (block["did"], block["cid"], block["reason"]) == (did, None, "abuse")


async def test_a_block_survives_a_restart_and_is_in_force_with_the_first_request(
    world: World,
) -> None:
    did, cid = world.add_blob()
    config = world.config(**WITH_TOKEN)
    async with serving(world, config) as client:
        await told(client, "POST", "blocks", {"cid": cid})
    async with serving(world, config) as client:
        assert (await client.get(img(did, cid))).status == 404
        assert (await client.get(img(did, cid), ("If-None-Match", "*"))).status == 404
        assert len((await told(client, "GET", "blocks"))["blocks"]) == 1
    assert world.pds.requests == []


async def test_a_block_wins_over_a_fetch_under_way(world: World) -> None:
    did, cid = world.add_blob()
    gate, seen = trio.Event(), trio.Event()
    world.pds.fault = gated(gate, seen=seen)
    replies: list[Reply] = []

    async def ask(target: str) -> None:
        replies.append(await client.get(target))

    async with serving(world, world.config(**WITH_TOKEN)) as client:
        async with trio.open_nursery() as nursery:
            nursery.start_soon(ask, img(did, cid))
            nursery.start_soon(ask, f"/blob/{did}/{cid}")
            await seen.wait()
            await told(client, "POST", "blocks", {"did": did})
            gate.set()
        assert [reply.status for reply in replies] == [404, 404]
        # Nor did it leave anything for the time when the block is lifted.
        world.pds.fault = honest
        await told(client, "DELETE", "blocks", {"did": did})
        assert (await client.get(img(did, cid))).headers["x-cache"] == "miss"


BAD_BODIES: dict[str, bytes] = {
    "nothing": b"",
    "no JSON": b"did=a",
    "half of it": b'{"did": "a',
    "a list": b"[]",
    "a string": b'"did"',
    "null": b"null",
    "neither": b"{}",
    "both null": b'{"did": null, "cid": null}',
    "a reason alone": b'{"reason": "x"}',
    "an unknown key": b'{"did": "%s", "preset": "avatar"}' % new_plc_did().encode(),
    "a misspelled key": b'{"DID": "%s"}' % new_plc_did().encode(),
    "a bad DID": b'{"did": "did:plc:nothing"}',
    "a DID that is a number": b'{"did": 7}',
    "a DID that is a list": b'{"did": ["%s"]}' % new_plc_did().encode(),
    "an empty DID": b'{"did": ""}',
    "a DID in another spelling": b'{"did": "DID:PLC:%s"}' % new_plc_did()[8:].encode(),
    "a bad CID": b'{"cid": "bafk"}',
    "an empty CID": b'{"cid": ""}',
    "false": b'{"cid": false}',
    "a good DID and a bad CID": b'{"did": "%s", "cid": "x"}' % new_plc_did().encode(),
    "not UTF-8": b'{"did": "\xff"}',
    "NaN": b'{"did": NaN}',
    "deep": b"[" * 60_000,
    "deep in a key": b'{"did": ' + b"[" * 60_000,
    "a number too long to read": b'{"did": ' + b"9" * 10_000 + b"}",
    "a lone surrogate": b'{"did": "\\ud800"}',
}


@pytest.mark.parametrize("name", BAD_BODIES)
async def test_a_body_that_is_wrong_is_a_400_and_changes_nothing(name: str, world: World) -> None:
    headers = (("Authorization", f"Bearer {TOKEN}"),)
    did, cid = world.add_blob()
    async with serving(world, world.config(**WITH_TOKEN)) as client:
        await client.get(img(did, cid))
        for method, path in ROUTES:
            if method != "GET":
                reply = await client.ask(path, *headers, method=method, body=BAD_BODIES[name])
                assert (reply.status, reply.headers["content-type"]) == (400, "application/json")
                assert json.loads(reply.body)["error"], path
        assert await told(client, "GET", "blocks") == {"blocks": []}
        assert (await client.get(img(did, cid))).headers["x-cache"] == "hit"


@pytest.mark.parametrize(
    ("name", "cause"),
    [
        ("no JSON", "the body is not JSON"),
        ("a list", "the body must be an object"),
        ("an unknown key", "unknown key 'preset'; known: did, cid, reason"),
        ("neither", "give did, cid, or both"),
        ("a bad DID", "DID 'did:plc:nothing'"),
        ("a bad CID", "CID 'bafk'"),
    ],
)
async def test_why_a_body_is_wrong_is_told_to_the_operator_and_to_the_log(
    name: str, cause: str, world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Catches a block that was never made, and nobody knows why."""
    headers = (("Authorization", f"Bearer {TOKEN}"),)
    async with serving(world, world.config(**WITH_TOKEN)) as client:
        with logged_by(proxy.web.admin_access, monkeypatch) as lines:
            reply = await client.ask(
                "/admin/blocks", *headers, method="POST", body=BAD_BODIES[name]
            )
    assert json.loads(reply.body) == {"error": cause}
    (line,) = lines
    assert (line["log_level"], line["status"], line["cause"]) == ("warning", 400, cause)
    assert (line["method"], line["path"], line["by"]) == ("POST", "/admin/blocks", "admin")


async def test_a_wrong_token_is_logged_and_counted_and_never_written(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Catches somebody who tries tokens for a year unseen, and a log that has them."""
    refused = 'imageproxy_admin_requests_total{status="401"}'
    async with serving(world, world.config(**WITH_TOKEN)) as client:
        assert await client.metric(refused) == 0
        with logged_by(proxy.web.admin_access, monkeypatch) as lines:
            for given in (f"Bearer {TOKEN}x", "Basic s3cret"):
                await client.get("/admin/blocks", ("Authorization", given))
            await client.get("/admin/blocks")
        assert await client.metric(refused) == 3
        await told(client, "GET", "blocks")
        assert await client.metric('imageproxy_admin_requests_total{status="200"}') == 1
    assert [line["cause"] for line in lines] == [
        "a token that is nobody's",
        "no bearer token",
        "no bearer token",
    ]
    assert {line["status"] for line in lines} == {401}
    assert TOKEN not in str(lines)
    assert "s3cret" not in str(lines)


@pytest.mark.parametrize("reason", [7, None, ["x"], {"a": 1}])
async def test_a_reason_that_is_no_string_is_a_400_not_a_500(reason: Any, world: World) -> None:
    async with serving(world, world.config(**WITH_TOKEN)) as client:
        block = {"did": new_plc_did(), "reason": reason}
        assert (await admin(client, "POST", "blocks", block)).status == 400
        assert await told(client, "GET", "blocks") == {"blocks": []}


async def test_a_reason_is_kept_letter_for_letter(world: World) -> None:
    """Catches a reason that is cut or escaped; only a NUL, which PostgreSQL has not, is marked."""
    reason = "'; DROP TABLE blocks; --\n\"<b>\x00ü\U0001f600"
    did = new_plc_did()
    async with serving(world, world.config(**WITH_TOKEN)) as client:
        await told(client, "POST", "blocks", {"did": did, "reason": reason})
    async with serving(world, world.config(**WITH_TOKEN)) as client:
        (block,) = (await told(client, "GET", "blocks"))["blocks"]
        assert (block["did"], block["reason"]) == (did, reason.replace("\0", "\ufffd"))


async def test_a_reason_that_cannot_be_kept_is_refused_not_a_500(world: World) -> None:
    async with serving(world, world.config(**WITH_TOKEN)) as client:
        body = b'{"did": "%s", "reason": "\\ud800"}' % new_plc_did().encode()
        headers = (("Authorization", f"Bearer {TOKEN}"),)
        reply = await client.ask("/admin/blocks", *headers, method="POST", body=body)
        assert reply.status == 400


async def test_a_store_that_cannot_be_written_is_a_503_and_the_block_is_not_claimed(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    did, cid = world.add_blob()
    monkeypatch.setattr("proxy.shared.sqlite.BUSY_SECONDS", 0)
    async with serving(world, world.config(**WITH_TOKEN)) as client:
        with closing(sqlite3.connect(world.cache_path / "moderation.sqlite3")) as other:
            other.execute("BEGIN IMMEDIATE")
            for method, route in (("POST", "blocks"), ("DELETE", "blocks"), ("POST", "purge")):
                reply = await admin(client, method, route, {"did": did})
                assert reply.status == 503, route
                assert str(world.cache_path) not in reply.text
            assert (await client.get(img(did, cid))).status == 200
            other.rollback()
        assert (await admin(client, "POST", "blocks", {"did": did})).status == 200


async def test_a_block_that_a_process_does_not_follow_is_told_as_such(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Catches "blocked" told while some process goes on serving it."""
    monkeypatch.setattr("proxy.wiring.PATIENCE_SECONDS", 0.1)
    did, cid = world.add_blob()
    stuck = FolderReplicas(world.cache_path / "followers")
    async with serving(world, world.config(**WITH_TOKEN)) as client:
        stuck.enter()
        stuck.note(0)
        reply = await admin(client, "POST", "blocks", {"did": did})
        assert reply.status == 503
        assert "do not follow yet" in json.loads(reply.body)["error"]
        # Kept it is, and in force where it can be.
        assert (await client.get(img(did, cid))).status == 404
        assert len((await told(client, "GET", "blocks"))["blocks"]) == 1
        stuck.leave()


async def test_tokens_have_names_that_the_audit_tells(world: World) -> None:
    """Catches a second token that does not open, and decisions that are all one's."""
    tokens = {"alice": "the token of Alice", "bob": "the token of Bob"}
    config = world.config(server={"admin_token": TOKEN, "admin_tokens": tokens})
    did, cid = world.add_blob()
    async with serving(world, config) as client:
        for token, method, body in (
            (TOKEN, "POST", {"did": did, "reason": "spam"}),
            (tokens["alice"], "POST", {"did": did, "cid": cid, "reason": "a law"}),
            (tokens["bob"], "DELETE", {"did": did, "reason": "an appeal"}),
        ):
            reply = await client.ask(
                "/admin/blocks",
                ("Authorization", f"Bearer {token}"),
                method=method,
                body=json.dumps(body).encode(),
            )
            assert reply.status == 200
        (listed,) = (await told(client, "GET", "blocks"))["blocks"]
        assert (listed["cid"], listed["by"]) == (cid, "alice")
        audit = client.service.moderator.store.audit(10)
    assert [(each.by, each.action, each.did, each.cid, each.reason) for each in audit] == [
        ("admin", "block", did, None, "spam"),
        ("alice", "block", did, cid, "a law"),
        ("bob", "lift", did, None, "an appeal"),
    ]


async def test_named_tokens_alone_open_the_routes_too(world: World) -> None:
    config = world.config(server={"admin_tokens": {"alice": "the token of Alice"}})
    async with serving(world, config) as client:
        for token, status in (("the token of Alice", 200), ("", 401), (TOKEN, 401)):
            headers = ("Authorization", f"Bearer {token}")
            assert (await client.get("/admin/blocks", headers)).status == status


async def test_a_listing_of_many_pages_is_one_json_document(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Catches a comma too few between pages, and a page that comes twice."""
    monkeypatch.setattr("proxy.moderation.decision_store.PAGE", 3)
    async with serving(world, world.config(**WITH_TOKEN)) as client:
        entries = [(Selection(did=owner(number)), "") for number in range(10)]
        await client.service.moderator.block_all(entries, by="a test")
        listed = (await told(client, "GET", "blocks"))["blocks"]
    assert [block["did"] for block in listed] == [owner(number) for number in range(10)]


async def test_answers_to_the_operator_are_kept_by_no_cache(world: World) -> None:
    async with serving(world, world.config(**WITH_TOKEN)) as client:
        for reply in (
            await admin(client, "GET", "blocks"),
            await admin(client, "POST", "purge", {"cid": cid_of(b"x")}),
        ):
            assert reply.headers.get("cache-control") == "no-store"
