"""The server block, as text: nginx must decide as the proxy does, or not at all."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from proxy.cache.layout import AUTO, entry_folder, entry_name, possible_formats
from proxy.config import Config
from proxy.model.cache_tags import content_tag, owner_tag
from proxy.model.formats import OUTPUTS, Format
from proxy.model.identifiers import parse_cid, parse_did
from proxy.model.keys import image_key
from proxy.model.presets import DEFAULT_PRESETS, Preset
from proxy.tools.balancer.nginx import nginx_balancer
from proxy.tools.nginx import (
    CANONICAL,
    EXACT,
    IS_KNOWN,
    TAGGED,
    accept_patterns,
    server_block,
)
from proxy.urls import image_url
from proxy.web.conditional import none_match
from proxy.web.negotiate import choose
from tests.examples import examples

DID = "did:plc:z72i7hdynmk6r22z27h6tvur"
WEB = "did:web:example.com"
CID = "bafkreibnoelefnzgwbcacyt4vh52ymxvzbjq7mmqhtcnwarfq4lzegsiqe"
CID_V0 = "QmYwAPJzv5CZsnA625s3Xf2nemtYgPpHdWEz79ojWnPbdG"
GOOD = f"/img/avatar/plain/{DID}/{CID}"

IMAGES = Path("/srv/images")

ETAG = image_key(DEFAULT_PRESETS, "avatar_small", DID, CID).etag


def asked(target: str, method: str = "GET", condition: str = "") -> dict[str, str] | None:
    """The parts of a URL that nginx looks for on disk."""
    for pattern in CANONICAL:
        if found := re.search(pattern, f"{condition} {method} {target}"):
            parts = found.groupdict(default="")
            return {name.removeprefix("imageproxy_"): part for name, part in parts.items()}
    return None


def file_of(parts: dict[str, str], fingerprint: str) -> str:
    """As the block puts it together."""
    return (
        f"{parts['method']}/{parts['shard']}/{parts['owner']}/{parts['preset']}-{fingerprint}"
        f"/{parts['cid']}@{parts['format'] or AUTO}"
    )


label = st.from_regex(r"[a-z0-9]([a-z0-9-]{0,8}[a-z0-9])?", fullmatch=True)
dids = st.one_of(
    st.from_regex(r"did:plc:[a-z2-7]{24}", fullmatch=True),
    st.builds("did:web:{}.{}".format, label, st.sampled_from(["com", "example", "co.uk"])),
    st.just("did:web:localhost"),
)


@given(
    preset=st.sampled_from(list(DEFAULT_PRESETS)),
    did=dids,
    cid=st.sampled_from([CID, CID_V0]),
    format_=st.sampled_from([None, *OUTPUTS]),
    colon=st.sampled_from([":", "%3A", "%3a"]),
    query=st.sampled_from(["", "?", "?x=1", "?x=/../@png"]),
    method=st.sampled_from(["GET", "HEAD"]),
)
def test_nginx_looks_where_the_cache_keeps_what_a_url_names(
    preset: str,
    did: str,
    cid: str,
    format_: Format | None,
    colon: str,
    query: str,
    method: str,
) -> None:
    """Catches a block whose paths are not those of the layout: every request would be a miss."""
    key = image_key(DEFAULT_PRESETS, preset, did, cid, format_ and format_.value)
    parts = asked(image_url(key).replace(":", colon) + query, method)
    assert parts is not None
    assert f"{parts['preset']}@{parts['format']}" == f"{preset}@{format_ or ''}"
    name, _, _extension = entry_name(key, possible_formats(key)[0]).rpartition(".")
    assert file_of(parts, key.fingerprint) == f"{entry_folder(key)}/{name}"


@pytest.mark.parametrize(
    "target",
    [
        "/",
        "/img/",
        GOOD.replace("/img/", "//img/"),
        GOOD.replace("/plain/", "//plain/"),
        GOOD.replace("/plain/", "/./plain/"),
        GOOD.replace("/plain/", "/x/../plain/"),
        GOOD.replace("/plain/", "/%70lain/"),
        GOOD.replace("/img/", "/%69mg/"),
        GOOD.replace("/", "%2F"),
        "/x" + GOOD,
        "http://proxy.test" + GOOD,
        GOOD + "/",
        GOOD + "%20",
        GOOD + "#fragment",
        GOOD + "@",
        GOOD + "@gif",
        GOOD + "@JPEG",
        GOOD + "@jpeg@png",
        GOOD + "%40jpeg",
        GOOD + ".jpg",
        GOOD.replace(CID, CID.upper()),
        GOOD.replace(CID, "../x"),
        GOOD.replace(CID, ""),
        GOOD.replace("avatar", "Avatar"),
        GOOD.replace("avatar", "9avatar"),
        GOOD.replace("avatar", ""),
        GOOD.replace("plc", "PLC"),
        GOOD.replace("plc", "key"),
        GOOD.replace(":plc", "%253Aplc"),
        GOOD.replace(DID, DID[:-1]),
        GOOD.replace(DID, DID + "a"),
        GOOD.replace(DID, DID[:-1] + "1"),
        GOOD.replace(DID, "did:web:localhost%253A2583"),
        GOOD.replace(DID, "did:web:localhost%3A2583"),
        GOOD.replace(DID, "did:web:localhost:2583"),
        GOOD.replace(DID, "did:web:Example.com"),
        GOOD.replace(DID, "did:web:.."),
        GOOD.replace(DID, "did:web:a"),
        GOOD.replace(DID, "did:web:example.com%2F.."),
    ],
)
def test_another_spelling_is_left_to_the_proxy(target: str) -> None:
    """Catches a second spelling that is served from disk where the proxy says 400."""
    assert asked(target) is None


@pytest.mark.parametrize(
    ("method", "condition"),
    [("POST", ""), ("OPTIONS", ""), ("get", ""), ("GETS", ""), ("GET", '"x"'), ("GET", "*")],
)
def test_another_method_or_condition_is_left_to_the_proxy(method: str, condition: str) -> None:
    """Catches a POST that gets a picture, and nginx' own rules for If-Match."""
    assert asked(GOOD, method, condition) is None
    assert asked(GOOD) is not None


