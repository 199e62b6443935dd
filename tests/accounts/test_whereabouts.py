"""Asking an account's PDS: what is asked where, for how long, and what remains of a failure."""

from __future__ import annotations

from collections.abc import Awaitable, Callable

import pytest
import trio
import trio.testing

from proxy.accounts.whereabouts import PATIENCE, ask_pds
from proxy.errors import (
    BlobNotFound,
    Busy,
    DidNotFound,
    DidUnresolvable,
    FetchFailed,
    ImageProxyError,
    NoPdsEndpoint,
    UpstreamTimeout,
)
from proxy.model.identifiers import Did
from tests.fakes.parts import FakeResolver
from tests.fakes.sites import new_plc_did

OLD, NEW = "https://old.example", "https://new.example"

TIMEOUT = 20.0


class Question:
    """Asks PDSes, each of which answers with its URL after a time, or fails."""

    def __init__(self) -> None:
        self.asked: list[tuple[float, str]] = []
        self.seconds: dict[str, float] = {}
        self.errors: dict[str, Exception] = {}
        self.cancelled: list[str] = []

    async def __call__(self, pds: str) -> str:
        self.asked.append((trio.current_time(), pds))
        try:
            await trio.sleep(self.seconds.get(pds, 0.1))
        except trio.Cancelled:
            self.cancelled.append(pds)
            raise
        if pds in self.errors:
            raise self.errors[pds]
        return pds

    @property
    def pdses(self) -> list[str]:
        return [pds for _, pds in self.asked]


@pytest.fixture
async def question() -> Question:
    return Question()


@pytest.fixture
async def resolver() -> FakeResolver:
    return FakeResolver()


@pytest.fixture
async def ask(question: Question, resolver: FakeResolver) -> Callable[[str], Awaitable[str]]:
    """Asks for an account whose remembered document names ``OLD``, and the current one a PDS."""
    did: Did = new_plc_did()

    async def run(current: str) -> str:
        resolver.pds[did] = current
        answered = await ask_pds(resolver, did, OLD, question, timeout=TIMEOUT)
        assert answered.pds == answered.value
        return answered.value

    return run


Ask = Callable[[str], Awaitable[str]]


async def test_an_answer_asks_no_directory(
    autojump_clock: trio.testing.MockClock, ask: Ask, question: Question, resolver: FakeResolver
) -> None:
    """Catches a question to the directory with every fetch."""
    assert await ask(NEW) == OLD
    assert (question.pdses, resolver.calls) == ([OLD], [])


@pytest.mark.parametrize("error", [FetchFailed(), BlobNotFound(), UpstreamTimeout()])
async def test_a_failure_is_asked_again_where_the_account_is_now(
    autojump_clock: trio.testing.MockClock, ask: Ask, question: Question, error: ImageProxyError
) -> None:
    """Catches: only a 404 makes anybody look for the account."""
    question.errors[OLD] = error
    assert await ask(NEW) == NEW
    assert question.pdses == [OLD, NEW]


async def test_a_failure_at_an_unchanged_pds_remains(
    autojump_clock: trio.testing.MockClock, ask: Ask, question: Question
) -> None:
    """Catches a dead PDS that gets every question twice."""
    question.errors[OLD] = FetchFailed("refused")
    with pytest.raises(FetchFailed, match="refused"):
        await ask(OLD)
    assert question.pdses == [OLD]


async def test_a_limit_of_our_own_is_no_reason_to_ask_the_directory(
    autojump_clock: trio.testing.MockClock, ask: Ask, question: Question, resolver: FakeResolver
) -> None:
    """Catches an overload that is passed on to the directory."""
    question.errors[OLD] = Busy("full")
    with pytest.raises(Busy):
        await ask(NEW)
    assert resolver.calls == []


