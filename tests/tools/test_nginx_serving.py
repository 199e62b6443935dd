"""A real nginx before a real proxy: a client must not be able to tell.

Skipped where there is no nginx, unless ``tests.required`` says that there must be.
"""

from __future__ import annotations

import json
import os
import random
import re
import signal
import sys
from collections.abc import AsyncIterator, Iterator, Mapping
from contextlib import aclosing, asynccontextmanager, closing
from dataclasses import dataclass
from email.utils import formatdate
from pathlib import Path

import pytest
import trio

from proxy.cache.interface import Entry
from proxy.cache.layout import entry_folder, entry_name
from proxy.config import Config, load_config
from proxy.model.formats import OUTPUTS, Format
from proxy.model.identifiers import Cid, Did, parse_did
from proxy.model.keys import BlobKey, ImageKey, PosterKey, image_key, poster_key
from proxy.model.picture_info import info_key
from proxy.model.presets import DEFAULT_PRESETS, Preset
from proxy.moderation.configured_store import folder_store_of
from proxy.urls import image_url
from proxy.web.caching import TAG_FIELDS
from proxy.wiring import disk_cache_of
from tests.cache import blob_cid, entry, owner
from tests.fakes.cdns import BASE, SETTINGS
from tests.fakes.sites import document, new_plc_did, pds_service
from tests.fakes.world import tiny_jpeg
from tests.imaging.sources import photo, pixel_art, png
from tests.nginx import block_for, check, images_of, nginx_program, run_nginx
from tests.ports import free_port
from tests.processes import (
    ROOT,
    SERVE,
    Reply,
    Server,
    imageproxy,
    in_background,
    own_environment,
    serve,
    until,
    upstream,
)

pytestmark = pytest.mark.nginx

TOKEN = "a-token-of-the-operator"

ODD = """of $money and ${more}; {a} "b" 'c' \\d \\\\t # \u00e9"""
"""A folder whose name nginx could take for half a dozen other things."""

OWN = {"server", "date", "connection", "keep-alive"}
"""Headers about a connection, which nginx has with the client, and the proxy with nginx."""

DID = owner(1)
WEB = parse_did("did:web:example.com")
LONGEST = parse_did("did:web:" + ".".join(["a" * 63, "b" * 63, "c" * 63, "d" * 57, "com"]))
PORT = parse_did("did:web:localhost%3A2583")
CID = blob_cid(1)
CID_V0 = Cid("QmYwAPJzv5CZsnA625s3Xf2nemtYgPpHdWEz79ojWnPbdG")


def key(
    preset: str = "avatar", did: Did = DID, cid: Cid = CID, format_: Format | None = None
) -> ImageKey:
    return image_key(DEFAULT_PRESETS, preset, did, cid, format_ and format_.value)


def poster(preset: str = "content_preview", did: Did = DID, cid: Cid = CID) -> PosterKey:
    return poster_key(DEFAULT_PRESETS, preset, did, cid)


AUTO = key()
ETAG = AUTO.etag
GOOD = image_url(AUTO)
INFO = info_key(AUTO.blob)
POSTER = image_url(poster())
UNNAMED_POSTER = POSTER.replace("/content_preview", "")

CACHED: dict[ImageKey, Format] = {
    **{key(preset): Format.JPEG for preset in DEFAULT_PRESETS},
    **{key(preset, format_=each): each for preset in DEFAULT_PRESETS for each in OUTPUTS},
    key(cid=blob_cid(2)): Format.PNG,
    key("content_full", cid=blob_cid(3)): Format.GIF,
    key("content_full", cid=blob_cid(4)): Format.WEBP,
    key("content_full", cid=blob_cid(5)): Format.AVIF,
    key(cid=CID_V0): Format.JPEG,
    key(did=WEB): Format.JPEG,
    key(did=LONGEST): Format.PNG,
    key(did=PORT): Format.JPEG,
    **{info_key(BlobKey(did, CID)): Format.JSON for did in (DID, WEB, LONGEST)},
    info_key(BlobKey(DID, CID_V0)): Format.JSON,
    **{poster(preset): Format.JPEG for preset in DEFAULT_PRESETS},
    **{poster(did=did): Format.JPEG for did in (WEB, LONGEST, PORT)},
    poster(cid=CID_V0): Format.JPEG,
}
"""What lies in the cache before either is asked, each of a length of its own."""

Request = tuple[str, dict[str, str], str]


def request(target: str = GOOD, method: str = "GET", **headers: str) -> Request:
    return target, {name.replace("_", "-"): value for name, value in headers.items()}, method


KNOWN = {
    "the tag": ETAG,
    "a weak tag": f"W/{ETAG}",
    "a list": f'"a", W/"b",\t"\xe9,",, {ETAG}, "c"',
    "*": "*",
    "the tag before a mistake": f"{ETAG} nonsense",
}

UNKNOWN = {
    "nothing": "",
    "another tag": '"a"',
    "the tag without quotes": ETAG.strip('"'),
    "the tag of another format": key(format_=Format.PNG).etag,
    "the tag behind a mistake": f'"a" {ETAG}',
    "* in a list": '*, "a"',
    "the tag in another one": f'"a,{ETAG[1:-1]}"',
}

