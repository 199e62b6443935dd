"""The policy service: what it did not permit is not served, and it is asked no more than needed."""

from __future__ import annotations

import json
import sqlite3
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from typing import Any
from urllib.parse import parse_qsl, urlsplit

import pytest
import trio
import trio.testing

import proxy.moderation.policy
from proxy.errors import BlobBlocked, ImageProxyError, PolicyUnavailable, TakenDown
from proxy.model.identifiers import Did
from proxy.model.keys import BlobKey
from proxy.model.selection import Everything, Selection
from proxy.moderation.policy import Policy, Verdicts
from proxy.moderation.policy_protocols import GET_BLOB_POLICY, PROTOCOLS, Verdict
from tests.fakes import faults
from tests.fakes.misbehaviours import heal
from tests.fakes.network import Fault, Request, Response, Site
from tests.fakes.parts import FakeCache, FakeProcessor
from tests.fakes.sites import cid_of, new_plc_did
from tests.fakes.world import World, tiny_png
from tests.logs import logged_by
from tests.web import img, serving

Clock = trio.testing.MockClock

BLOB = BlobKey(Did("did:plc:ewvi7nxzyoun6zhxrhs64oiz"), cid_of(b"some"))
OTHER = BlobKey(new_plc_did(), cid_of(b"other"))


class FakePolicy(Site):
    """A policy service that permits what it was not told about.

    Attributes:
        statuses: by path below its URL.
    """

    def __init__(self) -> None:
        super().__init__("policy.internal", port=7000, scheme="http")
        self.statuses: dict[str, int] = {}

    def take_down(self, blob: BlobKey) -> None:
        self.statuses[f"/v1/{blob.did}/{blob.cid}"] = 410

    def answer(self, request: Request) -> Response:
        """See ``Site.answer``."""
        target = urlsplit(request.target)
        if target.path == f"/v1/xrpc/{GET_BLOB_POLICY}":
            query = dict(parse_qsl(target.query))
            status = self.statuses.get(f"/v1/{query['did']}/{query['cid']}", 200)
            return Response(200, body=porxie_answer("allowed" if status == 200 else "forbidden"))
        return Response(self.statuses.get(request.target, 200))


@pytest.fixture
async def site(world: World) -> FakePolicy:
    """On the network of the operator's own servers alone, as on a private address."""
    site = FakePolicy()
    world.directory_network.add(site)
    return site


def settings(**keys: Any) -> dict[str, Any]:
    return {"url": "http://policy.internal:7000/v1"} | keys


class Purges:
    """Notes what is to be purged."""

    def __init__(self) -> None:
        self.blobs: list[BlobKey] = []
        self.error: Exception | None = None

    async def __call__(self, blob: BlobKey) -> None:
        await trio.lowlevel.checkpoint()
        self.blobs.append(blob)
        if self.error is not None:
            raise self.error


@asynccontextmanager
async def policy_of(
    world: World, purges: Purges | None = None, **keys: Any
) -> AsyncIterator[Policy]:
    policy = Policy(
        world.config(policy=settings(**keys)),
        world.network,
        world.directory_network,
    )
    async with trio.open_nursery() as nursery:
        await nursery.start(policy.run, purges or Purges())
        yield policy
        nursery.cancel_scope.cancel()
    assert world.open_wires == 0


# What is decided.


def test_no_other_status_is_a_verdict() -> None:
    """Catches a redirect, an empty answer or a 404 of a wrong path that permits."""
    verdict_of = PROTOCOLS["status"].verdict_of
    verdicts = {status: verdict_of(status, b"") for status in range(100, 600)}
    told = {status: verdict for status, verdict in verdicts.items() if verdict is not None}
    assert told == {200: Verdict.PERMITTED, 410: Verdict.TAKEN_DOWN}


def porxie_answer(variant: str) -> bytes:
    """An answer by the Lexicon of Porxie's policy service."""
    return json.dumps({"policy": {"$type": f"{GET_BLOB_POLICY}#{variant}"}}).encode()


def test_porxies_answer_is_in_its_body() -> None:
    """Catches a 200 that says "forbidden" and is read as a permission."""
    verdict_of = PROTOCOLS["porxie"].verdict_of
    assert verdict_of(200, porxie_answer("allowed")) is Verdict.PERMITTED
    assert verdict_of(200, porxie_answer("forbidden")) is Verdict.TAKEN_DOWN
    for status in (201, 204, 400, 404, 410, 500):
        assert verdict_of(status, porxie_answer("allowed")) is None


