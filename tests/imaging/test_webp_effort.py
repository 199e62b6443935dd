"""The effort of a WebP's encoder."""

from __future__ import annotations

from io import BytesIO

import pytest
from PIL import Image

from proxy.imaging.pipeline import render
from proxy.model.formats import Format
from proxy.model.presets import Preset
from tests.imaging import sources

PHOTO = sources.photo(160, 120)
PLAIN = Preset(width=100, fit="contain", quality=100)


def made(effort: int | None, source: bytes, output: Format | None, width: int = 100) -> bytes:
    preset = PLAIN.model_copy(update={"width": width})
    if effort is not None:
        preset = preset.model_copy(update={"webp_effort": effort})
    return render(source, preset, output, max_pixels=10**6).data


def test_an_effort_is_the_method_of_the_encoder() -> None:
    """Catches a setting that is read and never passed on, and efforts that are off by one."""
    # Of the size of its result already, and without loss: what the encoder is given is known.
    source = sources.png(PHOTO)
    for effort in range(7):
        out = BytesIO()
        Image.fromarray(PHOTO).save(out, "WEBP", quality=100, method=effort)
        assert made(effort, source, Format.WEBP, width=160) == out.getvalue()
    assert made(None, source, Format.WEBP) == made(4, source, Format.WEBP)


@pytest.mark.parametrize("output", [None, Format.JPEG, Format.PNG, Format.AVIF])
def test_an_effort_changes_no_other_format(output: Format | None) -> None:
    """Catches results that differ under one ETag: their fingerprint leaves the effort out."""
    source = sources.webp(PHOTO)
    assert made(0, source, output) == made(6, source, output)
