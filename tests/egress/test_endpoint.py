"""Reading strangers' URLs: what is not plainly an origin is refused before a packet leaves."""

from __future__ import annotations

import string

import pytest
from hypothesis import given
from hypothesis import strategies as st

from proxy.egress.endpoint import Origin, parse_origin, parse_url, redirect_target
from proxy.egress.errors import Forbidden
from tests.egress.destinations import ACCEPTED, BY_ADDRESS, BY_URL, ENDPOINTS_ONLY, Destination

BASE = Origin("https", "pds.example", 443)


@pytest.mark.parametrize(
    "destination", [*BY_URL, *ENDPOINTS_ONLY], ids=lambda destination: destination.id
)
def test_what_is_not_plainly_an_origin_is_refused(destination: Destination) -> None:
    """Catches: a lenient reader."""
    with pytest.raises(Forbidden):
        parse_origin(destination.url_at(8443), allow_http=False)


@pytest.mark.parametrize("destination", BY_URL, ids=lambda destination: destination.id)
def test_urls_are_read_as_strictly_as_endpoints(
    destination: Destination,
) -> None:
    """Catches: a reader that is strict with endpoints alone lets a URL through."""
    with pytest.raises(Forbidden):
        parse_url(destination.url_at(8443), allow_http=False)


@pytest.mark.parametrize("destination", BY_ADDRESS, ids=lambda destination: destination.id)
def test_an_ordinary_name_is_accepted_and_left_to_the_guard(
    destination: Destination,
) -> None:
    """Catches: an ordinary name is refused by its URL so that its addresses go untested."""
    assert parse_origin(destination.url_at(8443), allow_http=False).host == destination.host


@pytest.mark.parametrize(("text", "canonical"), ACCEPTED)
def test_ordinary_endpoints_are_accepted(text: str, canonical: str) -> None:
    """Catches: a reader that refuses everything."""
    origin = parse_origin(text, allow_http=False)
    assert str(origin) == canonical
    assert parse_origin(canonical, allow_http=False) == origin


@pytest.mark.parametrize(
    ("text", "canonical"),
    [
        ("http://pds.example", "http://pds.example"),
        ("http://pds.example:80", "http://pds.example"),
        ("http://pds.example:443", "http://pds.example:443"),
        ("https://pds.example:80", "https://pds.example:80"),
        ("http://pds.example:3000", "http://pds.example:3000"),
    ],
)
def test_http_is_accepted_where_the_operator_allows_it(text: str, canonical: str) -> None:
    """Catches: HTTP stays refused where the operator allows it."""
    assert str(parse_origin(text, allow_http=True)) == canonical


@pytest.mark.parametrize(
    "text",
    [
        "http://127.0.0.1",
        "http://localhost:3000",
        "http://[::1]",
        "http://pds.example:22",
        "http://pds.example:81",
        "ftp://pds.example",
    ],
)
def test_allowing_http_allows_neither_private_hosts_nor_ports(text: str) -> None:
    """Catches: allowing HTTP allows private hosts or ports as well."""
    with pytest.raises(Forbidden):
        parse_origin(text, allow_http=True)


@pytest.mark.parametrize(
    ("text", "canonical"),
    [
        ("https://localhost", "https://localhost"),
        ("https://pds", "https://pds"),
        ("https://pds.localhost:22", "https://pds.localhost:22"),
        ("https://127.0.0.1:1", "https://127.0.0.1:1"),
        ("https://[::1]:2583", "https://[::1]:2583"),
        ("https://printer.local", "https://printer.local"),
    ],
)
def test_development_reaches_its_own_machine(text: str, canonical: str) -> None:
    """Catches: development cannot reach its own machine."""
    assert str(parse_origin(text, allow_http=False, allow_private_hosts=True)) == canonical


@pytest.mark.parametrize(
    "text",
    [
        "http://localhost",
        "https://127.1",
        "https://2130706433",
        "https://localhost.",
        "https://user@localhost",
        "https://localhost:0",
        "https://localhost:65536",
        "https://[fe80::1%25eth0]",
        "https://localhost/path",
    ],
)
def test_allowing_private_hosts_keeps_the_strict_reading(text: str) -> None:
    """Catches: allowing private hosts switches the strict reading off."""
    with pytest.raises(Forbidden):
        parse_origin(text, allow_http=False, allow_private_hosts=True)


def test_a_refusal_is_one_short_printable_line() -> None:
    """Catches: a refusal that quotes raw text lets a stranger write log lines."""
    with pytest.raises(Forbidden) as caught:
        parse_origin("https://pds.example/\r\nlevel=info all is well", allow_http=False)
    assert "\n" not in str(caught.value)
    assert "\r" not in str(caught.value)


