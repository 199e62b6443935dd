"""How often the directory may be asked again: by everybody, and by the accounts of one domain."""

from __future__ import annotations

from proxy.accounts.renewals import BURST, PER_SECOND, SHARE, Renewals


def admitted(renewals: Renewals, domain: str, tries: int, now: float) -> int:
    return sum(renewals.admit(domain, now) for _ in range(tries))


def test_a_flood_of_one_domain_leaves_most_to_the_others() -> None:
    """Catches one allowance for all, which a stranger with many accounts takes whole."""
    renewals = Renewals()
    assert admitted(renewals, "flood.example", 10_000, 5.0) == BURST * SHARE
    assert admitted(renewals, "dead.example", 20, 5.0) == 20


def test_many_domains_together_have_a_bound() -> None:
    """Catches a bound for each domain alone: names cost nothing."""
    renewals = Renewals()
    asked = sum(renewals.admit(f"{number}.example", 5.0) for number in range(10_000))
    assert asked == BURST


def test_an_allowance_fills_again_as_time_passes_and_no_further() -> None:
    """Catches an allowance that is spent for ever, and one that is saved up."""
    renewals = Renewals()
    admitted(renewals, "dead.example", 1000, 0.0)
    assert admitted(renewals, "dead.example", 1000, 10.0) == 10 * PER_SECOND * SHARE
    assert admitted(renewals, "dead.example", 1000, 1e6) == BURST * SHARE
    assert sum(renewals.admit(f"{number}.example", 1e6) for number in range(1000)) == BURST * (
        1 - SHARE
    )
