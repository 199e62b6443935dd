"""Tables that strangers fill: what they cost in bytes is what they take, and has a bound."""

from __future__ import annotations

import gc
import json
import tracemalloc
from collections.abc import Callable
from dataclasses import dataclass

import pytest

from proxy.accounts import did_documents
from proxy.accounts.did_documents import MAX_ENDPOINT, Identity, handle_of, pds_of
from proxy.accounts.record_contents import MAX_ALT, MAX_NAME, contents_of
from proxy.cache import lately_read
from proxy.cache.lately_read import KnownFile, LatelyRead
from proxy.egress import circuit
from proxy.egress.circuit import FAILURES_TO_OPEN, Circuits
from proxy.egress.errors import ConnectFailed
from proxy.errors import BlobNotFound, InvalidDid, InvalidHandle, NoPdsEndpoint
from proxy.model.formats import Format
from proxy.model.identifiers import Cid, Did, Handle, parse_did, parse_handle
from proxy.model.keys import BlobKey, ImageKey
from proxy.moderation.policy import VERDICT, Verdicts
from proxy.moderation.policy_protocols import Verdict
from proxy.shared import negative_cache
from proxy.shared.expiring_map import GRAIN, ExpiringMap
from proxy.shared.lookup_cache import _Kept
from proxy.shared.memory_cost import cost_of, size_of
from proxy.shared.negative_cache import NegativeCache
from tests.fakes.sites import cid_of

SHARE = 8
"""The tables here have an eighth of their bytes: a power of two keeps how full their dictionaries
are."""

COUNT = 100_000 // SHARE
WIDE = "\N{GRINNING FACE}"
TYPE = {"id": "#atproto_pds", "type": "AtprotoPersonalDataServer"}


LABELS = f"{'a' * 56}.{'b' * 63}.{'c' * 63}.{'d' * 61}"


def longest_handle(number: int) -> Handle:
    return Handle(f"{number:07}{LABELS}")


def longest_did(number: int) -> Did:
    return Did(f"did:web:{number:07}{LABELS}")


def longest_identity(number: int) -> Identity:
    return Identity(f"{number}".ljust(MAX_ENDPOINT, WIDE), longest_handle(number))


def test_the_longest_are_accepted_and_longer_ones_are_not() -> None:
    """Catches entries below that are smaller than what a stranger may send."""
    did, handle = longest_did(1), longest_handle(1)
    assert parse_did(did) == did
    assert parse_handle(handle) == handle
    with pytest.raises(InvalidDid):
        parse_did(did.replace("b", "bb", 1))
    with pytest.raises(InvalidHandle):
        parse_handle(handle.replace("b", "bb", 1))

    def document(endpoint: str) -> bytes:
        service = [TYPE | {"serviceEndpoint": endpoint}]
        return json.dumps(
            {"id": did, "alsoKnownAs": [f"at://{handle}"], "service": service}
        ).encode()

    longest = longest_identity(1)
    parsed = Identity(pds_of(did, document(longest.pds)), handle_of(did, document(longest.pds)))
    assert parsed == longest
    origin = f"https://{handle}:65535/"
    assert len(origin) == MAX_ENDPOINT
    assert pds_of(did, document(origin)) == origin
    with pytest.raises(NoPdsEndpoint):
        pds_of(did, document(origin + "/"))


def a_cid(number: int) -> Cid:
    return Cid("bafkrei" + f"{number:052}")


def long_error(number: int) -> BlobNotFound:
    return BlobNotFound(f"{number} ".ljust(700, WIDE))


@dataclass
class Table:
    """A table and its bound in bytes."""

    put: Callable[[int], object]
    most: int
    count: int = COUNT


def lookups(answer: Callable[[int], tuple[str, _Kept[object]]]) -> Table:
    most = did_documents.MAX_BYTES // SHARE
    map_: ExpiringMap[str, _Kept[object]] = ExpiringMap(most, cost=cost_of)
    return Table(lambda n: map_.put(*answer(n), float(n)), most)


def documents() -> Table:
    return lookups(lambda n: (longest_did(n), _Kept(float(n), longest_identity(n))))


def handles() -> Table:
    return lookups(lambda n: (longest_handle(n), _Kept(float(n), longest_did(n))))


def missing() -> Table:
    return lookups(lambda n: (longest_did(n), _Kept(float(n), None, long_error(n))))