KNOWN_TAG = "If-None-Match: the tag"

FROM_DISK: dict[str, Request] = {
    **{image_url(each): request(image_url(each)) for each in CACHED if "%" not in each.blob.did},
    **{f"HEAD of a {each}": request(image_url(key(format_=each)), "HEAD") for each in OUTPUTS},
    **{f"If-None-Match: {name}": request(If_None_Match=value) for name, value in KNOWN.items()},
    **{
        f"If-None-Match: {name} that it has not": request(If_None_Match=value)
        for name, value in UNKNOWN.items()
    },
    "HEAD with If-None-Match": request(method="HEAD", If_None_Match=ETAG),
    "a poster without a preset": request(UNNAMED_POSTER),
    "a poster without a preset, of a did:web": request(UNNAMED_POSTER.replace(DID, WEB)),
    "HEAD of a poster": request(POSTER, "HEAD"),
    "a poster with a query": request(UNNAMED_POSTER + "?v=2"),
    "If-None-Match of a poster": request(POSTER, If_None_Match=poster().etag),
    "If-None-Match of a poster without a preset": request(
        UNNAMED_POSTER, If_None_Match=poster().etag
    ),
    "If-None-Match of the picture, for a poster": request(
        POSTER, If_None_Match=key("content_preview", format_=Format.JPEG).etag
    ),
    "HEAD of what is told": request(image_url(INFO), "HEAD"),
    "If-None-Match of what is told": request(image_url(INFO), If_None_Match=INFO.etag),
    "what is told, with a query": request(image_url(INFO) + "?v=2"),
    "If-None-Match of a PNG without a format": request(
        image_url(key(cid=blob_cid(2))), If_None_Match="*"
    ),
    "If-None-Match of an AVIF": request(
        image_url(key(format_=Format.AVIF)), If_None_Match=key(format_=Format.AVIF).etag
    ),
    "a query": request(GOOD + "?v=2&x=/../@png"),
    "an empty query": request(GOOD + "?"),
    "escaped colons": request(GOOD.replace(":", "%3A")),
    "escaped colons in lower case": request(GOOD.replace(":", "%3a")),
    "a range": request(Range="bytes=1-2"),
    "ranges": request(Range="bytes=0-0,2-3", If_Range=ETAG),
    "If-Modified-Since": request(If_Modified_Since="Fri, 01 Jan 2100 00:00:00 GMT"),
    "If-Modified-Since and If-None-Match": request(
        If_Modified_Since="Fri, 01 Jan 2100 00:00:00 GMT", If_None_Match='"a"'
    ),
    "what a browser sends": request(
        Accept="image/avif,*/*", Accept_Encoding="gzip, br", Cookie="a=b", Cache_Control="no-cache"
    ),
}
"""What nginx answers itself."""

PASSED_ON: dict[str, Request] = {
    **{
        f"{method} of an image": request(method=method)
        for method in ("POST", "PUT", "DELETE", "OPTIONS", "PATCH", "FOO")
    },
    **{
        f"OPTIONS of {target}": request(target, "OPTIONS", Origin="https://app.example")
        for target in (
            f"/blob/{DID}/{CID}",
            image_url(INFO),
            f"/vid/{DID}/{CID}/thumbnail.jpg",
            "/",
            f"/avatar/{DID}",
            f"/banner/{DID}",
            "/lookup",
            "/healthz",
            "/readyz",
            "/nothing",
        )
    },
    "If-Match": request(If_Match='"a"'),
    "If-Match: *": request(If_Match="*"),
    "If-Unmodified-Since": request(If_Unmodified_Since="Thu, 01 Jan 1970 00:00:00 GMT"),
    "a did:web with a port": request(image_url(key(did=PORT))),
    "a did:web with a port, escaped once": request(
        image_url(key(did=PORT)).replace("%253A", "%3A")
    ),
    "a double slash": request(GOOD.replace("/plain", "//plain")),
    "a double slash at the beginning": request("/" + GOOD),
    "a dot segment": request(GOOD.replace("/plain", "/./plain")),
    "a segment up": request(GOOD.replace("/plain", "/x/../plain")),
    "an escaped segment up": request(GOOD.replace("/plain", "/x/%2e%2e/plain")),
    "an escaped slash": request(GOOD.replace("/plain", "%2Fplain")),
    "an escaped letter": request(GOOD.replace("/plain", "/%70lain")),
    "an escaped at sign": request(GOOD + "%40jpeg"),
    "a slash at the end": request(GOOD + "/"),
    "a fragment": request(GOOD + "#x"),
    "a format of what is told": request(image_url(INFO) + "@json"),
    "another name of a poster": request(POSTER.replace(".jpg", ".png")),
    "a format of a poster": request(POSTER + "@jpeg"),
    "a poster that is a picture": request(GOOD + "/thumbnail.jpg"),
    "a poster by no preset there is": request(POSTER.replace("content_preview", "nothing")),
    "a poster that nobody made": request(image_url(poster(did=owner(99)))),
    "a poster of a did:web with a port": request(image_url(poster(did=PORT))),
    "no such preset": request(GOOD.replace("avatar", "nothing")),
    "an upper-case DID": request(GOOD.replace(DID, DID.upper())),
    "a DID of another method": request(GOOD.replace("plc", "key")),
    "half a DID": request(GOOD.replace(DID, DID[:-1])),
    "an upper-case CID": request(GOOD.replace(CID, CID.upper())),
    "half a CID": request(GOOD[:-1]),
    "a CID that is too long for a file": request(GOOD + "a" * 300),
    "no such format": request(GOOD + "@gif"),
    "an empty format": request(GOOD + "@"),
    "two formats": request(GOOD + "@jpeg@png"),
    "an owner that does not exist": request(image_url(key(did=owner(99)))),
    "If-None-Match without a file": request(
        image_url(key(did=owner(98))), If_None_Match=key(did=owner(98)).etag
    ),
    "a temporary file": request(GOOD.rpartition("/")[0] + "/.0123-0.tmp"),
    "the folder of the results": request(GOOD.rpartition("/")[0] + "/"),
    "the file itself": request(f"/{entry_folder(AUTO)}/{entry_name(AUTO, Format.JPEG)}"),
    "the blocks": request("/blocks.sqlite3"),
    "the page": request("/", Accept_Encoding="gzip"),
    "health": request("/healthz"),
    "the document": request("/openapi.json"),
    "a preflight of the document": request("/openapi.json", "OPTIONS"),
    "health of a HEAD": request("/healthz", "HEAD"),
    "readiness": request("/readyz"),
    "a page that is not there": request("/nothing"),
}


