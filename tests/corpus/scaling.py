"""Scales the references as a preset asks, with arithmetic of its own. Pure."""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from proxy.model.presets import Preset
from tests.imaging import reference
from tests.imaging.sources import Pixels

Plane = NDArray[np.float32]


class Kernel(NamedTuple):
    """Weights by the distance in pixels, of the larger raster, and where they end."""

    weight: Callable[[NDArray[np.float64]], NDArray[np.float64]]
    support: float


KERNELS = (
    Kernel(lambda x: np.sinc(x) * np.sinc(x / 3), 3.0),
    Kernel(lambda x: np.sinc(x) * (0.54 + 0.46 * np.cos(np.pi * x)), 1.0),
)
"""Lanczos for detail, and Hamming, which makes no halo beside hard edges. Either is good."""


def scaled(pixels: Pixels, preset: Preset) -> list[Pixels]:
    """The picture as the preset shows it, RGB or RGBA, by each kernel; one if it is not scaled."""
    height, width = pixels.shape[:2]
    across, down = reference.size_of(preset, width, height)
    if preset.fit == "cover":
        scale = max(across / width, down / height)
        wide, high = min(across / scale, width), min(down / scale, height)
    else:
        wide, high = float(width), float(height)
    left, top = (width - wide) / 2, (height - high) / 2
    if (round(wide, 6), round(high, 6)) == (across, down):
        x, y = int(left), int(top)
        return [pixels[y : y + down, x : x + across]]
    planes = pixels.astype(np.float32)
    if pixels.shape[2] == 4:
        planes[..., :3] *= planes[..., 3:] / 255
    found = []
    for kernel in KERNELS:
        rows = _resampled(planes, top, high, down, kernel)
        made = _resampled(rows.swapaxes(0, 1), left, wide, across, kernel).swapaxes(0, 1)
        if pixels.shape[2] == 4:
            alpha = np.maximum(made[..., 3:], 1e-3)
            made = np.dstack([made[..., :3] * (255 / alpha), made[..., 3]])
        found.append(np.clip(made.round(), 0, 255).astype(np.uint8))
    return found


def _resampled(planes: Plane, start: float, length: float, count: int, kernel: Kernel) -> Plane:
    """``count`` rows of the region of ``length`` rows from ``start`` on."""
    step = length / count
    widened = max(step, 1.0)
    made = np.empty((count, *planes.shape[1:]), np.float32)
    for row in range(count):
        centre = start + (row + 0.5) * step
        first = max(int(np.floor(centre - kernel.support * widened + 0.5)), 0)
        last = min(int(np.floor(centre + kernel.support * widened + 0.5)), planes.shape[0])
        distances = (np.arange(first, max(last, first + 1)) + 0.5 - centre) / widened
        weights = np.where(np.abs(distances) < kernel.support, kernel.weight(distances), 0)
        weights = weights / (weights.sum() or 1)
        made[row] = np.tensordot(
            weights.astype(np.float32), planes[first : first + len(weights)], 1
        )
    return made
