"""The way out through a proxy: a real one, and a fake where a test must see or break it."""

from __future__ import annotations

import shutil
import socket
import ssl
import subprocess
import time
from collections.abc import Awaitable, Callable, Iterator
from functools import partial
from pathlib import Path

import pytest
import trio
import trio.testing
import trustme

from proxy.config import Config
from proxy.egress.egress_proxy import EgressProxy, NamesThroughProxy
from proxy.egress.errors import ConnectFailed, Forbidden
from proxy.egress.gateway import guarded_networks
from proxy.egress.guard import GuardedNetwork
from tests.egress.destinations import PUBLIC, PUBLIC_IPV6
from tests.egress.test_guard import open_sockets, resolving_to
from tests.ports import free_port
from tests.required import skip_unless_required

CONNECTED = b"HTTP/1.1 200 Connection established\r\n\r\n"
Serve = Callable[[trio.abc.Stream], Awaitable[None]]


class FakeProxy:
    """Reads one head per connection, answers it with ``answer``, and echoes what follows."""

    def __init__(self, answer: bytes = CONNECTED) -> None:
        self.answer = answer
        self.heads: list[str] = []

    async def serve(self, stream: trio.abc.Stream) -> None:
        async with stream:
            head = b""
            while not head.endswith(b"\r\n\r\n"):
                head += await stream.receive_some()
            self.heads.append(head.decode())
            await stream.send_all(self.answer)
            if self.answer == CONNECTED:
                async for data in stream:
                    await stream.send_all(data)


def over_tls(fake: FakeProxy, context: ssl.SSLContext) -> Serve:
    async def serve(stream: trio.abc.Stream) -> None:
        try:
            await fake.serve(trio.SSLStream(stream, context, server_side=True))
        except trio.BrokenResourceError:  # the other side went in the middle of something
            await trio.aclose_forcefully(stream)

    return serve


async def listening(nursery: trio.Nursery, serve: Serve) -> int:
    """The port of a listener on loopback."""
    listeners = await nursery.start(partial(trio.serve_tcp, serve, 0, host="127.0.0.1"))
    port: int = listeners[0].socket.getsockname()[1]
    return port


async def echoed(stream: trio.abc.Stream) -> bytes:
    await stream.send_all(b"hello")
    try:
        return bytes(await stream.receive_some())
    finally:
        await trio.aclose_forcefully(stream)


async def test_the_proxy_is_told_the_address_that_was_checked(nursery: trio.Nursery) -> None:
    """Catches a proxy that is given the name, which it looks up anew (DNS rebinding)."""
    fake = FakeProxy()
    proxy = EgressProxy(f"http://127.0.0.1:{await listening(nursery, fake.serve)}")
    for address, authority in ((PUBLIC, f"{PUBLIC}:443"), (PUBLIC_IPV6, f"[{PUBLIC_IPV6}]:443")):
        network = GuardedNetwork(lookup=resolving_to(address), dial=proxy.dial_public)
        assert await echoed(await network.connect("pds.example", 443)) == b"hello"
        lines = fake.heads.pop().split("\r\n")
        assert lines == [f"CONNECT {authority} HTTP/1.1", f"Host: {authority}", "", ""]


async def test_the_guard_stands_before_the_proxy(nursery: trio.Nursery) -> None:
    """Catches a proxy that is asked to connect to private addresses, which it may reach."""
    fake = FakeProxy()
    proxy = EgressProxy(f"http://127.0.0.1:{await listening(nursery, fake.serve)}")
    network = GuardedNetwork(lookup=resolving_to("10.0.0.1"), dial=proxy.dial_public)
    for each in (network, NamesThroughProxy(network, proxy, ())):
        with pytest.raises(Forbidden):
            await each.connect("10.0.0.1", 443)
    with pytest.raises(Forbidden):
        await network.connect("pds.example", 443)
    assert fake.heads == []


async def test_with_proxy_resolves_the_proxy_is_told_the_name(nursery: trio.Nursery) -> None:
    """Catches a look-up of names here, where there may be no DNS of the outside."""
    fake = FakeProxy()
    url = f"http://127.0.0.1:{await listening(nursery, fake.serve)}"
    config = Config.model_validate({"fetch": {"proxy": url, "proxy_resolves": True}})
    for network, name in zip(
        guarded_networks(config.fetch), ("pds.invalid", "plc.invalid"), strict=True
    ):
        assert await echoed(await network.connect(name, 443)) == b"hello"
        assert fake.heads.pop().startswith(f"CONNECT {name}:443 ")


@pytest.mark.parametrize("resolves", [False, True])
async def test_own_hosts_and_a_private_directory_are_reached_without_the_proxy(
    resolves: bool, nursery: trio.Nursery
) -> None:
    """Catches a proxy that is asked for what stands beside this service."""
    fake, own = FakeProxy(), FakeProxy(b"own")
    url = f"http://127.0.0.1:{await listening(nursery, fake.serve)}"
    port = await listening(nursery, own.serve)
    allowed = ["localhost", "127.0.0.0/8"]
    config = Config.model_validate(
        {"fetch": {"proxy": url, "proxy_resolves": resolves, "allow_private_hosts": allowed}}
    )
    for network in guarded_networks(config.fetch):
        for host in ("localhost", "127.0.0.1"):
            stream = await network.connect(host, port)
            await stream.send_all(b"\r\n\r\n")
            assert await stream.receive_some() == b"own"
            await stream.aclose()
    assert fake.heads == []