@dataclass(frozen=True)
class Site:
    """nginx, and the proxy behind it."""

    config: Config
    front: Server
    proxy: Server

    async def answers(self, asked: Request) -> tuple[Reply, Reply]:
        """What the proxy and nginx say."""
        target, headers, method = asked
        direct = await self.proxy.get(target, *headers.items(), method=method)
        return direct, await self.front.get(target, *headers.items(), method=method)


def told(reply: Reply) -> tuple[int, dict[str, str], bytes]:
    """What of an answer must be the same."""
    headers = {name: value for name, value in reply.headers.items() if name not in OWN}
    if reply.status == 304:
        # nginx says how long a 200 would be, as RFC 9110, section 8.6, allows.
        headers.pop("content-length", None)
    return reply.status, headers, reply.body


@asynccontextmanager
async def run_site(folder: Path, environment: Mapping[str, str]) -> AsyncIterator[Site]:
    """A proxy and an nginx, with files of theirs in ``folder``."""
    async with serve(SERVE, environment) as proxy:
        bind = {"IMAGE_PROXY_SERVER__BIND": f"127.0.0.1:{proxy.port}"}
        config = load_config(environment={**environment, **bind})
        async with run_nginx(folder, config) as front:
            yield Site(config, front, proxy)


async def put(config: Config, each: ImageKey, made: Entry) -> None:
    async with aclosing(disk_cache_of(config)) as cache:
        await cache.put(each, made)
    with closing(folder_store_of(config)) as store:
        store.make()


async def put_all(config: Config) -> None:
    async with aclosing(disk_cache_of(config)) as cache:
        for size, (each, format_) in enumerate(CACHED.items(), 100):
            await cache.put(each, entry(size, format_))
    with closing(folder_store_of(config)) as store:
        store.make()


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Site]:
    """One site for all tests that only ask, over a cache folder with an odd name."""
    folder = tmp_path_factory.mktemp("nginx")
    nginx_program()

    @asynccontextmanager
    async def run() -> AsyncIterator[Site]:
        async with upstream() as internet:
            environment = internet.environment(folder / ODD, SERVER__ADMIN_TOKEN=TOKEN)
            await put_all(load_config(environment=environment))
            async with run_site(folder / "nginx", environment) as made:
                yield made

    with in_background(run) as background:
        yield background.value


@pytest.mark.parametrize("name", [*FROM_DISK, *PASSED_ON])
async def test_nginx_answers_as_the_proxy_does(site: Site, name: str) -> None:
    """Catches any status, header or byte that depends on who answered."""
    direct, front = await site.answers({**FROM_DISK, **PASSED_ON}[name])
    assert told(front) == told(direct)
    assert front.status in ((200, 304) if name in FROM_DISK else range(200, 500))


async def test_parts_of_an_original_are_those_of_the_proxy(tmp_path: Path) -> None:
    """Catches a block that cuts, ignores or refuses ranges itself: a player could not seek."""
    nginx_program()
    async with upstream() as internet:
        did, cid = internet.add_blob(tiny_jpeg())
        async with run_site(tmp_path / "nginx", internet.environment(tmp_path / "cache")) as site:
            statuses = set()
            for method, ranges in (
                ("GET", {"Range": "bytes=1-3"}),
                ("GET", {"Range": "bytes=-5"}),
                ("GET", {"Range": "bytes=0-0,2-3"}),
                ("GET", {"Range": "bytes=99999-"}),
                ("GET", {"Range": "bytes=1-3", "If-Range": f'"{cid}"'}),
                ("GET", {"Range": "bytes=1-3", "If-Range": '"other"'}),
                ("HEAD", {"Range": "bytes=1-3"}),
            ):
                direct, front = await site.answers((f"/blob/{did}/{cid}", ranges, method))
                assert told(front) == told(direct), ranges
                statuses.add(front.status)
            assert statuses == {200, 206, 416}


