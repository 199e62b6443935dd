"""Makes an ICC profile (ICC.1:2022) from what a container says about its colours. Pure."""

from __future__ import annotations

import struct
from functools import lru_cache
from itertools import product

from proxy.imaging.color import tone_mapping
from proxy.imaging.color.code_points import (
    CURVES,
    HLG,
    PQ,
    PRIMARIES,
    REC_2020,
    SRGB,
    SRGB_CURVE,
    Chromaticities,
    Curve,
)

Vector = tuple[float, float, float]
Matrix = tuple[Vector, Vector, Vector]

_D50: Vector = (0.9642, 1.0, 0.8249)
_BRADFORD: Matrix = (
    (0.8951, 0.2664, -0.1614),
    (-0.7502, 1.7135, 0.0367),
    (0.0389, -0.0685, 1.0296),
)

_MOST_EXPONENT = 30_000.0  # what its field holds; all but white is black long before

_DISPLAY_GAMMA = 2.2
_GAMMA_TOLERANCE = 0.05  # libpng's threshold, and Chromium's

MAX_PEAK = 10_000.0
"""cd/m2: the largest that PQ encodes."""


def knows(primaries: int, transfer: int) -> bool:
    """Whether a profile of these code points can be made, or they are those of sRGB."""
    return primaries in PRIMARIES and (transfer in CURVES or transfer in (PQ, HLG))


@lru_cache(maxsize=16)
def of_code_points(primaries: int, transfer: int, peak: float | None = None) -> bytes | None:
    """Return the profile of code points of H.273; None if they are those of sRGB, or unknown.

    Args:
        peak: cd/m2 of the brightest pixel, for PQ and HLG.
    """
    if not knows(primaries, transfer) or (primaries, transfer) == (1, SRGB_CURVE):
        return None
    chromaticities = PRIMARIES[primaries]
    if transfer in (PQ, HLG):
        peak = min(peak or tone_mapping.DEFAULT_PEAK, MAX_PEAK)
        return _tone_mapped(chromaticities, transfer == HLG, peak)
    return _matrix_profile(chromaticities, CURVES[transfer])


def of_gamma(gamma: float, chromaticities: Chromaticities | None) -> bytes | None:
    """Return the profile of a PNG's gAMA and cHRM; None if there is nothing to convert.

    As in browsers, a gamma alone that is near that of a display means sRGB. Chromaticities that no
    display can have make both meaningless.
    """
    if gamma <= 0:
        return None
    if chromaticities is None:
        if abs(gamma * _DISPLAY_GAMMA - 1) <= _GAMMA_TOLERANCE:
            return None
        chromaticities = SRGB
    try:
        return _matrix_profile(chromaticities, Curve(min(1 / gamma, _MOST_EXPONENT)))
    except (ZeroDivisionError, struct.error):
        return None


@lru_cache(maxsize=1)
def wide() -> bytes:
    """Return the profile of a space that contains the colours of pictures and of most devices."""
    return _matrix_profile(REC_2020, _WIDE_CURVE)


_WIDE_CURVE = Curve(2.4)


def code_points_of(profile: bytes) -> tuple[int, int] | None:
    """Return the primaries and transfer that the ``cicp`` tag of an ICC profile names."""
    try:
        (count,) = struct.unpack_from(">I", profile, 128)
        for number in range(min(count, _MAX_TAGS)):
            tag, offset, length = struct.unpack_from(">4sII", profile, 132 + 12 * number)
            if tag == b"cicp" and length == 12:
                kind, primaries, transfer, matrix, full = struct.unpack_from(
                    ">4s4x4B", profile, offset
                )
                valid = kind == b"cicp" and (matrix, full) == (0, 1)
                if valid and knows(primaries, transfer):
                    return primaries, transfer
    except struct.error:
        pass
    return None


_MAX_TAGS = 100


def _multiply(one: Matrix, other: Matrix) -> Matrix:
    columns = tuple(zip(*other, strict=True))
    first, second, third = (
        (_dot(row, columns[0]), _dot(row, columns[1]), _dot(row, columns[2])) for row in one
    )
    return first, second, third


def _dot(one: Vector, other: Vector) -> float:
    return one[0] * other[0] + one[1] * other[1] + one[2] * other[2]


def _apply(matrix: Matrix, vector: Vector) -> Vector:
    return _dot(matrix[0], vector), _dot(matrix[1], vector), _dot(matrix[2], vector)


def _inverse(matrix: Matrix) -> Matrix:
    """Return the inverse by cofactors; ZeroDivisionError if there is none."""
    (a, b, c), (d, e, f), (g, h, i) = matrix
    scale = 1 / (a * (e * i - f * h) - b * (d * i - f * g) + c * (d * h - e * g))
    return (
        ((e * i - f * h) * scale, (c * h - b * i) * scale, (b * f - c * e) * scale),
        ((f * g - d * i) * scale, (a * i - c * g) * scale, (c * d - a * f) * scale),
        ((d * h - e * g) * scale, (b * g - a * h) * scale, (a * e - b * d) * scale),
    )


def _diagonal(x: float, y: float, z: float) -> Matrix:
    return (x, 0, 0), (0, y, 0), (0, 0, z)


