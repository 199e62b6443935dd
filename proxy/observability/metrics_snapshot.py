"""Merges the metrics of several processes: the snapshot of each, and their sum. Pure."""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator
from dataclasses import dataclass

from prometheus_client import generate_latest
from prometheus_client.core import Metric
from prometheus_client.registry import Collector, CollectorRegistry


@dataclass(frozen=True, slots=True)
class MetricsSnapshot:
    """The metrics of one process at one time.

    Attributes:
        shared: names of gauges that every process reads from one source, such as the cache.
    """

    families: tuple[Metric, ...]
    shared: frozenset[str] = frozenset()

    def to_json(self) -> bytes:
        """Serialize for another process."""
        families = [
            {
                "name": family.name,
                "type": family.type,
                "text": family.documentation,
                "samples": [[each.name, each.labels, each.value] for each in family.samples],
            }
            for family in self.families
        ]
        return json.dumps({"families": families, "shared": sorted(self.shared)}).encode()

    @classmethod
    def from_json(cls, data: bytes) -> MetricsSnapshot:
        """Parse the output of ``to_json``.

        Raises:
            ValueError: ``data`` is something else, or incomplete.
        """
        try:
            found = json.loads(data)
            families = []
            for each in found["families"]:
                family = Metric(each["name"], each["text"], each["type"])
                for name, labels, value in each["samples"]:
                    family.add_sample(name, labels, value)
                families.append(family)
            return cls(tuple(families), frozenset(found["shared"]))
        except (KeyError, TypeError) as error:
            raise ValueError(f"no snapshot: {error!r}") from error


def merge(snapshots: Iterable[MetricsSnapshot]) -> MetricsSnapshot:
    """Merge to one snapshot: sums, except the maximum for shared gauges, which should be equal."""
    families: dict[str, Metric] = {}
    values: dict[str, dict[tuple[str, tuple[tuple[str, str], ...]], float]] = {}
    shared: frozenset[str] = frozenset()
    for snapshot in snapshots:
        shared |= snapshot.shared
        for family in snapshot.families:
            families.setdefault(family.name, Metric(family.name, family.documentation, family.type))
            series = values.setdefault(family.name, {})
            for sample in family.samples:
                key = (sample.name, tuple(sorted(sample.labels.items())))
                if key not in series:
                    series[key] = sample.value
                elif family.name in snapshot.shared:
                    series[key] = max(series[key], sample.value)
                else:
                    series[key] += sample.value
    for name, family in families.items():
        for (sample_name, labels), value in values[name].items():
            family.add_sample(sample_name, dict(labels), value)
    return MetricsSnapshot(tuple(families.values()), shared)


def render(snapshot: MetricsSnapshot) -> bytes:
    """Return the snapshot in the Prometheus text format."""
    registry = CollectorRegistry()
    registry.register(_Fixed(snapshot))
    return generate_latest(registry)


class _Fixed(Collector):
    def __init__(self, snapshot: MetricsSnapshot) -> None:
        self._snapshot = snapshot

    def collect(self) -> Iterator[Metric]:
        yield from self._snapshot.families

    def describe(self) -> Iterator[Metric]:
        yield from self._snapshot.families
