"""Image formats: finds the format of given bytes, and the format of a result. Pure."""

from __future__ import annotations

from enum import StrEnum

from proxy.errors import InvalidFormat


class Format(StrEnum):
    """A format that this service reads or writes.

    ``HEIC`` is never encoded, and ``GIF`` only if it moves. ``JSON`` is what is told of a picture.
    """

    JPEG = "jpeg"
    PNG = "png"
    WEBP = "webp"
    AVIF = "avif"
    GIF = "gif"
    HEIC = "heic"
    JSON = "json"

    @property
    def content_type(self) -> str:
        return "application/json" if self is Format.JSON else f"image/{self.value}"

    @property
    def extension(self) -> str:
        """File name extension, without a dot."""
        return "jpg" if self is Format.JPEG else self.value


SOURCES = tuple(each for each in Format if each is not Format.JSON)
"""The formats that are read."""

OUTPUTS = (Format.JPEG, Format.PNG, Format.WEBP, Format.AVIF)
"""The formats a URL may ask for."""

MOVING = (Format.GIF, Format.WEBP, Format.PNG, Format.AVIF)
"""The formats that can have frames, as sources and as results."""

# Brands of an ISO/IEC 14496-12 "ftyp" box, grouped by the decoder that they need.
_AVIF_BRANDS = frozenset({b"avif", b"avis"})
_HEIC_BRANDS = frozenset({b"heic", b"heix", b"heim", b"heis", b"hevc", b"hevx"})


def parse_output(text: str) -> Format:
    """The output format that a URL asks for; ``jpg`` is ``jpeg``, as clients of Bluesky write it.

    Raises:
        InvalidFormat: ``text`` is not exactly the name or the extension of one of ``OUTPUTS``.
    """
    for format_ in OUTPUTS:
        if text in (format_.value, format_.extension):
            return format_
    raise InvalidFormat(text, (each.value for each in OUTPUTS))


def sniff(data: bytes) -> Format | None:
    """The format of ``data`` by its first bytes, or None. Total: accepts any bytes.

    Only these formats reach a decoder, so this function is also the allow-list.
    """
    if data.startswith(b"\xff\xd8\xff"):
        return Format.JPEG
    if data.startswith(b"\x89PNG\r\n\x1a\n"):
        return Format.PNG
    if data.startswith((b"GIF87a", b"GIF89a")):
        return Format.GIF
    if data[:4] == b"RIFF" and data[8:12] == b"WEBP":
        return Format.WEBP
    if data[4:8] == b"ftyp":
        return _sniff_iso_media(data)
    return None


def sniff_result(data: bytes) -> Format | None:
    """The format of a result of this service, by its first bytes; otherwise as ``sniff``."""
    return Format.JSON if data.startswith(b'{"width":') else sniff(data)


def content_type_of(data: bytes) -> str:
    """The media type of any blob by its first bytes; if unknown, ``application/octet-stream``."""
    image = sniff(data)
    if image is not None:
        return image.content_type
    if data[4:8] == b"ftyp":
        return "video/mp4"
    if data.startswith(b"\x1a\x45\xdf\xa3"):  # EBML, RFC 8794
        return "video/webm"
    return "application/octet-stream"


def describe_other(data: bytes) -> str:
    """What a blob is that is no image which can be read, for an operator. Total."""
    found = sniff(data)
    if found is not None:
        return f"{found.value}, for which no decoder is installed"
    content_type = content_type_of(data)
    if content_type.startswith("video/"):
        return f"a video ({content_type})"
    return f"first bytes {data[:12]!r}"


def _sniff_iso_media(data: bytes) -> Format | None:
    size = min(int.from_bytes(data[:4], "big"), len(data), 256)
    # The major brand decides. If it is a generic "mif1" or "msf1", the compatible brands decide.
    brands = [data[8:12], *(data[at : at + 4] for at in range(16, size - 3, 4))]
    for brand in brands:
        if brand in _AVIF_BRANDS:
            return Format.AVIF
        if brand in _HEIC_BRANDS:
            return Format.HEIC
    return None


def output_for(source: Format) -> Format:
    """The format of a still answer when the URL does not name one.

    A PNG stays a PNG. All other sources become JPEG.
    """
    return source if source is Format.PNG else Format.JPEG


def moving_output(source: Format, asked: Format | None) -> Format | None:
    """The format of an answer that moves; None if the first frame is wanted.

    Args:
        asked: the format that the URL names, if it names one.
    """
    if source not in MOVING or asked not in (None, Format.WEBP):
        return None
    return asked or source
