"""Where a server listens."""

from __future__ import annotations

import errno
import signal
import socket
import stat
from pathlib import Path

import pytest
import trio

from proxy.serving.sockets import CannotListen, open_sockets, remove_sockets
from proxy.shared.binds import TcpBind, UnixBind, parse_bind
from tests.processes import PATIENCE, imageproxy, serve


@pytest.mark.parametrize("text", ["127.0.0.1:80", "[::1]:0", "a.example:8080", "unix:/run/a"])
def test_an_address_is_written_as_it_was_read(text: str) -> None:
    assert str(parse_bind(text)) == text


def test_a_socket_that_nobody_listens_on_is_replaced_and_one_in_use_is_not(tmp_path: Path) -> None:
    """Catches a start that fails after a kill, and a second server that takes the first one's."""
    bind = UnixBind(str(tmp_path / "socket"))
    (first,) = open_sockets([bind])
    assert stat.S_IMODE(Path(bind.path).stat().st_mode) == 0o666
    with pytest.raises(CannotListen) as caught:
        open_sockets([bind])
    assert (caught.value.errno, caught.value.filename) == (errno.EADDRINUSE, str(bind))
    first.close()
    (second,) = open_sockets([bind])
    remove_sockets([bind])
    assert Path(bind.path).exists(), "it is in use"
    second.close()
    remove_sockets([bind])
    assert not Path(bind.path).exists()


def test_what_is_no_socket_is_not_removed_for_one(tmp_path: Path) -> None:
    file = tmp_path / "notes"
    file.write_text("kept")
    with pytest.raises(CannotListen):
        open_sockets([UnixBind(str(file))])
    remove_sockets([UnixBind(str(file))])
    assert file.read_text() == "kept"


def test_if_one_address_cannot_be_had_none_is_kept(tmp_path: Path) -> None:
    """Catches half a server, and the file of a socket that nobody listens on."""
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        bind = UnixBind(str(tmp_path / "socket"))
        with pytest.raises(CannotListen, match="in use"):
            open_sockets([bind, TcpBind("127.0.0.1", port)])
        assert not Path(bind.path).exists()


@pytest.mark.slow
@pytest.mark.parametrize("workers", [1, 2])
async def test_a_server_listens_on_each_address_and_says_what_to_open(
    workers: int, tmp_path: Path
) -> None:
    """Catches all but the first being ignored, in one process or in several."""
    path = tmp_path / "socket"
    arguments = imageproxy("serve", "--bind", f"127.0.0.1:0,unix:{path}")
    environment = {"IMAGE_PROXY_CACHE__PATH": str(tmp_path / "cache")}
    arguments += ["--workers", str(workers)]
    async with serve(arguments, environment, workers=workers) as server:
        assert (await server.get("/healthz")).status == 200
        await server.line_with(rf'"open":"http://127\.0\.0\.1:{server.port}/"')
        with trio.fail_after(PATIENCE):
            async with await trio.open_unix_socket(str(path)) as stream:
                await stream.send_all(
                    b"GET /healthz HTTP/1.1\r\nHost: a\r\nConnection: close\r\n\r\n"
                )
                answer = b"".join([bytes(part) async for part in stream])
        assert answer.endswith(b"ok\n")
        server.send(signal.SIGTERM)
        assert await server.exit_code() == 0
    assert not path.exists()
