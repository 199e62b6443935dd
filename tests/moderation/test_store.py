"""The file of moderation: who asked for what is told apart, and nothing is lost or done twice."""

from __future__ import annotations

import sqlite3
import threading
import time
from contextlib import closing
from pathlib import Path

import pytest
from libipld import encode_cid

from proxy.model.identifiers import Cid, Did, cid_digest, spellings
from proxy.model.keys import BlobKey
from proxy.model.selection import Selection
from proxy.moderation.decision_store import Block, Decision, DecisionStore, Purge, _of_content
from tests.cache import blob_cid, owner
from tests.moderation import (
    A1,
    A2,
    ALL,
    B1,
    BLOB,
    OWNER,
    PAIR,
    AnyStoreIn,
    StoreIn,
    decide,
    lift,
    plant_older,
)

SELECTIONS = pytest.mark.parametrize(
    ("selection", "covered"),
    [(OWNER, [A1, A2]), (BLOB, [A1, B1]), (PAIR, [A1])],
    ids=["owner", "blob", "pair"],
)


def blocked(store: DecisionStore) -> list[BlobKey]:
    """What is blocked, both as it is asked for in the database and as it is loaded."""
    loaded = store.load().blocks
    found = [blob for blob in ALL if store.blocks_now(blob)]
    assert found == [blob for blob in ALL if loaded.covers(blob)]
    return found


CIDS = spellings(PAIR.cid or blob_cid(1))
"""Every CID of the blob of ``PAIR``."""


@pytest.mark.parametrize("did", [None, owner(1)], ids=["blob", "pair"])
@pytest.mark.parametrize("typed", CIDS)
def test_a_block_of_any_cid_covers_every_cid_of_the_same_bytes(
    typed: Cid, did: Did | None, tmp_path: Path, any_store_in: AnyStoreIn
) -> None:
    """Catches a block by one CID that leaves the same picture served by another one; and a list
    that shows another CID than the one that was typed."""
    store = any_store_in(tmp_path)
    before = store.load()
    decide(store, Selection(did, typed))
    (change,) = store.changes(before.last, 10).decided
    assert change.is_blocked
    loaded = store.load().blocks
    for cid in CIDS:
        assert store.blocks_now(BlobKey(owner(1), cid))
        assert loaded.covers(BlobKey(owner(1), cid))
        assert store.blocks_now(BlobKey(owner(2), cid)) is (did is None)
        assert loaded.covers(BlobKey(owner(2), cid)) is (did is None)
    assert [(each.did, each.cid) for each in store.blocks()] == [(did, typed)]


@pytest.mark.parametrize("lifted", CIDS)
def test_a_block_is_lifted_by_any_cid_of_the_same_bytes(
    lifted: Cid, tmp_path: Path, any_store_in: AnyStoreIn
) -> None:
    """Catches a block that stays because it was made with another CID, and one of two that does."""
    store = any_store_in(tmp_path)
    for cid in CIDS:
        decide(store, Selection(cid=cid))
    last = store.load().last
    assert lift(store, Selection(cid=lifted))
    assert list(store.blocks()) == []
    assert not store.load().blocks.covers(A1)
    assert [each.is_blocked for each in store.changes(last, 10).decided] == [False]


def test_one_cid_that_is_still_blocked_by_somebody_keeps_all_blocked(
    tmp_path: Path, any_store_in: AnyStoreIn
) -> None:
    """Catches a process that forgets a block because one of two CIDs was lifted."""
    store = any_store_in(tmp_path)
    decide(store, Selection(cid=CIDS[0]), by="labeler")
    decide(store, Selection(cid=CIDS[2]), by="admin")
    last = store.load().last
    assert lift(store, Selection(cid=CIDS[1]), by="admin")
    assert [each.is_blocked for each in store.changes(last, 10).decided] == [True]


