"""What is known of hosts, and how long."""

from __future__ import annotations

from ipaddress import ip_address

from hypothesis import given
from hypothesis import strategies as st

from proxy.egress.conduct import (
    HALF_LIFE,
    MAX_ANSWERS,
    MAX_BYTES,
    ORDINARY_RATE,
    PROMPT_SECONDS,
    Conduct,
    Standing,
)
from proxy.egress.endpoint import Origin
from proxy.egress.known_hosts import MOST_HOSTS, HostPace
from proxy.egress.time_to_answer import RECENT_SECONDS

BSKY = [Origin("https", f"host{number}.us-east.host.bsky.network", 443) for number in range(20)]
EVIL = [Origin("https", f"host{number}.evil.example", 443) for number in range(20)]
PROMPT, UNKNOWN, SLOW = Standing


def answers(conduct: Conduct, origin: Origin, now: float = 0, *, seconds: float = 0.1) -> None:
    conduct.ended(origin, seconds, 50_000, True, now)


def trickles(conduct: Conduct, origin: Origin, now: float = 0, *, seconds: float = 30) -> None:
    conduct.ended(origin, seconds, 30_000, False, now)


def test_a_host_is_unknown_then_prompt_and_unknown_again_when_it_was_not_asked_for_long() -> None:
    """Catches a good name that lasts for ever."""
    conduct = Conduct()
    assert conduct.judge(EVIL[0], 0).standing is UNKNOWN
    answers(conduct, EVIL[0])
    assert conduct.judge(EVIL[0], HALF_LIFE).standing is PROMPT
    assert conduct.judge(EVIL[0], 3 * HALF_LIFE).standing is UNKNOWN


def test_a_host_that_trickles_is_slow_until_it_has_answered_again_and_again() -> None:
    """Catches a host that is slow for ever, and one that is prompt after one answer."""
    conduct = Conduct()
    trickles(conduct, EVIL[0], seconds=5)
    answers(conduct, EVIL[0])
    assert conduct.judge(EVIL[0], 0).standing is SLOW
    for _ in range(4):
        answers(conduct, EVIL[0])
    assert conduct.judge(EVIL[0], 0).standing is PROMPT


def test_good_answers_cannot_be_saved_up() -> None:
    """Catches a host that answers a thousand times, and then trickles for a thousand seconds."""
    conduct = Conduct()
    for _ in range(1000):
        answers(conduct, EVIL[0])
    trickles(conduct, EVIL[0], seconds=MAX_ANSWERS + 5)
    assert conduct.judge(EVIL[0], 0).standing is SLOW


def test_new_names_below_a_domain_that_trickles_are_slow() -> None:
    """Catches shares by name: names cost nothing."""
    conduct = Conduct()
    trickles(conduct, EVIL[0])
    assert {conduct.judge(each, 0).standing for each in EVIL} == {SLOW}


def test_new_domains_in_a_block_that_trickles_are_slow() -> None:
    """Catches an attacker whose names have nothing in common but their address."""
    conduct = Conduct()
    one, other = Origin("https", "one.example", 443), Origin("https", "other.example", 443)
    conduct.connects(one.host, ip_address("203.0.113.1"))
    trickles(conduct, one)
    assert conduct.judge(other, 0).standing is UNKNOWN
    conduct.connects(other.host, ip_address("203.0.113.2"))
    assert conduct.judge(other, 0).standing is SLOW


def test_a_known_host_is_judged_by_itself() -> None:
    """Catches one bad server of a large operator that costs all others their share."""
    conduct = Conduct()
    for each in BSKY[1:10]:
        answers(conduct, each)
    for _ in range(100):
        trickles(conduct, BSKY[0])
    assert conduct.judge(BSKY[0], 0).standing is SLOW
    assert {conduct.judge(each, 0).standing for each in BSKY[1:10]} == {PROMPT}


def test_an_operator_with_many_good_servers_is_not_slow_for_a_bad_one() -> None:
    """Catches a domain that is judged by its worst server: its new ones would be slow."""
    conduct = Conduct()
    for each in BSKY[1:10]:
        for _ in range(20):
            answers(conduct, each)
    for _ in range(5):
        trickles(conduct, BSKY[0], seconds=10)
    assert conduct.judge(BSKY[15], 0).standing is UNKNOWN


