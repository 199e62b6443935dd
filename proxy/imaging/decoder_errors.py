"""Tells what a decoder raises for bad data from what is a defect of ours. Pure."""

from __future__ import annotations

import contextlib
import struct
import zlib
from collections.abc import Iterator

from PIL import Image, ImageCms

from proxy.errors import ImageProxyError, ImageTooLarge, UndecodableImage

_OF_DATA = (
    EOFError,
    OverflowError,
    RuntimeError,
    SyntaxError,
    ValueError,
    ImageCms.PyCMSError,
    struct.error,
    zlib.error,
)
"""What Pillow, its codecs, Little CMS and libheif raise for damaged data, beside an OSError."""

_AT_AN_END = (IndexError, KeyError)
"""What Pillow itself turns into one of these where a header is damaged. But it does so with a
TypeError too, which can be a defect."""

_OF_PLUGIN: dict[str, tuple[type[Exception], ...]] = {
    # It divides by the time scale of a sequence.
    "PIL.AvifImagePlugin": (ZeroDivisionError,),
}
"""What else a module raises for bad data."""


@contextlib.contextmanager
def decoding() -> Iterator[None]:
    """Turn what a decoder raises for bad data into an error of ours.

    Anything else goes through, as a defect of ours: a module or a file that a decoder does not
    find, a wrong call of it.

    Raises:
        UndecodableImage: the picture is damaged.
        ImageTooLarge: there is not enough memory for it.
    """
    try:
        yield
    except ImageProxyError:
        raise
    except (MemoryError, Image.DecompressionBombError) as error:
        raise ImageTooLarge(f"{type(error).__name__}: {error}") from error
    except Exception as error:
        if _blames_data(error):
            raise UndecodableImage(f"{type(error).__name__}: {error}") from error
        raise


def _blames_data(error: Exception) -> bool:
    cause = error.__cause__
    if isinstance(cause, Exception) and not isinstance(cause, _AT_AN_END):
        return _blames_data(cause) and _is_of_data(error)
    return _is_of_data(error)


def _is_of_data(error: Exception) -> bool:
    if isinstance(error, OSError):
        # One of the system has a number: no such file, no permission.
        return error.errno is None
    return isinstance(error, (*_OF_DATA, *_OF_PLUGIN.get(_module_of(error), ())))


def _module_of(error: Exception) -> str:
    """The name of the module that raised ``error``."""
    module = ""
    trace = error.__traceback__
    while trace is not None:
        module = trace.tb_frame.f_globals.get("__name__", "")
        trace = trace.tb_next
    return module
