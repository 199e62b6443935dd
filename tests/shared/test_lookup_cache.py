"""Remembered answers: which ones go first, and how long they are kept."""

from __future__ import annotations

from contextlib import suppress
from functools import partial

import pytest
import trio
import trio.testing
from trio.testing import MockClock

from proxy.errors import DidNotFound, DidUnresolvable, ImageProxyError
from proxy.shared.lookup_cache import Lifetimes, LookupCache, _Kept
from proxy.shared.memory_cost import cost_of

TIMES = Lifetimes(ttl=100, stale_ttl=1000, negative_ttl=10)


class Source:
    """Answers with the key itself, and notes what it was asked for."""

    def __init__(self) -> None:
        self.asked: list[str] = []
        self.error: ImageProxyError | None = None

    async def __call__(self, key: str) -> str:
        await trio.lowlevel.checkpoint()
        self.asked.append(key)
        if self.error is not None:
            raise self.error
        return key

    def was_asked(self) -> list[str]:
        """Since the last call."""
        asked, self.asked = self.asked, []
        return asked


@pytest.fixture
async def source() -> Source:
    return Source()


def cache_of(nursery: trio.Nursery, source: Source, answers: int) -> LookupCache[str, str]:
    """A cache with room for so many answers."""
    one = cost_of("each", _Kept(1.5, "each"))
    return LookupCache(
        nursery, source, TIMES, settled=(DidNotFound,), max_bytes=answers * one + one // 2
    )


async def test_the_answer_that_was_not_used_for_longest_goes_first(
    nursery: trio.Nursery, source: Source
) -> None:
    """Catches first in, first out: a flood of strangers drives out what everybody asks for."""
    cache = cache_of(nursery, source, 2)
    for each in ("hot", "cold", "hot", "new", "hot"):
        assert await cache.get(each) == each
    assert source.was_asked() == ["hot", "cold", "new"]
    await cache.get("cold")
    assert source.was_asked() == ["cold"]


async def test_an_answer_is_kept_for_its_time_and_stale_while_the_source_fails(
    nursery: trio.Nursery, source: Source, autojump_clock: MockClock
) -> None:
    """Catches an answer dropped when its first time is over, and one that is kept for ever."""
    cache = cache_of(nursery, source, 2)
    await cache.get("a")
    await trio.sleep(99)
    await cache.get("a")
    assert source.was_asked() == ["a"]
    source.error = DidUnresolvable("down")
    await trio.sleep(2)
    for _ in range(2):
        assert await cache.get("a") == "a"
    assert source.was_asked() == ["a"], "a failing source is left alone for a while"
    await trio.sleep(890)
    assert await cache.get("a") == "a"
    await trio.sleep(20)
    with pytest.raises(DidUnresolvable):
        await cache.get("a")


@pytest.mark.parametrize(
    ("error", "told"),
    [(None, ["new", "old"]), (DidNotFound(), ["new"]), (DidUnresolvable(), ["new", "new"])],
)
async def test_an_answer_that_was_asked_for_before_it_was_forgotten_is_not_remembered(
    nursery: trio.Nursery, error: ImageProxyError | None, told: list[str]
) -> None:
    """Catches a document that an account event forgets while it is asked for, and that is used for
    an hour all the same."""
    gates = [trio.Event(), trio.Event()]
    answers = iter((("old", gates[0]), ("new", gates[1])))
    found: list[str] = []

    async def source(_key: str) -> str:
        answer, gate = next(answers)
        await gate.wait()
        if answer == "old" and error is not None:
            raise error
        return answer

    cache = LookupCache(nursery, source, TIMES, settled=(DidNotFound,), max_bytes=10**6)

    async def ask() -> None:
        with suppress(ImageProxyError):
            found.append(await cache.get("each"))

    async with trio.open_nursery() as callers:
        callers.start_soon(ask)
        await trio.testing.wait_all_tasks_blocked()
        cache.forget("each")
        callers.start_soon(ask)
        await trio.testing.wait_all_tasks_blocked()
        gates[1].set()
        await trio.testing.wait_all_tasks_blocked()
        gates[0].set()
    assert found == told
    assert await cache.get("each") == "new"


async def test_a_newer_answer_is_asked_for_once_in_the_age_also_in_vain(
    nursery: trio.Nursery, source: Source, autojump_clock: MockClock
) -> None:
    """Catches a failing source that is asked by each caller who wants a newer answer."""
    cache = cache_of(nursery, source, 2)
    await cache.get("a")
    await trio.sleep(60)
    source.error = DidUnresolvable("down")
    assert source.was_asked() == ["a"]
    for _ in range(3):
        assert await cache.get("a", max_age=30) == "a"
    assert source.was_asked() == ["a"]
    await trio.sleep(31)
    assert await cache.get("a") == "a"
    assert source.was_asked() == [], "it is good for other callers all the time"
    assert await cache.get("a", max_age=30) == "a"
    assert source.was_asked() == ["a"]


async def test_an_answer_that_may_not_be_renewed_is_used(
    nursery: trio.Nursery, source: Source, autojump_clock: MockClock
) -> None:
    """Catches an allowance that is asked without need, or that outlives the answer's time."""
    cache = cache_of(nursery, source, 2)
    asked: list[str] = []

    def may_renew(value: str) -> bool:
        asked.append(value)
        return False

    await cache.get("a", max_age=30, may_renew=may_renew)
    await cache.get("a", max_age=30, may_renew=may_renew)
    assert asked == []
    await trio.sleep(60)
    assert await cache.get("a", max_age=30, may_renew=may_renew) == "a"
    assert (asked, source.was_asked()) == (["a"], ["a"])
    await trio.sleep(60)
    await cache.get("a", max_age=30, may_renew=may_renew)
    assert (asked, source.was_asked()) == (["a"], ["a"])


async def test_callers_who_share_a_question_take_from_the_allowance_once(
    nursery: trio.Nursery, source: Source, autojump_clock: MockClock
) -> None:
    """Catches forty pictures of one account, at once, that use up what its whole domain has."""
    cache = cache_of(nursery, source, 2)
    await cache.get("a")
    await trio.sleep(60)
    admitted: list[str] = []

    def may_renew(value: str) -> bool:
        admitted.append(value)
        return len(admitted) == 1

    async with trio.open_nursery() as callers:
        for _ in range(40):
            callers.start_soon(partial(cache.get, "a", max_age=30, may_renew=may_renew))
    assert (admitted, source.was_asked()) == (["a"], ["a", "a"])


async def test_a_missing_answer_is_kept_for_its_own_time(
    nursery: trio.Nursery, source: Source, autojump_clock: MockClock
) -> None:
    """Catches a directory asked with each request, and a name that stays missing for an hour."""
    cache = cache_of(nursery, source, 2)
    source.error = DidNotFound("no such")
    for _ in range(3):
        with pytest.raises(DidNotFound):
            await cache.get("a")
    assert source.was_asked() == ["a"]
    source.error = None
    await trio.sleep(11)
    assert await cache.get("a") == "a"