def test_another_port_of_a_host_says_nothing_about_it() -> None:
    """Catches an account whose document names a closed port of an honest PDS."""
    conduct = Conduct()
    answers(conduct, BSKY[0])
    for port in range(9000, 9100):
        trickles(conduct, Origin("https", BSKY[0].host, port))
    assert conduct.judge(BSKY[0], 0).standing is PROMPT


def test_a_large_blob_at_an_ordinary_rate_wastes_nothing() -> None:
    """Catches a judgement by seconds alone."""
    conduct = Conduct()
    size = 10 * 1024**2
    conduct.ended(BSKY[0], PROMPT_SECONDS + size / ORDINARY_RATE, size, True, 0)
    assert conduct.judge(BSKY[0], 0).standing is PROMPT


def test_of_prompt_hosts_those_that_answer_sooner_go_first() -> None:
    """Catches hosts of a stranger that take as long as prompt ones may, before all others."""
    conduct = Conduct()
    answers(conduct, BSKY[0], seconds=0.1)
    answers(conduct, BSKY[1], seconds=0.2)
    answers(conduct, EVIL[0], seconds=PROMPT_SECONDS - 0.1)
    ranks = [conduct.judge(each, 0).rank for each in (BSKY[0], BSKY[1], EVIL[0])]
    assert ranks[0] == ranks[1] < ranks[2]
    assert ranks[2][0] is PROMPT


def test_a_failure_that_took_its_time_is_time_wasted() -> None:
    """Catches hosts that hold a consumer as long as a prompt answer may, and then fail."""
    conduct = Conduct()
    for _ in range(2):
        conduct.ended(EVIL[0], PROMPT_SECONDS - 0.1, 0, False, 0)
    assert conduct.judge(EVIL[0], 0).standing is SLOW


def test_a_failure_at_once_says_nothing() -> None:
    """Catches hosts that become known, or slow, by refusing connections."""
    conduct = Conduct()
    conduct.ended(EVIL[0], 0.01, 0, False, 0)
    assert conduct.judge(EVIL[0], 0).standing is UNKNOWN


@given(st.lists(st.tuples(st.integers(0, 19), st.booleans()), max_size=60))
def test_a_host_that_never_trickled_is_never_slow_once_it_is_known(
    steps: list[tuple[int, bool]],
) -> None:
    """Catches any order of events at its neighbours that costs an honest host its place."""
    conduct = Conduct()
    answers(conduct, BSKY[0])
    for number, prompt in steps:
        other = BSKY[1 + number % 19]
        (answers if prompt else trickles)(conduct, other)
    assert conduct.judge(BSKY[0], 0).standing is PROMPT


def test_what_is_remembered_is_bounded_in_bytes() -> None:
    """Catches a table that grows with the names that strangers make up."""
    conduct = Conduct()
    long = ".".join(["x" * 60] * 3)
    for number in range(20_000):
        origin = Origin("https", f"{number}.{long}.example", 443)
        conduct.connects(origin.host, ip_address(number << 8))
        answers(conduct, origin)
    assert conduct._records.cost + conduct._blocks.cost <= MAX_BYTES


def test_the_slowest_hosts_are_told_the_slowest_first_and_no_more_than_a_page() -> None:
    """Catches domains and blocks among the hosts, a list that grows, and hosts of an hour ago."""
    conduct = Conduct()
    for number in range(2 * MOST_HOSTS):
        origin = Origin("https", f"pds{number}.example", 8443)
        trickles(conduct, origin, seconds=number) if number % 2 else answers(conduct, origin)
    found = conduct.slowest(1)
    assert len(found) == MOST_HOSTS
    assert found[0] == HostPace(f"pds{2 * MOST_HOSTS - 1}.example:8443", "slow", 39)
    assert [pace.seconds for pace in found] == sorted(
        (each.seconds for each in found), reverse=True
    )
    answers(conduct, BSKY[0], RECENT_SECONDS + 1)
    (pace,) = conduct.slowest(RECENT_SECONDS + 1)
    assert (pace.host, pace.standing) == (BSKY[0].host, "prompt")
