"""Which libraries decode strangers' bytes here, and their versions.

After each hole in one of them the first question is which one runs.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from importlib import import_module
from types import ModuleType

import deflate
from PIL import features

_OF_PILLOW = {
    "jpg": ("libjpeg_turbo", "libjpeg-turbo"),
    "zlib": ("zlib", "zlib"),
    "webp": ("webp", "libwebp"),
    "avif": ("avif", "libavif"),
}
"""What Pillow calls a format's feature and its library, and what the library calls itself."""


def imported(name: str) -> ModuleType | None:
    """Return the module ``name``, or None if it is not installed."""
    try:
        return import_module(name)
    except ImportError:
        return None


def decoders(find: Callable[[str], ModuleType | None] = imported) -> dict[str, str]:
    """Return the version of each library that a picture may reach, by its name.

    Args:
        find: returns an optional package. With ``sys.modules.get``: what this process has.
    """
    found = {}
    for feature, (library, name) in _OF_PILLOW.items():
        if not features.check(feature):
            continue
        # Without libjpeg-turbo it is another libjpeg, whose version the format has.
        version = features.version(library) or features.version(feature)
        found[name] = version or "of unknown version"
    # PNGs reach this first; it does not say which libdeflate it has.
    found["deflate"] = deflate.__version__
    if "libavif" in found and (avif := find("PIL._avif")) is not None:
        found |= _codecs(avif.codec_versions())
    if (heif := find("pillow_heif")) is not None:
        info = heif.libheif_info()
        found["libheif"] = info["libheif"]
        for name, text in info.get("decoders", {}).items():
            found[name] = _version_in(text)
    if (av := find("av")) is not None:
        version = getattr(av, "ffmpeg_version_info", None)
        found["FFmpeg"] = version or _joined(av.library_versions["libavcodec"])
    return found


def _codecs(text: str) -> dict[str, str]:
    """Parse ``dav1d [dec]:1.5.3-0-gb546257, aom [enc]:3.14.1``."""
    return dict(re.findall(r"([\w-]+)(?: \[[^]]*\])?:([^,\s]+)", text))


def _version_in(text: str) -> str:
    found = re.search(r"[0-9]+(?:\.[0-9]+)+", text)
    return found[0] if found else text


def _joined(version: tuple[int, ...]) -> str:
    return ".".join(map(str, version))