@pytest.mark.parametrize(
    "body",
    [
        b"",
        b"ok",
        b"\xff",
        b"null",
        b"[]",
        b'"allowed"',
        b"{}",
        b'{"policy": null}',
        b'{"policy": "allowed"}',
        b'{"policy": {}}',
        b'{"policy": {"$type": 1}}',
        b'{"policy": {"$type": "#allowed"}}',
        porxie_answer("Allowed"),
        porxie_answer("quarantined"),
        porxie_answer("allowed")[:-1],
        b"[" * 65536,
    ],
)
def test_an_answer_of_neither_form_is_none(body: bytes) -> None:
    """Catches a permission by default, and a body that raises."""
    assert PROTOCOLS["porxie"].verdict_of(200, body) is None


def test_a_purge_takes_permissions_back_and_no_takedown() -> None:
    """Catches a takedown that is asked about again because it purged, for ever."""
    verdicts = Verdicts(ttl=60, max_entries=10)
    mine = BlobKey(BLOB.did, OTHER.cid)
    for blob in (BLOB, mine, OTHER):
        verdicts.put(blob, Verdict.PERMITTED, 0)
    verdicts.forget_permissions(Selection(did=BLOB.did), 1)
    assert [verdicts.get(blob, 1) for blob in (BLOB, mine, OTHER)] == [
        None,
        None,
        Verdict.PERMITTED,
    ]
    verdicts.put(BLOB, Verdict.TAKEN_DOWN, 1)
    verdicts.forget_permissions(Selection(cid=BLOB.cid), 2)
    assert verdicts.get(BLOB, 2) is Verdict.TAKEN_DOWN
    verdicts.forget_permissions(Everything(), 3)
    assert len(verdicts) == 0


def test_an_answer_counts_for_its_time_and_no_longer() -> None:
    verdicts = Verdicts(ttl=60, max_entries=10)
    verdicts.put(BLOB, Verdict.PERMITTED, 100)
    assert verdicts.get(BLOB, 159.9) is Verdict.PERMITTED
    assert verdicts.get(BLOB, 160) is None
    assert verdicts.get(OTHER, 100) is None
    verdicts.put(BLOB, Verdict.TAKEN_DOWN, 150)
    assert verdicts.get(BLOB, 160) is Verdict.TAKEN_DOWN


def test_a_ttl_of_0_remembers_nothing() -> None:
    verdicts = Verdicts(ttl=0, max_entries=10)
    verdicts.put(BLOB, Verdict.PERMITTED, 100)
    assert verdicts.get(BLOB, 100) is None


def test_answers_are_bounded_and_the_latest_stay() -> None:
    """Catches a memory that a stranger fills by asking for blobs."""
    verdicts = Verdicts(ttl=60, max_entries=3)
    blobs = [BlobKey(new_plc_did(), cid_of(b"%d" % number)) for number in range(5)]
    for blob in (*blobs[:3], blobs[0], *blobs[3:]):
        verdicts.put(blob, Verdict.PERMITTED, 0)
    assert len(verdicts) == 3
    assert [blob for blob in blobs if verdicts.get(blob, 0)] == [blobs[0], *blobs[3:]]


# Asking.


async def test_what_is_permitted_is_asked_once_until_its_time_is_over(
    world: World, site: FakePolicy, autojump_clock: Clock
) -> None:
    async with policy_of(world, ttl=300) as policy:
        assert policy.known(BLOB) is None
        for _ in range(3):
            await policy.permit(BLOB)
        assert policy.known(BLOB) is Verdict.PERMITTED
        assert [request.target for request in site.requests] == [f"/v1/{BLOB.did}/{BLOB.cid}"]
        await trio.sleep(300)
        assert policy.known(BLOB) is None
        site.take_down(BLOB)
        with pytest.raises(TakenDown):
            await policy.permit(BLOB)
        assert policy.known(BLOB) is Verdict.TAKEN_DOWN
        assert len(site.requests) == 2


async def test_a_thousand_at_once_ask_once(world: World, site: FakePolicy) -> None:
    site.take_down(OTHER)
    outcomes: list[object] = []

    async def ask(blob: BlobKey) -> None:
        try:
            await policy.permit(blob)
            outcomes.append(None)
        except ImageProxyError as error:
            outcomes.append(type(error))

    async with policy_of(world) as policy, trio.open_nursery() as nursery:
        for _ in range(500):
            nursery.start_soon(ask, BLOB)
            nursery.start_soon(ask, OTHER)
        while len(outcomes) < 1000:
            await trio.lowlevel.checkpoint()
    assert (outcomes.count(None), outcomes.count(TakenDown)) == (500, 500)
    assert len(site.requests) == 2


