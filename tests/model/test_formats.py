"""Formats: what is sniffed is what reaches a decoder, so the table here is the allow-list."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from proxy.errors import InvalidFormat
from proxy.model.formats import (
    OUTPUTS,
    SOURCES,
    Format,
    content_type_of,
    moving_output,
    output_for,
    parse_output,
    sniff,
)


def ftyp(*brands: bytes, size: int | None = None) -> bytes:
    """An ISO media file type box: a major brand, a version, compatible brands."""
    major, *others = brands
    body = b"ftyp" + major + b"\x00\x00\x00\x00" + b"".join(others)
    return (len(body) + 4 if size is None else size).to_bytes(4, "big") + body


@pytest.mark.parametrize(
    ("data", "format_"),
    [
        (b"\xff\xd8\xff\xe0\x00\x10JFIF", Format.JPEG),
        (b"\xff\xd8\xff\xe1\x00\x10Exif", Format.JPEG),
        (b"\xff\xd8\xff\xdb", Format.JPEG),
        (b"\xff\xd8\xff", Format.JPEG),
        (b"\x89PNG\r\n\x1a\n\x00\x00\x00\rIHDR", Format.PNG),
        (b"\x89PNG\r\n\x1a\n", Format.PNG),
        (b"GIF87a", Format.GIF),
        (b"GIF89a\x01\x00\x01\x00", Format.GIF),
        (b"RIFF\x24\x00\x00\x00WEBPVP8 ", Format.WEBP),
        (b"RIFF\x24\x00\x00\x00WEBPVP8L", Format.WEBP),
        (b"RIFF\x24\x00\x00\x00WEBPVP8X", Format.WEBP),
        (ftyp(b"avif", b"mif1", b"miaf"), Format.AVIF),
        (ftyp(b"avis", b"msf1"), Format.AVIF),
        (ftyp(b"mif1", b"avif"), Format.AVIF),
        (ftyp(b"msf1", b"miaf", b"avis"), Format.AVIF),
        (ftyp(b"heic", b"mif1"), Format.HEIC),
        (ftyp(b"heix", b"mif1"), Format.HEIC),
        (ftyp(b"heim"), Format.HEIC),
        (ftyp(b"heis"), Format.HEIC),
        (ftyp(b"hevc"), Format.HEIC),
        (ftyp(b"hevx"), Format.HEIC),
        (ftyp(b"mif1", b"heic"), Format.HEIC),
        # The major brand wins over those it is compatible with.
        (ftyp(b"avif", b"heic"), Format.AVIF),
        (ftyp(b"heic", b"avif"), Format.HEIC),
    ],
)
def test_a_format_is_known_by_its_first_bytes(data: bytes, format_: Format) -> None:
    """Catches a format that is refused, or is handed to another format's decoder."""
    assert sniff(data) is format_
    assert sniff(data + b"\x00" * 1000) is format_


@pytest.mark.parametrize(
    "data",
    [
        b"",
        b"\x00",
        b"\xff\xd8",
        b"\xff\xd8\x00\xff",
        b" \xff\xd8\xff\xe0",
        b"\x89PNG",
        b"\x89PNG\r\n\x1a",
        b"\x89PNG\n\x1a\n\x00",  # as a transfer in text mode leaves it
        b"\x89png\r\n\x1a\n",
        b"\x89PNG\x00\x00",  # the seed's "corrupted image"
        b"GIF",
        b"GIF88a",
        b"GIF89b",
        b"gif89a",
        b"RIFF\x24\x00\x00\x00WEB",
        b"RIFF\x24\x00\x00\x00WAVEfmt ",
        b"RIFX\x00\x00\x00\x24WEBP",
        b"RIFFWEBP",
        ftyp(b"isom", b"mp42"),
        ftyp(b"mif1", b"miaf"),
        ftyp(b"qt  "),
        ftyp(b"AVIF"),
        b"ftypavif",
        b"\x00\x00\x00\x0cftypavi",
        # The version is no brand, and neither is what follows the box.
        b"\x00\x00\x00\x10ftypmif1avif",
        ftyp(b"mif1") + b"avif",
        ftyp(b"mif1", b"avif", size=16),
        b"BM\x46\x00\x00\x00",
        b"II*\x00\x08\x00\x00\x00",
        b"MM\x00*\x00\x00\x00\x08",
        b"\x00\x00\x01\x00\x01\x00",
        b"8BPS\x00\x01",
        b"<svg xmlns='http://www.w3.org/2000/svg'/>",
        b"<?xml version='1.0'?><svg/>",
        b"%PDF-1.7",
        b"%!PS-Adobe-3.0 EPSF-3.0",
        b"\x00\x00\x00\x0cjP  \r\n\x87\n",
        b"\xff\x0a",  # JPEG XL
        b"\x00\x00\x00\x0cJXL \r\n\x87\n",
        b"P6\n1 1\n255\n",
        b"this is not an image",
        b"<!DOCTYPE html>",
    ],
)
def test_a_near_miss_is_not_an_image(data: bytes) -> None:
    """Catches a decoder that is reached by what nobody supports: PDF, SVG, TIFF, half a PNG."""
    assert sniff(data) is None


