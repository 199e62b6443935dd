"""Revalidation: what is gone from its PDS goes here, in time, and nothing goes for a bad moment."""

from __future__ import annotations

import itertools
import sqlite3

import pytest
import trio
import trio.testing

from proxy.errors import (
    BlobNotFound,
    Busy,
    DidNotFound,
    DidUnresolvable,
    FetchFailed,
    ForbiddenDestination,
    ImageProxyError,
    NoPdsEndpoint,
    UpstreamTimeout,
)
from proxy.model.identifiers import Did
from proxy.model.keys import BlobKey
from proxy.model.selection import Selection
from proxy.moderation import revalidate
from proxy.moderation.revalidate import (
    AT_ONCE,
    CHECKS_PER_SECOND,
    PAGE,
    Availability,
    Revalidator,
    availability_of,
)
from tests.fakes.parts import FakeResolver
from tests.fakes.sites import cid_of, new_plc_did
from tests.moderation.fakes import FakeCheckTimes, FakeDecisions

DAY = 86400.0
AGE = 7 * DAY
UNCONFIRMED = 30 * DAY
EPOCH = 1_800_000_000.0
PDS = "https://pds.example"


def wall_clock() -> float:
    return EPOCH + trio.current_time()


class Hosts:
    """Which PDS has which blobs; and how long each takes to say so."""

    def __init__(self) -> None:
        self.blobs: set[tuple[str, BlobKey]] = set()
        self.errors: dict[str, Exception] = {}
        self.slow: set[str] = set()
        self.asked: list[tuple[float, str, BlobKey]] = []
        self.asking = self.most_asking = 0

    async def exists(self, pds: str, blob: BlobKey) -> bool:
        self.asked.append((trio.current_time(), pds, blob))
        self.asking += 1
        self.most_asking = max(self.most_asking, self.asking)
        try:
            await trio.sleep(30 if pds in self.slow else 0.05)
        finally:
            self.asking -= 1
        if pds in self.errors:
            raise self.errors[pds]
        return (pds, blob) in self.blobs


class Sweeper:
    """A revalidator and its neighbours."""

    def __init__(self) -> None:
        self.times = FakeCheckTimes(wall_clock)
        self.hosts = Hosts()
        self.resolver = FakeResolver()
        self.decisions = FakeDecisions(self._forget)
        self.findings: list[Availability] = []
        self._numbers = itertools.count()
        self.revalidator = Revalidator(
            age=AGE,
            unconfirmed_age=UNCONFIRMED,
            times=self.times,
            resolver=self.resolver,
            exists=self.hosts.exists,
            timeout=60,
            decisions=self.decisions,
            on_checked=self.findings.append,
            wall_clock=wall_clock,
        )

    async def _forget(self, selection: Selection) -> int:
        gone = [blob for blob in self.times.times if selection.covers_blob(blob)]
        for blob in gone:
            del self.times.times[blob]
        return len(gone)

    def cached(self, *, days: float = 8, pds: str = PDS, is_there: bool = True) -> BlobKey:
        """A blob that was last seen ``days`` ago, within a second."""
        number = next(self._numbers)
        blob = BlobKey(new_plc_did(), cid_of(b"%d" % number))
        self.times.times[blob] = wall_clock() - days * DAY + number / 1000
        self.resolver.pds[blob.did] = pds
        if is_there:
            self.hosts.blobs.add((pds, blob))
        return blob

    @property
    def purged(self) -> list[BlobKey]:
        """What was purged, each by its pair alone and in revalidation's name."""
        for selection, by in self.decisions.purged:
            assert selection.did is not None
            assert selection.cid is not None
            assert by == "revalidation"
        return [BlobKey(s.did, s.cid) for s, _ in self.decisions.purged if s.did and s.cid]


@pytest.fixture
async def sweeper() -> Sweeper:
    return Sweeper()


@pytest.mark.parametrize(
    ("outcome", "finding"),
    [
        (BlobNotFound(), Availability.ABSENT),
        (DidNotFound(), Availability.ABSENT),
        # None of these says that the PDS lacks the blob.
        (DidUnresolvable(), Availability.UNKNOWN),
        (NoPdsEndpoint(), Availability.UNKNOWN),
        (FetchFailed(), Availability.UNKNOWN),
        (ForbiddenDestination(), Availability.UNKNOWN),
        (UpstreamTimeout(), Availability.UNKNOWN),
        (Busy(), Availability.UNKNOWN),
    ],
)
def test_only_a_clear_no_counts_as_one(outcome: ImageProxyError, finding: Availability) -> None:
    """Catches a purge on a failure: a PDS that is down for an hour would empty the cache."""
    assert availability_of(outcome) is finding


