"""What passes each reverse proxy of ``deploy/``, and each printed balancer, and what must not."""

from __future__ import annotations

import os
import shutil
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import h2.config
import h2.connection
import pytest
import trio

from proxy.config import load_config
from tests.balancers import BALANCERS
from tests.fakes.world import tiny_jpeg
from tests.nginx import block_for, command_for, nginx_program
from tests.ports import free_port
from tests.processes import (
    PATIENCE,
    ROOT,
    SERVE,
    Background,
    Client,
    Server,
    in_background,
    listening,
    serve,
    upstream,
)
from tests.required import skip_unless_required

pytestmark = pytest.mark.slow

DEPLOY = ROOT / "deploy"

TOKEN = "a-token-of-the-operator"

OWN = {"server", "date", "via", "connection", "keep-alive"}
"""Headers about a connection, or about the front itself."""


def program(name: str) -> str:
    """Its path, or the test is skipped."""
    found = shutil.which(name, path=f"{os.environ.get('PATH', '')}{os.pathsep}/usr/sbin")
    if found is None:
        skip_unless_required(f"{name} is not installed")
    return found


def replaced(file: Path, *pairs: tuple[str, str]) -> str:
    text = file.read_text()
    for old, new in pairs:
        assert old in text, old
        text = text.replace(old, new)
    return text


def caddy(folder: Path, port: int, behind: int, _environment: dict[str, str]) -> list[str]:
    behind_it = ("127.0.0.1:8080", f"127.0.0.1:{behind}")
    text = replaced(DEPLOY / "Caddyfile", ("img.example.com", f"http://:{port}"), behind_it)
    file = folder / "Caddyfile"
    file.write_text(f"{{\n\tadmin off\n}}\n{text}")
    # It keeps files at home.
    own = ["env", f"HOME={folder}", f"XDG_CONFIG_HOME={folder}", f"XDG_DATA_HOME={folder}"]
    return [*own, program("caddy"), "run", "--adapter", "caddyfile", "--config", str(file)]


def haproxy(folder: Path, port: int, behind: int, _environment: dict[str, str]) -> list[str]:
    behind_it = ("127.0.0.1:8080", f"127.0.0.1:{behind}")
    text = replaced(DEPLOY / "haproxy.cfg", ("bind :80\n", f"bind 127.0.0.1:{port}\n"), behind_it)
    file = folder / "haproxy.cfg"
    file.write_text(text)
    return [program("haproxy"), "-db", "-f", str(file)]


def nginx(folder: Path, port: int, behind: int, environment: dict[str, str]) -> list[str]:
    bind = {"IMAGE_PROXY_SERVER__BIND": f"127.0.0.1:{behind}"}
    block = block_for(load_config(environment=environment | bind), port)
    return command_for(nginx_program(), folder / "nginx", block)


def before_a_node(name: str) -> Callable[[Path, int, int, dict[str, str]], list[str]]:
    def command(folder: Path, port: int, behind: int, environment: dict[str, str]) -> list[str]:
        config = load_config(environment=environment)
        return BALANCERS[name](folder, port, config, (f"127.0.0.1:{behind}",))

    return command


FRONTS: dict[str, Callable[[Path, int, int, dict[str, str]], list[str]]] = {
    "caddy": caddy,
    "haproxy": haproxy,
    "haproxy --nodes": before_a_node("haproxy"),
    "nginx": nginx,
    "nginx --nodes": before_a_node("nginx"),
}


@dataclass(frozen=True)
class Site:
    """A front, the proxy behind it, and an image that both have."""

    front: Server
    proxy: Server
    image: str

    async def send(self, *parts: bytes) -> bytes:
        """Send ``parts`` over one connection to the front, each after an answer to the one before.

        The last one makes the front close. Returns all that came back.
        """
        received = b""
        async with Client(self.front.port) as client:
            with trio.fail_after(PATIENCE), suppress(trio.BrokenResourceError):
                for part in parts:
                    await client.stream.send_all(part)
                    received += await client.stream.receive_some()
                async for data in client.stream:
                    received += data
        return received


@asynccontextmanager
async def open_site(name: str, folder: Path) -> AsyncIterator[Site]:
    async with upstream() as internet:
        did, cid = internet.add_blob(tiny_jpeg())
        environment = internet.environment(folder / "cache", SERVER__ADMIN_TOKEN=TOKEN)
        async with serve(SERVE, environment) as behind:
            port = free_port()
            command = FRONTS[name](folder, port, behind.port, environment)
            async with listening(command, port) as front:
                image = f"/img/avatar_thumbnail/plain/{did}/{cid}"
                assert (await front.get(image)).status == 200
                yield Site(front, behind, image)


@pytest.fixture(scope="module", params=FRONTS)
def stage(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Background[Site]]:
    """One for all tests of a front."""
    folder = tmp_path_factory.mktemp(request.param.replace(" ", ""))
    with in_background(partial(open_site, request.param, folder)) as background:
        yield background


@pytest.fixture(autouse=True)
def connections() -> None:
    """Not counted for each test: the server that all of them ask keeps its own open."""


