"""The checker of the fault run: what it must find."""

from __future__ import annotations

from bench.cluster.ledger import Entry, Ledger, State
from bench.cluster.relay import changed

OWNER, BLOB = ("did:plc:a", ""), ("", "bafkrei")

RIGHT, OTHER = b"right", b"other"


def ledger() -> Ledger:
    """Two pictures without a decision."""
    return Ledger([Entry(OWNER), Entry(BLOB)])


def decided(found: Ledger, number: int, now: float, *, done: bool = True) -> bool:
    """A decision whose call ended at ``now``; whether it was to block."""
    blocks = found.begin(number)
    found.end(number, blocks=blocks, reason=f"at {now}", done=done, now=now)
    return blocks


def fault(found: Ledger, began: float, digest: bytes = RIGHT, status: int = 200) -> str | None:
    """What is wrong with an answer for the first picture."""
    return found.fault(0, began=began, status=status, digest=digest, right={RIGHT})


def test_bytes_of_a_request_after_the_block_had_answered_are_a_fault() -> None:
    """Catches a checker that compares bytes alone."""
    found = ledger()
    assert decided(found, 0, 5)
    assert fault(found, 4) is None
    assert fault(found, 5) == fault(found, 6) == "the bytes of a blocked picture"
    assert fault(found, 6, status=404) is None


def test_nothing_is_certain_from_the_call_that_lifts() -> None:
    """Catches a checker that calls an answer wrong while a block is being lifted."""
    found = ledger()
    decided(found, 0, 5)
    assert not found.begin(0)
    assert fault(found, 6) is None
    found.end(0, blocks=False, reason="", done=True, now=8)
    assert fault(found, 9) is None
    decided(found, 0, 10)
    assert fault(found, 11) is not None


def test_other_bytes_are_a_fault() -> None:
    """Catches a checker that believes every 200."""
    assert fault(ledger(), 1, OTHER) == "wrong bytes"
    assert fault(ledger(), 1, OTHER, status=503) is None


def test_a_call_that_failed_says_nothing_and_is_made_again() -> None:
    """Catches a checker that takes a failed call for a decision, or for none."""
    found = ledger()
    assert decided(found, 0, 5, done=False)
    assert found.entries[0].state is State.UNKNOWN
    assert fault(found, 6) is None
    assert found.kept_faults([], []) == found.kept_faults([OWNER], []) == []
    assert decided(found, 0, 7)
    assert fault(found, 8) is not None


def test_a_decision_that_answered_and_is_not_kept_is_found() -> None:
    """Catches a checker that never looks into the database."""
    found = ledger()
    decided(found, 0, 5)
    assert found.kept_faults([OWNER], ["at 5"]) == []
    assert found.kept_faults([], ["at 5"]) == [f"lost block {OWNER}"]
    assert found.kept_faults([OWNER], []) == ["lost from the audit: at 5"]
    decided(found, 0, 6)
    assert found.kept_faults([], ["at 5", "at 6"]) == []
    assert found.kept_faults([OWNER], ["at 5", "at 6"]) == [f"block that was lifted {OWNER}"]


def test_a_lie_changes_a_body_and_no_head() -> None:
    """Catches a store that is said to lie and tells the truth."""
    assert changed(b"HTTP/1.1 200 OK\r\n\r\n") == b"HTTP/1.1 200 OK\r\n\r\n"
    assert changed(b"<?xml ...>") == b"<?xml ...>"
    assert changed(b"body") != b"body"
    assert len(changed(b"body")) == 4
