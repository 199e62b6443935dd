"""What a picture costs to make and to keep: CPU time and bytes of each default preset.

    python -m bench.capacity

Of photographs of three megapixels, each preset alone, the fastest of three tries. By these
figures an operator chooses ``cache.max_gb`` and processors (docs/operations.md).
"""

from __future__ import annotations

import time
from pathlib import Path

from bench import process_inputs, report
from proxy.imaging.pipeline import render
from proxy.imaging.workers.main import keep_freed_memory
from proxy.model.formats import Format
from proxy.model.presets import DEFAULT_PRESETS, Preset

TRIES = 3

FORMATS = (Format.JPEG, Format.WEBP, Format.AVIF)

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


def main() -> None:
    console = report.output()
    sources, origin = process_inputs.photographs()
    report.print_settings(console, {"photographs": f"{len(sources)}, {origin}"})
    keep_freed_memory()  # as every worker does
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
