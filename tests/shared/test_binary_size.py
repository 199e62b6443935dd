"""Amounts as people read them."""

from __future__ import annotations

import pytest

from proxy.shared.binary_size import in_gib


@pytest.mark.parametrize(
    ("amount", "text"),
    [
        (0, "0.00 MiB"),
        (50 << 10, "0.05 MiB"),
        (3 << 20, "3.00 MiB"),
        (10 << 20, "0.01 GiB"),
        (5 << 30, "5.00 GiB"),
        (48 << 30, "48.0 GiB"),
        (500 << 30, "500 GiB"),
    ],
)
def test_an_amount_has_three_digits_and_is_not_zero(amount: int, text: str) -> None:
    """Catches "the list takes about 0.00 GiB, and the disk has 0.00 GiB free"."""
    assert in_gib(amount) == text
