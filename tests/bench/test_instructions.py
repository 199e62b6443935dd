"""The gate of instructions: what it lets pass, and what not."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from bench.counted import JOBS
from bench.instructions import FIGURES, HIT, MISS, PIXELS, over, total
from bench.processes import BenchError


def test_a_tenth_over_the_figure_passes_and_more_does_not() -> None:
    """Catches a margin that is not there, or that nothing exceeds."""
    kept = {HIT: 1000.0, MISS: 1000.0}
    assert over({HIT: 1099, MISS: 500}, kept) == []
    assert over({HIT: 1099, MISS: 1101}, kept) == [MISS]


def test_what_has_no_figure_does_not_pass() -> None:
    """Catches a gate that is open on a Python version that nobody has counted."""
    assert over({HIT: 1000}, {}) == [HIT]


def test_every_kept_set_has_all_figures() -> None:
    """Catches a figure that was renewed for one Python version alone."""
    kept = json.loads(FIGURES.read_text())
    wanted = {HIT, MISS, *map(PIXELS.format, JOBS)}
    assert kept
    assert all(set(figures) == wanted for figures in kept.values())


def test_a_dump_without_a_sum_is_an_error(tmp_path: Path) -> None:
    """Catches a dump that callgrind did not finish, read as nothing counted."""
    dump = tmp_path / "service.2"
    dump.write_text("version: 1\nevents: Ir\nsummary: 1234\ntotals: 5678\n")
    assert total(tmp_path / "service", 2) == 1234
    dump.write_text("version: 1\n")
    with pytest.raises(BenchError):
        total(tmp_path / "service", 2)
