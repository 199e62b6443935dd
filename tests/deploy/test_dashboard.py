"""The dashboard and the alert rules, asked of a real Prometheus that scrapes a real proxy."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
from pathlib import Path

import pytest
import yaml

from tests.metrics_reference import names
from tests.prometheus import (
    DEPLOY,
    WINDOW,
    busy_proxy,
    expand,
    expressions,
    make_traffic,
    prometheus,
)
from tests.required import skip_unless_required

pytestmark = pytest.mark.slow

EMPTY = {
    "imageproxy_policy_answers_total": "no policy service is configured in this run",
    "imageproxy_cdn_requests_total": "no CDN is configured in this run",
    "imageproxy_store_requests_total": "no store is configured in this run",
    "imageproxy_revalidations_total": "nothing is a week old in this run",
    "imageproxy_feed_": "no feed is configured in this run",
    "imageproxy_labels_waiting": "no feed is configured in this run",
    "imageproxy_lease_held": "one machine holds no lease",
}
"""Metrics whose queries bring no data here, and why that is right."""

RULES = yaml.safe_load((DEPLOY / "alerts.yml").read_text())["groups"][0]["rules"]

COMPARISON = re.compile(r" (?:==|>|<) [\d.]+(?=$| and )")


def is_empty(expression: str) -> bool:
    return any(name in expression for name in EMPTY)


def promtool(*arguments: str, cwd: Path = DEPLOY) -> None:
    program = shutil.which("promtool")
    if program is None:
        skip_unless_required("no promtool here; on Debian: apt install prometheus")
    done = subprocess.run([program, *arguments], cwd=cwd, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr


async def test_every_query_of_the_dashboard_and_of_the_alerts_finds_what_the_proxy_tells(
    tmp_path: Path,
) -> None:
    """Catches a metric or a label that is called otherwise: such a panel is empty for ever."""
    async with (
        busy_proxy(tmp_path / "cache") as (server, internet),
        prometheus(tmp_path, server.port) as asked,
    ):
        await make_traffic(server, internet, 8)
        wrong = []
        for title, expression in expressions():
            found = [each["value"][1] for each in await asked.query(expression)]
            if is_empty(expression):
                assert found == [], f"{title} is not empty: it needs no exception"
            elif not [value for value in found if value != "NaN"]:
                wrong.append(f"{title}: {expression}")
        for rule in RULES:
            left = COMPARISON.sub("", " ".join(rule["expr"].split()))
            assert left != rule["expr"].strip(), "an alert compares"
            # Alerts look back for minutes; this run lasts seconds.
            left = re.sub(r"\[\d+m\]", f"[{WINDOW}]", left)
            may_be_empty = rule["alert"] == "ImageProxyDefect" or is_empty(left)
            if not may_be_empty and not await asked.query(left):
                wrong.append(f"{rule['alert']}: {left}")
        assert wrong == []
        evaluated = {rule["name"]: rule for rule in await asked.rules()}
        assert evaluated.keys() == {rule["alert"] for rule in RULES}
        assert all(rule.get("health") in ("ok", "unknown") for rule in evaluated.values())
        # The traffic did what it is for: every kind of refusal and eviction has been seen.
        for moved in (
            'imageproxy_rejected_total{stage="fetch"}',
            'imageproxy_cache_evictions_total{reason="size"}',
            "imageproxy_coalesced_total",
            "imageproxy_blocked_total",
        ):
            (series,) = await asked.query(moved)
            assert float(series["value"][1]) > 0, moved


def test_every_metric_is_on_the_dashboard() -> None:
    """Catches a metric that nobody ever looks at."""
    shown = " ".join(expression for _, expression in expressions())
    assert [
        name for name in names() if not re.search(rf"\b{name}(_bucket|_sum|_count)?\b", shown)
    ] == []


def test_the_dashboard_asks_through_its_variables_and_overlaps_nowhere() -> None:
    """Catches a data source of somebody else's Grafana, and panels on top of each other."""
    dashboard = json.loads((DEPLOY / "grafana-dashboard.json").read_text())
    cells = set()
    for panel in dashboard["panels"]:
        place = panel["gridPos"]
        for x in range(place["x"], place["x"] + place["w"]):
            for y in range(place["y"], place["y"] + place["h"]):
                assert (x, y) not in cells, panel["title"]
                assert x < 24
                cells.add((x, y))
        for target in panel.get("targets", ()):
            assert target["datasource"]["uid"] == "${datasource}"
            assert 'job=~"$job"' in target["expr"]
            assert "$" not in expand(target["expr"])
    ids = [panel["id"] for panel in dashboard["panels"]]
    assert len(ids) == len(set(ids))


def test_promtool_finds_no_mistake_in_the_rules_and_in_the_configuration() -> None:
    promtool("check", "rules", "alerts.yml")
    promtool("check", "config", "prometheus.yml")


def test_each_alert_fires_when_it_should_and_none_does_when_all_is_well(tmp_path: Path) -> None:
    """Catches an alert that can never fire, and one that always does."""
    promtool("test", "rules", str(Path(__file__).parent / "alerts.yml"))


def test_each_alert_has_its_entry_in_the_runbook() -> None:
    """Catches an alert that wakes somebody, and leaves them alone with it."""
    runbook = (DEPLOY.parent / "docs/alerts.md").read_text(encoding="utf-8")
    entries = dict(re.findall(r"^## (\w+)\n(.*?)(?=^## |\Z)", runbook, re.M | re.S))
    assert list(entries) == [rule["alert"] for rule in RULES]
    for name, entry in entries.items():
        assert re.search(r"^\n[A-Z](?s:.)+\n- Look at: .(?s:.)+\n- Do: .", entry, re.M), name
    known = {f"imageproxy_{name}" for name in re.findall(r"`imageproxy_(\w+)`", runbook)}
    assert known <= set(names())


def test_each_alert_is_tested_and_says_what_to_do() -> None:
    tested = (Path(__file__).parent / "alerts.yml").read_text()
    for rule in RULES:
        assert tested.count(f"alertname: {rule['alert']}\n") >= 2, rule["alert"]
        assert rule["labels"]["severity"] in ("page", "ticket")
        assert rule["annotations"].keys() == {"summary", "description"}
