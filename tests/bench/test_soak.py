"""What judges the answers of a day, and what it took: that it finds what is wrong, and no more."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
import trio
import trio.testing

from bench.cluster.ledger import Entry, Ledger
from bench.soak.answers import NO_ANSWER, Given, Result, Target, Truth
from bench.soak.day import QUICK, targets_of
from bench.soak.ground import Uploaded
from bench.soak.load import popularity
from bench.soak.log_files import LogFiles
from bench.soak.watch import LIMITS, Taken, beyond

PATH = "/img/avatar/plain/did/cid"
TARGET = Target(PATH, frozenset({200}), 0)
OF_FAKE = Target("/img/avatar/plain/fake/cid", frozenset({504}))
OLD, NEW = Result(b"old", '"old"'), Result(b"new", '"new"')


def truth() -> Truth:
    return Truth([{PATH: OLD}, {PATH: NEW}], Ledger([Entry(("did", "cid"))]))


def given(status: int, began: float = 10, ended: float = 11, **more: object) -> Given:
    made = Given(TARGET, began, ended, status, b"old" if status == 200 else b"")
    return replace(made, **more)  # type: ignore[arg-type]


def test_bytes_of_another_picture_are_wrong() -> None:
    """Catches a comparison with whatever came first."""
    judge = truth()
    assert judge.fault(given(200)) is None
    assert judge.fault(given(200, digest=b"other")) == "wrong bytes"


def test_a_changed_preset_is_right_from_its_change_on_and_the_old_one_until_then() -> None:
    """Catches a server that goes back to an old preset, or takes a new one before it has to."""
    judge = truth()
    judge.begin_change(1, 20)
    assert judge.fault(given(200, 15, 16, digest=b"new")) == "wrong bytes"
    for digest in (b"old", b"new"):
        assert judge.fault(given(200, 21, 22, digest=digest)) is None
    judge.end_change(30)
    assert judge.fault(given(200, 31, 32, digest=b"new")) is None
    assert judge.fault(given(200, 31, 32)) == "wrong bytes"
    assert judge.fault(given(200, 29, 32)) is None, "its request began before"


def test_a_304_is_right_for_the_tag_of_what_is_in_force() -> None:
    """Catches a 304 to a picture that the client does not have."""
    judge = truth()
    assert judge.fault(given(304, known='"old"')) is None
    assert judge.fault(given(304, known='"new"')) == "a 304 for another picture"


def test_a_status_needs_a_reason_at_its_time() -> None:
    """Catches an outage that excuses what comes before or after it."""
    judge = truth()
    trouble = judge.breaks("no directory", {502}, 20, of_fakes=False)
    trouble.until = 30
    assert judge.fault(given(502, 19, 21)) is None
    assert judge.fault(given(502, 29, 40)) is None
    for began, ended in ((10, 19), (31, 40)):
        assert judge.fault(given(502, began, ended)) == "a status for which there is no reason"
    assert judge.fault(given(504, 25, 26)) == "a status for which there is no reason"
    assert judge.fault(given(502, 25, 26, target=OF_FAKE)) is not None
    assert judge.fault(given(504, 25, 26, target=OF_FAKE)) is None
    assert judge.fault(given(500, 25, 26)) is not None


def test_nginx_always_answers() -> None:
    """Catches a connection through nginx that ends without an answer while a worker is killed."""
    judge = truth()
    judge.breaks("a worker killed", {NO_ANSWER, 503}, 0)
    assert judge.fault(given(NO_ANSWER, by_front=False)) is None
    assert judge.fault(given(NO_ANSWER)) == "a status for which there is no reason"
    assert judge.fault(given(503)) is None


def test_what_is_blocked_may_be_refused_and_not_shown() -> None:
    """Catches a refusal without a block, and a picture, or a 304, in spite of one."""
    judge = truth()
    assert judge.fault(given(404)) == "a status for which there is no reason"
    blocks = judge.ledger.begin(0)
    assert judge.fault(given(404)) is None
    assert judge.fault(given(200)) is None, "the call has not answered"
    judge.ledger.end(0, blocks=blocks, reason="", done=True, now=12)
    assert judge.fault(given(200, 11, 13)) is None
    for status in (200, 304):
        assert judge.fault(given(status, 13, 14, known='"old"')) == "a blocked picture"
    blocks = judge.ledger.begin(0)
    judge.ledger.end(0, blocks=blocks, reason="", done=True, now=20)
    judge.lifted[0] = 20
    assert judge.fault(given(404, 19, 21)) is None
    assert judge.fault(given(404, 21, 22)) == "a status for which there is no reason"


@pytest.mark.parametrize("name", LIMITS)
def test_more_of_anything_than_is_allowed_is_named(name: str) -> None:
    """Catches a bound that nothing exceeds."""
    start = Taken(100e6, 100, 20, 300, 9)
    factor, more = LIMITS[name]
    most = getattr(start, name) * factor + more
    assert [*beyond(start, replace(start, **{name: most}))] == []
    (text,) = beyond(start, replace(start, **{name: most + 1}))
    assert text.startswith(name)
    (text,) = beyond(start, replace(start, **{name: float("nan")}))
    assert text.startswith(name), "what is not known is no success"


def test_the_popular_are_asked_for_most_and_the_others_too() -> None:
    """Catches a load that asks for all alike, or for a few alone."""
    sums = popularity(100)
    shares = [after - before for before, after in zip([0.0, *sums], sums, strict=False)]
    assert shares == sorted(shares, reverse=True)
    assert shares[0] == pytest.approx(2 * shares[1]) == pytest.approx(100 * shares[99])


def test_nobody_asks_for_new_accounts_before_their_time() -> None:
    """Catches an outage of the directory that nothing in the day needs it for."""
    uploaded = [Uploaded(f"did{number % 4}", f"cid{number}") for number in range(8)]
    real, fresh = targets_of(uploaded, QUICK, {"did1", "did2"})
    assert len(real) == 4 * len(QUICK.presets) * len(QUICK.formats)
    assert all(uploaded[each.number or 0].did in ("did0", "did3") for each in real)
    assert [uploaded[each.number or 0].did for each in fresh] == ["did1", "did2"]


async def test_lines_of_moved_and_of_truncated_files_are_all_read(tmp_path: Path) -> None:
    """Catches lines in a file that nobody reads, and half a line that is taken for one."""
    files = LogFiles(tmp_path / "log")
    writer, reader = trio.testing.memory_stream_one_way_pair()
    current = tmp_path / "log/current"

    async def write(number: int) -> None:
        line = b'{"event": "%d", "level": "info"}\n' % number
        await writer.send_all(line)
        while not current.read_bytes().endswith(line):  # a thread writes it
            await trio.testing.wait_all_tasks_blocked(0.01)

    async with trio.open_nursery() as nursery:
        nursery.start_soon(files.write_from, reader)
        await write(1)
        await files.move()
        await write(2)
        await files.copy_and_truncate()
        await write(3)
        await writer.aclose()
    assert sorted(str(line["event"]) for line in files.lines()) == ["1", "2", "3"]
    current.write_bytes(b'{"event": ')
    with pytest.raises(ValueError, match="Expecting value"):
        [*files.lines()]
