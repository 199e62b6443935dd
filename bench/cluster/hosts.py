"""Hosts on this machine: a network namespace for each node, with a cable to each that it asks.

A cable that is pulled lets nothing through, and nobody is told: packets are lost in both
directions, as between machines. Needs root. The addresses are those for benchmarks (RFC 2544).
"""

from __future__ import annotations

import os
import shutil
import subprocess
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass
from enum import IntEnum

import trio

from bench.processes import BenchError


class Cable(IntEnum):
    """What a cable of a node leads to."""

    DATABASE = 0
    STORE = 1
    WORLD = 2
    """Clients, the balancer, PDSes."""


@dataclass(frozen=True, slots=True)
class Host:
    """A namespace.

    Attributes:
        number: of the node.
        network: the first three bytes of all addresses.
    """

    name: str
    number: int
    network: str

    @property
    def prefix(self) -> list[str]:
        """Runs a command in it."""
        return ["ip", "netns", "exec", self.name]

    def here(self, cable: Cable) -> str:
        """The address of this machine at the end of a cable."""
        return f"{self.network}.{self._first(cable) + 1}"

    def there(self, cable: Cable) -> str:
        """The address of the host at the other end."""
        return f"{self.network}.{self._first(cable) + 2}"

    async def pull(self, *cables: Cable) -> None:
        """Let nothing through."""
        for cable in cables:
            await _ip("link", "set", self._link(cable), "down")

    async def plug(self, *cables: Cable) -> None:
        """Let everything through again."""
        for cable in cables:
            await _ip("link", "set", self._link(cable), "up")

    async def wire(self, world: str) -> None:
        """Make its cables; ``world`` is what it reaches over the last of them."""
        own = ("-n", self.name)
        await _ip(*own, "link", "set", "lo", "up")
        for cable in Cable:
            near, far = self._link(cable), f"cable{cable}"
            await _ip("link", "add", near, "type", "veth", "peer", far, "netns", self.name)
            await _ip("addr", "add", f"{self.here(cable)}/30", "dev", near)
            await _ip(*own, "addr", "add", f"{self.there(cable)}/30", "dev", far)
            await _ip("link", "set", near, "up")
            await _ip(*own, "link", "set", far, "up")
        await self._route(world)

    async def _route(self, world: str) -> None:
        via = self.here(Cable.WORLD)
        await _ip("-n", self.name, "route", "add", f"{world}/32", "via", via)

    def _first(self, cable: Cable) -> int:
        return 4 * (1 + len(Cable) * self.number + cable)

    def _link(self, cable: Cable) -> str:
        return f"{self.name}-{cable}"


def are_permitted() -> bool:
    """Whether namespaces can be made here."""
    if os.geteuid() != 0 or shutil.which("ip") is None:
        return False
    name = f"ipx{os.getpid()}"
    made = subprocess.run(["ip", "netns", "add", name], capture_output=True)
    if made.returncode:
        return False
    tried = ["ip", "link", "add", f"{name}-0", "type", "veth", "peer", "cable0", "netns", name]
    wired = subprocess.run(tried, capture_output=True)
    subprocess.run(["ip", "netns", "delete", name], capture_output=True)
    return wired.returncode == 0


@asynccontextmanager
async def open_world() -> AsyncIterator[str]:
    """An address of this machine that is no loopback address, for the time of the block."""
    for third in range(256):
        address = f"198.18.{third}.1"
        try:
            await _ip("addr", "add", f"{address}/32", "dev", "lo")
        except BenchError:
            continue  # another benchmark has it
        try:
            yield address
        finally:
            with trio.CancelScope(shield=True):
                await _ip("addr", "delete", f"{address}/32", "dev", "lo")
        return
    raise BenchError("no address is free in 198.18.0.0/16")


@asynccontextmanager
async def open_hosts(world: str, count: int) -> AsyncIterator[list[Host]]:
    """Hosts that reach ``world``, for the time of the block."""
    network = world.rpartition(".")[0]
    async with AsyncExitStack() as stack:
        hosts = []
        for number in range(count):
            host = Host(f"ip{os.getpid()}-{number}", number, network)
            await _ip("netns", "add", host.name)
            stack.push_async_callback(_delete, host.name)
            await host.wire(world)
            hosts.append(host)
        yield hosts


async def _delete(name: str) -> None:
    with trio.CancelScope(shield=True):
        await _ip("netns", "delete", name)  # with its cables


async def _ip(*words: str) -> None:
    done = await trio.run_process(["ip", *words], check=False, capture_stderr=True)
    if done.returncode:
        raise BenchError(f"ip {' '.join(words)}: {done.stderr.decode().strip()}")
