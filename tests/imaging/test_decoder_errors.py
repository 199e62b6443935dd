"""Which exceptions of a decoder are the picture's fault, and which are ours."""

from __future__ import annotations

import errno
import os
import struct
import zlib
from collections.abc import Callable

import pytest
from PIL import ImageCms, JpegImagePlugin, PngImagePlugin, UnidentifiedImageError

from proxy.errors import ImageTooLarge, UndecodableImage
from proxy.imaging.pipeline import render, render_each
from proxy.imaging.recipes import Recipe
from proxy.model.formats import Format
from proxy.model.presets import Preset
from tests.imaging import sources

PRESET = Preset(width=20, fit="contain", quality=80)

DEFECTS = [
    ImportError("no module"),
    ModuleNotFoundError("no module"),
    AttributeError("no such attribute"),
    TypeError("not callable"),
    NameError("no such name"),
    AssertionError("never"),
    IndexError("out of range"),
    KeyError("no such key"),
    ZeroDivisionError("division by zero"),
    PermissionError(errno.EPERM, os.strerror(errno.EPERM)),
    FileNotFoundError(errno.ENOENT, os.strerror(errno.ENOENT)),
    OSError(errno.EMFILE, os.strerror(errno.EMFILE)),
    Exception("of no kind"),
]

OF_DATA = [
    OSError("broken data stream"),
    UnidentifiedImageError("cannot identify"),
    EOFError("no more frames"),
    SyntaxError("broken PNG file"),
    ValueError("bad value"),
    UnicodeDecodeError("ascii", b"\xff", 0, 1, "not in range"),
    RuntimeError("decoding failed"),
    NotImplementedError("no such compression"),
    OverflowError("too large for a C int"),
    struct.error("too short"),
    zlib.error("incorrect header check"),
    ImageCms.PyCMSError("cannot build transform"),
]


def named(error: Exception) -> str:
    return type(error).__name__


def failing(error: Exception, cause: Exception | None = None) -> Callable[[object], None]:
    def fail(_: object) -> None:
        raise error from cause

    return fail


def decoded(source: bytes) -> bytes:
    return render(source, PRESET, None, max_pixels=10**6).data


@pytest.mark.parametrize("error", DEFECTS, ids=named)
def test_what_damaged_data_does_not_explain_is_a_defect(
    error: Exception, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Catches a picture that is blamed, and remembered as broken, for a mistake of ours."""
    monkeypatch.setattr(PngImagePlugin.PngImageFile, "load_end", failing(error))
    with pytest.raises(type(error)) as caught:
        decoded(sources.png(sources.photo(40, 30)))
    assert caught.value is error


@pytest.mark.parametrize("error", OF_DATA, ids=named)
def test_what_decoders_raise_for_damaged_data_is_a_picture_that_does_not_decode(
    error: Exception, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Catches an alert for each damaged picture of a stranger."""
    monkeypatch.setattr(PngImagePlugin.PngImageFile, "load_end", failing(error))
    with pytest.raises(UndecodableImage, match=type(error).__name__):
        decoded(sources.png(sources.photo(40, 30)))


@pytest.mark.parametrize("error", [IndexError("end"), KeyError("mode"), struct.error("short")])
def test_an_end_of_data_in_a_header_is_the_pictures_fault(
    error: Exception, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Catches a defect in each JPEG that breaks off: Pillow runs off its end, and says so."""
    monkeypatch.setattr(JpegImagePlugin.JpegImageFile, "_open", failing(error))
    with pytest.raises(UndecodableImage, match="SyntaxError"):
        decoded(sources.jpeg(sources.photo(40, 30)))


def test_a_wrong_call_in_a_header_is_a_defect_though_pillow_takes_it_for_bad_data(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Catches a plug-in that was called wrongly: Pillow makes a SyntaxError of its TypeError."""
    monkeypatch.setattr(JpegImagePlugin.JpegImageFile, "_open", failing(TypeError("a call")))
    with pytest.raises(SyntaxError, match="a call"):
        decoded(sources.jpeg(sources.photo(40, 30)))


def test_a_defect_behind_an_error_of_the_data_stays_a_defect(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Catches a file that a decoder could not open, and calls a broken stream."""
    behind = PermissionError(errno.EPERM, "not permitted")
    fail = failing(OSError("broken data stream"), behind)
    monkeypatch.setattr(PngImagePlugin.PngImageFile, "load_end", fail)
    with pytest.raises(OSError, match="broken data stream"):
        decoded(sources.png(sources.photo(40, 30)))


@pytest.mark.parametrize("error", [TypeError("a call"), PermissionError(errno.EPERM, "no")])
def test_a_profile_that_a_defect_keeps_from_being_applied_is_a_defect(
    error: Exception, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Catches colours that are left as they are, which a cache then keeps for a month."""

    def fail(*_arguments: object, **_options: object) -> None:
        raise error

    monkeypatch.setattr(ImageCms, "buildTransform", fail)
    # Another gamma than any other test's, whose way to sRGB is not known yet.
    profile = sources.rgb_profile((0.6, 0.3, 0), (0.2, 0.6, 0.1), (0.1, 0.1, 0.7), 1.37)
    with pytest.raises(type(error)) as caught:
        decoded(sources.png(sources.photo(40, 30), icc_profile=profile))
    assert caught.value is error


def test_too_little_memory_is_neither(monkeypatch: pytest.MonkeyPatch) -> None:
    """Catches a picture that is called broken because it needs more than is allowed."""
    monkeypatch.setattr(PngImagePlugin.PngImageFile, "load_end", failing(MemoryError()))
    with pytest.raises(ImageTooLarge):
        decoded(sources.png(sources.photo(40, 30)))


def test_a_defect_reaches_each_recipe_of_a_job(monkeypatch: pytest.MonkeyPatch) -> None:
    """Catches a kept failure of the decoder that is told as another one the second time."""
    error = AttributeError("no such attribute")
    monkeypatch.setattr(PngImagePlugin.PngImageFile, "load_end", failing(error))
    recipes = [Recipe(preset=PRESET, output=output) for output in (None, Format.JPEG)]
    source = sources.png(sources.photo(40, 30))
    assert list(render_each(source, recipes, max_pixels=10**6)) == [error, error]


def test_a_sequence_without_a_time_scale_does_not_decode() -> None:
    """Catches a defect by a few bytes of a stranger: Pillow divides by them."""
    source = bytearray(sources.animation("AVIF", [sources.photo(40, 30)] * 2))
    assert decoded(bytes(source))
    # ISO/IEC 14496-12, 8.4.2: version 1, flags, two times of 64 bits, then the scale.
    at = source.index(b"mdhd") + 4 + 4 + 16
    source[at : at + 4] = bytes(4)
    with pytest.raises(UndecodableImage, match="ZeroDivisionError"):
        decoded(bytes(source))
