"""The colours that an AV1 stream declares (AV1 specification, 5.5). Pure."""

from __future__ import annotations

CodePoints = tuple[int, int]
"""Primaries and transfer, of ITU-T H.273."""

_SEQUENCE_HEADER = 1
_MOST_UNITS = 8
"""Units that are looked at: at most a delimiter and padding come before the header."""


def code_points_of(data: bytes) -> CodePoints | None:
    """Return the code points of the stream that begins with ``data``; None if it has none."""
    at = 0
    try:
        for _ in range(_MOST_UNITS):
            header = data[at]
            at += 2 if header & 0b100 else 1
            if not header & 0b10:
                return None
            length, at = leb128(data, at)
            if header >> 3 & 15 == _SEQUENCE_HEADER:
                return _of_sequence(_Bits(data[at : at + min(length, _MOST_OF_HEADER)]))
            at += length
    except (IndexError, ValueError):
        pass
    return None


_MOST_OF_HEADER = 512  # with all 32 operating points


class _Bits:
    """Reads numbers from a string of bits, the highest first."""

    def __init__(self, data: bytes) -> None:
        self._value = int.from_bytes(data, "big")
        self._left = 8 * len(data)

    def read(self, count: int) -> int:
        """Return a number of ``count`` bits; ValueError if there are not so many."""
        if count > self._left:
            raise ValueError("the header breaks off")
        self._left -= count
        return self._value >> self._left & (1 << count) - 1

    def __call__(self) -> bool:
        return self.read(1) == 1


def _of_sequence(bit: _Bits) -> CodePoints | None:
    profile = bit.read(3)
    bit()  # a still picture
    reduced = bit()
    if reduced:
        bit.read(5)
    else:
        _skip_operating_points(bit)
    width, height = bit.read(4) + 1, bit.read(4) + 1
    bit.read(width + height)
    if not reduced and bit():
        bit.read(7)  # lengths of frame ids
    bit.read(3)
    if not reduced:
        _skip_tools(bit)
    bit.read(3)
    deep = bit()
    if profile == 2 and deep:
        bit()
    if profile != 1:
        bit()  # without chroma
    if not bit():
        return None
    return bit.read(8), bit.read(8)


def _skip_operating_points(bit: _Bits) -> None:
    delay_of_decoder = 0
    has_model = False
    if bit():  # timing
        bit.read(64)
        if bit():
            _skip_uvlc(bit)
        has_model = bit()
        if has_model:
            delay_of_decoder = bit.read(5) + 1
            bit.read(42)
    has_delay = bit()
    for _ in range(bit.read(5) + 1):
        bit.read(12)
        if bit.read(5) > 7:
            bit()  # tier
        if has_model and bit():
            bit.read(2 * delay_of_decoder + 1)
        if has_delay and bit():
            bit.read(4)


def _skip_uvlc(bit: _Bits) -> None:
    zeros = 0
    while not bit():
        zeros += 1
    bit.read(zeros if zeros < 32 else 0)


def _skip_tools(bit: _Bits) -> None:
    bit.read(4)
    ordered = bit()
    if ordered:
        bit.read(2)
    may_be_screen = bit() or bit()  # chosen by each frame, or forced
    if may_be_screen and not bit():
        bit()
    if ordered:
        bit.read(3)


def leb128(data: bytes, at: int) -> tuple[int, int]:
    """Return a leb128 number (4.10.5), and the offset of its end.

    Raises:
        ValueError: it has more bytes than the standard allows.
        IndexError: ``data`` ends before it.
    """
    value = 0
    for place in range(8):
        byte = data[at + place]
        value |= (byte & 0x7F) << 7 * place
        if byte < 0x80:
            return value, at + place + 1
    raise ValueError("a number that does not end")
