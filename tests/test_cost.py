"""A search for inputs that cost more than they weigh: bytes are changed towards more steps a byte.

``python -m tests.test_cost [NAME ...] [--cases N] [--seed N]`` searches longer, with a progress
bar, prints the worst of each kind, and keeps them as files.
"""

from __future__ import annotations

import argparse
import gc
import json
import random
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from types import FrameType
from typing import Any

import pytest
import trio
import trio.testing

from proxy.accounts.did_documents import handle_of, pds_of
from proxy.accounts.record_contents import contents_of
from proxy.egress.endpoint import Origin
from proxy.egress.errors import EgressError
from proxy.egress.guarded_get import RequestRules, guarded_get
from proxy.egress.httpx2_client import Httpx2Client
from proxy.errors import ImageProxyError
from proxy.imaging import memory_estimate as memory
from proxy.imaging.containers.inspection import inspect
from proxy.model import formats
from proxy.model.identifiers import Did
from tests.imaging.test_fuzz import corpus

pytestmark = [pytest.mark.slow, pytest.mark.time_limit(600)]

CASES = 200
SEED = 20_240_229

MOST = 32 * 1024
"""Bytes of an input: enough to show what grows with it."""

PARENTS = 12
"""Inputs that are changed further: the costliest so far."""

OVERHEAD = 64
"""Bytes that are added to each input when its steps a byte are compared: ten bytes that cost a
hundred steps are no find."""

DID = Did("did:plc:" + "a" * 24)


@dataclass(frozen=True, slots=True)
class Kind:
    """A kind of input that a stranger writes.

    Attributes:
        read: the code that reads it; what it raises of ``refusals`` is an answer.
        seeds: where the search begins.
        words: what is put into inputs.
        places: bytes that words are put behind, half of the time.
        steps, steps_a_byte: the bound: lines of Python that an input may cost.
    """

    name: str
    read: Callable[[bytes], object]
    seeds: Sequence[bytes]
    words: Sequence[bytes]
    places: bytes
    steps: int
    steps_a_byte: float

    def bound(self, data: bytes) -> float:
        """Steps that ``data`` may cost."""
        return self.steps + self.steps_a_byte * len(data)


def steps_of(read: Callable[[bytes], object], data: bytes, limit: float) -> int:
    """Lines of Python that reading ``data`` takes; ``limit`` where it takes more.

    What it costs in C is not in it: that is linear in the bytes, or the table of
    ``./run bench hostile`` would show it.
    """
    count = 0

    def trace(_frame: FrameType, _event: str, _argument: Any) -> Any:
        nonlocal count
        count += 1
        if count <= limit:
            return trace
        sys.settrace(None)
        return None

    before = sys.gettrace()
    gc.disable()  # what it calls would be counted too
    sys.settrace(trace)
    try:
        with suppress(ImageProxyError, EgressError):
            read(data)
    finally:
        sys.settrace(before)
        gc.enable()
    return count


# Kinds


def read_size(data: bytes) -> None:
    """What is read of a picture before there is room for it."""
    format_ = formats.sniff(data)
    if format_ is not None:
        memory.declared_size(format_, data)


def read_container(data: bytes) -> None:
    """What a worker reads of a picture beside its decoder."""
    format_ = formats.sniff(data)
    if format_ is not None:
        inspect(format_, data)


def read_document(data: bytes) -> None:
    """What is read of a DID document."""
    with suppress(ImageProxyError):
        pds_of(DID, data)
    handle_of(DID, data)


def read_record(data: bytes) -> None:
    """What is read of a record."""
    with suppress(ValueError, RecursionError):
        record = json.loads(data)
        if isinstance(record, dict):
            contents_of(record)


RULES = RequestRules(max_bytes=1 << 20, max_redirects=0, allow_http=True, allow_private_hosts=True)


class _Server:
    """A network whose every connection brings the same bytes, and then ends."""

    def __init__(self, data: bytes) -> None:
        self._data = data

    async def connect(self, _host: str, _port: int) -> trio.abc.Stream:
        ours, theirs = trio.testing.memory_stream_pair()
        await theirs.send_all(self._data)
        await theirs.send_eof()
        return ours

    async def start_tls(self, stream: trio.abc.Stream, _host: str) -> trio.abc.Stream:
        return stream


