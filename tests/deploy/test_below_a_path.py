"""The service below ``/pics/`` of a host, through each front that passes the path on or takes it
away: everything that names a URL agrees."""

from __future__ import annotations

import json
import re
import sys
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from urllib.parse import urljoin, urlsplit

import pytest
import trio
from playwright.sync_api import Browser, expect

from proxy.config import Config, load_config
from tests.balancers import BALANCERS
from tests.deploy.test_fronts import DEPLOY, OWN, TOKEN, program
from tests.fakes.world import tiny_jpeg
from tests.nginx import block_for, command_for, nginx_program
from tests.page import NoBrowser, chromium
from tests.ports import free_port
from tests.processes import (
    ROOT,
    SERVE,
    Background,
    Reply,
    Server,
    imageproxy,
    in_background,
    listening,
    own_environment,
    serve,
    upstream,
)
from tests.required import skip_unless_required

pytestmark = pytest.mark.slow

PATH = "/pics"

Command = Callable[[Path, int, int, Config], list[str]]
"""Of a front: its folder, its port, that of the proxy, and the configuration of that."""


def caddy(site: str, folder: Path, port: int, behind: int, _config: Config) -> list[str]:
    file = folder / "Caddyfile"
    site = site.replace("127.0.0.1:8080", f"127.0.0.1:{behind}")
    file.write_text(f"{{\n\tadmin off\n}}\nhttp://:{port} {{\n{site}\n}}\n")
    own = ["env", f"HOME={folder}", f"XDG_CONFIG_HOME={folder}", f"XDG_DATA_HOME={folder}"]
    return [*own, program("caddy"), "run", "--adapter", "caddyfile", "--config", str(file)]


def caddy_passes_on(*arguments: object) -> list[str]:
    text = (ROOT / "docs" / "below-a-path.md").read_text()
    (site,) = re.findall(r"```caddyfile\nexample\.com \{\n(.*?)\n\}\n```", text, re.DOTALL)
    return caddy(site, *arguments)  # type: ignore[arg-type]


def caddy_takes_away(*arguments: object) -> list[str]:
    text = (DEPLOY / "Caddyfile").read_text()
    (site,) = re.findall(r"\nimg\.example\.com \{\n(.*)\n\}\n", text, re.DOTALL)
    return caddy(f"redir /pics /pics/?{{query}}\nhandle_path /pics/* {{\n{site}\n}}", *arguments)  # type: ignore[arg-type]


def nginx(folder: Path, port: int, _behind: int, config: Config) -> list[str]:
    return command_for(nginx_program(), folder / "nginx", block_for(config, port))


def balancer(name: str, folder: Path, port: int, behind: int, config: Config) -> list[str]:
    return BALANCERS[name](folder, port, config, (f"127.0.0.1:{behind}",))


FRONTS: dict[str, tuple[Command, bool]] = {
    "caddy that passes it on": (caddy_passes_on, False),
    "caddy that takes it away": (caddy_takes_away, True),
    "nginx that passes it on": (nginx, False),
    "nginx that takes it away": (nginx, True),
    "haproxy --nodes that takes it away": (partial(balancer, "haproxy"), True),
    "nginx --nodes that takes it away": (partial(balancer, "nginx"), True),
}
"""Each with whether it takes the path away. A balancer that does so has all the lines of one that
passes it on."""


@dataclass(frozen=True)
class Mounted:
    """A front, the proxy behind it, and an account's avatar.

    Attributes:
        own: what a path has at the proxy itself before it.
        environment: the proxy's.
    """

    front: Server
    proxy: Server
    own: str
    did: str
    cid: str
    environment: dict[str, str]

    @property
    def image(self) -> str:
        return f"/img/avatar_thumbnail/plain/{self.did}/{self.cid}"


@asynccontextmanager
async def open_site(name: str, folder: Path) -> AsyncIterator[Mounted]:
    command, takes_away = FRONTS[name]
    port = free_port()
    async with upstream() as internet:
        did, cid = internet.add_blob(tiny_jpeg())
        avatar = {"$type": "blob", "ref": {"$link": cid}, "mimeType": "image/jpeg", "size": 1}
        profile = {"$type": "app.bsky.actor.profile", "avatar": avatar}
        internet.pds.add_record(did, "app.bsky.actor.profile/self", profile)
        environment = internet.environment(
            folder / "cache",
            SERVER__ADMIN_TOKEN=TOKEN,
            SERVER__BASE_URL=f"http://127.0.0.1:{port}{PATH}",
            SERVER__ROOT_PATH="" if takes_away else PATH,
        )
        async with serve(SERVE, environment) as proxy:
            bind = {"IMAGE_PROXY_SERVER__BIND": f"127.0.0.1:{proxy.port}"}
            config = load_config(environment=environment | bind)
            line = command(folder, port, proxy.port, config)
            async with listening(line, port) as front:
                own = "" if takes_away else PATH
                yield Mounted(front, proxy, own, did, cid, environment)


