"""Image formats: finds the format of given bytes, and the format of a result. Pure."""

from __future__ import annotations

from enum import StrEnum

from proxy.errors import InvalidFormat


class Format(StrEnum):
    """A format that this service reads. ``HEIC`` and ``GIF`` are never encoded."""

    JPEG = "jpeg"
    PNG = "png"
    WEBP = "webp"
    AVIF = "avif"
    GIF = "gif"
    HEIC = "heic"

    @property
    def content_type(self) -> str:
        return f"image/{self.value}"

    @property
    def extension(self) -> str:
        """File name extension, without a dot."""
        return "jpg" if self is Format.JPEG else self.value


OUTPUTS = (Format.JPEG, Format.PNG, Format.WEBP, Format.AVIF)
"""The formats a URL may ask for."""

# Brands of an ISO/IEC 14496-12 "ftyp" box, grouped by the decoder that they need.
_AVIF_BRANDS = frozenset({b"avif", b"avis"})
_HEIC_BRANDS = frozenset({b"heic", b"heix", b"heim", b"heis", b"hevc", b"hevx"})


def parse_output(text: str) -> Format:
    """The output format that a URL asks for.

    Raises:
        InvalidFormat: ``text`` is not exactly the name of one of ``OUTPUTS``.
    """
    for format_ in OUTPUTS:
        if format_.value == text:
            return format_
    raise InvalidFormat(f"format {text[:32]!a}")


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


def output_for(source: Format, *, animated: bool) -> Format:
    """The format of an answer when the URL does not name one.

    A PNG stays a PNG. A GIF stays a GIF if ``animated`` (the preset's setting) is true. All other
    sources become JPEG.
    """
    if source is Format.PNG or (source is Format.GIF and animated):
        return source
    return Format.JPEG