REFUSED = {
    "a NUL": GOOD + "%00",
    "a percent sign alone": GOOD + "%",
    "half an escape": GOOD + "%a",
    "above the root": "/img/../.." + GOOD,
}


@pytest.mark.parametrize("name", REFUSED)
async def test_what_nginx_refuses_itself_the_proxy_refuses_too(site: Site, name: str) -> None:
    """Catches a URL of ours that never gets through nginx."""
    direct, front = await site.answers(request(REFUSED[name]))
    assert 400 <= front.status < 500
    assert 400 <= direct.status < 500


ACCEPTS = {
    "nothing": None,
    "an empty one": "",
    "Chrome's": "image/avif,image/webp,image/apng,image/svg+xml,image/*,*/*;q=0.8",
    "Safari's": "image/webp,image/avif,image/jxl,video/*;q=0.8,image/png,image/*;q=0.8,*/*;q=0.5",
    "that of a browser without AVIF": "image/webp,*/*",
    "that of an old one": "image/png,image/svg+xml,image/*;q=0.8,*/*;q=0.5",
    "anything": "*/*",
    "upper case": "IMAGE/AVIF",
    "AVIF, but rather not": "image/avif;q=0.1, image/webp",
    "AVIF, but rather JPEG": "image/avif;q=0.1, image/jpeg",
    "no AVIF": "image/avif;q=0, image/webp;q=0.5",
    "a parameter": "image/avif;v=1, */*;q=0.1",
    "nonsense": "image/avif;q=x,,image/",
    "something that only begins alike": "image/avif-sequence",
}


def environment_of(section: Mapping[str, str]) -> dict[str, str]:
    return {f"IMAGE_PROXY_CDN__{key.upper()}": value for key, value in section.items()}


@pytest.mark.parametrize("purge", ["tags", "urls"])
@pytest.mark.parametrize("kind", SETTINGS)
async def test_nginx_tells_a_cdn_what_the_proxy_does(kind: str, purge: str, tmp_path: Path) -> None:
    """Catches a hit of nginx without tags, and one that a purge by URL could not name."""
    environment = {
        "IMAGE_PROXY_CACHE_PATH": str(tmp_path / "cache"),
        "IMAGE_PROXY_SERVER__CDN_URL": BASE,
        "IMAGE_PROXY_CACHE_CONTROL__BROWSER": "60",
        **environment_of({**SETTINGS[kind], "purge": purge}),
    }
    nginx_program()
    await put_all(load_config(environment=environment))
    odd = {
        "a query": request(GOOD + "?v=2"),
        "escaped colons": request(GOOD.replace(":", "%3A")),
        "an origin": request(Origin="https://app.example"),
        "an origin and the tag": request(Origin="https://app.example", If_None_Match=ETAG),
    }
    usual = {name: FROM_DISK[name] for name in (*map(image_url, (AUTO, key(did=WEB))), KNOWN_TAG)}
    async with run_site(tmp_path / "nginx", environment) as site:
        for name, asked in {**FROM_DISK, **odd}.items():
            direct, front = await site.answers(asked)
            assert told(front) == told(direct), name
            assert front.headers[TAG_FIELDS[kind].lower()], name
            control = "public, max-age=60, s-maxage=31536000"
            if purge == "urls" and name in odd:
                control = "private, max-age=60"
            if name in {**usual, **odd}:
                assert front.headers["cache-control"] == control, name
        # What nginx decides needs no proxy.
        site.proxy.send(signal.SIGTERM)
        assert await site.proxy.exit_code() == 0
        for name, asked in usual.items():
            target, headers, method = asked
            reply = await site.front.get(target, *headers.items(), method=method)
            assert reply.status in (200, 304), name


async def test_nginx_negotiates_as_the_proxy_does(tmp_path: Path) -> None:
    """Catches a format that depends on who answered, and an answer that does not say it varies."""
    environment = {
        "IMAGE_PROXY_CACHE_PATH": str(tmp_path / "cache"),
        "IMAGE_PROXY_NEGOTIATE__FORMATS": "avif,webp",
    }
    nginx_program()
    await put_all(load_config(environment=environment))
    served = set()
    async with run_site(tmp_path / "nginx", environment) as site:
        # In each format, without one, animated, and a PNG that was never asked for as another.
        for each in (AUTO, key(format_=Format.AVIF), key("content_full"), key(cid=blob_cid(2))):
            for name, accept in ACCEPTS.items():
                headers = {} if accept is None else {"Accept": accept}
                for tag in ("", ETAG, key(format_=Format.AVIF).etag, "*"):
                    asked = request(image_url(each), **headers, If_None_Match=tag)
                    direct, front = await site.answers(asked)
                    assert told(front) == told(direct), (each, name, tag)
                    varies = each.format is None and each.preset == "avatar"
                    assert ("vary" in front.headers) == varies, (each, name, tag)
                    served.add((front.status, front.headers.get("content-type")))
        # What nginx decides needs no proxy.
        site.proxy.send(signal.SIGTERM)
        assert await site.proxy.exit_code() == 0
        for name, type_ in {
            "Chrome's": "image/avif",
            "Safari's": "image/avif",
            "that of a browser without AVIF": "image/webp",
            "that of an old one": "image/jpeg",
            "nothing": "image/jpeg",
        }.items():
            accept = ACCEPTS[name]
            reply = await site.front.get(GOOD, *([("Accept", accept)] if accept else []))
            assert (reply.status, reply.headers["content-type"]) == (200, type_), name
    assert {(200, f"image/{each}") for each in ("avif", "webp", "jpeg", "png")} <= served


