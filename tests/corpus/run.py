"""Takes files one after the other through the service and both references."""

from __future__ import annotations

import tempfile
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import pyvips
import trio

from tests.corpus.browser import Eyes, Shown, eyes
from tests.corpus.cases import Case
from tests.corpus.judge import Answer, Difference, Source, frames_at, judge, moments
from tests.corpus.service import QUESTIONS, Question, Service, service
from tests.imaging import reference
from tests.imaging.sources import Pixels
from tests.processes import Reply

AT_ONCE = 3
"""Files under way: one in the service, one in the browser, one that is compared."""


@dataclass
class Found:
    """What came out of a run.

    Attributes:
        files: how many there were.
        statuses: of the answers.
        sent, received: bytes of the files, and of the answers that are pictures.
        unjudged: files whose pictures no reference knows.
        differences: everything that is wrong, the worst first once the run is over.
    """

    files: int = 0
    statuses: Counter[int] = field(default_factory=Counter)
    sent: int = 0
    received: int = 0
    unjudged: list[str] = field(default_factory=list)
    differences: list[Difference] = field(default_factory=list)


async def run(cases: Sequence[Case], on_done: Callable[[], None]) -> Found:
    """Take every case through a service of its own and a browser.

    Raises:
        NoBrowser: there is no Chromium here.
    """
    found = Found()
    reading, looking = trio.CapacityLimiter(1), trio.CapacityLimiter(1)
    waiting = iter(cases)

    async def take(running: Service, browser: Eyes) -> None:
        for case in waiting:
            data = await trio.to_thread.run_sync(case.read, limiter=reading)
            replies = await running.ask(data, QUESTIONS)
            source, answers = await trio.to_thread.run_sync(
                _look, browser, case, data, replies, limiter=looking
            )
            differences = await trio.to_thread.run_sync(judge, source, answers)
            _count(found, data, replies, source, differences)
            on_done()

    with tempfile.TemporaryDirectory() as folder, eyes() as browser:
        async with service(Path(folder)) as running, trio.open_nursery() as nursery:
            for _ in range(AT_ONCE):
                nursery.start_soon(take, running, browser)
    found.differences.sort(key=lambda each: (-each.weight, each.case, str(each.question)))
    found.unjudged.sort()
    return found


def _count(
    found: Found,
    data: bytes,
    replies: Mapping[Question, Reply],
    source: Source,
    differences: Sequence[Difference],
) -> None:
    found.files += 1
    found.sent += len(data)
    found.statuses.update(reply.status for reply in replies.values())
    found.received += sum(len(reply.body) for reply in replies.values() if reply.status == 200)
    if not source.wanted and any(reply.status == 200 for reply in replies.values()):
        found.unjudged.append(source.case.name)
    found.differences += differences


def _look(
    browser: Eyes, case: Case, data: bytes, replies: Mapping[Question, Reply]
) -> tuple[Source, dict[Question, Answer]]:
    """Show the file and the answers. Blocks."""
    bodies = list({reply.body: None for reply in replies.values() if reply.status == 200})
    shown, *answers = browser.describe([data, *bodies])
    times = moments(shown) if shown is not None and shown.moves else []
    wanted: list[tuple[int, Shown, list[int]]] = []
    for number, each in enumerate([shown, *answers]):
        if each is not None:
            wanted.append((number, each, frames_at(each, times) if times else [0]))
    frames = dict(zip((number for number, *_ in wanted), browser.draw(wanted), strict=True))
    source = Source(case, data, shown, frames.get(0, []), by_vips(data) if shown is None else None)
    of_bodies = {
        body: (each, frames.get(number, []))
        for number, (body, each) in enumerate(zip(bodies, answers, strict=True), start=1)
    }
    return source, {
        question: Answer(reply, *of_bodies.get(reply.body, (None, [])))
        for question, reply in replies.items()
    }


def by_vips(data: bytes) -> Pixels | None:
    """What libvips shows of a file, RGB or RGBA in sRGB; None where it reads nothing."""
    try:
        image = reference.to_srgb(reference.load(data))
        if image.bands < 3:
            image = image[0].bandjoin([image[0], image[0], *image[1:].bandsplit()])
        pixels: Pixels = image.rint().cast("uchar").numpy()
    except pyvips.Error:
        return None
    return pixels
