"""A request is called in the log what its caller calls it, unless that could harm the log."""

from __future__ import annotations

import pytest

from proxy.observability import request_id

NAME = b"x-request-id"


@pytest.mark.parametrize(
    "given",
    [b"1", b"0b3cd9a2-6d0f-4e1c-9c55-1d7a1f0d4f4c", b"01ARZ3NDEKTSV4RRFFQ69G5FAV", b"aGk+/w=="],
)
def test_a_sane_name_is_kept(given: bytes) -> None:
    """Catches names that cannot be followed from the front to here."""
    assert request_id.of([(b"host", b"a"), (NAME, given)]) == given.decode()


@pytest.mark.parametrize(
    "given",
    [
        [],
        [b""],
        [b"a" * 65],
        [b"two words"],
        [b"line\nbreak"],
        [b"\x1b[31mred"],
        [b"caf\xe9"],
        [b"one", b"two"],
    ],
)
def test_any_other_name_is_replaced_by_a_unique_one(given: list[bytes]) -> None:
    """Catches forged lines, and control characters on an operator's terminal."""
    headers = [(NAME, value) for value in given]
    names = {request_id.of(headers) for _ in range(100)}
    assert len(names) == 100
    assert all(len(name) == 16 and name.isalnum() for name in names)
