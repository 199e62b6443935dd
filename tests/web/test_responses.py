"""Answers: what clients, browsers and CDN act on, header by header."""

from __future__ import annotations

import re

import pytest
from hypothesis import given
from hypothesis import strategies as st

from proxy.errors import (
    BlobBlocked,
    BlobNotFound,
    Busy,
    FetchFailed,
    ForbiddenDestination,
    ImageProxyError,
    InvalidPreset,
    RateLimited,
)
from proxy.model.formats import OUTPUTS, Format
from proxy.model.keys import BlobKey, ImageKey, image_key
from proxy.model.presets import DEFAULT_PRESETS
from proxy.service import Blob, Image
from proxy.web.caching import Caching
from proxy.web.responses import (
    HttpResponse,
    blob_response,
    error_response,
    image_response,
    method_not_allowed,
    not_modified,
    plain_response,
)
from tests.test_errors import FAMILY, NAMING, ROWS, SECRET
from tests.web import SHARED

DID = "did:plc:z72i7hdynmk6r22z27h6tvur"
CIDS = [
    "bafkreibnoelefnzgwbcacyt4vh52ymxvzbjq7mmqhtcnwarfq4lzegsiqe",
    "QmYwAPJzv5CZsnA625s3Xf2nemtYgPpHdWEz79ojWnPbdG",
]
CID = CIDS[0]
SECURITY = {
    "access-control-allow-origin": "*",
    "cross-origin-resource-policy": "cross-origin",
    "x-content-type-options": "nosniff",
    "content-security-policy": "default-src 'none'; sandbox",
}
DAY = "public, max-age=86400"


def fields(answer: HttpResponse) -> dict[str, str]:
    """The headers by lower-case name; every one of them is fit to be sent."""
    names = [name.lower() for name, _value in answer.headers]
    assert len(set(names)) == len(names), "a field is sent twice"
    for name, value in answer.headers:
        assert re.fullmatch(r"[A-Za-z-]+", name)
        # RFC 9110, section 5.5: no control characters, no space around.
        assert re.fullmatch(r"[\x21-\x7e](?:[\x20-\x7e]*[\x21-\x7e])?", value), (name, value)
    return {name.lower(): value for name, value in answer.headers}


def key(preset: str = "avatar", cid: str = CID, format_: str | None = None) -> ImageKey:
    return image_key(DEFAULT_PRESETS, preset, DID, cid, format_)


def image(
    of: ImageKey,
    format_: Format = Format.JPEG,
    timings: dict[str, float] | None = None,
) -> Image:
    return Image(b"pixels", format_, of.etag, "miss", timings or {})


def test_an_image_has_exactly_the_specified_headers() -> None:
    """Catches a header that is missing, and one that nobody promised."""
    answer = image_response(key(), image(key()), Caching())
    assert answer.status == 200
    assert answer.body == b"pixels"
    assert fields(answer) == {
        "content-type": "image/jpeg",
        "cache-control": DAY,
        "etag": key().etag,
        "x-cache": "miss",
        "content-disposition": f'inline; filename="{CID}.jpg"',
        **SECURITY,
        **SHARED,
    }


@pytest.mark.parametrize("format_", list(Format))
def test_type_and_file_name_follow_the_result(format_: Format) -> None:
    """Catches the asked format in place of the one that was served: a GIF named .jpg."""
    headers = fields(image_response(key(), image(key(), format_), Caching()))
    assert headers["content-type"] == format_.content_type
    assert headers["content-disposition"] == f'inline; filename="{CID}.{format_.extension}"'


@pytest.mark.parametrize("preset", DEFAULT_PRESETS)
@pytest.mark.parametrize("cid", CIDS)
@pytest.mark.parametrize("format_", [None, *OUTPUTS])
def test_no_preset_and_no_cid_breaks_a_header(
    preset: str, cid: str, format_: Format | None
) -> None:
    """Catches a line break, a quote or a control character on its way into a header."""
    made = key(preset, cid, format_ and format_.value)
    for answer in (
        image_response(made, image(made), Caching()),
        not_modified(made.blob, made.etag, Caching()),
    ):
        etag = fields(answer)["etag"]
        assert re.fullmatch(r'"[a-z0-9_]+-[A-Za-z0-9]+-[0-9a-f]{10}"', etag)


