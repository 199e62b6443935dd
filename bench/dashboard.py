"""Draw the dashboard's panels from a real Prometheus before a real proxy under made-up traffic.

    ./run bench dashboard [--seconds 60] [--file docs/dashboard.png]

The queries and their places are those of ``deploy/grafana-dashboard.json``; the drawing is
matplotlib's and not Grafana's.
"""

from __future__ import annotations

import argparse
import json
import time
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import trio

from bench import plot, report
from tests.prometheus import DEPLOY, busy_proxy, expand, make_traffic, prometheus

CELL = 0.55
"""Inches of a column of the dashboard's grid of 24; a row of it is half as high."""

UNITS = {"s": "s", "percentunit": "share", "reqps": "1/s", "ops": "1/s", "bytes": "bytes"}

Panel = dict[str, Any]


async def gather(seconds: float) -> list[tuple[Panel, list[tuple[str, list[list[float]]]]]]:
    """Each panel with its lines: a legend, and pairs of seconds and values."""
    dashboard = json.loads((DEPLOY / "grafana-dashboard.json").read_text())
    with TemporaryDirectory() as name:
        folder = Path(name)
        async with (
            busy_proxy(folder / "cache") as (server, internet),
            prometheus(folder, server.port) as asked,
        ):
            began = time.time()
            with report.progress(int(seconds)) as bar:
                for _ in range(int(seconds)):
                    await make_traffic(server, internet, 1)
                    bar.advance(bar.task_ids[0])
            panels = []
            for panel in dashboard["panels"]:
                lines = []
                for target in panel.get("targets", ()):
                    found = await asked.query_range(
                        expand(target["expr"]), began, time.time(), max(seconds / 120, 0.5)
                    )
                    for series in found:
                        points = [[at - began, float(value)] for at, value in series["values"]]
                        lines.append((legend(target["legendFormat"], series["metric"]), points))
                panels.append((panel, lines))
            return panels


def legend(form: str, labels: dict[str, str]) -> str:
    """As Grafana fills it in."""
    for name, value in labels.items():
        form = form.replace(f"{{{{{name}}}}}", value)
    return form


def draw(panels: list[tuple[Panel, list[tuple[str, list[list[float]]]]]], file: Path) -> str:
    """Draw all panels at their places; what became of it, in a line."""
    rows = max(panel["gridPos"]["y"] + panel["gridPos"]["h"] for panel, _ in panels)
    figure = plot.figure_of(24 * CELL, rows * CELL / 2)
    if figure is None:
        return plot.MISSING
    grid = figure.add_gridspec(rows, 24)
    for panel, lines in panels:
        place = panel["gridPos"]
        rows_of = slice(place["y"], place["y"] + place["h"])
        axes = figure.add_subplot(grid[rows_of, place["x"] : place["x"] + place["w"]])
        if panel["type"] == "row":
            axes.axis("off")
            axes.text(0, 0.2, panel["title"], fontsize=12, fontweight="bold")
            continue
        unit = UNITS.get(panel["fieldConfig"]["defaults"]["unit"], "")
        axes.set_title(f"{panel['title']}{f' [{unit}]' if unit else ''}", fontsize=9)
        axes.tick_params(labelsize=7)
        for name, points in lines:
            axes.plot(*zip(*points, strict=True), linewidth=1, label=name)
        axes.set_ylim(bottom=0)
        if lines:
            axes.legend(fontsize=6, loc="best", ncols=2)
        else:
            axes.text(0.5, 0.5, "no data in this run", ha="center", transform=axes.transAxes)
    return plot.save(figure, file)


def main() -> None:
    """The command."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seconds", type=float, default=60)
    parser.add_argument("--file", type=Path, default=Path("docs/dashboard.png"))
    arguments = parser.parse_args()
    print(draw(trio.run(gather, arguments.seconds), arguments.file))


if __name__ == "__main__":
    main()
