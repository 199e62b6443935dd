"""Tells what an encoder raises for lack of memory from what is a defect of ours. Pure."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator

from deflate import DeflateError

from proxy.errors import ImageTooLarge


@contextlib.contextmanager
def encoding() -> Iterator[None]:
    """Turn what Pillow's encoders and libdeflate raise without memory into an error of ours.

    libwebp and libavif then fail like any other encoder, without a ``MemoryError``; pixels and
    settings, which are ours, give them no other reason. An error of the system has a number, and
    goes through as a defect.

    Raises:
        ImageTooLarge: there is not enough memory for the picture.
    """
    try:
        yield
    except (MemoryError, RuntimeError, ValueError, OSError, DeflateError) as error:
        if isinstance(error, OSError) and error.errno is not None:
            raise
        raise ImageTooLarge(f"{type(error).__name__}: {error}") from error
