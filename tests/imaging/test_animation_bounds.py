"""What does not move, and what may not: the first frame is served, as a still."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from io import BytesIO

import numpy as np
import pytest
import trio
from PIL import Image, ImageDraw

from proxy.config import Config
from proxy.imaging import memory_estimate as memory
from proxy.imaging.animation import transform
from proxy.imaging.pipeline import render
from proxy.imaging.recipes import Rendered
from proxy.imaging.workers.client import longest
from proxy.imaging.workers.pool import ProcessingPool
from proxy.model.animation import AnimationBounds
from proxy.model.formats import Format
from proxy.model.presets import Preset
from tests.imaging import heif, moving, sources
from tests.imaging.moving import GifFrame, PngFrame, WebpFrame, plain, ramp

BOX = Preset(width=40, fit="contain", quality=80, animated=True)
PHOTO = sources.photo(80, 60)


def frames_of(data: bytes) -> int:
    with Image.open(BytesIO(data)) as image:
        return getattr(image, "n_frames", 1)


def made(
    source: bytes, preset: Preset = BOX, output: Format | None = None, **bounds: float
) -> Rendered:
    animation = AnimationBounds.model_validate(bounds)
    return render(source, preset, output, max_pixels=10**7, animation=animation)


def rolling(format_: str, count: int = 4, **options: object) -> bytes:
    frames = [Image.fromarray(np.roll(PHOTO, 20 * at, 1)) for at in range(count)]
    return moving.saved(format_, frames, duration=50, **options)


ROLLING: dict[str, Callable[[], bytes]] = {
    "gif": lambda: rolling("GIF"),
    "webp": lambda: rolling("WEBP", quality=95),
    "apng": lambda: rolling("PNG"),
    "avif": lambda: rolling("AVIF", quality=95),
}


@pytest.mark.parametrize("make", ROLLING.values(), ids=ROLLING.keys())
@pytest.mark.parametrize("output", [None, Format.WEBP])
@pytest.mark.parametrize(
    "bound",
    [{"max_frames": 3}, {"max_megapixels": 0.019}, {"max_seconds": 1e-6}],
    ids=["frames", "pixels", "seconds"],
)
@pytest.mark.parametrize("width", [40, 400])
def test_beyond_each_bound_the_first_frame_is_served(
    make: Callable[[], bytes], output: Format | None, bound: dict[str, float], width: int
) -> None:
    """Catches a bound that is not looked at, an error in place of a picture, and frames left."""
    source = make()
    preset = BOX.model_copy(update={"width": width})
    assert frames_of(made(source, preset, output).data) == 4
    result = made(source, preset, output, **bound)
    assert frames_of(result.data) == 1
    still = preset.model_copy(update={"animated": False})
    assert result == made(source, still, output)


@pytest.mark.parametrize("make", ROLLING.values(), ids=ROLLING.keys())
def test_as_many_frames_and_pixels_as_the_bounds_say_are_allowed(make: Callable[[], bytes]) -> None:
    """Catches a bound that is one too low."""
    result = made(make(), max_frames=4, max_megapixels=4 * 80 * 60 / 1e6)
    assert frames_of(result.data) == 4


@pytest.mark.parametrize("name", ROLLING)
@pytest.mark.parametrize("output", [Format.JPEG, Format.PNG, Format.AVIF])
def test_what_is_asked_for_as_a_still_is_one(name: str, output: Format) -> None:
    """Catches an animated AVIF or PNG for a client that named the format."""
    result = made(ROLLING[name](), output=output)
    assert result.format is output
    assert frames_of(result.data) == 1


@pytest.mark.parametrize("name", ROLLING)
def test_a_preset_that_is_not_animated_has_stills(name: str) -> None:
    """Catches an avatar that moves."""
    still = BOX.model_copy(update={"animated": False})
    for output in (None, Format.WEBP):
        assert frames_of(made(ROLLING[name](), still, output).data) == 1


STILL: dict[str, Callable[[], bytes]] = {
    "gif of one frame": lambda: moving.gif([GifFrame(ramp(60, 40))], (60, 40), loops=0),
    "gif of equal frames": lambda: moving.gif([GifFrame(ramp(60, 40))] * 3, (60, 40)),
    "gif whose frames draw nothing": lambda: moving.gif(
        [GifFrame(ramp(60, 40)), GifFrame(plain(3, 60, 40), transparent=3)], (60, 40)
    ),
    "apng of equal frames": lambda: moving.apng([PngFrame(Image.fromarray(PHOTO))] * 3),
    "apng of one frame": lambda: moving.apng([PngFrame(Image.fromarray(PHOTO))]),
    "webp of equal frames": lambda: moving.webp([WebpFrame(Image.fromarray(PHOTO))] * 3, (80, 60)),
    "webp of one frame": lambda: moving.webp([WebpFrame(Image.fromarray(PHOTO))], (80, 60)),
}


@pytest.mark.parametrize("make", STILL.values(), ids=STILL.keys())
@pytest.mark.parametrize("width", [40, 400])
def test_what_only_loops_through_one_picture_is_a_still(
    make: Callable[[], bytes], width: int
) -> None:
    """Catches a GIF of 3000 pixels beside the box, and an animation of nothing."""
    source = make()
    preset = BOX.model_copy(update={"width": width})
    for output in (None, Format.WEBP):
        result = made(source, preset, output)
        assert result == made(source, preset.model_copy(update={"animated": False}), output)
        assert frames_of(result.data) == 1
    with Image.open(BytesIO(made(source, preset).data)) as image:
        assert image.width <= width
        assert image.format == ("PNG" if source.startswith(b"\x89PNG") else "JPEG")


def test_frames_that_look_alike_once_they_are_small_are_a_still() -> None:
    """Catches an animation of one frame, which no decoder of them takes."""
    frames = [Image.new("RGB", (400, 400), "white") for _ in range(2)]
    frames[1].putpixel((200, 200), (254, 255, 255))
    source = moving.apng([PngFrame(frame) for frame in frames])
    result = made(source, BOX.model_copy(update={"width": 4}))
    assert frames_of(result.data) == 1
    assert result.format is Format.PNG


@pytest.mark.parametrize("name", ROLLING)
@pytest.mark.parametrize("output", [None, Format.WEBP])
def test_no_moving_result_is_larger_than_a_source_of_the_same_format(
    name: str, output: Format | None
) -> None:
    """Catches a photograph in a GIF that scaling made larger, a limit that is not passed on, and a
    still for a WebP that only another format has in fewer bytes."""
    frames = [Image.fromarray(np.roll(sources.pixel_art(160, 120), 8 * at, 1)) for at in range(6)]
    options: dict[str, dict[str, object]] = {"avif": {"quality": 30}, "webp": {"lossless": True}}
    sources_ = [
        ROLLING[name](),
        moving.saved({"apng": "PNG"}.get(name, name), frames, **options.get(name, {})),
    ]
    for source in sources_:
        for width in (40, 79, 159):
            result = made(source, BOX.model_copy(update={"width": width}), output)
            if output is not None and name != "webp":
                assert result.format is output
                assert frames_of(result.data) > 1
            elif frames_of(result.data) > 1:
                assert len(result.data) <= len(source)
            else:
                still = BOX.model_copy(update={"width": width, "animated": False})
                assert result == made(source, still, output)


def small() -> bytes:
    """An AVIF of so few bytes that no WebP has as few."""
    clear = sources.with_alpha(PHOTO)
    frames = [Image.fromarray(np.roll(clear, 20 * at, 1)) for at in range(4)]
    return moving.saved("AVIF", frames, duration=50, quality=10)


def test_a_webp_that_is_asked_for_moves_though_its_source_is_smaller() -> None:
    """Catches the first frame for a client that asked for what moves, in a format that can."""
    source = small()
    result = made(source, BOX.model_copy(update={"width": 80}), Format.WEBP)
    assert frames_of(result.data) == 4
    assert len(result.data) > len(source)


def test_a_webp_of_another_format_has_a_bound_of_its_own(monkeypatch: pytest.MonkeyPatch) -> None:
    """Catches files that fill the memory, as there is no source to compare them with."""
    source = small()
    preset = BOX.model_copy(update={"width": 80})
    length = len(made(source, preset, Format.WEBP).data)
    monkeypatch.setattr(transform, "MOST_ELSE", length)
    assert frames_of(made(source, preset, Format.WEBP).data) == 4
    monkeypatch.setattr(transform, "MOST_ELSE", length - 1)
    assert frames_of(made(source, preset, Format.WEBP).data) == 1


def test_a_gif_that_is_scaled_gets_few_colours_before_it_stops_moving() -> None:
    """Catches the first frame alone of lines in two colours, whose edges scaling makes grey."""
    y, x = np.mgrid[0:120, 0:160]
    frames = [GifFrame((((x + at) // 4 + y // 5) % 2).astype(np.uint8), delay=5) for at in range(6)]
    source = moving.gif(frames, (160, 120), colors=((0, 0, 0), (255, 255, 255)), loops=0)
    result = made(source, BOX.model_copy(update={"width": 120}))
    assert (result.format, frames_of(result.data)) == (Format.GIF, 6)
    assert len(result.data) <= len(source)


def test_a_result_that_is_too_large_is_tried_with_less(monkeypatch: pytest.MonkeyPatch) -> None:
    """Catches a first attempt that is the last one, and one that is tried again as it was."""
    tried: list[int] = []
    write = transform._write

    def note(frames: object, plays: int, order: object, attempt: int, *rest: object) -> bytes:
        tried.append(attempt)
        return write(frames, plays, order, attempt, *rest)  # type: ignore[arg-type]

    monkeypatch.setattr(transform, "_write", note)
    source = rolling("WEBP", quality=70)
    result = made(source, BOX.model_copy(update={"width": 78, "quality": 95}))
    assert frames_of(result.data) == 4
    assert len(result.data) <= len(source)
    assert len(tried) > 1
    assert tried == sorted(set(tried), reverse=True)


@pytest.mark.parametrize("name", ROLLING)
def test_what_fits_is_served_as_it_came(name: str) -> None:
    """Catches an animation that is encoded again for nothing."""
    source = ROLLING[name]()
    result = made(source, BOX.model_copy(update={"width": 80}))
    assert result.format.value == {"apng": "png"}.get(name, name)
    with Image.open(BytesIO(source)) as wanted, Image.open(BytesIO(result.data)) as got:
        for frame in range(4):
            wanted.seek(frame)
            got.seek(frame)
            assert got.convert("RGBA").tobytes() == wanted.convert("RGBA").tobytes()


def test_a_frame_that_is_damaged_ends_the_animation_before_it() -> None:
    """Catches a 422 or 500 for a file that browsers show."""
    whole = rolling("GIF", 3)
    assert frames_of(made(whole[:-40]).data) == 2
    assert frames_of(made(whole[:-40], output=Format.WEBP).data) == 2
    two = rolling("GIF", 2)
    assert made(two[:-40]).format is Format.JPEG


async def test_a_worker_gives_up_on_frames_before_it_is_ended() -> None:
    """Catches a bound of time that is looked at by nobody: the worker would die, as of a bomb."""
    random = np.random.default_rng(1)
    noise = random.integers(0, 256, (500, 700), dtype=np.uint8)
    palette = tuple(map(tuple, random.integers(0, 256, (256, 3)).tolist()))
    frames = [GifFrame(np.roll(noise, 10 * at, 1)) for at in range(30)]
    source = moving.gif(frames, (700, 500), colors=palette)
    sections = {"animation": {"max_seconds": 0.3}, "process": {"threads": 1}}
    config = Config.model_validate({**sections, "fetch": {"max_source_mb": 32}})
    deaths: list[str] = []
    pool = ProcessingPool(config, on_death=deaths.append)
    preset = BOX.model_copy(update={"width": 600})
    async with trio.open_nursery() as nursery:
        await nursery.start(pool.run)
        result = await pool.process(source, preset, Format.WEBP)
        nursery.cancel_scope.cancel()
    assert deaths == []
    assert result.format is Format.WEBP
    assert frames_of(result.data) == 1
    still = preset.model_copy(update={"animated": False})
    assert result.data == made(source, still, Format.WEBP).data


@pytest.mark.parametrize("name", ROLLING)
def test_the_worker_may_compute_for_longer_than_the_bound_of_what_moves(name: str) -> None:
    """Catches a worker that is ended while it makes the first frame, which is all that is left."""
    source = ROLLING[name]()
    bounds = AnimationBounds(max_seconds=3)
    estimate = partial(memory.estimate, source, output=None, max_pixels=10**6, animation=bounds)
    still = estimate(preset=BOX.model_copy(update={"animated": False}))
    assert estimate(preset=BOX).cpu > bounds.max_seconds + 2 * still.cpu - 1e-9
    assert estimate(preset=BOX).memory > still.memory
    config = Config.model_validate({"animation": {"max_seconds": 3}})
    assert estimate(preset=BOX).cpu <= memory.most_seconds(config)
    assert longest(memory.most_seconds(config)) > memory.most_seconds(config)


def test_a_picture_that_cannot_move_is_estimated_as_a_still() -> None:
    """Catches seconds and memory of an animation for every photograph of an animated preset."""
    still = BOX.model_copy(update={"animated": False})
    for source in (sources.png(PHOTO), sources.webp(PHOTO), sources.avif(PHOTO)):
        found, wanted = (
            memory.estimate(source, preset, None, max_pixels=10**6) for preset in (BOX, still)
        )
        assert found == wanted


def test_a_canvas_of_too_many_pixels_does_not_move(monkeypatch: pytest.MonkeyPatch) -> None:
    """Catches canvases of fifty megapixels, several of which are in memory at once."""
    source = rolling("GIF")
    monkeypatch.setattr(transform, "MAX_CANVAS", 80 * 60)
    assert frames_of(made(source).data) == 4
    monkeypatch.setattr(transform, "MAX_CANVAS", 80 * 60 - 1)
    assert frames_of(made(source).data) == 1


@pytest.mark.parametrize("name", ROLLING)
def test_an_encoder_that_gets_no_memory_leaves_the_first_frame(
    name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Catches a 422 or 500 for what an encoder says in its own words."""
    source = ROLLING[name]()
    still = made(source, BOX.model_copy(update={"animated": False}))
    save = Image.Image.save

    def fail(image: Image.Image, *arguments: object, **options: object) -> None:
        if failing:
            raise RuntimeError("Failed to encode image: Encoding of alpha plane failed")
        save(image, *arguments, **options)  # type: ignore[arg-type]

    write = transform._write

    def writing(*arguments: object) -> bytes:
        failing.append(True)
        try:
            return write(*arguments)  # type: ignore[arg-type]
        finally:
            failing.clear()

    failing: list[bool] = []
    monkeypatch.setattr(Image.Image, "save", fail)
    monkeypatch.setattr(transform, "_write", writing)
    assert made(source) == still


