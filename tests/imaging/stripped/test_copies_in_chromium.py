"""A copy shows in Chromium what its file shows: frames, times and loops."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest

from proxy.imaging.stripped.copies import strip, turn
from proxy.model.formats import Format, sniff
from tests.imaging import sources
from tests.imaging.browser_frames import Film
from tests.imaging.stripped.test_copies import CLEAN, OTHER, PHOTO
from tests.imaging.stripped.test_hidden_in_avif import HIDING
from tests.imaging.test_hidden_bytes import ALL

pytestmark = [pytest.mark.slow, pytest.mark.browser]

Show = Callable[[bytes, str], Film]

NO_PICTURES = {"crop", "mirror", "long size"}  # a browser refuses these files
FILES = {
    **CLEAN,
    **OTHER,
    **ALL,
    **{name: make() for name, make in HIDING.items() if name not in NO_PICTURES},
}


@pytest.mark.parametrize("data", FILES.values(), ids=FILES.keys())
def test_a_copy_shows_what_its_file_shows(data: bytes, show: Show) -> None:
    """Catches a part that is left out although browsers need it, and offsets that are off."""
    format_ = sniff(data)
    assert format_ is not None
    copy = strip(format_, data)
    if copy is None:
        return
    # A profile changes colours; that they are sRGB is for the caller to know.
    if any(name in data for name in (b"ICC_PROFILE", b"ICCP", b"prof", b"iCCP")):
        return
    wanted, got = (show(file, format_.content_type) for file in (data, copy))
    assert (len(got.frames), got.plays, got.broken) == (
        len(wanted.frames),
        wanted.plays,
        wanted.broken,
    )
    for frame, original in zip(got.frames, wanted.frames, strict=True):
        assert frame.duration == original.duration
        assert np.array_equal(frame.pixels, original.pixels)


@pytest.mark.parametrize("orientation", range(2, 9))
def test_a_turned_copy_shows_what_a_browser_turns(orientation: int, show: Show) -> None:
    """Catches the mirror image of the right turn."""
    source = sources.jpeg(PHOTO[:32], quality=50, subsampling=0, exif=sources.exif(orientation))
    copy = turn(source, orientation, most=len(source))
    assert copy is not None
    (wanted,), (got,) = (show(file, Format.JPEG.content_type).frames for file in (source, copy))
    assert wanted.pixels.shape == got.pixels.shape
    assert np.abs(wanted.pixels.astype(int) - got.pixels).mean() < 0.5
