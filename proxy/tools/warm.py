"""Filling the cache ahead of requests, without being a burden to a PDS."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Awaitable, Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import TypeVar

import trio

from proxy.errors import BlobBlocked, Busy, ImageProxyError, RateLimited, UnsupportedImage
from proxy.model.identifiers import Did
from proxy.model.keys import BlobKey, ImageKey, image_key
from proxy.service import Service
from proxy.shared.negative_cache import SETTLED
from proxy.urls import blob_url, image_url

T = TypeVar("T")

BUSY_SECONDS = 5.0
"""Pause after the service or a PDS had no room, once more with each try.

Where a PDS says for how long (``Retry-After``), it comes on top of that.
"""

BUSY_TRIES = 4

MAX_REASONS = 100
"""Reasons of failures that are kept for the end; failures for further ones are counted."""

MAX_NAMES = 5
"""Failures of each that are named; another run tries them all."""


class Failures:
    """What is missing and why: each reason once, with what it befell.

    Attributes:
        kinds: classes of the errors.
    """

    def __init__(self) -> None:
        self.kinds: set[type[ImageProxyError]] = set()
        self._count = 0
        self._counts: dict[str, int] = {}
        self._names: dict[str, list[str]] = {}

    def __len__(self) -> int:
        return self._count

    def add(self, url: str, did: Did, error: ImageProxyError) -> None:
        """Note that what has ``url`` is missing."""
        self._count += 1
        self.kinds.add(type(error))
        # The name says whose it is; a directory that is down is one reason.
        reason = error.explained.replace(f"{did}: ", "")
        if reason not in self._counts and len(self._counts) == MAX_REASONS:
            return
        self._counts[reason] = self._counts.get(reason, 0) + 1
        names = self._names.setdefault(reason, [])
        if len(names) < MAX_NAMES:
            names.append(url)

    def lines(self) -> Iterator[str]:
        """What to tell: a reason, and how often it was one, above the names."""
        for reason, count in self._counts.items():
            names = self._names[reason]
            yield reason if count == 1 else f"{reason} ({count} times)"
            yield from (f"  {name}" for name in names)
            if count > len(names):
                yield f"  and {count - len(names)} more"
        if others := self._count - sum(self._counts.values()):
            yield f"{others} more for other reasons"


@dataclass
class Tally:
    """What has come of it, in blobs.

    Attributes:
        made: at least one result is new.
        cached: all results were there.
        skipped: the blob is no image that is supported, or blocked.
        failed: at least one result is missing.
        unsettled: those of the failed that another run may make.
        failures: each result that is, and why.
    """

    made: int = 0
    cached: int = 0
    skipped: int = 0
    failed: int = 0
    unsettled: int = 0
    failures: Failures = field(default_factory=Failures)


UNNAMED_PAUSE = 60.0
"""Seconds to wait for a PDS that names none: as long as the service remembers its refusal."""


class Patience:
    """Waits where there is no room.

    Whoever waited for a PDS in vain has spent it for the account: nobody waits for that again until
    something of it succeeds. A PDS that never relents costs a run one wait, not one a blob.

    Args:
        with_pdses: that ask for a pause; otherwise the service alone is waited for.
    """

    def __init__(self, *, with_pdses: bool = True) -> None:
        self._with_pdses = with_pdses
        self._spent: set[Did] = set()

    async def try_for(self, did: Did, attempt: Callable[[], Awaitable[T]]) -> T:
        """What ``attempt`` brings, which concerns the account ``did`` and may be made again.

        Raises:
            ImageProxyError: of the last attempt.
        """
        tries = 1
        while True:
            try:
                result = await attempt()
            except Busy:
                if tries == BUSY_TRIES:
                    raise
                asked = 0.0
            except RateLimited as error:
                if tries == BUSY_TRIES:
                    self._spent.add(did)
                if did in self._spent or not self._with_pdses:
                    raise
                asked = UNNAMED_PAUSE if error.retry_after is None else error.retry_after
            else:
                self._spent.discard(did)
                return result
            await trio.sleep(asked + BUSY_SECONDS * tries)
            tries += 1


class Warmer:
    """Has a service make the results of blobs.

    The presets of a blob are asked for together, so that it is fetched once.

    Args:
        presets: by name, of the configuration.
        at_once: blobs under way.
        per_second: blobs that are begun in a second; those that are cached do not count.
        on_done: called for each blob that is done with.
    """

    def __init__(
        self,
        service: Service,
        presets: Sequence[str],
        *,
        at_once: int,
        per_second: float,
        on_done: Callable[[], None] = lambda: None,
    ) -> None:
        self._service = service
        self._presets = presets
        self._at_once = at_once
        self._pace = Pace(per_second)
        self._on_done = on_done
        # Of the whole run: a PDS that never relents is waited for once, not once a page.
        self._patience = Patience()
        self.tally = Tally()

    async def warm(self, blobs: Iterable[BlobKey]) -> None:
        """Return once every blob is done with. Cancellation leaves what was made."""
        todo = iter(blobs)
        async with trio.open_nursery() as nursery:
            for _ in range(self._at_once):
                nursery.start_soon(self._work_on, todo, self._patience)

    async def warm_from(self, blobs: trio.MemoryReceiveChannel[BlobKey]) -> None:
        """As ``warm``, with what comes while the channel is open.

        No PDS is waited for here: what comes next is of others, which strangers' PDSes must not
        hold up.
        """
        patience = Patience(with_pdses=False)
        async with trio.open_nursery() as nursery:
            for _ in range(self._at_once):
                nursery.start_soon(self._take_from, blobs, patience)

    async def _work_on(self, todo: Iterator[BlobKey], patience: Patience) -> None:
        for blob in todo:
            await self._warm(blob, patience)

    async def _take_from(
        self, blobs: trio.MemoryReceiveChannel[BlobKey], patience: Patience
    ) -> None:
        async for blob in blobs:
            await self._warm(blob, patience)

    async def _warm(self, blob: BlobKey, patience: Patience) -> None:
        await self._pace.wait()
        await self._make(blob, patience)
        self._on_done()

    async def _make(self, blob: BlobKey, patience: Patience) -> None:
        presets = self._service.config.presets
        keys = [image_key(presets, name, blob.did, blob.cid) for name in self._presets]
        missing = [key for key in keys if not await self._service.is_cached(key)]
        if not missing:
            self._pace.give_back()
            self.tally.cached += 1
            return
        try:
            failed = await patience.try_for(
                blob.did, partial(self._make_all, blob, missing, patience)
            )
        except (UnsupportedImage, BlobBlocked):
            self.tally.skipped += 1
            return
        except ImageProxyError as error:
            failed = [(blob_url(blob), error)]
        if not failed:
            self.tally.made += 1
        elif all(isinstance(error, UnsupportedImage) for _, error in failed):
            self.tally.skipped += 1
        else:
            self.tally.failed += 1
            self.tally.unsettled += any(not isinstance(error, SETTLED) for _, error in failed)
            for url, why in failed:
                self.tally.failures.add(url, blob.did, why)

    async def _make_all(
        self, blob: BlobKey, keys: Iterable[ImageKey], patience: Patience
    ) -> list[tuple[str, ImageProxyError]]:
        """What could not be made, and why.

        Raises:
            ImageProxyError: the blob could not be had.
        """
        failed: list[tuple[str, ImageProxyError]] = []

        async def make(key: ImageKey) -> None:
            try:
                await make_image(self._service, key, patience)
            except ImageProxyError as error:
                failed.append((image_url(key), error))

        async with self._service.sharing(blob), trio.open_nursery() as nursery:
            for key in keys:
                nursery.start_soon(make, key)
        return failed


async def make_image(service: Service, key: ImageKey, patience: Patience) -> None:
    """Have the result of ``key`` in the cache, or on its way there.

    Raises:
        ImageProxyError: see ``Service.get``.
    """
    await patience.try_for(key.blob.did, partial(service.get, key))
    await service.written()


async def warm_images(
    service: Service,
    keys: Iterable[ImageKey],
    *,
    at_once: int,
    on_done: Callable[[], None] = lambda: None,
) -> Failures:
    """Have results made, of one blob or many. Cancellation leaves what was made.

    Args:
        at_once: results under way.
        on_done: called for each result that is done with.

    Returns:
        What is missing, and why.
    """
    todo, patience = iter(keys), Patience()
    failures = Failures()

    async def work() -> None:
        for key in todo:
            try:
                await make_image(service, key, patience)
            except ImageProxyError as error:
                failures.add(image_url(key), key.blob.did, error)
            on_done()

    async with trio.open_nursery() as nursery:
        for _ in range(at_once):
            nursery.start_soon(work)
    return failures


class Pace:
    """Turns at even distances.

    Args:
        per_second: how many.
    """

    def __init__(self, per_second: float) -> None:
        self._distance = 1 / per_second
        self._next = -1.0

    async def wait(self) -> None:
        """Wait for the next turn. A turn that a cancellation comes in is lost."""
        now = trio.current_time()
        at = max(now, self._next)
        self._next = at + self._distance
        await trio.sleep_until(at)

    def give_back(self) -> None:
        """The last turn was not needed."""
        self._next -= self._distance


class Bookmark:
    """How far a long run has come, in a file, so that the next one goes on there.

    Args:
        folder: of the cache.
        parts: what the run is about; a run about something else has another bookmark.
    """

    def __init__(self, folder: Path, *parts: str) -> None:
        name = hashlib.sha256("\n".join(parts).encode()).hexdigest()[:32]
        self._path = trio.Path(folder / "warm" / f"{name}.json")

    async def load(self) -> str:
        """The cursor; empty where there is none, or none that can be read."""
        try:
            kept = json.loads(await self._path.read_text(encoding="utf-8"))
        except (FileNotFoundError, ValueError):
            return ""
        return kept if isinstance(kept, str) else ""

    async def save(self, cursor: str) -> None:
        """Keep it; a process that is killed meanwhile leaves the cursor before."""
        await self._path.parent.mkdir(parents=True, exist_ok=True)
        new = self._path.with_suffix(".new")
        await new.write_text(json.dumps(cursor), encoding="utf-8")
        await new.replace(self._path)

    async def clear(self) -> None:
        """The run is at its end."""
        await self._path.unlink(missing_ok=True)


async def warm_account(
    service: Service,
    did: Did,
    warmer: Warmer,
    bookmark: Bookmark,
    on_page: Callable[[int], None] = lambda count: None,
) -> None:
    """Warm every blob of an account, page by page, from ``bookmark`` on.

    The bookmark stays at the first page of which another run may make more; the run goes on.
    Cancellation leaves the bookmark at the page that was under way; what of it was made is cached.

    Args:
        on_page: called with the number of blobs of each page before it is worked on.

    Raises:
        ImageProxyError: a page could not be had; see ``Records.blobs``.
        OSError: the bookmark could not be kept.
    """
    cursor = await bookmark.load()
    patience = Patience()
    unsettled = warmer.tally.unsettled
    while True:
        cids, cursor = await patience.try_for(
            did, partial(service.actors.records.blobs, did, cursor)
        )
        on_page(len(cids))
        await warmer.warm(BlobKey(did, cid) for cid in cids)
        may_move = warmer.tally.unsettled == unsettled
        if not cursor:
            if may_move:
                await bookmark.clear()
            return
        if may_move:
            await bookmark.save(cursor)
