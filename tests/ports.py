"""Ports of 127.0.0.1 that are free at this moment, for servers that cannot choose one themselves.

Below those that the system chooses from (32768 and more on Linux): there, somebody else gets one
before the server that it is for has it. In no order: another round of the tests may look for some
at the same moment.
"""

from __future__ import annotations

import random
import socket
from collections.abc import Iterator


def free_port() -> int:
    """A port that nobody listens on."""
    return next(_free(range(10_000, 20_000), (0,)))


def free_pairs() -> Iterator[int]:
    """Ports that nobody listens on, nor on the one 10,000 higher, as SeaweedFS takes them."""
    return _free(range(20_000, 22_700), (0, 10_000))


def _free(ports: range, offsets: tuple[int, ...]) -> Iterator[int]:
    # By the system's chance: Hypothesis sets Python's to the same in every round.
    for port in random.SystemRandom().sample(ports, len(ports)):
        try:
            for offset in offsets:
                with socket.socket() as probe:
                    probe.bind(("127.0.0.1", port + offset))
        except OSError:
            continue
        yield port
