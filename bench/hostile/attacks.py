"""The attacks. Each runs until it is cancelled, and sends through the uplink of its ground."""

from __future__ import annotations

import hashlib
import itertools
import json
from collections.abc import Awaitable, Callable, Iterator, Mapping
from dataclasses import dataclass, field
from functools import partial
from urllib.parse import parse_qs, urlsplit

import trio
from libipld import encode_cid

from bench.client import Answer
from bench.hostile import blobs
from bench.hostile.ground import UPLINK, Ground, Numbered, head
from bench.pictures import cid_of
from proxy.model.formats import OUTPUTS
from proxy.model.presets import DEFAULT_PRESETS

MAX_BLOB = 9_900_000
"""Bytes: a little less than ``fetch.max_source_mb``."""

SHARE_FOR_BLOB = 1 / 3
"""Of the time of an attack, at most, that a blob needs for its way through the uplink."""

CLIENTS = 32
"""As many as the proxy has consumers of fetches."""

GUESSES = 100
"""Wrong admin tokens that may be judged before a limit is expected."""


@dataclass(frozen=True, slots=True)
class Attack:
    """An attack.

    Attributes:
        what: a line for the table.
        run: attacks until it is cancelled.
        environment: settings that it needs, beside the default configuration.
        is_timed: whether honest clients may expect anything of the server meanwhile; if not, only
            its memory and its answers are judged.
    """

    name: str
    what: str
    run: Callable[[Ground], Awaitable[None]]
    environment: Mapping[str, str] = field(default_factory=dict)
    is_timed: bool = True


def _blob_length(ground: Ground) -> int:
    """Of a blob as large as the uplink brings in time."""
    return min(MAX_BLOB, int(UPLINK * ground.target.seconds * SHARE_FOR_BLOB))


def _results(did: str, cid: str) -> list[str]:
    """The paths of all results of a blob."""
    formats = ("", *(f"@{format_.value}" for format_ in OUTPUTS))
    return [
        f"/img/{preset}/plain/{did}/{cid}{format_}"
        for preset, format_ in itertools.product(DEFAULT_PRESETS, formats)
    ]


# What keeps the event loop busy


async def _filled_jpeg(ground: Ground, *, filling: bytes) -> None:
    """All results of one blob at once, again and again: a flight for each, one fetch for all."""
    data = blobs.filled_jpeg(filling, _blob_length(ground))
    cid = cid_of(data)
    did = ground.account_at(await ground.pds_of(lambda _cid: data))
    paths = itertools.cycle(_results(did, cid))
    await ground.clients(len(DEFAULT_PRESETS) * (1 + len(OUTPUTS)), lambda: ground.ask(next(paths)))


async def _ask_hosts(
    ground: Ground,
    respond: Callable[[trio.SocketStream, str], Awaitable[None]],
    path: Callable[[str, str], str],
    *,
    hosts: int = 4,
    clients: int = CLIENTS,
) -> None:
    """Clients that ask for what is at ``hosts`` PDSes, each time of a new account."""
    endpoints = [await ground.pds(respond, f"127.{10 + n}.0.1") for n in range(hosts)]
    turns = itertools.cycle(endpoints)

    async def ask() -> None:
        did = ground.account_at(next(turns))
        await ground.ask(path(did, cid_of(did.encode())))

    await ground.clients(clients, ask)


def _image(did: str, cid: str) -> str:
    return f"/img/avatar_small/plain/{did}/{cid}"


def _avatar(did: str, _cid: str) -> str:
    return f"/avatar/{did}"


