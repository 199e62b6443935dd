"""Follows the framing of an answer in HTTP/1.1, and ends an answer whose framing costs too much.

An HTTP parser makes objects of each header field, chunk and interim answer, and each read costs
some steps of the event loop. So a few bytes of framing can cost as much processor time as a whole
picture. The meter sees the bytes before the parser does, and does little work for each.

Pure.
"""

from __future__ import annotations

import sys
from enum import Enum, auto

from proxy.egress.errors import BadAnswer

READ_BYTES = 16 * 1024
"""The most bytes to take in one read: what one TLS record may have (RFC 8446, section 5.1). Each
read gives other tasks their turn, so this bounds what one answer computes before they have it.
Bytes that the meter need not look at (``body_left``) may come in larger reads."""

MAX_HEAD = 16 * 1024
"""Bytes of all heads and trailers of one answer; Node.js has the same limit for a head."""

MAX_FIELDS = 128
"""Lines of all heads and trailers of one answer; a PDS sends about twenty."""

MAX_BLANKS = 256
"""Spaces and tabs before the value of a field. The time that h11 takes to refuse a field grows with
their square: 440 ms for 16 KiB of them."""

MAX_CHUNK_HEADER = 256
"""Bytes of a chunk's header, for the same reason. Without extensions it has a few."""

MAX_INTERIM = 8
"""Interim answers (1xx) before the final one; real servers send one or two."""

OVERHEAD_SHARE = 16
"""One byte of overhead is allowed for this many bytes of the body. The overhead is the framing of
chunks, and ``EVENT`` bytes for each read and each chunk: reads of 512 bytes are allowed without
end."""

ALLOWANCE = 8 * 1024
"""Bytes of overhead that need no body, for small answers and slow links: 256 reads of one byte."""

EVENT = 32
"""The overhead that a read or a chunk counts as, in bytes."""


class _Part(Enum):
    """What the next byte belongs to."""

    HEAD = auto()
    BODY = auto()
    CHUNK_HEADER = auto()
    CHUNK_END = auto()
    TRAILER = auto()
    NOTHING = auto()