@given(st.text())
def test_any_text_is_an_endpoint_or_a_typed_error(text: str) -> None:
    """Catches: some text makes the reader fail with another error."""
    for candidate in (text, f"https://{text}", f"https://pds.example{text}"):
        try:
            origin = parse_origin(candidate, allow_http=True)
        except Forbidden:
            continue
        assert parse_origin(str(origin), allow_http=True) == origin


@given(st.text(string.printable + "\u00e9\u3002", max_size=40))
def test_the_target_of_any_url_fits_a_request_line(text: str) -> None:
    """Catches: some URL gives a target that is no request line."""
    for candidate in (f"https://pds.example/{text}", f"https://pds.example?{text}"):
        try:
            origin, target = parse_url(candidate, allow_http=False)
        except Forbidden:
            continue
        assert origin == BASE
        assert target.startswith("/")
        assert all("!" <= character <= "~" for character in target)
        assert "#" not in target


@pytest.mark.parametrize(
    ("text", "target"),
    [
        ("https://pds.example", "/"),
        ("https://pds.example/", "/"),
        ("https://pds.example?a=b", "/?a=b"),
        ("https://pds.example/a/b?c=d&e=%20#f", "/a/b?c=d&e=%20"),
        ("https://pds.example/a?b?c/../d", "/a?b?c/../d"),
        ("https://pds.example/#", "/"),
        ("https://pds.example/a/../../b/./c/..", "/b/"),
        ("https://pds.example/a//b", "/a//b"),
        ("https://pds.example/@127.0.0.1", "/@127.0.0.1"),
        ("https://pds.example?@127.0.0.1/x", "/?@127.0.0.1/x"),
        ("https://pds.example#@127.0.0.1/x", "/"),
        ("https://pds.example/http://127.0.0.1/", "/http://127.0.0.1/"),
    ],
)
def test_a_url_keeps_its_query_and_drops_its_fragment(text: str, target: str) -> None:
    """Catches: a URL loses its query or sends its fragment."""
    assert parse_url(text, allow_http=False) == (BASE, target)


# RFC 3986 section 5.4, the examples without a scheme of their own and without a fragment alone.
@pytest.mark.parametrize(
    ("reference", "expected"),
    [
        ("g", "/b/c/g"),
        ("./g", "/b/c/g"),
        ("g/", "/b/c/g/"),
        ("/g", "/g"),
        ("?y", "/b/c/d;p?y"),
        ("g?y", "/b/c/g?y"),
        ("g#s", "/b/c/g"),
        ("g?y#s", "/b/c/g?y"),
        (";x", "/b/c/;x"),
        ("g;x", "/b/c/g;x"),
        (".", "/b/c/"),
        ("./", "/b/c/"),
        ("..", "/b/"),
        ("../", "/b/"),
        ("../g", "/b/g"),
        ("../..", "/"),
        ("../../", "/"),
        ("../../g", "/g"),
        ("../../../g", "/g"),
        ("../../../../g", "/g"),
        ("/./g", "/g"),
        ("/../g", "/g"),
        ("g.", "/b/c/g."),
        (".g", "/b/c/.g"),
        ("g..", "/b/c/g.."),
        ("..g", "/b/c/..g"),
        ("./../g", "/b/g"),
        ("./g/.", "/b/c/g/"),
        ("g/./h", "/b/c/g/h"),
        ("g/../h", "/b/c/h"),
        ("g;x=1/./y", "/b/c/g;x=1/y"),
        ("g;x=1/../y", "/b/c/y"),
        ("g?y/./x", "/b/c/g?y/./x"),
        ("g?y/../x", "/b/c/g?y/../x"),
        ("g#s/../x", "/b/c/g"),
    ],
)
def test_a_relative_location_is_resolved_as_rfc_3986_says(reference: str, expected: str) -> None:
    """Catches: a relative location is resolved otherwise than RFC 3986 says."""
    found = redirect_target(BASE, "/b/c/d;p?q", reference, allow_http=False)
    assert found == (BASE, expected)


@pytest.mark.parametrize(
    ("location", "expected"),
    [
        ("https://cdn.example/x", (Origin("https", "cdn.example", 443), "/x")),
        ("HTTPS://cdn.example:8443", (Origin("https", "cdn.example", 8443), "/")),
        ("//cdn.example/x?y", (Origin("https", "cdn.example", 443), "/x?y")),
        ("/a:b", (BASE, "/a:b")),
        ("./a:b", (BASE, "/a:b")),
        # A path, however like an authority: it stays at the base.
        ("/.//127.0.0.1/", (BASE, "//127.0.0.1/")),
        ("@127.0.0.1", (BASE, "/@127.0.0.1")),
    ],
)
def test_a_location_leads_where_its_text_says(location: str, expected: tuple[Origin, str]) -> None:
    """Catches: a location leads elsewhere than its reader thinks."""
    assert redirect_target(BASE, "/", location, allow_http=False) == expected


