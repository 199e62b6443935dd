"""Plots, where matplotlib is installed."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from importlib import import_module
from pathlib import Path
from statistics import median
from typing import Any

DEFAULT_FILE = Path("build/bench-load.svg")

MISSING = "no plot: matplotlib is not installed"


def figure_of(width: float, height: float) -> Any:
    """An empty figure of that many inches; None where matplotlib is missing."""
    try:
        figures: Any = import_module("matplotlib.figure")
    except ImportError:
        return None
    return figures.Figure(figsize=(width, height), layout="constrained")


def save(figure: Any, file: Path) -> str:
    """Write a figure, PNG or SVG by the file's suffix; its folder is made. A line that says so."""
    file.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(file)
    return f"plot: {file}"


def draw(
    file: Path, rates: Mapping[str, Sequence[float]], storms: Sequence[float], storm_size: int
) -> str:
    """Draw bars of the medians with the spread over rounds; what became of it, in a line.

    Args:
        file: PNG or SVG by its suffix; its folder is made.
        rates: requests a second of each round, by scenario.
        storms: seconds to the last answer, one of each storm.
        storm_size: requests of a storm.
    """
    figure = figure_of(10, 4)
    if figure is None:
        return MISSING
    left, right = figure.subplots(1, 2, width_ratios=(3, 1))
    _bars(left, rates)
    left.set_title("median, minimum and maximum of the rounds")
    left.set_xlabel("requests/s")
    right.boxplot([[seconds * 1000 for seconds in storms]], widths=0.5, tick_labels=[""])
    right.set_ylim(bottom=0)
    right.set_title(f"storms of {storm_size}")
    right.set_ylabel("ms to the last answer")
    return save(figure, file)


def _bars(axes: Any, rates: Mapping[str, Sequence[float]]) -> None:
    names = list(rates)[::-1]
    middles = [median(rates[name]) for name in names]
    below = [middle - min(rates[name]) for name, middle in zip(names, middles, strict=True)]
    above = [max(rates[name]) - middle for name, middle in zip(names, middles, strict=True)]
    labels = [f"{name}\n{_short(middle)}" for name, middle in zip(names, middles, strict=True)]
    axes.barh(labels, middles, xerr=[below, above], capsize=4)


def _short(value: float) -> str:
    return format(value, ".0f" if value >= 10 else ".2f")


def draw_groups(file: Path, groups: Mapping[str, Mapping[str, Sequence[float]]]) -> str:
    """Draw a chart of bars for each group, as ``draw`` does; what became of it, in a line.

    Args:
        groups: values of each round, by name, by what they are.
    """
    figure = figure_of(10, 1.5 + 0.6 * sum(len(values) for values in groups.values()))
    if figure is None:
        return MISSING
    heights = [len(values) for values in groups.values()]
    charts = figure.subplots(len(groups), 1, height_ratios=heights, squeeze=False)[:, 0]
    for axes, (label, values) in zip(charts, groups.items(), strict=True):
        _bars(axes, values)
        axes.set_xlabel(label)
    charts[0].set_title("median, minimum and maximum of the rounds")
    return save(figure, file)
