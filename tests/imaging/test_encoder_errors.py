"""Errors of encoders: for lack of memory a picture is too large, and anything else is a defect."""

from __future__ import annotations

import errno
from typing import NoReturn

import pytest
from deflate import DeflateError
from PIL import Image

from proxy.errors import ImageTooLarge
from proxy.imaging import png_rows
from proxy.imaging.pipeline import render
from proxy.model.formats import OUTPUTS, Format
from proxy.model.presets import Preset
from tests.imaging import sources

SOURCE = sources.png(sources.photo(40, 30))
PRESET = Preset(width=20, fit="contain", quality=80)


def render_with(error: Exception, output: Format, monkeypatch: pytest.MonkeyPatch) -> None:
    def save(*_: object, **__: object) -> NoReturn:
        raise error

    monkeypatch.setattr(png_rows, "file_of", save)
    monkeypatch.setattr(Image.Image, "save", save)
    render(SOURCE, PRESET, output, max_pixels=10**6)


@pytest.mark.parametrize("output", OUTPUTS)
@pytest.mark.parametrize(
    "error",
    [MemoryError(), ValueError("encoding error 1"), OSError("encoder error -9"),
     RuntimeError("Failed to encode image: Out of memory"), DeflateError("Compression failed")],
    ids=["pillow", "webp", "jpeg", "avif", "deflate"],
)  # fmt: skip
def test_an_encoder_without_memory_makes_a_picture_too_large(
    error: Exception, output: Format, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Catches a 500 and an alert, since libwebp says ValueError where it gets no memory.

    Also a thread that answers otherwise than a worker, which knows MemoryError alone.
    """
    with pytest.raises(ImageTooLarge):
        render_with(error, output, monkeypatch)


@pytest.mark.parametrize("output", OUTPUTS)
@pytest.mark.parametrize(
    "error",
    [TypeError(), AttributeError(), ImportError(), OSError(errno.EACCES, "denied")],
    ids=repr,
)
def test_anything_else_that_an_encoder_raises_is_a_defect(
    error: Exception, output: Format, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Catches a module or a right that is missing, and is taken for a large picture."""
    with pytest.raises(type(error)):
        render_with(error, output, monkeypatch)
