"""A real Prometheus with our rules before a real proxy, and traffic that moves every metric."""

from __future__ import annotations

import json
import shutil
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from io import BytesIO
from pathlib import Path
from typing import Any
from urllib.parse import urlencode

import trio
from PIL import Image

from tests.fakes.sites import cid_of, document, new_plc_did, pds_service
from tests.fakes.world import tiny_png
from tests.ports import free_port
from tests.processes import ROOT, SERVE, Client, Server, Upstream, run, serve, until, upstream
from tests.required import skip_unless_required

DEPLOY = ROOT / "deploy"

CONFIG = """
global: {{scrape_interval: 500ms, evaluation_interval: 1s}}
rule_files: ["{rules}"]
scrape_configs:
  - job_name: imageproxy
    static_configs: [{{targets: ["127.0.0.1:{port}"]}}]
"""

TOKEN = "a-token-of-the-operator"


class Prometheus:
    """Asks one that runs."""

    def __init__(self, port: int) -> None:
        self._port = port

    async def query(self, expression: str) -> list[dict[str, Any]]:
        """Its series now."""
        found: list[dict[str, Any]] = (await self._ask("query", query=expression))["result"]
        return found

    async def query_range(
        self, expression: str, start: float, end: float, step: float
    ) -> list[dict[str, Any]]:
        """Its series over a time, in seconds since the epoch."""
        range_ = {"start": str(start), "end": str(end), "step": str(step)}
        answer = await self._ask("query_range", query=expression, **range_)
        found: list[dict[str, Any]] = answer["result"]
        return found

    async def rules(self) -> list[dict[str, Any]]:
        """The alert rules that it evaluates."""
        groups = (await self._ask("rules"))["groups"]
        return [rule for group in groups for rule in group["rules"]]

    async def is_up(self) -> bool:
        """Whether it has scraped."""
        try:
            return any(each["value"][1] == "1" for each in await self.query("up"))
        except (OSError, ValueError):
            return False

    async def _ask(self, what: str, **parameters: str) -> Any:
        async with Client(self._port) as client:
            await client.send(f"/api/v1/{what}?{urlencode(parameters)}")
            reply = await client.reply()
        answer = json.loads(reply.body)
        if reply.status != 200:
            raise ValueError(f"{parameters}: {answer.get('error')}")
        return answer["data"]


@asynccontextmanager
async def prometheus(folder: Path, target: int) -> AsyncIterator[Prometheus]:
    """One that scrapes ``target`` twice a second, with the rules of ``deploy/``."""
    program = shutil.which("prometheus")
    if program is None:
        skip_unless_required("no Prometheus here; on Debian: apt install prometheus")
    port = free_port()
    file = folder / "prometheus.yml"
    file.write_text(CONFIG.format(rules=DEPLOY / "alerts.yml", port=target))
    command = [
        program,
        f"--config.file={file}",
        f"--storage.tsdb.path={folder / 'data'}",
        f"--web.listen-address=127.0.0.1:{port}",
    ]
    async with run(["-c", f"import os; os.execv({program!r}, {command!r})"], {}):
        asked = Prometheus(port)
        await until(asked.is_up)
        yield asked


@asynccontextmanager
async def busy_proxy(folder: Path) -> AsyncIterator[tuple[Server, Upstream]]:
    """A proxy that is soon at its limits, and its upstream."""
    async with upstream() as internet:
        environment = internet.environment(
            folder,
            SERVER__ADMIN_TOKEN=TOKEN,
            CACHE__MAX_GB=str(60_000 / 1024**3),
            FETCH__QUEUE_SIZE="2",
            FETCH__WORKERS="2",
            FETCH__PER_HOST="2",
            PROCESS__ISOLATION="thread",
        )
        async with serve(SERVE, environment) as server:
            yield server, internet


async def make_traffic(server: Server, internet: Upstream, seconds: float) -> None:
    """Hits, misses, shared ones, every kind of error, blocks, evictions and refusals."""
    ends = trio.current_time() + seconds
    known = internet.add_blob(picture(0))
    blocked = internet.add_blob(picture(1))
    async with Client(server.port) as client:
        body = json.dumps({"did": blocked[0]})
        await post(client, "/admin/blocks", body)
    homeless = new_plc_did()
    internet.plc.documents[homeless] = document(homeless, pds_service("http://127.0.0.1:9"))
    number = 2
    while trio.current_time() < ends:
        async with trio.open_nursery() as nursery:
            fresh = internet.add_blob(picture(number))
            for preset in ("avatar_thumbnail", "avatar_small"):
                for _ in range(2):
                    nursery.start_soon(server.get, path(*fresh, preset))
            for _ in range(8):
                nursery.start_soon(server.get, path(*known, "avatar_thumbnail"))
            nursery.start_soon(server.get, path(*blocked, "avatar"))
            nursery.start_soon(server.get, path(new_plc_did(), cid_of(b"none"), "banner"))
            nursery.start_soon(server.get, path(*known, "nosuch"))
            nursery.start_soon(server.get, f"/avatar/{known[0]}")
            nursery.start_soon(server.get, "/avatar/nosuch/alice.example.com@webp")
            nursery.start_soon(server.get, path(homeless, cid_of(b"any"), "banner"))
            text = internet.add_blob(b"no picture %d" % number)
            nursery.start_soon(server.get, path(*text, "avatar"))
            if number % 10 == 0:
                for more in range(12):
                    burst = internet.add_blob(tiny_png((more, number % 256, number // 256)))
                    nursery.start_soon(server.get, path(*burst, "avatar_thumbnail"))
        number += 1
        await trio.sleep(0.05)


def path(did: str, cid: str, preset: str) -> str:
    """Of an image."""
    return f"/img/{preset}/plain/{did}/{cid}"


def picture(number: int) -> bytes:
    """A JPEG of some kilobytes."""
    out = BytesIO()
    noise = Image.effect_noise((160, 120), 40 + number % 60).convert("RGB")
    noise.paste((number % 256, 80, 160), (0, 0, 60, 60))
    noise.save(out, "JPEG", quality=80)
    return out.getvalue()


async def post(client: Client, target: str, body: str) -> None:
    """A request of the operator's."""
    head = (
        f"POST {target} HTTP/1.1\r\nHost: proxy.test\r\nAuthorization: Bearer {TOKEN}\r\n"
        f"Content-Type: application/json\r\nContent-Length: {len(body)}\r\n\r\n"
    )
    await client.stream.send_all(head.encode() + body.encode())
    answer = bytes(await client.stream.receive_some())
    assert answer.startswith(b"HTTP/1.1 200 "), answer


WINDOW = "10s"


def expressions() -> list[tuple[str, str]]:
    """The title of each panel of the dashboard with each of its queries, ready to be asked."""
    dashboard = json.loads((DEPLOY / "grafana-dashboard.json").read_text())
    return [
        (panel["title"], expand(target["expr"]))
        for panel in dashboard["panels"]
        for target in panel.get("targets", ())
    ]


def expand(expression: str) -> str:
    """With Grafana's variables replaced as it does."""
    return expression.replace("$__rate_interval", WINDOW).replace("$job", ".*")
