"""The CDN: what it has to forget reaches it in the end, and the token nobody else."""

from __future__ import annotations

import json
import sqlite3
import sys
from collections.abc import AsyncIterator, Callable, Iterator, Sequence
from contextlib import asynccontextmanager, closing, contextmanager
from io import StringIO
from pathlib import Path
from typing import Any

import pytest
import structlog
import trio
import trio.testing
from hypothesis import given
from hypothesis import strategies as st
from pydantic import SecretStr
from structlog.testing import capture_logs

from proxy.config import Config
from proxy.coordination.leader import Leadership
from proxy.egress.guard import GuardedNetwork
from proxy.model.formats import OUTPUTS
from proxy.model.keys import BlobKey
from proxy.model.presets import DEFAULT_PRESETS
from proxy.moderation.cdn import sender as sending
from proxy.moderation.cdn.apis import ApiResponse, Bunny, CdnApi, Cloudflare, Failure, api_of
from proxy.moderation.cdn.queue import SCHEMA, CdnQueue, Pending
from proxy.moderation.cdn.sender import DEADLINE, MAX_PAUSE, CdnSender, pause_after
from proxy.observability.log import configure_logging
from proxy.shared.sqlite import Database
from proxy.urls import parse_blob_path, parse_image_path, public_urls
from proxy.wiring import moderation_database_of
from tests.fakes import faults
from tests.fakes.cdns import TOKEN, ZONE, FakeBunny, FakeCdn, FakeCloudflare
from tests.fakes.misbehaviours import heal
from tests.fakes.network import FakeNetwork, Fault
from tests.fakes.sites import cid_of, new_plc_did
from tests.fakes.world import World

Clock = trio.testing.MockClock

BASE = "https://img.example"
URLS = (len(OUTPUTS) + 1) * len(DEFAULT_PRESETS) + 1
"""Of one blob."""

CLOUDFLARE = {"kind": "cloudflare", "zone": ZONE, "token": TOKEN}
BUNNY = {"kind": "bunny", "token": TOKEN}


def blobs(count: int) -> list[BlobKey]:
    return [BlobKey(new_plc_did(), cid_of(b"%d" % number)) for number in range(count)]


def urls_of(*found: BlobKey) -> list[str]:
    return [url for blob in found for url in public_urls(DEFAULT_PRESETS, blob, BASE)]


def config_of(cdn: dict[str, str], **server: str) -> Config:
    return Config.model_validate({"cdn": cdn, "server": {"cdn_url": BASE, **server}})


# What is sent.


def test_every_preset_in_every_format_and_the_original_are_public() -> None:
    """Catches a format, or the original, that stays in the CDN."""
    (blob,) = blobs(1)
    urls = urls_of(blob)
    assert len(urls) == len(set(urls)) == URLS
    paths = [url.removeprefix(BASE) for url in urls]
    assert parse_blob_path(paths.pop()) == blob
    keys = [parse_image_path(DEFAULT_PRESETS, path) for path in paths]
    assert {(key.preset, key.format, key.blob) for key in keys} == {
        (preset, output, blob) for preset in DEFAULT_PRESETS for output in (None, *OUTPUTS)
    }


def test_a_cloudflare_request_is_as_published() -> None:
    post = Cloudflare(ZONE, SecretStr(TOKEN)).post(["https://a.example/1", "https://a.example/2"])
    assert post.target == f"/client/v4/zones/{ZONE}/purge_cache"
    assert post.headers["Authorization"] == f"Bearer {TOKEN}"
    assert json.loads(post.content) == {"files": ["https://a.example/1", "https://a.example/2"]}


def test_a_bunny_request_is_as_published() -> None:
    url = "https://a.example/img/avatar/plain/did:web:localhost%253A2583/bafy@webp"
    post = Bunny(SecretStr(TOKEN)).post([url])
    assert post.target == (
        "/purge?url=https%3A%2F%2Fa.example%2Fimg%2Favatar%2Fplain%2F"
        "did%3Aweb%3Alocalhost%25253A2583%2Fbafy%40webp&async=false"
    )
    assert post.headers["AccessKey"] == TOKEN


