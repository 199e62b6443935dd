"""The still of an animated PNG: its first frame, as browsers show it."""

from __future__ import annotations

from io import BytesIO

import numpy as np
import pytest
from PIL import Image

from proxy.imaging.pipeline import render
from proxy.model.formats import Format
from proxy.model.presets import Preset
from tests.imaging import moving, sources
from tests.imaging.moving import PngFrame
from tests.imaging.sources import Chunk, Pixels

PRESET = Preset(width=1000, fit="contain", quality=95)
SIZE = (48, 32)
PHOTO = sources.photo(*SIZE)
GREY = sources.grey(*SIZE)
PICTURES = {
    "rgb": Image.fromarray(PHOTO),
    "rgba": Image.fromarray(sources.with_alpha(PHOTO)),
    "grey": Image.fromarray(GREY),
    "palette": Image.fromarray(PHOTO).quantize(50),
}


def shown(source: bytes, preset: Preset = PRESET) -> Pixels:
    result = render(source, preset, Format.PNG, max_pixels=10**6)
    with Image.open(BytesIO(result.data)) as image:
        return np.asarray(image.convert("RGBA"))


def flipped(image: Image.Image) -> Image.Image:
    return image.transpose(Image.Transpose.FLIP_LEFT_RIGHT)


@pytest.mark.parametrize("count", [1, 2])
@pytest.mark.parametrize("kind", PICTURES)
def test_a_default_picture_that_is_no_frame_is_not_shown(kind: str, count: int) -> None:
    """Catches the picture for readers that know no frames: \"please use another browser\"."""
    picture = PICTURES[kind]
    frames = [PngFrame(picture), PngFrame(flipped(picture))][:count]
    source = moving.apng(frames, default=flipped(picture))
    assert (shown(source) == np.asarray(picture.convert("RGBA"))).all()


@pytest.mark.parametrize("kind", ["rgb", "rgba", "grey"])
def test_around_a_smaller_first_frame_there_is_nothing(kind: str) -> None:
    """Catches a frame in the corner, and one that is the whole result."""
    picture = PICTURES[kind]
    small = picture.crop((0, 0, 20, 10))
    for frames in ([PngFrame(small, 12, 7)], [PngFrame(small, 12, 7, blend=1), PngFrame(picture)]):
        found = shown(moving.apng(frames, default=picture))
        wanted = np.zeros((SIZE[1], SIZE[0], 4), np.uint8)
        wanted[7:17, 12:32] = np.asarray(small.convert("RGBA"))
        assert (found == wanted).all()


@pytest.mark.parametrize(
    "chunk",
    [(b"gAMA", b"\0\1\x86\xa0"), (b"cICP", b"\x0c\x0d\0\1"),
     (b"eXIf", sources.exif(6).removeprefix(b"Exif\0\0"))],
    ids=["gamma", "cicp", "orientation"],
)  # fmt: skip
def test_what_the_file_says_counts_for_its_first_frame(chunk: Chunk) -> None:
    """Catches colours and orientation that go with the default picture."""
    picture = PICTURES["rgb"]
    source = moving.apng([PngFrame(picture)], default=flipped(picture), chunks=[chunk])
    plain = sources.png(PHOTO)
    wanted = shown(sources.with_chunks(plain, [chunk]))
    assert (shown(source) == wanted).all()
    assert wanted.shape[:2] != shown(plain).shape[:2] or (wanted != shown(plain)).any()


def test_a_transparent_colour_counts_in_the_first_frame() -> None:
    """Catches a key that is compared on the default picture."""
    key = (b"tRNS", b"\0" + bytes([int(GREY[0, 0])]))
    source = moving.apng([PngFrame(PICTURES["grey"])], default=PICTURES["grey"], chunks=[key])
    assert shown(source)[0, 0, 3] == 0


def test_without_a_frame_that_is_whole_the_default_picture_is_shown() -> None:
    """Catches a 422 for a picture that is all here."""
    picture = PICTURES["rgb"]
    source = moving.apng([PngFrame(picture)], default=flipped(picture))
    wanted = np.asarray(flipped(picture).convert("RGBA"))
    frame = source.index(b"fcTL") - 4
    for cut in (source[:frame], source[: frame + 20], source[: frame + 60]):
        assert (shown(cut) == wanted).all()
    beyond = PngFrame(picture.crop((0, 0, 20, 10)), 40, 0)
    assert (shown(moving.apng([beyond], default=flipped(picture))) == wanted).all()