def test_brands_are_looked_for_in_a_bounded_part_alone() -> None:
    """Catches a walk over ten megabytes that pose as one file type box."""
    assert sniff(ftyp(b"mif1", *[b"xxxx"] * 100, b"avif")) is None
    assert sniff(ftyp(b"mif1", *[b"xxxx"] * 50, b"avif")) is Format.AVIF


@given(
    st.one_of(
        st.binary(max_size=300),
        st.builds(
            lambda size, rest: size.to_bytes(4, "big") + b"ftyp" + rest,
            st.integers(0, 2**32 - 1),
            st.binary(max_size=40),
        ),
        st.binary(max_size=12).map(b"RIFF".__add__),
    )
)
def test_any_bytes_are_sniffed_without_an_error(data: bytes) -> None:
    """Catches an IndexError on short input: a 500 where a 400 belongs."""
    found = sniff(data)
    assert found is None or isinstance(found, Format)
    others = {"video/mp4", "video/webm", "application/octet-stream"}
    assert content_type_of(data) in ({found.content_type} if found else others)


@pytest.mark.parametrize(
    ("data", "content_type"),
    [
        (b"\xff\xd8\xff", "image/jpeg"),
        (b"\x89PNG\r\n\x1a\n", "image/png"),
        (b"GIF89a", "image/gif"),
        (b"RIFF\x00\x00\x00\x00WEBP", "image/webp"),
        (ftyp(b"avif"), "image/avif"),
        (ftyp(b"heic"), "image/heic"),
        (ftyp(b"isom", b"mp42"), "video/mp4"),
        (b"\x1a\x45\xdf\xa3\x9f", "video/webm"),
        (b"", "application/octet-stream"),
        (b"<!DOCTYPE html><script>", "application/octet-stream"),
        (b"<svg xmlns='http://www.w3.org/2000/svg'/>", "application/octet-stream"),
        (b"{}", "application/octet-stream"),
    ],
)
def test_a_blob_is_never_given_a_type_that_runs_in_a_browser(
    data: bytes, content_type: str
) -> None:
    """Catches stored HTML or SVG served as such, with its scripts, from this origin."""
    assert content_type_of(data) == content_type


@pytest.mark.parametrize("format_", OUTPUTS)
def test_each_output_format_is_asked_for_by_its_name(format_: Format) -> None:
    """Catches a format of the URL grammar that cannot be had."""
    assert parse_output(format_.value) is format_


def test_jpg_asks_for_the_same_as_jpeg() -> None:
    """Catches a 400 for URLs that were made for Bluesky's CDN, and a second entry for them."""
    assert parse_output("jpg") is Format.JPEG


def test_the_output_formats_are_the_four_of_the_url_grammar() -> None:
    """Catches GIF or HEIC offered as an output: nothing here encodes them."""
    assert [format_.value for format_ in OUTPUTS] == ["jpeg", "png", "webp", "avif"]


@pytest.mark.parametrize(
    "text",
    ["", "JPG", "JPEG", "Jpeg", " jpeg", "jpeg ", "jpeg\n", "gif", "heic", "svg", "auto", "source",
     "image/jpeg", "@jpeg", "jpeg@png", "None", "\u017fpng", "x" * 100_000],
    ids=lambda text: ascii(text[:20]),
)  # fmt: skip
def test_a_format_is_compared_letter_for_letter(text: str) -> None:
    """Catches other aliases: each would be one more cache entry and URL for the same picture."""
    with pytest.raises(InvalidFormat) as caught:
        parse_output(text)
    assert len(str(caught.value)) < 400


@pytest.mark.parametrize("source", list(Format))
def test_the_format_follows_the_source_where_the_url_names_none(source: Format) -> None:
    """Catches the seed's "always JPEG", and WebP for a client that did not ask for it."""
    assert output_for(source) is (Format.PNG if source is Format.PNG else Format.JPEG)


@pytest.mark.parametrize("source", list(Format))
@pytest.mark.parametrize("asked", [None, *OUTPUTS])
def test_what_moves_keeps_its_format_or_becomes_a_webp(
    source: Format, asked: Format | None
) -> None:
    """Catches a moving JPEG or HEIC, and frames for a client that asked for one picture."""
    can_move = source in (Format.GIF, Format.WEBP, Format.PNG, Format.AVIF)
    wanted = {None: source, Format.WEBP: Format.WEBP}.get(asked) if can_move else None
    assert moving_output(source, asked) is wanted


@pytest.mark.parametrize("format_", SOURCES)
def test_every_format_has_its_media_type_and_extension(format_: Format) -> None:
    """Catches image/jpg and .jpeg: the one is no registered type, the other no usual name."""
    assert format_.content_type == f"image/{format_.value}"
    assert format_.extension == {"jpeg": "jpg"}.get(format_.value, format_.value)
