"""Limits of pictures by which codecs are used, and memory is estimated. Pure."""

from __future__ import annotations

from proxy.model.formats import Format

MAX_SIDES = {Format.JPEG: 65_500, Format.WEBP: 16_383, Format.AVIF: 32_768}
"""Maximum pixels of a side of a result: what its format, or its encoder, can have."""

ENCODES = 6
"""How often a picture is encoded at the most."""

MAX_CANVAS = 12_000_000
"""Pixels of the largest canvas that moves: several of them are in memory at once."""

MOST_ELSE = 16 << 20
"""Bytes of a moving result in another format than its source, if that has fewer."""
