"""The processor against others: CPU time, bytes, SSIM and peak memory, in one run.

    python -m bench.process            # JPEG and WebP, the six first presets, five rounds
    python -m bench.process --formats avif png   # AVIF of photographs; PNG of screenshots to PNG
    python -m bench.process --quick    # three photographs, two rounds; with AVIF one of each
    python -m bench.process --efforts  # the effort settings of WebP and AVIF (docs/encoders.md)
    python -m bench.process --together # six presets of one picture at once against one by one

Each engine is one process with one thread of work; the engines take turns on every picture, so
that a busy machine slows them alike. The time of a picture is its fastest round; the ratio's spread
is over the rounds. PNGs are made of drawn pictures that are PNGs, all else of photographs. An AVIF
has the quality that each engine takes for that of a JPEG: the preset's less 20. SSIMULACRA2 is
measured where cargo can build ``bench/ssimulacra2``. Both it and SSIM are against a Lanczos
resampling of the full decode in floats. The code is 0 whatever the times are.
"""

from __future__ import annotations

import argparse
import json
import math
import os
import struct
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from io import BytesIO
from pathlib import Path
from statistics import fmean
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image
from rich.console import Console
from rich.table import Table

from bench import plot, process_inputs, report
from bench.process_worker import geometry
from bench.processes import BenchError
from proxy.imaging.pipeline import render_each
from proxy.imaging.recipes import Recipe
from proxy.imaging.workers.main import keep_freed_memory
from proxy.model.presets import DEFAULT_PRESETS, Preset

PRESETS = ("avatar", "avatar_small", "banner", "content_preview", "content_full",
           "embed_thumbnail")  # fmt: skip
GOALS = {"jpeg": 0.55, "webp": 0.75, "avif": 0.8, "png": 0.7}
ONLY = {"imaging": ("jpeg",), "thumbor": ("jpeg", "webp")}
"""Engines that do not make every format."""
WORKER = Path(__file__).with_name("process_worker.py")
PLOT = Path("build/bench-process.svg")

Plane = NDArray[np.float64]


class Engine:
    """A worker process, asked one job at a time."""

    def __init__(self, name: str, command: Sequence[str]) -> None:
        self.name = name
        self.formats = ONLY.get(name, tuple(GOALS))
        self.peak_mb = 0.0
        # numpy's and libvips' own threads off, wherever they might start some.
        single = {"VIPS_CONCURRENCY": "1", "OMP_NUM_THREADS": "1", "UV_THREADPOOL_SIZE": "1"}
        self._process = subprocess.Popen(
            command,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            env={**os.environ, **single},
        )

    def run(self, job: Mapping[str, object]) -> dict[str, float]:
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        try:
            self._process.stdin.write(json.dumps(job) + "\n")
            self._process.stdin.flush()
        except BrokenPipeError as error:
            raise BenchError(f"{self.name} has ended") from error
        line = self._process.stdout.readline()
        if not line:
            raise BenchError(f"{self.name} failed on {job}")
        answer: dict[str, float] = json.loads(line)
        return answer

    def close(self) -> None:
        """End the process and learn its peak memory."""
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        self._process.stdin.close()
        self._process.stdout.close()
        _, _, usage = os.wait4(self._process.pid, 0)
        unit = 1 << 20 if sys.platform == "darwin" else 1 << 10
        self.peak_mb = usage.ru_maxrss / unit
        self._process.returncode = 0  # waited for here, so that nobody else does


@dataclass
class Figures:
    """What one engine did for one preset and format: a list per photograph."""

    rounds: list[list[float]] = field(default_factory=list)
    bytes: list[float] = field(default_factory=list)
    ssim: list[float] = field(default_factory=list)
    ssimulacra2: list[float] = field(default_factory=list)

    @property
    def cpu_ms(self) -> float:
        return fmean(min(times) for times in self.rounds)

    def cpu_of_round(self, number: int) -> float:
        return fmean(times[number] for times in self.rounds)


def job_of(preset: Preset, format_: str, source: Path, result: Path | None) -> dict[str, object]:
    shape = preset.model_dump(include={"width", "height", "fit", "quality"})
    written = None if result is None else str(result)
    return {**shape, "format": format_, "source": str(source), "result": written}


def reference(source: Path, job: dict[str, Any]) -> NDArray[np.float64]:
    """The picture that all are compared with: never rounded, never decoded at a fraction."""
    with Image.open(source) as opened:
        image = opened.convert("RGB")
    box, size = geometry(job, *image.size)
    left, top, right, bottom = box
    lanczos = Image.Resampling.LANCZOS
    bands = [
        band.convert("F").resize(size, lanczos, box=(left, top, right, bottom))
        for band in image.split()
    ]
    return np.dstack([np.asarray(band) for band in bands]).astype(np.float64)