def test_blocks_by_the_cid_of_a_record_are_taken_over_as_those_of_the_blob(
    tmp_path: Path, any_store_in: AnyStoreIn
) -> None:
    """Catches a block of an earlier release that is not found, or cannot be lifted: its codec is
    not accepted any more."""
    multihash = b"\x12\x20" + cid_digest(CIDS[0])
    record = Cid(encode_cid(b"\x01\x71" + multihash))
    store = any_store_in(tmp_path)
    decide(store, PAIR, Selection(cid=record), Selection(did=owner(1), cid=record))
    assert store.load().blocks.covers(B1)
    assert store.blocks_now(B1)
    assert [(each.did, each.cid) for each in store.blocks()] == [
        (owner(1), CIDS[0]),
        (None, CIDS[0]),
    ]
    assert lift(store, Selection(cid=CIDS[0]))
    assert not store.load().blocks.covers(B1)


@SELECTIONS
def test_a_block_covers_exactly_what_it_names_until_it_is_lifted(
    tmp_path: Path, selection: Selection, covered: list[BlobKey], any_store_in: AnyStoreIn
) -> None:
    """Catches an owner's block that spares a blob, and a pair's that takes every owner."""
    store = any_store_in(tmp_path)
    assert blocked(any_store_in(tmp_path)) == []
    assert lift(store, selection) is False
    decide(store, selection)
    assert blocked(any_store_in(tmp_path)) == covered
    assert lift(store, selection) is True
    assert blocked(any_store_in(tmp_path)) == []
    assert lift(store, selection) is False


def test_lifting_one_block_leaves_the_others(tmp_path: Path, any_store_in: AnyStoreIn) -> None:
    """Catches a pair whose lifting frees its owner, or the blob everywhere."""
    store = any_store_in(tmp_path)
    decide(store, OWNER, BLOB, PAIR)
    assert lift(store, PAIR)
    assert blocked(any_store_in(tmp_path)) == [A1, A2, B1]
    assert lift(store, OWNER)
    assert blocked(any_store_in(tmp_path)) == [A1, B1]
    assert lift(store, BLOB)
    assert blocked(any_store_in(tmp_path)) == []


def test_a_label_that_is_negated_leaves_the_operators_block(
    tmp_path: Path, any_store_in: AnyStoreIn
) -> None:
    """Catches one row for what two asked for: who takes it back takes the other's too."""
    store = any_store_in(tmp_path)
    for first, second in (("admin", "labeler"), ("labeler", "admin")):
        decide(store, OWNER, by=first)
        decide(store, OWNER, by=second)
        assert lift(store, OWNER, "labeler")
        assert blocked(any_store_in(tmp_path)) == [A1, A2]
        assert not lift(store, OWNER, "labeler")
        assert lift(store, OWNER, "admin")
        assert blocked(any_store_in(tmp_path)) == []


def test_the_operator_lifts_what_all_others_asked_for(
    tmp_path: Path, any_store_in: AnyStoreIn
) -> None:
    """Catches a block that only its labeler can take back."""
    store = any_store_in(tmp_path)
    decide(store, OWNER, by="labeler")
    decide(store, OWNER, by="alice")
    decide(store, PAIR, by="labeler")
    assert store.lift(OWNER, by="bob", reason="", of_all=True)[0]
    assert blocked(any_store_in(tmp_path)) == [A1]


def test_blocks_are_listed_as_they_came_and_renewed_in_their_place(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, any_store_in: AnyStoreIn
) -> None:
    """Catches an order by identifier, a reason that is lost, and a second row of one block."""
    store = any_store_in(tmp_path)
    now = 1000.0
    monkeypatch.setattr(time, "time", lambda: now)
    store.record("block", [(Selection(did=owner(9)), "spam")], by="a", owner="")
    now = 2000.0
    store.record("block", [(BLOB, ""), (PAIR, "law; café \U0001f600")], by="b", owner="")
    now = 3000.0
    store.record("block", [(Selection(did=owner(9)), "abuse")], by="a", owner="")
    assert list(store.blocks()) == [
        Block(1, owner(9), None, "a", "abuse", 1000.0),
        Block(2, None, blob_cid(1), "b", "", 2000.0),
        Block(3, owner(1), blob_cid(1), "b", "law; café \U0001f600", 2000.0),
    ]