async def _tiny_chunks(ground: Ground) -> None:
    async def respond(stream: trio.SocketStream, _target: str) -> None:
        await stream.send_all(b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n")
        while True:
            await ground.uplink.send(stream, b"1\r\n\xff\r\n" * 2000)

    await _ask_hosts(ground, respond, _image)


async def _interim_answers(ground: Ground) -> None:
    async def respond(stream: trio.SocketStream, _target: str) -> None:
        while True:
            await ground.uplink.send(stream, b"HTTP/1.1 103\r\n\r\n" * 1000)

    await _ask_hosts(ground, respond, _image)


async def _many_headers(ground: Ground) -> None:
    many = b"HTTP/1.1 200 OK\r\n" + b"a:\r\n" * 24_000 + b"Content-Length: 0\r\n\r\n"

    async def respond(stream: trio.SocketStream, _target: str) -> None:
        await ground.uplink.send(stream, many)

    await _ask_hosts(ground, respond, _image)


async def _json_documents(ground: Ground) -> None:
    kinds = itertools.cycle((blobs.of_names, blobs.of_objects))

    async def ask() -> None:
        did = ground.hostile_did()
        ground.documents[did] = partial(next(kinds), did, "https://127.1.1.1")
        await ground.ask(_image(did, cid_of(did.encode())))

    await ground.clients(8, ask)


async def _json_records(ground: Ground) -> None:
    async def respond(stream: trio.SocketStream, _target: str) -> None:
        body = blobs.record("at://did:plc:x/app.bsky.actor.profile/self")
        await ground.uplink.send(stream, head(len(body)) + body)

    await _ask_hosts(ground, respond, _avatar, clients=8)


async def _h2_frames(ground: Ground, *, frame: bytes) -> None:
    async def flood() -> None:
        async with ground.connected() as stream:
            await ground.uplink.send(stream, blobs.PREFACE + blobs.SETTINGS)
            async with trio.open_nursery() as nursery:
                nursery.start_soon(_drain, stream, nursery.cancel_scope)
                while True:
                    await ground.uplink.send(stream, frame * 1000)

    await ground.clients(8, flood)


async def _drain(stream: trio.SocketStream, scope: trio.CancelScope) -> None:
    """Take all that comes, and end the attack on this connection when it ends."""
    try:
        async for _ in stream:
            pass
    except trio.BrokenResourceError:
        pass
    scope.cancel()


# What takes memory


async def _large_documents(ground: Ground) -> None:
    async def ask() -> None:
        did = ground.hostile_did()
        ground.documents[did] = partial(blobs.of_long_endpoint, did)
        await ground.ask(_image(did, cid_of(did.encode())))

    await ground.clients(CLIENTS, ask)


_LARGE_BLOBS = 32


async def _large_paths(ground: Ground) -> Iterator[str]:
    """Large blobs of others: their bytes do not come through the attacker's uplink."""
    large = Numbered(partial(blobs.large_blob, MAX_BLOB))
    cids = [large.cid(number) for number in range(_LARGE_BLOBS)]

    async def respond(stream: trio.SocketStream, target: str) -> None:
        data = large.get(parse_qs(urlsplit(target).query)["cid"][0])
        await stream.send_all(head(len(data), "image/jpeg") + data)

    did = ground.account_at(await ground.pds(respond, "127.9.1.1"))
    return itertools.cycle(f"/blob/{did}/{cid}" for cid in cids)


async def _h2_slow_readers(ground: Ground) -> None:
    paths = await _large_paths(ground)

    async def read_nothing() -> None:
        async with ground.connected() as stream:
            streams = blobs.requests("proxy.test", itertools.islice(paths, 100))
            await ground.uplink.send(stream, blobs.PREFACE + blobs.NO_WINDOW + streams)
            async with trio.open_nursery() as nursery:
                nursery.start_soon(_drain, stream, nursery.cancel_scope)

    await ground.clients(3, read_nothing)


async def _slow_readers(ground: Ground) -> None:
    paths = await _large_paths(ground)

    async def read_slowly() -> None:
        async with ground.connected(receive_buffer=4096) as stream:
            request = f"GET {next(paths)} HTTP/1.1\r\nHost: proxy.test\r\n\r\n"
            await ground.uplink.send(stream, request.encode())
            while await stream.receive_some(1):  # noqa: ASYNC110  # this is how slow it is
                await trio.sleep(5)

    await ground.clients(200, read_slowly)


# What takes processor time


async def _pictures(
    ground: Ground, make: Callable[[int], bytes], path: str, *, clients: int
) -> None:
    """Clients that ask for one result each of ever new pictures."""
    pictures = Numbered(make)
    did = ground.account_at(await ground.pds_of(pictures.get))

    async def ask() -> None:
        cid = await trio.to_thread.run_sync(pictures.cid, ground.number())
        await ground.ask(path.format(did=did, cid=cid))

    await ground.clients(clients, ask)


async def _many_scans(ground: Ground) -> None:
    make = partial(blobs.scans_jpeg, 7000, 7000, 45_000)
    await _pictures(ground, make, "/img/content_preview/plain/{did}/{cid}", clients=3)


async def _most_scans(ground: Ground) -> None:
    make = partial(blobs.scans_jpeg, 7000, 7000, 2600)
    await _pictures(ground, make, "/img/content_preview/plain/{did}/{cid}", clients=3)


async def _tall_picture(ground: Ground) -> None:
    make = partial(blobs.scans_jpeg, 1600, 31_250, 200)
    await _pictures(ground, make, "/img/content_full/plain/{did}/{cid}@avif", clients=1)


async def _many_profiles(ground: Ground) -> None:
    make = partial(blobs.profiles_png, min(2300, _blob_length(ground) // 4200))
    await _pictures(ground, make, "/img/avatar_small/plain/{did}/{cid}", clients=3)


async def _directory_flood(ground: Ground) -> None:
    ground.directory_delay = 0.1

    async def ask() -> None:
        did = ground.hostile_did()
        await ground.ask(_image(did, cid_of(did.encode())))

    await ground.clients(280, ask)


async def _handle_flood(ground: Ground) -> None:
    ground.directory_delay = 0.1
    await ground.clients(280, lambda: ground.ask(f"/avatar/h{ground.number()}.hostile.test"))


async def _trickling_hosts(ground: Ground) -> None:
    async def respond(stream: trio.SocketStream, _target: str) -> None:
        await stream.send_all(head(MAX_BLOB, "image/jpeg") + b"\xff\xd8\xff\xe0")
        while True:
            await ground.uplink.send(stream, bytes(600))
            await trio.sleep(0.5)

    await _ask_hosts(ground, respond, _image, hosts=40, clients=80)


# Ways around

_RAW_SECONDS = 0.5


async def _raw(ground: Ground, *requests: bytes) -> bytes:
    """What the proxy answers on one connection within ``_RAW_SECONDS``."""
    answer = bytearray()
    async with ground.connected() as stream:
        with trio.move_on_after(_RAW_SECONDS):
            for request in requests:
                await ground.uplink.send(stream, request)
            async for received in stream:
                answer += received
                if len(answer) > 65536:
                    break
    return bytes(answer)


_H2C_UPGRADE = (
    b"GET /healthz HTTP/1.1\r\nHost: proxy.test\r\nConnection: Upgrade, HTTP2-Settings\r\n"
    b"Upgrade: h2c\r\nHTTP2-Settings: AAMAAABkAARAAAAAAAIAAAAA\r\n\r\n"
)
_WEBSOCKET = (
    b"GET / HTTP/1.1\r\nHost: proxy.test\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n"
    b"Sec-WebSocket-Version: 13\r\nSec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\n\r\n"
)
_BOTH_LENGTHS = (
    b"GET /healthz HTTP/1.1\r\nHost: proxy.test\r\nContent-Length: 5\r\n"
    b"Transfer-Encoding: chunked\r\n\r\n0\r\n\r\n"
    b"GET /healthz HTTP/1.1\r\nHost: proxy.test\r\n\r\n"
)


async def _upgrades(ground: Ground) -> None:
    async def upgrade() -> None:
        answer = await _raw(ground, _H2C_UPGRADE)
        if answer.startswith(b"HTTP/1.1 101"):
            ground.wrong["an upgrade to h2c was accepted"] += 1
        answer = await _raw(ground, blobs.PREFACE + blobs.SETTINGS)
        if answer and not answer.startswith(b"HTTP/1.1 "):
            ground.wrong["HTTP/2 was spoken without TLS"] += 1
        answer = await _raw(ground, _WEBSOCKET)
        if answer and not answer.startswith(b"HTTP/1.1 4"):
            ground.wrong[f"a WebSocket got {answer[:16]!a}"] += 1

    await ground.clients(8, upgrade)


async def _both_lengths(ground: Ground) -> None:
    async def ask() -> None:
        answer = await _raw(ground, _BOTH_LENGTHS)
        ground.asked[answer[9:12].decode("latin-1")] += 1
        if answer.count(b"HTTP/1.1 ") > 1:
            ground.wrong["a request after two lengths was answered"] += 1

    await ground.clients(8, ask)


_BLANKS = b"GET / HTTP/1.1\r\nHost: proxy.test\r\na:" + b" " * 60_000 + b"\0\r\n\r\n"


async def _blanks(ground: Ground) -> None:
    async def ask() -> None:
        answer = await _raw(ground, _BLANKS)
        ground.asked[answer[9:12].decode("latin-1")] += 1

    await ground.clients(8, ask)


async def _blanks_of_pdses(ground: Ground) -> None:
    async def respond(stream: trio.SocketStream, _target: str) -> None:
        await ground.uplink.send(stream, b"HTTP/1.1 200 OK\r\na:" + b" " * 60_000 + b"\0\r\n\r\n")

    await _ask_hosts(ground, respond, _image)


async def _any_tag(ground: Ground) -> None:
    did = ground.account_at(await ground.pds(_not_there))

    async def ask() -> None:
        cid = cid_of(str(ground.number()).encode())
        request = (
            f"GET {_image(did, cid)} HTTP/1.1\r\nHost: proxy.test\r\nIf-None-Match: *\r\n"
            "Connection: close\r\n\r\n"
        )
        answer = await _raw(ground, request.encode())
        ground.asked[answer[9:12].decode("latin-1")] += 1
        if answer.startswith(b"HTTP/1.1 304"):
            ground.wrong["a 304 for what does not exist"] += 1

    await ground.clients(8, ask)


async def _not_there(stream: trio.SocketStream, _target: str) -> None:
    await stream.send_all(b"HTTP/1.1 404 Not Found\r\nContent-Length: 0\r\n\r\n")


CODECS = (b"\x01\x55", b"\x01\x70", b"\x01\x71", b"\x01\x00", b"\x01\x72", b"\x01\xa9\x02", b"")
"""What stands before the digest in a CID: raw, dag-pb, dag-cbor, identity, libp2p-key, dag-json;
and nothing, as in CIDv0."""


async def _spellings(ground: Ground) -> None:
    """A blob is blocked by its raw CID; it is then asked for by every other CID of its digest."""
    data = blobs.profiles_png(1, 0)
    digest = b"\x12\x20" + hashlib.sha256(data).digest()
    cids = [encode_cid(codec + digest) for codec in CODECS]
    endpoint = await ground.pds_of(lambda _cid: data)
    dids = [ground.account_at(endpoint) for _ in range(2)]
    paths = [
        path
        for did, cid in itertools.product(dids, cids)
        for path in (f"/blob/{did}/{cid}", f"/img/avatar/plain/{did}/{cid}", f"/info/{did}/{cid}")
    ]
    for path in paths:
        await ground.ask(path)
    block = json.dumps({"cid": cids[0]})
    answer = await _raw(ground, _admin(ground.target.admin_token, block))
    if not answer.startswith(b"HTTP/1.1 2"):
        ground.wrong[f"the block got {answer[:16]!a}"] += 1
    turns = itertools.cycle(paths)

    async def ask() -> None:
        found: Answer | None = await ground.ask(next(turns))
        if found is not None and found.status == 200:
            ground.wrong["a blocked blob was served by another CID"] += 1

    await ground.clients(4, ask)


def _admin(token: str, body: str) -> bytes:
    return (
        "POST /admin/blocks HTTP/1.1\r\nHost: proxy.test\r\nConnection: close\r\n"
        f"Authorization: Bearer {token}\r\nContent-Type: application/json\r\n"
        f"Content-Length: {len(body)}\r\n\r\n{body}"
    ).encode()


async def _guesses(ground: Ground) -> None:
    async def guess() -> None:
        answer = await _raw(ground, _admin(f"guess-{ground.number()}", "{}"))
        status = answer[9:12].decode("latin-1")
        ground.asked[status] += 1
        if status == "401" and ground.asked["401"] > GUESSES:
            ground.wrong["a guess of the admin token was judged beyond the limit"] += 1

    await ground.clients(8, guess)


ESCAPE = "\x1b]0;hostile"
"""What must not stand in the log as it is: it would set the title of a terminal."""


async def _escapes(ground: Ground) -> None:
    async def ask() -> None:
        await ground.ask("/img/%1b%5d0;hostile%07/plain/%1b%5d0;hostile%07/%1b%5b2J")
        raw = f"GET /{ESCAPE} HTTP/1.1\r\nHost: {ESCAPE}\r\nUser-Agent: {ESCAPE}\r\n\r\n"
        await _raw(ground, raw.encode())

    await ground.clients(8, ask)


ADMIN_TOKEN = "IMAGE_PROXY_SERVER__ADMIN_TOKEN"  # noqa: S105
_CONSOLE = {"IMAGE_PROXY_LOG__FORMAT": "console"}
_ADMIN = {ADMIN_TOKEN: hashlib.sha256(b"of this run alone").hexdigest()}

ATTACKS = (
    Attack("jpeg-fill", "a JPEG of fill bytes", partial(_filled_jpeg, filling=b"\xff")),
    Attack("jpeg-zeros", "a JPEG of FF 00", partial(_filled_jpeg, filling=b"\xff\x00")),
    Attack("tiny-chunks", "PDSes that answer in chunks of one byte", _tiny_chunks),
    Attack("interim-answers", "PDSes that answer 103 without end", _interim_answers),
    Attack("many-headers", "PDSes that answer 24,000 headers", _many_headers),
    Attack("blanks-of-pdses", "PDSes that answer 60 KB of blanks and a NUL", _blanks_of_pdses),
    Attack("json-documents", "DID documents of 250 KB of JSON", _json_documents),
    Attack("json-records", "profiles of 250 KB of JSON", _json_records),
    Attack(
        "h2-window-updates",
        "8 connections of HTTP/2 without TLS: WINDOW_UPDATE",
        partial(_h2_frames, frame=blobs.WINDOW_UPDATE),
    ),
    Attack(
        "h2-settings",
        "8 connections of HTTP/2 without TLS: SETTINGS",
        partial(_h2_frames, frame=blobs.SETTINGS),
    ),
    Attack("large-documents", "DID documents with an endpoint of 250 KB", _large_documents),
    Attack("h2-slow-readers", "300 streams of HTTP/2 that read nothing", _h2_slow_readers),
    Attack("slow-readers", "200 connections that read a byte in 5 s", _slow_readers),
    Attack("many-scans", "3 clients: 49 megapixels in 590 scans of nothing", _many_scans),
    Attack("most-scans", "3 clients: the same in as many scans as are read", _most_scans),
    Attack("tall-picture", "1 client: 1600 x 31,250, as AVIF", _tall_picture),
    Attack("many-profiles", "3 clients: a PNG with 2,300 colour profiles", _many_profiles),
    Attack("directory-flood", "280 clients: accounts that do not exist", _directory_flood),
    Attack("handle-flood", "280 clients: handles of accounts that do not exist", _handle_flood),
    Attack("trickling-hosts", "40 PDSes that send 1.2 KB/s", _trickling_hosts),
    Attack("upgrades", "h2c by upgrade and by prior knowledge; WebSocket", _upgrades),
    Attack("both-lengths", "Content-Length and Transfer-Encoding", _both_lengths),
    Attack("blanks", "requests of 60 KB of blanks and a NUL", _blanks),
    Attack("any-tag", "If-None-Match: * for what does not exist", _any_tag),
    Attack("spellings", "other CIDs of a blocked blob", _spellings, _ADMIN),
    Attack("guesses", "wrong admin tokens", _guesses, _ADMIN),
    Attack("escapes", "escape sequences for the console log", _escapes, _CONSOLE),
)


async def _together(ground: Ground) -> None:
    async with trio.open_nursery() as nursery:
        for attack in ATTACKS:
            nursery.start_soon(attack.run, ground)


TOGETHER = Attack(
    "together", "all of these at once", _together, {**_ADMIN, **_CONSOLE}, is_timed=False
)

ALL = (*ATTACKS, TOGETHER)
BY_NAME = {attack.name: attack for attack in ALL}
