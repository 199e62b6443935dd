"""Asks the PDS of an account, and follows an account that has moved to another one.

Accounts move, often because their PDS died, and a remembered DID document then names a host that
refuses, hangs, or answers anything. So any failure there has the document asked for again, if it is
older than ``MIGRATION_AGE``.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from typing import Generic, TypeVar

import trio

from proxy.accounts.did_documents import MIGRATION_AGE, Resolver
from proxy.errors import (
    BlobNotFound,
    Busy,
    ImageProxyError,
    NoPdsEndpoint,
    UpstreamTimeout,
    failing_at,
)
from proxy.model.identifiers import Did

PATIENCE = 0.5
"""The part of the time for an answer after which the document is asked for, while the question is
still under way: a host that hangs would leave no time to ask another one."""

MAX_HOST = 253
"""Characters of a name (RFC 1035, section 2.3.4, without the bytes of lengths)."""

T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class Answered(Generic[T]):
    """An answer, and the PDS that gave it."""

    pds: str
    value: T


async def ask_pds(
    resolver: Resolver,
    did: Did,
    pds: str,
    question: Callable[[str], Awaitable[T]],
    *,
    timeout: float,
) -> Answered[T]:
    """Ask the PDS of ``did``; where that fails, ask the one that the account has now.

    On cancellation every question is cancelled.

    Args:
        pds: the PDS that its remembered document names.
        question: asks the PDS at a URL.
        timeout: seconds. The directory and another PDS are asked within what is left of it.

    Raises:
        ImageProxyError: ``question`` raised it, at the PDS that the account has now.
        DidNotFound, NoPdsEndpoint: the account has none any more.
        UpstreamTimeout: another PDS did not answer in what was left.
    """
    deadline = trio.current_time() + timeout

    async def ask(pds: str) -> T:
        with failing_at(_host_of(pds)):
            return await question(pds)

    first = _Attempt(ask, pds)
    moved: str | ImageProxyError | None = None
    async with trio.open_nursery() as nursery:
        nursery.start_soon(first.run, nursery.cancel_scope, name="question")
        with trio.move_on_after(timeout * PATIENCE):
            await first.failed.wait()
        moved = await _moved(resolver, did, pds, deadline)
        if moved is not None:
            nursery.cancel_scope.cancel()
    if first.answer is not None:
        return first.answer
    if isinstance(moved, ImageProxyError):
        raise moved
    if moved is None:
        raise first.error or UpstreamTimeout(f"{pds}: no answer")
    with trio.move_on_at(deadline):
        return Answered(moved, await ask(moved))
    with failing_at(_host_of(moved)):
        raise UpstreamTimeout(f"{moved}: no answer within {timeout:g} s, after a failure of {pds}")


def _host_of(pds: str) -> str:
    """The host in a URL as a DID document spells it; any other text, shortened. Total."""
    return pds.rpartition("://")[2].partition("/")[0].lower()[:MAX_HOST]


async def _moved(
    resolver: Resolver, did: Did, pds: str, deadline: float
) -> str | ImageProxyError | None:
    """The PDS of an account if it is another one; the error if it has none; else None."""
    with trio.move_on_at(deadline):
        try:
            current = await resolver.resolve(did, max_age=MIGRATION_AGE)
        except (BlobNotFound, NoPdsEndpoint) as error:
            return error
        except ImageProxyError:
            return None  # the directory failed too: what is known of the PDS says more
        return None if current == pds else current
    return None


class _Attempt(Generic[T]):
    """The question to the PDS that the remembered document names.

    Attributes:
        failed: set when the question failed in a way that may be because the account moved.
        answer, error: None until the question has ended.
    """

    def __init__(self, question: Callable[[str], Awaitable[T]], pds: str) -> None:
        self._question = question
        self._pds = pds
        self.failed = trio.Event()
        self.answer: Answered[T] | None = None
        self.error: Exception | None = None

    async def run(self, doubt: trio.CancelScope) -> None:
        """Ask. No exception but a cancellation leaves this task.

        Args:
            doubt: is cancelled once there is nothing to ask the directory for.
        """
        try:
            self.answer = Answered(self._pds, await self._question(self._pds))
        except Exception as error:
            self.error = error
            if isinstance(error, ImageProxyError) and not isinstance(error, Busy):
                self.failed.set()
                return
        # It was answered, or not asked: this service is at its limits, or has a defect.
        doubt.cancel()