class Judge:
    """The program that compares pictures by SSIMULACRA2, asked one pair at a time."""

    def __init__(self, command: Sequence[str]) -> None:
        self._folder = tempfile.TemporaryDirectory()
        self._process = subprocess.Popen(
            command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
        )

    def score(self, wanted: Plane, data: bytes) -> float:
        """Return 100 for what is equal; 90 looks equal, 70 good and 50 fair."""
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        with Image.open(BytesIO(data)) as image:
            shown = np.asarray(image.convert("RGB"))
        files = [Path(self._folder.name, name) for name in ("wanted", "shown")]
        for file, pixels in zip(files, (wanted, shown), strict=True):
            height, width, _ = pixels.shape
            file.write_bytes(struct.pack("<II", width, height) + pixels.astype("<f4").tobytes())
        self._process.stdin.write("\n".join(map(str, files)) + "\n")
        self._process.stdin.flush()
        return float(self._process.stdout.readline())

    def close(self) -> None:
        self._process.communicate()
        self._folder.cleanup()


def start_judge(console: Console) -> Judge | None:
    try:
        return Judge(process_inputs.ssimulacra2())
    except BenchError as error:
        console.print(f"without SSIMULACRA2: {error}")
        return None


LUMA = np.array([0.299, 0.587, 0.114])


def ssim(wanted: Plane, data: bytes) -> float:
    """Structural similarity of the lumas, uniform windows of 7 x 7."""
    with Image.open(BytesIO(data)) as image:
        b = np.asarray(image.convert("RGB")).astype(np.float64) @ LUMA
    a = wanted @ LUMA
    mean_a, mean_b = _windows(a), _windows(b)
    var_a, var_b = _windows(a * a) - mean_a**2, _windows(b * b) - mean_b**2
    covariance = _windows(a * b) - mean_a * mean_b
    c1, c2 = (0.01 * 255) ** 2, (0.03 * 255) ** 2
    top = (2 * mean_a * mean_b + c1) * (2 * covariance + c2)
    return float((top / ((mean_a**2 + mean_b**2 + c1) * (var_a + var_b + c2))).mean())


def _windows(plane: Plane, side: int = 7) -> Plane:
    sums = np.pad(plane, ((1, 0), (1, 0))).cumsum(axis=0).cumsum(axis=1)
    sides: Plane = sums[side:, side:] - sums[:-side, side:] - sums[side:, :-side]
    means: Plane = (sides + sums[:-side, :-side]) / side**2
    return means


def geometric_mean(values: Sequence[float]) -> float:
    return math.exp(fmean(math.log(value) for value in values))


Results = dict[tuple[str, str, str], Figures]
"""By format, preset and engine."""


def measure(
    engines: Sequence[Engine],
    photographs: Sequence[Path],
    formats: Sequence[str],
    rounds: int,
    judge: Judge | None,
) -> Results:
    results: Results = {}
    drawn = process_inputs.drawings() if "png" in formats else []
    total = sum(len(PRESETS) * len(drawn if each == "png" else photographs) for each in formats)
    with tempfile.TemporaryDirectory() as folder, report.progress(total) as bar:
        for format_ in formats:
            for name in PRESETS:
                for source in drawn if format_ == "png" else photographs:
                    bar.update(bar.task_ids[0], description=f"{format_} {name}")
                    able = [engine for engine in engines if format_ in engine.formats]
                    where = Path(folder)
                    _one_picture(able, where, format_, name, source, rounds, results, judge)
                    bar.advance(bar.task_ids[0])
    return results


def _one_picture(
    engines: Sequence[Engine],
    folder: Path,
    format_: str,
    name: str,
    source: Path,
    rounds: int,
    results: Results,
    judge: Judge | None,
) -> None:
    preset = DEFAULT_PRESETS[name]
    wanted = reference(source, job_of(preset, format_, source, None))
    times: dict[str, list[float]] = {engine.name: [] for engine in engines}
    for number in range(rounds + 1):
        for engine in engines:
            # The first round warms caches, and its result is looked at.
            result = folder / engine.name if number == 0 else None
            answer = engine.run(job_of(preset, format_, source, result))
            if number:
                times[engine.name].append(answer["cpu_ms"])
                continue
            figures = results.setdefault((format_, name, engine.name), Figures())
            figures.bytes.append(answer["bytes"])
            made = (folder / engine.name).read_bytes()
            figures.ssim.append(ssim(wanted, made))
            if judge is not None:
                figures.ssimulacra2.append(judge.score(wanted, made))
    for engine in engines:
        results[format_, name, engine.name].rounds.append(times[engine.name])


