"""The meter of answers, beside the HTTP parser that it stands in front of."""

from __future__ import annotations

from collections.abc import Callable, Iterable

import h11
import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from proxy.egress.answer_meter import (
    ALLOWANCE,
    EVENT,
    MAX_BLANKS,
    MAX_CHUNK_HEADER,
    MAX_FIELDS,
    MAX_HEAD,
    MAX_INTERIM,
    OVERHEAD_SHARE,
    READ_BYTES,
    AnswerMeter,
)
from proxy.egress.errors import BadAnswer
from tests.examples import examples

OK = b"HTTP/1.1 200 OK\r\n"
CHUNKED = OK + b"Transfer-Encoding: chunked\r\n\r\n"
HINTS = b"HTTP/1.1 103 Early Hints\r\nLink: </a>\r\n\r\n"
EMPTY = OK + b"Content-Length: 0\r\n\r\n"


def chunk(data: bytes) -> bytes:
    return b"%x\r\n%s\r\n" % (len(data), data)


def reads(data: bytes, size: int = READ_BYTES) -> list[bytes]:
    return [data[at : at + size] for at in range(0, len(data), size)]


def fed(pieces: Iterable[bytes], *, is_head: bool = False) -> tuple[AnswerMeter, bytes]:
    meter = AnswerMeter(is_head=is_head)
    return meter, b"".join(meter.feed(piece) for piece in pieces)


def is_cut(data: bytes, size: int = READ_BYTES) -> bool:
    try:
        fed(reads(data, size))
    except BadAnswer:
        return True
    return False


@given(
    st.integers(1, 5000),
    st.lists(st.integers(1, 3000), max_size=12),
    st.booleans(),
)
@examples(50)
def test_a_body_may_be_measured_by_sizes_alone(
    length: int, sizes: list[int], has_surplus: bool
) -> None:
    """Catches another end of the body, or another bound, where its bytes are not looked at."""
    looking, counting = AnswerMeter(), AnswerMeter()
    for meter in (looking, counting):
        meter.feed(OK + b"Content-Length: %d\r\n\r\n" % length)
    left = length + has_surplus
    for size in (min(each, left) for each in (*sizes, length, 1)):
        if not counting.body_left:
            break
        left -= size
        assert counting.take(size) == len(looking.feed(bytes(size)))
        assert counting.received == looking.received
        assert counting.has_surplus == looking.has_surplus
        assert counting.body_left == looking.body_left
    assert looking.feed(OK) == counting.feed(OK)


