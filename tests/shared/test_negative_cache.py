"""The negative cache: what is remembered of failures."""

from __future__ import annotations

import pytest

from proxy.errors import BlobNotFound, FetchFailed, UndecodableImage
from proxy.model.identifiers import Cid, Did
from proxy.model.keys import BlobKey, ImageKey
from proxy.model.selection import Selection
from proxy.shared import negative_cache as negative
from proxy.shared.negative_cache import NegativeCache

CID = Cid("bafkreiemeosfdll427qzow5tipvctigjebyvi6ketznqrau2ydhzyggt7i")
BLOB = BlobKey(Did("did:plc:aaaaaaaaaaaaaaaaaaaaaaaa"), CID)
OTHER = BlobKey(Did("did:plc:bbbbbbbbbbbbbbbbbbbbbbbb"), CID)


def test_a_settled_failure_is_remembered_for_its_time_and_no_longer() -> None:
    """Catches a dead link that costs a fetch a request, and a blob that is dead for ever."""
    failures = NegativeCache(60)
    failures.failed(BLOB, BlobNotFound("gone"), now=0)
    with pytest.raises(BlobNotFound):
        failures.check(BLOB, now=59)
    failures.check(BLOB, now=60)


def test_a_failure_of_a_moment_is_tried_afresh_once() -> None:
    """Catches a reset connection that makes a picture unavailable for a minute."""
    failures = NegativeCache(60)
    failures.failed(BLOB, FetchFailed("reset"), now=0)
    failures.check(BLOB, now=1)
    failures.failed(BLOB, FetchFailed("reset"), now=1)
    with pytest.raises(FetchFailed):
        failures.check(BLOB, now=2)


def test_two_failures_far_apart_are_each_a_moments() -> None:
    """Catches a memory of the first failure that outlives its time."""
    failures = NegativeCache(60)
    failures.failed(BLOB, FetchFailed("reset"), now=0)
    failures.failed(BLOB, FetchFailed("reset"), now=61)
    failures.check(BLOB, now=62)


def test_a_success_forgets_the_failure_before_it() -> None:
    """Catches a failure that counts although the blob was fetched in between."""
    failures = NegativeCache(60)
    failures.failed(BLOB, FetchFailed("reset"), now=0)
    failures.succeeded(BLOB)
    failures.failed(BLOB, FetchFailed("reset"), now=1)
    failures.check(BLOB, now=2)


def test_every_request_gets_an_error_of_its_own() -> None:
    """Catches one instance raised again and again, its traceback growing with each request."""
    failures = NegativeCache(60)
    failures.failed(BLOB, UndecodableImage("cut"), now=0)
    raised = []
    for _ in range(2):
        with pytest.raises(UndecodableImage, match="cut") as info:
            failures.check(BLOB, now=1)
        raised.append(info.value)
    assert raised[0] is not raised[1]


def test_a_purge_forgets_failures_too() -> None:
    """Catches an operator who purges a blob and still gets yesterday's 404."""
    failures = NegativeCache(60)
    failures.failed(BLOB, BlobNotFound(), now=0)
    failures.failed(OTHER, BlobNotFound(), now=0)
    failures.purge(Selection(did=BLOB.did))
    failures.check(BLOB, now=1)
    with pytest.raises(BlobNotFound):
        failures.check(OTHER, now=1)


def test_only_so_many_failures_are_remembered(monkeypatch: pytest.MonkeyPatch) -> None:
    """Catches memory that anyone can fill with made-up CIDs."""
    monkeypatch.setattr(negative, "MAX_BYTES", 12_000)
    failures = NegativeCache(60)
    for number in range(30):
        failures.failed(BlobKey(Did(f"did:web:{number}.example"), CID), BlobNotFound(), now=0)
    assert 5 < len(failures) < 15


def test_a_time_of_zero_remembers_nothing() -> None:
    """Catches a setting of 0 that means for ever."""
    failures = NegativeCache(0)
    failures.failed(BLOB, BlobNotFound(), now=0)
    failures.failed(BLOB, BlobNotFound(), now=0)
    failures.check(BLOB, now=0)


def test_a_failure_that_comes_again_is_remembered_for_longer_each_time() -> None:
    """Catches a picture that costs ten seconds of a processor in each minute, for ever."""
    failures = NegativeCache(60, longest=200)
    now, terms = 0.0, []
    for _ in range(4):
        failures.failed(BLOB, UndecodableImage("costly"), now)
        began = now
        while True:
            try:
                failures.check(BLOB, now)
                break
            except UndecodableImage:
                now += 20
        terms.append(now - began)
    assert terms == [60, 120, 200, 200]


def test_failures_of_one_attempt_count_once() -> None:
    """Catches six presets of one picture whose one failure counts as six."""
    failures = NegativeCache(60, longest=1000)
    for _ in range(6):
        failures.failed(BLOB, UndecodableImage("costly"), now=0)
    failures.check(BLOB, now=60)


def test_a_failure_long_ago_or_before_a_success_does_not_make_the_next_one_longer() -> None:
    """Catches a crash of a worker last month that a picture still pays for."""
    failures = NegativeCache(60, longest=1000)
    failures.failed(BLOB, UndecodableImage("crash"), now=0)
    failures.failed(BLOB, UndecodableImage("crash"), now=120)
    failures.check(BLOB, now=180)
    failures.failed(BLOB, UndecodableImage("crash"), now=181)
    failures.succeeded(BLOB)
    failures.failed(BLOB, UndecodableImage("crash"), now=182)
    failures.check(BLOB, now=242)


def test_a_purge_forgets_failures_of_results_too() -> None:
    """Catches a purged picture whose presets still fail."""
    failures = NegativeCache(60)
    result = ImageKey("avatar", BLOB, None, "f")
    for selection in (Selection(did=BLOB.did), Selection(cid=CID), Selection(BLOB.did, CID)):
        failures.failed(result, UndecodableImage("costly"), now=0)
        failures.purge(selection)
        failures.check(result, now=1)
