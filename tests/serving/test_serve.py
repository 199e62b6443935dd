"""The program as its users run it: processes, signals, sockets, exit codes."""

from __future__ import annotations

import json
import os
import re
import signal
import ssl
import subprocess
import sys
from collections.abc import Callable
from contextlib import suppress
from functools import partial
from io import BytesIO
from pathlib import Path

import h2.connection
import h2.events
import h11
import hypercorn.trio
import pytest
import trio
import trio.testing
import trustme
from PIL import Image

from proxy.serving.serve import KEEP_ALIVE_SECONDS, hypercorn_config
from proxy.web.app import create_app
from tests.fakes.world import World, tiny_jpeg, tiny_png
from tests.processes import (
    PATIENCE,
    ROOT,
    SERVE,
    Client,
    Reply,
    Server,
    files_in,
    imageproxy,
    own_environment,
    run,
    serve,
    until,
    until_refused,
    upstream,
)

pytestmark = pytest.mark.slow

HYPERCORN = ["-m", "hypercorn", "-k", "trio", "-b", "127.0.0.1:0", "proxy:create_app()"]

COMMANDS = {
    "imageproxy": (SERVE, 1),
    "imageproxy with two workers": ([*SERVE, "--workers", "2"], 2),
    "hypercorn": (HYPERCORN, 1),
    "hypercorn with two workers": ([*HYPERCORN, "-w", "2"], 2),
}

GARBAGE_AFTER_A_JPEG_MARK = b"\xff\xd8\xff" + bytes(16 * 1024 * 1024)
"""More than the socket buffers of both ends hold, so that the sender must wait."""


def img(did: str, cid: str, preset: str = "avatar_thumbnail") -> str:
    return f"/img/{preset}/plain/{did}/{cid}"


def is_gone(pid: int) -> bool:
    """Whether a process has ended, also when nobody has collected it yet."""
    if Path("/proc/self/stat").exists():
        try:
            state = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].strip()
        except (FileNotFoundError, ProcessLookupError):
            return True
    else:
        command = ["ps", "-o", "stat=", "-p", str(pid)]
        state = subprocess.run(command, capture_output=True, text=True).stdout.strip()
    return state[:1] in ("", "Z")


async def metric(server: Server, name: str) -> float:
    text = (await server.get("/metrics")).body.decode()
    (value,) = re.findall(rf"^{name} (\S+)$", text, re.MULTILINE)
    return float(value)


@pytest.mark.parametrize("command", COMMANDS)
async def test_every_documented_way_to_start_serves_and_ends_with_0(
    command: str, tmp_path: Path
) -> None:
    arguments, workers = COMMANDS[command]
    async with upstream() as internet:
        did, cid = internet.add_blob(tiny_jpeg())
        environment = internet.environment(tmp_path)
        async with serve(arguments, environment, workers=workers) as server:
            assert (await server.get("/readyz")).status == 200
            first = await server.get(img(did, cid))
            assert (first.status, first.headers["x-cache"]) == (200, "miss")
            await until(lambda: files_in(tmp_path) != [])
            # Any worker may answer this one: from its memory, or from the cache they share.
            second = await server.get(img(did, cid))
            assert (second.status, second.headers["x-cache"]) == (200, "hit")
            assert second.body == first.body
            server.send(signal.SIGTERM)
            assert await server.exit_code() == 0
            assert "Traceback" not in server.text


WALKED = """
import gc, os, signal
from proxy.config import load_config
from proxy.serving.serve import run
from proxy.serving.sockets import open_sockets
from proxy.shared.binds import parse_bind

def on_serving():
    print("walked:", len(gc.get_objects()), flush=True)
    os.kill(os.getpid(), signal.SIGTERM)

run(load_config(), lambda: open_sockets([parse_bind("127.0.0.1:0")]), on_serving=on_serving)
"""


async def test_a_full_collection_does_not_walk_what_the_start_has_made(tmp_path: Path) -> None:
    """Catches full collections that stop the loop for the 90,000 objects of modules and classes."""
    environment = {"IMAGE_PROXY_CACHE__PATH": str(tmp_path)}
    async with run(["-c", WALKED], environment) as process:
        found = await process.line_with(r"walked: (\d+)")
        assert int(found[1]) < 10_000
        assert await process.exit_code() == 0


