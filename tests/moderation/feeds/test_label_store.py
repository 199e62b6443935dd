"""What labels ask for, over both kinds of databases."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import closing
from dataclasses import replace
from pathlib import Path

import pytest

from proxy.moderation.cluster.schema import migrate
from proxy.moderation.feeds.label_store import FeedStore
from proxy.moderation.feeds.labels import Label, LabelledRecord
from proxy.shared.postgres import PostgresDatabase
from tests.cache import owner
from tests.moderation import BLOB, OWNER, PAIR, feed_store_in

MOD = "did:web:mod"
RECORD = LabelledRecord(owner(1), "app.bsky.feed.post", "key", None)
ABOUT_OWNER = Label(MOD, str(owner(1)), "", "spam", False, 100.0, None, b"", b"")
ABOUT_RECORD = replace(ABOUT_OWNER, uri=f"at://{owner(1)}/app.bsky.feed.post/key")


@pytest.fixture(params=["sqlite", pytest.param("postgresql", marks=pytest.mark.slow)])
def store(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[FeedStore]:
    """An empty store."""
    if request.param == "sqlite":
        with closing(feed_store_in(tmp_path)) as opened:
            yield opened
        return
    url: str = request.getfixturevalue("database_url")
    database = PostgresDatabase(url, lock=1, patience=30, prepare=migrate)
    with closing(FeedStore(database)) as opened:
        yield opened


def test_a_label_blocks_until_a_newer_one_negates_it(store: FeedStore) -> None:
    """Catches an order by arrival, and a block that another label still asks for."""
    first = store.put(ABOUT_OWNER, OWNER, 0.0)
    assert first is not None
    assert (first.block, first.lift) == ((OWNER,), ())
    other = store.put(replace(ABOUT_OWNER, val="rude", cts=50.0), OWNER, 0.0)
    assert other is not None
    assert store.put(replace(ABOUT_OWNER, neg=True, cts=99.0), OWNER, 0.0) is None
    negated = store.put(replace(ABOUT_OWNER, neg=True, cts=101.0), OWNER, 0.0)
    assert negated is not None
    assert (negated.block, negated.lift) == ((OWNER,), ()), "the other label asks for it"
    last = store.put(replace(ABOUT_OWNER, val="rude", neg=True, cts=60.0), OWNER, 0.0)
    assert last is not None
    assert (last.block, last.lift) == ((), (OWNER,))


def test_a_record_is_asked_for_until_its_blobs_are_known(store: FeedStore) -> None:
    """Catches a record that is asked for twice at once, or never again after a failure."""
    store.put(ABOUT_RECORD, RECORD, 10.0)
    assert store.waiting() == 1
    assert store.due(9.0, 1e9, 10, ()) == []
    ((label, record),) = store.due(10.0, 1e9, 10, ())
    assert record == RECORD
    assert store.due(10.0, 1e9, 10, (label.id,)) == []
    assert store.next_at(()) == (10.0, None)
    assert store.next_at((label.id,)) == (None, None)
    store.postpone(label, 50.0)
    ((again, _),) = store.due(60.0, 1e9, 10, ())
    assert again.tries == 1
    touched = store.answered(again, [PAIR, BLOB], 60.0)
    assert touched is not None
    assert set(touched.block) == {PAIR, BLOB}
    fewer = store.answered(again, [PAIR], 60.0)
    assert fewer is not None
    assert (fewer.block, fewer.lift) == ((PAIR,), (BLOB,))
    store.settled(again)
    assert store.waiting() == 0
    assert store.due(60.0, 1e9, 10, ()) == []


def test_an_expiry_is_carried_out_once_and_taken_back_by_a_clock_that_was_ahead(
    store: FeedStore,
) -> None:
    """Catches a label that stays for ever, and one that ended too early."""
    store.put(replace(ABOUT_OWNER, exp=200.0), OWNER, 0.0)
    assert store.next_at(()) == (None, 200.0)
    assert store.expired(199.0, 10) == []
    (ended,) = store.expired(200.0, 10)
    assert ended.lift == (OWNER,)
    store.ended(ended.label)
    assert store.expired(200.0, 10) == []
    assert store.resumed(300.0, 10) == []
    (resumed,) = store.resumed(100.0, 10)
    assert resumed.block == (OWNER,)
    store.resume(resumed.label)
    assert store.resumed(100.0, 10) == []


def test_labels_that_nobody_follows_any_more_go(store: FeedStore) -> None:
    """Catches a block of a labeler that was unsubscribed, and the loss of another's."""
    number = store.follow(MOD, "settings")
    assert store.follow(MOD, "settings") == number
    assert store.follow(MOD, "others") > number
    store.put(ABOUT_OWNER, OWNER, 0.0)
    store.put(replace(ABOUT_OWNER, src="did:web:other"), PAIR, 0.0)
    (unwanted,) = store.unwanted([MOD], ["spam"], 0.0, 10)
    assert (unwanted.label.src, unwanted.lift) == ("did:web:other", (PAIR,))
    store.remove([unwanted.label])
    assert store.unwanted([MOD], ["spam"], 0.0, 10) == []
    (left,) = store.unwanted([], [], 0.0, 10)
    assert left.lift == (OWNER,)
    assert store.follow(MOD, "others") > number, "it is followed from the beginning"


def test_documents_that_changed_are_told_to_every_process(store: FeedStore) -> None:
    """Catches a process that begins with what was told before it was there."""
    store.add_forgotten(owner(1))
    last, told = store.forgotten_since(None)
    assert told == []
    store.add_forgotten(owner(2))
    store.add_forgotten(owner(3))
    newest, told = store.forgotten_since(last)
    assert told == [owner(2), owner(3)]
    assert store.forgotten_since(newest) == (newest, [])
