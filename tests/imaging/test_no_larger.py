"""Sources that fit, but have no copy of their own pixels: turned ones, and of other colours."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest
from PIL import Image

from proxy.imaging import encode, memory_estimate, no_larger, png_rows
from proxy.imaging.limits import ENCODES
from proxy.imaging.pipeline import render
from proxy.model.formats import Format, sniff
from proxy.model.presets import Preset
from tests.imaging import sources
from tests.imaging.reference import decode
from tests.imaging.sources import Pixels

PHOTO = sources.photo(203, 149)
FITS = Preset(width=400, fit="contain", quality=90)
P3 = sources.builtin_profile("p3")
_TURNED: dict[int, Callable[[Pixels], Pixels]] = {
    2: lambda pixels: pixels[:, ::-1],
    3: lambda pixels: pixels[::-1, ::-1],
    4: lambda pixels: pixels[::-1],
    5: lambda pixels: pixels.swapaxes(0, 1),
    6: lambda pixels: pixels[::-1].swapaxes(0, 1),
    7: lambda pixels: pixels[::-1, ::-1].swapaxes(0, 1),
    8: lambda pixels: pixels.swapaxes(0, 1)[::-1],
}


@pytest.mark.parametrize("orientation", _TURNED)
@pytest.mark.parametrize("progressive", [False, True])
@pytest.mark.parametrize("sampling", ["4:4:4", "4:2:2", "4:2:0"])
def test_a_jpeg_whose_blocks_cannot_be_turned_is_no_larger_and_loses_little(
    orientation: int, progressive: bool, sampling: str
) -> None:
    """Catches the preset's quality for a coarser source: half of the bytes again; and its tables
    without their rows and columns exchanged."""
    plain = sources.jpeg(PHOTO, quality=50, progressive=progressive, subsampling=sampling)
    options = {"progressive": progressive, "subsampling": sampling}
    source = sources.jpeg(PHOTO, quality=50, exif=sources.exif(orientation), **options)
    result = render(source, FITS, None, max_pixels=10**6).data
    assert len(result) <= len(source)
    wanted = _TURNED[orientation](decode(plain))
    difference = np.abs(decode(result).astype(int) - wanted.astype(int))
    assert difference.mean() < 3


@pytest.mark.parametrize(
    "make",
    [
        lambda: sources.jpeg(PHOTO, quality=30, icc_profile=P3),
        lambda: sources.jpeg(PHOTO, quality=30, icc_profile=P3, exif=sources.exif(5)),
        lambda: sources.jpeg(sources.grey(203, 149), quality=30, exif=sources.exif(8)),
        lambda: sources.jpeg(sources.photo(1700, 1203), quality=30, exif=sources.exif(3)),
        lambda: sources.webp(PHOTO, quality=20, exif=sources.exif(6)),
        lambda: sources.webp(sources.with_alpha(PHOTO), quality=20, exif=sources.exif(6)),
        lambda: sources.webp(PHOTO, quality=20, icc_profile=P3),
        lambda: sources.avif(PHOTO, quality=20, exif=sources.exif(6)),
        lambda: sources.avif(PHOTO, quality=20, icc_profile=P3),
        lambda: sources.encoded(
            Image.fromarray(PHOTO).quantize(64), "PNG", optimize=True, exif=sources.exif(6)
        ),
    ],
    ids=[
        "jpeg_p3", "jpeg_p3_turned", "jpeg_grey", "jpeg_large", "webp", "webp_alpha", "webp_p3",
        "avif", "avif_p3", "png",
    ],
)  # fmt: skip
def test_what_fits_and_is_encoded_again_is_no_larger(make: Callable[[], bytes]) -> None:
    """Catches a rule that holds where the source's own pixels can be served, and nowhere else."""
    source = make()
    format_ = sniff(source)
    preset = FITS.model_copy(update={"width": 2000})
    result = render(source, preset, format_, max_pixels=10**7)
    assert result.format is format_
    assert len(result.data) <= len(source)


def test_a_drawing_without_a_loss_is_turned_without_one() -> None:
    """Catches a lossy picture of six times the bytes because none is as small as its source."""
    art = sources.pixel_art(203, 149)
    source = sources.webp(art, lossless=True, exif=sources.exif(6))
    result = render(source, FITS, Format.WEBP, max_pixels=10**6).data
    assert np.array_equal(decode(result), _TURNED[6](art))
    assert len(result) < 2 * len(source)


ENCODED_AGAIN: dict[str, Callable[[], bytes]] = {
    "webp": lambda: sources.webp(PHOTO, quality=1, icc_profile=P3),
    "lossless webp": lambda: sources.webp(
        sources.pixel_art(203, 149), lossless=True, exif=sources.exif(6)
    ),
    "avif": lambda: sources.avif(PHOTO, quality=1, icc_profile=P3),
    "png": lambda: sources.png(PHOTO, optimize=True, exif=sources.exif(6)),
}


@pytest.mark.parametrize("make", ENCODED_AGAIN.values(), ids=ENCODED_AGAIN.keys())
def test_a_large_picture_is_encoded_again_only_as_often_as_its_time_allows(
    make: Callable[[], bytes], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Catches six encodes of fifty megapixels: the worker would be ended, and no picture served."""
    source = make()
    format_ = sniff(source)
    pixels = PHOTO.shape[0] * PHOTO.shape[1]
    encodes: list[Format] = []

    def note(image: Image.Image, to: Format, options: dict[str, object]) -> bytes:
        encodes.append(to)
        return save(image, to, options)

    def note_file(image: Image.Image, level: int, *, filtered: bool) -> bytes:
        encodes.append(Format.PNG)
        return file_of(image, level, filtered=filtered)

    save, file_of = encode.save, png_rows.file_of
    monkeypatch.setattr(png_rows, "file_of", note_file)
    monkeypatch.setattr(encode, "save", note)
    monkeypatch.setattr(no_larger, "save", note)
    monkeypatch.setattr(no_larger, "_MOST_PIXELS", pixels)
    monkeypatch.setattr(no_larger, "_MOST_EXACT", pixels - 1)
    render(source, FITS, format_, max_pixels=10**6)
    # A PNG is tried with a palette beside its first encode.
    assert 1 <= len(encodes) <= 2


def test_attempts_have_cpu_time_of_their_own() -> None:
    """Catches a limit for one encode, where there may be six more."""
    size = (2000, 2000)
    source = sources.encoded(Image.new("RGB", size), "AVIF")
    fits = FITS.model_copy(update={"width": 2000})
    one, again = (
        memory_estimate.estimate(source, fits, output, max_pixels=10**7).cpu
        for output in (Format.WEBP, Format.AVIF)
    )
    one_encode = memory_estimate.RESULT_SECONDS[Format.AVIF] * 4
    assert again > one + one_encode
    jpeg = sources.encoded(Image.new("RGB", size), "JPEG")
    limits = memory_estimate.estimate(jpeg, fits, None, max_pixels=10**7)
    least = (ENCODES + 1) * memory_estimate.RESULT_SECONDS[Format.JPEG] * 4
    assert limits.cpu > least
