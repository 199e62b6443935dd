"""The figures of a running server, from what it told at two times. Pure."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from prometheus_client.parser import text_string_to_metric_families

from proxy.observability.state import State

Series = tuple[str, frozenset[tuple[str, str]]]


@dataclass(frozen=True, slots=True)
class Scrape:
    """The metrics of a server at one time.

    Attributes:
        at: seconds of a clock that only goes forward.
    """

    at: float
    values: Mapping[Series, float]

    @classmethod
    def of(cls, text: str, at: float) -> Scrape:
        """Parse the text format of Prometheus.

        Raises:
            ValueError: it is something else, or of something else than an image proxy.
        """
        values = {
            (sample.name, frozenset(sample.labels.items())): sample.value
            for family in text_string_to_metric_families(text)
            for sample in family.samples
        }
        if not any(name.startswith("imageproxy_") for name, _ in values):
            raise ValueError("no metrics of an image proxy")
        return cls(at, values)

    def total(self, name: str, **labels: str) -> float | None:
        """The sum over the series of ``name`` with these labels; None if there are none."""
        found = [
            value
            for (each, pairs), value in self.values.items()
            if each == name and labels.items() <= dict(pairs).items()
        ]
        return sum(found) if found else None

    def by(self, name: str, label: str) -> dict[str, float]:
        """The sums over the series of ``name`` by the value of ``label``."""
        found: dict[str, float] = {}
        for (each, pairs), value in self.values.items():
            if each == name and label in (of := dict(pairs)):
                found[of[label]] = found.get(of[label], 0) + value
        return found


@dataclass(frozen=True, slots=True)
class Rates:
    """What happened between two times, for each second of it.

    Attributes:
        misses: with those that shared the work of others.
        others: requests that no cache was of use to, such as wrong ones.
        refused: those that were refused as busy.
        hit_share: of the requests for which a cache is of use; None: there were none.
        median, most: bounds in seconds of half, and 95%, of the answers; infinite where they are
            beyond the last bucket; None: there were none.
    """

    hits: float
    misses: float
    others: float
    refused: float
    hit_share: float | None
    median: float | None
    most: float | None


@dataclass(frozen=True, slots=True)
class Figures:
    """What is shown.

    Attributes:
        rates: None: nothing to compare with, as at first and when a worker took its counts along.
        fetches, transforms: that wait.
        entries, cache_bytes, memory_bytes, blocks: None: the server does not tell.
        problems: why processes are not ready, or what they serve without.
        state: what the route tells; None without a token.
    """

    version: str
    rates: Rates | None
    fetches: int
    transforms: int
    entries: int | None
    cache_bytes: int | None
    memory_bytes: int | None
    blocks: int | None
    problems: tuple[str, ...]
    state: State | None


REQUESTS = "imageproxy_requests_total"
REFUSED = "imageproxy_rejected_total"
DURATIONS = "imageproxy_request_duration_seconds_bucket"


def figures_of(before: Scrape | None, now: Scrape, state: State | None) -> Figures:
    """Return the figures of ``now``, with rates since ``before``."""
    (version, *_) = sorted(now.by("imageproxy_build_info", "version")) or [""]
    return Figures(
        version=version,
        rates=None if before is None else _rates(before, now),
        fetches=_whole(now, "imageproxy_fetch_queue_depth") or 0,
        transforms=_whole(now, "imageproxy_process_waiting") or 0,
        entries=_whole(now, "imageproxy_cache_entries"),
        cache_bytes=_whole(now, "imageproxy_cache_bytes"),
        memory_bytes=_whole(now, "process_resident_memory_bytes"),
        blocks=_whole(now, "imageproxy_blocks"),
        problems=(
            *_reasons(now, "not ready", "imageproxy_not_ready"),
            *_reasons(now, "degraded", "imageproxy_degraded"),
        ),
        state=state,
    )


def _whole(scrape: Scrape, name: str) -> int | None:
    value = scrape.total(name)
    return None if value is None else int(value)


def _reasons(scrape: Scrape, what: str, name: str) -> list[str]:
    return [f"{what}: {why}" for why, value in sorted(scrape.by(name, "reason").items()) if value]


def _rates(before: Scrape, now: Scrape) -> Rates | None:
    seconds = now.at - before.at
    # Counters never fall but with their process.
    begun_anew = any(
        (now.total(name) or 0) < (before.total(name) or 0) for name in (REQUESTS, REFUSED)
    )
    if seconds <= 0 or begun_anew:
        return None
    grown = _growth(before.by(REQUESTS, "cache"), now.by(REQUESTS, "cache"))
    hits, others = grown.get("hit", 0.0), grown.get("none", 0.0)
    misses = grown.get("miss", 0.0) + grown.get("coalesced", 0.0)
    refused = (now.total(REFUSED) or 0) - (before.total(REFUSED) or 0)
    buckets = _growth(before.by(DURATIONS, "le"), now.by(DURATIONS, "le"))
    answers = {float(bound): count for bound, count in buckets.items()}
    return Rates(
        hits=hits / seconds,
        misses=misses / seconds,
        others=others / seconds,
        refused=refused / seconds,
        hit_share=hits / (hits + misses) if hits + misses else None,
        median=_bound(answers, 0.5),
        most=_bound(answers, 0.95),
    )


def _growth(before: Mapping[str, float], now: Mapping[str, float]) -> dict[str, float]:
    return {name: max(value - before.get(name, 0), 0.0) for name, value in now.items()}


def _bound(buckets: Mapping[float, float], share: float) -> float | None:
    """The least bound of cumulative ``buckets`` that has ``share`` of all; None if all is 0."""
    everything = max(buckets.values(), default=0)
    if not everything:
        return None
    return min(bound for bound, count in buckets.items() if count >= share * everything)