def test_the_configuration_says_which() -> None:
    assert api_of(Config()) is None
    assert isinstance(api_of(config_of(CLOUDFLARE)), Cloudflare)
    assert isinstance(api_of(config_of(BUNNY)), Bunny)


# What an answer means.

APIS: list[CdnApi] = [Cloudflare(ZONE, SecretStr(TOKEN)), Bunny(SecretStr(TOKEN))]
EACH_API = pytest.mark.parametrize("api", APIS, ids=lambda api: type(api).__name__)


def reply(status: int, body: bytes = b"", **headers: str) -> ApiResponse:
    return ApiResponse(
        status, {name.replace("_", "-"): text for name, text in headers.items()}, body
    )


@EACH_API
@pytest.mark.parametrize("status", [301, 401, 403, 408, 429, 500, 502, 503, 522])
def test_a_refusal_of_any_url_is_not_one_of_these(api: CdnApi, status: int) -> None:
    failure = api.failure(reply(status), 0)
    assert failure is not None
    assert not failure.is_refusal


@EACH_API
@pytest.mark.parametrize("status", [400, 404, 413, 422])
def test_a_refusal_of_these_urls_is_told_apart(api: CdnApi, status: int) -> None:
    failure = api.failure(reply(status), 0)
    assert failure is not None
    assert failure.is_refusal


@pytest.mark.parametrize(
    "body", [b"", b"{}", b"[]", b"<html>", b'{"success":false}', b'{"success":"true"}', b"\xff"]
)
def test_a_200_of_cloudflare_that_is_no_success_is_a_failure(body: bytes) -> None:
    """Catches a status that is believed: a captive portal answers 200 to everything."""
    assert Cloudflare(ZONE, SecretStr(TOKEN)).failure(reply(200, body), 0) is not None


def test_the_reason_is_what_the_cdn_says() -> None:
    body = b'{"success":false,"errors":[{"code":10000,"message":"Authentication error"}]}'
    failure = Cloudflare(ZONE, SecretStr(TOKEN)).failure(reply(403, body), 0)
    assert failure == Failure("status 403: 10000 Authentication error")
    failure = Bunny(SecretStr(TOKEN)).failure(reply(401, b'{"Message":"Denied"}'), 0)
    assert failure == Failure("status 401: Denied")


@EACH_API
def test_a_token_that_the_cdn_repeats_is_kept_nowhere(api: CdnApi) -> None:
    message = f"no such token: {TOKEN}"
    for body in (
        {"success": False, "errors": [{"code": 1, "message": message}]},
        {"Message": message},
    ):
        failure = api.failure(reply(403, json.dumps(body).encode()), 0)
        assert failure is not None
        assert TOKEN not in repr(failure)
    assert TOKEN not in repr(api.post(["https://a.example/"]))
    assert TOKEN not in repr(vars(api))


@EACH_API
def test_retry_after_is_read(api: CdnApi) -> None:
    failure = api.failure(reply(429, retry_after="17"), 0)
    assert failure is not None
    assert failure.wait == 17


@pytest.mark.slow
@EACH_API
@given(
    st.integers(100, 599),
    st.binary()
    | st.recursive(
        st.none() | st.booleans() | st.integers() | st.text(),
        lambda inner: st.lists(inner) | st.dictionaries(st.text() | st.just("errors"), inner),
    ).map(lambda value: json.dumps(value).encode()),
    st.text(),
)
def test_any_answer_of_a_cdn_gives_a_short_printable_reason(
    api: CdnApi, status: int, body: bytes, wait: str
) -> None:
    """Catches: an answer of another shape that raises, or fills the log."""
    failure = api.failure(reply(status, body, retry_after=wait), 0)
    if failure is not None:
        assert failure.reason.isprintable()
        assert len(failure.reason) <= 300


