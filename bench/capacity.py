"""What a picture costs to make and to keep: CPU time and bytes of each default preset.

    python -m bench.capacity
    python -m bench.capacity --pngs

Of photographs of three megapixels, each preset alone, the fastest of three tries. By these
figures an operator chooses ``cache.max_gb`` and processors (docs/benchmarks.md).

``--pngs`` tells what a format in the URL saves: the bytes of the same photographs, saved as PNGs.
"""

from __future__ import annotations

import argparse
import io
import time
from collections.abc import Sequence
from pathlib import Path

from PIL import Image
from rich.console import Console

from bench import process_inputs, report
from proxy.imaging.pipeline import render
from proxy.imaging.workers.main import keep_freed_memory
from proxy.model.formats import Format
from proxy.model.presets import DEFAULT_PRESETS, Preset

TRIES = 3

FORMATS = (Format.JPEG, Format.WEBP, Format.AVIF)

PNG_PRESETS = ("content_preview", "content_full")

MAX_PIXELS = 50_000_000


def cost(source: Path, preset: Preset, format_: Format) -> tuple[float, int]:
    """CPU milliseconds and bytes of one result."""
    data = source.read_bytes()
    spent = []
    for _ in range(TRIES):
        before = time.process_time()
        made = render(data, preset, format_, max_pixels=MAX_PIXELS)
        spent.append(time.process_time() - before)
    return min(spent) * 1000, len(made.data)


def as_png(source: Path) -> bytes:
    """A photograph as an editor or a screenshot tool saves it."""
    out = io.BytesIO()
    with Image.open(source) as image:
        image.save(out, "PNG")
    return out.getvalue()


def show_pngs(console: Console, sources: Sequence[Path]) -> None:
    """Bytes with each format in the URL, and without one."""
    outputs = (None, *FORMATS)
    columns = ("the file", "without a format", *(f"@{each}" for each in FORMATS))
    table = report.table(
        f"A photograph that is a PNG, KB: {report.SPREAD} of the photographs", ("preset", *columns)
    )
    pngs = [as_png(source) for source in sources]
    with report.progress(len(PNG_PRESETS) * len(pngs)) as bar:
        for name in PNG_PRESETS:
            rows = []
            for png in pngs:
                made = (
                    render(png, DEFAULT_PRESETS[name], each, max_pixels=MAX_PIXELS)
                    for each in outputs
                )
                rows.append([len(png), *(len(each.data) for each in made)])
                bar.advance(bar.task_ids[0])
            sizes = zip(*rows, strict=True)
            table.add_row(name, *(report.spread((n / 1000 for n in each), ".0f") for each in sizes))
    console.print(table)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--pngs", action="store_true", help="only what a format in the URL saves")
    console = report.output()
    only_pngs = parser.parse_args().pngs
    sources, origin = process_inputs.photographs()
    report.print_settings(console, {"photographs": f"{len(sources)}, {origin}"})
    keep_freed_memory()  # as every worker does
    if only_pngs:
        show_pngs(console, sources)
    else:
        show_costs(console, sources)


def show_costs(console: Console, sources: Sequence[Path]) -> None:
    """CPU time and bytes of each preset and format."""
    columns = [f"{format_}: {what}" for format_ in FORMATS for what in ("KB", "CPU ms")]
    table = report.table(
        f"A result of each preset: {report.SPREAD} of the photographs", ("preset", *columns)
    )
    with report.progress(len(DEFAULT_PRESETS) * len(FORMATS)) as bar:
        for name, preset in DEFAULT_PRESETS.items():
            row = [name]
            for format_ in FORMATS:
                bar.update(bar.task_ids[0], description=f"{name}, {format_}")
                spent, sizes = zip(
                    *(cost(source, preset, format_) for source in sources), strict=True
                )
                row.append(report.spread((size / 1000 for size in sizes), ".0f"))
                row.append(report.spread(spent, ".0f"))
                bar.advance(bar.task_ids[0])
            table.add_row(*row)
    console.print(table)


if __name__ == "__main__":
    main()