@pytest.mark.parametrize("pattern", CANONICAL, ids=["plc", "web"])
def test_no_url_leads_out_of_its_owners_folder(pattern: str) -> None:
    """Catches a grammar that lets a slash, or two dots alone, into a part of the path."""

    @given(st.from_regex(pattern))
    def check(line: str) -> None:
        found = re.search(pattern, line)
        assert found is not None
        parts = found.groupdict(default="")
        path = file_of(
            {name.removeprefix("imageproxy_"): part for name, part in parts.items()}, "f"
        )
        method, shard, owner, *rest = path.split("/")
        assert method in ("plc", "web")
        assert shard == owner[:2]
        assert len(rest) == 2
        assert not {"", ".", ".."} & set(path.split("/"))

    check()


@given(
    header=st.one_of(
        st.text(st.characters(codec="latin-1", exclude_characters="\r\n\x00")),
        st.text(alphabet='"W/,* \tab\xff\x7f'),
        st.lists(
            st.sampled_from(
                ['"', "W/", ",", ", ", "*", " ", "\t", ETAG, f"W/{ETAG}", "a", '"a"', '"\xe9"']
            )
        ).map("".join),
    )
)
@examples(2000)
def test_nginx_answers_304_exactly_where_the_proxy_does(header: str) -> None:
    """Catches a regular expression that reads on behind a mistake, or compares strongly."""
    assert (re.search(IS_KNOWN, f"{ETAG} {header}") is None) is none_match(header, ETAG)