def read_answer(data: bytes) -> None:
    """What is read of the answer of a PDS."""

    async def get() -> None:
        client = Httpx2Client(_Server(data), max_idle=1, idle_seconds=1)
        await guarded_get(client, client, Origin("http", "pds.example", 80), "/", RULES)
        await client.aclose()

    trio.run(get)


_BLOB = {"$type": "blob", "ref": {"$link": "bafy"}, "mimeType": "image/png", "size": 1}


def _document(**more: object) -> bytes:
    service = {"id": "#atproto_pds", "type": "AtprotoPersonalDataServer"}
    service["serviceEndpoint"] = "https://pds.example"
    return json.dumps({"id": DID, "service": [service], **more}).encode()


def _record(value: object) -> bytes:
    return json.dumps({"$type": "app.bsky.feed.post", "embed": value}).encode()


PARTS = (b"\xff", b"\xff\x00", b"\xff\xd0", b"\xff\xe0\x00\x02", b"!\xfe\x01\x00", b"\0\0\0\0iCCP")
"""Bytes that begin a part of a picture's file, or fill the space between two."""

KINDS = (
    Kind(
        "sizes",
        read_size,
        corpus(),
        PARTS,
        b"\xff,!",
        steps=4_000,
        steps_a_byte=0,
    ),
    Kind(
        "containers",
        read_container,
        corpus(),
        PARTS,
        b"\xff,!",
        steps=2_000,
        steps_a_byte=12,
    ),
    Kind(
        "documents",
        read_document,
        (
            _document(),
            _document(alsoKnownAs=["at://a.example", "at://b"], x=[1, {}]),
            _document(alsoKnownAs=["at://a"] * 3000),
        ),
        (b'"at://a",', b"{},", b'"",', b"[", b'{"id":"#atproto_pds"},'),
        b"[",
        steps=2_000,
        steps_a_byte=2,
    ),
    Kind(
        "records",
        read_record,
        (_record({}), _record({"images": [{"image": _BLOB, "alt": "x"}]}), _record([[0]] * 5000)),
        (
            b"{},",
            b'{"a":{}},',
            b"[0],",
            b"]",
            b'{"$type":"blob"},',
            json.dumps(_BLOB).encode() + b",",
        ),
        b"[",
        steps=100_000,
        steps_a_byte=0,
    ),
    Kind(
        "answers",
        read_answer,
        (
            b"HTTP/1.1 200 OK\r\nContent-Length: 3\r\n\r\nabc",
            b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n3\r\nabc\r\n0\r\n\r\n",
            b"HTTP/1.1 103 \r\n\r\nHTTP/1.1 302 x\r\nLocation: /a\r\n\r\n",
            b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n" + b"1\r\na\r\n" * 4000,
            b"HTTP/1.1 103 \r\n\r\n" * 1000,
            b"HTTP/1.1 200 OK\r\n" + b"a:\r\n" * 4000 + b"\r\n",
        ),
        (b"1\r\na\r\n", b"HTTP/1.1 103\r\n\r\n", b"a:\r\n", b"a: b\r\n", b"\r\n", b"0\r\n"),
        b"\n",
        steps=200_000,
        steps_a_byte=0.5,
    ),
)
BY_NAME = {kind.name: kind for kind in KINDS}


# The search


def changed(random_: random.Random, data: bytes, kind: Kind) -> bytes:
    """``data`` with one change."""
    words = kind.words
    at = random_.randrange(len(data) + 1)
    places = [place for place, byte in enumerate(data, 1) if byte in kind.places]
    if places and random_.random() < 0.5:
        at = random_.choice(places)
    end = min(at + random_.choice((1, 2, 4, 8, 16, 64, 256)), len(data))
    match random_.randrange(5):
        case 0:
            return data[:at] + random_.choice(words) + data[at:]
        case 1:
            return data[:at] + random_.choice(words) * random_.choice((2, 16, 256)) + data[at:]
        case 2:
            return data[:end] + data[at:end] * random_.choice((1, 8, 128)) + data[end:]
        case 3:
            return data[:at] + data[end:]
        case _:
            return data[:at] + random_.randbytes(end - at) + data[end:]