def test_a_listing_reads_pages_and_is_none_the_worse_for_changes_between_them(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, any_store_in: AnyStoreIn
) -> None:
    """Catches a page that begins where the last one did, and one transaction over all."""
    monkeypatch.setattr("proxy.moderation.decision_store.PAGE", 4)
    store = any_store_in(tmp_path)
    decide(store, *(Selection(did=owner(number)) for number in range(10)))
    listed = []
    for block in store.blocks():
        listed.append(block.did)
        if len(listed) == 6:
            assert lift(store, Selection(did=owner(1)))
            assert lift(store, Selection(did=owner(9)))
    assert listed == [owner(number) for number in range(9)]


def test_the_audit_has_every_decision_and_the_removals_of_its_purge(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, any_store_in: AnyStoreIn
) -> None:
    """Catches an audit that a lifting erases, and a count before there is one."""
    monkeypatch.setattr(time, "time", lambda: 5.0)
    store = any_store_in(tmp_path)
    bulk = store.record("block", [(OWNER, "one"), (BLOB, "two")], by="a", owner="")
    store.record("block", [(PAIR, "three")], by="a", owner="", purge=bulk.purge)
    purge = store.record("purge", [(OWNER, "four")], by="b", owner="")
    store.finish(bulk.purge, 7)
    store.lift(OWNER, by="a", reason="five", of_all=False)
    expected = [
        Decision(1, 5.0, "a", "block", owner(1), None, "one", 7),
        Decision(2, 5.0, "a", "block", None, blob_cid(1), "two", 7),
        Decision(3, 5.0, "a", "block", owner(1), blob_cid(1), "three", 7),
        Decision(4, 5.0, "b", "purge", owner(1), None, "four", None),
        Decision(5, 5.0, "a", "lift", owner(1), None, "five", None),
    ]
    assert store.audit(100) == expected
    assert store.audit(2) == expected[-2:]
    assert store.audit(2, before=4) == expected[1:3]
    assert store.audit(2, before=1) == []
    store.finish(purge.purge, 0)
    assert store.audit(2)[0].removed == 0


def test_a_purge_that_was_taken_for_abandoned_is_taken_back_by_the_bulk_that_goes_on(
    tmp_path: Path, any_store_in: AnyStoreIn
) -> None:
    """Catches decisions of a command that was stopped for a while: their purge counts as done, and
    if the command dies before it is, nobody carries it out."""
    store = any_store_in(tmp_path)
    bulk = store.record("block", [(OWNER, "one")], by="a", owner="stopped")
    assert store.claim(Purge(bulk.purge, "stopped"), "another")
    store.finish(bulk.purge, 1)
    later = store.record("block", [(BLOB, "two")], by="a", owner="stopped", purge=bulk.purge)
    assert store.unfinished() == [Purge(later.purge, "stopped")]
    assert store.decisions_of(Purge(later.purge, "stopped"))[0] == [OWNER, BLOB]


def test_the_blocks_of_a_pair_are_its_own_its_owners_and_its_blobs(
    tmp_path: Path, any_store_in: AnyStoreIn
) -> None:
    """Catches a block that holds and is not shown, and another's that is."""
    store = any_store_in(tmp_path)
    assert store.blocks_of(PAIR) == []
    decide(store, BLOB)
    decide(store, PAIR, by="labeler")
    decide(store, OWNER, by="labeler")
    decide(store, OWNER)
    decide(store, Selection(owner(1), blob_cid(2)), Selection(owner(2)), Selection(cid=blob_cid(2)))

    def told(selection: Selection) -> list[tuple[Selection, str]]:
        return [(Selection(each.did, each.cid), each.by) for each in store.blocks_of(selection)]

    owners = [(OWNER, "labeler"), (OWNER, "a test")]
    assert told(PAIR) == [(BLOB, "a test"), (PAIR, "labeler"), *owners]
    assert told(OWNER) == owners
    assert told(BLOB) == [(BLOB, "a test")]
    for cid in spellings(blob_cid(1)):
        assert told(Selection(owner(1), cid)) == told(PAIR)
        assert told(Selection(cid=cid)) == told(BLOB)