@pytest.mark.parametrize("method", ["GET", "HEAD", "POST"])
@pytest.mark.parametrize(
    "target",
    [
        "/metrics",
        "/metrics?x",
        "/metrics/",
        "//metrics",
        "/x/../metrics",
        "/%6detrics",
        "/%2Fmetrics",
    ],
)
async def test_the_metrics_are_not_for_the_public(site: Site, target: str, method: str) -> None:
    """Catches a guard that is a comment, and one that another spelling gets around."""
    assert b"imageproxy_requests_total" in (await site.proxy.get("/metrics")).body
    reply = await site.front.get(target, method=method)
    assert reply.status == 404
    assert b"imageproxy_" not in reply.body


async def test_nginx_sends_no_validators_of_its_own(site: Site) -> None:
    """Catches a 304 for a tag or a date that no answer ever had."""
    file = images_of(site.config) / entry_folder(AUTO) / entry_name(AUTO, Format.JPEG)
    status = file.stat()
    for asked in (
        request(If_None_Match=f'"{int(status.st_mtime):x}-{status.st_size:x}"'),
        request(If_Modified_Since=formatdate(int(status.st_mtime), usegmt=True)),
    ):
        direct, front = await site.answers(asked)
        assert front.status == 200
        assert told(front) == told(direct)


async def test_a_304_says_no_other_length_than_that_of_the_200(site: Site) -> None:
    """Catches nginx' own "Content-Length: 0", with which caches cut what they have."""
    whole = await site.front.get(GOOD)
    for headers in ([("If-None-Match", ETAG)], [("If-None-Match", "*")]):
        reply = await site.front.get(GOOD, *headers)
        assert reply.status == 304
        assert reply.headers["content-length"] == whole.headers["content-length"]


async def test_hits_and_304s_need_no_proxy_and_all_else_gets_busy(tmp_path: Path) -> None:
    """Catches a hit that asks the proxy after all, and nginx' own page when it is gone."""
    environment = {"IMAGE_PROXY_CACHE_PATH": str(tmp_path / "cache")}
    nginx_program()
    await put_all(load_config(environment=environment))
    async with run_site(tmp_path / "nginx", environment) as site:
        before = {name: (await site.answers(asked))[0] for name, asked in FROM_DISK.items()}
        site.proxy.send(signal.SIGTERM)
        assert await site.proxy.exit_code() == 0
        for name, (target, headers, method) in FROM_DISK.items():
            after = await site.front.get(target, *headers.items(), method=method)
            assert told(after) == told(before[name]), name
        assert {reply.status for reply in before.values()} == {200, 304}
        for target, headers, method in PASSED_ON.values():
            reply = await site.front.get(target, *headers.items(), method=method)
            assert reply.status == 503, target
            assert reply.body == (b"" if method == "HEAD" else b"busy\n")
            assert reply.headers["retry-after"] == "2"
            assert reply.headers["cache-control"] == "no-store"
            assert reply.headers["content-type"] == "text/plain; charset=utf-8"
            assert reply.headers["access-control-allow-origin"] == "*"


async def test_a_miss_comes_from_the_proxy_and_is_a_hit_of_nginx_from_then_on(
    tmp_path: Path,
) -> None:
    """Catches files that the proxy writes and nginx does not find."""
    async with upstream() as internet:
        did, cid = internet.add_blob(tiny_jpeg())
        keys = [key("avatar_thumbnail", did, cid, each) for each in (None, *OUTPUTS)]
        environment = internet.environment(tmp_path / "cache")
        nginx_program()
        async with run_site(tmp_path / "nginx", environment) as site:
            made = {each: await site.front.get(image_url(each)) for each in keys}
            for reply in made.values():
                assert (reply.status, reply.headers["x-cache"]) == (200, "miss")
                assert "process;dur=" in reply.headers["server-timing"]
            await until(lambda: len(files_below(tmp_path / "cache")) == len(keys))
            site.proxy.send(signal.SIGTERM)
            assert await site.proxy.exit_code() == 0
            for each, first in made.items():
                again = await site.front.get(image_url(each))
                assert again.body == first.body
                differing = told(first)[1]
                del differing["server-timing"]
                assert told(again)[1] == {**differing, "x-cache": "hit"}


