"""Fills the cache before requests come, without overloading a PDS."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Awaitable, Callable, Iterable, Iterator, Sequence
from contextlib import nullcontext
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import TypeVar

import trio

from proxy.errors import BlobBlocked, Busy, ImageProxyError, RateLimited, UnsupportedImage
from proxy.model.identifiers import Did
from proxy.model.keys import BlobKey, ImageKey, VideoKey, image_key, poster_key
from proxy.service import Service
from proxy.shared.negative_cache import SETTLED
from proxy.urls import blob_url, image_url

T = TypeVar("T")

SKIPPED = (UnsupportedImage, BlobBlocked)
"""What no run makes: it is no failure of this one."""

BUSY_SECONDS = 5.0
"""Seconds to pause after the service or a PDS is busy, multiplied by the number of the try.

If a PDS gives a duration (``Retry-After``), this pause is added to it.
"""

BUSY_TRIES = 4

MAX_REASONS = 100
"""Reasons of failures that are kept for the report; failures for other reasons are counted."""

MAX_NAMES = 5
"""Failures that are named for each reason; another run tries all failures again."""


class Failures:
    """The missing results, grouped by reason.

    Attributes:
        kinds: the classes of the errors.
    """

    def __init__(self) -> None:
        self.kinds: set[type[ImageProxyError]] = set()
        self._count = 0
        self._counts: dict[str, int] = {}
        self._names: dict[str, list[str]] = {}

    def __len__(self) -> int:
        return self._count

    def add(self, url: str, did: Did, error: ImageProxyError) -> None:
        """Record that the result or blob at ``url`` is missing."""
        self._count += 1
        self.kinds.add(type(error))
        # The URL already names the DID. Without it, a directory that is down is one reason.
        reason = error.explained.replace(f"{did}: ", "")
        if reason not in self._counts and len(self._counts) == MAX_REASONS:
            return
        self._counts[reason] = self._counts.get(reason, 0) + 1
        names = self._names.setdefault(reason, [])
        if len(names) < MAX_NAMES:
            names.append(url)

    def reasons(self) -> Iterator[tuple[str, int, list[str]]]:
        """Yield each reason, how many results failed for it, and the URLs of some of them."""
        for reason, count in self._counts.items():
            yield reason, count, self._names[reason]

    def lines(self, heading: str = "") -> Iterator[str]:
        """Yield the lines of the report: each reason and its count, then the names.

        Args:
            heading: what each reason begins with.
        """
        for reason, count, names in self.reasons():
            yield heading + (reason if count == 1 else f"{reason} ({count} times)")
            yield from (f"  {name}" for name in names)
            if count > len(names):
                yield f"  and {count - len(names)} more"
        if others := self._count - sum(self._counts.values()):
            yield f"{others} more for other reasons"


@dataclass
class Tally:
    """The outcome of a run, counted in blobs; that of a list, in results.

    Attributes:
        made: at least one result is new.
        cached: all results were already cached.
        skipped: the blob is not a supported image, or it is blocked.
        failed: at least one result is missing.
        unsettled: the failed blobs that another run may make.
        failures: each missing result, and the reason.
        skips: what was skipped, and why.
    """

    made: int = 0
    cached: int = 0
    skipped: int = 0
    failed: int = 0
    unsettled: int = 0
    failures: Failures = field(default_factory=Failures)
    skips: Failures = field(default_factory=Failures)


UNNAMED_PAUSE = 60.0
"""Seconds to wait for a PDS that gives no duration: as long as the service caches its refusal."""


class Patience:
    """Waits while the service or a PDS is busy.

    After a wait for a PDS in vain, the patience for that account is used up: no task waits for it
    again until one of its fetches succeeds. A PDS that always refuses costs a run one wait, not
    one wait per blob.

    Args:
        with_pdses: also wait for PDSes that ask for a pause; otherwise only for the service.
    """

    def __init__(self, *, with_pdses: bool = True) -> None:
        self._with_pdses = with_pdses
        self._spent: set[Did] = set()

    async def try_for(self, did: Did, attempt: Callable[[], Awaitable[T]]) -> T:
        """Return the result of ``attempt``, for the account ``did``; retry it if needed.

        Raises:
            ImageProxyError: the error of the last attempt.
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
    """Makes a service produce the results of blobs.

    All presets of a blob are requested together, so that it is fetched once. Of a ``VideoKey`` the
    poster is made, by ``video.preset``.

    Args:
        presets: names of configured presets.
        at_once: blobs in progress at the same time.
        per_second: blobs started per second; cached blobs do not count.
        on_done: called for each finished blob.
        on_present: called for each blob with all of its results.
    """

    def __init__(
        self,
        service: Service,
        presets: Sequence[str],
        *,
        at_once: int,
        per_second: float,
        on_done: Callable[[], None] = lambda: None,
        on_present: Callable[[BlobKey], None] = lambda blob: None,
    ) -> None:
        self._service = service
        self._presets = presets
        self._at_once = at_once
        self._pace = Pace(per_second)
        self._on_done = on_done
        self._on_present = on_present
        # One for the whole run: wait for a PDS that always refuses once, not once per page.
        self._patience = Patience()
        self.tally = Tally()

    async def warm(self, blobs: Iterable[BlobKey]) -> None:
        """Return once every blob is finished. Cancellation keeps the finished results."""
        todo = iter(blobs)
        async with trio.open_nursery() as nursery:
            for _ in range(self._at_once):
                nursery.start_soon(self._work_on, todo, self._patience)

    async def warm_from(self, blobs: trio.MemoryReceiveChannel[BlobKey]) -> None:
        """Like ``warm``, for the blobs that arrive while the channel is open.

        This does not wait for PDSes: the next blobs are on other PDSes, and an untrusted PDS must
        not delay them.
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
        table = self._service.presets.now
        keys: list[ImageKey]
        if isinstance(blob, VideoKey):
            keys = [poster_key(table.by_name, table.poster, *blob)]
        else:
            keys = [image_key(table.by_name, name, *blob) for name in self._presets]
        missing = [key for key in keys if not await self._service.is_cached(key)]
        if not missing:
            self._pace.give_back()
            self.tally.cached += 1
            self._on_present(blob)
            return
        try:
            failed = await patience.try_for(
                blob.did, partial(self._make_all, blob, missing, patience)
            )
        except SKIPPED as error:
            self._skip(blob, error)
            return
        except ImageProxyError as error:
            failed = [(blob_url(blob), error)]
        if not failed:
            self.tally.made += 1
            self._on_present(blob)
        elif all(isinstance(error, UnsupportedImage) for _, error in failed):
            self._skip(blob, failed[0][1])
        else:
            self.tally.failed += 1
            self.tally.unsettled += any(not isinstance(error, SETTLED) for _, error in failed)
            for url, why in failed:
                self.tally.failures.add(url, blob.did, why)

    def _skip(self, blob: BlobKey, error: ImageProxyError) -> None:
        self.tally.skipped += 1
        self.tally.skips.add(blob_url(blob), blob.did, error)

    async def _make_all(
        self, blob: BlobKey, keys: Iterable[ImageKey], patience: Patience
    ) -> list[tuple[str, ImageProxyError]]:
        """Return the results that could not be made, and the reasons.

        Raises:
            ImageProxyError: the blob could not be fetched.
        """
        failed: list[tuple[str, ImageProxyError]] = []

        async def make(key: ImageKey) -> None:
            try:
                await make_image(self._service, key, patience)
            except ImageProxyError as error:
                failed.append((image_url(key), error))

        # A video goes to a file, and only its poster is made.
        is_video = isinstance(blob, VideoKey)
        sharing = nullcontext() if is_video else self._service.sharing(blob)
        async with sharing, trio.open_nursery() as nursery:
            for key in keys:
                nursery.start_soon(make, key)
        return failed


async def make_image(service: Service, key: ImageKey, patience: Patience) -> bool:
    """Make the result of ``key``; it is then in the cache, or queued for it.

    Returns:
        Whether it is new.

    Raises:
        ImageProxyError: see ``Service.get``.
    """
    preset = service.presets.now.of(key)
    image = await patience.try_for(key.blob.did, partial(service.get, key, preset))
    await service.written()
    return image.cache != "hit"


async def warm_images(
    service: Service,
    keys: Iterable[ImageKey],
    *,
    at_once: int,
    on_done: Callable[[], None] = lambda: None,
    on_present: Callable[[ImageKey], None] = lambda key: None,
) -> Tally:
    """Make results of one or more blobs. Cancellation keeps the finished results.

    Args:
        at_once: results in progress at the same time.
        on_done: called for each finished result.
        on_present: called for each result that there is.
    """
    todo, patience = iter(keys), Patience()
    tally = Tally()

    async def work() -> None:
        for key in todo:
            try:
                if await make_image(service, key, patience):
                    tally.made += 1
                else:
                    tally.cached += 1
                on_present(key)
            except SKIPPED as error:
                tally.skipped += 1
                tally.skips.add(image_url(key), key.blob.did, error)
            except ImageProxyError as error:
                tally.failed += 1
                tally.failures.add(image_url(key), key.blob.did, error)
            on_done()

    async with trio.open_nursery() as nursery:
        for _ in range(at_once):
            nursery.start_soon(work)
    return tally


class Pace:
    """Gives turns at even intervals.

    Args:
        per_second: the number of turns per second.
    """

    def __init__(self, per_second: float) -> None:
        self._distance = 1 / per_second
        self._next = -1.0

    async def wait(self) -> None:
        """Wait for the next turn. On cancellation the turn is lost."""
        now = trio.current_time()
        at = max(now, self._next)
        self._next = at + self._distance
        await trio.sleep_until(at)

    def give_back(self) -> None:
        """Return the last turn, because it was not needed."""
        self._next -= self._distance


class Bookmark:
    """Stores the progress of a long run in a file, so that the next run continues there.

    Args:
        folder: the cache folder.
        parts: identify the subject of the run; another subject has another bookmark.
    """

    def __init__(self, folder: Path, *parts: str) -> None:
        name = hashlib.sha256("\n".join(parts).encode()).hexdigest()[:32]
        self._path = trio.Path(folder / "warm" / f"{name}.json")

    async def load(self) -> str:
        """Return the cursor; empty if it is missing or unreadable."""
        try:
            kept = json.loads(await self._path.read_text(encoding="utf-8"))
        except (FileNotFoundError, ValueError):
            return ""
        return kept if isinstance(kept, str) else ""

    async def save(self, cursor: str) -> None:
        """Save the cursor; if the process is killed meanwhile, the previous cursor stays."""
        await self._path.parent.mkdir(parents=True, exist_ok=True)
        new = self._path.with_suffix(".new")
        await new.write_text(json.dumps(cursor), encoding="utf-8")
        await new.replace(self._path)

    async def clear(self) -> None:
        """Delete the bookmark, because the run is complete."""
        await self._path.unlink(missing_ok=True)


async def warm_account(
    service: Service,
    did: Did,
    warmer: Warmer,
    bookmark: Bookmark,
    on_page: Callable[[int], None] = lambda count: None,
) -> None:
    """Warm every blob of an account, page by page, from ``bookmark`` on.

    The bookmark stays at the first page for which another run may make more; the run continues.
    Cancellation leaves the bookmark at the current page; the page's finished results are cached.

    Args:
        on_page: called with the number of blobs of each page before the page is processed.

    Raises:
        ImageProxyError: a page could not be fetched; see ``Records.blobs``.
        OSError: the bookmark could not be saved.
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