def show(
    console: Console, results: Results, engines: Sequence[Engine], format_: str, rounds: int
) -> None:
    names = [engine.name for engine in engines if format_ in engine.formats]
    table = Table(title=f"{format_}: CPU ms, bytes and SSIM per picture, means")
    table.add_column("preset")
    table.add_column("engine")
    for title in ("CPU ms", "of sharp's", "KB", "of sharp's", "SSIM", "SSIMULACRA2"):
        table.add_column(title, justify="right")
    for preset in PRESETS:
        base = results.get((format_, preset, "sharp"))
        for name in names:
            own = results[format_, preset, name]
            time_ratio, byte_ratio = "", ""
            if base is not None:
                time_ratio = f"{own.cpu_ms / base.cpu_ms:.2f}"
                pairs = zip(own.bytes, base.bytes, strict=True)
                byte_ratio = f"{geometric_mean([a / b for a, b in pairs]):.3f}"
            table.add_row(
                preset if name == names[0] else "",
                name,
                f"{own.cpu_ms:.1f}",
                time_ratio,
                f"{fmean(own.bytes) / 1000:.1f}",
                byte_ratio,
                f"{fmean(own.ssim):.5f}",
                f"{fmean(own.ssimulacra2):.2f}" if own.ssimulacra2 else "",
                end_section=name == names[-1],
            )
    console.print(table)
    if "sharp" not in names:
        return
    for name in names:
        if name == "sharp":
            continue
        ratio = _ratio(results, format_, name, None)
        spread = report.spread((_ratio(results, format_, name, at) for at in range(rounds)), ".3f")
        goal = f"; the goal is {GOALS[format_]}" if name == "ours" else ""
        console.print(
            f"{format_}: {name} takes {ratio:.3f} of sharp's CPU time, geometric mean of the "
            f"presets; by round {spread}{goal}"
        )


def _ratio(results: Results, format_: str, name: str, number: int | None) -> float:
    ratios = []
    for preset in PRESETS:
        own, base = results[format_, preset, name], results[format_, preset, "sharp"]
        if number is None:
            ratios.append(own.cpu_ms / base.cpu_ms)
        else:
            ratios.append(own.cpu_of_round(number) / base.cpu_of_round(number))
    return geometric_mean(ratios)


def draw(results: Results, names: Sequence[str], file: Path) -> str:
    formats = sorted({format_ for format_, _, _ in results})
    figure = plot.figure_of(10, 4 * len(formats))
    if figure is None:
        return plot.MISSING
    for axes, format_ in zip(
        figure.subplots(len(formats), 1, squeeze=False)[:, 0], formats, strict=True
    ):
        width = 0.8 / len(names)
        for place, name in enumerate(names):
            if (format_, PRESETS[0], name) not in results:
                continue
            heights = [results[format_, preset, name].cpu_ms for preset in PRESETS]
            spots = [at + place * width for at in range(len(PRESETS))]
            axes.bar(spots, heights, width, label=name)
        axes.set_xticks([at + 0.4 - width / 2 for at in range(len(PRESETS))], PRESETS)
        axes.set_ylabel("CPU ms a picture")
        axes.set_title(format_)
        axes.legend()
    return plot.save(figure, file)


def efforts(console: Console, sources: Sequence[Path], rounds: int) -> None:
    """Encode ``content_preview``'s result with every effort that a server could want."""
    preset = DEFAULT_PRESETS["content_preview"]
    settings: list[tuple[str, dict[str, int]]] = [
        *(("webp", {"quality": preset.quality, "method": method}) for method in range(7)),
        *(
            ("avif", {"quality": preset.quality - 20, "speed": speed, "max_threads": 1})
            for speed in range(4, 11)
        ),
    ]
    table = Table(title="WebP and AVIF of content_preview (800 wide, quality 80)")
    for title in ("format", "effort", "CPU ms", "KB", "SSIM"):
        table.add_column(title, justify="right")
    pictures = []
    for source in sources:
        wanted = reference(source, job_of(preset, "jpeg", source, None))
        pixels = np.clip(np.round(wanted), 0, 255).astype(np.uint8)
        pictures.append((Image.fromarray(pixels), wanted))
    with report.progress(len(settings)) as bar:
        for format_, options in settings:
            times, sizes, likeness = [], [], []
            for image, wanted in pictures:
                spent = []
                for _ in range(rounds):
                    out = BytesIO()
                    before = time.process_time()
                    image.save(out, format_, **options)
                    spent.append((time.process_time() - before) * 1000)
                times.append(min(spent))
                sizes.append(len(out.getvalue()) / 1000)
                likeness.append(ssim(wanted, out.getvalue()))
            effort = next(f"{key} {options[key]}" for key in ("method", "speed") if key in options)
            row = (f"{fmean(times):.1f}", f"{fmean(sizes):.1f}", f"{fmean(likeness):.4f}")
            table.add_row(format_, effort, *row)
            bar.update(bar.task_ids[0], description=f"{format_} {effort}")
            bar.advance(bar.task_ids[0])
    console.print(table)


