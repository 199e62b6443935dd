"""The CDN: no copy is left of what it has to forget, and the token reaches nobody else."""

from __future__ import annotations

import json
import re
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
from structlog.testing import capture_logs

from proxy.config import Config
from proxy.coordination.leader import FolderLeadership
from proxy.egress.guard import GuardedNetwork
from proxy.model.cache_tags import content_tag, owner_tag
from proxy.model.formats import OUTPUTS
from proxy.model.identifiers import Did, spellings
from proxy.model.keys import BlobKey
from proxy.model.picture_info import info_key
from proxy.model.presets import DEFAULT_PRESETS
from proxy.model.selection import Selection
from proxy.moderation.cdn import sender as sending
from proxy.moderation.cdn.apis import api_of
from proxy.moderation.cdn.bunny import Bunny
from proxy.moderation.cdn.cloudflare import Cloudflare
from proxy.moderation.cdn.cloudfront import CloudFront
from proxy.moderation.cdn.interface import ApiRequest, ApiResponse, CdnApi, Failure
from proxy.moderation.cdn.queue import SCHEMA, CdnQueue, Pending
from proxy.moderation.cdn.sender import DEADLINE, MAX_PAUSE, CdnSender, pause_after
from proxy.moderation.cluster.schema import migrate
from proxy.moderation.configured_store import moderation_database_of
from proxy.moderation.store import FILE_NAME, ModerationStore
from proxy.observability.log import configure_logging
from proxy.shared.current import Current
from proxy.shared.postgres import PostgresDatabase
from proxy.shared.sql import SqlDatabase
from proxy.shared.sqlite import Database
from proxy.urls import parse_blob_path, parse_image_path, public_urls
from proxy.web.caching import caching_of
from proxy.wiring import cdn_sender_of, disk_cache_of, invalidation
from tests.cache import entry, key
from tests.fakes import faults
from tests.fakes.cdns import (
    BASE,
    CDNS,
    DISTRIBUTION,
    PULL_ZONE,
    SETTINGS,
    TOKEN,
    ZONE,
    FakeCloudflare,
)
from tests.fakes.misbehaviours import heal
from tests.fakes.network import FakeNetwork, Fault
from tests.fakes.sites import cid_of, new_plc_did
from tests.fakes.world import World

Clock = trio.testing.MockClock

URLS = (len(OUTPUTS) + 1) * len(DEFAULT_PRESETS) + 2
"""Of one blob."""

ORIGIN = "https://app.example"


def blobs(count: int) -> list[Selection]:
    return [Selection(new_plc_did(), cid_of(b"%d" % number)) for number in range(count)]


def key_of(blob: Selection) -> BlobKey:
    assert blob.did is not None
    assert blob.cid is not None
    return BlobKey(blob.did, blob.cid)


def urls_of(*found: Selection) -> list[str]:
    return [url for blob in found for url in public_urls(DEFAULT_PRESETS, key_of(blob), BASE)]


def config_of(kind: str, purge: str = "tags", **cdn: Any) -> Config:
    section = {**SETTINGS[kind], "purge": purge, **cdn}
    return Config.model_validate({"cdn": section, "server": {"cdn_url": BASE}})


def api(kind: str, purge: str = "tags", **cdn: Any) -> CdnApi:
    found = api_of(config := config_of(kind, purge, **cdn), Current(config.preset_table))
    assert found is not None
    return found


def requests_of(api: CdnApi, *found: Selection) -> list[ApiRequest]:
    return [post(1440938160.0) for post in api.posts(found)]


# What is sent.


def test_every_preset_in_every_format_what_is_told_and_the_original_are_public() -> None:
    """Catches a format, or the original, that stays in the CDN."""
    (found,) = blobs(1)
    blob, urls = key_of(found), urls_of(found)
    assert len(urls) == len(set(urls)) == URLS
    paths = [url.removeprefix(BASE) for url in urls]
    assert parse_blob_path(paths.pop()) == blob
    keys = [parse_image_path(DEFAULT_PRESETS, path) for path in paths]
    assert keys.pop() == info_key(blob)
    assert {(key.preset, key.format, key.blob) for key in keys} == {
        (preset, output, blob) for preset in DEFAULT_PRESETS for output in (None, *OUTPUTS)
    }