async def test_what_is_gone_is_purged_and_what_is_there_is_due_no_more(
    sweeper: Sweeper, autojump_clock: trio.testing.MockClock
) -> None:
    there, gone = sweeper.cached(), sweeper.cached(is_there=False)
    await sweeper.revalidator.sweep()
    assert sweeper.purged == [gone]
    assert sweeper.times.times[there] == pytest.approx(wall_clock(), abs=60)
    assert sorted(sweeper.findings) == [Availability.ABSENT, Availability.PRESENT]
    asked = len(sweeper.hosts.asked)
    assert asked == 2
    await sweeper.revalidator.sweep()
    assert len(sweeper.hosts.asked) == asked


async def test_what_was_seen_lately_is_left_alone(
    sweeper: Sweeper, autojump_clock: trio.testing.MockClock
) -> None:
    """Catches a check of every blob in every sweep, and one that comes only after the age."""
    sweeper.cached(days=6.2)
    due = sweeper.cached(days=6.4)
    await sweeper.revalidator.sweep()
    assert [blob for _, _, blob in sweeper.hosts.asked] == [due]


@pytest.mark.parametrize("error", [FetchFailed("down"), UpstreamTimeout("slow"), Busy("full")])
async def test_a_pds_that_is_down_keeps_its_blobs_and_is_asked_again(
    sweeper: Sweeper, autojump_clock: trio.testing.MockClock, error: ImageProxyError
) -> None:
    blob = sweeper.cached(is_there=False)
    sweeper.hosts.errors[PDS] = error
    await sweeper.revalidator.sweep()
    assert (sweeper.purged, sweeper.findings) == ([], [Availability.UNKNOWN])
    del sweeper.hosts.errors[PDS]
    await sweeper.revalidator.sweep()
    assert sweeper.purged == [blob]


@pytest.mark.parametrize("error", [FetchFailed("down"), NoPdsEndpoint(), UpstreamTimeout()])
async def test_what_no_pds_confirms_for_its_time_goes(
    sweeper: Sweeper, autojump_clock: trio.testing.MockClock, error: ImageProxyError
) -> None:
    """Catches a picture that is served for ever because its server died."""
    early, late = sweeper.cached(days=29), sweeper.cached(days=31)
    sweeper.hosts.errors[PDS] = error
    await sweeper.revalidator.sweep()
    assert sweeper.purged == [late]
    assert sorted(sweeper.findings) == [Availability.UNCONFIRMED, Availability.UNKNOWN]
    await trio.sleep(2 * DAY)
    await sweeper.revalidator.sweep()
    assert sweeper.purged == [late, early]


async def test_a_service_at_its_limits_takes_nothing_for_unconfirmed(
    sweeper: Sweeper, autojump_clock: trio.testing.MockClock
) -> None:
    """Catches a purge of what nobody was asked for."""
    sweeper.cached(days=400)
    sweeper.hosts.errors[PDS] = Busy("full")
    await sweeper.revalidator.sweep()
    assert (sweeper.purged, sweeper.findings) == ([], [Availability.UNKNOWN])


async def test_what_was_seen_in_the_future_is_due_now_and_is_not_yet_unconfirmed(
    sweeper: Sweeper, autojump_clock: trio.testing.MockClock
) -> None:
    """Catches: what was checked while the clock was ahead is asked for when it is there again,
    and a purge of it because of one bad moment."""
    there, gone = sweeper.cached(days=-365), sweeper.cached(days=-365, is_there=False)
    down = sweeper.cached(days=-365, pds="https://down.example")
    sweeper.hosts.errors["https://down.example"] = FetchFailed("down")
    await sweeper.revalidator.sweep()
    assert sweeper.purged == [gone]
    assert sweeper.times.times[there] == pytest.approx(wall_clock(), abs=60)
    await trio.sleep(UNCONFIRMED)
    await sweeper.revalidator.sweep()
    assert down in sweeper.purged


