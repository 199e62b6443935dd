"""The search for the quality at which two encoders look alike."""

from __future__ import annotations

from bench.alike import least


def test_the_least_quality_that_suffices_is_found_in_few_questions() -> None:
    """Catches one too many or too few, and an encode for each quality."""
    for wanted in (1, 2, 50, 99, 100):
        asked: list[int] = []

        def suffices(quality: int, wanted: int = wanted, asked: list[int] = asked) -> bool:
            asked.append(quality)
            return quality >= wanted

        assert least(1, 100, suffices) == wanted
        assert len(asked) <= 8


def test_where_none_suffices_none_is_found() -> None:
    """Catches the best quality taken for one that is good enough."""
    assert least(1, 100, lambda quality: False) is None