def _to_xyz(chromaticities: Chromaticities) -> Matrix:
    """Return the matrix from linear RGB to CIE XYZ (SMPTE RP 177); white has Y = 1."""
    red, green, blue, white = (
        (x, y, 1 - x - y) for x, y in chromaticities
    )  # of all light: x + y + z = 1
    columns: Matrix = (
        (red[0], green[0], blue[0]),
        (red[1], green[1], blue[1]),
        (red[2], green[2], blue[2]),
    )
    shares = _apply(_inverse(columns), (white[0] / white[1], 1, white[2] / white[1]))
    return _multiply(columns, _diagonal(*shares))


def _to_d50(chromaticities: Chromaticities) -> Matrix:
    """Return the matrix from linear RGB to the connection space, adapted from white to D50."""
    matrix = _to_xyz(chromaticities)
    white = _apply(_BRADFORD, _apply(matrix, (1, 1, 1)))
    target = _apply(_BRADFORD, _D50)
    scales = _diagonal(target[0] / white[0], target[1] / white[1], target[2] / white[2])
    adapted = _multiply(_inverse(_BRADFORD), _multiply(scales, _BRADFORD))
    return _multiply(adapted, matrix)


def _matrix_profile(chromaticities: Chromaticities, curve: Curve) -> bytes:
    red, green, blue = zip(*_to_d50(chromaticities), strict=True)
    tags = {b"rXYZ": _xyz(red), b"gXYZ": _xyz(green), b"bXYZ": _xyz(blue)}
    return _profile(tags | dict.fromkeys((b"rTRC", b"gTRC", b"bTRC"), _parametric(curve)))


_GRID = 33
"""Points of the table along each axis. Between them the largest component is met exactly: the
tetrahedra of the interpolation end where two components are equal."""


def _tone_mapped(chromaticities: Chromaticities, is_hlg: bool, peak: float) -> bytes:
    """Return a profile whose table tone-maps, within the primaries of Rec. 2020.

    Where no light needs that, it clips what is too bright, which is right in sRGB's primaries only.
    """
    mapped = peak > tone_mapping.REFERENCE_WHITE
    target = REC_2020 if mapped else SRGB
    to_target = _multiply(_inverse(_to_xyz(target)), _to_xyz(REC_2020))
    to_2020 = _multiply(_inverse(_to_xyz(REC_2020)), _to_xyz(chromaticities))
    luminance = _to_xyz(REC_2020)[1]
    transfer = tone_mapping.hlg if is_hlg else tone_mapping.pq
    gain = tone_mapping.gain(peak)
    lights = [transfer(step / (_GRID - 1)) for step in range(_GRID)]
    exponent = 1 / _WIDE_CURVE.gamma
    table = []
    for red, green, blue in product(lights, repeat=3):
        shown = _apply(to_2020, (red, green, blue))
        factor = tone_mapping.hlg_display(_dot(luminance, shown)) if is_hlg else 1.0
        factor *= gain(factor * max(shown))
        for component in shown if mapped else _apply(to_target, shown):
            encoded = min(max(component * factor, 0), 1) ** exponent
            table.append(round(encoded * 0xFFFF))
    return _profile({b"A2B0": _lut(table, _WIDE_CURVE, _to_d50(target))}, b"spac")


def _lut(table: list[int], curve: Curve, matrix: Matrix) -> bytes:
    """Return a lutAToBType element: table, then ``curve``, then ``matrix``."""
    straight, bent = 3 * _parametric(Curve(1)), 3 * _parametric(curve)
    scale = 0x8000 / 0xFFFF  # in the connection space, 0xFFFF is not 1 but nearly 2
    elements = b"".join(_fixed(*(value * scale for value in row)) for row in matrix) + bytes(12)
    grid = bytes([_GRID] * 3).ljust(16, b"\0") + b"\2\0\0\0"
    grid = _aligned(grid + struct.pack(f">{len(table)}H", *table))
    offsets, at = [], 32
    for part in (straight, elements, bent, grid):
        offsets.append(at)
        at += len(part)
    head = b"mAB \0\0\0\0\3\3\0\0" + struct.pack(">5I", *offsets, at)
    return head + straight + elements + bent + grid + straight


def _profile(tags: dict[bytes, bytes], class_: bytes = b"mntr") -> bytes:
    """Return a profile of version 4.4 with these tags and those that every one needs.

    Args:
        class_: of a display, or of a colour space, whose largest samples need not be white.
    """
    text = b"mluc\0\0\0\0" + struct.pack(">II4sII2x", 1, 12, b"enUS", 2, 28)
    tags = {b"desc": text, b"cprt": text, b"wtpt": _xyz(_D50)} | tags
    table, bodies = struct.pack(">I", len(tags)), b""
    start = 128 + 4 + 12 * len(tags)
    for tag, body in tags.items():
        table += tag + struct.pack(">II", start + len(bodies), len(body))
        bodies += _aligned(body)
    head = struct.pack(">I4xI4s4s4s12x4s", start + len(bodies), 0x04400000, class_, b"RGB ",
                       b"XYZ ", b"acsp")  # fmt: skip
    return (head.ljust(68, b"\0") + _fixed(*_D50)).ljust(128, b"\0") + table + bodies


def _aligned(data: bytes) -> bytes:
    return data + bytes(-len(data) % 4)


def _fixed(*values: float) -> bytes:
    return struct.pack(f">{len(values)}i", *(round(value * 65536) for value in values))


def _xyz(values: Vector) -> bytes:
    return b"XYZ \0\0\0\0" + _fixed(*values)


def _parametric(curve: Curve) -> bytes:
    return b"para\0\0\0\0" + struct.pack(">HH", 3, 0) + _fixed(*curve)
