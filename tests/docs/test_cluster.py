"""``docs/cluster.md``: its steps, with processes on loopback as machines."""

from __future__ import annotations

import json
import os
import re
import shlex
import signal
import subprocess
import sys
import tomllib
from collections import Counter
from collections.abc import Iterator, Mapping
from contextlib import AsyncExitStack
from pathlib import Path

import pytest
import trio

from proxy.config import Config, load_config
from tests.balancers import haproxy_program
from tests.documents import blocks
from tests.fakes.world import tiny_jpeg
from tests.ports import free_port
from tests.postgres import Postgres, run_postgres
from tests.processes import (
    ROOT,
    Server,
    Upstream,
    imageproxy,
    listening,
    own_environment,
    serve,
    until,
    upstream,
)

pytestmark = pytest.mark.slow

STEPS = (ROOT / "docs/cluster.md").read_text(encoding="utf-8").partition("\n## From one machine")[2]
HAPROXY = "/etc/haproxy/haproxy.cfg"
CONFIG = "/etc/imageproxy/config.toml"
TOKEN = "a-token-of-the-operator"
MACHINES = ("10.0.0.1", "10.0.0.2", "10.0.0.3")


def step(number: int) -> str:
    """The text of a step."""
    found = re.search(rf"(?ms)^\*\*{number}\. .*?(?=^\*\*{number + 1}\. |\Z)", STEPS)
    assert found is not None
    return found[0]


class Site:
    """What the lines of the document mean here.

    Args:
        ports: by machine.
    """

    def __init__(self, folder: Path, ports: Mapping[str, int]) -> None:
        self.file = folder / "haproxy.cfg"
        self._config = folder / f"{MACHINES[0]}.toml"
        self.front = free_port()
        self._ports = ports
        self._here = {f"{name}:8080": f"127.0.0.1:{port}" for name, port in ports.items()}

    async def follow(self, number: int, balancer: Server | None = None) -> list[str]:
        """Type the commands of a step; return those that were."""
        typed = []
        for command in "".join(blocks(step(number), "sh")).splitlines():
            line = command
            for there, here in self._here.items():
                line = line.replace(there, here)
            line = line.replace(HAPROXY, shlex.quote(str(self.file)))
            line = line.replace(CONFIG, shlex.quote(str(self._config)))
            program, _, rest = line.partition(" ")
            if program == "systemctl":
                assert rest == "reload haproxy"
                if balancer is not None:
                    # What the unit of Debian does for a reload.
                    balancer.send(signal.SIGUSR2)
            else:
                known = {
                    "imageproxy": shlex.join([sys.executable, *imageproxy()]),
                    "haproxy": haproxy_program(),
                    "curl": "curl --silent",
                }
                await trio.run_process(
                    ["sh", "-c", f"{known[program]} {rest}"],
                    cwd=ROOT,
                    env=own_environment({}),
                    stdout=subprocess.DEVNULL,
                )
            if line.startswith("imageproxy haproxy"):
                text = self.file.read_text()
                assert "bind :80\n" in text
                self.file.write_text(text.replace("bind :80\n", f"bind 127.0.0.1:{self.front}\n"))
            typed.append(program)
        return typed


class Machines:
    """Nodes by the name of their machine, set by the fragments of the steps that were taken."""

    def __init__(self, folder: Path, internet: Upstream, database: str) -> None:
        self.ports = {machine: free_port() for machine in MACHINES}
        self.nodes: dict[str, Server] = {}
        self._folder = folder
        self._internet = internet
        self._here = {
            "postgresql://imageproxy:PASSWORD@db.internal/imageproxy": database,
            "s3://pictures/proxy": f"file://{folder}/store",
        }
        self._settings = ""
        (folder / "store").mkdir()

    def set(self, number: int) -> None:
        """Take over what a step says of the configuration."""
        (fragment,) = blocks(step(number), "toml")
        assert any(there in fragment for there in self._here)
        for there, here in self._here.items():
            fragment = fragment.replace(there, here)
        self._settings += fragment

    def write(self, machine: str) -> Path:
        """Write its configuration."""
        file = self._folder / f"{machine}.toml"
        folder = json.dumps(str(self._folder / machine))
        file.write_text(f"[cache]\npath = {folder}\n{self._settings}")
        return file

    async def start(self, machine: str, stack: AsyncExitStack) -> None:
        options = [
            "--config",
            str(self.write(machine)),
            "--bind",
            f"127.0.0.1:{self.ports[machine]}",
        ]
        environment = self._internet.environment(
            self._folder / machine,
            SERVER__ADMIN_TOKEN=TOKEN,
            # A node that a busy machine keeps from renewing its own serves nothing, and is right.
            CLUSTER__LEASE="60",
        )
        self.nodes[machine] = await stack.enter_async_context(
            serve(imageproxy("serve", *options), environment)
        )

    async def stop(self, machine: str) -> None:
        self.nodes[machine].send(signal.SIGTERM)
        assert await self.nodes[machine].exit_code() == 0

    async def have_all_served(self) -> bool:
        pages = [(await node.get("/metrics")).body for node in self.nodes.values()]
        return all(re.search(rb"imageproxy_requests_total\{.*} ", page) for page in pages)