async def test_a_caller_that_leaves_does_not_end_the_question(
    world: World, site: FakePolicy, autojump_clock: Clock
) -> None:
    site.fault = faults.trickle(1e9, at_once=1)
    async with policy_of(world) as policy, trio.open_nursery() as nursery:
        with trio.move_on_after(0) as gone:
            await policy.permit(BLOB)
        nursery.start_soon(policy.permit, BLOB)
        with trio.CancelScope() as gone:
            gone.cancel()
            await policy.permit(BLOB)
        await policy.permit(BLOB)
    assert policy.known(BLOB) is Verdict.PERMITTED


@pytest.mark.parametrize(
    ("did", "path"),
    [
        (Did("did:web:someone.example"), "did:web:someone.example"),
        (Did("did:web:localhost%3A2583"), "did:web:localhost%253A2583"),
    ],
)
async def test_a_did_arrives_letter_for_letter(
    world: World, site: FakePolicy, did: Did, path: str
) -> None:
    async with policy_of(world) as policy:
        await policy.permit(BlobKey(did, BLOB.cid))
    (request,) = site.requests
    assert request.target == f"/v1/{path}/{BLOB.cid}"


FAILURES = [
    *(faults.answers(status) for status in (204, 301, 400, 401, 403, 404, 429, 500, 502, 503)),
    faults.reset,
    faults.close,
    faults.hang,
    faults.reset_in_head,
    faults.answers(200, b"some", then=faults.hang_after_head),
    faults.answers(200, b"some", then=faults.reset_in_body),
    faults.answers(200, bytes(100_000)),
]


@pytest.mark.parametrize("fault", FAILURES, ids=lambda fault: fault.__name__)
@pytest.mark.parametrize("fail_open", [False, True])
async def test_a_missing_answer_does_not_permit_unless_the_operator_says_so(
    world: World, site: FakePolicy, fault: Fault, fail_open: bool, autojump_clock: Clock
) -> None:
    """Catches a service that fails open; and a failure that is remembered like an answer."""
    site.fault = fault
    site.pages["/v1"] = Response(200)
    async with policy_of(world, fail_open=fail_open) as policy:
        if fail_open:
            await policy.permit(BLOB)
        else:
            with pytest.raises(PolicyUnavailable) as caught:
                await policy.permit(BLOB)
            assert (caught.value.status, caught.value.public_message) == (503, "busy")
        assert policy.known(BLOB) is None
        heal(site)
        await trio.sleep(60)  # what said 429 is left alone for a moment
        site.take_down(BLOB)
        with pytest.raises(TakenDown):
            await policy.permit(BLOB)


async def test_a_service_that_is_down_is_left_alone_and_tried_again(
    world: World, site: FakePolicy, autojump_clock: Clock
) -> None:
    """Catches a connection for each request while nobody answers them."""
    site.refuses = -1
    async with policy_of(world) as policy:
        for _ in range(50):
            with pytest.raises(PolicyUnavailable):
                await policy.permit(BLOB)
        assert len(world.directory_network.asked) < 20
        site.refuses = 0
        await trio.sleep(60)
        await policy.permit(BLOB)


async def test_its_timeout_is_not_that_of_a_fetch(
    world: World, site: FakePolicy, autojump_clock: Clock
) -> None:
    site.fault = faults.hang
    async with policy_of(world, timeout=0.5) as policy:
        began = trio.current_time()
        with pytest.raises(PolicyUnavailable):
            await policy.permit(BLOB)
        assert trio.current_time() - began == pytest.approx(0.5)


async def test_a_redirect_of_the_service_is_not_trusted(world: World, site: FakePolicy) -> None:
    """Catches a policy service, or who took it over, that leads into the operator's network."""
    inside = Site("inside.example", port=80, scheme="http")
    inside.pages["/"] = Response(200)
    world.directory_network.add(inside)
    site.fault = faults.redirects("http://inside.example/")
    async with policy_of(world) as policy:
        with pytest.raises(PolicyUnavailable):
            await policy.permit(BLOB)
    assert inside.connections == 0
    assert ("inside.example", 80) in world.network.asked