async def test_no_blob_is_passed_over_that_was_seen_at_the_same_moment_as_others(
    sweeper: Sweeper, autojump_clock: trio.testing.MockClock, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Catches a page that ends between blobs of one moment: while those before them stay due, as at
    a dead host, the others are never asked for."""
    monkeypatch.setattr(revalidate, "PAGE", 4)
    sweeper.hosts.errors["https://down.example"] = FetchFailed("down")
    moment = wall_clock() - 8 * DAY
    for count in (1, 2, 3, 9):
        for _ in range(count):
            sweeper.times.times[sweeper.cached(pds="https://down.example")] = moment + count
    last = sweeper.cached(is_there=False)
    sweeper.times.times[last] = moment + 9
    await sweeper.revalidator.sweep()
    assert sweeper.purged == [last]
    assert len(sweeper.hosts.asked) == 1 + 2 + 3 + 9 + 1, "each once"


async def test_a_dead_host_with_many_blobs_does_not_delay_other_hosts(
    sweeper: Sweeper, autojump_clock: trio.testing.MockClock
) -> None:
    """Catches a sweep that gets the same oldest page, full of a dead host's, for ever."""
    dead = "https://dead.example"
    for _ in range(PAGE + 1):
        sweeper.cached(days=20, pds=dead)
    gone = sweeper.cached(is_there=False)
    sweeper.hosts.errors[dead] = FetchFailed("down")
    await sweeper.revalidator.sweep()
    assert sweeper.purged == [gone]


async def test_an_account_that_moved_is_asked_for_where_it_is_now(
    sweeper: Sweeper, autojump_clock: trio.testing.MockClock
) -> None:
    """Catches a purge because the PDS that was left says deactivated."""
    moved = sweeper.cached(is_there=False)
    new = "https://new.example"
    sweeper.hosts.blobs.add((new, moved))

    async def resolve(did: Did, *, max_age: float | None = None) -> str:
        await trio.lowlevel.checkpoint()
        return PDS if max_age is None else new

    sweeper.resolver.resolve = resolve  # type: ignore[method-assign]
    await sweeper.revalidator.sweep()
    assert [pds for _, pds, _ in sweeper.hosts.asked] == [PDS, new]
    assert (sweeper.purged, sweeper.findings) == ([], [Availability.PRESENT])


async def test_an_account_that_exists_no_more_loses_its_blobs(
    sweeper: Sweeper, autojump_clock: trio.testing.MockClock
) -> None:
    blob = sweeper.cached()
    sweeper.resolver.errors = [DidNotFound("tombstone")]
    await sweeper.revalidator.sweep()
    assert sweeper.purged == [blob]


async def test_a_sweep_is_slower_than_its_hosts_would_bear(
    sweeper: Sweeper, autojump_clock: trio.testing.MockClock
) -> None:
    """Catches a burst over a whole cache, and checks one after the other behind a slow host."""
    for _ in range(50):
        sweeper.cached()
    began = trio.current_time()
    await sweeper.revalidator.sweep()
    took = trio.current_time() - began
    assert 0.5 * 50 / CHECKS_PER_SECOND < took < 1.5 * 50 / CHECKS_PER_SECOND + 1
    gaps = [b[0] - a[0] for a, b in itertools.pairwise(sweeper.hosts.asked)]
    assert min(gaps) > 0.4 / CHECKS_PER_SECOND
    assert len({round(gap, 3) for gap in gaps}) > 10  # jitter


async def test_slow_hosts_take_a_bounded_part_of_the_workers(
    sweeper: Sweeper, autojump_clock: trio.testing.MockClock
) -> None:
    for _ in range(4 * AT_ONCE):
        sweeper.cached()
    sweeper.hosts.slow.add(PDS)
    await sweeper.revalidator.sweep()
    assert sweeper.hosts.most_asking == AT_ONCE


async def test_nothing_is_served_longer_than_the_age_while_its_pds_can_be_asked(
    sweeper: Sweeper, autojump_clock: trio.testing.MockClock, nursery: trio.Nursery
) -> None:
    """Catches a pause between sweeps, or a margin, that adds to the age."""
    blob = sweeper.cached(days=0)
    taken_down_at = trio.current_time()
    sweeper.hosts.blobs.clear()
    nursery.start_soon(sweeper.revalidator.run)
    while blob in sweeper.times.times:
        await trio.sleep(600)
        assert trio.current_time() - taken_down_at < AGE
    assert sweeper.purged == [blob]
    nursery.cancel_scope.cancel()


@pytest.mark.parametrize("error", [sqlite3.OperationalError("locked"), OSError("disk")])
async def test_a_store_that_fails_for_a_while_ends_nothing(
    sweeper: Sweeper,
    autojump_clock: trio.testing.MockClock,
    nursery: trio.Nursery,
    error: Exception,
) -> None:
    """Catches a chore that dies with its first I/O error, and what then is never purged."""
    gone, there = sweeper.cached(is_there=False), sweeper.cached()
    nursery.start_soon(sweeper.revalidator.run)
    sweeper.times.error = error
    await trio.sleep(DAY)
    assert sweeper.hosts.asked == []
    sweeper.times.error = None
    sweeper.decisions.error = error
    await trio.sleep(DAY)
    assert gone in sweeper.times.times
    assert sweeper.times.times[there] > EPOCH
    sweeper.decisions.error = None
    await trio.sleep(DAY)
    assert sweeper.purged == [gone]
    nursery.cancel_scope.cancel()
