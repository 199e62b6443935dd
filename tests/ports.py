"""Ports of 127.0.0.1 that are free at this moment."""

from __future__ import annotations

import random
import socket
from collections.abc import Iterator


def free_port() -> int:
    """A port that nobody listens on."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port


def free_pairs() -> Iterator[int]:
    """Ports that nobody listens on, nor on the one 10,000 higher, as SeaweedFS takes them.

    In no order: another round of the tests may look for some at the same moment.
    """
    for port in random.sample(range(20000, 30000), 10000):
        try:
            for each in (port, port + 10000):
                with socket.socket() as probe:
                    probe.bind(("127.0.0.1", each))
        except OSError:
            continue
        yield port
