"""One range of an original: RFC 9110, section 14."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from proxy.web.ranges import Wanted, in_range, wanted
from proxy.web.responses import HttpResponse
from tests.fakes.world import World
from tests.web import SECURITY, serving

DATA = bytes(range(10))
WHOLE = HttpResponse(200, (("ETag", '"tag"'),), DATA)


@pytest.mark.parametrize(
    ("text", "first", "last"),
    [
        ("bytes=0-0", 0, 0),
        ("bytes=2-4", 2, 4),
        ("bytes=7-", 7, 9),
        ("bytes=-3", 7, 9),
        ("bytes=-100", 0, 9),
        ("bytes=8-1000", 8, 9),
        (f"bytes=000-{'9' * 5000}", 0, 9),
        ("Bytes= ,1-2 ,", 1, 2),
    ],
)
def test_one_range_gives_that_part_and_says_which(text: str, first: int, last: int) -> None:
    """Catches an end that is left out, and a player that is told another length."""
    answer = in_range(WHOLE, Wanted(text))
    assert (answer.status, answer.body) == (206, DATA[first : last + 1])
    assert answer.headers == (*WHOLE.headers, ("Content-Range", f"bytes {first}-{last}/10"))


@pytest.mark.parametrize("text", ["bytes=10-", "bytes=10-11", "bytes=-0", f"bytes={'9' * 5000}-"])
def test_a_range_beyond_the_end_is_a_416_with_the_length(text: str) -> None:
    """Catches an empty 206, which no client expects."""
    answer = in_range(WHOLE, Wanted(text))
    assert answer.status == 416
    assert dict(answer.headers)["Content-Range"] == "bytes */10"
    assert "ETag" not in dict(answer.headers)


@pytest.mark.parametrize(
    "text",
    ["", "bytes", "bytes=", "bytes=-", "bytes=4-2", "bytes=0-1,3-4", "items=0-1", "bytes=a-b",
     "bytes=0-1x", "bytes=+1-2", "bytes = 0-1", "bytes=1-2-3", "bytes=\u0661-"],
)  # fmt: skip
def test_what_is_not_one_range_is_ignored(text: str) -> None:
    """Catches a client that is refused for a header that servers may ignore."""
    assert in_range(WHOLE, Wanted(text)) is WHOLE


@pytest.mark.parametrize(
    ("condition", "status"),
    [
        ('"tag"', 206),
        (' "tag" ', 206),
        ('W/"tag"', 200),
        ('"other"', 200),
        ('"a", "tag"', 200),
        ("Sun, 06 Nov 1994 08:49:37 GMT", 200),
        ("", 200),
    ],
)
def test_if_range_needs_the_strong_tag(condition: str, status: int) -> None:
    """Catches parts of two versions that a client joins."""
    assert in_range(WHOLE, Wanted("bytes=1-2", condition)).status == status
    if status == 200:
        assert in_range(WHOLE, Wanted("bytes=99-", condition)).status == 200


def test_a_range_is_for_a_200_to_a_get() -> None:
    """Catches a part of an error, and a HEAD that tells of another answer than GET would."""
    error = HttpResponse(404, (), b"blob not found\n")
    assert in_range(error, Wanted("bytes=0-1")) is error
    headers = [(b"range", b"bytes=0-1"), (b"if-range", b'"a"')]
    assert wanted("GET", headers) == Wanted("bytes=0-1", '"a"')
    assert wanted("GET", [*headers, (b"range", b"bytes=3-4")]) == Wanted(
        "bytes=0-1, bytes=3-4", '"a"'
    )
    assert wanted("HEAD", headers) is None
    assert wanted("GET", headers[1:]) is None


@given(text=st.text(alphabet="bytes=-,0123456789 ", max_size=20), data=st.binary(max_size=20))
def test_any_header_gives_a_part_that_is_what_it_says(text: str, data: bytes) -> None:
    """Catches a header that ends in a 500, or in bytes of elsewhere."""
    answer = in_range(HttpResponse(200, (), data), Wanted(text))
    assert answer.status in (200, 206, 416)
    if answer.status == 206:
        span, _, length = (
            dict(answer.headers)["Content-Range"].removeprefix("bytes ").partition("/")
        )
        first, last = map(int, span.split("-"))
        assert answer.body == data[first : last + 1] != b""
        assert int(length) == len(data)


async def test_a_part_of_a_blob_is_served_as_the_blob_is(world: World) -> None:
    """Catches a part without the headers that keep an original from being run."""
    did, cid = world.add_blob()
    path = f"/blob/{did}/{cid}"
    asked = ("Range", "bytes=1-4")
    async with serving(world) as client:
        whole = await client.get(path)
        part = await client.get(path, asked)
        assert (part.status, part.body) == (206, whole.body[1:5])
        assert part.headers == {
            **whole.headers,
            "content-length": "4",
            "content-range": f"bytes 1-4/{len(whole.body)}",
        }
        head = await client.head(path, asked)
        assert (head.status, head.headers, head.body) == (200, whole.headers, b"")
        known = await client.get(path, asked, ("If-None-Match", f'"{cid}"'))
        assert known.status == 304, "conditions come before ranges"
        stale = await client.get(path, asked, ("If-Range", '"other"'))
        assert (stale.status, stale.body) == (200, whole.body)
        beyond = await client.get(path, ("Range", f"bytes={len(whole.body)}-"))
        assert (beyond.status, beyond.text) == (416, "range not satisfiable\n")
        assert SECURITY.items() <= beyond.headers.items()
        assert beyond.headers["cache-control"] == "no-store"
        assert (await client.get(f"/blob/{did}/nocid", asked)).status == 400