TOGETHER: dict[str, dict[str, int]] = {
    "JPEG": {},
    "PNG": {"compress_level": 6},
    "WEBP": {"quality": 85, "method": 4},
    "AVIF": {"quality": 75, "speed": 8},
}
"""How sources of each format are stored; JPEGs are the photographs themselves."""


def together(console: Console, sources: Sequence[Path], rounds: int) -> None:
    """Six presets of a picture in one job against six jobs, by the format of the source."""
    keep_freed_memory()  # as every worker does
    recipes = [Recipe(preset=DEFAULT_PRESETS[name], output=None) for name in PRESETS]
    ways = [[[recipe] for recipe in recipes], [recipes]]
    table = report.table(
        f"CPU time of six presets of one picture: {report.SPREAD} of the rounds",
        ("source", "one by one, ms", "together, ms", "together / one by one"),
    )
    with report.progress(len(TOGETHER) * (rounds + 1)) as bar:
        for format_, options in TOGETHER.items():
            pictures = [_stored_as(source, format_, options) for source in sources]
            means: list[list[float]] = []
            for number in range(rounds + 1):
                bar.update(bar.task_ids[0], description=format_)
                # The ways take turns on every picture, and each is first as often as second.
                order = (0, 1) if number % 2 else (1, 0)
                spent = [
                    {way: _cpu_ms(picture, ways[way]) for way in order} for picture in pictures
                ]
                means.append([fmean(times[way] for times in spent) for way in (0, 1)])
                bar.advance(bar.task_ids[0])
            apart, at_once = zip(*means[1:], strict=True)  # the first round warms caches
            ratios = [b / a for a, b in zip(apart, at_once, strict=True)]
            figures = (report.spread(apart), report.spread(at_once), report.spread(ratios, ".3f"))
            table.add_row(format_, *figures)
    console.print(table)


def _cpu_ms(picture: bytes, jobs: Sequence[Sequence[Recipe]]) -> float:
    before = time.process_time()
    for job in jobs:
        for made in render_each(picture, job, max_pixels=50_000_000):
            if isinstance(made, Exception):
                raise made
    return (time.process_time() - before) * 1000


def _stored_as(source: Path, format_: str, options: Mapping[str, int]) -> bytes:
    if not options:
        return source.read_bytes()
    out = BytesIO()
    with Image.open(source) as image:
        image.save(out, format_, **options)
    return out.getvalue()


def start(console: Console) -> list[Engine]:
    """Every engine that can be had here; what is missing is said."""
    commands: dict[str, Callable[[], list[str]]] = {
        "ours": lambda: [sys.executable, str(WORKER), "ours"],
        "pillow": lambda: [sys.executable, str(WORKER), "pillow"],
        "sharp": process_inputs.sharp,
        "thumbor": lambda: process_inputs.thumbor(WORKER),
        "imaging": process_inputs.imaging,
    }
    engines = []
    for name, command in commands.items():
        try:
            engines.append(Engine(name, command()))
        except BenchError as error:
            console.print(f"without {name}: {error}")
    return engines


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m bench.process", description=__doc__)
    parser.add_argument("--quick", action="store_true", help="three photographs, two rounds")
    parser.add_argument("--efforts", action="store_true", help="WebP and AVIF effort settings")
    parser.add_argument("--together", action="store_true", help="six presets of one picture")
    parser.add_argument("--rounds", type=int, default=0, help="of each picture; default 5")
    parser.add_argument("--formats", nargs="+", choices=sorted(GOALS), default=["jpeg", "webp"])
    parser.add_argument("--plot", type=Path, default=PLOT, help=f"default {PLOT}")
    options = parser.parse_args()
    console = report.output()
    sources, origin = process_inputs.photographs()
    rounds = options.rounds or (2 if options.quick else 5)
    if options.quick:
        sources = sources[:3]
        if "avif" in options.formats:  # sharp takes seconds for each
            sources, rounds = sources[:1], 1
    settings = {"photographs": f"{len(sources)}, {origin}", "rounds": rounds}
    report.print_settings(console, settings)
    if options.efforts:
        efforts(console, sources, rounds)
        return 0
    if options.together:
        together(console, sources, rounds)
        return 0
    engines = start(console)
    judge = start_judge(console)
    try:
        results = measure(engines, sources, options.formats, rounds, judge)
    except BenchError as error:
        console.print(f"failed: {error}")
        return 1
    finally:
        for engine in engines:
            engine.close()
        if judge is not None:
            judge.close()
    for format_ in options.formats:
        show(console, results, engines, format_, rounds)
    peaks = ", ".join(f"{engine.name} {engine.peak_mb:.0f}" for engine in engines)
    console.print(f"peak memory of the process, MB: {peaks}")
    console.print(draw(results, [engine.name for engine in engines], options.plot))
    return 0


if __name__ == "__main__":
    sys.exit(main())