def profiles() -> Table:
    return lookups(
        lambda n: (
            longest_did(n),
            _Kept(float(n), {"avatar": a_cid(n), "banner": a_cid(n + COUNT)}),
        )
    )


def failures() -> Table:
    table = NegativeCache(60)
    return Table(
        lambda n: table.failed(BlobKey(longest_did(n // 2), a_cid(n)), long_error(n), now=n / 1e4),
        negative_cache.MAX_BYTES,
    )


def verdicts() -> Table:
    table = Verdicts(ttl=60, max_entries=COUNT // 2)
    return Table(
        lambda n: table.put(BlobKey(longest_did(n), a_cid(n)), Verdict.PERMITTED, n / 1e4),
        COUNT // 2 * VERDICT,
    )


def circuits() -> Table:
    table = Circuits()

    def fail(number: int) -> None:
        for _ in range(FAILURES_TO_OPEN):
            table.failed(
                longest_handle(number), ConnectFailed(f"{number} {WIDE * 490}"), number / 1e4
            )

    return Table(fail, circuit.MAX_BYTES, count=COUNT // 5)


def files() -> Table:
    most = lately_read.MAX_BYTES // SHARE
    table = LatelyRead(most)

    def add(number: int) -> None:
        key = ImageKey("avatar", BlobKey(longest_did(number), a_cid(number)), None, f"{number:010}")
        path = f"/{'cache' * 20}/{key.blob.did}/avatar-{key.fingerprint}/{key.blob.cid}@auto.jpg"
        digest = number.to_bytes(32)
        file = KnownFile(path.encode(), Format.JPEG, 20_000 + number, digest, float(number))
        table.add(key, file, number / 1e4, table.moment)

    return Table(add, most)


@pytest.mark.slow
@pytest.mark.parametrize(
    "table", [documents, handles, missing, profiles, failures, verdicts, circuits, files]
)
def test_the_largest_entries_take_no_more_memory_than_the_bound(
    table: Callable[[], Table], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Catches a bound by count, and a cost that counts characters and not bytes, or no tables."""
    for module in (circuit, negative_cache):
        monkeypatch.setattr(module, "MAX_BYTES", module.MAX_BYTES // SHARE)
    gc.collect()
    tracemalloc.start()
    try:
        filled = table()
        for number in range(filled.count):
            filled.put(number)
        gc.collect()
        taken, _ = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    # Not so much less that most of the room is wasted.
    assert filled.most / 2 < taken < filled.most


def test_the_texts_of_a_picture_are_cut() -> None:
    """Catches an answer of 16 MB that repeats one name or description for each picture."""
    links = [
        {"$type": "blob", "mimeType": "image/png", "ref": {"$link": cid_of(b"%d" % number)}}
        for number in range(3)
    ]
    record = {"n" * 100_000: links, "images": [{"alt": WIDE * 100_000, "image": links[0]}]}
    for picture in contents_of(record).pictures:
        assert len(picture.name) <= MAX_NAME
        assert len(picture.alt) <= MAX_ALT


def test_what_expired_leaves_while_other_things_are_asked_for() -> None:
    """Catches entries that stay, expired or not, until someone asks for them again."""
    map_: ExpiringMap[int, int] = ExpiringMap(10**9)
    for number in range(1000):
        map_.put(number, number, expires=100.0 + number % 7)
    map_.put(-1, -1)
    map_.put(-2, -2, expires=10**6)
    for _ in range(2000):
        assert map_.get(-3, now=200.0 + GRAIN) is None
    assert len(map_) == map_.cost == 2
    assert not map_._groups.keys() - {int(10**6 // GRAIN)}


@pytest.mark.parametrize("text", ["a" * 1000, "ü" * 1000, "\N{EURO SIGN}" * 1000, WIDE * 1000])
def test_a_text_costs_its_bytes(text: str) -> None:
    """Catches a cost by characters: a wide one takes four bytes."""
    tracemalloc.start()
    try:
        copy = [(text + str(number),) for number in range(100)]
        taken, _ = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert 0.9 * taken < size_of(copy) < 1.3 * taken


def test_what_is_shared_costs_once_or_nothing() -> None:
    """Catches an estimate so high that a table keeps nothing."""
    assert size_of(Verdict.PERMITTED, None, True, BlobNotFound) == 0
    name = "name" * 100
    assert size_of((name, name)) < size_of(name) + 100