COLLECTED = """
import gc
from proxy.cli import cli

def tell(phase, found):
    if phase == "start" and found["generation"] == 2:
        print("collected:", len(gc.get_objects()), flush=True)

gc.callbacks.append(tell)
cli(["serve", "--bind", "127.0.0.1:0"])
"""


async def test_no_collection_of_a_start_walks_what_was_imported(tmp_path: Path) -> None:
    """Catches 40 ms before the first answer for the 90,000 objects of modules and classes."""
    environment = {"IMAGE_PROXY_CACHE__PATH": str(tmp_path)}
    async with run(["-c", COLLECTED], environment) as process:
        await process.line_with("Running on")
        process.send(signal.SIGTERM)
        assert await process.exit_code() == 0
        found = [int(line) for line in re.findall(r"collected: (\d+)", process.text)]
        assert found
        assert max(found) < 50_000


async def test_each_request_has_one_line_with_the_same_fields_whatever_way_it_went(
    tmp_path: Path,
) -> None:
    """Catches a short way that leaves no trace in the log."""
    async with upstream() as internet:
        did, cid = internet.add_blob(tiny_jpeg())
        async with serve(SERVE, internet.environment(tmp_path)) as server:
            miss = await server.get(img(did, cid))
            await server.get(img(did, cid))
            await server.get(img(did, cid), ("If-None-Match", "*"))
            await server.get("/img/" + "a" * 400)
            server.send(signal.SIGTERM)
            assert await server.exit_code() == 0
    lines = [json.loads(line) for line in server.text.splitlines() if line.startswith("{")]
    requests = [line for line in lines if line["event"] == "request"]
    answered = [(each.get("cache"), each.get("bytes"), each["status"]) for each in requests]
    length = len(miss.body)
    assert answered == [
        ("miss", length, 200),
        ("hit", length, 200),
        ("none", 0, 304),
        (None, None, 400),
    ]
    common = {"event", "level", "timestamp", "request_id", "path", "status", "ms"}
    for each, more in zip(requests[:3], ({"timings"}, set(), set()), strict=True):
        assert each.keys() == common | {"cache", "bytes"} | more
        assert (each["path"], each["level"]) == (img(did, cid), "info")
    refused = requests[3]
    assert refused.keys() == common | {"error", "cause"}
    assert (refused["level"], refused["error"]) == ("info", "InvalidRequest")
    assert len(refused["path"]) == 300


async def test_head_has_no_body_on_the_wire_and_no_answer_names_the_server_software(
    tmp_path: Path,
) -> None:
    environment = {"IMAGE_PROXY_CACHE_PATH": str(tmp_path)}
    async with serve(SERVE, environment) as server, Client(server.port) as client:
        for target in ("/", "/healthz", "/metrics", "/nope", "/img/x", "/healthz"):
            await client.send(target, method="HEAD")
            # A body would be taken for the beginning of the next answer.
            reply = await client.reply()
            assert int(reply.headers["content-length"]) > 0
            assert "server" not in reply.headers


async def test_a_bad_configuration_stops_the_start_with_2_and_names_every_mistake_not_the_first(
    tmp_path: Path,
) -> None:
    file = tmp_path / "config.toml"
    file.write_text("[fetch]\ntimeout = 'soon'\n[cache]\nmax_gb = -1\n[server]\ncolour = 1\n")
    arguments = imageproxy("serve", "--config", str(file), "--bind", "nonsense")
    async with run(arguments, {"IMAGE_PROXY_PROCESS__THREADS": "many"}) as process:
        assert await process.exit_code() == 2
        for key in (
            "fetch.timeout",
            "cache.max_gb",
            "server.colour",
            "server.bind",
            "process.threads",
        ):
            assert key in process.text
        assert "Traceback" not in process.text


