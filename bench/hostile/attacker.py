"""An attacker, as a process of its own, so that its work is not that of the honest clients.

It writes the port of its directory and name server as one line to standard output, begins when a
``Target`` comes as a line of standard input, ends when that ends, and then writes its ``Report``.
"""

from __future__ import annotations

import argparse
import json
import os
from collections.abc import AsyncIterator
from dataclasses import asdict, dataclass

import trio

from bench.hostile.attacks import BY_NAME
from bench.hostile.ground import Ground, Target
from bench.processes import allow_open_files
from bench.upstream import LOOPBACK

OPEN_FILES = 2048


@dataclass(frozen=True, slots=True)
class Report:
    """What an attack did.

    Attributes:
        sent: bytes through the uplink.
        asked: answers to its requests, by status or error.
        wrong: answers that no attacker may get.
    """

    sent: int
    asked: dict[str, int]
    wrong: dict[str, int]

    @classmethod
    def parse(cls, line: bytes) -> Report:
        """Read the line that an attacker wrote."""
        return cls(**json.loads(line))


async def _lines() -> AsyncIterator[bytes]:
    rest = b""
    async for received in trio.lowlevel.FdStream(os.dup(0)):
        *lines, rest = (rest + received).split(b"\n")
        for line in lines:
            yield line


async def _main(name: str, honest_port: int) -> None:
    udp = trio.socket.socket(trio.socket.AF_INET, trio.socket.SOCK_DGRAM)
    with udp:
        ground = await _attack(name, honest_port, udp)
    report = Report(ground.uplink.sent, dict(ground.asked), dict(ground.wrong))
    print(json.dumps(asdict(report)), flush=True)


async def _attack(name: str, honest_port: int, udp: trio.socket.SocketType) -> Ground:
    async with trio.open_nursery() as nursery:
        ground = Ground(nursery, honest_port)
        port = await ground.listen(ground.answer_for_directory, LOOPBACK)
        await udp.bind((LOOPBACK, port))
        nursery.start_soon(ground.answer_dns, udp)
        print(port, flush=True)
        async for line in _lines():
            ground.target = Target(**json.loads(line))
            nursery.start_soon(BY_NAME[name].run, ground)
        nursery.cancel_scope.cancel()
    return ground


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("name", choices=BY_NAME)
    parser.add_argument("--honest-port", type=int, required=True, help="of the honest PDS")
    given = parser.parse_args()
    allow_open_files(OPEN_FILES)
    trio.run(_main, given.name, given.honest_port)