async def test_nginx_serves_a_png_as_the_jpeg_that_it_has_become(tmp_path: Path) -> None:
    """Catches a block that knows another fingerprint, or takes the type from the source."""
    async with upstream() as internet:
        environment = internet.environment(
            tmp_path / "cache", PRESETS__AVATAR_THUMBNAIL__PNG="photographs-to-jpeg"
        )
        nginx_program()
        async with run_site(tmp_path / "nginx", environment) as site:
            made = {"jpeg": photo(160, 120), "png": pixel_art(160, 120)}
            for number, (type_, pixels) in enumerate(made.items(), start=1):
                did, cid = internet.add_blob(png(pixels), "image/png")
                target = image_url(key("avatar_thumbnail", did, cid))
                miss = await site.front.get(target)
                await until(lambda: len(files_below(tmp_path / "cache")) == number)  # noqa: B023
                hit = await site.front.get(target)
                types = {each.headers["content-type"] for each in (miss, hit)}
                assert types == {f"image/{type_}"}
                assert (hit.headers["x-cache"], hit.headers.get("server-timing")) == ("hit", None)


async def test_a_request_has_one_id_in_both_logs_which_no_stranger_chooses(tmp_path: Path) -> None:
    """Catches a line of the proxy's that no line of nginx' belongs to."""
    nginx_program()
    async with upstream() as internet:
        environment = internet.environment(tmp_path / "cache")
        async with run_site(tmp_path / "nginx", environment) as site:
            await site.front.get("/img/nosuch", ("X-Request-Id", "of-a-stranger"))
            line = json.loads((await site.proxy.line_with('^.*"event":"request".*$'))[0])
    assert re.fullmatch("[0-9a-f]{32}", line["request_id"])


async def test_errors_pass_through_as_they_are(tmp_path: Path) -> None:
    """Catches nginx putting a page of its own in the place of an error of the table."""
    async with upstream() as internet:
        text = internet.add_blob(b"only text", "text/plain")
        broken = internet.add_blob(tiny_jpeg()[:-40])
        large = internet.add_blob(tiny_jpeg() + bytes(200_000))
        absent = (text[0], blob_cid(5))
        other = (text[0], blob_cid(6))
        internet.pds.accounts[text[0]].blobs[other[1]] = internet.pds.accounts[text[0]].blobs[
            text[1]
        ]
        homeless = new_plc_did()
        internet.plc.documents[homeless] = document(homeless)
        unreachable = new_plc_did()
        closed = pds_service(f"http://127.0.0.1:{free_port()}")
        internet.plc.documents[unreachable] = document(unreachable, closed)
        expected = {
            text: (400, b"unsupported image format"),
            large: (400, b"image too large"),
            absent: (404, b"blob not found"),
            (owner(97), CID): (404, b"blob not found"),
            broken: (422, b"image could not be decoded"),
            other: (502, b"blob does not match its CID"),
            (homeless, CID): (502, b"no PDS endpoint found"),
            (unreachable, CID): (502, b"failed to fetch blob from PDS"),
        }
        environment = internet.environment(tmp_path / "cache", FETCH__MAX_SOURCE_MB="0.1")
        nginx_program()
        async with run_site(tmp_path / "nginx", environment) as site:
            for (did, cid), (status, body) in expected.items():
                direct, front = await site.answers(request(image_url(key(did=did, cid=cid))))
                assert (front.status, front.body[: len(body)]) == (status, body)
                assert told(front) == told(direct)


async def test_a_blob_larger_than_nginx_buffers_arrives_whole(tmp_path: Path) -> None:
    """Catches a limit of nginx' buffers or of its temporary files that cuts an original."""
    async with upstream() as internet:
        data = tiny_jpeg() + random.Random(1).randbytes(5_000_000)
        did, cid = internet.add_blob(data)
        nginx_program()
        async with run_site(tmp_path / "nginx", internet.environment(tmp_path / "cache")) as site:
            for asked in (
                request(f"/blob/{did}/{cid}"),
                request(f"/blob/{did}/{cid}", "HEAD"),
                request(f"/blob/{did}/{cid}", If_None_Match=f'"{cid}"'),
                request(f"/blob/{did}/{cid}", Range="bytes=0-9"),
            ):
                direct, front = await site.answers(asked)
                assert told(front) == told(direct)
            assert (await site.front.get(f"/blob/{did}/{cid}")).body == data


def files_below(folder: Path) -> list[Path]:
    return [
        path for path in (folder / "images").rglob("*") if path.is_file() and path.suffix != ".tmp"
    ]


async def test_a_block_holds_through_nginx_from_the_answer_on(tmp_path: Path) -> None:
    """Catches an open file that nginx keeps, and a 304 for what nobody may have any more."""
    environment = {
        "IMAGE_PROXY_CACHE_PATH": str(tmp_path / "cache"),
        "IMAGE_PROXY_SERVER__ADMIN_TOKEN": TOKEN,
    }
    authorization = ("Authorization", f"Bearer {TOKEN}")
    nginx_program()
    await put_all(load_config(environment=environment))
    async with run_site(tmp_path / "nginx", environment) as site:
        other = image_url(key(did=WEB))
        for target in (GOOD, GOOD, image_url(key(format_=Format.WEBP)), other):
            assert (await site.front.get(target)).status == 200
        body = json.dumps({"did": DID}).encode()
        added = await site.proxy.get("/admin/blocks", authorization, method="POST", body=body)
        assert added.status == 200
        for each in CACHED:
            asked = [request(image_url(each)), request(image_url(each), If_None_Match=each.etag)]
            for one in [*asked, request(image_url(each), "HEAD", If_None_Match="*")]:
                direct, front = await site.answers(one)
                assert told(front) == told(direct)
                if each.blob.did == DID:
                    assert (front.status, front.headers["cache-control"]) == (
                        404,
                        "public, max-age=60",
                    )
        assert (await site.front.get(other)).status == 200


