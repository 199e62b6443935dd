"""A worker process: confines itself, then renders its jobs.

All imports, and the first use of each codec, are behind it when it is forked (``fork_server``).
It ends when its socket closes. So it never outlives the service, even if the service was killed.
"""

from __future__ import annotations

import ctypes
import os
import resource
import socket
import struct
import sys
import traceback
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from functools import cache, lru_cache
from io import BytesIO
from itertools import product
from mmap import mmap
from types import ModuleType
from typing import NamedTuple, NoReturn

from PIL import AvifImagePlugin, Image, ImageCms

from proxy.errors import ImageProxyError
from proxy.imaging.decoders import decoders
from proxy.imaging.pipeline import render, render_each
from proxy.imaging.recipes import Outcome, Recipe, Rendered
from proxy.imaging.workers import sandbox
from proxy.imaging.workers.imports import CODECS, LateImports, import_all, refuse_imports
from proxy.imaging.workers.ipc import ERRORS, JOB, MAX_CAUSE, PID, RECIPES, Head, Ready, Status
from proxy.model.formats import OUTPUTS, Format
from proxy.model.picture_info import INFO_PRESET
from proxy.model.presets import Preset
from proxy.shared.free_memory import trimmer

pillow_heif: ModuleType | None = None
with suppress(ImportError):
    import pillow_heif

Work = Callable[[bytes, Sequence[Recipe], int], Iterator[Outcome]]
"""Makes results from a source, its recipes, and the maximum number of the source's pixels."""

_STATUSES = {error: status for status, error in ERRORS.items()}

THREADS = 0 if pillow_heif is None else 16
"""Threads that codecs may have beside the first one. Only the decoder of HEIC starts any: one for
each tile, one after the other, but the kernel counts each for a moment after its end."""

_TRIM_ABOVE = 16_000_000
"""Pixels; after a larger picture, free memory is returned to the system. That takes a moment."""


class Given(NamedTuple):
    """What a worker has from the service.

    Attributes:
        connection: its end of the socket.
        source: where each source is, from the beginning; or a video, whole.
    """

    connection: socket.socket
    source: mmap
    limits: sandbox.Limits


# <malloc.h>
_M_TRIM_THRESHOLD, _M_MMAP_THRESHOLD = -1, -3

_LARGEST_KEPT = 32 << 20
"""Bytes, the most that glibc allows. It maps larger buffers, and unmaps them when freed."""

_KEPT = 64 << 20
"""If more bytes than these are free at the end of a heap, they are returned to the system."""


IDLE_SECONDS = 5
"""After so long without a job, what is kept free is returned to the system."""


def keep_freed_memory() -> bool:
    """Tell glibc to keep freed memory for the next picture.

    By default, buffers of 4 to 20 MB are returned to the system each time, and the kernel must
    supply and zero every page again for the next picture: up to a third of a large picture's CPU
    time. A process keeps up to ``_KEPT`` more bytes until it is idle.

    Returns:
        False if the C library has no such setting (musl, macOS).
    """
    try:
        mallopt = ctypes.CDLL(None).mallopt
    except (OSError, AttributeError):
        return False
    kept = mallopt(_M_TRIM_THRESHOLD, _KEPT)
    return bool(mallopt(_M_MMAP_THRESHOLD, _LARGEST_KEPT) and kept)


def serve(given: Given, work: Work) -> NoReturn:
    """Confine this process, then answer each job with the outcomes of ``work``."""
    connection = given.connection
    try:
        _introduce(connection)
    except BrokenPipeError:  # the service has ended meanwhile
        os._exit(0)
    patience = struct.pack("ll", IDLE_SECONDS, 0)  # struct timeval
    connection.setsockopt(socket.SOL_SOCKET, socket.SO_RCVTIMEO, patience)
    # Standard error becomes /dev/null: a picture can control what libraries print.
    os.dup2(1, 2)
    # Those of libraries too: libffi 3.5 keeps its own file open.
    _close_all_but(connection.fileno())
    found = _decoders()
    ready = Ready(missing=sandbox.confine(given.limits), decoders=found).model_dump_json().encode()
    late = refuse_imports()
    trim = trimmer()
    with suppress(OSError):
        _send(connection, 0, _Answer(Status.READY, ready))
        while head := _next_job(connection, trim):
            recipes_length, source_length, max_pixels = JOB.unpack(head)
            recipes = _recipes(_receive(connection, recipes_length))
            _answer_each(connection, work(given.source[:source_length], recipes, max_pixels), late)
            if max_pixels > _TRIM_ABOVE:
                trim()
    # The normal exit of the interpreter makes system calls that are forbidden now.
    os._exit(0)


def _introduce(connection: socket.socket) -> None:
    """Say which process this is, and give the service a way to see how much memory it has.

    The service could not open that file itself where processes that hide their memory are hidden.
    """
    descriptors = []
    with suppress(OSError):
        descriptors.append(os.open("/proc/self/statm", os.O_RDONLY))
    socket.send_fds(connection, [PID.pack(os.getpid())], descriptors)