@pytest.mark.parametrize("kind", ["cloudflare", "bunny", "cloudfront"])
def test_a_purge_by_url_names_the_presets_that_are_in_force_now(kind: str) -> None:
    """Catches copies of a preset that came after the start, which no purge would reach."""
    config = config_of(kind, "urls")
    presets = Current(config.preset_table)
    found = api_of(config, presets)
    assert found is not None
    other = Config(presets={"afterwards": DEFAULT_PRESETS["avatar"]})
    presets.now = other.preset_table
    sent = "".join(f"{each.target}{each.content!r}" for each in requests_of(found, *blobs(1)))
    assert "afterwards" in sent
    assert "avatar" not in sent


def test_a_cloudflare_request_is_as_published() -> None:
    found = blobs(2)
    (by_tag,) = requests_of(api("cloudflare"), *found, Selection(did=found[0].did))
    assert by_tag.target == f"/client/v4/zones/{ZONE}/purge_cache"
    assert by_tag.headers["Authorization"] == f"Bearer {TOKEN}"
    tags = [content_tag(key_of(blob).cid) for blob in found]
    assert json.loads(by_tag.content) == {"tags": [*tags, owner_tag(key_of(found[0]).did)]}
    (by_url,) = requests_of(api("cloudflare", "urls"), found[0])
    assert by_url.target == by_tag.target
    assert json.loads(by_url.content) == {"files": urls_of(found[0])}


def test_cloudflare_is_told_each_origin_whose_copies_it_keeps_by_themselves() -> None:
    """Catches the copy that a page of another site had made with ``crossorigin``."""
    (blob,) = blobs(1)
    (post,) = requests_of(api("cloudflare", "urls", origins=[ORIGIN]), blob)
    files = json.loads(post.content)["files"]
    assert [file for file in files if isinstance(file, str)] == urls_of(blob)
    with_origin = [file for file in files if isinstance(file, dict)]
    assert with_origin == [{"url": url, "headers": {"Origin": ORIGIN}} for url in urls_of(blob)]


def test_a_bunny_request_is_as_published() -> None:
    blob = Selection(Did("did:web:localhost%3A2583"), cid_of(b"a"))
    (by_tag,) = requests_of(api("bunny"), blob)
    assert by_tag.target == f"/pullzone/{PULL_ZONE}/purgeCache"
    assert by_tag.headers["AccessKey"] == TOKEN
    assert json.loads(by_tag.content) == {"CacheTag": content_tag(cid_of(b"a"))}
    by_url = requests_of(api("bunny", "urls"), blob)[0]
    assert by_url.target == (
        "/purge?url=https%3A%2F%2Fimg.example%2Fimg%2Favatar%2Fplain%2F"
        f"did%3Aweb%3Alocalhost%25253A2583%2F{blob.cid}&async=false"
    )
    assert by_url.headers["AccessKey"] == TOKEN


def test_a_cloudfront_request_is_as_published() -> None:
    """Catches a wildcard within a path, which CloudFront takes for an asterisk."""
    (blob,) = blobs(1)
    (by_tag,) = requests_of(api("cloudfront"), blob)
    assert by_tag.target == f"/2020-05-31/distribution/{DISTRIBUTION}/invalidation"
    assert items_of(by_tag) == [f"#{content_tag(key_of(blob).cid)}"]
    (by_path,) = requests_of(api("cloudfront", "urls"), blob)
    tail = f"{blob.did}/{blob.cid}*"
    assert items_of(by_path) == [
        *(f"/img/{preset}/plain/{tail}" for preset in DEFAULT_PRESETS),
        f"/info/{tail}",
        f"/blob/{tail}",
    ]
    assert f"<Quantity>{len(DEFAULT_PRESETS) + 2}</Quantity>" in by_path.content.decode()