@pytest.mark.parametrize(
    ("location", "target"),
    [
        ("/a b?c d", "/a%20b?c%20d"),
        (" /a ", "/a"),
        ("/%20%C3%A9", "/%20%C3%A9"),
        ("/bl\xc3\xa5b\xe2\x80\xa6?n=\xc3\xa9", "/bl%C3%A5b%E2%80%A6?n=%C3%A9"),
        ("https://pds.example/\xe9", "/%E9"),
        ("/?X-Amz-Signature=" + "a" * 6000, "/?X-Amz-Signature=" + "a" * 6000),
        ("/" + "\xc3\xa9" * 3000, "/" + "%C3%A9" * 3000),
    ],
    ids=["spaces", "around", "escaped already", "UTF-8", "Latin-1", "6 KB", "6 KB of UTF-8"],
)
def test_a_path_that_browsers_would_escape_is_escaped(location: str, target: str) -> None:
    """Catches: an object store whose names have spaces or umlauts gives no blob."""
    assert redirect_target(BASE, "/x", location, allow_http=False) == (BASE, target)


@pytest.mark.parametrize(
    "location", ["http://pds.example/", "http://cdn.example:8080/", "HTTP://a.b"]
)
def test_a_redirect_from_https_to_http_is_refused_even_where_http_is_allowed(location: str) -> None:
    """Catches: a redirect from HTTPS to HTTP passes where HTTP is allowed."""
    with pytest.raises(Forbidden):
        redirect_target(BASE, "/", location, allow_http=True, allow_private_hosts=True)


def test_a_redirect_from_http_to_https_or_http_is_followed() -> None:
    """Catches: a redirect from HTTP to HTTPS or HTTP is refused."""
    base = Origin("http", "pds.example", 80)
    for scheme, port in (("http", 80), ("https", 443)):
        found = redirect_target(base, "/", f"{scheme}://cdn.example/", allow_http=True)
        assert found == (Origin(scheme, "cdn.example", port), "/")
    found = redirect_target(base, "/", "//cdn.example/x", allow_http=True)
    assert found == (Origin("http", "cdn.example", 80), "/x")


def test_a_trusted_http_directory_passes_its_trust_on_to_nobody() -> None:
    """Catches: a trusted HTTP directory hands its scheme to a stranger."""
    base = Origin("http", "127.0.0.1", 2582)
    with pytest.raises(Forbidden):
        redirect_target(base, "/", "//cdn.example/", allow_http=False)
    with pytest.raises(Forbidden):
        redirect_target(base, "/", "//127.0.0.1:2583/", allow_http=True)


@pytest.mark.parametrize(
    "location",
    [
        "",
        "#",
        "#again",
        "///cdn.example/",
        "//",
        "\\\\cdn.example\\",
        "/\\cdn.example/",
        "/a\tb",
        "/a\x7fb",
        "//cdn.example evil.example/",
        "//b\xc3\xbccher.example/",
        "//cdn.example\xe2\x81\x84.evil.example/",
        "/\u3002",
        "/a\r\nX-Injected: 1",
        "/" + "a" * 8192,
        "//127.0.0.1/",
        "//[::1]/",
        "//localhost/",
        "//user@cdn.example/",
        "//cdn.example:22/",
        "javascript:alert(1)",
        "data:,x",
        "cdn.example:8443/x",
        "https:cdn.example",
        "https:",
        "file:///etc/passwd",
    ],
)
def test_a_location_that_no_endpoint_could_be_is_refused(location: str) -> None:
    """Catches: a location that no endpoint could be is followed."""
    with pytest.raises(Forbidden):
        redirect_target(BASE, "/x", location, allow_http=False)


@pytest.mark.parametrize("destination", BY_URL, ids=lambda destination: destination.id)
def test_a_redirect_is_read_as_strictly_as_an_endpoint(destination: Destination) -> None:
    """Catches: a redirect is read less strictly than an endpoint."""
    location = destination.url_at(8443)
    try:
        origin, _ = redirect_target(BASE, "/x", location, allow_http=False)
    except Forbidden:
        return
    # Without a scheme of its own it is a reference, read at the base: "//pds.example:8443" here.
    escaped = {"leading space", "trailing space", "space in the path", "non-ASCII in the path"}
    assert destination.why in escaped or not location.startswith(("http", "HTTP"))
    assert origin in (BASE, Origin("https", "pds.example", 8443))


@given(st.text(string.printable + "\u00e9\u3002", max_size=40))
def test_the_target_of_any_location_fits_a_request_line(location: str) -> None:
    """Catches: some location gives a target that is no request line."""
    try:
        origin, target = redirect_target(BASE, "/b/c?d", location, allow_http=False)
    except Forbidden:
        return
    assert origin.scheme == "https"
    assert target.startswith("/")
    assert all("!" <= character <= "~" and character != "#" for character in target)