async def test_what_is_taken_down_is_purged_before_it_is_refused(
    world: World, site: FakePolicy
) -> None:
    """Catches files that nginx goes on serving."""
    site.take_down(BLOB)
    purges = Purges()
    async with policy_of(world, purges) as policy:
        with pytest.raises(TakenDown):
            await policy.permit(BLOB)
        await policy.permit(OTHER)
    assert purges.blobs == [BLOB]


async def test_what_is_taken_down_is_purged_though_who_asked_has_gone(
    world: World, site: FakePolicy
) -> None:
    """Catches a client that leaves during the purge, and files that nginx serves until a request
    asks again."""
    site.take_down(BLOB)
    begun, gate = trio.Event(), trio.Event()

    class SlowPurges(Purges):
        async def __call__(self, blob: BlobKey) -> None:
            begun.set()
            await gate.wait()
            await super().__call__(blob)

    purges = SlowPurges()
    async with policy_of(world, purges) as policy:
        async with trio.open_nursery() as client:
            client.start_soon(policy.permit, BLOB)
            await begun.wait()
            client.cancel_scope.cancel()
        gate.set()
        await trio.testing.wait_all_tasks_blocked()
        assert purges.blobs == [BLOB]


@pytest.mark.parametrize("error", [sqlite3.OperationalError("locked"), OSError("disk")])
async def test_a_purge_that_fails_permits_nothing(
    world: World, site: FakePolicy, error: Exception, monkeypatch: pytest.MonkeyPatch
) -> None:
    site.take_down(BLOB)
    purges = Purges()
    purges.error = error
    with logged_by(proxy.moderation.policy, monkeypatch) as logs:
        async with policy_of(world, purges) as policy:
            with pytest.raises(TakenDown):
                await policy.permit(BLOB)
    assert [line["event"] for line in logs] == ["a blob that was taken down cannot be purged"]


async def test_a_service_that_has_ended_permits_nothing(world: World, site: FakePolicy) -> None:
    async with policy_of(world) as policy:
        pass
    with pytest.raises(ImageProxyError) as caught:
        await policy.permit(BLOB)
    assert caught.value.status == 503


async def test_porxies_policy_service_is_asked_as_porxie_asks_it(
    world: World, site: FakePolicy
) -> None:
    """Catches a question that such a service answers with a 404, and a 200 that permits."""
    owner = BlobKey(Did("did:web:localhost%3A2583"), BLOB.cid)
    site.take_down(BLOB)
    async with policy_of(world, protocol="porxie") as policy:
        with pytest.raises(TakenDown):
            await policy.permit(BLOB)
        await policy.permit(owner)
    assert [request.target for request in site.requests] == [
        f"/v1/xrpc/dev.blooym.porxie.getBlobPolicy?did={BLOB.did}&cid={BLOB.cid}",
        f"/v1/xrpc/dev.blooym.porxie.getBlobPolicy?did=did:web:localhost%253A2583&cid={BLOB.cid}",
    ]


@pytest.mark.parametrize("protocol", ["status", "porxie"])
async def test_an_answer_in_the_other_protocol_permits_nothing(
    world: World, site: FakePolicy, protocol: str
) -> None:
    """Catches a setting that does not fit the service, and serves what that forbids."""
    body = b"ok" if protocol == "porxie" else porxie_answer("forbidden")
    site.fault = faults.answers(200 if protocol == "porxie" else 404, body)
    async with policy_of(world, protocol=protocol) as policy:
        with pytest.raises(PolicyUnavailable):
            await policy.permit(BLOB)


async def test_a_permission_older_than_a_purge_is_not_remembered(
    world: World, site: FakePolicy
) -> None:
    """Catches a purge that meets its question under way, and is forgotten by the answer."""
    gate, seen = trio.Event(), trio.Event()
    site.fault = faults.gated(gate, seen=seen)
    async with policy_of(world) as policy:
        async with trio.open_nursery() as nursery:
            nursery.start_soon(policy.permit, BLOB)
            await seen.wait()
            policy.forget(Selection(cid=BLOB.cid))
            gate.set()
        assert policy.known(BLOB) is None


async def test_a_question_after_a_purge_has_an_answer_of_its_own(
    world: World, site: FakePolicy
) -> None:
    """Catches a permission of before a purge, for who asks after it; and a purge of another blob
    for which an answer is thrown away."""
    gate, seen = trio.Event(), trio.Event()
    site.fault = faults.gated(gate, seen=seen)
    async with policy_of(world) as policy, trio.open_nursery() as nursery:
        for blob in (BLOB, OTHER):
            nursery.start_soon(policy.permit, blob)
        await seen.wait()
        await trio.testing.wait_all_tasks_blocked()
        policy.forget(Selection(cid=BLOB.cid))
        heal(site)
        site.take_down(BLOB)
        with pytest.raises(TakenDown):
            await policy.permit(BLOB)
        gate.set()
        await trio.testing.wait_all_tasks_blocked()
        assert policy.known(BLOB) is Verdict.TAKEN_DOWN
        assert policy.known(OTHER) is Verdict.PERMITTED


