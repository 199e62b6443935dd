"""ThumbHash, against hashes that its reference implementation (npm ``thumbhash`` 0.1) made."""

from __future__ import annotations

import random

import pytest

from proxy.imaging.thumbhash import average, thumbhash


def pixels(width: int, height: int, alpha: str) -> bytes:
    """A pattern of colours; the reference hashed the same bytes."""
    chance = random.Random(1)

    def at(x: int, y: int) -> tuple[int, int, int, int]:
        opacity = 255
        if alpha == "fading":
            opacity = min(255, x * 9 + y * 5)
        elif alpha == "noise":
            opacity = chance.randrange(256)
        return (x * 7 + y * 3) % 256, (y * 9 + x) % 256, x * y % 256, opacity

    return bytes(value for y in range(height) for x in range(width) for value in at(x, y))


@pytest.mark.parametrize(
    ("width", "height", "alpha", "expected"),
    [
        (32, 24, "opaque", "dd180e1d925167786079798688678887d6732ff676"),
        (24, 32, "opaque", "dc180e1d106176708828889878859778f9850697e8"),
        (32, 8, "fading", "d7c886198839c087c18788872f07bc7770777778877777"),
        (5, 32, "fading", "d5898511042684b078d8376f355388f875778088877878"),
        (1, 1, "opaque", "000802070000000000000000000000000000000000000000"),
        (17, 17, "noise", "9208860d0607727790788777888f1b09f787612f7f957a5672"),
    ],
)
def test_a_hash_is_that_of_the_reference(
    width: int, height: int, alpha: str, expected: str
) -> None:
    """Catches waves in another order, a wrong rounding, and alpha that is left out."""
    assert thumbhash(width, height, pixels(width, height, alpha)).hex() == expected


def test_what_cannot_be_seen_has_no_part_in_the_average() -> None:
    """Catches an average that counts the colours under transparent pixels, or divides by zero."""
    assert average(bytes([255, 0, 0, 255, 0, 255, 0, 0])) == (1, 0, 0, 0.5)
    assert average(bytes([9, 9, 9, 0])) == (0, 0, 0, 0)
    assert len(thumbhash(1, 1, bytes([9, 9, 9, 0]))) > 5


def test_one_colour_has_no_waves_whatever_is_lost_by_rounding() -> None:
    """Catches noise of a sum, which differs by machine, that is scaled up to waves."""
    found = thumbhash(31, 17, bytes([201, 77, 13, 255]) * 31 * 17)
    assert set(found[5:]) == {0}