@pytest.mark.parametrize("output", [None, Format.WEBP])
def test_a_heif_sequence_is_its_first_frame(output: Format | None) -> None:
    """Catches a refusal, and a HEIC that is served although browsers do not show it."""
    pytest.importorskip("pillow_heif")
    frames = [sources.photo(128, 128, seed) for seed in (1, 2, 3)]
    result = made(heif.sequence(frames, brands=b"hevc\0\0\0\0msf1hevc"), output=output)
    assert result.format is (output or Format.JPEG)
    assert frames_of(result.data) == 1


def test_a_drawn_png_that_is_scaled_goes_on_moving_with_one_palette() -> None:
    """Catches four bytes for each pixel that has one of a few colours: it would be larger than its
    source, so that the first frame alone is left."""
    frames = []
    for at in range(5):
        frame = Image.new("RGB", (600, 400), "white")
        draw = ImageDraw.Draw(frame)
        draw.rectangle((0, 300, 600, 400), fill=(30, 120, 60))
        draw.ellipse((100 * at, 100, 100 * at + 120, 220), fill=(220, 40, 30))
        frames.append(frame)
    source = moving.saved("PNG", frames)
    result = made(source, BOX.model_copy(update={"width": 400}))
    assert frames_of(result.data) == 5
    assert len(result.data) <= len(source)
    with Image.open(BytesIO(result.data)) as image:
        for at, frame in enumerate(frames):
            image.seek(at)
            wanted = np.asarray(frame.resize(image.size, Image.Resampling.HAMMING)).astype(int)
            shown = np.asarray(image.convert("RGB"))
            assert np.abs(shown - wanted).mean() < 0.2
            assert (shown[:60] == 255).all()  # no mean of white and what is nearly so
