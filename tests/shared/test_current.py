"""A value that is replaced as a whole, and what is made from it."""

from __future__ import annotations

from proxy.shared.current import Current


def test_what_is_derived_is_made_once_for_each_value() -> None:
    """Catches what is made for each request, and what stays as the first value had it."""
    made: list[str] = []

    def make(value: str) -> str:
        made.append(value)
        return value.upper()

    current = Current("one")
    upper = current.derived(make)
    assert (upper(), upper()) == ("ONE", "ONE")
    current.now = "two"
    assert (upper(), upper()) == ("TWO", "TWO")
    assert made == ["one", "two"]


def test_an_equal_value_that_is_another_one_is_taken_too() -> None:
    """Catches a comparison of all presets with all presets for each request."""

    class Table:
        def __eq__(self, other: object) -> bool:
            raise AssertionError("compared")

        __hash__ = None  # type: ignore[assignment]

    current = Current(Table())
    held = current.derived(lambda table: table)
    current.now = second = Table()
    assert held() is second