def _close_all_but(kept: int) -> None:
    """Close every descriptor but ``kept`` and the three standard ones."""
    limit, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
    os.closerange(3, kept)
    os.closerange(kept + 1, limit)


def render_job(source: bytes, recipes: Sequence[Recipe], max_pixels: int) -> Iterator[Outcome]:
    """Run the pipeline: the ``Work`` of a real worker."""
    return render_each(source, recipes, max_pixels=max_pixels)


def warm_up(packages: Sequence[str] = CODECS) -> None:
    """Make every codec do its first-use setup now, because no file can be opened later."""
    import_all(packages)
    Image.MAX_IMAGE_PIXELS = None  # our own limit decides
    # The pool keeps every core busy already.
    AvifImagePlugin.DEFAULT_MAX_THREADS = 1
    if pillow_heif is not None:
        pillow_heif.options.DECODE_THREADS = 0  # 1 would be a thread beside the first
    warnings.simplefilter("ignore")
    profile = ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes()
    cover = Preset(width=8, height=8, fit="cover", quality=80)
    moving = Preset(width=8, fit="contain", quality=80, animated=True)
    for source in (*OUTPUTS, Format.GIF):
        out = BytesIO()
        picture = Image.radial_gradient("L").convert("P" if source is Format.GIF else "RGB")
        picture.resize((24, 16)).save(out, source.name, icc_profile=profile)
        for output, preset in product((None, *OUTPUTS), (cover, moving)):
            render(out.getvalue(), preset, output, max_pixels=1000)
        render(out.getvalue(), INFO_PRESET, Format.JSON, max_pixels=1000)
    for stump in _STUMPS:
        with suppress(ImageProxyError):
            render(stump, cover, None, max_pixels=1000)
    _decoders()


@cache
def _decoders() -> dict[str, str]:
    """What this process has imported, asked for once before it is forked."""
    return decoders(sys.modules.get)


_STUMPS = (
    b"\xff\xd8\xff\xe0",
    b"\x89PNG\r\n\x1a\n\0\0\0\rIHDR",
    b"RIFF\x10\0\0\0WEBPVP8 ",
    b"\0\0\0\x14ftypavif\0\0\0\0avif",
    b"\0\0\0\x14ftypheic\0\0\0\0heic",
    b"GIF89a\1\0\1\0\0\0\0,",
)
"""Truncated files: the handling of errors also imports modules."""


@lru_cache(maxsize=64)
def _recipes(data: bytes) -> tuple[Recipe, ...]:
    return RECIPES.validate_json(data)


def _answer_each(connection: socket.socket, outcomes: Iterator[Outcome], late: LateImports) -> None:
    for place, outcome in enumerate(outcomes):
        answer = _answer_of(outcome)
        if names := late.told():
            # What the library did without the module need not be what it does in a thread.
            cause = f"imported too late: {', '.join(names)}; {answer.cause()}"
            answer = _Answer(Status.DEFECT, _cut(cause))
        del outcome  # an error keeps its frames alive, and with them pixels
        _send(connection, place, answer)


class _Answer(NamedTuple):
    status: Status
    data: bytes
    format: Format = Format.JPEG

    def cause(self) -> str:
        return self.status.name if self.status is Status.DONE else self.data.decode()


def _answer_of(outcome: Outcome) -> _Answer:
    match outcome:
        case Rendered(data, format_):
            return _Answer(Status.DONE, data, format_)
        case ImageProxyError() as error:
            return _Answer(_STATUSES.get(type(error), Status.DEFECT), _cut(error.cause))
        case MemoryError():
            return _Answer(Status.TOO_LARGE, b"MemoryError")
        case error:
            # Without source lines, because the sandbox cannot read the files.
            frame = traceback.extract_tb(error.__traceback__)[-1]
            cause = f"{type(error).__name__}: {error} ({frame.filename}:{frame.lineno})"
            return _Answer(Status.DEFECT, _cut(cause))


def _cut(cause: str) -> bytes:
    return cause.encode("ascii", "backslashreplace")[:MAX_CAUSE]


def _send(connection: socket.socket, place: int, answer: _Answer) -> None:
    status, data, format_ = answer
    # In one piece: the service wakes up once.
    connection.sendall(Head(place, status, format_, len(data)).pack() + data)


def _next_job(connection: socket.socket, trim: Callable[[], object]) -> bytes:
    """Wait for a job, and return its first bytes, or b"" at the end of the stream."""
    is_trimmed = False
    while True:
        try:
            return _receive(connection, JOB.size)
        except BlockingIOError:  # nothing came for ``IDLE_SECONDS``
            if not is_trimmed:
                trim()
            is_trimmed = True


def _receive(connection: socket.socket, length: int) -> bytes:
    """Return ``length`` bytes, or b"" at the end of the stream; OSError if it ends in between."""
    data = connection.recv(length, socket.MSG_WAITALL) if length else b""
    if 0 < len(data) < length:
        raise ConnectionResetError
    return data
