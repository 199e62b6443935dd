"""Where the samples of a track are (ISO/IEC 14496-12, 8.7). Pure."""

from __future__ import annotations

import struct
from collections.abc import Mapping

from proxy.imaging.containers.facts import MAX_PARTS
from proxy.imaging.stripped.parts import need


def extents(tables: Mapping[bytes, bytes]) -> list[tuple[int, int]]:
    """Return offset and length of each sample.

    Args:
        tables: bodies of the boxes in ``stbl``: of stsz, stsc, and stco or co64.
    """
    sizes = _sizes(tables[b"stsz"])
    wide = b"co64" in tables
    offsets = _numbers(tables[b"co64" if wide else b"stco"], "Q" if wide else "I")
    runs = _numbers(tables[b"stsc"], "I")
    firsts, counts = runs[::3], runs[1::3]
    need(firsts and firsts[0] == 1 and sorted(set(firsts)) == list(firsts))
    found = []
    number = run = 0
    for chunk, offset in enumerate(offsets, start=1):
        while run + 1 < len(firsts) and firsts[run + 1] <= chunk:
            run += 1
        for size in sizes[number : number + counts[run]]:
            found.append((offset, size))
            offset += size
            number += 1
    need(number == len(sizes))
    return found


def _numbers(body: bytes, code: str) -> tuple[int, ...]:
    rest = body[8:]
    return tuple(struct.unpack(f">{len(rest) // struct.calcsize(f'>{code}')}{code}", rest))


def _sizes(body: bytes) -> tuple[int, ...]:
    same = int.from_bytes(body[4:8], "big")
    count = int.from_bytes(body[8:12], "big")
    need(len(body) >= 12 and count < MAX_PARTS)
    if same:
        need(len(body) == 12)
        return (same,) * count
    need(len(body) == 12 + 4 * count)
    return tuple(struct.unpack_from(f">{count}I", body, 12))