@dataclass(frozen=True, slots=True)
class Found:
    """An input, and the steps that it costs.

    Attributes:
        steps_a_byte: what the search is for; without the steps that the cheapest seed costs.
    """

    data: bytes
    steps: int
    steps_a_byte: float


def search(kind: Kind, seed: int, cases: int) -> Iterator[Found]:
    """Try ``cases`` inputs, each made of one of the costliest so far; the same for a seed."""
    random_ = random.Random(f"{kind.name} {seed}")
    least = min(steps_of(kind.read, data, kind.bound(data)) for data in kind.seeds)
    parents: list[Found] = []
    waiting = list(kind.seeds)
    for _ in range(cases):
        if waiting:
            data = waiting.pop()
        else:
            data = parent = random_.choice(parents).data
            for _ in range(random_.choice((1, 1, 2, 4))):
                data = changed(random_, data, kind)
            if len(data) > MOST:
                data = parent
        # A little more than the bound: enough to see that it is broken.
        steps = steps_of(kind.read, data, 1.1 * kind.bound(data))
        found = Found(data, steps, (steps - least) / (len(data) + OVERHEAD))
        yield found
        if found not in parents:
            parents = sorted([*parents, found], key=lambda each: -each.steps_a_byte)[:PARENTS]


@pytest.mark.parametrize("kind", KINDS, ids=lambda kind: kind.name)
def test_a_search_for_inputs_that_cost_much_finds_none_over_the_bound(kind: Kind) -> None:
    """Catches code that walks a stranger's bytes in more steps than they are worth."""
    kind.read(kind.seeds[0])  # what is imported at the first use is no step
    over = [each for each in search(kind, SEED, CASES) if each.steps > kind.bound(each.data)]
    assert not over, (over[0].steps, kind.bound(over[0].data), over[0].data[:200])


def test_the_search_finds_what_costs_more() -> None:
    """Catches a search that stays at what it began with."""

    def read(data: bytes) -> None:
        for _ in range(data.count(b"dear") * 100):
            pass

    kind = Kind("one word", read, (b"cheap",), (b"dear", b"not"), b"", 10**9, 1)
    found = list(search(kind, SEED, 60))
    assert max(each.steps_a_byte for each in found) > 100 * found[0].steps_a_byte
    assert found == list(search(kind, SEED, 60))


def milliseconds(read: Callable[[bytes], object], data: bytes) -> float:
    """Processor time of reading ``data``, the least of three."""
    times = []
    for _ in range(3):
        began = time.process_time()
        with suppress(ImageProxyError, EgressError):
            read(data)
        times.append(time.process_time() - began)
    return min(times) * 1000


def main() -> int:
    """The search as a command; 1 if an input is over its bound."""
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn

    parser = argparse.ArgumentParser(description="Inputs that cost more than they weigh.")
    parser.add_argument("names", nargs="*", metavar="NAME", help=f"of {', '.join(BY_NAME)}")
    parser.add_argument("--cases", type=int, default=CASES, help="of each kind")
    parser.add_argument("--seed", type=int, default=SEED)
    parser.add_argument("--keep", type=Path, default=Path("build/cost"), help="for the worst")
    given = parser.parse_args()
    kinds = [BY_NAME[name] for name in given.names] or KINDS
    is_over = False
    with Progress(TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn()) as bar:
        for kind in kinds:
            task = bar.add_task(f"{kind.name:<10}", total=given.cases)
            worst = Found(b"", 0, 0)
            for found in search(kind, given.seed, given.cases):
                worst = max(worst, found, key=lambda each: each.steps)
                is_over |= found.steps > kind.bound(found.data)
                bar.advance(task)
            given.keep.mkdir(parents=True, exist_ok=True)
            (given.keep / kind.name).write_bytes(worst.data)
            bar.console.print(
                f"{kind.name:<10} {len(worst.data)} bytes, {worst.steps} steps, "
                f"{worst.steps_a_byte:.1f} a byte, {milliseconds(kind.read, worst.data):.2f} ms",
                highlight=False,
            )
    return 1 if is_over else 0


if __name__ == "__main__":
    sys.exit(main())
