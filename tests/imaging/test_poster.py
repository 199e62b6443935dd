"""The poster of a video: which frame, and how it is shown."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from fractions import Fraction
from io import BytesIO
from pathlib import Path
from typing import Any

import av
import pytest
from PIL import Image

from proxy.errors import ImageTooLarge, UndecodableImage, UnsupportedImage
from proxy.imaging.poster import poster, render_posters
from proxy.imaging.recipes import Recipe, Rendered
from proxy.model.formats import Format
from proxy.model.presets import Preset
from tests.imaging.videos import BLACK, RED, turned, video, with_frames_elsewhere

PIXELS = 1_000_000
GREEN, BLUE, WHITE = (30, 160, 60), (30, 40, 190), (235, 235, 235)


def shown(data: bytes) -> Image.Image:
    """The poster, through the pipeline, at its own size."""
    recipe = Recipe(preset=Preset(width=4000, fit="contain", quality=95), output=Format.PNG)
    (outcome,) = render_posters(BytesIO(data), [recipe], max_pixels=PIXELS)
    assert isinstance(outcome, Rendered), outcome
    return Image.open(BytesIO(outcome.data)).convert("RGB")


def near(image: Image.Image, at: tuple[int, int], color: tuple[int, int, int], by: int = 6) -> bool:
    pixel = image.getpixel(at)
    assert isinstance(pixel, tuple)
    return all(abs(one - other) <= by for one, other in zip(pixel, color, strict=True))


def corners(size: tuple[int, int] = (96, 64)) -> Image.Image:
    """Red at the top left, green at the top right, blue and white below."""
    image = Image.new("RGB", size)
    width, height = size[0] // 2, size[1] // 2
    for number, color in enumerate((RED, GREEN, BLUE, WHITE)):
        image.paste(color, (number % 2 * width, number // 2 * height, *size))
    return image


@pytest.mark.parametrize(
    ("frames", "expected"),
    [
        ([RED, GREEN], RED),
        ([BLACK] * 3 + [GREEN, RED], GREEN),
        ([BLACK] * 15 + [GREEN], BLACK),
        ([BLACK], BLACK),
    ],
)
def test_the_first_frame_of_the_first_second_that_is_not_black_is_shown(
    frames: list[tuple[int, int, int]], expected: tuple[int, int, int]
) -> None:
    """Catches the first frame whatever it shows, and a search without an end."""
    assert near(shown(video(frames)), (20, 20), expected)


@pytest.mark.parametrize(
    ("matrix", "top_left", "size"),
    [
        ((1, 0, 0, 1), RED, (96, 64)),
        ((0, 1, -1, 0), BLUE, (64, 96)),  # a quarter clockwise, as telephones write it
        ((-1, 0, 0, -1), WHITE, (96, 64)),
        ((0, -1, 1, 0), GREEN, (64, 96)),
        ((-1, 0, 0, 1), GREEN, (96, 64)),  # as front cameras mirror it
        ((1, 0, 0, -1), BLUE, (96, 64)),
        ((0, 1, 1, 0), RED, (64, 96)),
        ((0, -1, -1, 0), WHITE, (64, 96)),
        ((0, 0, 0, 0), RED, (96, 64)),
    ],
)
def test_the_display_matrix_turns_it(
    matrix: tuple[int, int, int, int], top_left: tuple[int, int, int], size: tuple[int, int]
) -> None:
    """Catches a turn the wrong way round, none, and a mirror taken for half a turn."""
    image = shown(turned(video([corners()]), matrix))
    assert image.size == size
    assert near(image, (8, 8), top_left, by=12)


@pytest.mark.parametrize(
    ("aspect", "size"), [(Fraction(2), (192, 64)), (Fraction(1, 2), (96, 128)), (None, (96, 64))]
)
def test_its_pixels_are_square(aspect: Fraction | None, size: tuple[int, int]) -> None:
    """Catches anamorphic video that comes out narrow."""

    def set_up(stream: Any) -> None:
        if aspect is not None:
            stream.codec_context.sample_aspect_ratio = aspect

    assert shown(video([RED], set_up=set_up)).size == size


def test_colours_that_the_video_names_are_shown_in_srgb() -> None:
    """Catches HDR and BT.2020 that come out as they are coded: a washed-out picture."""

    def set_up(stream: Any) -> None:
        codec = stream.codec_context
        codec.color_primaries, codec.color_trc, codec.colorspace = 9, 16, 9

    # White of graphics is 0.58 in PQ (BT.2408): above it is brighter than white, far below darker.
    for level, seen in ((60, 26), (200, 255)):
        grey = (level, level, level)
        assert near(shown(video([grey])), (20, 20), grey)
        assert near(shown(video([grey], set_up=set_up)), (20, 20), (seen, seen, seen))


def test_a_container_that_is_not_allowed_is_unsupported() -> None:
    """Catches FFmpeg guessing: AVI, MPEG-TS and playlists are demuxers of it too."""
    for data in (
        video(container="avi", codec="mpeg4"),
        video(container="mpegts"),
        b"#EXTM3U\n#EXTINF:1,\nfile:///etc/passwd\n",
        b"",
    ):
        with pytest.raises(UnsupportedImage):
            poster(BytesIO(data), max_pixels=PIXELS)


def test_a_video_whose_frames_are_in_another_file_opens_none(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Catches ``enable_drefs``, by which a stranger's file has FFmpeg open one of ours."""
    data = video(container="mov")
    (tmp_path / "ours.mov").write_bytes(data)
    monkeypatch.chdir(tmp_path)
    with pytest.raises(UndecodableImage):
        poster(BytesIO(with_frames_elsewhere(data, b"ours.mov")), max_pixels=PIXELS)


