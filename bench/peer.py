"""The peer that hits are compared with: a bare ASGI function that knows its answers by heart.

It runs under the same Hypercorn worker with the same settings and sends the same bytes, headers
included, so what it does not do is what the proxy adds to a hit. Its connections are Hypercorn's,
unless it is told to have ours.
"""

from __future__ import annotations

import argparse
import json
import signal
from base64 import b64decode, b64encode
from collections.abc import Mapping
from functools import partial
from pathlib import Path
from typing import Any

import hypercorn.trio
import trio

from bench.client import Answer
from proxy.config import load_config
from proxy.serving.serve import hypercorn_config
from proxy.web import hypercorn_connection as connection
from proxy.web.asgi import Receive, Scope, Send

READY = "/readyz"

_PER_CONNECTION = frozenset({"date", "connection"})
"""Headers that the server adds by itself."""


def write_answers(file: Path, answers: Mapping[str, Answer]) -> None:
    """Save answers by path, for a peer to give."""
    file.write_text(
        json.dumps(
            {
                path: {
                    "headers": [
                        pair for pair in answer.headers.items() if pair[0] not in _PER_CONNECTION
                    ],
                    "body": b64encode(answer.body).decode(),
                }
                for path, answer in answers.items()
            }
        )
    )


def _read_answers(file: Path) -> dict[str, tuple[dict[str, Any], dict[str, Any]]]:
    """The two ASGI messages of each answer, by path."""
    answers = {}
    for path, answer in json.loads(file.read_text()).items():
        headers = [(name.encode(), value.encode("latin-1")) for name, value in answer["headers"]]
        answers[path] = (
            {"type": "http.response.start", "status": 200, "headers": headers},
            {"type": "http.response.body", "body": b64decode(answer["body"])},
        )
    empty: tuple[dict[str, Any], dict[str, Any]] = (
        {"type": "http.response.start", "status": 200, "headers": []},
        {"type": "http.response.body", "body": b""},
    )
    answers[READY] = empty
    return answers


async def _serve(bind: str, file: Path, our_connections: bool) -> None:
    if our_connections:
        connection.install()
    answers = _read_answers(file)

    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "lifespan":
            await _lifespan(receive, send)
            return
        for message in answers[scope["path"]]:
            await send(message)

    settings = hypercorn_config(load_config())
    settings.bind = [bind]
    settings.backlog = 1024
    with trio.open_signal_receiver(signal.SIGTERM, signal.SIGINT) as signals:
        stop: Any = partial(anext, signals)
        await hypercorn.trio.serve(app, settings, shutdown_trigger=stop, mode="asgi")  # type: ignore[arg-type]


async def _lifespan(receive: Receive, send: Send) -> None:
    for phase in ("startup", "shutdown"):
        await receive()
        await send({"type": f"lifespan.{phase}.complete"})


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--bind", required=True, metavar="HOST:PORT")
    parser.add_argument("--answers", required=True, type=Path, metavar="FILE")
    parser.add_argument("--our-connections", action="store_true", help="not Hypercorn's own")
    arguments = parser.parse_args()
    trio.run(_serve, arguments.bind, arguments.answers, arguments.our_connections)
