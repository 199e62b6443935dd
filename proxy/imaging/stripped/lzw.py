"""Finds where the compressed data of a GIF's frame ends (GIF89a, appendix F). Pure."""

from __future__ import annotations

from typing import NamedTuple

from proxy.imaging.stripped.parts import need

_MOST_CODES = 4096
_REFILL = 64  # bytes


class Walked(NamedTuple):
    """The data up to its end, and which entries of the palette it names."""

    data: bytes
    colors: frozenset[int]


def walk(data: bytes, minimum: int, pixels: int) -> Walked:
    """Walk over the codes of a frame.

    Args:
        minimum: the bits of a colour, 1 to 8.
        pixels: of the frame. What follows the last one is left out, and the code for the end is
            put there. Data that ends before is all kept.

    Raises:
        NotUnderstood: a code has no meaning.
    """
    need(1 <= minimum <= 8)
    clear = 1 << minimum
    end = clear + 1
    fresh = [1] * (clear + 2)
    lengths = fresh.copy()  # pixels of each code; as many as there are codes
    width = minimum + 1
    mask = (1 << width) - 1
    seen = bytearray(clear)
    held = left = at = before = 0
    ended = False
    while True:
        if left < width:
            piece = data[at : at + _REFILL]
            if not piece and left < width:
                break
            held |= int.from_bytes(piece, "little") << left
            left += 8 * len(piece)
            at += len(piece)
            if left < width:
                break
        code = held & mask
        if code == end:
            ended = True
            left -= width
            break
        if pixels <= 0 and code != clear:
            break
        held >>= width
        left -= width
        if code == clear:
            lengths = fresh.copy()
            width = minimum + 1
            mask = (1 << width) - 1
            before = 0
            continue
        if code < clear:
            seen[code] = 1
            length = 1
        elif code < len(lengths):
            length = lengths[code]
        else:
            need(before and code == len(lengths))
            length = before + 1
        pixels -= length
        if before and len(lengths) < _MOST_CODES:
            lengths.append(before + 1)
            if len(lengths) > mask and width < 12:
                width += 1
                mask = (1 << width) - 1
        before = length
    bits = 8 * at - left
    kept = data[: -(-bits // 8)]
    if not ended and pixels <= 0:
        whole = int.from_bytes(kept[-1:], "little") & (1 << bits % 8) - 1 if bits % 8 else 0
        whole |= end << bits % 8
        kept = data[: bits // 8] + whole.to_bytes(-(-(bits % 8 + width) // 8), "little")
    return Walked(kept, frozenset(color for color in range(clear) if seen[color]))
