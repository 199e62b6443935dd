"""The service as it is run, over a PDS of its own, and the questions that every file is asked."""

from __future__ import annotations

from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from itertools import product
from pathlib import Path
from typing import NamedTuple

import trio

from proxy.model.formats import OUTPUTS, Format, content_type_of
from tests.processes import SERVE, Reply, Server, Upstream, serve, upstream

PRESETS = ("content_full", "content_preview", "avatar_thumbnail")
"""Each kind of default preset: one that keeps what moves, one that only scales, one that crops."""


class Question(NamedTuple):
    """What is asked of a file."""

    preset: str
    output: Format | None

    def __str__(self) -> str:
        return self.preset + (f"@{self.output}" if self.output else "")


QUESTIONS = [Question(*each) for each in product(PRESETS, (None, *OUTPUTS))]


class Service:
    """A running service with its PDS."""

    def __init__(self, server: Server, pds: Upstream) -> None:
        self._server = server
        self._pds = pds

    async def ask(self, data: bytes, questions: Sequence[Question]) -> dict[Question, Reply]:
        """The answers about a blob of a new account, all asked for at once."""
        did, cid = self._pds.add_blob(data, content_type_of(data))
        replies: dict[Question, Reply] = {}

        async def ask_one(question: Question) -> None:
            format_ = f"@{question.output}" if question.output else ""
            path = f"/img/{question.preset}/plain/{did}/{cid}{format_}"
            replies[question] = await self._server.get(path)

        async with trio.open_nursery() as nursery:
            for question in questions:
                nursery.start_soon(ask_one, question)
        self._pds.pds.accounts[did].blobs.clear()
        return replies


@asynccontextmanager
async def service(folder: Path) -> AsyncIterator[Service]:
    """Run one, with its cache in ``folder``, while the block runs."""
    async with upstream() as pds:
        environment = pds.environment(folder, PROCESS__QUEUE_WAIT="600")
        async with serve(SERVE, environment) as server:
            yield Service(server, pds)
