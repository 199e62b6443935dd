"""Brings PQ and HLG (ITU-R BT.2100) into the range of an SDR display, as Chromium does.

The curve, and how near it comes, is in docs/colour.md. Pure.
"""

from __future__ import annotations

import math
from bisect import bisect_right
from collections.abc import Callable

REFERENCE_WHITE = 203.0
"""cd/m2 of diffuse white (ITU-R BT.2408). Light is in multiples of it."""

DEFAULT_PEAK = 1000.0
"""cd/m2 of the brightest pixel if the file does not say it."""

_SMOOTHNESS = 0.65  # how far the control point of the shoulder lies towards its corner


def pq(sample: float) -> float:
    """Return the light of a sample of 0 to 1 (SMPTE ST 2084)."""
    root = sample ** (32 / 2523)
    light = max(root - 3424 / 4096, 0) / (2413 / 128 - 2392 / 128 * root)
    return 10_000 / REFERENCE_WHITE * float(light ** (16384 / 2610))


def hlg(sample: float) -> float:
    """Return the light of the scene for a sample, 0 to 1 (ARIB STD-B67)."""
    if sample <= 0.5:
        return sample * sample / 3
    return (math.exp((sample - 0.55991073) / 0.17883277) + 0.28466892) / 12


_HLG_PEAK = 1000 / REFERENCE_WHITE
_HLG_GAMMA = 1.2  # of a display of 1000 cd/m2


def hlg_display(luminance: float) -> float:
    """Return the factor from the light of a scene to that of a display (BT.2100, the OOTF)."""
    return _HLG_PEAK * float(luminance ** (_HLG_GAMMA - 1)) if luminance > 0 else 0.0


_POINTS = 8  # of the curve that stands for the Bezier curve


def gain(peak: float) -> Callable[[float], float]:
    """Return the factor for a pixel by its largest component, for content up to ``peak`` cd/m2.

    Up to reference white all light is scaled alike; above, the logarithm of the factor follows a
    cubic Hermite curve through points of a quadratic Bezier curve, which leads to 1 at the peak.
    Content up to reference white stays as it is; what is brighter all the same is clipped.
    """
    top = peak / REFERENCE_WHITE
    if top <= 1:
        return lambda light: 1.0
    strength = min(math.log2(top) / math.log2(DEFAULT_PEAK / REFERENCE_WHITE), 1)
    white = 1 - 0.5 * strength
    knots = _knots(white, top)
    starts = [knot[0] for knot in knots]

    def factor(light: float) -> float:
        if light <= 1:
            return white
        if light >= top:
            return 1 / light
        place = bisect_right(starts, light) - 1
        (x0, y0, slope0), (x1, y1, slope1) = knots[place : place + 2]
        width = x1 - x0
        t = (light - x0) / width
        rise = y1 - y0
        square = 3 * rise - (2 * slope0 + slope1) * width
        cube = (slope0 + slope1) * width - 2 * rise
        return float(2 ** (y0 + t * (slope0 * width + t * (square + t * cube))))

    return factor


def _knots(white: float, top: float) -> list[tuple[float, float, float]]:
    """Return points of the curve: the light, the binary logarithm of its factor, and the slope."""
    middle_x = 1 - _SMOOTHNESS + _SMOOTHNESS / white
    middle_y = (1 - _SMOOTHNESS) * white + _SMOOTHNESS
    square_x, linear_x = 1 - 2 * middle_x + top, 2 * (middle_x - 1)
    square_y, linear_y = white - 2 * middle_y + 1, 2 * (middle_y - white)
    knots = []
    for number in range(_POINTS):
        t = number / (_POINTS - 1)
        x = 1 + t * (linear_x + t * square_x)
        y = white + t * (linear_y + t * square_y)
        steepness = (linear_y + 2 * t * square_y) / (linear_x + 2 * t * square_x)
        knots.append((x, math.log2(y / x), (steepness * x - y) / (math.log(2) * x * y)))
    return knots