@pytest.mark.parametrize("workers", ["1", "2"])
async def test_a_port_in_use_is_told_in_one_line_not_in_a_traceback(
    workers: str, tmp_path: Path
) -> None:
    environment = {"IMAGE_PROXY_CACHE_PATH": str(tmp_path)}
    (listener,) = await trio.open_tcp_listeners(0, host="127.0.0.1")
    async with listener:
        bind = f"127.0.0.1:{listener.socket.getsockname()[1]}"
        arguments = imageproxy("serve", "--bind", bind, "--workers", workers)
        async with run(arguments, environment) as process:
            assert await process.exit_code() == 1
            assert "Address already in use; --bind HOST:PORT" in process.text
            assert bind in process.text
            assert "Traceback" not in process.text


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
async def test_a_signal_ends_it_only_after_the_request_in_flight_and_its_write(
    number: signal.Signals, tmp_path: Path
) -> None:
    async with upstream() as internet:
        did, cid = internet.add_blob(tiny_jpeg())
        held = internet.hold_blobs()
        async with serve(SERVE, internet.environment(tmp_path)) as server:
            async with Client(server.port) as client:
                await client.send(img(did, cid))
                await held.seen.wait()
                server.send(number)
                await until_refused(server.port)
                assert files_in(tmp_path) == []
                held.released.set()
                reply = await client.reply()
            assert (reply.status, reply.headers["x-cache"]) == (200, "miss")
            assert Image.open(BytesIO(reply.body)).size == (128, 128)
            assert await server.exit_code() == 0
        (file,) = files_in(tmp_path)
        assert file.read_bytes() == reply.body


async def test_a_worker_that_ends_first_does_not_take_the_requests_of_the_others_with_it(
    tmp_path: Path,
) -> None:
    """Catches also a socket that the first process holds: clients wait in it, and are reset."""
    async with upstream() as internet:
        did, cid = internet.add_blob(tiny_jpeg())
        held = internet.hold_blobs()
        arguments = [*SERVE, "--workers", "2"]
        async with (
            serve(arguments, internet.environment(tmp_path), workers=2) as server,
            Client(server.port) as client,
        ):
            await client.send(img(did, cid))
            await held.seen.wait()
            server.send(signal.SIGTERM)
            # The idle worker ends at once; the busy one must not be ended with it.
            await until(lambda: any(is_gone(pid) for pid in server.workers))
            await until_refused(server.port)
            held.released.set()
            assert (await client.reply()).status == 200
            assert await server.exit_code() == 0
        assert len(files_in(tmp_path)) == 1


async def test_a_signal_to_the_whole_group_does_not_cut_requests_either(tmp_path: Path) -> None:
    # What a terminal does with Ctrl-C, and systemd with SIGTERM.
    async with upstream() as internet:
        did, cid = internet.add_blob(tiny_jpeg())
        held = internet.hold_blobs()
        arguments = [*SERVE, "--workers", "2"]
        async with (
            serve(arguments, internet.environment(tmp_path), workers=2) as server,
            Client(server.port) as client,
        ):
            await client.send(img(did, cid))
            await held.seen.wait()
            for pid in (*server.workers, server.pid):
                os.kill(pid, signal.SIGTERM)
            await until(lambda: any(is_gone(pid) for pid in server.workers))
            held.released.set()
            assert (await client.reply()).status == 200
            assert await server.exit_code() == 0


async def test_a_request_that_hangs_is_cut_when_the_shutdown_timeout_is_over(
    tmp_path: Path,
) -> None:
    async with upstream() as internet:
        did, cid = internet.add_blob(tiny_jpeg())
        held = internet.hold_blobs()
        environment = internet.environment(
            tmp_path, SERVER__SHUTDOWN_TIMEOUT="0.5", FETCH__TIMEOUT="600"
        )
        async with serve(SERVE, environment) as server, Client(server.port) as client:
            await client.send(img(did, cid))
            await held.seen.wait()
            server.send(signal.SIGTERM)
            with pytest.raises(h11.RemoteProtocolError):
                await client.reply()
            assert await server.exit_code() == 0
            assert "Traceback" not in server.text


