"""How a video is turned and mirrored, against what Chromium plays."""

from __future__ import annotations

from base64 import b64encode
from collections.abc import Callable, Iterator
from io import BytesIO

import pytest
from PIL import Image
from playwright.sync_api import Browser

from tests.imaging.test_poster import corners, shown
from tests.imaging.videos import turned, video
from tests.page import NoBrowser, chromium
from tests.required import skip_unless_required

pytestmark = [pytest.mark.browser, pytest.mark.time_limit(300)]

Play = Callable[[bytes], Image.Image]


@pytest.fixture(scope="module")
def play() -> Iterator[Play]:
    """The first frame of an MP4 as a page shows it; fails if it shows nothing."""
    try:
        with chromium("--force-color-profile=srgb") as with_browser:
            yield lambda data: with_browser(lambda browser: _played(browser, data))
    except NoBrowser as error:
        skip_unless_required(str(error))


def _played(browser: Browser, data: bytes) -> Image.Image:
    page = browser.new_page(viewport={"width": 800, "height": 400})
    try:
        page.set_content("<body style='margin: 0'><video muted style='display: block'></video>")
        width, height = page.evaluate(
            """async (url) => {
                const video = document.querySelector("video");
                video.src = url;
                await new Promise((done, fail) => {
                    video.requestVideoFrameCallback(done);
                    video.onerror = () => fail(new Error(video.error.message));
                });
                return [video.videoWidth, video.videoHeight];
            }""",
            f"data:video/mp4;base64,{b64encode(data).decode()}",
        )
        shot = page.screenshot(clip={"x": 0, "y": 0, "width": width, "height": height})
        return Image.open(BytesIO(shot)).convert("RGB")
    finally:
        page.close()


# Not its last one, the mirror along the other diagonal: Chromium 156 paints nothing for it.
MATRICES = [
    (1, 0, 0, 1),
    (0, 1, -1, 0),
    (-1, 0, 0, -1),
    (0, -1, 1, 0),
    (-1, 0, 0, 1),
    (1, 0, 0, -1),
    (0, 1, 1, 0),
]


@pytest.mark.parametrize("matrix", MATRICES)
def test_a_poster_is_turned_as_the_video_is_played(
    play: Play, matrix: tuple[int, int, int, int]
) -> None:
    """Catches a reading of the display matrix that only we have."""
    data = turned(video([corners()] * 5), matrix)
    theirs, ours = play(data), shown(data)
    assert ours.size == theirs.size
    for at in ((x, y) for x in (8, ours.width - 8) for y in (8, ours.height - 8)):
        pairs = zip(pixel(ours, at), pixel(theirs, at), strict=True)
        assert all(abs(one - other) <= 6 for one, other in pairs), at


def pixel(image: Image.Image, at: tuple[int, int]) -> tuple[int, ...]:
    found = image.getpixel(at)
    assert isinstance(found, tuple)
    return found
