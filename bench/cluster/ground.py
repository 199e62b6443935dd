"""The ground of these measurements: nodes, a balancer before them, and an upstream behind."""

from __future__ import annotations

import random
import re
import shutil
import sys
from collections import Counter
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path
from secrets import token_hex

import h11
import trio

from bench.client import get
from bench.cluster.engines import SeaweedFs, store_environment
from bench.images import SOURCE
from bench.pictures import Size
from bench.processes import (
    BenchError,
    Server,
    counts,
    cpu_seconds,
    metric,
    started,
    upstream,
)
from bench.upstream import LOOPBACK, Manifest, account
from proxy.config import Config
from tests.balancers import BALANCERS
from tests.nginx import find_nginx
from tests.ports import free_port

PRESETS = ("avatar_small", "content_preview", "feed_thumbnail")
"""Asked of each picture at one moment: what one hash must bring to one node."""

SEAWEEDFS = "seaweedfs"
"""In the place of a store's URL: a SeaweedFS of its own."""

CLIENTS = 2
"""Who ask for each of them at that moment."""


@dataclass(frozen=True, slots=True)
class Plan:
    """How much is measured.

    Attributes:
        pictures: of an account each.
        latency: seconds before an answer of the directory and of the PDS.
        at_once: pictures.
        hot_seconds: of the load on one picture.
        decisions: blocks that are timed; ``deaths`` of more, each with a node killed before it.
        rounds: batches of hits, each with the cluster and without.
        near: seconds before an answer of the PDS, where a result is made again.
        store: the URL of an object store that the nodes share, or ``SEAWEEDFS``; empty: each has
            its disk alone.
    """

    nodes: int = 3
    pictures: int = 300
    size: Size = SOURCE
    latency: float = 0.25
    at_once: int = 4
    hot_seconds: int = 10
    decisions: int = 100
    deaths: int = 10
    rounds: int = 60
    near: float = 0.02
    store: str = ""


@dataclass(frozen=True, slots=True)
class Front:
    """A balancer as it is printed, or changed to show what a part of it is for."""

    program: str
    change: Callable[[str], str] = str

    @property
    def is_here(self) -> bool:
        return bool(find_nginx() if self.program == "nginx" else shutil.which(self.program))


def _all_hot(text: str) -> str:
    return re.sub(r"(use_backend hot) if .*", r"\1", text)


def _none_hot(text: str) -> str:
    return re.sub(r"\n +(use_backend hot if|limit_req zone=).*", "", text)


FRONTS = {
    "haproxy": Front("haproxy"),
    "nginx": Front("nginx"),
    "haproxy, bounded load for all": Front("haproxy", _all_hot),
    "haproxy, no help": Front("haproxy", _none_hot),
    "nginx, no help": Front("nginx", _none_hot),
}


@dataclass(slots=True)
class Node:
    """A proxy that can be killed and started again on its port and its folder.

    Attributes:
        port: at which clients on the loopback address reach it.
        host: the address that it listens at.
        prefix: a command that runs the one after it, as in a network namespace.
        module: whose ``serve`` it is.
    """

    name: str
    folder: Path
    environment: dict[str, str]
    port: int = field(default_factory=free_port)
    host: str = LOOPBACK
    prefix: Sequence[str] = ()
    module: str = "proxy"
    server: Server | None = None
    _stack: AsyncExitStack = field(default_factory=AsyncExitStack)

    @property
    def address(self) -> str:
        return f"{self.host}:{self.port}"

    @property
    def cache(self) -> Path:
        """Its cache folder."""
        return self.folder / f"{self.name}-cache"

    async def start(self) -> None:
        log = self.folder / f"{self.name}.log"
        environment = {
            **self.environment,
            "IMAGE_PROXY_SERVER__BIND": self.address,
            "IMAGE_PROXY_CACHE__PATH": str(self.cache),
        }
        command = [*self.prefix, sys.executable, "-m", self.module, "serve"]
        process = await self._stack.enter_async_context(
            started(command, log=log, environment=environment)
        )
        self.server = Server(process, self.port, log)

    async def ready(self) -> None:
        assert self.server is not None
        await self.server.ready()

    async def kill(self) -> None:
        """End it as a failing machine does."""
        assert self.server is not None
        self.server.process.kill()
        await self.close()

    async def close(self) -> None:
        await self._stack.aclose()
        self.server = None

    async def answered(self) -> float:
        """How many requests for pictures it has answered since its start."""
        return await metric(self.port, "imageproxy_requests_total") if self.server else 0

    def cpu(self) -> float:
        """CPU seconds since its start."""
        return cpu_seconds(self.server.process.pid) if self.server else 0


