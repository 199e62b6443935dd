"""Makes the poster of a video: the first frame that shows something, then as any picture.

FFmpeg demuxes and decodes; its frame becomes a PNG that names its colours, so that sRGB, the preset
and the encoder are those of the pipeline. Needs the extra ``video``. Synchronous, without I/O.
"""

from __future__ import annotations

import contextlib
import struct
import zlib
from collections.abc import Iterator, Sequence
from io import BytesIO
from mmap import mmap
from types import ModuleType
from typing import TYPE_CHECKING, Any

from PIL import Image

from proxy.errors import ImageProxyError, ImageTooLarge, UndecodableImage, UnsupportedImage
from proxy.imaging.color.code_points import BT_709, HLG, PQ, PRIMARIES, SRGB_CURVE
from proxy.imaging.pipeline import render_each
from proxy.imaging.recipes import Outcome, Recipe
from proxy.model.formats import describe_other, sniff

if TYPE_CHECKING:
    from av.video.frame import VideoFrame
    from av.video.stream import VideoStream

av: ModuleType | None = None
with contextlib.suppress(ImportError):
    import av

if av is not None:
    # Its messages quote the file; and its lock must not be held where a worker is forked.
    av.logging.set_level(None)

CODECS = frozenset({"h264", "hevc", "vp8", "vp9", "av1", "libdav1d", "mpeg4"})
"""The decoders that a file may choose, by FFmpeg's names."""

LOOKED_AT = 1.0
"""Seconds of the video in which a frame that is not black is looked for."""

MOST_FRAMES = 150
"""Frames that are decoded for it, whatever their time stamps say."""

_SEEN_LUMA, _SEEN_SHARE = 48, 64
"""A frame is not black if one of so many samples is brighter than this, of 255."""

_GRID = 64
"""Samples each way."""

_LENIENT: dict[str, str] = {}
"""Metadata that are no UTF-8 spoil no video: PyAV 19 always takes them, and lacks the argument."""
if av is not None and int(av.__version__.partition(".")[0]) < 19:
    _LENIENT["metadata_errors"] = "ignore"

_OPTIONS = {
    "probesize": "5000000",
    "analyzeduration": "2000000",
    "enable_drefs": "0",
    # Opening a file already decodes the beginning of each stream, sound too.
    "codec_whitelist": ",".join(sorted(CODECS)),
}


def can_read() -> bool:
    """Whether there are decoders of videos."""
    return av is not None


def render_posters(
    source: mmap | BytesIO, recipes: Sequence[Recipe], *, max_pixels: int
) -> Iterator[Outcome]:
    """Transform the poster of a video by each recipe, like ``pipeline.render_each``."""
    try:
        picture = poster(source, max_pixels=max_pixels)
    except ImageProxyError as error:
        for _ in recipes:
            yield error.fresh()
        return
    yield from render_each(picture, recipes, max_pixels=max_pixels)


def poster(source: mmap | BytesIO, *, max_pixels: int) -> bytes:
    """Return the first frame of a video that is not black, upright, as a PNG.

    Raises:
        UnsupportedImage: it is no MP4, MOV or WebM, or has no video that can be decoded.
        ImageTooLarge: its frames have more than ``max_pixels``, or need more memory.
        UndecodableImage: it is corrupt or truncated before its first frame.
    """
    source.seek(0)
    head = source.read(64)
    demuxer = _demuxer_of(head)
    if av is None or demuxer is None:
        raise UnsupportedImage(describe_other(head))
    source.seek(0)
    try:
        with av.open(source, "r", format=demuxer, options=_OPTIONS, **_LENIENT) as container:
            return _poster_of(container, max_pixels)
    except (MemoryError, av.error.MemoryError) as error:
        raise ImageTooLarge("FFmpeg has not enough memory") from error
    except (av.error.FFmpegError, ValueError, OverflowError, EOFError) as error:
        raise UndecodableImage(f"{type(error).__name__}: {error}") from error


def _demuxer_of(head: bytes) -> str | None:
    """The name of the one demuxer that may read the file, by its first bytes. Total."""
    if head[4:8] == b"ftyp" and sniff(head) is None:
        return "mov"
    if head.startswith(b"\x1a\x45\xdf\xa3"):  # EBML, RFC 8794
        return "matroska"
    return None


def _poster_of(container: object, max_pixels: int) -> bytes:
    streams: Sequence[VideoStream] = container.streams.video  # type: ignore[attr-defined]
    if not streams:
        raise UnsupportedImage("a file without video")
    # Covers and previews are streams too, of other codecs; players pass over them.
    stream = next(filter(_can_decode, streams), None)
    if stream is None:
        codecs = [each.codec_context.name if each.codec_context else "unknown" for each in streams]
        raise UnsupportedImage(f"video codecs {codecs}"[:200])
    codec = stream.codec_context
    _check(codec.width, codec.height, max_pixels)
    codec.thread_count = 1
    codec.options = {"max_pixels": str(max_pixels)}
    chosen = _shown(container.decode(stream))  # type: ignore[attr-defined]
    if chosen is None:
        raise UndecodableImage("no frame")
    return _as_png(chosen, _shape(chosen, stream, max_pixels))


def _can_decode(stream: VideoStream) -> bool:
    codec = stream.codec_context
    return codec is not None and codec.name in CODECS


