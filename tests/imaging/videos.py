"""Videos, made by PyAV."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from io import BytesIO
from typing import Any

import av
from PIL import Image

RED, BLACK = (200, 30, 30), (0, 0, 0)


def video(
    frames: Sequence[Image.Image | tuple[int, int, int]] = (BLACK, BLACK, RED, RED),
    *,
    size: tuple[int, int] = (96, 64),
    container: str = "mp4",
    codec: str = "libx264",
    rate: int = 10,
    set_up: Callable[[Any], None] = lambda stream: None,
) -> bytes:
    """A video of ``frames``, each a picture or a colour.

    Args:
        rate: frames a second.
        set_up: called with the stream before its encoder is opened.
    """
    out = BytesIO()
    av.logging.set_level(None)
    opened: Any = av.open(out, "w", format=container)
    frame_of: Any = av.VideoFrame.from_image
    with opened as file:
        stream = file.add_stream(codec, rate=rate)
        stream.width, stream.height = size
        stream.pix_fmt = "yuv420p"
        stream.codec_context.thread_count = 1
        set_up(stream)
        for frame in frames:
            image = frame if isinstance(frame, Image.Image) else Image.new("RGB", size, frame)
            for packet in stream.encode(frame_of(image)):
                file.mux(packet)
        for packet in stream.encode():
            file.mux(packet)
    return out.getvalue()


def turned(data: bytes, matrix: Sequence[int]) -> bytes:
    """An MP4 with the first four of a display matrix (ISO/IEC 14496-12, 8.3.2): a, b, c, d."""
    at = data.index(b"tkhd") + 4 + 40
    a, b, c, d = (number << 16 for number in matrix)
    values = (a, b, 0, c, d, 0, 0, 0, 1 << 30)
    packed = b"".join(value.to_bytes(4, "big", signed=True) for value in values)
    return data[:at] + packed + data[at + 36 :]


def with_frames_elsewhere(data: bytes, file: bytes) -> bytes:
    """A MOV whose frames are in another file of the same folder, by an alias (QuickTime "alis")."""
    at = data.index(b"dref") - 4
    old = int.from_bytes(data[at : at + 4], "big")
    folders = bytes((0, 1, 0, 1))
    path = b"vol:folder:" + file
    alias = bytes(10) + b"\3vol".ljust(28, b"\0") + bytes(12)
    alias += bytes((len(file),)) + file.ljust(63, b"\0") + bytes(16) + folders + bytes(16)
    alias += bytes((0, 2, 0, len(path))) + path + bytes(len(path) % 2) + b"\xff\xff\0\0"
    entry = (len(alias) + 12).to_bytes(4, "big") + b"alis" + bytes(4) + alias
    new = (len(entry) + 16).to_bytes(4, "big") + b"dref" + bytes((0, 0, 0, 0, 0, 0, 0, 1)) + entry
    changed = bytearray(data)
    for outer in (b"dinf", b"minf", b"mdia", b"trak", b"moov"):
        size = data.rindex(outer, 0, at) - 4
        grown = int.from_bytes(data[size : size + 4], "big") + len(new) - old
        changed[size : size + 4] = grown.to_bytes(4, "big")
    changed[at : at + old] = new
    return bytes(changed)
