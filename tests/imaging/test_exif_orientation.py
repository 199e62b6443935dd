"""Orientations in EXIF blocks that are not quite as cameras write them."""

from __future__ import annotations

import struct

import pytest

from proxy.imaging.containers.exif import orientation_of

BYTE, SHORT, LONG, UNDEFINED = 1, 3, 4, 7
TAG = 0x0112


def tiff(
    *entries: tuple[int, int, int, int], order: str = "<", magic: int = 42, first: int = 8
) -> bytes:
    """A block of one directory; each entry is a tag, a type, a count and a SHORT value."""
    head = (b"II" if order == "<" else b"MM") + struct.pack(f"{order}HI", magic, first)
    directory = b"".join(struct.pack(f"{order}HHIHxx", *entry) for entry in entries)
    count = struct.pack(f"{order}H", len(entries))
    return head + bytes(first - 8) + count + directory + bytes(4)


@pytest.mark.parametrize("order", ["<", ">"])
@pytest.mark.parametrize("orientation", range(1, 9))
def test_each_orientation_is_read_in_either_byte_order(orientation: int, order: str) -> None:
    """Catches one byte order, a prefix that is required, and a directory that must come first."""
    entry = (TAG, SHORT, 1, orientation)
    for block in (tiff(entry, order=order), tiff(entry, order=order, first=20)):
        assert orientation_of(block) == orientation
        assert orientation_of(b"Exif\0\0" + block) == orientation
        assert orientation_of(block[:-4]) == orientation
        assert orientation_of(b"Exif\0\xff" + block) == orientation, "a byte that only pads"
    unsorted = tiff((0x9999, SHORT, 1, 3), entry, (0x0100, SHORT, 1, 3), order=order)
    assert orientation_of(unsorted) == orientation


@pytest.mark.parametrize(
    "block",
    [
        b"",
        b"Exif\0\0",
        tiff(),
        tiff((TAG, LONG, 1, 6)),
        tiff((TAG, BYTE, 1, 6)),
        tiff((TAG, UNDEFINED, 1, 6)),
        tiff((TAG, SHORT, 0, 6)),
        tiff((TAG, SHORT, 2, 6)),
        tiff((TAG, SHORT, 1, 0)),
        tiff((TAG, SHORT, 1, 9)),
        tiff((TAG, SHORT, 1, 6), magic=43),
        tiff((TAG, SHORT, 1, 6), magic=0),
        tiff((TAG, SHORT, 1, 6)).replace(b"II*\0", b"MM\0*"),
        tiff((TAG, SHORT, 1, 6)).replace(b"II*\0", b"junk"),
        tiff((TAG, SHORT, 1, 6))[:12],
        tiff((TAG, SHORT, 1, 6))[:-5],  # an entry that is cut behind its value
        b"Exif\0" + tiff((TAG, SHORT, 1, 6)),
        b"EXIF\0\0" + tiff((TAG, SHORT, 1, 6)),
    ],
)
def test_what_the_standard_does_not_allow_is_upright(block: bytes) -> None:
    """Catches a lenient reader: browsers show these as stored (EXIF 2.32: one value, a SHORT)."""
    assert orientation_of(block) == 1


def test_the_first_valid_orientation_counts() -> None:
    """Catches the last of two, and an invalid one that hides what follows."""
    assert orientation_of(tiff((TAG, SHORT, 1, 6), (TAG, SHORT, 1, 3))) == 6
    assert orientation_of(tiff((TAG, SHORT, 1, 9), (TAG, SHORT, 1, 6))) == 6
    assert orientation_of(tiff((TAG, BYTE, 1, 3), (TAG, SHORT, 1, 6))) == 6
    counted = bytearray(tiff((TAG, SHORT, 1, 6)))
    counted[8:10] = b"\xff\xff"  # more entries than there are
    assert orientation_of(bytes(counted)) == 6