@pytest.mark.parametrize("workers", [1, 2])
async def test_a_client_that_does_not_read_holds_no_worker_and_does_not_block_the_shutdown(
    workers: int, tmp_path: Path
) -> None:
    async with upstream() as internet:
        big, other = internet.add_blob(GARBAGE_AFTER_A_JPEG_MARK), internet.add_blob(tiny_jpeg())
        environment = internet.environment(
            tmp_path,
            SERVER__SHUTDOWN_TIMEOUT="0.5",
            FETCH__MAX_SOURCE_MB="32",
            # One of each: a request that held one would hold the last.
            FETCH__WORKERS="1",
            FETCH__PER_HOST="1",
            PROCESS__THREADS="1",
        )
        arguments = [*SERVE, "--workers", str(workers)]
        async with (
            serve(arguments, environment, workers=workers) as server,
            Client(server.port, receive_buffer=4096) as client,
        ):
            await client.send(f"/blob/{big[0]}/{big[1]}")
            for _ in range(20):  # it has begun, and the client reads a byte at a time
                assert len(await client.stream.receive_some(1)) == 1
            assert (await server.get(img(*other))).status == 200
            assert await metric(server, "imageproxy_fetch_queue_depth") == 0
            assert await metric(server, "imageproxy_process_waiting") == 0
            server.send(signal.SIGTERM)
            assert await server.exit_code() == 0
            assert "Traceback" not in server.text


async def test_a_client_that_goes_away_ends_the_fetch_that_only_it_waited_for(
    tmp_path: Path,
) -> None:
    async with upstream() as internet:
        did, cid = internet.add_blob(tiny_jpeg())
        held = internet.hold_blobs()
        async with serve(SERVE, internet.environment(tmp_path)) as server:
            async with Client(server.port) as client:
                await client.send(img(did, cid))
                await held.seen.wait()
            with trio.fail_after(PATIENCE):
                await held.abandoned.wait()


@pytest.mark.parametrize("request_line", ["POST /img/nothing", "GET /img/nothing", "POST /healthz"])
async def test_an_unwanted_body_does_not_hold_its_connection(
    request_line: str, tmp_path: Path
) -> None:
    # Hypercorn queues ten pieces of a body, and then waits until the application takes one: also
    # to tell it that the request is over, and whatever the client does meanwhile.
    async with serve(SERVE, {"IMAGE_PROXY_CACHE_PATH": str(tmp_path)}) as server:
        async with Client(server.port) as client:
            head = (
                f"{request_line} HTTP/1.1\r\nHost: proxy.test\r\nTransfer-Encoding: chunked\r\n\r\n"
            )
            await client.stream.send_all(head.encode() + b"1\r\n.\r\n" * 1000)
            received = b""
            with trio.fail_after(PATIENCE):
                async for data in client.stream:
                    received += data
        assert re.match(rb"HTTP/1.1 (400|405|413) ", received)