def _shown(frames: Iterator[VideoFrame]) -> VideoFrame | None:
    """The first frame of the first second that is not black, else the first one."""
    first: VideoFrame | None = None
    try:
        for number, frame in enumerate(frames):
            if first is None:
                first = frame
            elif number >= MOST_FRAMES or (frame.time or 0) - (first.time or 0) > LOOKED_AT:
                break
            if not _is_black(frame):
                return frame
    except (av.error.FFmpegError, EOFError):  # type: ignore[union-attr]
        # What follows is damaged; a player too has shown the beginning by then.
        if first is None:
            raise
    return first


def _is_black(frame: VideoFrame) -> bool:
    grid = frame.reformat(
        _GRID,
        _GRID,
        "gray",
        src_colorspace=_matrix_of(frame),
        interpolation="AREA",
        src_color_range=_range_of(frame),
        dst_color_range="JPEG",
        threads=1,
    )
    samples = bytes(grid.planes[0])
    return sum(sample > _SEEN_LUMA for sample in samples) * _SEEN_SHARE < len(samples)


def _shape(frame: VideoFrame, stream: VideoStream, max_pixels: int) -> tuple[int, int]:
    """The size of a frame with square pixels, before it is turned."""
    width, height = frame.width, frame.height
    aspect = stream.sample_aspect_ratio or stream.codec_context.sample_aspect_ratio
    # As browsers: the side grows that makes the picture larger.
    if aspect and 1 < aspect <= 16:
        width = round(width * aspect)
    elif aspect and 1 / 16 <= aspect < 1:
        height = round(height / aspect)
    _check(width, height, max_pixels)
    return width, height


def _check(width: int, height: int, max_pixels: int) -> None:
    if width * height > max_pixels:
        limit = f"process.max_megapixels = {max_pixels / 1_000_000:g}"
        raise ImageTooLarge(f"frames of {width} x {height} pixels are over {limit}")


def _as_png(frame: VideoFrame, size: tuple[int, int]) -> bytes:
    shown = frame.reformat(
        *size,
        "rgb24",
        src_colorspace=_matrix_of(frame),
        interpolation="BICUBIC",
        src_color_range=_range_of(frame),
        dst_color_range="JPEG",
        threads=1,
    )
    turn = _turn_of(frame)
    colors = _colors_of(frame)
    plane = shown.planes[0]
    image = Image.frombuffer("RGB", size, bytes(plane), "raw", "RGB", plane.line_size, 1)
    out = BytesIO()
    upright = image if turn is None else image.transpose(turn)
    # It never leaves this process: to deflate it would be in vain.
    upright.save(out, "PNG", compress_level=0)
    data = out.getvalue()
    if colors is None:
        return data
    body = b"cICP" + bytes((*colors, 0, 1))  # PNG, Third Edition, 11.3.2.6
    chunk = struct.pack(">I", 4) + body + struct.pack(">I", zlib.crc32(body))
    return data[:_AFTER_IHDR] + chunk + data[_AFTER_IHDR:]


_AFTER_IHDR = 33

_TURNS = {
    (False, 1, 1): None,
    (False, -1, 1): Image.Transpose.FLIP_LEFT_RIGHT,
    (False, 1, -1): Image.Transpose.FLIP_TOP_BOTTOM,
    (False, -1, -1): Image.Transpose.ROTATE_180,
    (True, 1, 1): Image.Transpose.TRANSPOSE,
    (True, 1, -1): Image.Transpose.ROTATE_90,
    (True, -1, 1): Image.Transpose.ROTATE_270,
    (True, -1, -1): Image.Transpose.TRANSVERSE,
}
"""By whether rows become columns, and which way the new x and y grow along the old ones."""


def _turn_of(frame: VideoFrame) -> Image.Transpose | None:
    """The quarter turn or mirror that is nearest to the display matrix (ISO/IEC 14496-12, 8.3.2).

    There x' = ax + cy and y' = bx + dy.
    """
    side: Any = frame.side_data.get("DISPLAYMATRIX")
    if side is None:
        return None
    a, b, _, c, d = struct.unpack_from("=5i", bytes(side))
    swaps = abs(a) + abs(d) < abs(b) + abs(c)
    across, down = (c, b) if swaps else (a, d)
    return _TURNS[swaps, -1 if across < 0 else 1, -1 if down < 0 else 1]


# Matrix coefficients of H.273, table 4, by FFmpeg's names of what it converts.
_MATRICES: dict[int, str | int] = {
    1: "ITU709",
    4: "FCC",
    5: "ITU601",
    6: "ITU601",
    7: "SMPTE240M",
    9: 9,
    10: 9,
}

_HD = 720
"""Lines from which on what says nothing is BT.709, as in players; below, BT.601."""


def _matrix_of(frame: VideoFrame) -> str | int | None:
    if frame.format.name.startswith(("rgb", "gbr", "bgr", "gray")):
        return None
    return _MATRICES.get(int(frame.colorspace)) or ("ITU709" if frame.height >= _HD else "ITU601")


def _range_of(frame: VideoFrame) -> str:
    is_full = int(frame.color_range) == 2 or frame.format.name.startswith(("yuvj", "rgb", "gbr"))
    return "JPEG" if is_full else "MPEG"


def _colors_of(frame: VideoFrame) -> tuple[int, int] | None:
    """Primaries and transfer of H.273, or None for those of sRGB.

    Browsers show the usual transfers of video as they stand, so they are sRGB's here too.
    """
    primaries, transfer = int(frame.color_primaries), int(frame.color_trc)
    primaries = primaries if primaries in PRIMARIES else BT_709
    transfer = transfer if transfer in (PQ, HLG) else SRGB_CURVE
    return None if (primaries, transfer) == (BT_709, SRGB_CURVE) else (primaries, transfer)