@pytest.mark.parametrize(
    ("answer", "told"),
    [
        (b"HTTP/1.1 407 Proxy Authentication Required\r\n\r\n", "407"),
        (b"HTTP/1.1 503 No\r\nContent-Length: 2\r\n\r\nno", "503"),
        (b"HTTP/1.1 200", "cut off"),
        (b"", "cut off"),
        (b"x" * 40_000, "endless"),
        (b"SSH-2.0-OpenSSH_9.9\r\n\r\n", "no status"),
        (b"HTTP/1.1 200 OK\r\n\r\nHTTP/1.1 200 OK\r\n\r\nforged", "has a body"),
    ],
)
async def test_a_proxy_that_does_not_connect_is_a_failure_to_connect(
    answer: bytes, told: str, nursery: trio.Nursery
) -> None:
    """Catches an answer of the proxy that is taken for one of the host, and a socket left open."""
    fake = FakeProxy(answer)
    proxy = EgressProxy(f"http://127.0.0.1:{await listening(nursery, fake.serve)}")
    network = GuardedNetwork(lookup=resolving_to(PUBLIC), dial=proxy.dial_public)
    with pytest.raises(ConnectFailed, match=f"fetch.proxy.*{told}"):
        await network.connect("pds.example", 443)


async def test_a_cancelled_connect_leaves_no_socket(nursery: trio.Nursery) -> None:
    """Catches a stream to the proxy that nobody closes."""
    asked = trio.Event()

    async def silent(stream: trio.abc.Stream) -> None:
        async with stream:
            await stream.receive_some()
            asked.set()
            assert await stream.receive_some() == b""  # closed by the other side
            closed.set()

    closed = trio.Event()
    port = await listening(nursery, silent)
    before = open_sockets()
    async with trio.open_nursery() as connecting:
        connecting.start_soon(EgressProxy(f"http://127.0.0.1:{port}").dial, PUBLIC, 443)
        await asked.wait()
        connecting.cancel_scope.cancel()
    await closed.wait()
    await trio.testing.wait_all_tasks_blocked()
    assert open_sockets() <= before


async def test_the_password_goes_over_tls_to_a_proxy_that_proves_its_name(
    nursery: trio.Nursery,
) -> None:
    """Catches an ``https://`` proxy that is asked in the clear, or unproven."""
    authority, fake = trustme.CA(), FakeProxy()
    serving = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
    authority.issue_cert("localhost").configure_cert(serving)
    port = await listening(nursery, over_tls(fake, serving))
    url = f"https://us%3Aer:p%40ss@localhost:{port}"
    with pytest.raises(OSError, match="certificate"):
        await EgressProxy(url).dial(PUBLIC, 443)
    assert fake.heads == []
    trusting = ssl.create_default_context()
    authority.configure_trust(trusting)
    assert await echoed(await EgressProxy(url, trusting).dial(PUBLIC, 443)) == b"hello"
    assert "\r\nProxy-Authorization: Basic dXM6ZXI6cEBzcw==\r\n" in fake.heads[0]


@pytest.fixture
def tinyproxy(tmp_path: Path) -> Iterator[int]:
    """The port of a Tinyproxy that wants the password ``secret`` of ``user``."""
    program = shutil.which("tinyproxy")
    if program is None:
        skip_unless_required("needs tinyproxy")
    port = free_port()
    file = tmp_path / "tinyproxy.conf"
    log = tmp_path / "log"
    file.write_text(
        f"Port {port}\nListen 127.0.0.1\nTimeout 60\nMaxClients 10\nBasicAuth user secret\n"
        f'LogFile "{log}"\nLogLevel Connect\n'
    )
    with subprocess.Popen([program, "-d", "-c", file], stdout=subprocess.DEVNULL) as running:
        try:
            while True:
                try:
                    socket.create_connection(("127.0.0.1", port)).close()
                    break
                except ConnectionRefusedError:
                    assert running.poll() is None
                    time.sleep(0.01)
            yield port
        finally:
            running.terminate()


async def test_tls_goes_end_to_end_through_a_real_proxy(
    tinyproxy: int, nursery: trio.Nursery
) -> None:
    """Catches a request that only the fake above understands."""
    authority, fake = trustme.CA(), FakeProxy(b"end to end")
    serving = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
    authority.issue_cert("localhost").configure_cert(serving)
    port = await listening(nursery, over_tls(fake, serving))
    trusting = ssl.create_default_context()
    authority.configure_trust(trusting)
    guard = GuardedNetwork(ssl_context=trusting)
    proxy = EgressProxy(f"http://user:secret@127.0.0.1:{tinyproxy}")
    network = NamesThroughProxy(guard, proxy, ())
    stream = await network.start_tls(await network.connect("localhost", port), "localhost")
    await stream.send_all(b"GET / HTTP/1.1\r\n\r\n")
    assert await stream.receive_some() == b"end to end"
    await trio.aclose_forcefully(stream)
    # An address, as the guard hands it on.
    await trio.aclose_forcefully(await proxy.dial("127.0.0.1", port))
    with pytest.raises(OSError, match=r"40[17]"):  # Tinyproxy says 401
        await EgressProxy(f"http://user:wrong@127.0.0.1:{tinyproxy}").dial("127.0.0.1", port)


def test_a_proxy_that_resolves_has_to_be_there() -> None:
    """Catches a service that trusts the look-ups of a proxy that nobody named."""
    with pytest.raises(ValueError, match=r"needs fetch\.proxy"):
        Config.model_validate({"fetch": {"proxy_resolves": True}})
