"""Characters that a terminal acts on must not reach it."""

from __future__ import annotations

import ast

import pytest
from hypothesis import given
from hypothesis import strategies as st

from proxy.shared.printable import printable
from tests.examples import examples

CONTROLS = [
    "\x1b[2J",  # ESC: clears the screen
    "\x1b]0;title\x07",
    "\x9b31m",  # the same in one character, which some terminals take
    "\x7f\x08",
    "a\r\nb",
    "\u202egpj.exe",  # shows what follows backwards
    "\u2028",
    "\udcff",
]


@pytest.mark.parametrize("text", CONTROLS, ids=ascii)
def test_a_character_that_a_terminal_acts_on_becomes_an_escape_of_python(text: str) -> None:
    escaped = printable(text)
    assert escaped.isprintable()
    assert ast.literal_eval(f'"{escaped}"') == text


@examples(200)
@given(st.text())
def test_every_text_comes_out_printable_and_a_printable_one_unchanged(text: str) -> None:
    """Catches a list of bad characters that lacks one."""
    assert printable(text).isprintable()
    if text.isprintable():
        assert printable(text) == text


def test_what_is_to_be_kept_is_kept() -> None:
    assert printable("a\n\tb\x1b", keep="\n\t") == "a\n\tb\\x1b"
