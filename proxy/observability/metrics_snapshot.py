"""Merges the metrics of several processes: the snapshot of each, and their sum. Pure."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Any

from prometheus_client import generate_latest
from prometheus_client.core import Metric
from prometheus_client.registry import Collector, CollectorRegistry
from prometheus_client.samples import Sample


@dataclass(frozen=True, slots=True)
class MetricsSnapshot:
    """The metrics of one process at one time.

    Attributes:
        shared: names of gauges that every process reads from one source, such as the cache.
    """

    families: tuple[Metric, ...]
    shared: frozenset[str] = frozenset()

    def to_document(self) -> dict[str, object]:
        """Return what JSON can carry to another process."""
        families = [
            {
                "name": family.name,
                "type": family.type,
                "text": family.documentation,
                "samples": [[each.name, each.labels, each.value] for each in family.samples],
            }
            for family in self.families
        ]
        return {"families": families, "shared": sorted(self.shared)}

    @classmethod
    def from_document(cls, found: Any) -> MetricsSnapshot:
        """Read the result of ``to_document``.

        Raises:
            ValueError: ``found`` is something else, or incomplete.
        """
        try:
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
        if name.endswith("_info"):
            _join(family)
    return MetricsSnapshot(tuple(families.values()), shared)


def _join(family: Metric) -> None:
    """Make one sample of those whose labels differ only where one of them is empty.

    A process knows its decoders when it has the first worker, so that some know more than others.
    """
    joined: list[Sample] = []
    for sample in family.samples:
        for at, other in enumerate(joined):
            pairs = [(sample.labels[name], value) for name, value in other.labels.items()]
            if all(ours == theirs or not (ours and theirs) for ours, theirs in pairs):
                labels = {
                    name: value or sample.labels[name] for name, value in other.labels.items()
                }
                joined[at] = other._replace(labels=labels)
                break
        else:
            joined.append(sample)
    family.samples = joined


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