@pytest.fixture(scope="module", params=FRONTS)
def stage(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Background[Mounted]]:
    """One for all tests of a front."""
    folder = tmp_path_factory.mktemp(re.sub("[^a-z]", "", request.param))
    with in_background(partial(open_site, request.param, folder)) as background:
        yield background


@pytest.fixture(autouse=True)
def connections() -> None:
    """Not counted for each test: the server that all of them ask keeps its own open."""


def same(through: Reply, direct: Reply) -> bool:
    """Whether a client can tell no difference."""
    kept = [
        {name: value for name, value in reply.headers.items() if name not in OWN}
        for reply in (through, direct)
    ]
    return kept[0] == kept[1] and through.body == direct.body and through.status == direct.status


def test_everything_public_is_the_same_below_the_path(stage: Background[Mounted]) -> None:
    """Catches a front, or a route, that has the path where the other has none."""
    site = stage.value
    pictures = (site.image, f"{site.image}@webp", f"/blob/{site.did}/{site.cid}")
    about = (f"/info/{site.did}/{site.cid}", "/", "/icon.svg", f"/lookup?q={site.did}")
    told = ("/openapi.json", f"/?q={site.did}&list=1", f"/vid/{site.did}/{site.cid}/thumbnail.jpg")
    probes = ("/healthz", "/readyz", f"/avatar/{site.did}", "/img/nothing", "/nothing")
    for target in (*pictures, *about, *told, *probes):
        # A made result is a hit, from then on.
        stage.run(site.front.get, f"{PATH}{target}")
        direct = stage.run(site.proxy.get, f"{site.own}{target}")
        through = stage.run(site.front.get, f"{PATH}{target}")
        assert same(through, direct), (target, through, direct)
        assert direct.status in (200, 302, 400, 404)
    etag = stage.run(site.front.get, f"{PATH}{site.image}").headers["etag"]
    known = stage.run(site.front.get, f"{PATH}{site.image}", ("If-None-Match", etag))
    assert (known.status, known.headers["etag"], known.body) == (304, etag, b"")
    part = f"/blob/{site.did}/{site.cid}", ("Range", "bytes=1-3")
    through = stage.run(site.front.get, f"{PATH}{part[0]}", part[1])
    assert same(through, stage.run(site.proxy.get, f"{site.own}{part[0]}", part[1]))
    assert (through.status, len(through.body)) == (206, 3)


def test_a_picture_by_name_leads_to_the_picture(stage: Background[Mounted]) -> None:
    """Catches a redirect out of the path."""
    site = stage.value
    reply = stage.run(site.front.get, f"{PATH}/avatar/{site.did}")
    location = reply.headers["location"]
    assert location.startswith(f"http://127.0.0.1:{site.front.port}{PATH}/img/avatar/plain/")
    assert stage.run(site.front.get, urlsplit(location).path).status == 200


def test_what_lists_pictures_without_a_script_leads_to_them(stage: Background[Mounted]) -> None:
    """Catches links to the root of the host."""
    site = stage.value
    page = stage.run(site.front.get, f"{PATH}/?q={site.did}&list=1").body.decode()
    links = re.findall(r'(?:href|src)="([^"#]*/plain/[^"]*)"', page)
    assert links
    base = f"http://127.0.0.1:{site.front.port}{PATH}/"
    for link in {urljoin(base, each) for each in links[:3]}:
        assert stage.run(site.front.get, urlsplit(link).path).status == 200, link


def test_the_document_of_routes_names_where_they_are(stage: Background[Mounted]) -> None:
    """Catches a client that is made from the document, and asks at the root."""
    site = stage.value
    document = json.loads(stage.run(site.front.get, f"{PATH}/openapi.json").body)
    (server,) = document["servers"]
    assert server["url"] == f"http://127.0.0.1:{site.front.port}{PATH}"


def test_the_url_that_the_command_prints_is_served(stage: Background[Mounted]) -> None:
    site = stage.value

    async def printed() -> str:
        done = await trio.run_process(
            [sys.executable, *imageproxy("url", "avatar", site.did, site.cid)],
            env=own_environment(site.environment),
            capture_stdout=True,
        )
        return done.stdout.decode().strip()

    url = urlsplit(stage.run(printed))
    assert url.netloc == f"127.0.0.1:{site.front.port}"
    assert stage.run(site.front.get, url.path).status == 200