REFUSED_HEADS: dict[str, tuple[bytes, int]] = {
    "a header that is too large": (
        b"GET / HTTP/1.1\r\nHost: proxy.test\r\nX-Long: " + b"a" * 200_000 + b"\r\n\r\n",
        431,
    ),
    "a path that is too long": (
        b"GET /img/" + b"a" * 200_000 + b" HTTP/1.1\r\nHost: proxy.test\r\n\r\n",
        431,
    ),
    "bytes above ASCII in the path": (
        b"GET /img/\xff\xfe HTTP/1.1\r\nHost: proxy.test\r\n\r\n",
        400,
    ),
    "no HTTP": (b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03 hello\r\n\r\n", 400),
    "two lengths": (
        b"GET / HTTP/1.1\r\nHost: a\r\nContent-Length: 1\r\nContent-Length: 2\r\n\r\n",
        400,
    ),
    "no host": (b"GET / HTTP/1.1\r\n\r\n", 400),
    "two hosts": (b"GET / HTTP/1.1\r\nHost: a\r\nHost: b\r\n\r\n", 400),
    "no path": (b"GET ? HTTP/1.1\r\nHost: a\r\nConnection: close\r\n\r\n", 400),
    "half a URL": (b"GET http://[::1/ HTTP/1.1\r\nHost: a\r\nConnection: close\r\n\r\n", 400),
}

UPGRADE = b"GET /img/a HTTP/1.1\r\nHost: a\r\nConnection: Upgrade, HTTP2-Settings\r\nUpgrade: "
WEBSOCKET = b"websocket\r\nSec-WebSocket-Version: 13\r\nSec-WebSocket-Key: a2V5a2V5a2V5a2V5a2U=\r\n"

DEADLY = {
    "a byte behind a WebSocket's head": UPGRADE + WEBSOCKET + b"\r\nx",
    "a WebSocket": UPGRADE + WEBSOCKET + b"\r\n",
    "a WebSocket without a key": UPGRADE + b"websocket\r\n\r\n",
    "a WebSocket without a path": (UPGRADE + WEBSOCKET + b"\r\n").replace(b"/img/a", b"?"),
    "HTTP/2 settings that do not decode": UPGRADE + b"h2c\r\nHTTP2-Settings: AAAA\r\n\r\n",
    "HTTP/2 settings that are none": UPGRADE + b"h2c\r\nHTTP2-Settings: \xff\r\n\r\n",
    "HTTP/2 without settings": UPGRADE + b"h2c\r\n\r\n",
    "HTTP/2 and then garbage": b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n" + bytes(range(256)) * 9,
    "half of HTTP/2's preface": b"PRI * HTTP/2.0\r\n\r\nS",
    "a chunk without a size": (
        b"POST /img/a HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\nzz\r\n"
    ),
    "half a body": b"POST /healthz HTTP/1.1\r\nHost: a\r\nContent-Length: 9\r\n\r\nhalf",
    "many requests at once": b"GET /img/a HTTP/1.1\r\nHost: a\r\n\r\n" * 100,
}
"""Ways to break a protocol, some of which have ended the whole server."""


@pytest.mark.parametrize("command", ["imageproxy", "hypercorn"])
async def test_a_client_that_breaks_the_protocol_ends_its_own_connection_and_not_the_server(
    command: str, tmp_path: Path
) -> None:
    arguments, _ = COMMANDS[command]
    environment = {
        "IMAGE_PROXY_CACHE_PATH": str(tmp_path),
        "IMAGE_PROXY_SERVER__SHUTDOWN_TIMEOUT": "0.5",
    }
    async with serve(arguments, environment) as server:
        for name, data in DEADLY.items():
            async with Client(server.port) as client, Client(server.port) as other:
                with trio.fail_after(PATIENCE):
                    try:
                        await client.stream.send_all(data)
                        await client.stream.send_eof()
                        await client.stream.receive_some()  # an answer, or the end
                    except trio.BrokenResourceError:
                        pass  # it closed with our bytes unread
                # One that was open before still is.
                await other.send("/healthz")
                assert (await other.reply()).status == 200, name
        server.send(signal.SIGTERM)
        assert await server.exit_code() == 0


async def test_over_tls_the_client_chooses_http2_or_http1_by_alpn(tmp_path: Path) -> None:
    """Catches HTTP/2 that is off for all, and an upgrade to it that TLS lets pass."""
    authority = trustme.CA()
    pair = tmp_path / "pair.pem"
    authority.issue_cert("127.0.0.1").private_key_and_cert_chain_pem.write_to_path(pair)
    arguments = [*HYPERCORN, "--certfile", str(pair), "--keyfile", str(pair)]
    environment = {"IMAGE_PROXY_CACHE_PATH": str(tmp_path / "cache")}
    async with serve(arguments, environment) as server:

        async def connected(protocol: str) -> trio.SSLStream[trio.SocketStream]:
            context = ssl.create_default_context()
            authority.configure_trust(context)
            context.set_alpn_protocols([protocol])
            stream = await trio.open_ssl_over_tcp_stream(
                "127.0.0.1", server.port, ssl_context=context
            )
            await stream.do_handshake()
            assert stream.selected_alpn_protocol() == protocol
            return stream

        async with await connected("h2") as stream:
            connection = h2.connection.H2Connection()
            connection.initiate_connection()
            headers = [(":method", "GET"), (":scheme", "https"), (":path", "/healthz")]
            connection.send_headers(1, [*headers, (":authority", "a")], end_stream=True)
            await stream.send_all(connection.data_to_send())
            events: list[h2.events.Event] = []
            with trio.fail_after(PATIENCE):
                while not any(isinstance(event, h2.events.StreamEnded) for event in events):
                    events += connection.receive_data(bytes(await stream.receive_some()))
            (answer,) = [each for each in events if isinstance(each, h2.events.ResponseReceived)]
            assert (b":status", b"200") in answer.headers
        async with await connected("http/1.1") as stream:
            await stream.send_all(UPGRADE.replace(b"/img/a", b"/healthz") + b"h2c\r\n\r\n")
            with trio.fail_after(PATIENCE):
                assert (await stream.receive_some()).startswith(b"HTTP/1.1 200 ")


async def test_a_head_that_is_too_large_or_malformed_is_refused_and_costs_nobody_else_anything(
    tmp_path: Path,
) -> None:
    async with serve(SERVE, {"IMAGE_PROXY_CACHE_PATH": str(tmp_path)}) as server:
        for name, (head, status) in REFUSED_HEADS.items():
            async with Client(server.port) as client:
                received = b""
                try:
                    await client.stream.send_all(head)
                    with trio.fail_after(PATIENCE):
                        async for data in client.stream:
                            received += data
                except trio.BrokenResourceError:
                    pass  # it closed with our bytes unread
                assert received.startswith(f"HTTP/1.1 {status} ".encode()) or not received, name
            assert (await server.get("/healthz")).status == 200
        assert "Traceback" not in server.text


async def test_a_head_that_comes_a_byte_at_a_time_is_cut_as_a_whole_not_byte_by_byte(
    world: World, nursery: trio.Nursery, mock_clock: trio.testing.MockClock
) -> None:
    config = world.config(server={"bind": "127.0.0.1:0"})
    app = create_app(config, networks=(world.network, world.directory_network))
    settings = hypercorn_config(config)
    settings.bind = list(config.server.bind)
    start = partial(hypercorn.trio.serve, app, settings, mode="asgi")
    (bound,) = await nursery.start(start)
    async with Client(int(bound.rpartition(":")[2])) as client:
        closed = trio.Event()

        async def read() -> None:
            assert await client.stream.receive_some() == b""
            closed.set()

        nursery.start_soon(read)
        for letter in b"GET / HTTP/1.1\r\nHost: proxy.test\r\n":
            await trio.testing.wait_all_tasks_blocked(0.001)
            if closed.is_set():
                break
            await client.stream.send_all(bytes([letter]))
            # Well within any timeout between two bytes.
            mock_clock.jump(5)
        assert closed.is_set()
        assert mock_clock.current_time() <= KEEP_ALIVE_SECONDS + 5
    nursery.cancel_scope.cancel()


async def test_servers_on_one_folder_fetch_an_image_once_between_them(tmp_path: Path) -> None:
    """Catches single flight that ends at the process: each worker is a load on the PDS."""
    async with upstream() as made:
        did, cid = made.add_blob(tiny_jpeg())
        held = made.hold_blobs()
        environment = made.environment(tmp_path)
        path = f"/img/avatar_thumbnail/plain/{did}/{cid}"
        replies: list[Reply] = []

        async def get(server: Server) -> None:
            replies.append(await server.get(path))

        async with serve(SERVE, environment) as one, serve(SERVE, environment) as other:
            async with trio.open_nursery() as nursery:
                for server in (one, other) * 10:
                    nursery.start_soon(get, server)
                await held.seen.wait()
                held.released.set()
            assert {reply.status for reply in replies} == {200}
            assert len({reply.body for reply in replies}) == 1
            assert made.blobs_asked_for == 1
            states = [reply.headers["x-cache"] for reply in replies]
            assert states.count("miss") == 1
            assert (await other.get(path)).headers["x-cache"] == "hit"


async def test_a_server_that_is_killed_over_a_fetch_does_not_keep_it_from_the_others(
    tmp_path: Path,
) -> None:
    """Catches a lock that outlives its holder: an image that nobody can make any more."""
    async with upstream() as made:
        did, cid = made.add_blob(tiny_jpeg())
        held = made.hold_blobs()
        environment = made.environment(tmp_path)
        path = f"/img/avatar_thumbnail/plain/{did}/{cid}"
        replies: list[Reply] = []

        async def fail(server: Server) -> None:
            with suppress(h11.RemoteProtocolError):
                await server.get(path)

        async def get(server: Server) -> None:
            replies.append(await server.get(path))

        async with serve(SERVE, environment) as one, serve(SERVE, environment) as other:
            async with trio.open_nursery() as nursery:
                nursery.start_soon(fail, one)
                await held.seen.wait()
                made.hold_blobs().released.set()
                nursery.start_soon(get, other)
                await trio.sleep(0.1)  # it waits for the other's claim by now, or asks later
                assert made.blobs_asked_for == 1
                one.send(signal.SIGKILL)
            assert [reply.status for reply in replies] == [200]
            assert made.blobs_asked_for == 2


async def test_fetch_writes_the_picture_and_its_timings(tmp_path: Path) -> None:
    async with upstream() as internet:
        did, cid = internet.add_blob(tiny_png((10, 20, 30), (300, 200)), "image/png")
        environment = internet.environment(tmp_path / "cache")
        to_file = imageproxy("fetch", "avatar_thumbnail", did, cid, "-o", str(tmp_path / "a.png"))
        async with run(to_file, environment) as process:
            assert await process.exit_code() == 0
            line = process.lines[-1]
        assert re.match(r"miss  image/png  \d+ bytes  resolve .* fetch .* process .* ms$", line)
        with Image.open(tmp_path / "a.png") as image:
            assert image.size == (128, 128)
        # The write is drained: a second process finds it.
        async with run(to_file, environment) as process:
            assert await process.exit_code() == 0
            assert process.lines[-1].startswith("hit  image/png")
        assert internet.blobs_asked_for == 1


async def test_fetch_to_standard_output_writes_the_picture_there_and_nothing_else(
    tmp_path: Path,
) -> None:
    async with upstream() as internet:
        did, cid = internet.add_blob(tiny_jpeg())
        arguments = imageproxy("fetch", "avatar_thumbnail", did, cid, "--format", "png", "-o", "-")
        environment = internet.environment(tmp_path)
        with trio.fail_after(PATIENCE):
            done = await trio.run_process(
                [sys.executable, *arguments],
                cwd=ROOT,
                env=own_environment(environment),
                capture_stdout=True,
                capture_stderr=True,
                check=False,
            )
        assert done.returncode == 0
        assert Image.open(BytesIO(done.stdout)).size == (128, 128)
        assert done.stdout.startswith(b"\x89PNG")
        assert done.stdout.endswith(b"IEND\xaeB`\x82")
        assert b"miss  image/png" in done.stderr


FETCH_FAILURES: dict[str, tuple[Callable[[str, str], list[str]], int, str]] = {
    "an unknown preset": (lambda did, cid: ["nothing", did, cid], 2, "invalid preset: nothing"),
    "a bad DID": (lambda did, cid: ["avatar", "did:web:A", cid], 2, "invalid DID format"),
    "a bad CID": (lambda did, cid: ["avatar", did, "b"], 2, "invalid CID format"),
    "a bad format": (lambda did, cid: ["avatar", did, cid, "--format", "gif"], 2, "invalid format"),
    "a blob that is not there": (
        lambda did, cid: ["avatar", did, "Qm" + "a" * 44],
        1,
        "blob not found",
    ),
    "no picture": (lambda did, cid: ["avatar", did, cid], 1, "unsupported image format"),
}


@pytest.mark.parametrize("name", FETCH_FAILURES)
async def test_fetch_tells_usage_from_failure_by_its_exit_code(name: str, tmp_path: Path) -> None:
    arguments, code, message = FETCH_FAILURES[name]
    async with upstream() as internet:
        did, cid = internet.add_blob(b"only text", "text/plain")
        command = imageproxy("fetch", *arguments(did, cid))
        async with run(command, internet.environment(tmp_path)) as process:
            assert await process.exit_code() == code
            assert message in process.text
            assert "Traceback" not in process.text


async def test_warm_fills_the_cache_from_every_form_of_line_and_reports_what_failed(
    tmp_path: Path,
) -> None:
    async with upstream() as internet:
        blobs = [internet.add_blob(tiny_jpeg((0, 0, shade))) for shade in range(4)]
        text = internet.add_blob(b"only text", "text/plain")
        lines = [
            "# a comment",
            "",
            f"https://proxy.test{img(*blobs[0])}?x=1",
            img(*blobs[1]),
            f"avatar_small {blobs[2][0]} {blobs[2][1]} webp",
            f"{blobs[3][0]} {blobs[3][1]}",
            f"/info/{blobs[0][0]}/{blobs[0][1]}",
        ]
        file = tmp_path / "list"
        file.write_text("\n".join(lines))
        environment = internet.environment(tmp_path / "cache")
        async with run(imageproxy("warm", str(file)), environment) as process:
            assert await process.exit_code() == 0
            assert "13 made, 0 were cached, 0 skipped, 0 failed" in process.text
        assert len(files_in(tmp_path / "cache")) == 13
        asked = internet.blobs_asked_for

        file.write_text("\n".join([*lines, f"banner {text[0]} {text[1]}"]))
        async with run(imageproxy("warm", str(file)), environment) as process:
            assert await process.exit_code() == 1
            assert "0 made, 13 were cached, 1 skipped, 0 failed" in process.text
            assert img(*text, preset="banner") in process.text
            assert "Traceback" not in process.text
        # What was cached is not asked for again.
        assert internet.blobs_asked_for == asked + 1


async def test_warm_fills_the_cache_with_what_an_account_has(tmp_path: Path) -> None:
    """Catches a command that reads standard input all the same, and hides what failed."""
    async with upstream() as internet:
        did, _ = internet.add_blob(tiny_jpeg())
        internet.pds.add_blob(did, tiny_jpeg((9, 9, 9)))
        internet.pds.add_blob(did, b"only text", "text/plain")
        environment = internet.environment(tmp_path / "cache")
        arguments = ["warm", "--account", did, "--preset", "banner", "--preset", "avatar_small"]
        async with run(imageproxy(*arguments), environment) as process:
            await process.line_with("failed")
            assert await process.exit_code() == 0
            assert "2 made, 0 were cached, 1 skipped, 0 failed" in process.text
        assert len(files_in(tmp_path / "cache")) == 4
        internet.pds.add_blob(did, tiny_jpeg()[:-200])
        async with run(imageproxy(*arguments), environment) as process:
            await process.line_with("skipped")
            assert await process.exit_code() == 1
            told = f"0 made, 2 were cached, 1 skipped, 1 failed, in {tmp_path / 'cache'}"
            assert told in process.text
            assert f"/img/banner/plain/{did}/" in process.text
            assert "Traceback" not in process.text


@pytest.mark.parametrize(
    ("arguments", "code", "message"),
    [
        (["--account", "nonsense"], 2, "invalid handle format"),
        (["--account", "did:plc:aaaaaaaaaaaaaaaaaaaaaaaa"], 1, "no such account"),
        (["--account", "alice.community", "--preset", "nosuch"], 2, "invalid preset: nosuch"),
        (["--account", "alice.community", "--per-second", "0"], 2, "--per-second"),
    ],
)
async def test_warm_says_of_an_account_what_is_wrong(
    tmp_path: Path, arguments: list[str], code: int, message: str
) -> None:
    async with upstream() as internet:
        command = imageproxy("warm", *arguments)
        async with run(command, internet.environment(tmp_path / "cache")) as process:
            await process.line_with(re.escape(message))
            assert await process.exit_code() == code
            assert "Traceback" not in process.text


async def test_warm_names_the_line_that_it_cannot_read_and_asks_for_nothing(
    tmp_path: Path,
) -> None:
    async with upstream() as internet:
        did, cid = internet.add_blob(tiny_jpeg())
        file = tmp_path / "list"
        file.write_text(f"{did} {cid}\nthis is no image of any kind\n")
        environment = internet.environment(tmp_path / "cache")
        async with run(imageproxy("warm", str(file)), environment) as process:
            assert await process.exit_code() == 2
            assert "line 2" in process.text
        assert internet.blobs_asked_for == 0
