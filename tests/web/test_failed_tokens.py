"""An address that guesses tokens waits; no other does."""

from __future__ import annotations

import pytest

from proxy.web.failed_tokens import ADDRESSES, MAX_FAILURES, WINDOW, FailedTokens


def exhausted(address: str) -> FailedTokens:
    """An address that has to wait from 0 on."""
    failed = FailedTokens()
    for left in reversed(range(MAX_FAILURES)):
        assert failed.wait(address, 0) is None
        assert failed.add(address, 0) is (left == 0)
    return failed


def test_an_address_waits_until_its_window_ends_and_then_begins_anew() -> None:
    """Catches a wait that each further request makes longer, and one that has no end."""
    failed = exhausted("192.0.2.1")
    assert failed.wait("192.0.2.1", 0) == WINDOW
    assert failed.wait("192.0.2.1", WINDOW - 0.5) == 1
    assert failed.wait("192.0.2.1", WINDOW) is None
    assert failed.add("192.0.2.1", WINDOW) is False


@pytest.mark.parametrize(
    ("address", "same"),
    [
        ("192.0.2.1", "::ffff:192.0.2.1"),
        ("2001:db8:0:1::1", "2001:db8:0:1:ffff::2"),
        ("2001:db8:0:1::1", "2001:0db8:0:1::3"),
        ("", ""),
    ],
)
def test_the_addresses_of_one_client_wait_together(address: str, same: str) -> None:
    """Catches an IPv6 client that takes another of its 2^64 addresses for each guess."""
    assert exhausted(address).wait(same, 0) is not None


@pytest.mark.parametrize(
    ("address", "other"),
    [("192.0.2.1", "192.0.2.2"), ("2001:db8:0:1::1", "2001:db8:0:2::1"), ("192.0.2.1", "::1")],
)
def test_another_client_does_not_wait(address: str, other: str) -> None:
    assert exhausted(address).wait(other, 0) is None


def test_the_table_of_addresses_is_bounded() -> None:
    """Catches memory that grows with each address that tries a token."""
    failed = FailedTokens()
    for number in range(ADDRESSES + 100):
        failed.add(f"10.{number >> 16}.{number >> 8 & 255}.{number & 255}", 0)
    assert len(failed._counts) == ADDRESSES
