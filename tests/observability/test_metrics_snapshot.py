"""The sum over worker processes is what Prometheus would have counted of one process."""

from __future__ import annotations

import json
import re
import time

import pytest
from prometheus_client import generate_latest

from proxy.observability.metrics import Metrics
from proxy.observability.metrics_snapshot import MetricsSnapshot, merge, render


def counted(*seconds: float, preset: str = "avatar", entries: int = 7, waiting: int = 1) -> Metrics:
    """Metrics of a process that has answered some requests."""
    metrics = Metrics()
    metrics.gauge("cache_entries", lambda: entries)
    metrics.gauge("process_waiting", lambda: waiting)
    for each in seconds:
        metrics.requests.labels(preset, "200", "hit").inc()
        metrics.request_duration.labels("hit").observe(each)
    return metrics


def test_one_process_alone_says_what_the_client_library_would_write() -> None:
    """Catches a rendering that drops buckets, types or help."""
    metrics = counted(0.002, 3)
    assert render(metrics.snapshot()) == generate_latest(metrics.registry)
    assert render(merge([metrics.snapshot()])) == generate_latest(metrics.registry)


def test_counts_and_buckets_add_up_to_those_of_one_process_with_all_requests() -> None:
    """Catches a merge that keeps the last process's series, or adds labels that differ."""
    parts = [counted(0.002, 3, waiting=1), counted(0.002, waiting=2), counted(50, waiting=0)]
    whole = counted(0.002, 3, 0.002, 50, waiting=3)
    merged = merge(part.snapshot() for part in parts)
    assert render(merged) == render(whole.snapshot())


def test_series_that_only_one_process_has_are_kept() -> None:
    text = render(
        merge([counted(1, preset="avatar").snapshot(), counted(1, preset="banner").snapshot()])
    ).decode()
    for preset in ("avatar", "banner"):
        assert (
            f'imageproxy_requests_total{{cache="hit",preset="{preset}",status="200"}} 1.0' in text
        )


def test_what_all_processes_read_from_one_folder_is_not_added_up() -> None:
    """Catches a cache that seems twice as large with two workers."""
    merged = merge([counted(entries=7).snapshot(), counted(entries=9).snapshot()])
    assert b"imageproxy_cache_entries 9.0\n" in render(merged)


def test_of_two_processes_one_version_runs_and_the_later_start_counts() -> None:
    """Catches a service that began in a century to come."""
    both = [counted(), counted()]
    for each in both:
        each.tell_process()
    text = render(merge(each.snapshot() for each in both)).decode()
    (running,) = re.findall(r"^imageproxy_build_info\{.*\} (.*)$", text, re.MULTILINE)
    (began,) = re.findall(r"^process_start_time_seconds (.*)$", text, re.MULTILINE)
    (memory,) = re.findall(r"^process_resident_memory_bytes (.*)$", text, re.MULTILINE)
    (own,) = re.findall(
        r"^process_resident_memory_bytes (.*)$",
        render(both[0].snapshot()).decode(),
        re.MULTILINE,
    )
    assert running == "1.0"
    assert float(began) < time.time()
    assert float(memory) == pytest.approx(2 * float(own), rel=0.5)


def test_processes_that_know_more_and_less_of_what_decodes_are_one_build() -> None:
    """Catches a server that counts as two versions until each worker has made a poster."""
    knows, knows_more, other = counted(), counted(), counted()
    knows.tell_decoders({"libwebp": "1.6.0", "libjpeg-turbo": "3.2.0", "unheard-of": "1"})
    knows_more.tell_decoders({"libwebp": "1.6.0"})
    knows_more.tell_decoders({"FFmpeg": "8.1.2"})
    other.tell_decoders({"libwebp": "1.5.9"})

    def builds(*parts: Metrics) -> list[dict[str, str]]:
        text = render(merge(each.snapshot() for each in parts)).decode()
        found = re.findall(r"^imageproxy_build_info\{(.*)\} 1.0$", text, re.MULTILINE)
        return [dict(re.findall(r'(\w+)="([^"]*)"', labels)) for labels in found]

    (one,) = builds(counted(), knows, knows_more)
    assert (one["libwebp"], one["libjpeg_turbo"], one["ffmpeg"]) == ("1.6.0", "3.2.0", "8.1.2")
    assert one["libheif"] == ""
    assert {each["libwebp"] for each in builds(knows, other)} == {"1.6.0", "1.5.9"}


def as_it_comes(snapshot: MetricsSnapshot) -> MetricsSnapshot:
    """A snapshot that went through JSON."""
    return MetricsSnapshot.from_document(json.loads(json.dumps(snapshot.to_document())))


def test_a_snapshot_comes_over_a_socket_as_it_was() -> None:
    snapshot = counted(0.5, 2).snapshot()
    assert render(as_it_comes(snapshot)) == render(snapshot)
    shared = as_it_comes(snapshot).shared
    assert "imageproxy_cache_entries" in shared
    assert "imageproxy_process_waiting" not in shared


@pytest.mark.parametrize(
    "document",
    [
        [],
        None,
        {},
        {"families": [{}], "shared": []},
        {"families": [{"name": "a", "text": "b", "type": "counter"}]},
        {"families": 1, "shared": []},
    ],
)
def test_an_invalid_snapshot_is_refused_and_not_taken_for_an_empty_one(document: object) -> None:
    with pytest.raises(ValueError, match="no snapshot"):
        MetricsSnapshot.from_document(document)