def test_changes_are_what_came_since_and_no_more(tmp_path: Path, any_store_in: AnyStoreIn) -> None:
    """Catches a follower that reads a million rows for one more."""
    store = any_store_in(tmp_path)
    decide(store, OWNER)
    before = store.load()
    version = decide(store, BLOB, by="labeler")
    decide(store, BLOB)
    assert lift(store, OWNER)
    changes = store.changes(before.last, 100)
    assert [(each.selection, each.is_blocked) for each in changes.decided] == [
        (BLOB, True),
        (BLOB, True),
        (OWNER, False),
    ]
    assert changes.is_all
    assert changes.version > version > before.version
    assert store.changes(changes.last, 100).decided == ()
    assert lift(store, BLOB, "labeler")
    (change,) = store.changes(changes.last, 100).decided
    assert change.is_blocked, "somebody else's block of it stands"


def test_changes_come_in_steps_that_say_whether_more_follow(
    tmp_path: Path, any_store_in: AnyStoreIn
) -> None:
    """Catches a follower that says it follows when it has read half."""
    store = any_store_in(tmp_path)
    decide(store, *(Selection(did=owner(number)) for number in range(5)))
    after = found = 0
    steps: list[bool] = []
    while not steps or not steps[-1]:
        changes = store.changes(after, 2)
        after, found = changes.last, found + len(changes.decided)
        steps.append(changes.is_all)
    assert (found, steps) == (5, [False, False, True])


def test_a_file_that_was_put_back_is_not_taken_for_the_one_it_was(
    tmp_path: Path, store_in: StoreIn
) -> None:
    """Catches a backup over the file, whose blocks would never be read."""
    store = store_in(tmp_path)
    decide(store, OWNER)
    with pytest.raises(sqlite3.DatabaseError):
        store.changes(2, 100)