def test_pauses_grow_up_to_a_bound_and_are_never_shorter_than_asked_for() -> None:
    assert [pause_after(failures, 0, 1) for failures in range(1, 6)] == [1, 2, 4, 8, 16]
    assert pause_after(3, 0, 0) == 2
    assert pause_after(10_000, 0, 1) == MAX_PAUSE
    assert pause_after(1, 90, 0) == 90


# The queue.


@pytest.fixture
def database(tmp_path: Path) -> Iterator[Database]:
    path = tmp_path / "moderation.sqlite3"
    with closing(Database(path, SCHEMA, synchronous="NORMAL")) as opened:
        yield opened


@pytest.fixture
def queue(database: Database) -> CdnQueue:
    return CdnQueue(database)


def test_what_is_queued_outlasts_the_process(queue: CdnQueue, tmp_path: Path) -> None:
    found = blobs(3)
    queue.add(found)
    database = Database(tmp_path / "moderation.sqlite3", SCHEMA, synchronous="NORMAL")
    with closing(CdnQueue(database)) as again:
        assert {pending.blob for pending in again.all()} == set(found)


def test_what_is_asked_for_again_while_it_is_sent_is_sent_again(queue: CdnQueue) -> None:
    """Catches a blob that was fetched again by the CDN between two purges."""
    first, second = blobs(2)
    queue.add([first, second])
    under_way = queue.first(10)
    queue.add([second])
    queue.purged(under_way)
    assert [pending.blob for pending in queue.all()] == [second]
    queue.purged(queue.first(10))
    assert queue.count() == 0


def test_what_failed_waits_behind_what_did_not(database: Database) -> None:
    times = iter(range(1, 100))
    queue = CdnQueue(database, clock=lambda: float(next(times)))
    first, second, third = blobs(3)
    for blob in (first, second, third):
        queue.add([blob])
    queue.failed(queue.first(1), "refused")
    queue.failed([pending for pending in queue.all() if pending.blob == first], "once more")
    queue.failed([pending for pending in queue.all() if pending.blob == second], "refused")
    assert [pending.blob for pending in queue.first(9)] == [third, second, first]
    assert queue.all()[0] == Pending(first, 1.0, 0, 2, 5.0, "once more")


def test_queueing_is_part_of_the_callers_transaction(database: Database, queue: CdnQueue) -> None:
    """Catches a block that is kept, and its purge that a crash lost."""
    with database.writing() as connection:
        queue.add(blobs(1), connection)
        assert CdnQueue(database).count() == 0
    assert queue.count() == 1

    def interrupted() -> None:
        with database.writing() as connection:
            queue.add(blobs(1), connection)
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        interrupted()
    assert queue.count() == 1


# Sending.


@pytest.fixture
def _inline(monkeypatch: pytest.MonkeyPatch) -> None:
    """No threads: an autojumping clock does not wait for them."""

    async def run_sync(work: Callable[[], Any], **options: object) -> Any:
        await trio.lowlevel.checkpoint()
        return work()

    monkeypatch.setattr(trio.to_thread, "run_sync", run_sync)


async def until(condition: Callable[[], bool], pause: float) -> None:
    while True:
        if condition():
            return
        await trio.sleep(pause)


class Office:
    """A CDN, a queue, and senders of it."""

    def __init__(
        self, nursery: trio.Nursery, folder: Path, database: Database, cdn: FakeCdn
    ) -> None:
        self.cdn = cdn
        self.folder = folder
        self.network = FakeNetwork(nursery)
        self.network.add(cdn)
        self.queue = CdnQueue(database)
        self.outcomes: list[str] = []
        kind = CLOUDFLARE if isinstance(cdn, FakeCloudflare) else BUNNY
        self.config = config_of(kind)

    def sender(self) -> CdnSender:
        return CdnSender(
            self.config,
            self.queue,
            api_of(self.config),
            self.network,
            Leadership(self.folder / "turns" / "cdn"),
            on_request=self.outcomes.append,
        )

    @asynccontextmanager
    async def sending(self) -> AsyncIterator[CdnSender]:
        sender = self.sender()
        async with trio.open_nursery() as nursery:
            nursery.start_soon(sender.run)
            yield sender
            nursery.cancel_scope.cancel()

    async def emptied(self) -> None:
        with trio.fail_after(86400):
            await until(lambda: not self.queue.count(), 1)


