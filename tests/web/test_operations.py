"""``/healthz``, ``/readyz``, ``/metrics``, and what is no route at all."""

from __future__ import annotations

import errno
import math
import os
import re
import shutil
from importlib.metadata import version
from platform import python_version

import pytest
from PIL import features
from prometheus_client.parser import text_string_to_metric_families

from proxy.egress.circuit import FAILURES_TO_OPEN
from proxy.errors import Busy
from proxy.model.presets import DEFAULT_PRESETS
from proxy.observability.metrics import DECODERS, VERSION
from proxy.web.app import create_app
from tests import metrics_reference
from tests.cache.objects.conftest import s3
from tests.fakes import faults
from tests.fakes.sites import cid_of, new_plc_did
from tests.fakes.world import World, tiny_png
from tests.ports import free_port
from tests.processes import until
from tests.web import Client, img, serving

PLAIN = "text/plain; charset=utf-8"


async def readiness(client: Client) -> tuple[int, str]:
    reply = await client.get("/readyz")
    assert reply.headers["content-type"] == PLAIN
    assert reply.headers["cache-control"] == "no-store"
    return reply.status, reply.text


async def test_a_process_that_serves_is_healthy_and_ready(world: World) -> None:
    async with serving(world) as client:
        reply = await client.get("/healthz")
        assert (reply.status, reply.text, reply.headers["content-type"]) == (200, "ok\n", PLAIN)
        assert await readiness(client) == (200, "ok\n")


async def test_a_store_that_fails_is_a_line_of_a_process_that_is_ready(world: World) -> None:
    """Catches a node that a balancer takes out, though it serves, and one that says nothing."""
    store = s3(free_port(), "bucket")
    async with serving(world, world.config(store=store)) as client:
        assert await readiness(client) == (200, "ok\n")
        for _ in range(FAILURES_TO_OPEN):
            did, cid = world.add_blob()
            assert (await client.get(img(did, cid))).status == 200
        found = await readiness(client)
        assert found == (200, "ok\ndegraded: the shared store fails, and is left alone\n")


async def test_before_its_service_runs_a_process_is_healthy_but_not_ready(world: World) -> None:
    client = Client(create_app(world.config()))
    assert (await client.get("/healthz")).status == 200
    assert await readiness(client) == (503, "starting\n")
    did, cid = new_plc_did(), cid_of(b"anything")
    for target in (img(did, cid), f"/blob/{did}/{cid}"):
        reply = await client.get(target)
        assert (reply.status, reply.text) == (503, f"{Busy.message}\n")
        assert "retry-after" in reply.headers
    assert (await client.get("/metrics")).status == 200


async def test_a_process_that_will_end_is_not_ready_but_goes_on_serving(world: World) -> None:
    did, cid = world.add_blob()
    async with serving(world) as client:
        client.app.drain()
        assert await readiness(client) == (503, "draining\n")
        assert (await client.get("/healthz")).status == 200
        assert (await client.get(img(did, cid))).status == 200


async def test_a_cache_that_cannot_be_used_is_told_with_its_reason_until_it_can_be_again(
    world: World,
) -> None:
    did, cid = world.add_blob()
    world.cache_path.mkdir()
    folder = world.cache_path / "images"
    folder.touch()  # a file where a folder should be
    async with serving(world) as client:
        assert await readiness(client) == (503, "cache unusable: Not a directory\n")
        # Images are still served, and the path is nobody's business.
        assert (await client.get(img(did, cid))).status == 200
        folder.unlink()
        await client.service.cache_health.check()
        assert await readiness(client) == (200, "ok\n")


@pytest.mark.parametrize("number", [errno.ENOSPC, errno.EDQUOT, errno.EROFS])
async def test_a_cache_that_takes_no_more_is_no_reason_to_get_no_traffic(
    number: int, world: World
) -> None:
    """Catches a balancer that drains every node when their disks are full."""
    degraded, not_ready = (
        f'imageproxy_{name}{{reason="cache"}}' for name in ("degraded", "not_ready")
    )
    async with serving(world) as client:
        health = client.service.cache_health
        health.failed(OSError(number, os.strerror(number), "/var/lib/imageproxy/x.tmp"))
        body = f"ok\ndegraded: the cache takes no more: {os.strerror(number)}\n"
        assert await readiness(client) == (200, body)
        assert (await client.metric(degraded), await client.metric(not_ready)) == (1, 0)
        health.failed(OSError(errno.EIO, os.strerror(errno.EIO)))
        assert (await readiness(client))[0] == 503
        assert (await client.metric(degraded), await client.metric(not_ready)) == (0, 1)
        health.works()
        assert await readiness(client) == (200, "ok\n")
        assert await client.metric(degraded) == 0