@pytest.mark.parametrize(
    "server",
    [
        {"cdn_url": "https://cdn.test/pics"},
        {"base_url": "https://img.test/pics"},
        {"root_path": "/pics"},
        {"root_path": "/pics", "base_url": "https://img.test/pics"},
    ],
)
def test_cloudfront_is_told_the_path_at_which_it_was_asked(server: dict[str, str]) -> None:
    """Catches an invalidation of paths that no client asks for."""
    (blob,) = blobs(1)
    config = Config.model_validate(
        {"cdn": {**SETTINGS["cloudfront"], "purge": "urls"}, "server": server}
    )
    found = api_of(config, Current(config.preset_table))
    assert found is not None
    (by_path,) = requests_of(found, blob)
    assert items_of(by_path)[-1] == f"/pics/blob/{blob.did}/{blob.cid}*"
    assert all(item.startswith("/pics/") for item in items_of(by_path))


def items_of(request: ApiRequest) -> list[str]:
    return re.findall(r"<Path>([^<]*)</Path>", request.content.decode())


def test_an_invalidation_of_the_same_tags_has_another_reference() -> None:
    """Catches a second block of an owner that CloudFront takes for the first one."""
    (post,) = api("cloudfront").posts(blobs(1))
    references = {
        re.findall(r"<CallerReference>(.+)</CallerReference>", post(now).content.decode())[0]
        for now in (1.0, 1.5, 2.0)
    }
    assert len(references) == 3


EACH_CDN = pytest.mark.parametrize("kind", CDNS)


@EACH_CDN
def test_a_block_is_one_request_by_tag_whatever_it_names(kind: str) -> None:
    """Catches a request for each preset, for each spelling of a CID, or for each picture."""
    blob = key_of(blobs(1)[0])
    for cid in spellings(blob.cid):
        assert len(requests_of(api(kind), Selection(blob.did, cid))) == 1
        assert len(requests_of(api(kind), Selection(cid=cid), Selection(blob.did, cid))) == 1
    assert len(requests_of(api(kind), Selection(did=blob.did))) == 1


@EACH_CDN
def test_what_was_queued_by_tag_is_sent_by_tag_when_purges_go_by_url_now(kind: str) -> None:
    """Catches an owner that a changed setting leaves in the queue for ever: it has no URL."""
    did = key_of(blobs(1)[0]).did
    (post,) = requests_of(api(kind, "urls"), Selection(did=did))
    assert owner_tag(did) in post.content.decode()


def test_the_configuration_says_which() -> None:
    assert api_of(Config(), Current(Config().preset_table)) is None
    assert isinstance(api("cloudflare"), Cloudflare)
    assert isinstance(api("bunny"), Bunny)
    assert isinstance(api("cloudfront"), CloudFront)


# What an answer means.

APIS: list[CdnApi] = [api(kind) for kind in CDNS]
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
    assert api("cloudflare").failure(reply(200, body), 0) is not None


def test_the_reason_is_what_the_cdn_says() -> None:
    body = b'{"success":false,"errors":[{"code":10000,"message":"Authentication error"}]}'
    failure = api("cloudflare").failure(reply(403, body), 0)
    assert failure == Failure("status 403: 10000 Authentication error")
    failure = api("bunny").failure(reply(401, b'{"Message":"Denied"}'), 0)
    assert failure == Failure("status 401: Denied")


@pytest.mark.parametrize(
    "code", ["TooManyInvalidationsInProgress", "Throttling", "NoSuchDistribution"]
)
def test_a_400_of_cloudfront_that_is_about_no_item_is_waited_for(code: str) -> None:
    """Catches a burst of blocks that is sent item by item because too many are in progress."""
    body = f"<Error><Code>{code}</Code><Message>wait</Message></Error>".encode()
    failure = api("cloudfront").failure(reply(400, body), 0)
    assert failure == Failure(f"status 400: {code} wait")


@EACH_API
def test_a_token_that_the_cdn_repeats_is_kept_nowhere(api: CdnApi) -> None:
    message = f"no such token: {TOKEN}"
    for body in (
        {"success": False, "errors": [{"code": 1, "message": message}]},
        {"Message": message},
        f"<Error><Code>AccessDenied</Code><Message>{message}</Message></Error>",
    ):
        text = body if isinstance(body, str) else json.dumps(body)
        failure = api.failure(reply(403, text.encode()), 0)
        assert failure is not None
        assert TOKEN not in repr(failure)
    assert TOKEN not in repr(requests_of(api, *blobs(1)))
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


