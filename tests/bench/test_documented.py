"""Figures that commands write into the document."""

from __future__ import annotations

import pytest

from bench import documented
from bench.growth import CURVES
from bench.processes import BenchError


def test_figures_replace_those_before_and_nothing_else() -> None:
    """Catches a command that adds to the old figures, or writes over what stands beside them."""
    text = "above\n<!-- a: begin -->\nold\n<!-- a: end -->\nbelow <!-- b: begin -->\n"
    once = documented.replaced(text, "a", "new")
    assert once == "above\n<!-- a: begin -->\n\nnew\n\n<!-- a: end -->\nbelow <!-- b: begin -->\n"
    assert documented.replaced(once, "a", "new") == once


def test_figures_without_a_place_are_an_error() -> None:
    """Catches figures that are measured for minutes, and written nowhere without a word."""
    with pytest.raises(BenchError):
        documented.replaced("<!-- a: begin -->\n", "a", "new")


@pytest.mark.parametrize("name", ["service", *(f"growth {curve}" for curve in CURVES)])
def test_the_document_has_a_place_for_every_command(name: str) -> None:
    """Catches a document in which a command finds no place for what it measured."""
    assert "new figures" in documented.replaced(
        documented.DOCUMENT.read_text(), name, "new figures"
    )
