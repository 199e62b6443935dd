"""The way out through an HTTP proxy (``fetch.proxy``), by CONNECT (RFC 9110 section 9.3.6)."""

from __future__ import annotations

import re
import ssl
from base64 import b64encode
from ipaddress import ip_address
from urllib.parse import unquote, urlsplit

import trio

from proxy.egress.addresses import forbidden
from proxy.egress.errors import ConnectFailed
from proxy.egress.network import Network
from proxy.egress.own_hosts import is_own

# Of the head of the proxy's answer.
MAX_HEAD = 16 * 1024

_STATUS = re.compile(rb"HTTP/1\.[01] ([0-9]{3})(?: |\r)")
_PORTS = {"http": 80, "https": 443}


class EgressProxy:
    """Opens streams through a proxy.

    Args:
        url: ``http://`` or ``https://``, with user and password, percent-encoded, if it asks.
        ssl_context: for the connection to an ``https://`` proxy; None: the system's trust store.
    """

    def __init__(self, url: str, ssl_context: ssl.SSLContext | None = None) -> None:
        parts = urlsplit(url)
        self._host = parts.hostname or ""
        self._port = parts.port or _PORTS[parts.scheme]
        self._ssl_context: ssl.SSLContext | None = None
        if parts.scheme == "https":
            self._ssl_context = ssl_context or ssl.create_default_context()
        self._authorization = ""
        if parts.username is not None:
            pair = f"{unquote(parts.username)}:{unquote(parts.password or '')}"
            self._authorization = f"Proxy-Authorization: Basic {b64encode(pair.encode()).decode()}"

    async def dial(self, host: str, port: int) -> trio.abc.Stream:
        """A stream to ``host``, a name or an address. Cancellation leaves no socket open.

        Raises:
            OSError: the proxy does not answer, or does not connect.
        """
        stream: trio.abc.Stream = await trio.open_tcp_stream(self._host, self._port)
        try:
            if self._ssl_context is not None:
                stream = trio.SSLStream(
                    stream, self._ssl_context, server_hostname=self._host, https_compatible=True
                )
            await self._ask(stream, f"[{host}]:{port}" if ":" in host else f"{host}:{port}")
        except BaseException as error:
            await trio.aclose_forcefully(stream)
            if isinstance(error, trio.BrokenResourceError):
                raise OSError(f"fetch.proxy: {error.__cause__ or error}") from error
            raise
        return stream

    async def _ask(self, stream: trio.abc.Stream, authority: str) -> None:
        lines = [f"CONNECT {authority} HTTP/1.1", f"Host: {authority}", self._authorization]
        await stream.send_all("".join(f"{line}\r\n" for line in lines if line).encode() + b"\r\n")
        head = b""
        while b"\r\n\r\n" not in head:
            received = await stream.receive_some()
            if not received or len(head) > MAX_HEAD:
                raise OSError("fetch.proxy: its answer to CONNECT is cut off, or endless")
            head += received
        status = _STATUS.match(head)
        if status is None or not status[1].startswith(b"2"):
            told = status[1].decode() if status else "no status"
            raise OSError(f"fetch.proxy does not connect to {authority}: {told}")
        # Whoever is behind it speaks only when asked.
        if not head.endswith(b"\r\n\r\n"):
            raise OSError("fetch.proxy: its answer to CONNECT has a body")

    async def dial_public(self, address: str, port: int) -> trio.abc.Stream:
        """``dial``, but for private addresses, which are near: to those without the proxy."""
        near = forbidden(ip_address(address)) is not None
        return await (trio.open_tcp_stream if near else self.dial)(address, port)


class NamesThroughProxy:
    """A ``Network`` whose names the proxy looks up, and so are not guarded here.

    Args:
        network: connects to address literals and to names in ``own``, and starts TLS.
        own: the names that are looked up here (``fetch.allow_private_hosts``).
    """

    def __init__(self, network: Network, proxy: EgressProxy, own: tuple[str, ...]) -> None:
        self._network = network
        self._proxy = proxy
        self._own = own

    async def connect(self, host: str, port: int) -> trio.abc.Stream:
        """See ``Network.connect``."""
        if is_own(self._own, host) or _is_address(host):
            return await self._network.connect(host, port)
        try:
            return await self._proxy.dial(host, port)
        except OSError as error:
            raise ConnectFailed(f"{host} port {port}: {error}") from error

    async def start_tls(self, stream: trio.abc.Stream, host: str) -> trio.abc.Stream:
        """See ``Network.start_tls``."""
        return await self._network.start_tls(stream, host)


def _is_address(host: str) -> bool:
    try:
        ip_address(host)
    except ValueError:
        return False
    return True
