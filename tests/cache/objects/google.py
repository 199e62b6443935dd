"""A stand-in for Google's store: as much of its XML API as the client uses, and no credentials.

Written after https://cloud.google.com/storage/docs/xml-api/reference-methods. It shows what the
client sends and what it makes of these answers, not what Google's own server does.
"""

from __future__ import annotations

import json
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from urllib.parse import parse_qs, unquote, urlsplit
from xml.sax.saxutils import escape

BUCKET = "pictures"


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    server: _Server

    def do_PUT(self) -> None:
        content = self.rfile.read(int(self.headers["Content-Length"]))
        name = self._name()
        # An object that is not there has the generation 0.
        if self.headers.get("x-goog-if-generation-match") == "0" and name in self.server.objects:
            self._send(412)
            return
        self.server.objects[name] = content
        self._send(200)

    def do_GET(self) -> None:
        asked = parse_qs(urlsplit(self.path).query)
        if "list-type" in asked:
            self._list(asked.get("prefix", [""])[0])
        elif (content := self.server.objects.get(self._name())) is None:
            self._send(404)
        else:
            self._send(200, content)

    def do_DELETE(self) -> None:
        self._send(404 if self.server.objects.pop(self._name(), None) is None else 204)

    def log_message(self, format: str, *args: object) -> None:
        """Say nothing."""

    def _name(self) -> str:
        return unquote(urlsplit(self.path).path).removeprefix(f"/{BUCKET}/")

    def _list(self, prefix: str) -> None:
        found = "".join(
            f"<Contents><Key>{escape(name)}</Key><Size>{len(content)}</Size>"
            "<LastModified>2026-01-01T00:00:00.000Z</LastModified><ETag>&quot;e&quot;</ETag></Contents>"
            for name, content in sorted(self.server.objects.items())
            if name.startswith(prefix)
        )
        self._send(200, f"<ListBucketResult>{found}</ListBucketResult>".encode())

    def _send(self, status: int, content: bytes = b"") -> None:
        self.send_response(status)
        if status != 204:
            self.send_header("Content-Length", str(len(content)))
        self.send_header("ETag", '"e"')
        self.send_header("Last-Modified", "Thu, 01 Jan 2026 00:00:00 GMT")
        self.send_header("x-goog-generation", "1")
        self.end_headers()
        self.wfile.write(content)


class _Server(ThreadingHTTPServer):
    daemon_threads = True

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), _Handler)
        self.objects: dict[str, bytes] = {}


@contextmanager
def google(folder: Path) -> Iterator[Path]:
    """Run one; yields the file that ``GOOGLE_SERVICE_ACCOUNT`` names for it."""
    with _Server() as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        account = folder / "account.json"
        # The keys by which the client is led to an emulator.
        account.write_text(
            json.dumps(
                {
                    "gcs_base_url": f"http://127.0.0.1:{server.server_address[1]}",
                    "disable_oauth": True,
                    "client_email": "",
                    "private_key": "",
                    "private_key_id": "",
                }
            )
        )
        try:
            yield account
        finally:
            server.shutdown()
            thread.join()