# Serving.


@pytest.mark.usefixtures("both_ways")
async def test_a_purge_has_the_policy_service_asked_again(world: World, site: FakePolicy) -> None:
    """Catches a service that changes its mind, calls purge, and is not asked for ``policy.ttl``."""
    did, cid = world.add_blob(tiny_png())
    config = world.config(policy=settings(protocol="porxie"))
    async with serving(world, config) as client:
        assert (await client.get(img(did, cid))).status == 200
        site.take_down(BlobKey(did, cid))
        assert (await client.get(img(did, cid))).status == 200, "remembered"
        await client.service.moderator.purge(Selection(cid=cid), by="test")
        assert (await client.get(img(did, cid))).status == 404


@pytest.mark.parametrize("method", ["GET", "HEAD"])
@pytest.mark.usefixtures("both_ways")
async def test_what_is_taken_down_is_a_404_before_the_cache_and_before_a_304(
    world: World, site: FakePolicy, method: str, mock_clock: Clock
) -> None:
    """Catches a policy that is asked on a miss alone, and an answer that differs from a block's."""
    mock_clock.rate = 1
    did, cid = world.add_blob(tiny_png())
    down, blocked = BlobKey(did, cid), BlobKey(did, world.add_blob(b"blocked", did=did)[1])
    async with serving(world, world.config(policy=settings(ttl=60))) as client:
        first = await client.get(img(did, cid))
        assert first.status == 200
        blob = await client.get(f"/blob/{did}/{cid}")
        assert (blob.status, (await client.get(img(did, cid))).headers["x-cache"]) == (200, "hit")
        site.take_down(down)
        await client.service.moderator.block(Selection(did, blocked.cid), by="test")
        mock_clock.jump(60)
        fetched = len(world.pds.requests)
        for target, etag in (
            (img(did, cid), first.headers["etag"]),
            (f"/blob/{did}/{cid}", blob.headers["etag"]),
        ):
            like = await client.ask(target.replace(cid, blocked.cid), method=method)
            for headers in ((), (("If-None-Match", etag),), (("If-None-Match", "*"),)):
                reply = await client.ask(target, *headers, method=method)
                assert (reply.status, reply.headers, reply.body) == (404, like.headers, like.body)
        assert len(world.pds.requests) == fetched
        assert await client.metric('imageproxy_policy_answers_total{answer="taken_down"}') == 1
        assert await client.metric("imageproxy_blocked_total") == 8
        files = [path for path in world.cache_path.rglob(f"*{cid}*") if path.is_file()]
        assert files == []


@pytest.mark.parametrize("target", ["image", "blob"])
@pytest.mark.usefixtures("both_ways")
async def test_a_304_waits_for_the_word_too(world: World, site: FakePolicy, target: str) -> None:
    did, cid = world.add_blob(tiny_png())
    path = img(did, cid) if target == "image" else f"/blob/{did}/{cid}"
    site.fault = faults.answers(500)
    async with serving(world, world.config(policy=settings())) as client:
        fingerprint = client.service.config.presets["avatar_thumbnail"].fingerprint(None)
        etags = {"image": f'"avatar_thumbnail-{cid}-{fingerprint}"', "blob": f'"{cid}"'}
        known = ("If-None-Match", etags[target])
        reply = await client.get(path, known)
        assert (reply.status, reply.text) == (503, "busy\n")
        assert "retry-after" in reply.headers
        assert (await client.get(path)).status == 503
        heal(site)
        assert (await client.get(path, known)).status == 304
    assert world.pds.blob_requests == 0


async def test_a_block_decides_without_a_question(world: World, site: FakePolicy) -> None:
    did, cid = world.add_blob(tiny_png())
    async with world.service(world.config(policy=settings())) as service:
        await service.moderator.block(Selection(did), by="test")
        with pytest.raises(BlobBlocked):
            await service.get_image("avatar", did, cid)
    assert site.requests == []


