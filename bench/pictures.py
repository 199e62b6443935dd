"""Blobs to measure with: photo-like JPEGs, made at run time, as many different ones as needed."""

from __future__ import annotations

import hashlib
import io
from dataclasses import dataclass

from libipld import encode_cid
from PIL import Image

BASES = 4
"""Pictures that are drawn. Drawing one takes far longer than serving it, so the blobs share them
and differ by a comment segment: other bytes and another CID, the same work to transform."""

NOISE_SIGMA = 40
NOISE_SHARE = 0.25
"""Together they give the bytes per pixel that a camera's JPEG of quality 85 has, roughly 0.3."""

_RAW_SHA2_256 = bytes([0x01, 0x55, 0x12, 0x20])
"""CIDv1, raw codec, sha2-256 of 32 bytes: the only form that atproto blobs have."""


@dataclass(frozen=True, slots=True)
class Size:
    """Pixels; written ``2000x1500``."""

    width: int
    height: int

    @classmethod
    def parse(cls, text: str) -> Size:
        """Read ``WIDTHxHEIGHT``; ValueError for anything else."""
        width, _, height = text.partition("x")
        return cls(int(width), int(height))

    def __str__(self) -> str:
        return f"{self.width}x{self.height}"


class Pictures:
    """Numbered blobs.

    Args:
        count: how many different ones.
        size: of each picture.
        bases: how many of them look different.

    Attributes:
        cids: of the blobs, by number.
    """

    def __init__(self, count: int, size: Size, bases: int = BASES) -> None:
        self._bases = [draw(size, number) for number in range(min(bases, count))]
        self.cids = [cid_of(self._blob(number)) for number in range(count)]
        self._numbers = {cid: number for number, cid in enumerate(self.cids)}

    def get(self, cid: str) -> bytes | None:
        """The blob of ``cid``."""
        number = self._numbers.get(cid)
        return None if number is None else self._blob(number)

    def _blob(self, number: int) -> bytes:
        # Put together anew each time: hundreds of whole blobs would be hundreds of megabytes.
        return with_comment(self._bases[number % len(self._bases)], f"picture {number}")


def cid_of(data: bytes) -> str:
    """The CID of a blob."""
    return encode_cid(_RAW_SHA2_256 + hashlib.sha256(data).digest())


def draw(size: Size, number: int) -> bytes:
    """A JPEG of its own for each number, turned by it."""
    box = (size.width, size.height)
    noise = Image.effect_noise(box, NOISE_SIGMA)
    slope = Image.linear_gradient("L").rotate(90 * number).resize(box)
    rings = Image.radial_gradient("L").resize(box)
    bands = [Image.blend(band, noise, NOISE_SHARE) for band in (slope, rings, slope.rotate(180))]
    out = io.BytesIO()
    Image.merge("RGB", bands).save(out, "JPEG", quality=85)
    return out.getvalue()


def with_comment(jpeg: bytes, text: str) -> bytes:
    """``jpeg`` with a COM segment after its first segment, which JFIF wants to stay the first."""
    first_ends = 4 + int.from_bytes(jpeg[4:6], "big")
    payload = text.encode()
    comment = b"\xff\xfe" + (len(payload) + 2).to_bytes(2, "big") + payload
    return jpeg[:first_ends] + comment + jpeg[first_ends:]