async def test_a_cache_that_breaks_later_is_noticed_by_the_next_write(world: World) -> None:
    async with serving(world) as client:
        assert await readiness(client) == (200, "ok\n")
        folder = world.cache_path / "images"
        for path in folder.iterdir():
            path.rmdir()
        folder.rmdir()
        folder.write_text("a file where a folder should be")
        assert (await client.get(img(*world.add_blob()))).status == 200

        async def noticed() -> bool:
            return (await readiness(client))[0] != 200

        await until(noticed)
        assert (await readiness(client))[1].startswith("cache unusable: ")
        assert str(world.cache_path) not in (await readiness(client))[1]
        assert await client.metric("imageproxy_cache_write_errors_total") >= 1
        folder.unlink()


@pytest.mark.parametrize("target", ["/healthz", "/readyz", "/metrics"])
async def test_operations_answer_head_and_refuse_other_methods(target: str, world: World) -> None:
    """Catches also an order of methods that differs from process to process."""
    async with serving(world) as client:
        got, head = await client.get(target), await client.head(target)
        # The server leaves the body out; tests/serving/test_serve.py sees that.
        assert (head.status, head.headers["content-type"]) == (200, got.headers["content-type"])
        for method in ("POST", "DELETE", "PATCH"):
            reply = await client.ask(target, method=method)
            assert (reply.status, reply.headers["content-type"]) == (405, PLAIN)
            assert reply.headers["allow"] == "GET, HEAD, OPTIONS"


UNKNOWN = [
    "/nope",
    "/img",
    "/blob",
    "/favicon.ico",
    "/robots.txt",
    "/.well-known/did.json",
    "/static/x",
    "/healthz/",
    "/healthz/x",
    "//evil.example/healthz",
    "/healthz%00",
    "/imgs/avatar",
    "/admin/",
    "/admin/nothing",
    "/%ff",
    "/..%2f..%2fetc/passwd",
    "/" + "a" * 50_000,
]


@pytest.mark.parametrize("target", UNKNOWN, ids=lambda target: target[:30])
async def test_an_unknown_route_is_a_404_in_plain_text_never_a_redirect(
    target: str, world: World
) -> None:
    config = world.config(server={"admin_token": "a-secret-of-the-operator"})
    async with serving(world, config) as client:
        reply = await client.get(target)
    assert (reply.status, reply.text) == (404, "not found\n")
    assert reply.headers["content-type"] == PLAIN
    assert reply.headers["x-content-type-options"] == "nosniff"
    assert "location" not in reply.headers


@pytest.mark.parametrize(
    "start", ["http://a", "HTTPS://a.example:8443", "http://[::1]:80", "http://10.0.0.1"]
)
async def test_a_whole_url_is_answered_as_its_path(start: str, world: World) -> None:
    """Catches a forward proxy whose requests are a 400: RFC 9112, section 3.2.2, has a MUST."""
    did, cid = world.add_blob()
    async with serving(world) as client:
        await client.get(img(did, cid))
        for path in (img(did, cid), f"/blob/{did}/{cid}", "/healthz", "/nope", "/img/x?y"):
            plain, whole = await client.get(path), await client.get(start + path)
            assert (whole.status, whole.headers, whole.body) == (
                plain.status,
                plain.headers,
                plain.body,
            ), path
        assert (await client.get(start)).body == (await client.get("/")).body


@pytest.mark.parametrize(
    "target",
    ["?", "*", "", "nope", "http://[::1/", "http://", "http://a@b/healthz", "ftp://a/healthz", ":"],
)
async def test_an_invalid_path_is_a_400_not_a_500(target: str, world: World) -> None:
    async with serving(world) as client:
        reply = await client.get(target)
    assert (reply.status, reply.text) == (400, "bad request\n")
    assert reply.headers["content-type"] == PLAIN


