"""Our encoders beside sharp's where both results look alike: CPU time and bytes, in one run.

    python -m bench.alike                  # AVIF of photographs by the six first presets
    python -m bench.alike --quick          # one photograph, two presets
    python -m bench.alike --formats webp   # another format; jpeg, webp or avif, or several

For each picture ours gets the lowest quality at which its SSIMULACRA2 is not below sharp's, and
both are timed there, in turns. Needs cargo, for ``bench/ssimulacra2``, and Node.js, for sharp.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import fmean

from rich.console import Console

from bench import process_inputs, report
from bench.process import (
    PRESETS,
    WORKER,
    Engine,
    Judge,
    geometric_mean,
    job_of,
    reference,
)
from bench.processes import BenchError
from proxy.model.presets import DEFAULT_PRESETS, Preset

BEST = 100


@dataclass(frozen=True, slots=True)
class Alike:
    """One picture, made by both.

    Attributes:
        quality: ours, of a preset; None: at none it looks as good.
        cpu, size: ours over sharp's.
        theirs, ours: SSIMULACRA2.
    """

    quality: int | None
    cpu: float
    size: float
    theirs: float
    ours: float


def least(low: int, high: int, suffices: Callable[[int], bool]) -> int | None:
    """Return the least of ``low`` to ``high`` that suffices, as all above it do; None if none does.

    Asks for a logarithm of their number.
    """
    if not suffices(high):
        return None
    while low < high:
        middle = (low + high) // 2
        if suffices(middle):
            high = middle
        else:
            low = middle + 1
    return low


def compared(
    ours: Engine,
    sharp: Engine,
    judge: Judge,
    preset: Preset,
    format_: str,
    source: Path,
    times: int,
) -> Alike:
    """Find the quality for one picture, and time both there."""
    wanted = reference(source, job_of(preset, format_, source, None))
    with tempfile.TemporaryDirectory() as folder:
        result = Path(folder, "result")

        def score(engine: Engine, asked: Preset) -> float:
            engine.run(job_of(asked, format_, source, result))
            return judge.score(wanted, result.read_bytes())

        def at(quality: int) -> Preset:
            return preset.model_copy(update={"quality": quality})

        theirs = score(sharp, preset)
        found = least(1, BEST, lambda quality: score(ours, at(quality)) >= theirs)
        chosen = at(found or BEST)
        reached = score(ours, chosen)
    spent: dict[str, list[float]] = {"ours": [], "sharp": []}
    sizes: dict[str, float] = {}
    for _ in range(times):
        for engine, asked in ((ours, chosen), (sharp, preset)):
            answer = engine.run(job_of(asked, format_, source, None))
            spent[engine.name].append(answer["cpu_ms"])
            sizes[engine.name] = answer["bytes"]
    cpu = min(spent["ours"]) / min(spent["sharp"])
    return Alike(found, cpu, sizes["ours"] / sizes["sharp"], theirs, reached)


def show(
    console: Console, format_: str, presets: Sequence[str], found: Sequence[Sequence[Alike]]
) -> None:
    table = report.table(
        f"{format_} of ours that looks as good as sharp's: geometric means of the pictures",
        ("preset", "CPU over sharp's", "bytes over sharp's", "quality", "SSIMULACRA2, sharp's"),
    )
    for name, pictures in zip(presets, found, strict=True):
        qualities = [each.quality or BEST for each in pictures]
        table.add_row(
            name,
            f"{geometric_mean([each.cpu for each in pictures]):.3f}",
            f"{geometric_mean([each.size for each in pictures]):.3f}",
            f"{fmean(qualities):.1f} for {DEFAULT_PRESETS[name].quality}",
            f"{fmean(each.ours for each in pictures):.2f}, "
            f"{fmean(each.theirs for each in pictures):.2f}",
        )
    console.print(table)
    means = [geometric_mean([each.cpu for each in pictures]) for pictures in found]
    console.print(
        f"{format_}: {geometric_mean(means):.3f} of sharp's CPU time where both look alike"
    )
    if misses := sum(each.quality is None for pictures in found for each in pictures):
        console.print(f"{misses} pictures are as good at no quality: those are at {BEST}")


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m bench.alike", description=__doc__)
    parser.add_argument("--quick", action="store_true", help="one photograph, two presets")
    parser.add_argument("--formats", nargs="+", choices=("jpeg", "webp", "avif"), default=["avif"])
    options = parser.parse_args()
    console = report.output()
    sources, origin = process_inputs.photographs()
    presets: Sequence[str] = PRESETS
    times = 3
    sources = sources[:3]
    if options.quick:
        sources, presets, times = sources[:1], ("avatar_small", "banner"), 1
    report.print_settings(console, {"photographs": f"{len(sources)}, {origin}"})
    try:
        judge = Judge(process_inputs.ssimulacra2())
        sharp = Engine("sharp", process_inputs.sharp())
    except BenchError as error:
        console.print(f"failed: {error}")
        return 1
    ours = Engine("ours", [sys.executable, str(WORKER), "ours"])
    try:
        for format_ in options.formats:
            found = []
            with report.progress(len(presets) * len(sources)) as bar:
                for name in presets:
                    preset = DEFAULT_PRESETS[name]
                    bar.update(bar.task_ids[0], description=f"{format_} {name}")
                    pictures = []
                    for source in sources:
                        pictures.append(
                            compared(ours, sharp, judge, preset, format_, source, times)
                        )
                        bar.advance(bar.task_ids[0])
                    found.append(pictures)
            show(console, format_, presets, found)
    finally:
        for each in (ours, sharp, judge):
            each.close()
    return 0


if __name__ == "__main__":
    sys.exit(main())