@pytest.mark.parametrize(
    ("bind", "address"),
    [
        ("127.0.0.1:8080", "127.0.0.1:8080"),
        ("0.0.0.0:8080", "127.0.0.1:8080"),
        ("[::]:8080", "[::1]:8080"),
        ("unix:/run/imageproxy/socket", "unix:/run/imageproxy/socket"),
        ("[fd00::1]:8080, unix:/run/a", "[fd00::1]:8080"),
        ("[fd00::1]:8080", "[fd00::1]:8080"),
        ("localhost:9", "localhost:9"),
        ("127.0.0.1:0, [fe80::1%eth0]:8080, 127.0.0.1:9", "127.0.0.1:9"),
    ],
)
def test_nginx_connects_to_what_the_proxy_listens_on(bind: str, address: str) -> None:
    """Catches a connection to 0.0.0.0, which is an address to listen on."""
    block = server_block(Config.model_validate({"server": {"bind": bind}}), IMAGES)
    assert f'server "{address}" ' in block


@pytest.mark.parametrize(
    ("base_url", "name"),
    [
        ("", "_"),
        ("https://images.example", "images.example"),
        ("http://IMAGES.example:8443/below", "images.example"),
        ("https://b\u00fccher.example", "xn--bcher-kva.example"),
        ("https://[::1]:8080", "_"),
        ("https://~.*", "_"),
        ("https://$hostname", "_"),
        ("https://a;b", "_"),
        ("https://a..b", "_"),
    ],
)
def test_the_server_is_named_as_the_base_url_is(base_url: str, name: str) -> None:
    """Catches a host that nginx takes for a regular expression, a variable or a directive."""
    block = server_block(Config.model_validate({"server": {"base_url": base_url}}), IMAGES)
    assert f"    server_name {name};\n" in block


@pytest.mark.parametrize(
    ("base_url", "expected"),
    [
        ("", ["listen 80;", "listen [::]:80;"]),
        ("http://images.example:8081/below", ["listen 8081;", "listen [::]:8081;"]),
        (
            "https://images.example",
            [
                "listen 443 ssl;",
                "listen [::]:443 ssl;",
                "ssl_certificate /etc/letsencrypt/live/images.example/fullchain.pem;",
                "ssl_certificate_key /etc/letsencrypt/live/images.example/privkey.pem;",
            ],
        ),
        (
            "https://[::1]:8443",
            [
                "listen 8443 ssl;",
                "listen [::]:8443 ssl;",
                "ssl_certificate /etc/letsencrypt/live/HOST/fullchain.pem;",
                "ssl_certificate_key /etc/letsencrypt/live/HOST/privkey.pem;",
            ],
        ),
    ],
)
def test_nginx_listens_where_the_base_url_says(base_url: str, expected: list[str]) -> None:
    """Catches a block on port 80 for URLs that begin with https://."""
    config = Config.model_validate({"server": {"base_url": base_url}})
    for text in (server_block(config, IMAGES), nginx_balancer(config, ("a:1",))):
        found = re.findall(r"^    ((?:listen|ssl_)[^;]*;)", text, re.MULTILINE)
        assert found == expected


def test_every_preset_and_format_has_its_fingerprint_and_nothing_has_when_images_are_off() -> None:
    """Catches a format that is always a miss, and hits of a proxy that is switched off."""
    mine = Preset(width=77, fit="contain", quality=3)
    config = Config.model_validate({"presets": {"mine": mine}})
    block = server_block(config, IMAGES)
    for format_ in (None, *OUTPUTS):
        assert f"    mine@{format_ or ''} {mine.fingerprint(format_)};\n" in block
    assert "avatar@" not in block
    off = config.model_copy(update={"server": config.server.model_copy(update={"enabled": False})})
    assert "mine@" not in server_block(off, IMAGES)


def parts_of(patterns: tuple[str, ...], target: str, condition: str = "") -> dict[str, str] | None:
    for pattern in patterns:
        if found := re.search(pattern, f"{condition} GET {target}"):
            return found.groupdict(default="")
    return None


LONG = "did:web:" + ".".join(["a" * 60] * 2 + ["example"])
"""Of 129 characters behind the method."""