class AnswerMeter:
    """Measures the bytes of one answer, its interim answers included.

    It does not judge whether the bytes are valid: the parser behind it does that.

    Args:
        is_head: the request is a HEAD, so the answer has no body (RFC 9112, section 6.3).

    Attributes:
        received: bytes so far.
        has_surplus: bytes came after the end of the answer; the connection is not usable any more.
    """

    def __init__(self, *, is_head: bool = False) -> None:
        self.received = 0
        self.has_surplus = False
        self._is_head = is_head
        self._part = _Part.HEAD
        self._line = bytearray()
        # Heads and trailers.
        self._head_bytes = 0
        self._lines = 0
        self._interim = 0
        self._status = b""
        self._is_chunked = False
        self._length: int | None = None
        # The body.
        self._left = 0
        self._credit = ALLOWANCE * OVERHEAD_SHARE

    @property
    def body_left(self) -> int:
        """Bytes of a body of declared length that are still to come; 0 at any other place."""
        is_declared = self._part is _Part.BODY and not self._is_chunked
        return self._left if is_declared and self._length is not None else 0

    def take(self, size: int) -> int:
        """Measure one read of ``size`` bytes where ``body_left`` is not 0, without looking at them.

        Returns:
            How many of them belong to this answer.

        Raises:
            BadAnswer: as ``feed``.
        """
        self.received += size
        self._spend(EVENT)
        taken = min(size, self._left)
        self._take_body(taken)
        self.has_surplus = taken < size
        return taken

    def feed(self, data: bytes) -> bytes:
        """Measure the bytes of one read.

        Returns:
            Those that belong to this answer: all, or all before its end.

        Raises:
            BadAnswer: the answer is over one of the limits of this module.
        """
        self.received += len(data)
        self._spend(EVENT)
        at = 0
        while at < len(data) and self._part is not _Part.NOTHING:
            if self._part is _Part.BODY:
                taken = min(self._left, len(data) - at)
                self._take_body(taken)
            else:
                end = data.find(b"\n", at)
                taken = (len(data) if end < 0 else end + 1) - at
                self._take_text(data[at : at + taken], is_line_end=end >= 0)
            at += taken
        if at == len(data):
            return data
        self.has_surplus = True
        return data[:at]

    def _take_body(self, size: int) -> None:
        self._left -= size
        # Credit beyond the allowance is lost. Otherwise a long body could pay for a burst.
        self._credit = min(ALLOWANCE * OVERHEAD_SHARE, self._credit + size)
        if not self._left:
            self._part = _Part.CHUNK_END if self._is_chunked else _Part.NOTHING

    def _take_text(self, piece: bytes, *, is_line_end: bool) -> None:
        is_head = self._part in (_Part.HEAD, _Part.TRAILER)
        if is_head:
            self._head_bytes += len(piece)
            if self._head_bytes > MAX_HEAD:
                raise BadAnswer(f"more than {MAX_HEAD} bytes of headers")
        else:
            self._spend(len(piece))
            if len(self._line) + len(piece) > MAX_CHUNK_HEADER:
                raise BadAnswer(f"a chunk's header has more than {MAX_CHUNK_HEADER} bytes")
        self._line += piece
        if not is_line_end:
            return
        line = bytes(self._line)
        self._line.clear()
        if is_head:
            self._lines += 1
            if self._lines > MAX_FIELDS:
                raise BadAnswer(f"more than {MAX_FIELDS} lines of headers")
            value = line.partition(b":")[2]
            if len(value) - len(value.lstrip(b" \t")) > MAX_BLANKS:
                raise BadAnswer(f"more than {MAX_BLANKS} blanks before a header field's value")
        self._end_line(line)

    def _end_line(self, line: bytes) -> None:
        if self._part is _Part.CHUNK_END:
            self._part = _Part.CHUNK_HEADER
        elif self._part is _Part.CHUNK_HEADER:
            self._spend(EVENT)
            self._left = _chunk_size(line)
            self._part = _Part.BODY if self._left else _Part.TRAILER
        elif line not in (b"\n", b"\r\n"):
            if self._part is _Part.HEAD:
                self._note_head_line(line)
        elif self._part is _Part.TRAILER:
            self._part = _Part.NOTHING
        else:
            self._end_head()

    def _note_head_line(self, line: bytes) -> None:
        if not self._status:
            self._status = line[9:12]
            return
        name, _, value = line.partition(b":")
        match name.lower():
            case b"transfer-encoding":
                self._is_chunked = True
            case b"content-length":
                # RFC 9110, section 8.6: the same number may be repeated.
                digits = value.partition(b",")[0].strip()
                self._length = int(digits) if digits.isdigit() and len(digits) <= 20 else None

    def _end_head(self) -> None:
        """Find what follows the head (RFC 9112, section 6.3)."""
        status = self._status
        if status.startswith(b"1") and status != b"101":
            self._interim += 1
            if self._interim > MAX_INTERIM:
                raise BadAnswer(f"more than {MAX_INTERIM} interim answers")
            self._status, self._is_chunked, self._length = b"", False, None
            return
        if self._is_head or status in (b"204", b"304"):
            self._part = _Part.NOTHING
        elif self._is_chunked:
            self._part = _Part.CHUNK_HEADER
        elif self._length is None:
            self._part, self._left = _Part.BODY, sys.maxsize
        else:
            self._part, self._left = (_Part.BODY if self._length else _Part.NOTHING), self._length

    def _spend(self, overhead: int) -> None:
        self._credit -= overhead * OVERHEAD_SHARE
        if self._credit < 0:
            raise BadAnswer(f"the framing of {self.received} bytes costs too much")


def _chunk_size(line: bytes) -> int:
    """The size in a chunk's header; for a line that no parser accepts, any."""
    digits = line.partition(b";")[0].strip()
    try:
        return int(digits, 16) if digits.isalnum() and len(digits) <= 20 else sys.maxsize
    except ValueError:
        return sys.maxsize
