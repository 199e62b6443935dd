"""What the sandbox costs: transforms in worker processes against transforms in threads.

Both pools exist at once and take turns, round by round, with as many transforms under way as there
are threads. No network is involved. Exits with 1 when the sandbox is slower than its goal.
"""

from __future__ import annotations

import argparse
import io
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import AsyncExitStack
from dataclasses import dataclass, field
from statistics import geometric_mean, median

import trio
from PIL import Image

from bench import report
from bench.pictures import Pictures, Size
from proxy.config import Config
from proxy.imaging.workers.main import keep_freed_memory
from proxy.imaging.workers.pool import ProcessingPool
from proxy.model.formats import Format
from proxy.model.presets import DEFAULT_PRESETS
from proxy.shared.machine import cpus_of_this_process

GOAL = 0.95
"""Of the throughput of threads."""

MODES = ("thread", "sandbox")


@dataclass(frozen=True, slots=True)
class Work:
    """One kind of transform, and what each round brought, in transforms per second."""

    name: str
    source: bytes
    preset: str
    output: Format | None
    rates: dict[str, list[float]] = field(default_factory=lambda: {mode: [] for mode in MODES})

    @property
    def ratios(self) -> list[float]:
        """Sandbox to thread, by round."""
        pairs = zip(self.rates["sandbox"], self.rates["thread"], strict=True)
        return [sandbox / thread for sandbox, thread in pairs]


def works() -> list[Work]:
    """Phones' pictures in JPEG through most presets, and one of each other format."""
    cids = (pictures := Pictures(1, Size(2000, 1500))).cids
    jpeg = pictures.get(cids[0])
    assert jpeg is not None
    presets = ("avatar", "avatar_small", "banner", "content_preview", "content_full")
    found = [Work(f"JPEG, {preset}", jpeg, preset, None) for preset in presets]
    with Image.open(io.BytesIO(jpeg)) as image:
        small = image.resize((1000, 750))
    for format_ in (Format.PNG, Format.WEBP, Format.AVIF):
        out = io.BytesIO()
        small.save(out, format_.name)
        found.append(Work(f"{format_.name}, avatar_small", out.getvalue(), "avatar_small", None))
    found.append(Work("JPEG, avatar_small as WebP", jpeg, "avatar_small", Format.WEBP))
    return found


async def rate(pool: ProcessingPool, work: Work, seconds: float, threads: int) -> float:
    """Transforms per second, over about so many seconds."""
    began = time.perf_counter()
    finished: list[float] = []

    async def go() -> None:
        # A copy each: calls for the same object would share a job and a decode.
        source = bytes(bytearray(work.source))
        while time.perf_counter() - began < seconds:
            await pool.process(source, DEFAULT_PRESETS[work.preset], work.output)
            finished.append(time.perf_counter())

    async with trio.open_nursery() as nursery:
        for _ in range(threads):
            nursery.start_soon(go)
    return len(finished) / (finished[-1] - began)


async def measure(
    found: list[Work], rounds: int, seconds: float, on_step: Callable[[str], None]
) -> None:
    """Fill in the rates of ``found``."""
    threads = cpus_of_this_process()
    # Workers have it too: what is compared is the isolation alone.
    keep_freed_memory()
    pools = {
        mode: ProcessingPool(
            Config.model_validate({"process": {"isolation": mode, "queue_wait": 60}})
        )
        for mode in MODES
    }
    async with AsyncExitStack() as stack:
        nursery = await stack.enter_async_context(trio.open_nursery())
        for pool in pools.values():
            await nursery.start(pool.run)
        for work in found:
            for pool in pools.values():
                await rate(pool, work, 0.1, threads)
        for number in range(rounds):
            # Each goes first as often as second: machines slow down as they warm up.
            order = MODES if number % 2 else MODES[::-1]
            for work in found:
                on_step(work.name)
                for mode in order:
                    work.rates[mode].append(await rate(pools[mode], work, seconds, threads))
        nursery.cancel_scope.cancel()


def rows(found: list[Work]) -> Iterator[tuple[str, ...]]:
    for work in found:
        yield (
            work.name,
            report.spread(work.rates["thread"]),
            report.spread(work.rates["sandbox"]),
            report.spread(work.ratios, ".3f"),
        )


def main() -> int:
    """The benchmark as a command."""
    parser = argparse.ArgumentParser(description="The sandbox against threads.")
    parser.add_argument("--quick", action="store_true", help="less than half a minute, no verdict")
    parser.add_argument("--rounds", type=int, default=12)
    parser.add_argument("--seconds", type=float, default=1.0, help="of each mode in a round")
    options = parser.parse_args()
    rounds, seconds = (2, 0.3) if options.quick else (options.rounds, options.seconds)
    console = report.output()
    found = works()
    with report.progress(rounds * len(found)) as bar:
        (task,) = bar.task_ids

        def step(name: str) -> None:
            bar.update(task, description=name)
            bar.advance(task)

        trio.run(measure, found, rounds, seconds, step)
    settings = {"rounds": f"{rounds} of {seconds:g} s", "under way": cpus_of_this_process()}
    report.print_settings(console, settings)
    columns = ("transforms per second", "thread", "sandbox", "sandbox / thread")
    table = report.table(report.SPREAD, columns)
    for row in rows(found):
        table.add_row(*row)
    console.print(table)
    overall = geometric_mean(median(work.ratios) for work in found)
    console.print(f"Geometric mean of the medians: {overall:.3f}; the goal is {GOAL} or more.")
    return 1 if overall < GOAL and not options.quick else 0


if __name__ == "__main__":
    sys.exit(main())