def test_an_image_is_the_same_through_a_front(stage: Background[Site]) -> None:
    """Catches a front that changes bytes or headers."""
    site = stage.value
    direct = stage.run(site.proxy.get, site.image)
    through = stage.run(site.front.get, site.image)
    assert (through.status, through.body) == (direct.status, direct.body) == (200, direct.body)
    kept = [
        {name: value for name, value in reply.headers.items() if name not in OWN}
        for reply in (direct, through)
    ]
    assert kept[0] == kept[1]


INSIDE = [
    "/metrics",
    "/metrics?x",
    "/metrics/",
    "//metrics",
    "/./metrics",
    "/x/../metrics",
    "/%6detrics",
    "/%2Fmetrics",
    "/METRICS",
    "/admin",
    "/admin/",
    "/admin/blocks",
    "//admin/blocks",
    "/admin//blocks",
    "/%61dmin/blocks",
    "/admin%2Fblocks",
    "/x/../admin/blocks",
    "/admin/../admin/blocks",
    "/img/../admin/blocks",
]


@pytest.mark.parametrize("target", INSIDE)
def test_no_spelling_of_what_is_for_the_inside_is_answered_through_a_front(
    target: str, stage: Background[Site]
) -> None:
    """Catches a guard that another spelling gets around."""
    site = stage.value
    token = ("Authorization", f"Bearer {TOKEN}")
    for path in ("/metrics", "/admin/blocks"):
        assert stage.run(site.proxy.get, path, token).status == 200
    reply = stage.run(site.front.get, target, token)
    assert reply.status in (400, 404)
    assert b"imageproxy_" not in reply.body
    assert b"blocks" not in reply.body


def over_http2(target: str, *, upgraded: bool) -> bytes:
    """A GET by HTTP/2, as the first bytes of a connection, or as the first after an upgrade."""
    config = h2.config.H2Configuration(client_side=True)
    connection = h2.connection.H2Connection(config)
    if upgraded:
        connection.initiate_upgrade_connection()
    else:
        connection.initiate_connection()
    stream = connection.get_next_available_stream_id()
    headers = [(":method", "GET"), (":scheme", "http"), (":authority", "a"), (":path", target)]
    connection.send_headers(stream, [*headers, ("authorization", f"Bearer {TOKEN}")], True)
    connection.close_connection()
    return connection.data_to_send()


def over_http1(target: str) -> bytes:
    lines = ["Host: a", "Connection: close", f"Authorization: Bearer {TOKEN}"]
    return "\r\n".join([f"GET {target} HTTP/1.1", *lines, "", ""]).encode()


SETTINGS = h2.connection.H2Connection().initiate_upgrade_connection() or b""

HEADS = {
    "h2c": b"Upgrade, HTTP2-Settings\r\nUpgrade: h2c\r\nHTTP2-Settings: " + SETTINGS,
    "h2c without a word about settings": b"Upgrade\r\nUpgrade: h2c\r\nHTTP2-Settings: " + SETTINGS,
    "a WebSocket": (
        b"Upgrade\r\nUpgrade: websocket\r\nSec-WebSocket-Version: 13\r\n"
        b"Sec-WebSocket-Key: a2V5a2V5a2V5a2V5a2U="
    ),
    "anything": b"Upgrade\r\nUpgrade: anything/1",
}


@pytest.mark.parametrize("name", HEADS)
@pytest.mark.parametrize("target", ["/metrics", "/admin/blocks"])
def test_no_upgrade_makes_a_tunnel_past_the_rules_of_a_front(
    target: str, name: str, stage: Background[Site]
) -> None:
    """Catches HTTP/2 over cleartext, in which the front sees no paths any more."""
    head = b"GET /healthz HTTP/1.1\r\nHost: a\r\nConnection: " + HEADS[name] + b"\r\n\r\n"
    for inside in (over_http2(target, upgraded=True), over_http1(target)):
        received = stage.run(stage.value.send, head, inside)
        assert received.startswith((b"HTTP/1.1 200 ", b"HTTP/1.1 4"))
        assert b" 101 " not in received
        assert b"imageproxy_" not in received
        assert b'"blocks"' not in received


@pytest.mark.parametrize("target", ["/metrics", "/admin/blocks"])
def test_http2_by_prior_knowledge_is_no_way_past_a_front(
    target: str, stage: Background[Site]
) -> None:
    received = stage.run(stage.value.send, over_http2(target, upgraded=False))
    assert b"imageproxy_" not in received
    assert b'"blocks"' not in received


LENGTHS = {
    "chunks and a length": b"Transfer-Encoding: chunked\r\nContent-Length: %d",
    "a length and chunks": b"Content-Length: %d\r\nTransfer-Encoding: chunked",
    "chunks in other words": b"Content-Length: %d\r\nTransfer-Encoding: Chunked, identity",
    "chunks with a tab": b"Content-Length: %d\r\nTransfer-Encoding:\tchunked",
}


@pytest.mark.parametrize("name", LENGTHS)
def test_a_body_of_two_lengths_carries_no_request_past_a_front(
    name: str, stage: Background[Site]
) -> None:
    """Catches a request that the front takes for a body, and the proxy for a request."""
    body = b"0\r\n\r\n" + over_http1("/metrics")
    head = b"POST /healthz HTTP/1.1\r\nHost: a\r\n" + LENGTHS[name] % len(body) + b"\r\n\r\n"
    received = stage.run(stage.value.send, head + body)
    assert b"imageproxy_" not in received