async def test_what_runs_how_it_fares_and_why_it_is_not_ready_is_told(world: World) -> None:
    """Catches a fleet whose versions nobody knows, and a process that is out without an alert."""
    async with serving(world) as client:
        text = (await client.get("/metrics")).text
        labels = {
            "pillow": version("pillow"),
            "pillow_heif": version("pillow-heif"),
            "python": python_version(),
            "version": VERSION,
        }
        (build,) = re.findall(r"^imageproxy_build_info\{(.*)\} 1\.0$", text, re.MULTILINE)
        told = dict(re.findall(r'(\w+)="([^"]*)"', build))
        assert told.items() >= labels.items()
        assert told["libwebp"] == features.version("webp")

        async def is_measured() -> bool:
            return not math.isnan(await client.metric("imageproxy_cache_free_bytes"))

        await until(is_measured)
        free = shutil.disk_usage(world.cache_path.parent).free
        assert await client.metric("imageproxy_cache_free_bytes") == pytest.approx(free, rel=0.2)
        assert "process_resident_memory_bytes" in text
        assert "process_open_fds" in text
        not_ready = {
            reason: f'imageproxy_not_ready{{reason="{reason}"}}'
            for reason in ("blocks", "cache", "draining")
        }
        for series in not_ready.values():
            assert await client.metric(series) == 0
        client.service.cache_health.failed(OSError("no"))
        assert await client.metric(not_ready["cache"]) == 1
        assert await client.metric('imageproxy_degraded{reason="cache"}') == 0
        (world.cache_path / "moderation.sqlite3").unlink()

        async def noticed() -> bool:
            return await client.metric(not_ready["blocks"]) == 1

        await until(noticed)
        client.app.drain()
        assert await client.metric(not_ready["draining"]) == 1


async def test_an_unknown_did_is_not_a_failure_of_the_directory(world: World) -> None:
    """Catches thirty requests that wake somebody."""
    answered, failed = (
        f'imageproxy_directory_requests_total{{outcome="{outcome}"}}'
        for outcome in ("ok", "failed")
    )
    async with serving(world) as client:
        assert (await client.get(img(*world.add_blob()))).status == 200
        for number in range(3):
            did = f"did:web:y{number}.example.invalid"
            assert (await client.get(img(did, cid_of(b"any")))).status == 502
            assert (await client.get(img(new_plc_did(), cid_of(b"any")))).status == 404
        assert await client.metric(failed) == 0
        assert await client.metric(answered) == 4
        world.plc.fault = faults.answers(500)
        assert (await client.get(img(new_plc_did(), cid_of(b"any")))).status == 502
        assert await client.metric(failed) == 1
        assert await client.metric(answered) == 4


FAMILIES = {
    "imageproxy_degraded": ("gauge", {"reason"}),
    "imageproxy_requests_total": ("counter", {"preset", "status", "cache"}),
    "imageproxy_request_duration_seconds": ("histogram", {"cache"}),
    "imageproxy_fetch_duration_seconds": ("histogram", {"outcome"}),
    "imageproxy_process_duration_seconds": ("histogram", {"preset", "format"}),
    "imageproxy_coalesced_total": ("counter", set()),
    "imageproxy_fetch_queue_depth": ("gauge", set()),
    "imageproxy_process_waiting": ("gauge", set()),
    "imageproxy_rejected_total": ("counter", {"stage"}),
    "imageproxy_cache_entries": ("gauge", set()),
    "imageproxy_cache_bytes": ("gauge", set()),
    "imageproxy_cache_evictions_total": ("counter", {"reason"}),
    "imageproxy_cache_write_errors_total": ("counter", set()),
    "imageproxy_cache_writes_dropped_total": ("counter", set()),
    "imageproxy_blocked_total": ("counter", set()),
    "imageproxy_blocks": ("gauge", set()),
    "imageproxy_purges_pending": ("gauge", set()),
    "imageproxy_decisions_total": ("counter", {"action"}),
    "imageproxy_directory_requests_total": ("counter", {"outcome"}),
    "imageproxy_admin_requests_total": ("counter", {"status"}),
    "imageproxy_not_ready": ("gauge", {"reason"}),
    "imageproxy_build_info": (
        "gauge",
        {"version", "python", "pillow", "pillow_heif", *DECODERS},
    ),
    "imageproxy_cache_free_bytes": ("gauge", set()),
    "imageproxy_actor_requests_total": ("counter", {"kind", "outcome"}),
}
"""Those of the contract with dashboards, and what moderation adds."""