@pytest.mark.usefixtures("both_ways")
async def test_a_block_that_comes_while_the_word_is_waited_for_is_not_passed_over(
    world: World, site: FakePolicy
) -> None:
    """Catches a 304, or a hit, after the call that blocked it has answered."""
    did, cid = world.add_blob(tiny_png())
    arrived, goes_on = trio.Event(), trio.Event()
    honest = site.fault

    async def wait(conversation: Any) -> None:
        arrived.set()
        await goes_on.wait()
        await honest(conversation)

    site.fault = wait
    replies: list[int] = []

    async def ask() -> None:
        fingerprint = client.service.config.presets["avatar_thumbnail"].fingerprint(None)
        known = ("If-None-Match", f'"avatar_thumbnail-{cid}-{fingerprint}"')
        replies.append((await client.get(img(did, cid), known)).status)

    async with serving(world, world.config(policy=settings(timeout=30))) as client:
        async with trio.open_nursery() as nursery:
            nursery.start_soon(ask)
            await arrived.wait()
            await client.service.moderator.block(Selection(did), by="test")
            goes_on.set()
        assert replies == [404]


async def test_a_known_permission_costs_a_hit_no_step(
    world: World, site: FakePolicy, mock_clock: Clock
) -> None:
    """Catches a hit that waits: the check of what is known is a plain call."""
    mock_clock.rate = 1  # the purge of what is taken down works in threads
    did, cid = world.add_blob(tiny_png())
    blob = BlobKey(did, cid)
    config = world.config(policy=settings(ttl=3600))
    async with world.service(config, cache=FakeCache(), processor=FakeProcessor()) as service:
        assert service.gate.check(blob) is False
        await service.get_image("avatar", did, cid)
        assert service.gate.check(blob) is True
        mock_clock.jump(3600)
        assert service.gate.check(blob) is False
        site.take_down(blob)
        with pytest.raises(TakenDown):
            await service.gate.permit(blob)
        with pytest.raises(TakenDown):
            service.gate.check(blob)
        assert service.gate.refuses(blob)


async def test_without_a_policy_service_nothing_has_to_be_asked(world: World) -> None:
    did, cid = world.add_blob(tiny_png())
    async with world.service() as service:
        assert service.gate.check(BlobKey(did, cid)) is True


async def test_a_take_down_beats_a_fetch_under_way(
    world: World, site: FakePolicy, mock_clock: Clock
) -> None:
    """Catches a result that was permitted when it was asked for, served and kept afterwards."""
    mock_clock.rate = 1  # the purge of what is taken down works in threads
    did, cid = world.add_blob(tiny_png())
    arrived, goes_on = trio.Event(), trio.Event()
    honest = world.pds.fault

    async def wait(conversation: Any) -> None:
        arrived.set()
        await goes_on.wait()
        await honest(conversation)

    world.pds.fault = wait
    cache = FakeCache()
    errors: list[type[Exception]] = []

    async def ask(get: Callable[[], Any]) -> None:
        try:
            await get()
        except ImageProxyError as error:
            errors.append(type(error))

    config = world.config(policy=settings(ttl=10), fetch={"timeout": 600})
    async with (
        world.service(config, cache=cache, processor=FakeProcessor()) as service,
        trio.open_nursery() as asking,
    ):
        asking.start_soon(ask, lambda: service.get_image("avatar", did, cid))
        asking.start_soon(ask, lambda: service.get_blob(BlobKey(did, cid)))
        await arrived.wait()
        site.take_down(BlobKey(did, cid))
        mock_clock.jump(10)
        await ask(lambda: service.get_image("avatar", did, cid))
        goes_on.set()
    assert errors == [TakenDown] * 3
    assert cache.entries == {}


async def test_questions_wait_for_no_fetch(
    world: World, site: FakePolicy, autojump_clock: Clock
) -> None:
    """Catches questions in the channel of fetches: hits would wait for slow PDSes."""
    world.pds.fault = faults.hang
    config = world.config(policy=settings(), fetch={"workers": 1, "queue_size": 1, "timeout": 30})
    async with (
        world.service(config, cache=FakeCache(), processor=FakeProcessor()) as service,
        trio.open_nursery() as nursery,
    ):
        for number in range(2):
            did, cid = world.add_blob(b"%d" % number)
            nursery.start_soon(_ignored, service.get_image, "avatar", did, cid)
        await trio.testing.wait_all_tasks_blocked()
        with trio.fail_after(1):
            await service.gate.permit(BLOB)
        nursery.cancel_scope.cancel()


async def _ignored(get: Callable[..., Any], *args: str) -> None:
    with pytest.raises(ImageProxyError):
        await get(*args)