def test_the_timings_that_took_place_are_told_in_milliseconds() -> None:
    """Catches seconds, and durations of stages that a hit never had."""
    timings = {"resolve": 0.0012, "fetch": 1.5, "queue": 0.0, "process": 0.04567}
    headers = fields(image_response(key(), image(key(), timings=timings), Caching()))
    assert headers["server-timing"] == (
        "resolve;dur=1.2, fetch;dur=1500.0, queue;dur=0.0, process;dur=45.7"
    )
    assert "server-timing" not in fields(image_response(key(), image(key()), Caching()))


def test_a_304_repeats_what_a_200_would_say_to_a_cache() -> None:
    """Catches a cached copy that loses its lifetime when it is revalidated."""
    answer = not_modified(key().blob, key().etag, Caching())
    assert (answer.status, answer.body) == (304, b"")
    assert fields(answer) == {"cache-control": DAY, "etag": key().etag, **SECURITY}


@pytest.mark.parametrize("cid", CIDS)
def test_a_blob_is_a_download_that_no_browser_runs(cid: str) -> None:
    """Catches an original shown inline: whatever somebody uploaded, from this origin."""
    blob_key = BlobKey(key(cid=cid).blob.did, key(cid=cid).blob.cid)
    answer = blob_response(blob_key, Blob(b"original", "image/png", f'"{cid}"'), Caching())
    assert (answer.status, answer.body) == (200, b"original")
    assert fields(answer) == {
        "content-type": "image/png",
        "cache-control": DAY,
        "etag": f'"{cid}"',
        "content-disposition": f'attachment; filename="{cid}"',
        "accept-ranges": "bytes",
        **SECURITY,
        **SHARED,
    }


@pytest.mark.parametrize("kind", FAMILY)
def test_every_error_gives_its_row_of_the_table(kind: type[ImageProxyError]) -> None:
    """Catches a cacheable 502, a 404 that is asked again by every reader, a bare 503."""
    status, message, caching, _ = ROWS[kind.__name__]
    answer = error_response(kind(SECRET))
    assert answer.status == status
    body = answer.body.decode("ascii")
    assert body.startswith(message)
    assert body.endswith("\n")
    assert body.count("\n") == 1, "one line"
    if kind not in NAMING:
        assert body == f"{message}\n", "nothing of the cause"
    expected = {
        "content-type": "text/plain; charset=utf-8",
        "cache-control": caching,
        **SECURITY,
    }
    headers = fields(answer)
    retry_after = headers.pop("retry-after", None)
    assert headers == expected
    assert (retry_after is not None) == (status == 503)


def test_busy_says_when_to_come_back_in_whole_seconds() -> None:
    """Catches a Retry-After of 0, which is a storm, and one that is no number."""
    assert int(fields(error_response(Busy()))["retry-after"]) >= 1
    assert fields(error_response(RateLimited("status 429", 8.2)))["retry-after"] == "9"
    assert int(fields(error_response(RateLimited("status 429")))["retry-after"]) >= 1


@pytest.mark.parametrize(
    ("hidden", "plain"),
    [(ForbiddenDestination, FetchFailed), (BlobBlocked, BlobNotFound)],
)
def test_what_is_hidden_is_answered_byte_for_byte_like_what_is_not(
    hidden: type[ImageProxyError], plain: type[ImageProxyError]
) -> None:
    """Catches a port scanner of this network, and a list of what is blocked."""
    assert error_response(hidden("to 169.254.169.254")) == error_response(plain("reset"))


@given(name=st.text())
def test_any_preset_name_is_answered_in_one_plain_line(name: str) -> None:
    """Catches a body, or a failure to encode it, that a URL decides about."""
    answer = error_response(InvalidPreset(name))
    fields(answer)
    body = answer.body.decode("ascii")
    assert body.startswith("invalid preset: ")
    assert body.removesuffix("\n").isprintable()
    assert len(body) < 800


def test_another_method_is_told_which_are_allowed() -> None:
    """Catches a 405 without Allow, which RFC 9110 asks for."""
    answer = method_not_allowed()
    headers = fields(answer)
    assert answer.status == 405
    assert headers["allow"] == "GET, HEAD, OPTIONS"
    assert headers["cache-control"] == "no-store"


@pytest.mark.parametrize(("status", "text"), [(200, "ok"), (503, "draining"), (404, "not found")])
def test_a_plain_answer_is_never_cached(status: int, text: str) -> None:
    """Catches a load balancer that reads yesterday's health from a cache."""
    answer = plain_response(status, text)
    assert answer.status == status
    assert answer.body == f"{text}\n".encode()
    assert fields(answer) == {
        "content-type": "text/plain; charset=utf-8",
        "cache-control": "no-store",
        **SECURITY,
    }