def test_a_codec_that_is_not_allowed_is_unsupported() -> None:
    """Catches the hundreds of decoders of FFmpeg that no such video needs."""

    def set_up(stream: Any) -> None:
        stream.pix_fmt = "yuvj420p"

    with pytest.raises(UnsupportedImage):
        poster(BytesIO(video(container="mov", codec="mjpeg", set_up=set_up)), max_pixels=PIXELS)


def test_a_track_that_is_not_decoded_hides_none_after_it() -> None:
    """Catches a cover or a preview, as cameras put into a MOV, that passes for the video."""
    out = BytesIO()
    opened: Any = av.open(out, "w", format="mov")
    frame_of: Any = av.VideoFrame.from_image
    with opened as file:
        streams = []
        for codec, pixels in (("mjpeg", "yuvj420p"), ("libx264", "yuv420p")):
            stream = file.add_stream(codec, rate=10)
            stream.width, stream.height, stream.pix_fmt = 96, 64, pixels
            streams.append(stream)
        for stream, color in zip(streams, (GREEN, RED), strict=True):
            for frame in (frame_of(Image.new("RGB", (96, 64), color)), None):
                for packet in stream.encode(frame):
                    file.mux(packet)
    png = poster(BytesIO(out.getvalue()), max_pixels=PIXELS)
    colors: Any = Image.open(BytesIO(png)).convert("RGB").getpixel((48, 32))
    assert colors[0] > 150 > colors[1]


def test_a_codec_that_is_not_allowed_is_not_even_tried(monkeypatch: pytest.MonkeyPatch) -> None:
    """Catches a list that is asked only once FFmpeg has looked at each stream with any decoder."""
    known: list[Any] = []
    real_open: Any = av.open

    @contextmanager
    def opened(*args: Any, **options: Any) -> Iterator[Any]:
        with real_open(*args, **options) as container:
            known.extend(stream.codec_context.pix_fmt for stream in container.streams.video)
            yield container

    def set_up(stream: Any) -> None:
        stream.pix_fmt = "yuvj420p"

    monkeypatch.setattr(av, "open", opened)
    with pytest.raises(UnsupportedImage):
        poster(BytesIO(video(container="mov", codec="mjpeg", set_up=set_up)), max_pixels=PIXELS)
    poster(BytesIO(video()), max_pixels=PIXELS)
    assert known == [None, "yuv420p"], "only its decoder knows the pixels of Motion JPEG"


def test_a_frame_of_too_many_pixels_is_not_decoded() -> None:
    """Catches a limit that only pictures have, and pixels that an aspect ratio makes."""

    def set_up(stream: Any) -> None:
        stream.codec_context.sample_aspect_ratio = Fraction(16)

    for data in (video([RED], size=(160, 128)), video([RED], set_up=set_up)):
        with pytest.raises(ImageTooLarge):
            poster(BytesIO(data), max_pixels=128 * 96)


def test_what_is_cut_off_shows_its_beginning_or_does_not_decode() -> None:
    """Catches a 500 for it."""
    data = video([RED] * 30, container="webm", codec="libvpx")
    assert poster(BytesIO(data[: len(data) - 200]), max_pixels=PIXELS)
    with pytest.raises(UndecodableImage):
        poster(BytesIO(video()[:100]), max_pixels=PIXELS)