@dataclass(slots=True)
class Passed:
    """What a pass brought.

    Attributes:
        states: answers by their ``X-Cache``.
        failed: requests without a 200, by reason.
    """

    states: Counter[str] = field(default_factory=Counter)
    failed: Counter[str] = field(default_factory=Counter)
    seconds: float = 0.0


class Ground:
    """Nodes and their upstream; balancers come and go before them."""

    def __init__(self, folder: Path, plan: Plan, manifest: Manifest, nodes: list[Node]) -> None:
        self.folder = folder
        self.plan = plan
        self.nodes = nodes
        self._manifest = manifest

    def picture(self, number: int) -> list[str]:
        """The paths of one picture, each of the presets."""
        did, cid = account(number), self._manifest.cids[number]
        return [f"/img/{preset}/plain/{did}/{cid}" for preset in PRESETS]

    async def pass_over(self, port: int, pictures: Sequence[int], seed: int) -> Passed:
        """Ask for every preset of each picture, by each of ``CLIENTS`` clients, at one moment.

        Pictures come in a random order, ``plan.at_once`` at a time.
        """
        order = list(pictures)
        random.Random(seed).shuffle(order)
        passed = Passed()
        numbers = iter(order)
        start = trio.current_time()

        async def ask(path: str) -> None:
            try:
                answer = await get(port, path)
            except (
                OSError,
                trio.BrokenResourceError,
                trio.TooSlowError,
                h11.ProtocolError,
            ) as error:
                passed.failed[type(error).__name__] += 1
                return
            if answer.status == 200:
                passed.states[answer.headers["x-cache"]] += 1
            else:
                passed.failed[f"status {answer.status}"] += 1

        async def ask_pictures() -> None:
            for number in numbers:
                async with trio.open_nursery() as nursery:
                    for path in self.picture(number) * CLIENTS:
                        nursery.start_soon(ask, path)

        async with trio.open_nursery() as nursery:
            for _ in range(self.plan.at_once):
                nursery.start_soon(ask_pictures)
        passed.seconds = trio.current_time() - start
        return passed

    async def fetches(self, pictures: Sequence[int]) -> int:
        """How often the PDS was asked for them so far."""
        found = await counts(self._manifest.port)
        return sum(found.blobs.get(self._manifest.cids[number], 0) for number in pictures)

    @asynccontextmanager
    async def front(self, name: str) -> AsyncIterator[Server]:
        """A balancer of ``FRONTS`` before all nodes."""
        front = FRONTS[name]
        if not front.is_here:
            raise BenchError(f"no {front.program} here; on Debian: apt install {front.program}")
        folder = self.folder / re.sub(r"\W+", "-", name)
        folder.mkdir()
        port = free_port()
        nodes = [node.address for node in self.nodes]
        command = BALANCERS[front.program](folder, port, Config(), nodes)
        for file in (folder / "haproxy.cfg", folder / "nginx/nginx.conf"):
            if file.exists():
                file.write_text(front.change(file.read_text()))
        log = folder / "log"
        async with started(command, log=log) as process:
            server = Server(process, port, log)
            await server.ready()
            yield server


@asynccontextmanager
async def open_ground(folder: Path, plan: Plan, pictures: int) -> AsyncIterator[Ground]:
    """Nodes that are ready, on new folders.

    Args:
        pictures: how many there are at the PDS.
    """
    async with AsyncExitStack() as stack:
        manifest = await stack.enter_async_context(
            upstream(folder, blobs=pictures, size=plan.size, latency=plan.latency)
        )
        environment = {
            "IMAGE_PROXY_IDENTITY__PLC_URL": f"http://{LOOPBACK}:{manifest.port}",
            "IMAGE_PROXY_FETCH__ALLOW_HTTP": "true",
            "IMAGE_PROXY_FETCH__ALLOW_PRIVATE_HOSTS": "true",
            "IMAGE_PROXY_PROCESS__QUEUE_WAIT": "60",
        }
        if plan.store == SEAWEEDFS:
            store = SeaweedFs(folder)
            stack.push_async_callback(store.close)
            await store.start()
            await store.ready()
            environment |= store_environment(store.port)
        elif plan.store:
            # A prefix of its own: what an earlier ground made must not help this one.
            own = f"{plan.store.rstrip('/')}/{token_hex(8)}"
            if own.startswith("file://"):
                await trio.Path(own.removeprefix("file://")).mkdir(parents=True)
            environment["IMAGE_PROXY_STORE__URL"] = own
        nodes = [Node(f"node{number}", folder, environment) for number in range(plan.nodes)]
        for node in nodes:
            stack.push_async_callback(node.close)
            await node.start()
        for node in nodes:
            await node.ready()
        yield Ground(folder, plan, manifest, nodes)
