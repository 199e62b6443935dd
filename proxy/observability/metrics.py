"""The metrics, with the names that dashboards use. The number of label values is bounded."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import cache
from importlib.metadata import PackageNotFoundError, version
from platform import python_version

from prometheus_client import (
    CollectorRegistry,
    Counter,
    Gauge,
    Histogram,
    ProcessCollector,
    disable_created_metrics,
)
from prometheus_client.exposition import CONTENT_TYPE_LATEST

from proxy.model.keys import KINDS
from proxy.observability.metrics_snapshot import MetricsSnapshot

CONTENT_TYPE = CONTENT_TYPE_LATEST

disable_created_metrics()  # type: ignore[no-untyped-call]  # they double the series, and no query asks for them

VERSION = version("atproto-imageproxy")


def version_of(package: str) -> str:
    """The version of a package, which need not be imported; empty if it is not installed."""
    try:
        return version(package)
    except PackageNotFoundError:
        return ""


BUILD = {
    "version": VERSION,
    "python": python_version(),
    "pillow": version_of("pillow"),
    "pillow_heif": version_of("pillow-heif"),
}
"""What runs: labels of ``build_info``."""

DECODERS = (
    "libjpeg_turbo",
    "zlib",
    "deflate",
    "libwebp",
    "libavif",
    "dav1d",
    "libheif",
    "libde265",
    "ffmpeg",
)
"""What decodes: further labels of ``build_info``, by which ``tell_decoders`` tells the versions."""

_SECONDS = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30)

ACTOR_OUTCOMES = ("found", "absent", "invalid", "busy", "failed", "cancelled", "drawn")
"""Outcomes of requests for an account's picture by name."""

GAUGES = {
    "blocks": "Owners, blobs and pairs that are blocked",
    "purges_pending": "Purges, of any process, that are not finished",
    "cache_entries": "Entries on disk",
    "cache_bytes": "Bytes on disk",
    "cache_free_bytes": "Bytes that the file system of the cache has left",
    "fetch_queue_depth": "Fetches that wait",
    "process_waiting": "Transforms that have not begun",
    "cdn_pending": "Owners and blobs that the CDN has yet to forget",
    "lease_held": "1 while this process holds its lease of the cluster",
    "labels_waiting": "Labels whose record is not known yet",
}
"""Gauges that are read when the metrics are; each exists only if its source exists."""

SHARED = frozenset(
    (
        "imageproxy_blocks",
        "imageproxy_purges_pending",
        "imageproxy_cache_entries",
        "imageproxy_cache_bytes",
        "imageproxy_cache_free_bytes",
        "imageproxy_build_info",
        "process_start_time_seconds",
    )
)
"""Gauges that are not summed over processes. For the cache folder and the release, all processes
read the same value; for the start times, the latest counts."""