@pytest.fixture(params=["sqlite", pytest.param("postgresql", marks=pytest.mark.slow)])
def any_database(request: pytest.FixtureRequest) -> Iterator[SqlDatabase]:
    """One of each kind."""
    if request.param == "sqlite":
        yield request.getfixturevalue("database")
        return
    url: str = request.getfixturevalue("database_url")
    with closing(PostgresDatabase(url, lock=1, patience=30, prepare=migrate)) as opened:
        yield opened


@pytest.fixture
def queue(any_database: SqlDatabase) -> CdnQueue:
    return CdnQueue(any_database)


def test_what_is_queued_outlasts_the_process(database: Database, tmp_path: Path) -> None:
    found = blobs(3)
    CdnQueue(database).add(found)
    database = Database(tmp_path / "moderation.sqlite3", SCHEMA, synchronous="NORMAL")
    with closing(CdnQueue(database)) as again:
        assert {pending.selection for pending in again.all()} == set(found)


def test_what_is_asked_for_again_while_it_is_sent_is_sent_again(queue: CdnQueue) -> None:
    """Catches a blob that was fetched again by the CDN between two purges."""
    first, second = blobs(2)
    queue.add([first, second])
    under_way = queue.first(10)
    queue.add([second])
    queue.purged(under_way)
    assert [pending.selection for pending in queue.all()] == [second]
    queue.purged(queue.first(10))
    assert queue.count() == 0


def test_what_two_sent_at_once_and_was_asked_for_again_is_sent_again(queue: CdnQueue) -> None:
    """Catches a process that is the leader no more, and takes what was queued after its request
    for what it has sent."""
    (blob,) = blobs(1)
    queue.add([blob])
    under_way = queue.first(10)
    queue.purged(queue.first(10))
    queue.add([blob])
    queue.purged(under_way)
    assert [pending.selection for pending in queue.all()] == [blob]


def test_what_was_refused_waits_behind_what_was_not(any_database: SqlDatabase) -> None:
    times = iter(range(1, 100))
    queue = CdnQueue(any_database, clock=lambda: float(next(times)))
    first, second, third = blobs(3)
    for blob in (first, second, third):
        queue.add([blob])
    queue.failed(queue.first(1), "refused", is_refusal=True)
    for selection, reason in ((first, "once more"), (second, "refused")):
        pending = [each for each in queue.all() if each.selection == selection]
        queue.failed(pending, reason, is_refusal=True)
    assert [pending.selection for pending in queue.first(9)] == [third, second, first]
    assert queue.all()[0] == Pending(first, 1.0, 0, 2, 5.0, "once more")