async def test_a_changed_preset_makes_old_files_and_old_tags_void(tmp_path: Path) -> None:
    """Catches yesterday's pixels under today's preset."""
    async with upstream() as internet:
        did, cid = internet.add_blob(tiny_jpeg())
        old = key("avatar_thumbnail", did, cid)
        environment = internet.environment(tmp_path / "cache")
        nginx_program()
        await put(load_config(environment=environment), old, entry())
        async with run_site(tmp_path / "nginx", environment) as site:
            assert (await site.front.get(image_url(old))).headers["etag"] == old.etag
        environment["IMAGE_PROXY_PRESETS__AVATAR_THUMBNAIL__QUALITY"] = "70"
        async with run_site(tmp_path / "nginx", environment) as site:
            reply = await site.front.get(image_url(old), ("If-None-Match", old.etag))
            assert (reply.status, reply.headers["x-cache"]) == (200, "miss")
            assert reply.headers["etag"] != old.etag
            assert reply.body != entry().data


async def test_a_file_that_vanishes_between_finding_and_opening_it_is_the_proxys_to_answer(
    tmp_path: Path,
) -> None:
    """Catches nginx' own 404 in a purge: a pipe is found like a file, and is not opened as one."""
    environment = {"IMAGE_PROXY_CACHE_PATH": str(tmp_path / "cache")}
    nginx_program()
    await put_all(load_config(environment=environment))
    async with run_site(tmp_path / "nginx", environment) as site:
        in_memory = await site.proxy.get(GOOD)
        file = images_of(site.config) / entry_folder(AUTO) / entry_name(AUTO, Format.JPEG)
        file.unlink()
        os.mkfifo(file)
        assert told(await site.front.get(GOOD)) == told(in_memory)
        direct, front = await site.answers(request(If_None_Match=ETAG))
        assert told(front) == told(direct)
        assert front.status == 304
        assert "content-length" not in front.headers, "the proxy's own, so the fall-back was taken"


async def test_a_hit_of_nginx_shows_in_the_files_access_time(tmp_path: Path) -> None:
    """Catches an nginx that reads without a trace: what it serves most would be evicted first."""
    config = Config.model_validate({"cache": {"path": tmp_path / "cache"}})
    nginx_program()
    await put_all(config)
    file, control = (
        images_of(config) / entry_folder(each) / entry_name(each, Format.JPEG)
        for each in (AUTO, key("banner"))
    )
    for each in (file, control):
        os.utime(each, (1_000_000_000, 1_000_000_000))
    control.read_bytes()
    if control.stat().st_atime == 1_000_000_000:
        pytest.skip("the temporary folder is mounted with noatime")
    async with run_nginx(tmp_path / "nginx", config) as front:
        assert (await front.get(GOOD)).status == 200
    assert file.stat().st_atime > 1_000_000_000
    assert file.stat().st_mtime == 1_000_000_000


