"""One engine of the processor's benchmark: a job a line in, an answer a line out.

A job: ``source``, ``width``, ``height`` (0: by width alone), ``fit``, ``quality``, ``format``
(``jpeg``, ``webp``, ``avif`` or ``png``), ``result`` (where to write it; null: nowhere). An answer:
``cpu_ms`` of all threads, ``bytes``. Reading and writing files is not counted.

Runs as a script with the Python of the engine's own environment: no imports from this project
unless the engine is this project.
"""

from __future__ import annotations

import json
import math
import sys
import time
from collections.abc import Callable
from importlib import import_module
from io import BytesIO
from pathlib import Path
from types import SimpleNamespace
from typing import Any

Job = dict[str, Any]
Engine = Callable[[bytes, Job], bytes]


def geometry(job: Job, width: int, height: int) -> tuple[tuple[float, ...], tuple[int, int]]:
    """The region of the source and the size of the result."""
    if job["fit"] == "cover":
        scale = max(job["width"] / width, job["height"] / height)
        across, down = min(job["width"] / scale, width), min(job["height"] / scale, height)
        left, top = (width - across) / 2, (height - down) / 2
        return (left, top, left + across, top + down), (job["width"], job["height"])
    scale = min(job["width"] / width, (job["height"] or height) / height, 1)
    return (0, 0, width, height), (round(width * scale), round(height * scale))


def ours() -> Engine:
    sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
    render = import_module("proxy.imaging.pipeline").render
    preset_of = import_module("proxy.model.presets").Preset
    formats = import_module("proxy.model.formats").Format
    import_module("proxy.imaging.workers.main").keep_freed_memory()  # as every worker does

    def run(source: bytes, job: Job) -> bytes:
        shape = {name: job[name] for name in ("width", "height", "fit", "quality")}
        output = formats[job["format"].upper()]
        result: bytes = render(source, preset_of(**shape), output, max_pixels=50_000_000).data
        return result

    return run


def pillow() -> Engine:
    """As its documentation suggests: draft, Lanczos, a reducing gap of 2, optimised tables."""
    images = import_module("PIL.Image")

    def run(source: bytes, job: Job) -> bytes:
        image = images.open(BytesIO(source))
        width, height = image.size
        box, size = geometry(job, width, height)
        wanted = (
            math.ceil(2 * width * size[0] / (box[2] - box[0])),
            math.ceil(2 * height * size[1] / (box[3] - box[1])),
        )
        image.draft(None, wanted)
        across, down = image.width / width, image.height / height
        box = (box[0] * across, box[1] * down, box[2] * across, box[3] * down)
        image = image.resize(size, images.Resampling.LANCZOS, box=box, reducing_gap=2.0)
        out = BytesIO()
        options = {
            "jpeg": {"optimize": True, "quality": job["quality"]},
            "webp": {"quality": job["quality"]},
            "avif": {"quality": max(job["quality"] - 20, 1), "max_threads": 1},
            "png": {},
        }
        image.save(out, job["format"], **options[job["format"]])
        return out.getvalue()

    return run


def thumbor() -> Engine:
    """Its Pillow engine, called as its transformer does: crop to the shape, then resize."""
    engines, config = import_module("thumbor.engines.pil"), import_module("thumbor.config").Config
    settings = config()

    def run(source: bytes, job: Job) -> bytes:
        context = SimpleNamespace(config=settings, request=None, metrics=None)
        engine = engines.Engine(context)
        engine.load(source, ".jpg")
        box, size = geometry(job, *engine.size)
        if job["fit"] == "cover":
            engine.crop(*(round(edge) for edge in box))
        engine.resize(*size)
        suffix = {"jpeg": ".jpg", "webp": ".webp"}[job["format"]]
        result: bytes = engine.read(suffix, job["quality"])
        return result

    return run


ENGINES = {"ours": ours, "pillow": pillow, "thumbor": thumbor}


def main() -> None:
    run = ENGINES[sys.argv[1]]()
    for line in sys.stdin:
        job = json.loads(line)
        source = Path(job["source"]).read_bytes()
        before = time.process_time()
        made = run(source, job)
        spent = time.process_time() - before
        if job["result"]:
            Path(job["result"]).write_bytes(made)
        print(json.dumps({"cpu_ms": spent * 1000, "bytes": len(made)}), flush=True)


if __name__ == "__main__":
    main()