def test_an_unfinished_purge_is_claimed_once(tmp_path: Path, any_store_in: AnyStoreIn) -> None:
    """Catches two processes that finish the work of one that died."""
    stores = [any_store_in(tmp_path) for _ in range(4)]
    decide(stores[0], OWNER, PAIR)
    (purge,) = stores[0].unfinished()
    assert purge == Purge(1, "nobody")
    claimed: list[int] = []
    start = threading.Barrier(4)

    def claim(number: int) -> None:
        start.wait()
        if stores[number].claim(purge, f"process {number}"):
            claimed.append(number)

    threads = [threading.Thread(target=claim, args=(number,)) for number in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert stores[0].unfinished() == [Purge(1, f"process {claimed[0]}")]
    assert len(claimed) == 1
    assert stores[0].decisions_of(purge)[0] == [OWNER, PAIR]
    stores[0].finish(1, 0)
    assert stores[1].unfinished() == []
    assert not stores[1].claim(Purge(1, f"process {claimed[0]}"), "late")


def test_cursors_are_kept_by_stream(tmp_path: Path, any_store_in: AnyStoreIn) -> None:
    """Catches a cursor of one labeler that another one goes on from."""
    any_store_in(tmp_path).set_cursor("labels at a", 5)
    any_store_in(tmp_path).set_cursor("labels at b", 2**62)
    any_store_in(tmp_path).set_cursor("labels at a", 6)
    store = any_store_in(tmp_path)
    assert [store.cursor(f"labels at {name}") for name in "abc"] == [6, 2**62, None]


def test_a_cursor_is_nothing_that_processes_have_to_follow(
    tmp_path: Path, any_store_in: AnyStoreIn
) -> None:
    """Catches a version that every event raises: all would read, thirty times a second."""
    store = any_store_in(tmp_path)
    version = decide(store, OWNER)
    store.set_cursor("labels", 5)
    assert store.load().version == version


OLDER = [
    (owner(2), "", "later", 2000.0),
    (owner(1), blob_cid(1), "earlier", 1000.0),
    ("", blob_cid(2), "", 3000.0),
]


def test_the_blocks_of_an_older_version_are_taken_over_with_their_reasons(
    tmp_path: Path, store_in: StoreIn
) -> None:
    """Catches an upgrade after which everything is served again."""
    plant_older(tmp_path, *OLDER)
    store = store_in(tmp_path)
    assert [(b.did, b.cid, b.by, b.reason, b.created_at) for b in store.blocks()] == [
        (owner(1), blob_cid(1), "admin", "earlier", 1000.0),
        (owner(2), None, "admin", "later", 2000.0),
        (None, blob_cid(2), "admin", "", 3000.0),
    ]
    assert store.blocks_now(BlobKey(owner(2), blob_cid(7)))
    assert [each.reason for each in store.audit(10)] == ["earlier", "later", ""]


def test_they_are_taken_over_once_and_what_is_lifted_stays_lifted(
    tmp_path: Path, store_in: StoreIn
) -> None:
    """Catches a file that is brought in again with every start."""
    plant_older(tmp_path, *OLDER)
    assert store_in(tmp_path).lift(Selection(owner(2)), by="x", reason="", of_all=True)[0]
    again = store_in(tmp_path)
    assert len(again.load().blocks) == 2
    assert not again.blocks_now(BlobKey(owner(2), blob_cid(7)))
    assert len(again.audit(10)) == 4


def test_an_older_file_that_comes_with_a_backup_is_taken_over_too(
    tmp_path: Path, store_in: StoreIn
) -> None:
    """Catches a look for it at the very first start alone."""
    decide(store_in(tmp_path), Selection(owner(2)), by="admin")
    plant_older(tmp_path, *OLDER)
    blocks = list(store_in(tmp_path).blocks())
    assert len(blocks) == 3
    assert blocks[0].reason == "", "what was decided since is not overwritten"


def test_processes_that_start_at_once_take_them_over_together_once(
    tmp_path: Path, store_in: StoreIn
) -> None:
    """Catches blocks that come, and are told in the audit, once for each worker."""
    plant_older(tmp_path, *OLDER)
    stores = [store_in(tmp_path) for _ in range(4)]
    threads = [threading.Thread(target=store.load) for store in stores]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(stores[0].audit(100)) == len(list(stores[0].blocks())) == 3


def test_an_older_file_that_cannot_be_read_fails_everything_and_is_named(
    tmp_path: Path, store_in: StoreIn
) -> None:
    """Catches a start without the blocks that are in it."""
    (tmp_path / "blocks.sqlite3").write_bytes(b"this is no database" * 1000)
    store = store_in(tmp_path)
    for work in (
        store.load,
        store.unfinished,
        lambda: decide(store, OWNER),
        lambda: [*store.blocks()],
    ):
        with pytest.raises(sqlite3.Error, match=r"blocks\.sqlite3"):
            work()


@pytest.mark.parametrize(
    "content", [b"this is no database, but it is long enough" * 100, b"SQLite format 3\x00" * 200]
)
def test_a_damaged_file_fails_everything(tmp_path: Path, content: bytes, store_in: StoreIn) -> None:
    """Catches an answer of "not blocked" from a file that cannot be read."""
    store = store_in(tmp_path)
    store.close()
    store.path.write_bytes(content)
    for work in (
        store.load,
        lambda: store.blocks_now(A1),
        lambda: decide(store, OWNER),
        lambda: store.audit(1),
        lambda: store.cursor("x"),
    ):
        with pytest.raises(sqlite3.Error):
            work()


def test_many_that_write_at_once_lose_nothing(tmp_path: Path, any_store_in: AnyStoreIn) -> None:
    """Catches writers that lock each other out, or write over each other's rows."""
    stores = [any_store_in(tmp_path) for _ in range(4)]

    def work(number: int) -> None:
        for step in range(10):
            decide(stores[number], Selection(did=owner(number * 10 + step)))

    threads = [threading.Thread(target=work, args=(number,)) for number in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert {block.did for block in stores[0].blocks()} == {owner(number) for number in range(40)}
    assert stores[0].load().version == 40


def test_a_look_up_in_the_file_goes_by_an_index(tmp_path: Path, store_in: StoreIn) -> None:
    """Catches a scan of a million rows before each write of a result."""
    store = store_in(tmp_path)
    decide(store, OWNER)
    where, values = _of_content(A1.did, A1.cid)
    with closing(sqlite3.connect(store.path)) as connection:
        plan = connection.execute(
            f"EXPLAIN QUERY PLAN SELECT 1 FROM blocks WHERE {where}",  # noqa: S608
            values,
        ).fetchall()
    steps = [step for *_, step in plan if "blocks" in step]
    assert steps
    assert all("SEARCH" in step and "did=? AND cid=?" in step for step in steps)
