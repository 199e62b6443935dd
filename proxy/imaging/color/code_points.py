"""The code points of ITU-T H.273: primaries, and transfer characteristics. Pure."""

from __future__ import annotations

from typing import NamedTuple


class Chromaticities(NamedTuple):
    """CIE 1931 x and y of the primaries and of white."""

    red: tuple[float, float]
    green: tuple[float, float]
    blue: tuple[float, float]
    white: tuple[float, float]


_D65, _C, _E, _DCI = (0.3127, 0.3290), (0.310, 0.316), (1 / 3, 1 / 3), (0.314, 0.351)

SRGB = Chromaticities((0.640, 0.330), (0.300, 0.600), (0.150, 0.060), _D65)
REC_2020 = Chromaticities((0.708, 0.292), (0.170, 0.797), (0.131, 0.046), _D65)
_SMPTE_170M = Chromaticities((0.630, 0.340), (0.310, 0.595), (0.155, 0.070), _D65)

PRIMARIES = {
    1: SRGB,
    4: Chromaticities((0.67, 0.33), (0.21, 0.71), (0.14, 0.08), _C),
    5: Chromaticities((0.64, 0.33), (0.29, 0.60), (0.15, 0.06), _D65),
    6: _SMPTE_170M,
    7: _SMPTE_170M,
    8: Chromaticities((0.681, 0.319), (0.243, 0.692), (0.145, 0.049), _C),
    9: REC_2020,
    10: Chromaticities((1, 0), (0, 1), (0, 0), _E),  # XYZ itself
    11: Chromaticities((0.680, 0.320), (0.265, 0.690), (0.150, 0.060), _DCI),
    12: Chromaticities((0.680, 0.320), (0.265, 0.690), (0.150, 0.060), _D65),
    22: Chromaticities((0.630, 0.340), (0.295, 0.605), (0.155, 0.077), _D65),
}
"""Table 2 of H.273."""

BT_709, SRGB_CURVE, PQ, HLG = 1, 13, 16, 18
"""Transfer characteristics, from table 3."""


class Curve(NamedTuple):
    """``(a * x + b) ** gamma`` from ``knee`` on, and ``slope * x`` below: ICC.1, parametric 3."""

    gamma: float
    a: float = 1
    b: float = 0
    slope: float = 0
    knee: float = 0

    def __call__(self, sample: float) -> float:
        """Return the light of an encoded sample; both are 1 at white."""
        if sample < self.knee:
            return self.slope * sample
        return float((self.a * sample + self.b) ** self.gamma)


_IEC_61966_2_1 = Curve(2.4, 1 / 1.055, 0.055 / 1.055, 1 / 12.92, 0.04045)
_DISPLAY_OF_BT_709 = Curve(2.4)  # BT.1886, not the inverse of a camera's curve

CURVES = {
    1: _DISPLAY_OF_BT_709,
    4: Curve(2.2),
    5: Curve(2.8),
    6: _DISPLAY_OF_BT_709,
    7: Curve(1 / 0.45, 1 / 1.1115, 0.1115 / 1.1115, 1 / 4, 4 * 0.0228),
    8: Curve(1),
    11: _DISPLAY_OF_BT_709,
    13: _IEC_61966_2_1,
    14: _DISPLAY_OF_BT_709,
    15: _DISPLAY_OF_BT_709,
    17: Curve(2.6, (52.37 / 48) ** (1 / 2.6)),
}
"""What a display does with the transfers of table 3 that have a bounded range, as in browsers.

The logarithmic ones (9, 10) and BT.1361 (12) are not displayed by any, and are unknown here.
"""
