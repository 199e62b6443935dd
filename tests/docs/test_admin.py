"""The examples of docs/moderation.md are what an operator may type."""

from __future__ import annotations

import json
import re
import shlex
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from tests.fakes.world import World
from tests.web import serving

TEXT = (Path(__file__).parents[2] / "docs/moderation.md").read_text(encoding="utf-8")

EXAMPLES = re.findall(r"```sh\n(curl .*?)```\n\n```json\n(.*?)```", TEXT, re.DOTALL)

TOKEN = "a-token-of-the-operator"


def parse(command: str) -> tuple[str, str, list[tuple[str, str]], bytes]:
    """Method, target, headers and body of a request by curl."""
    words = shlex.split(command.replace("\\\n", " ").replace("$TOKEN", TOKEN))
    assert words.pop(0) == "curl"
    method, url, headers, body = "GET", "", [], b""
    while words:
        match words.pop(0):
            case "-X":
                method = words.pop(0)
            case "-H":
                name, _, value = words.pop(0).partition(": ")
                headers.append((name, value))
            case "-d":
                body = words.pop(0).encode()
            case address:
                url = address
    parts = urlsplit(url)
    assert parts.netloc == "127.0.0.1:8080"
    return method, parts.path + (f"?{parts.query}" if parts.query else ""), headers, body


def timeless(answer: Any) -> Any:
    """Without the times at which something was decided."""
    for block in answer.get("blocks", ()):
        assert isinstance(block.pop("created_at"), float)
    for decision in answer.get("decisions", ()):
        assert isinstance(decision.pop("at"), float)
    return answer


async def test_each_example_of_the_routes_is_answered_as_the_document_says(world: World) -> None:
    """Catches a body, a method or an answer that was changed, and people who type the old one."""
    assert len(EXAMPLES) == 8
    asked = set()
    async with serving(world, world.config(server={"admin_token": TOKEN})) as client:
        for command, answer in EXAMPLES:
            method, target, headers, body = parse(command)
            reply = await client.ask(target, *headers, method=method, body=body)
            assert timeless(json.loads(reply.body)) == timeless(json.loads(answer)), command
            if reply.status == 200:
                asked.add(f"{method} {urlsplit(target).path}")
    routes = re.findall(r"^\| `(\w+ /admin/\w+)` \|", TEXT, re.MULTILINE)
    assert asked == set(routes)
    assert len(routes) == 7
