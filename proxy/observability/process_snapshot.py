"""What the worker processes of one server tell each other: metrics, and hosts beside them. Pure.

Metrics carry no host: their values are bounded, and a monitoring system keeps them. Hosts are told
to whoever has a token (``state``).
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any

from proxy.egress.known_hosts import HostPace, KnownHosts, OpenCircuit
from proxy.observability.metrics_snapshot import MetricsSnapshot


@dataclass(frozen=True, slots=True)
class ProcessSnapshot:
    """One process at one time."""

    pid: int
    metrics: MetricsSnapshot
    hosts: KnownHosts

    def to_json(self) -> bytes:
        """Serialize for another process."""
        document = {
            "pid": self.pid,
            "metrics": self.metrics.to_document(),
            "hosts": asdict(self.hosts),
        }
        return json.dumps(document).encode()

    @classmethod
    def from_json(cls, data: bytes) -> ProcessSnapshot:
        """Parse the output of ``to_json``.

        Raises:
            ValueError: ``data`` is something else, or incomplete.
        """
        found = json.loads(data)
        try:
            metrics = MetricsSnapshot.from_document(found["metrics"])
            return cls(int(found["pid"]), metrics, _hosts_of(found["hosts"]))
        except (KeyError, TypeError) as error:
            raise ValueError(f"no snapshot: {error!r}") from error


def _hosts_of(document: Mapping[str, Any]) -> KnownHosts:
    return KnownHosts(
        tuple(HostPace(**each) for each in document["slowest"]),
        tuple(OpenCircuit(**each) for each in document["circuits"]),
    )