@given(did=dids)
def test_nginx_takes_the_tags_of_a_cdn_from_the_url(did: str) -> None:
    """Catches hits whose tags no purge names."""
    parts = parts_of(TAGGED, GOOD.replace(DID, did) + "?x=1")
    assert parts is not None
    assert owner_tag(parse_did(did)) == f"{parts['imageproxy_method']}-{parts['imageproxy_owner']}"
    assert content_tag(parse_cid(CID)) == f"cid-{parts['imageproxy_digest']}"


def test_what_nginx_has_no_tags_for_is_left_to_the_proxy() -> None:
    """Catches an answer without tags, and one with tags of nothing."""
    assert parts_of(CANONICAL, GOOD.replace(CID, CID_V0)) is not None
    assert parts_of(TAGGED, GOOD.replace(CID, CID_V0)) is None
    assert parts_of(CANONICAL, GOOD.replace(DID, LONG)) is not None
    assert parts_of(TAGGED, GOOD.replace(DID, LONG)) is None


def test_where_purges_go_by_url_nginx_answers_no_other_spelling() -> None:
    """Catches a shared copy of ``?x``, of an escape or of an ``Origin``: no purge names it."""
    assert parts_of(EXACT, GOOD) is not None
    for target in (f"{GOOD}?x=1", f"{GOOD}?", GOOD.replace(":", "%3A")):
        assert parts_of(TAGGED, target) is not None
        assert parts_of(EXACT, target) is None
    assert parts_of(EXACT, GOOD, condition="https://app.example") is None
    by_url = {"kind": "bunny", "purge": "urls", "token": "a-token"}
    server = {"cdn_url": "https://img.example"}
    block = server_block(Config.model_validate({"cdn": by_url, "server": server}), IMAGES)
    assert "$http_if_unmodified_since$http_origin $request_method" in block


def test_nginx_waits_for_longer_than_the_slowest_answer() -> None:
    """Catches nginx' 60 seconds, after which a slow PDS's picture is an error."""
    config = Config.model_validate({"fetch": {"timeout": 100.5}, "process": {"queue_wait": 7}})
    found = re.search(r"proxy_read_timeout (\d+)s;", server_block(config, IMAGES))
    assert found is not None
    # A DID and a blob, each twice where the account has moved; a transform of 30 s, twice.
    assert int(found[1]) > 4 * 100.5 + 2 * (7 + 30)


media_ranges = st.sampled_from(
    ["image/avif", "image/webp", "image/jpeg", "image/*", "*/*", "IMAGE/WebP", "image/avifx",
     "x-image/avif", "image/avif;v=1", "image/", "nonsense"]
)  # fmt: skip
qualities = st.sampled_from(["", ";q=1", ";q=0", ";q=0.5", " ; q=0.3", ";q=x"])
accepts = st.lists(st.tuples(media_ranges, qualities).map("".join), max_size=5).map(
    lambda parts: ", ".join(parts)
) | st.text("image/avifwebp*,;q=0. \t", max_size=40)


@given(accepts, st.permutations(["avif", "webp"]))
@examples(2000)
def test_nginx_chooses_a_format_as_the_proxy_does_or_leaves_it_to_it(
    accept: str, formats: list[str]
) -> None:
    """Catches a client that gets what it did not ask for, when the file happens to be there."""
    wanted = [Format(name) for name in formats]
    for pattern, name in accept_patterns(wanted):
        if re.search(pattern, accept, re.IGNORECASE):
            assert (choose(accept, wanted) or "") == name
            return


def test_nginx_itself_decides_what_browsers_send() -> None:
    """Catches patterns that leave everything to the proxy."""
    patterns = list(accept_patterns([Format.AVIF, Format.WEBP]))

    def decided(accept: str) -> str | None:
        return next((name for each, name in patterns if re.search(each, accept, re.I)), None)

    assert decided("image/avif,image/webp,image/apng,*/*;q=0.8") == "avif"
    assert decided("image/webp,*/*") == "webp"
    assert decided("image/png,*/*;q=0.5") == decided("") == decided("*/*") == ""
    assert decided("image/avif;q=0.5,image/webp") is None
