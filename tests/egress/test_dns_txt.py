"""TXT records, of a server on loopback: its answers, its silence, and how much is asked of it."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import AsyncIterator
from typing import Any

import dns.message
import dns.rcode
import pytest
import trio

from proxy.egress import dns_txt as txt
from proxy.egress.dns_txt import TxtRecords
from proxy.egress.errors import ConnectFailed, Saturated, TimedOut
from tests.fakes.dns import FakeDns, serving_dns
from tests.processes import ROOT

NAME = "_atproto.alice.community"


@pytest.fixture
async def server() -> AsyncIterator[FakeDns]:
    async with serving_dns() as server:
        yield server


def records_of(*servers: FakeDns) -> TxtRecords:
    return TxtRecords([("127.0.0.1", server.port) for server in servers])


async def test_every_value_at_a_name_is_read_and_its_parts_are_one(server: FakeDns) -> None:
    """Catches the first value alone, and a DID cut where its text was (RFC 1035, 3.3.14)."""
    server.records[NAME] = ["did=one", ["did=", "two"], ""]
    assert sorted(await records_of(server).lookup(NAME)) == [b"", b"did=one", b"did=two"]


@pytest.mark.parametrize("rcode", [dns.rcode.NXDOMAIN, dns.rcode.NOERROR])
async def test_no_such_name_and_no_such_record_are_no_failure(
    server: FakeDns, rcode: dns.rcode.Rcode
) -> None:
    """Catches a handle without a record that is never looked for at its domain."""
    server.rcode = rcode
    assert await records_of(server).lookup(NAME) == []


@pytest.mark.parametrize("rcode", [dns.rcode.SERVFAIL, dns.rcode.REFUSED, dns.rcode.NOTIMP])
async def test_a_server_that_fails_is_told_from_one_that_has_nothing(
    server: FakeDns, rcode: dns.rcode.Rcode
) -> None:
    """Catches a handle that is gone for a minute because a DNS server was."""
    server.rcode = rcode
    with pytest.raises(ConnectFailed):
        await records_of(server).lookup(NAME)


async def test_the_next_server_is_asked_when_one_fails(server: FakeDns) -> None:
    """Catches a second server that is only for show."""
    server.rcode = dns.rcode.SERVFAIL
    async with serving_dns() as second:
        second.records[NAME] = ["did=one"]
        assert await records_of(server, second).lookup(NAME) == [b"did=one"]


async def test_a_long_answer_comes_over_tcp(server: FakeDns) -> None:
    """Catches a truncated answer that is taken for a whole one."""
    server.records[NAME] = [f"other={number:03}{'x' * 200}" for number in range(8)] + ["did=one"]
    assert b"did=one" in await records_of(server).lookup(NAME)
    assert server.by_tcp == 1


async def test_an_answer_that_is_too_long_is_a_failure_and_not_parsed(
    server: FakeDns, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Catches: 64 KB of tiny records, which take 90 ms to parse in the event loop."""
    server.records[NAME] = ["did=one", *(f"{number}" for number in range(3000))]
    parsed: list[int] = []
    from_wire = dns.message.from_wire

    def measured(wire: bytes, **options: Any) -> dns.message.Message:
        parsed.append(len(wire))
        return from_wire(wire, **options)

    records = records_of(server)
    monkeypatch.setattr(dns.message, "from_wire", measured)
    with pytest.raises(ConnectFailed):
        await records.lookup(NAME)
    assert server.by_tcp == 1
    assert max(parsed) <= txt.MAX_ANSWER


async def test_a_silent_server_costs_no_more_than_the_deadline(
    server: FakeDns, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Catches a look-up without an end."""
    monkeypatch.setattr(txt, "LOOKUP_SECONDS", 0.2)
    monkeypatch.setattr(txt, "TRY_SECONDS", 0.1)
    server.is_silent = True
    with trio.fail_after(20), pytest.raises(TimedOut):
        await records_of(server).lookup(NAME)


async def test_a_name_that_dns_cannot_have_is_never_asked_for(server: FakeDns) -> None:
    """Catches a defect for the longest of handles."""
    longest = ".".join(["a" * 63, "b" * 63, "c" * 63, "d" * 57, "com"])
    assert await records_of(server).lookup(f"_atproto.{longest}") == []
    assert server.asked == []


async def test_no_suffix_of_this_machine_is_tried(server: FakeDns) -> None:
    """Catches names of strangers that are looked for in the operator's own domain."""
    await records_of(server).lookup(NAME)
    assert set(server.asked) == {NAME}


async def test_only_so_many_questions_are_asked_and_wait(
    server: FakeDns, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Catches a socket for each of a thousand strangers' names."""
    monkeypatch.setattr(txt, "MAX_AT_ONCE", 2)
    monkeypatch.setattr(txt, "MAX_WAITING", 3)
    server.is_silent = True
    records = records_of(server)
    refused: list[str] = []

    async def ask(name: str) -> None:
        try:
            await records.lookup(name)
        except Saturated:
            refused.append(name)

    async with trio.open_nursery() as nursery:
        for number in range(7):
            nursery.start_soon(ask, f"_atproto.h{number}.com")
        with trio.fail_after(20):
            while len(set(server.asked)) < 2 or len(refused) < 2:
                await trio.lowlevel.checkpoint()
        nursery.cancel_scope.cancel()
    assert len(refused) == 2
    assert len(set(server.asked)) == 2


async def test_names_below_one_silent_domain_leave_turns_to_others(server: FakeDns) -> None:
    """Catches a thousand handles below a domain whose DNS servers keep silent: they would have
    every turn, five seconds each, and no other handle would be resolved."""
    server.is_silent = True
    records = records_of(server)
    refused: list[str] = []

    async def ask(name: str) -> None:
        try:
            await records.lookup(name)
        except Saturated:
            refused.append(name)

    asked = txt.MAX_OF_DOMAIN + txt.MAX_WAITING_OF_DOMAIN + 10
    async with trio.open_nursery() as nursery:
        for number in range(asked):
            nursery.start_soon(ask, f"_atproto.h{number}.evil.com")
        with trio.fail_after(20):
            while len(set(server.asked)) < txt.MAX_OF_DOMAIN or len(refused) < 10:
                await trio.lowlevel.checkpoint()
            nursery.start_soon(ask, NAME)
            while NAME not in server.asked:
                await trio.lowlevel.checkpoint()
        # Asked beside all turns of the domain, and not after one of them ended.
        assert records._turns._turns.borrowed_tokens == txt.MAX_OF_DOMAIN + 1
        nursery.cancel_scope.cancel()
    assert len(refused) == 10
    assert records._turns._turns_of == {}


WITHOUT_BACKEND = """
import sys
sys.modules["dns._trio_backend"] = None
import proxy.egress.dns_txt
"""


def test_a_trio_that_dnspython_does_not_support_ends_the_start_with_one_line() -> None:
    """Catches a backend that is looked for at the first handle: each would be a 500."""
    done = subprocess.run(
        [sys.executable, "-c", WITHOUT_BACKEND], cwd=ROOT, capture_output=True, text=True
    )
    assert done.returncode == 1
    last = done.stderr.splitlines()[-1]
    assert last.startswith("ImportError: dnspython ")
    assert last.endswith('install "dnspython[trio]"')
