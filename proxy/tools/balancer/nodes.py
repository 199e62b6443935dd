"""The nodes behind a balancer, and what both balancers decide alike. Pure."""

from __future__ import annotations

import zlib
from collections.abc import Iterator, Sequence

from proxy.shared.binds import TcpBind, parse_bind

HOT_RATE = 100
"""Requests a second for one picture from which on other nodes help with it.

A few per cent of the hits that a node can answer (docs/cluster.md has the measurement).
"""

HOT_SECONDS = 10
"""How long that rate must last: by then the picture is made, and nobody waits for a fetch of it."""

MAX_NODES = 64
"""More than one balancer of these is for."""


def parse_nodes(text: str) -> tuple[str, ...]:
    """Parse ``HOST:PORT,HOST:PORT``.

    Raises:
        ValueError: for a person: an entry is no address, stands there twice, or there are none
            or too many.
    """
    nodes = tuple(part.strip().lower() for part in text.split(","))
    for node in nodes:
        if not _is_node(node):
            raise ValueError(f"{node!r} is not HOST:PORT")
        if nodes.count(node) > 1:
            raise ValueError(f"{node} is named twice")
    if len(nodes) > MAX_NODES:
        raise ValueError(f"more than {MAX_NODES} nodes")
    return nodes


def _is_node(text: str) -> bool:
    try:
        bind = parse_bind(text)
    except ValueError:
        return False
    return isinstance(bind, TcpBind) and bind.fits_fronts


def numbered(nodes: Sequence[str]) -> Iterator[tuple[int, str]]:
    """Yield each node with a number that follows from its address alone.

    HAProxy places a server on the ring by its number. Numbers in the order of a list would move
    most pictures to other nodes when the first node is taken out of it.
    """
    taken: set[int] = set()
    for node in sorted(nodes):
        number = zlib.crc32(node.encode()) % (2**31 - 1) + 1
        while number in taken:
            number = number % (2**31 - 1) + 1
        taken.add(number)
        yield number, node