CDNS: list[Callable[[], FakeCdn]] = [lambda: FakeCloudflare("img.example"), FakeBunny]


@pytest.fixture(params=CDNS, ids=["cloudflare", "bunny"])
async def office(
    request: pytest.FixtureRequest,
    nursery: trio.Nursery,
    tmp_path: Path,
    database: Database,
    _inline: None,
) -> Office:
    return Office(nursery, tmp_path, database, request.param())


@pytest.fixture
async def cloudflare(
    nursery: trio.Nursery, tmp_path: Path, database: Database, _inline: None
) -> Office:
    return Office(nursery, tmp_path, database, FakeCloudflare("img.example"))


async def test_every_url_is_purged_and_nothing_else(office: Office, autojump_clock: Clock) -> None:
    found = blobs(3)
    async with office.sending() as sender:
        await sender.invalidate(found)
        assert {pending.blob for pending in office.queue.all()} == set(found)
        await office.emptied()
        assert sorted(office.cdn.purged) == sorted(urls_of(*found))
    assert office.network.open_wires == set()
    assert set(office.network.tls_names) == {office.cdn.host}
    assert office.outcomes.count("ok") == len(office.cdn.requests) - office.cdn.limited


async def test_cloudflare_gets_full_batches(cloudflare: Office, autojump_clock: Clock) -> None:
    found = blobs(50)
    cloudflare.queue.add(found)
    async with cloudflare.sending():
        await cloudflare.emptied()
    sizes = [len(json.loads(request.body)["files"]) for request in cloudflare.cdn.requests]
    assert sizes == [100] * (50 * URLS // 100)


@pytest.mark.slow
async def test_limits_are_kept_to_and_everything_arrives(
    office: Office, autojump_clock: Clock
) -> None:
    """Catches a request that begins anew after each 429: with bunny.net it would never end."""
    found = blobs(200 if isinstance(office.cdn, FakeCloudflare) else 10)
    office.queue.add(found)
    async with office.sending():
        await office.emptied()
    assert sorted(office.cdn.purged) == sorted(urls_of(*found))
    # Each 429 says when the next token comes; who does not wait for it gets many more.
    assert 0 < office.cdn.limited <= len(office.cdn.purged)


IN_TROUBLE: list[Fault] = [
    faults.answers(500),
    faults.answers(403, b'{"success":false}'),
    faults.answers(302, b"", ("Location", "https://elsewhere.example/")),
    faults.reset,
    faults.hang,
    faults.answers(200, b'{"success":true}', then=faults.hang_after_head),
    faults.answers(200, b'{"success":true}', then=faults.reset_in_body),
]


@pytest.mark.slow
@pytest.mark.parametrize("fault", IN_TROUBLE, ids=lambda fault: fault.__name__)
async def test_a_cdn_in_trouble_loses_nothing_and_is_left_in_peace(
    office: Office, fault: Fault, autojump_clock: Clock
) -> None:
    found = blobs(2)
    office.cdn.fault = fault
    office.queue.add(found)
    async with office.sending() as sender:
        await trio.sleep(6 * 3600)
        # Doubled pauses up to five minutes.
        assert 6 * 12 - 2 < len(office.cdn.requests) < 2 * 6 * 12 + 10
        assert [pending.failures > 10 for pending in office.queue.all()] == [True, True]
        assert all(pending.error for pending in office.queue.all())
        assert sender.pending == 2
        office.cdn.purged.clear()  # the fake noted what it then did not confirm
        heal(office.cdn)
        await office.emptied()
    assert set(office.cdn.purged) == set(urls_of(*found))
    assert office.network.asked.count(("elsewhere.example", 443)) == 0


async def test_no_answer_is_waited_for_longer_than_the_deadline(
    cloudflare: Office, autojump_clock: Clock
) -> None:
    cloudflare.cdn.fault = faults.hang
    cloudflare.queue.add(blobs(1))
    async with cloudflare.sending():
        await trio.sleep(DEADLINE + 0.1)
    (pending,) = cloudflare.queue.all()
    assert pending.error == "no answer within 30 s"


@pytest.mark.slow
async def test_what_is_refused_holds_up_no_other_and_is_not_forgotten(
    cloudflare: Office, autojump_clock: Clock
) -> None:
    """Catches a poisoned batch: one URL that is refused, and nothing behind it is ever purged."""
    good, bad, later = blobs(20), blobs(1), blobs(20)
    cdn = cloudflare.cdn
    assert isinstance(cdn, FakeCloudflare)
    cdn.refuses_urls = bad[0].did
    cloudflare.queue.add([*good, *bad])
    async with cloudflare.sending() as sender:
        await trio.sleep(3600)
        assert {pending.blob for pending in cloudflare.queue.all()} == set(bad)
        await sender.invalidate(later)
        await trio.sleep(60)  # less than the pause that the refused one has earned
        assert set(cdn.purged) >= set(urls_of(*good, *later))
        requests = len(cdn.requests)
        await trio.sleep(3600)
        assert len(cdn.requests) - requests < 40
        (pending,) = cloudflare.queue.all()
        assert "1107 Unable to purge" in pending.error
        cdn.refuses_urls = None
        await cloudflare.emptied()
    assert set(cdn.purged) >= set(urls_of(*bad))


async def test_one_process_sends_at_a_time_and_the_next_one_finishes(
    office: Office, autojump_clock: Clock
) -> None:
    """Catches a batch that two send, and one that is lost with the process that had it."""
    found = blobs(4)
    office.queue.add(found)
    arrived, answers = trio.Event(), trio.Event()
    honest = office.cdn.fault

    async def wait(conversation: Any) -> None:
        if len(office.cdn.requests) >= 2:
            arrived.set()
            await answers.wait()
        await honest(conversation)

    office.cdn.fault = wait
    async with trio.open_nursery() as nursery:
        first = trio.CancelScope()

        async def run_first() -> None:
            with first:
                await office.sender().run()

        nursery.start_soon(run_first)
        await arrived.wait()
        nursery.start_soon(office.sender().run)
        await trio.sleep(20)
        assert len(office.cdn.requests) == 2
        first.cancel()
        answers.set()
        await office.emptied()
        nursery.cancel_scope.cancel()
    assert set(office.cdn.purged) == set(urls_of(*found))


async def test_a_store_that_fails_for_a_while_ends_nothing(
    cloudflare: Office, autojump_clock: Clock, monkeypatch: pytest.MonkeyPatch
) -> None:
    cloudflare.queue.add(blobs(1))

    def locked(*_arguments: object) -> None:
        raise sqlite3.OperationalError("database is locked")

    async with cloudflare.sending():
        with monkeypatch.context() as patch:
            patch.setattr(CdnQueue, "first", locked)
            await trio.sleep(60)
            assert cloudflare.cdn.requests == []
        await cloudflare.emptied()


async def test_a_store_that_fails_while_a_refusal_is_sat_out_ends_nothing(
    cloudflare: Office, autojump_clock: Clock, monkeypatch: pytest.MonkeyPatch
) -> None:
    cdn = cloudflare.cdn
    assert isinstance(cdn, FakeCloudflare)
    cdn.refuses_urls = "/img/"
    cloudflare.queue.add(blobs(1))

    def locked(*_arguments: object) -> None:
        raise sqlite3.OperationalError("database is locked")

    async with cloudflare.sending():
        await trio.sleep(600)
        with monkeypatch.context() as patch:
            patch.setattr(CdnQueue, "first", locked)
            await trio.sleep(600)
        cdn.refuses_urls = None
        await cloudflare.emptied()


async def test_without_a_cdn_nothing_is_queued(tmp_path: Path) -> None:
    queue = CdnQueue(Database(tmp_path / "cdn.sqlite3", SCHEMA, synchronous="NORMAL"))
    network = GuardedNetwork(lookup=_nowhere)
    sender = CdnSender(Config(), queue, None, network, Leadership(tmp_path / "turns" / "cdn"))
    await sender.invalidate(blobs(2))
    await sender.run()
    assert list(await trio.Path(tmp_path).iterdir()) == []


async def _nowhere(host: str, port: int) -> Sequence[str]:
    raise AssertionError(host)


async def test_a_running_service_sends_what_a_command_queued(world: World) -> None:
    """Catches a queue that only the process which fills it looks at, and a sender nobody starts."""
    cdn = FakeCloudflare("img.example")
    world.directory_network.add(cdn)
    config = world.config(cdn=CLOUDFLARE, server={"cdn_url": BASE})
    found = blobs(1)
    async with world.service(config) as service:
        with closing(CdnQueue(moderation_database_of(config))) as queue:
            queue.add(found)
        with trio.fail_after(30):
            await until(lambda: len(cdn.purged) >= URLS, 0.05)
        value = service.metrics.registry.get_sample_value
        assert value("imageproxy_cdn_requests_total", {"outcome": "ok"}) == 1
        assert value("imageproxy_cdn_pending") is not None
    assert sorted(cdn.purged) == sorted(urls_of(*found))


# The token.


@contextmanager
def everything_logged(monkeypatch: pytest.MonkeyPatch, *, on_a_terminal: bool) -> Any:
    """What ends up on standard error, as the service writes it."""
    stream = StringIO()
    stream.isatty = lambda: on_a_terminal  # type: ignore[method-assign]
    monkeypatch.setattr(sys, "stderr", stream)
    before = structlog.get_config()
    try:
        configure_logging()
        yield stream
    finally:
        structlog.configure(**before)


@pytest.mark.parametrize("on_a_terminal", [False, True])
async def test_the_token_is_in_no_log_and_in_no_traceback(
    cloudflare: Office, autojump_clock: Clock, monkeypatch: pytest.MonkeyPatch, on_a_terminal: bool
) -> None:
    """Catches tracebacks with local variables, which a terminal gets by default."""
    echo = json.dumps({"success": False, "errors": [{"code": 1, "message": f"bad {TOKEN}"}]})
    cloudflare.queue.add(blobs(1))
    with everything_logged(monkeypatch, on_a_terminal=on_a_terminal) as stream:
        # Not the module's logger, which may have been used and kept before.
        monkeypatch.setattr(sending, "log", structlog.get_logger())
        for fault in (*IN_TROUBLE, faults.answers(403, echo.encode()), faults.sends(b"\x00\xff")):
            cloudflare.cdn.faults = [fault]
            async with cloudflare.sending():
                await trio.sleep(40)

        class Defect(Exception):
            pass

        def broken(*_arguments: object) -> None:
            raise Defect

        monkeypatch.setattr(Cloudflare, "failure", broken)
        cloudflare.queue.add(blobs(1))
        try:
            await cloudflare.sender().run()
        except Defect:
            structlog.get_logger().exception("service crashed")
    written = stream.getvalue()
    assert "the CDN was not purged" in written
    assert "Defect" in written
    assert TOKEN not in written
    assert all(TOKEN not in repr(pending) for pending in cloudflare.queue.all())


async def test_failures_are_logged_with_their_reason(
    cloudflare: Office, autojump_clock: Clock
) -> None:
    cloudflare.cdn.faults = [faults.answers(503)]
    cloudflare.queue.add(blobs(1))
    with capture_logs() as logs:
        async with cloudflare.sending():
            await cloudflare.emptied()
    assert [line["event"] for line in logs] == ["the CDN was not purged", "the CDN was purged"]
    assert logs[0]["error"] == "status 503"
    assert cloudflare.outcomes == ["failed", "ok"]