VALUES = {
    "preset": {*DEFAULT_PRESETS, "none"},
    "version": {VERSION},
    "python": {python_version()},
    "status": {"200", "401", "304", "400", "404", "405", "422", "500", "502", "503", "504"},
}
"""Every value of labels for which docs/metrics.md has words."""


def values_of(name: str, label: str) -> set[str] | None:
    """What a label of a metric may be; None: it is not ours."""
    known = metrics_reference.VALUES.get(name.removeprefix("imageproxy_"), {}).get(label)
    return VALUES.get(label) if isinstance(known, str) or known is None else set(known)


async def test_every_metric_of_the_contract_is_there_under_its_name(world: World) -> None:
    async with serving(world) as client:
        reply = await client.get("/metrics")
    assert reply.headers["content-type"].startswith("text/plain; version=")
    types = dict(re.findall(r"^# TYPE (\S+) (\S+)$", reply.text, re.MULTILINE))
    for name, (kind, _labels) in FAMILIES.items():
        assert types.get(name) == kind, name


async def test_labels_are_bounded_and_name_no_owner_no_blob_and_no_host(world: World) -> None:
    good = world.add_blob(tiny_png())
    secrets = [*good, world.pds.host, world.plc.host]
    async with serving(world, world.config(fetch={"max_source_mb": 0.01})) as client:
        for _ in range(2):
            for preset in DEFAULT_PRESETS:
                await client.get(img(*good, preset))
        await client.get(img(*good, suffix="@webp"))
        await client.get(img(*good), ("If-None-Match", "*"))
        for number in range(20):  # what a stranger can choose
            did, cid = new_plc_did(), cid_of(b"%d" % number)
            secrets += [did, cid, f"preset{number}"]
            await client.get(img(did, cid))
            await client.get(img(did, cid, f"preset{number}"))
            await client.get(img(did, cid, suffix=f"@format{number}"))
            await client.get(f"/blob/{did}/{cid}")
            await client.ask(img(did, cid), method=f"METHOD{number}")
            await client.get(img(f"did:web:host{number}.example", cid))
            secrets.append(f"host{number}.example")
        await client.get(img(*world.add_blob(b"only text")))
        await client.get(img(*world.add_blob(bytes(20_000))))
        world.pds.refuses = -1
        await client.get(img(*world.add_blob(tiny_png((1, 2, 3)))))
        text = (await client.get("/metrics")).text
    for secret in secrets:
        assert secret not in text
    samples = 0
    for family in text_string_to_metric_families(text):
        for sample in family.samples:
            samples += 1
            name = sample.name.removesuffix("_bucket").removesuffix("_sum").removesuffix("_count")
            labels = {key: value for key, value in sample.labels.items() if key != "le"}
            if name in FAMILIES:
                assert labels.keys() == FAMILIES[name][1], sample
            for key, value in labels.items():
                bounded = values_of(name, key)
                assert bounded is None or value in bounded, sample
    # Of a bounded number of series, whatever strangers ask for.
    assert samples < 1000


async def test_requests_are_counted_by_what_was_answered(world: World) -> None:
    did, cid = world.add_blob()
    async with serving(world) as client:
        await client.get(img(did, cid))
        await client.get(img(did, cid))
        await client.head(img(did, cid))
        await client.get(img(did, cid), ("If-None-Match", "*"))
        await client.get(img(did, cid, "huge"))
        await client.get(img(did, cid_of(b"not there")))
        for labels, count in {
            'cache="miss",preset="avatar_thumbnail",status="200"': 1,
            'cache="hit",preset="avatar_thumbnail",status="200"': 2,
            'cache="none",preset="avatar_thumbnail",status="304"': 1,
            'cache="none",preset="none",status="400"': 1,
            'cache="none",preset="avatar_thumbnail",status="404"': 1,
        }.items():
            assert await client.metric(f"imageproxy_requests_total{{{labels}}}") == count, labels
        fetched = "imageproxy_fetch_duration_seconds_count"
        assert await client.metric(f'{fetched}{{outcome="ok"}}') == 1
        assert await client.metric(f'{fetched}{{outcome="not_found"}}') == 1
        made = 'imageproxy_process_duration_seconds_count{format="png",preset="avatar_thumbnail"}'
        assert await client.metric(made) == 1
        assert await client.metric("imageproxy_fetch_queue_depth") == 0
        assert await client.metric("imageproxy_process_waiting") == 0