def test_queueing_is_part_of_the_callers_transaction(
    any_database: SqlDatabase, queue: CdnQueue
) -> None:
    """Catches a block that is kept, and its purge that a crash lost."""
    with any_database.writing() as connection:
        queue.add(blobs(1), connection)
        assert CdnQueue(any_database).count() == 0
    assert queue.count() == 1

    def interrupted() -> None:
        with any_database.writing() as connection:
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
        self, nursery: trio.Nursery, folder: Path, database: Database, config: Config
    ) -> None:
        self.cdn = CDNS[config.cdn.kind]()
        self.folder = folder
        self.network = FakeNetwork(nursery)
        self.network.add(self.cdn)
        self.queue = CdnQueue(database)
        self.outcomes: list[str] = []
        self.config = config

    def fill(self, *found: Selection) -> None:
        """Have the CDN keep every public URL of these blobs, with the headers of our answers."""
        for blob in found:
            headers = caching_of(self.config).headers(key_of(blob))
            for url in urls_of(blob):
                self.cdn.keep(url, {name.lower(): value for name, value in headers})

    def left(self, *found: Selection) -> int:
        """How many copies the CDN has of these blobs."""
        urls = set(urls_of(*found))
        return sum(copy.url in urls for copy in self.cdn.copies)

    def sender(self) -> CdnSender:
        return CdnSender(
            self.queue,
            api_of(self.config, Current(self.config.preset_table)),
            self.network,
            FolderLeadership(self.folder / "turns" / "cdn"),
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


WAYS = [(kind, purge) for kind in CDNS for purge in ("tags", "urls")]


@pytest.fixture(params=WAYS, ids=lambda way: "-".join(way))
async def office(
    request: pytest.FixtureRequest,
    nursery: trio.Nursery,
    tmp_path: Path,
    database: Database,
    _inline: None,
) -> Office:
    return Office(nursery, tmp_path, database, config_of(*request.param))


@pytest.fixture
async def cloudflare(
    nursery: trio.Nursery, tmp_path: Path, database: Database, _inline: None
) -> Office:
    return Office(nursery, tmp_path, database, config_of("cloudflare"))


async def test_no_copy_is_left_and_no_other_is_gone(office: Office, autojump_clock: Clock) -> None:
    """Catches a purge that leaves a preset, and one that empties the CDN."""
    found, others = blobs(3), [Selection(new_plc_did(), cid_of(b"other"))]
    office.fill(*found, *others)
    async with office.sending() as sender:
        await sender.invalidate(found)
        assert {pending.selection for pending in office.queue.all()} == set(found)
        await office.emptied()
    assert office.left(*found) == 0
    assert office.left(*others) == URLS
    assert office.network.open_wires == set()
    assert set(office.network.tls_names) == {office.cdn.host}
    assert office.outcomes.count("ok") == len(office.cdn.requests) - office.cdn.limited


@pytest.mark.parametrize(("count", "requests"), [(1, 1), (100, 1), (250, 3)])
async def test_cloudflare_gets_full_batches(
    count: int, requests: int, cloudflare: Office, autojump_clock: Clock
) -> None:
    """Catches a request for each block: the free plan has five a minute."""
    found = blobs(count)
    cloudflare.fill(*found)
    cloudflare.queue.add(found)
    async with cloudflare.sending():
        await cloudflare.emptied()
    assert len(cloudflare.cdn.requests) == requests
    assert cloudflare.cdn.copies == []


@pytest.mark.slow
async def test_limits_are_kept_to_and_everything_arrives(
    office: Office, autojump_clock: Clock
) -> None:
    """Catches a request that begins anew after each 429: with bunny.net it would never end."""
    kind, purge = office.config.cdn.kind, office.config.cdn.purge
    found = blobs({"bunny": 200, "cloudfront": 30}.get(kind, 50))
    office.fill(*found)
    async with office.sending() as sender:
        for start in range(0, len(found), 1 if kind == "cloudflare" else 25):
            # Blocks that come one at a time are one request each, until there are too many.
            await sender.invalidate(found[start : start + (1 if kind == "cloudflare" else 25)])
            await trio.sleep(1.1)
        await office.emptied()
    assert office.cdn.copies == []
    if (kind, purge) not in (("cloudflare", "urls"), ("cloudfront", "tags")):
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
        assert all(pending.error for pending in office.queue.all())
        assert sender.pending == 2
        office.fill(*found)  # the fake did what it then did not confirm
        heal(office.cdn)
        await office.emptied()
    assert office.cdn.copies == []
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
    every = blobs(41)
    good, bad, later = every[:20], every[20:21], every[21:]
    cdn = cloudflare.cdn
    assert isinstance(cdn, FakeCloudflare)
    cdn.refused_name = content_tag(key_of(bad[0]).cid)
    cloudflare.fill(*good, *bad, *later)
    cloudflare.queue.add([*good, *bad])
    async with cloudflare.sending() as sender:
        await trio.sleep(3600)
        assert {pending.selection for pending in cloudflare.queue.all()} == set(bad)
        await sender.invalidate(later)
        await trio.sleep(60)  # less than the pause that the refused one has earned
        assert cloudflare.left(*good, *later) == 0
        assert cloudflare.left(*bad) == URLS
        requests = len(cdn.requests)
        await trio.sleep(3600)
        assert len(cdn.requests) - requests < 40
        (pending,) = cloudflare.queue.all()
        assert "1107 Unable to purge" in pending.error
        cdn.refused_name = None
        await cloudflare.emptied()
    assert cdn.copies == []


async def test_what_waited_out_a_bad_time_still_goes_together(
    cloudflare: Office, autojump_clock: Clock
) -> None:
    """Catches restarts while the CDN is down, after which each block is a request of its own."""
    found = blobs(150)
    cloudflare.fill(*found)
    cloudflare.queue.add(found)
    cloudflare.cdn.fault = faults.answers(503)
    for _restart in range(3):
        async with cloudflare.sending():
            await trio.sleep(60)
    assert {pending.error for pending in cloudflare.queue.all()} == {"status 503", ""}
    heal(cloudflare.cdn)
    cloudflare.cdn.requests.clear()
    async with cloudflare.sending():
        await cloudflare.emptied()
    assert cloudflare.cdn.copies == []
    assert len(cloudflare.cdn.requests) == 2


async def test_one_process_sends_at_a_time_and_the_next_one_finishes(
    office: Office, autojump_clock: Clock
) -> None:
    """Catches a batch that two send, and one that is lost with the process that had it."""
    found = blobs(4)
    office.fill(*found)
    office.queue.add(found)
    arrived, answers = trio.Event(), trio.Event()
    honest = office.cdn.fault

    async def wait(conversation: Any) -> None:
        if len(office.cdn.requests) == 1:
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
        assert len(office.cdn.requests) == 1
        first.cancel()
        answers.set()
        await office.emptied()
        nursery.cancel_scope.cancel()
    assert len(office.cdn.requests) > 1, "what was not confirmed is sent again"
    assert office.cdn.copies == []


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
    cdn.refused_name = "tags"
    cloudflare.queue.add(blobs(1))

    def locked(*_arguments: object) -> None:
        raise sqlite3.OperationalError("database is locked")

    async with cloudflare.sending():
        await trio.sleep(600)
        with monkeypatch.context() as patch:
            patch.setattr(CdnQueue, "first", locked)
            await trio.sleep(600)
        cdn.refused_name = None
        await cloudflare.emptied()


async def test_without_a_cdn_nothing_is_queued(tmp_path: Path) -> None:
    queue = CdnQueue(Database(tmp_path / "cdn.sqlite3", SCHEMA, synchronous="NORMAL"))
    network = GuardedNetwork(lookup=_nowhere)
    sender = CdnSender(queue, None, network, FolderLeadership(tmp_path / "turns" / "cdn"))
    await sender.invalidate(blobs(2))
    await sender.run()
    assert list(await trio.Path(tmp_path).iterdir()) == []


@pytest.mark.parametrize("by", ["urls", "tags"])
async def test_what_was_told_before_the_files_were_gone_is_told_again(
    world: World, by: str
) -> None:
    """Catches a second look into a cache that by then knows nothing of the owner."""
    cdn = {**SETTINGS["bunny"], "purge": by}
    config = world.config(cdn=cdn, server={"cdn_url": BASE})
    with closing(ModerationStore(config.cache.path / FILE_NAME)) as store:
        store.make()
    sender = cdn_sender_of(config, Current(config.preset_table), world.directory_network)
    disk = disk_cache_of(config)
    await disk.put(key(), entry())
    owner = Selection(did=key().blob.did)
    with closing(CdnQueue(moderation_database_of(config))) as queue:
        invalidate = invalidation(config, sender, disk)
        assert invalidate is not None
        invalidate_again = await invalidate([owner])
        told = queue.all()
        queue.purged(told)
        assert await disk.purge(owner) == 1
        await invalidate_again()
        again = [each.selection for each in queue.all()]
        assert again == [each.selection for each in told]
        assert again == ([owner] if by == "tags" else [Selection(*key().blob)])
    await disk.aclose()
    await sender.aclose()


async def _nowhere(host: str, port: int) -> Sequence[str]:
    raise AssertionError(host)


async def test_a_running_service_sends_what_a_command_queued(world: World) -> None:
    """Catches a queue that only the process which fills it looks at, and a sender nobody starts."""
    cdn = FakeCloudflare()
    world.directory_network.add(cdn)
    config = world.config(cdn=SETTINGS["cloudflare"], server={"cdn_url": BASE})
    found = blobs(1)
    async with world.service(config) as service:
        with closing(CdnQueue(moderation_database_of(config))) as queue:
            queue.add(found)
        with trio.fail_after(30):
            await until(lambda: bool(cdn.purged), 0.05)
        value = service.metrics.registry.get_sample_value
        assert value("imageproxy_cdn_requests_total", {"outcome": "ok"}) == 1
        assert value("imageproxy_cdn_pending") is not None
    assert cdn.purged == [content_tag(key_of(found[0]).cid)]


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