class Counted:
    """An upstream that counts its connections, and closes each when a second request comes."""

    def __init__(self) -> None:
        self.requests: list[bytes] = []
        self.connections = 0
        self.closes_at_second = False

    async def serve(self, stream: trio.SocketStream) -> None:
        self.connections += 1
        served = 0
        async with stream:
            async for data in stream:
                self.requests.append(bytes(data).split(b" ")[0])
                served += 1
                if served == 2 and self.closes_at_second:
                    return
                await stream.send_all(b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok")
                if b"\r\nconnection: close" in data.lower() or b" HTTP/1.0" in data:
                    return


@asynccontextmanager
async def counted(folder: Path) -> AsyncIterator[tuple[Counted, Server]]:
    nginx_program()
    listeners = await trio.open_tcp_listeners(0, host="127.0.0.1")
    port = listeners[0].socket.getsockname()[1]
    config = Config.model_validate({"server": {"bind": f"127.0.0.1:{port}"}})
    async with trio.open_nursery() as nursery:
        made = Counted()
        nursery.start_soon(trio.serve_listeners, made.serve, listeners)
        async with run_nginx(folder, config) as front:
            yield made, front
        nursery.cancel_scope.cancel()


async def test_connections_to_the_proxy_are_kept(tmp_path: Path) -> None:
    """Catches "Connection: close" to the upstream, which costs a handshake per miss."""
    async with counted(tmp_path / "nginx") as (behind, front):
        for target in ("/healthz", GOOD, "/healthz", f"/blob/{DID}/{CID}"):
            assert (await front.get(target)).status == 200
        assert (behind.connections, len(behind.requests)) == (1, 4)


async def test_a_kept_connection_that_dies_costs_a_get_nothing_and_repeats_no_post(
    tmp_path: Path,
) -> None:
    """Catches a 503 whenever the proxy restarts, and a POST that is sent twice."""
    async with counted(tmp_path / "nginx") as (behind, front):
        behind.closes_at_second = True
        assert (await front.get("/healthz")).status == 200
        assert (await front.get("/healthz")).status == 200
        assert (behind.connections, behind.requests) == (2, [b"GET"] * 3)
        assert (await front.get("/lookup", method="POST", body=b"{}")).status == 503
        assert behind.requests == [b"GET"] * 3 + [b"POST"]


CONFIGURATIONS: dict[str, dict[str, object]] = {
    "the default": {},
    "a base URL": {"server": {"base_url": "https://images.example/below"}},
    "a root path": {"server": {"root_path": "/a.b/c-d~e_f"}},
    "a root path beside a base URL": {
        "server": {"root_path": "/img", "base_url": "http://images.example/img"}
    },
    "a base URL with an odd path": {"server": {"base_url": "https://images.example/a%20b;$c"}},
    "every address": {"server": {"bind": "[::]:8080"}},
    "images switched off": {"server": {"enabled": False}},
    "no presets": {"presets": {}},
    "formats to negotiate": {"negotiate": {"formats": ["webp", "avif"]}},
    "formats to negotiate, and no presets": {
        "negotiate": {"formats": ["avif"]},
        "presets": {},
    },
    "presets with long names": {
        "presets": {
            "a" + "b" * 63: Preset(width=1, fit="contain", quality=1),
            **{"c" * length: Preset(width=1, fit="contain", quality=1) for length in range(36, 50)},
        }
    },
    "25 presets": {
        "presets": {
            f"preset_number_{number}": Preset(width=1, fit="contain", quality=1)
            for number in range(25)
        }
    },
    "a folder with an odd name": {"cache": {"path": f"/srv/{ODD}\n\t\r"}},
    "patience": {"fetch": {"timeout": 1e6}},
}


@pytest.mark.parametrize("name", CONFIGURATIONS)
def test_nginx_accepts_the_block_of_any_configuration(name: str, tmp_path: Path) -> None:
    """Catches a value that breaks the file, and a map that nginx has no room for."""
    config = Config.model_validate(CONFIGURATIONS[name])
    assert check(tmp_path / "nginx", block_for(config, free_port())) == ""


def test_what_nginx_refuses_is_seen_by_these_tests(tmp_path: Path) -> None:
    """Catches a check that passes whatever it is given."""
    assert "[emerg]" in check(tmp_path / "nginx", "server { nonsense; }")


@pytest.mark.parametrize("length", [3, 46, 64])
async def test_a_preset_is_served_however_long_its_name(length: int, tmp_path: Path) -> None:
    """Catches a name that nginx knows in its short form alone."""
    name = "p" * length
    preset = Preset(width=9, fit="contain", quality=9)
    config = Config.model_validate({"presets": {name: preset}, "cache": {"path": tmp_path}})
    each = image_key(config.presets, name, DID, CID, "webp")
    await put(config, each, entry(123, Format.WEBP))
    nginx_program()
    async with run_nginx(tmp_path / "nginx", config) as front:
        reply = await front.get(image_url(each))
        assert (reply.status, reply.headers["etag"]) == (200, each.etag)
        assert len(reply.body) == 123
        # No prefix and no extension of a name is the name.
        assert (await front.get(image_url(each).replace(name, name[:-1]))).status == 503
        assert (await front.get(image_url(each).replace(name, name + "p"))).status == 503


@pytest.mark.parametrize(
    "server", [{"root_path": "/img.s"}, {"base_url": "http://images.example/img.s"}]
)
async def test_hits_below_a_path_come_from_the_disk(server: dict[str, str], tmp_path: Path) -> None:
    """Catches a block that passes on what it has, and one whose dot is any character."""
    config = Config.model_validate({"server": server, "cache": {"path": tmp_path}})
    await put(config, AUTO, entry(123, Format.JPEG))
    await put(config, INFO, entry(45, Format.JSON))
    nginx_program()
    async with run_nginx(tmp_path / "nginx", config) as front:
        for target, length in ((GOOD, 123), (image_url(INFO), 45)):
            reply = await front.get(f"/img.s{target}")
            assert (reply.status, len(reply.body)) == (200, length)
            # Nobody is behind it: what is not on disk is not here.
            assert (await front.get(f"/img.s/x{target}")).status == 503
            assert (await front.get(target)).status == 404
            assert (await front.get(f"/imgxs{target}")).status == 404


async def test_the_command_prints_that_block(tmp_path: Path) -> None:
    """Catches a command that prints another folder than the one that is served from."""
    environment = {
        "IMAGE_PROXY_CACHE_PATH": str(tmp_path / ODD),
        "IMAGE_PROXY_SERVER__BASE_URL": "http://images.example",
    }
    done = await trio.run_process(
        [sys.executable, *imageproxy("nginx")],
        cwd=ROOT,
        env=own_environment(environment),
        capture_stdout=True,
    )
    printed = done.stdout.decode()
    port = free_port()
    told = "    # An https:// URL as server.base_url adds the lines of TLS; certbot does so too.\n"
    here = (
        printed.replace(told, "")
        .replace("listen 80;", f"listen 127.0.0.1:{port};")
        .replace("    listen [::]:80;\n", "")
    )
    assert here == block_for(load_config(environment=environment), port)
    assert check(tmp_path / "nginx", here) == ""