def test_nothing_is_beside_the_path(stage: Background[Mounted]) -> None:
    """Catches a second URL of everything, and the cache folder served by nginx."""
    site = stage.value
    stage.run(site.front.get, f"{PATH}{site.image}")
    for target in (site.image, "/", "/readyz", f"/avatar/{site.did}", f"/x{PATH}{site.image}"):
        reply = stage.run(site.front.get, target)
        # Caddy's answer for no route is an empty 200.
        assert reply.status == 404 or (reply.status, reply.body) == (200, b""), target


@pytest.mark.parametrize(
    "target",
    ["/metrics", "/admin", "/admin/blocks", "//metrics", "/%6detrics", "/%2Fmetrics",
     "/x/../metrics", "/../metrics", "/../admin/blocks", "/xrpc/dev.blooym.porxie.cache.purgeBlob"],
)  # fmt: skip
def test_operations_are_hidden_below_the_path(target: str, stage: Background[Mounted]) -> None:
    """Catches a guard that knows the root alone."""
    site = stage.value
    assert stage.run(site.proxy.get, "/metrics").status == 200
    for spelled in (f"{PATH}{target}", f"//pics{target}", f"/%70ics{target}", target):
        reply = stage.run(site.front.get, spelled, ("Authorization", f"Bearer {TOKEN}"))
        assert reply.status in (400, 404) or (reply.status, reply.body) == (200, b""), spelled
        assert b"imageproxy_" not in reply.body
        assert b'"blocks"' not in reply.body


def test_the_path_without_its_slash_leads_to_the_page(stage: Background[Mounted]) -> None:
    """Catches a page whose own requests go beside the path, and a search lost on the way."""
    site = stage.value
    for query in ("", "q=alice.test&format=webp"):
        reply = stage.run(site.front.get, f"{PATH}?{query}" if query else PATH)
        assert reply.status in (301, 302, 308)
        location = urlsplit(reply.headers["location"])
        assert (location.path, location.query) == (f"{PATH}/", query)


@pytest.fixture(scope="module")
def with_browser() -> Iterator[Callable[[Callable[[Browser], None]], None]]:
    try:
        with chromium() as with_browser:
            yield with_browser
    except NoBrowser as error:
        skip_unless_required(str(error))


@pytest.mark.browser
@pytest.mark.parametrize("stage", [name for name in FRONTS if "nodes" not in name], indirect=True)
def test_the_page_shows_every_preset_below_the_path(
    stage: Background[Mounted], with_browser: Callable[[Callable[[Browser], None]], None]
) -> None:
    """Catches requests of the page, and links on it, that leave the path out."""
    site = stage.value
    base = f"http://127.0.0.1:{site.front.port}{PATH}"

    def check(browser: Browser) -> None:
        context = browser.new_context()
        try:
            page = context.new_page()
            asked: list[str] = []
            page.on("request", lambda request: asked.append(request.url))
            page.goto(f"{base}/#q={site.did}")
            expect(page.get_by_role("status")).to_have_text(re.compile(r"^\d+ presets shown"))
            assert [url for url in asked if not url.startswith((f"{base}/", "blob:"))] == []
            links = page.locator("a[href*='/img/']").evaluate_all(
                "links => links.filter((link) => !link.hash).map((link) => link.href)"
            )
            assert links
            assert all(link.startswith(f"{base}/img/") for link in links), links
        finally:
            context.close()

    with_browser(check)


@pytest.mark.browser
@pytest.mark.parametrize("stage", ["nginx that passes it on"], indirect=True)
def test_moderators_see_pictures_at_the_server_itself(
    stage: Background[Mounted], with_browser: Callable[[Callable[[Browser], None]], None]
) -> None:
    """Catches previews that are asked for beside the page, where no picture is."""
    site = stage.value

    def check(browser: Browser) -> None:
        context = browser.new_context()
        try:
            page = context.new_page()
            page.goto(f"http://127.0.0.1:{site.proxy.port}/admin")
            page.get_by_label("Token").fill(TOKEN)
            page.get_by_role("button", name="Open").click()
            page.get_by_label("Account, post or picture").fill(f"{site.did} {site.cid}")
            page.get_by_role("button", name="Look up", exact=True).click()
            picture = page.get_by_role("list", name="Pictures").locator("img").first
            expect(picture).to_be_visible()
            assert picture.evaluate("image => image.decode().then(() => image.naturalWidth)") > 0
        finally:
            context.close()

    with_browser(check)


def test_the_lookup_of_the_page_takes_its_own_urls(stage: Background[Mounted]) -> None:
    """Catches a pasted URL of this service that it does not know because of the path."""
    site = stage.value
    reply = stage.run(site.front.get, f"{PATH}/lookup?q=http://127.0.0.1{PATH}{site.image}")
    assert json.loads(reply.body)["pictures"][0]["cid"] == site.cid