class Metrics:
    """One set of metrics in a registry of its own, so that services do not share counts."""

    def __init__(self) -> None:
        self.registry = registry = CollectorRegistry()

        def counter(name: str, text: str, *labels: str) -> Counter:
            return Counter(f"imageproxy_{name}", text, labels, registry=registry)

        def histogram(name: str, text: str, *labels: str) -> Histogram:
            return Histogram(
                f"imageproxy_{name}", text, labels, registry=registry, buckets=_SECONDS
            )

        self.requests = counter(
            "requests_total", "Image requests answered", "preset", "status", "cache"
        )
        self.request_duration = histogram(
            "request_duration_seconds", "From request to answer", "cache"
        )
        self.fetch_duration = histogram(
            "fetch_duration_seconds", "From fetch channel to verified blob", "outcome"
        )
        self.process_duration = histogram(
            "process_duration_seconds", "Decoding, resampling, encoding", "preset", "format"
        )
        self.coalesced = counter("coalesced_total", "Requests that shared the work of another")
        self.rejected = counter("rejected_total", "Requests refused as busy", "stage")
        self.evictions = counter("cache_evictions_total", "Entries evicted", "reason")
        self.write_errors = counter("cache_write_errors_total", "Cache writes that failed")
        self.writes_dropped = counter(
            "cache_writes_dropped_total", "Cache writes that found the channel full"
        )
        self.store_requests = counter(
            "store_requests_total",
            "Requests to the shared store, and writes that were not sent",
            "operation",
            "outcome",
        )
        self.worker_deaths = counter("worker_deaths_total", "Image workers that died", "reason")
        self.image_defects = counter(
            "image_defects_total", "Results that a defect of the proxy prevented"
        )
        self.decisions = counter("decisions_total", "Blocks, liftings and purges decided", "action")
        self.blocked = counter("blocked_total", "Requests for what is blocked")
        self.policy_answers = counter(
            "policy_answers_total", "Questions to the policy service", "answer"
        )

        self.cdn_requests = counter("cdn_requests_total", "Requests to purge the CDN", "outcome")
        self.directory_requests = counter(
            "directory_requests_total", "Questions to the PLC directory", "outcome"
        )
        self.admin_requests = counter(
            "admin_requests_total", "Requests below /admin, wrong tokens among them", "status"
        )
        self.revalidations = counter(
            "revalidations_total", "Cached blobs that their PDS was asked for", "finding"
        )
        self.actor_requests = counter(
            "actor_requests_total", "Requests for an account's picture by name", "kind", "outcome"
        )
        self.feed_events = counter(
            "feed_events_total", "What labels and account events led to", "feed", "outcome"
        )
        self.feed_disconnects = counter(
            "feed_disconnects_total", "Connections to feeds that ended or failed", "feed", "reason"
        )
        self.feed_connections = Gauge(
            "imageproxy_feed_connections", "Open connections to feeds", ["feed"], registry=registry
        )
        self.not_ready = Gauge(
            "imageproxy_not_ready", "Processes that are not ready", ["reason"], registry=registry
        )
        self.degraded = Gauge(
            "imageproxy_degraded",
            "Processes that serve without something",
            ["reason"],
            registry=registry,
        )
        labels = [*BUILD, *DECODERS]
        self._build = Gauge("imageproxy_build_info", "1, of what runs", labels, registry=registry)
        self._decoders = dict.fromkeys(DECODERS, "")
        self.tell_decoders({})

        # Start at 0, not absent: otherwise a query does not see the first event as an increase.
        for metric, values in (
            (self.rejected, ("fetch", "process", "send")),
            (self.evictions, ("ttl", "size")),
            (self.worker_deaths, ("crash", "hang", "protocol")),
            (self.decisions, ("block", "lift", "purge")),
            (self.directory_requests, ("ok", "failed")),
            (self.admin_requests, ("401",)),
            (self.not_ready, ("blocks", "cache", "draining")),
            (self.degraded, ("cache", "store")),
        ):
            for value in values:
                metric.labels(value)
        for kind in KINDS:
            for outcome in ACTOR_OUTCOMES:
                self.actor_requests.labels(kind, outcome)

        # A label look-up in the client library costs more than the counting.
        self._request_counter = cache(self.requests.labels)
        self._request_timer = cache(self.request_duration.labels)

    def answered(self, preset: str, status: int, state: str, seconds: float) -> None:
        """Count an image request, and its duration in seconds."""
        self._request_counter(preset, status, state).inc()
        self._request_timer(state).observe(seconds)

    def unwritten(self) -> int:
        """How many results were not written to the cache."""
        names = ("cache_write_errors_total", "cache_writes_dropped_total")
        values = (self.registry.get_sample_value(f"imageproxy_{name}") for name in names)
        return int(sum(value or 0 for value in values))

    def gauge(self, name: str, value: Callable[[], float]) -> None:
        """Create one of ``GAUGES``, which reads its value by calling ``value``."""
        Gauge(f"imageproxy_{name}", GAUGES[name], registry=self.registry).set_function(value)

    def tell_process(self) -> None:
        """Export memory, descriptors, CPU time and start of this process, if /proc exists."""
        ProcessCollector(registry=self.registry)

    def asked_directory(self, outcome: str) -> None:
        """Count a request to the PLC directory."""
        self.directory_requests.labels(outcome).inc()

    def tell_not_ready(self, reason: str, holds: Callable[[], bool]) -> None:
        """Register a reason for which this process may be not ready; ``holds`` tells if it is."""
        self.not_ready.labels(reason).set_function(lambda: float(holds()))

    def tell_degraded(self, reason: str, holds: Callable[[], bool]) -> None:
        """Register what this process may have to serve without, like ``tell_not_ready``."""
        self.degraded.labels(reason).set_function(lambda: float(holds()))

    def tell_decoders(self, found: Mapping[str, str]) -> None:
        """Export the versions of decoders beside those told before. Others than ``DECODERS`` are
        left out."""
        named = {name.lower().replace("-", "_"): version for name, version in found.items()}
        self._decoders |= {name: named[name] for name in DECODERS if name in named}
        self._build.clear()
        self._build.labels(**BUILD, **self._decoders).set(1)

    def snapshot(self) -> MetricsSnapshot:
        """Return the current values."""
        return MetricsSnapshot(tuple(self.registry.collect()), SHARED)