def test_a_body_that_drips_is_cut_where_it_is_measured_by_sizes() -> None:
    """Catches reads of one byte without end: each costs some steps of the event loop."""
    meter = AnswerMeter()
    meter.feed(OK + b"Content-Length: 100000\r\n\r\n")

    def drip(reads: int) -> None:
        for _ in range(reads):
            meter.take(1)

    drip(ALLOWANCE // EVENT - 1)  # the head was a read, too
    with pytest.raises(BadAnswer):
        drip(ALLOWANCE // EVENT)


@pytest.mark.parametrize("head", [CHUNKED + b"a\r\n", OK + b"\r\n", EMPTY, OK, HINTS])
def test_only_a_body_of_declared_length_may_be_read_by_its_length(head: bytes) -> None:
    """Catches framing that is read as if it were a body."""
    meter, _ = fed([head])
    assert meter.body_left == 0


# What an honest server sends.


@pytest.mark.parametrize("size", [1, 2, 7, READ_BYTES])
@pytest.mark.parametrize(
    "answer",
    [
        EMPTY,
        OK + b"content-length:5\r\n\r\nhello",
        OK + b"Content-Length: 5, 5\r\nContent-Length: 5\r\n\r\nhello",
        OK.replace(b"\r", b"") + b"Content-Length: 5\n\nhello",
        CHUNKED + chunk(b"hel") + chunk(b"lo") + b"0\r\n\r\n",
        CHUNKED + b"5;name=value \r\nhello\r\n000\r\nX-Trailer: 1\r\n\r\n",
        OK
        + b"Content-Length: 9\r\nTransfer-Encoding: chunked\r\n\r\n"
        + chunk(b"a")
        + b"0\r\n\r\n",
        HINTS * 2 + OK + b"Content-Length: 5\r\n\r\nhello",
        HINTS.replace(b"Link: </a>", b"Content-Length: 3") + CHUNKED + chunk(b"hi") + b"0\r\n\r\n",
        b"HTTP/1.1 204 No Content\r\nContent-Length: 7\r\n\r\n",
        b"HTTP/1.1 304 Not Modified\r\nTransfer-Encoding: chunked\r\n\r\n",
    ],
)
def test_the_meter_finds_the_end_of_an_answer(answer: bytes, size: int) -> None:
    """Catches: a meter that cuts an answer short, or gives surplus bytes to the next answer."""
    meter, passed = fed(reads(answer, size))
    assert (passed, meter.has_surplus) == (answer, False)
    meter, passed = fed(reads(answer + b"HTTP/1.1 200", len(answer) + 3))
    assert (passed, meter.has_surplus) == (answer, True)


def test_an_answer_to_a_head_ends_with_its_head() -> None:
    """Catches: a meter that waits for the body that a HEAD announces."""
    head = OK + b"Content-Length: 500\r\n\r\n"
    meter, passed = fed([head + b"x"], is_head=True)
    assert (passed, meter.has_surplus) == (head, True)


def test_a_body_without_a_length_goes_on_to_the_end_of_the_connection() -> None:
    """Catches: a meter that cuts a body that only the connection's end ends."""
    answer = OK + b"Connection: close\r\n\r\n" + bytes(100_000)
    meter, passed = fed(reads(answer))
    assert (passed, meter.has_surplus) == (answer, False)


@pytest.mark.parametrize("size", [536, 1220, 1460, READ_BYTES])
def test_a_slow_link_with_small_packets_passes(size: int) -> None:
    """Catches: a bound that cuts honest servers: 536 bytes is the smallest packet of IPv4."""
    assert not is_cut(OK + b"Content-Length: 500000\r\n\r\n" + bytes(500_000), size)


@pytest.mark.parametrize("size", [1220, 4096, 65536])
def test_a_chunk_for_each_packet_passes(size: int) -> None:
    """Catches: a bound that cuts honest servers: 1220 bytes is the smallest packet of IPv6."""
    pieces = [CHUNKED, *[chunk(bytes(size))] * 400, b"0\r\n\r\n"]
    assert fed(pieces)[1] == b"".join(pieces)


# What is cut.


@pytest.mark.parametrize(
    ("bound", "answer"),
    [
        (MAX_INTERIM, lambda count: b"HTTP/1.1 103 Early Hints\r\n\r\n" * count + EMPTY),
        (MAX_FIELDS, lambda count: OK + b"a:\r\n" * (count - 3) + b"Content-Length: 0\r\n\r\n"),
        (MAX_FIELDS, lambda count: OK + b"a:\n" * (count - 3) + b"Content-Length: 0\n\n"),
        (MAX_FIELDS, lambda count: OK + b"a: b\r\n" + b" c\r\n" * (count - 3) + b"\r\n"),
        (MAX_FIELDS, lambda count: CHUNKED + b"0\r\n" + b"a:\r\n" * (count - 4) + b"\r\n"),
        (MAX_HEAD, lambda count: OK + b"a:" + b"b" * (count - 23) + b"\r\n\r\n"),
    ],
    ids=["interim answers", "fields", "bare newlines", "folded lines", "trailers", "bytes"],
)
def test_a_head_is_bounded_exactly(bound: int, answer: Callable[[int], bytes]) -> None:
    """Catches: a head whose fields or interim answers are counted by their bytes alone."""
    for size in (1024, READ_BYTES):
        assert not is_cut(answer(bound), size)
        assert is_cut(answer(bound + 1), size)


def test_chunks_that_are_mostly_framing_are_cut() -> None:
    """Catches: chunks bounded by the bytes of the body, which let 10 million of them pass."""
    few = ALLOWANCE // (EVENT + 8)
    assert not is_cut(CHUNKED + chunk(b"x") * few + b"0\r\n\r\n")
    assert is_cut(CHUNKED + chunk(b"x") * (2 * few))
    assert is_cut(CHUNKED + chunk(bytes(256)) * 10_000)


def test_a_long_body_pays_for_no_burst_of_chunks() -> None:
    """Catches: a bound over the whole body, under which 1 MB of honest bytes pays for a burst."""
    long = CHUNKED + chunk(bytes(1024 * 1024))
    assert not is_cut(long + chunk(b"x") * (ALLOWANCE // (EVENT + 8)) + b"0\r\n\r\n")
    assert is_cut(long + chunk(b"x") * (2 * ALLOWANCE // EVENT) + b"0\r\n\r\n")


def test_reads_of_a_few_bytes_are_cut() -> None:
    """Catches: reads that nobody counts: one byte of TLS costs 22 on the wire, and a whole read."""
    answer = OK + b"Content-Length: 500000\r\n\r\n" + bytes(500_000)
    assert is_cut(answer, 1)
    assert is_cut(answer, 256)
    assert is_cut(OK + b"a: " + b"b" * 1000, 1)


def test_chunk_extensions_are_framing() -> None:
    """Catches: bytes that count for no limit, because they are neither head nor body."""
    extended = b"1;%s\r\nx\r\n" % (b"a" * (MAX_CHUNK_HEADER - 4))
    assert not is_cut(CHUNKED + extended + b"0\r\n\r\n")
    assert is_cut(CHUNKED + extended * (ALLOWANCE // MAX_CHUNK_HEADER + 1))
    assert is_cut(CHUNKED + b"a" + extended)


@pytest.mark.parametrize("blank", [b" ", b"\t", b" \t"])
@pytest.mark.parametrize("part", ["head", "trailer"])
def test_no_field_reaches_the_parser_that_it_takes_long_to_refuse(part: str, blank: bytes) -> None:
    """Catches: 16 KB of blanks before a value with a NUL, in which h11 searches for 440 ms."""
    before = OK if part == "head" else CHUNKED + b"0\r\n"
    blanks = (blank * MAX_BLANKS)[:MAX_BLANKS]
    assert not is_cut(before + b"a:" + blanks + b"\0\r\n")
    assert is_cut(before + b"a:" + blanks + b" \0\r\n")
    assert not is_cut(before + b"a: b" + blanks * 2 + b"c\r\n")


# Whatever a stranger sends.

FRAGMENTS = (
    *(OK, CHUNKED, HINTS, EMPTY, b"HTTP/1.1 101 Switching\r\n\r\n", b"HTTP/1.1 204 None\r\n\r\n"),
    *(b"Transfer-Encoding: chunked\r\n", b"Content-Length: 3\r\n", b"Content-Length: 3, 3\r\n"),
    *(b"a:\n" * 50, b"a:\r\n" * 50, b" folded\r\n", b"\r\n", b"\n", b"\r", b"\0", b" ", b"xyz"),
    *(
        b"1\r\nx\r\n" * 60,
        b"1\nx\n",
        b"2;ext\r\nxy\r\n",
        b"5;a\n1\r\nx\r\n",
        b"0\r\n",
        b"00\r\n\r\n",
    ),
    *(b"fffffffffffffffffffff\r\n", b"-1\r\n", b"+1\r\n", b"1_0\r\n", bytes(5000)),
)


@examples(1000)
@given(st.lists(st.sampled_from(FRAGMENTS), max_size=40), st.integers(1, 2000), st.booleans())
@example([CHUNKED, b"2;ext\r\nxy\r\n", b"0\r\n", b"a:\r\n" * 50, b"\r\n", OK], READ_BYTES, False)
def test_the_parser_never_makes_more_of_an_answer_than_the_meter_allows(
    fragments: list[bytes], size: int, is_head: bool
) -> None:
    """Catches: bytes that meter and parser read differently, so that the bounds do not hold."""
    meter = AnswerMeter(is_head=is_head)
    parser = h11.Connection(h11.CLIENT)
    parser.send(
        h11.Request(method="HEAD" if is_head else "GET", target="/", headers=[("Host", "a")])
    )
    parser.send(h11.EndOfMessage())
    body = chunks = fields = interim = 0
    try:
        for piece in reads(b"".join(fragments), size):
            if passed := meter.feed(piece):
                parser.receive_data(passed)
            while (event := parser.next_event()) not in (h11.NEED_DATA, h11.PAUSED):
                if isinstance(event, h11.Data):
                    chunks += event.chunk_start
                    body += len(event.data)
                elif isinstance(event, h11.InformationalResponse | h11.Response | h11.EndOfMessage):
                    interim += isinstance(event, h11.InformationalResponse)
                    fields += len(event.headers)
    except (BadAnswer, h11.RemoteProtocolError):
        pass
    assert fields <= MAX_FIELDS
    assert interim <= MAX_INTERIM + 1  # a 101 is the last answer of its connection
    assert chunks * EVENT <= ALLOWANCE + body // OVERHEAD_SHARE
