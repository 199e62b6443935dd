"""``docs/metrics.md``, made from the registry and from the types of the labels' values."""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Mapping
from typing import get_args

from prometheus_client.metrics import MetricWrapperBase

from proxy.cache.object_store import OUTCOMES as STORE_OUTCOMES
from proxy.imaging.workers.client import DeathReason
from proxy.model.formats import OUTPUTS, Format
from proxy.model.keys import KINDS
from proxy.moderation.decision_store import Action
from proxy.moderation.policy_protocols import Verdict
from proxy.moderation.revalidate import Availability
from proxy.observability.metrics import ACTOR_OUTCOMES, DECODERS, GAUGES, SHARED, Metrics
from proxy.service import OUTCOMES, CacheState

HEAD = """# Metrics

Made by `./run docs` from the registry. `/metrics` has them in the text format of Prometheus;
[alerts](alerts.md) says which of them call for somebody, and what to do then.

No label has a DID, a CID or a host as its value, so that strangers cannot add series. A counter
without labels, and those whose outcomes alerts or panels go by, begin at 0; another series is there
once something was counted in it, a gauge where there is what it tells of.
"""

TAIL = """
A histogram has `_bucket`, `_sum` and `_count` series.

With several worker processes `/metrics` has the sums over all of them, whichever is asked: the
workers tell one another over sockets in a folder of their own, when they are asked and not
before. A worker that does not answer within 2 seconds is left out. A process that ended takes its
counts with it, which Prometheus sees as a restart. This holds for `imageproxy serve`; under
`hypercorn -w 2` each worker answers for itself.

(1) All processes on one cache folder read the same figure, so that it is not added over the workers
of a server. Do not add it over instances that share a folder either.

Beside these there are `process_resident_memory_bytes`, `process_virtual_memory_bytes`,
`process_cpu_seconds_total`, `process_open_fds` and `process_max_fds`, added over the workers of a
server, and `process_start_time_seconds` of the worker that began last. They are of the processes
that serve: what image workers take is in the control group of the unit alone. There are none of
them where there is no `/proc`.
"""

PRESET = "a preset's name"
CACHE = (*get_args(CacheState), "none")
FEED = ("labels", "accounts")

VALUES: Mapping[str, Mapping[str, str | Iterable[str]]] = {
    "requests_total": {
        "preset": f"{PRESET}, or `none` where the request named none",
        "status": "of the answer",
        "cache": CACHE,
    },
    "request_duration_seconds": {"cache": CACHE},
    "fetch_duration_seconds": {
        "outcome": dict.fromkeys(("ok", *OUTCOMES.values(), "cancelled", "defect"))
    },
    "process_duration_seconds": {
        "preset": PRESET,
        "format": (*(each.value for each in OUTPUTS), Format.GIF.value),
    },
    "rejected_total": {"stage": ("fetch", "process", "send")},
    "cache_evictions_total": {"reason": ("ttl", "size")},
    "store_requests_total": {
        "operation": tuple(STORE_OUTCOMES),
        "outcome": tuple(dict.fromkeys(itertools.chain(*STORE_OUTCOMES.values()))),
    },
    "worker_deaths_total": {"reason": get_args(DeathReason)},
    "decisions_total": {"action": get_args(Action)},
    "policy_answers_total": {"answer": (*Verdict, "failure")},
    "cdn_requests_total": {"outcome": ("ok", "failed")},
    "directory_requests_total": {"outcome": ("ok", "failed")},
    "admin_requests_total": {"status": "of the answer"},
    "revalidations_total": {"finding": tuple(Availability)},
    "actor_requests_total": {"kind": KINDS, "outcome": ACTOR_OUTCOMES},
    "feed_events_total": {"feed": FEED, "outcome": "what followed, in a word"},
    "feed_disconnects_total": {"feed": FEED, "reason": "why, in a few words"},
    "feed_connections": {"feed": FEED},
    "not_ready": {"reason": ("blocks", "cache", "draining")},
    "degraded": {"reason": ("cache", "store")},
    "build_info": {
        "version": "of this package",
        "python": "the interpreter's version",
        "pillow": "of the package with most decoders",
        "pillow_heif": "of that for HEIC, or empty",
        **dict.fromkeys(DECODERS, "its version, once a worker that has it has started"),
    },
}
"""What the labels of each metric may be: all there is, or in words what it is one of."""


def names() -> list[str]:
    """Every metric, as it is asked for."""
    return [f"imageproxy_{name}" for name, _, _, _ in described()]


def described() -> list[tuple[str, str, tuple[str, ...], str]]:
    """Name, type, labels and text of every metric."""
    found = []
    for metric in registered():
        (family,) = metric.describe()
        name = family.name + ("_total" if family.type == "counter" else "")
        labels = tuple(metric._labelnames)
        found.append((name.removeprefix("imageproxy_"), family.type, labels, family.documentation))
    return found


def registered() -> list[MetricWrapperBase]:
    """All of a registry that has every gauge."""
    metrics = Metrics()
    for name in GAUGES:
        metrics.gauge(name, lambda: 0.0)
    # The registry has no public list of what was registered, only of families without labels.
    found = metrics.registry._collector_to_names
    return [each for each in found if isinstance(each, MetricWrapperBase)]


def metrics_reference() -> str:
    """The whole document."""
    lines = [HEAD, "| metric | type | labels | |", "|---|---|---|---|"]
    for name, kind, labels, text in described():
        shown = "<br>".join(f"`{label}`: {in_words(VALUES[name][label])}" for label in labels)
        note = " (1)" if f"imageproxy_{name}" in SHARED else ""
        lines.append(f"| `imageproxy_{name}` | {kind} | {shown} | {text}{note} |")
    return "\n".join(lines) + "\n" + TAIL


def in_words(values: str | Iterable[str]) -> str:
    """Values of a label."""
    return values if isinstance(values, str) else ", ".join(f"`{each}`" for each in values)