async def test_a_defect_stays_one(
    autojump_clock: trio.testing.MockClock, ask: Ask, question: Question
) -> None:
    """Catches a defect that looks like an account that moved, or comes as a group."""
    question.errors[OLD] = ZeroDivisionError()
    with pytest.raises(ZeroDivisionError):
        await ask(NEW)
    assert question.pdses == [OLD]


async def test_a_pds_that_hangs_leaves_time_for_the_new_one(
    autojump_clock: trio.testing.MockClock, ask: Ask, question: Question
) -> None:
    """Catches: an account that left a server which hangs is a time-out until its document expires,
    and a question that takes twice its time."""
    question.seconds[OLD] = 1000
    question.seconds[NEW] = TIMEOUT * PATIENCE - 1
    began = trio.current_time()
    assert await ask(NEW) == NEW
    assert trio.current_time() - began < TIMEOUT
    assert question.cancelled == [OLD]


async def test_a_pds_that_is_slow_and_the_right_one_is_waited_for(
    autojump_clock: trio.testing.MockClock, ask: Ask, question: Question
) -> None:
    """Catches a large blob that is begun anew, or given up, at half of its time."""
    question.seconds[OLD] = TIMEOUT * 0.9
    assert await ask(OLD) == OLD
    assert question.pdses == [OLD]


async def test_an_answer_does_not_wait_for_a_slow_directory(
    autojump_clock: trio.testing.MockClock, ask: Ask, question: Question, resolver: FakeResolver
) -> None:
    """Catches an answer that is there, and waits for the directory all the same."""
    question.seconds[OLD] = TIMEOUT * PATIENCE + 1

    async def resolve(did: Did, *, max_age: float | None = None) -> str:
        await trio.sleep(1000)
        return NEW

    resolver.resolve = resolve  # type: ignore[method-assign]
    began = trio.current_time()
    assert await ask(OLD) == OLD
    assert trio.current_time() - began == pytest.approx(TIMEOUT * PATIENCE + 1)


async def test_a_new_pds_has_what_is_left_of_the_time(
    autojump_clock: trio.testing.MockClock, ask: Ask, question: Question
) -> None:
    """Catches a request that takes as long again as it may, for each PDS."""
    question.errors[OLD] = FetchFailed("refused")
    question.seconds[NEW] = 1000
    began = trio.current_time()
    with pytest.raises(UpstreamTimeout):
        await ask(NEW)
    assert trio.current_time() - began == pytest.approx(TIMEOUT)


@pytest.mark.parametrize("error", [DidUnresolvable(), UpstreamTimeout(), Busy()])
async def test_a_directory_that_fails_leaves_the_first_failure(
    autojump_clock: trio.testing.MockClock,
    ask: Ask,
    question: Question,
    resolver: FakeResolver,
    error: ImageProxyError,
) -> None:
    """Catches a failure of the directory in place of the PDS's, which says more."""
    question.errors[OLD] = BlobNotFound("gone")
    resolver.errors = [error]
    with pytest.raises(BlobNotFound, match="gone"):
        await ask(NEW)


@pytest.mark.parametrize("error", [DidNotFound(), NoPdsEndpoint()])
async def test_an_account_that_is_nowhere_is_that(
    autojump_clock: trio.testing.MockClock,
    ask: Ask,
    question: Question,
    resolver: FakeResolver,
    error: ImageProxyError,
) -> None:
    """Catches a tombstone that stays a failure of its old PDS."""
    question.seconds[OLD] = 1000
    resolver.errors = [error]
    with pytest.raises(type(error)):
        await ask(NEW)
    assert question.cancelled == [OLD]


async def test_a_cancelled_question_ends_all(
    autojump_clock: trio.testing.MockClock, ask: Ask, question: Question
) -> None:
    """Catches a question that outlives its request."""
    question.seconds[OLD] = 1000
    with trio.move_on_after(1) as scope:
        await ask(OLD)
    assert scope.cancelled_caught
    assert question.cancelled == [OLD]
