"""A DNS server on loopback with records of one's own."""

from __future__ import annotations

from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, field

import dns.flags
import dns.message
import dns.rcode
import dns.rrset
import trio

MAX_UDP = 1232
"""Bytes that a server sends without asking whether they arrive (DNS Flag Day 2020)."""


@dataclass
class FakeDns:
    """Answers TXT questions.

    Attributes:
        port: on 127.0.0.1.
        records: values by name, in lower case.
        rcode: of every answer that is not in ``records``.
        is_silent: takes questions, and answers none.
        asked: the names of all questions, in order.
        by_tcp: how many came over TCP.
    """

    port: int = 0
    records: dict[str, Sequence[str | list[str]]] = field(default_factory=dict)
    rcode: dns.rcode.Rcode = dns.rcode.NXDOMAIN
    is_silent: bool = False
    asked: list[str] = field(default_factory=list)
    by_tcp: int = 0

    @property
    def address(self) -> str:
        """As ``identity.nameservers`` has it."""
        return f"127.0.0.1:{self.port}"

    def answer(self, question: dns.message.Message) -> dns.message.Message:
        """The whole answer, however long."""
        name = question.question[0].name.to_text(omit_final_dot=True).lower()
        self.asked.append(name)
        response = dns.message.make_response(question)
        values = self.records.get(name)
        if values is None:
            response.set_rcode(self.rcode)
            return response
        texts = [[value] if isinstance(value, str) else value for value in values]
        quoted = [" ".join(f'"{part}"' for part in text) for text in texts]
        if quoted:
            owner = question.question[0].name
            response.answer.append(dns.rrset.from_text_list(owner, 60, "IN", "TXT", quoted))
        return response

    async def serve_udp(self, socket: trio.socket.SocketType) -> None:
        while True:
            data, peer = await socket.recvfrom(4096)
            response = self.answer(dns.message.from_wire(data))
            if self.is_silent:
                continue
            wire = response.to_wire(max_size=65535)
            if len(wire) > MAX_UDP:
                response.answer.clear()
                response.flags |= dns.flags.TC
                wire = response.to_wire()
            await socket.sendto(wire, peer)

    async def serve_tcp(self, stream: trio.SocketStream) -> None:
        self.by_tcp += 1
        data = bytearray()
        async for chunk in stream:
            data += chunk
            if len(data) > 2 and len(data) >= 2 + int.from_bytes(data[:2], "big"):
                break
        wire = self.answer(dns.message.from_wire(bytes(data[2:]))).to_wire(max_size=65535)
        await stream.send_all(len(wire).to_bytes(2, "big") + wire)


@asynccontextmanager
async def serving_dns() -> AsyncIterator[FakeDns]:
    """Run one while the block runs."""
    server = FakeDns()
    listeners = await trio.open_tcp_listeners(0, host="127.0.0.1")
    server.port = listeners[0].socket.getsockname()[1]
    with trio.socket.socket(trio.socket.AF_INET, trio.socket.SOCK_DGRAM) as socket:
        await socket.bind(("127.0.0.1", server.port))
        async with trio.open_nursery() as nursery:
            nursery.start_soon(server.serve_udp, socket)
            nursery.start_soon(trio.serve_listeners, server.serve_tcp, listeners)
            yield server
            nursery.cancel_scope.cancel()