async def test_the_steps_lead_from_one_machine_to_three_and_no_request_fails(
    tmp_path: Path, database: str
) -> None:
    """Catches a step that does not work as typed or that clients notice, and nodes that keep
    their decisions to themselves at the end."""
    statuses: Counter[int] = Counter()
    first, *others = MACHINES
    async with upstream() as internet, AsyncExitStack() as stack:
        machines = Machines(tmp_path, internet, database)
        site = Site(tmp_path, machines.ports)
        # So many that each node has some of them, whatever their hashes are.
        blobs = [internet.add_blob(tiny_jpeg()) for _ in range(48)]
        pictures = [f"/img/avatar_thumbnail/plain/{did}/{cid}" for did, cid in blobs]
        await machines.start(first, stack)
        assert await site.follow(1) == ["imageproxy", "haproxy", "systemctl"]
        # As its unit runs it: a master process takes the reload.
        command = [haproxy_program(), "-W", "-db", "-f", str(site.file)]
        front = await stack.enter_async_context(listening(command, site.front))

        async def ask_all() -> None:
            for picture in pictures:
                statuses[(await front.get(picture)).status] += 1

        async def block(did: str, machine: str) -> None:
            headers = (("Authorization", f"Bearer {TOKEN}"), ("Content-Type", "application/json"))
            body = json.dumps({"did": did}).encode()
            node = machines.nodes[machine]
            reply = await node.get("/admin/blocks", *headers, method="POST", body=body)
            assert reply.status in (200, 201), reply.body

        await ask_all()
        early, late = blobs[0], blobs[1]
        await block(early[0], first)
        blocked = [pictures.pop(0)]
        machines.set(2)
        await machines.stop(first)
        machines.write(first)
        assert await site.follow(2) == ["imageproxy"]
        machines.set(3)
        await machines.start(first, stack)

        async def is_back() -> bool:
            return (await front.get(pictures[0])).status == 200

        await until(is_back)
        await ask_all()
        for machine in others:
            await machines.start(machine, stack)
        assert await site.follow(4) == ["curl", "curl"]
        all_have_served = trio.Event()
        async with trio.open_nursery() as nursery:

            async def keep_asking() -> None:
                while not all_have_served.is_set():
                    await ask_all()

            nursery.start_soon(keep_asking)
            assert await site.follow(5, front) == ["imageproxy", "haproxy", "systemctl"]
            await until(machines.have_all_served)
            all_have_served.set()
        await ask_all()
        assert set(statuses) == {200}
        await block(late[0], others[0])
        blocked.append(pictures.pop(0))
        for picture in blocked:
            assert (await front.get(picture)).status == 404
            for node in machines.nodes.values():
                assert (await node.get(picture)).status == 404
        for node in machines.nodes.values():
            assert (await node.get(pictures[0])).status == 200


@pytest.fixture(scope="module")
def postgres() -> Iterator[Postgres]:
    with run_postgres() as server:
        yield server


@pytest.fixture
def database(postgres: Postgres) -> str:
    """The URL of a new one."""
    return postgres.new_database()


def test_each_fragment_of_the_configuration_is_one() -> None:
    """Catches a key that is spelt otherwise, which stops the start."""
    fragments = blocks(STEPS, "toml")
    assert len(fragments) == 3
    for text in fragments:
        assert load_config(environment={}, overrides=tomllib.loads(text)) != Config()


def test_the_shipped_cluster_is_what_the_document_says() -> None:
    """Catches a document that names a folder which is gone."""
    (folder,) = re.findall(r"^`(deploy/\w+/)` has", STEPS, re.MULTILINE)
    assert {"compose.yaml", "kubernetes.yaml"} <= set(os.listdir(ROOT / folder))
