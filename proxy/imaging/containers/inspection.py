"""Reads the facts of a file of any format. Pure."""

from __future__ import annotations

from dataclasses import replace

from proxy.imaging.containers import apng, gif, isobmff, isobmff_color, jpeg, webp
from proxy.imaging.containers.facts import Facts
from proxy.model.formats import Format


def inspect(format_: Format, data: bytes) -> Facts:
    """Return the facts of ``data``; ``format_`` is the result of ``formats.sniff``."""
    match format_:
        case Format.JPEG:
            return jpeg.inspect(data)
        case Format.PNG:
            return apng.inspect(data)
        case Format.WEBP:
            return webp.inspect(data)
        case Format.GIF:
            return gif.inspect(data)
        case Format.AVIF:
            return replace(isobmff.inspect(data), profile=isobmff_color.profile_of(data))
        case Format.HEIC:
            picture = isobmff.with_item(data)
            return Facts(picture, profile=isobmff_color.profile_of(picture))
        case Format.JSON:
            raise ValueError("no picture")
