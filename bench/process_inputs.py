"""What the processor's benchmark needs from outside: pictures, sharp, thumbor, imaging, and
a program for SSIMULACRA2.

All is kept in ``$XDG_CACHE_HOME/atproto-imageproxy`` (``~/.cache`` without the variable).
"""

from __future__ import annotations

import hashlib
import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw, ImageFont

from bench.processes import BenchError
from tests.processes import cache_folder

SHARP = Path(__file__).resolve().parent / "sharp"
IMAGING = Path(__file__).resolve().parent / "process_worker.go"
SSIMULACRA2 = Path(__file__).resolve().parent / "ssimulacra2"
PACKAGES = ("mate-backgrounds", "plasma-workspace-wallpapers")
MATE = "usr/share/backgrounds/mate/nature/{}.jpg"
PLASMA = "usr/share/wallpapers/{}/contents/images/2560x1600.jpg"
PHOTOGRAPHS = (
    *(
        MATE.format(name)
        for name in ("RainDrops", "Blinds", "Dune", "TwoWings", "Storm", "Wood", "Garden")
    ),
    *(PLASMA.format(name) for name in ("ColorfulCups", "FallenLeaf", "BytheWater")),
)
SIZES = ((2000, 1500), (2000, 1333), (2000, 1125))
QUALITY = 90

Plane = NDArray[np.float64]


def photographs() -> tuple[list[Path], str]:
    """JPEG files of the benchmark's sizes, 4:2:0, and where they come from."""
    folder = cache_folder() / "photographs"
    try:
        return _once(folder, _from_debian), f"Debian's {' and '.join(PACKAGES)}"
    except (OSError, subprocess.CalledProcessError) as error:
        made = _once(folder.with_name("generated"), _generated)
        return made, f"generated ({type(error).__name__} with apt-get or dpkg-deb)"


def _once(folder: Path, make: Callable[[Path, Path], None], pattern: str = "*.jpg") -> list[Path]:
    if not folder.exists():
        folder.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=folder.parent) as building:
            made = Path(building, "made")
            made.mkdir()
            make(Path(building), made)
            made.rename(folder)
    return sorted(folder.glob(pattern))


def _from_debian(building: Path, made: Path) -> None:
    _run(["apt-get", "download", *PACKAGES], building)
    for package in building.glob("*.deb"):
        _run(["dpkg-deb", "-x", str(package), str(building)], building)
    for number, name in enumerate(PHOTOGRAPHS):
        with Image.open(building / name) as image:
            _store(image.convert("RGB"), number, made)


def _generated(_: Path, made: Path) -> None:
    random = np.random.default_rng(1)
    for number in range(6):
        # Noise of every scale, the coarser the stronger, as in nature.
        layers = np.zeros((1500, 2000, 3))
        for step in (1, 4, 16, 64, 256):
            cells = random.normal(0, step**0.6, (1500 // step + 2, 2000 // step + 2, 3))
            spread = np.stack([_enlarged(cells[..., band]) for band in range(3)], axis=-1)
            layers += spread
        low, high = np.percentile(layers, (1, 99))
        pixels = np.clip(255 * (layers - low) / (high - low), 0, 255).astype(np.uint8)
        _store(Image.fromarray(pixels), number, made)


def _enlarged(cells: Plane) -> Plane:
    image = Image.fromarray(cells.astype(np.float32))
    return np.asarray(image.resize((2000, 1500), Image.Resampling.BICUBIC)).astype(np.float64)


def _store(image: Image.Image, number: int, folder: Path) -> None:
    width, height = SIZES[number % len(SIZES)]
    scale = max(width / image.width, height / image.height)
    across, down = width / scale, height / scale
    left, top = (image.width - across) / 2, (image.height - down) / 2
    box = (left, top, left + across, top + down)
    image = image.resize((width, height), Image.Resampling.LANCZOS, box=box)
    image.save(folder / f"{number:02}.jpg", quality=QUALITY, subsampling="4:2:0")


def drawings() -> list[Path]:
    """PNG files as people post them: a screenshot of text, and one with shapes and shades."""
    return _once(cache_folder() / "drawings", _drawn, "*.png")


def _drawn(_: Path, made: Path) -> None:
    for number in range(3):
        image = Image.new("RGB", (1600, 1200), "white")
        draw = ImageDraw.Draw(image)
        if number == 2:
            shades = np.linspace(0, 255, 1600 * 1200 * 3).reshape(1200, 1600, 3).astype(np.uint8)
            image.paste(Image.fromarray(shades))
        random = np.random.default_rng(number)
        font = ImageFont.load_default(18 + 6 * number)
        for line in range(0, 1200, 30 + 10 * number):
            words = (
                "".join(chr(97 + letter) for letter in random.integers(0, 26, length))
                for length in random.integers(2, 11, 24)
            )
            draw.text((40, line), " ".join(words), fill=(20, 20, 40), font=font)
        for _shape in range(12 * number):
            left, top, side = (int(each) for each in random.integers(20, 1000, 3))
            color = tuple(int(each) for each in random.integers(0, 256, 3))
            draw.ellipse((left, top, left + side // 3, top + side // 3), fill=color)
        image.save(made / f"{number:02}.png")


def ssimulacra2() -> list[str]:
    """The program that compares two pictures; built on first use, which takes a minute."""
    sources = sorted(SSIMULACRA2.rglob("*.*"))
    key = hashlib.sha256(b"".join(file.read_bytes() for file in sources)).hexdigest()[:16]
    folder = cache_folder() / f"ssimulacra2-{key}"
    program = folder / "release/ssimulacra2"
    if not program.exists():
        cargo = _find("cargo")
        folder.mkdir(parents=True, exist_ok=True)
        manifest = str(SSIMULACRA2 / "Cargo.toml")
        command = [cargo, "build", "--release", "--manifest-path", manifest]
        _install([*command, "--target-dir", str(folder)])
    return [str(program)]


def sharp() -> list[str]:
    """The command of sharp's worker; installed on first use."""
    node, npm = _find("node"), _find("npm")
    key = hashlib.sha256((SHARP / "package-lock.json").read_bytes()).hexdigest()[:16]
    folder = cache_folder() / f"sharp-{key}"
    if not folder.exists():
        building = folder.with_suffix(".partial")
        shutil.rmtree(building, ignore_errors=True)
        building.mkdir(parents=True)
        for name in ("package.json", "package-lock.json", ".npmrc"):
            shutil.copy(SHARP / name, building)
        _install([npm, "ci", "--ignore-scripts", "--no-audit", "--no-fund"], building)
        building.rename(folder)
    return [node, str(SHARP / "worker.mjs"), str(folder)]


def thumbor(worker: Path) -> list[str]:
    """The command of thumbor's worker; in an environment of its own, made on first use."""
    folder = cache_folder() / f"thumbor-{sys.version_info.major}.{sys.version_info.minor}"
    python = folder / "bin/python"
    if not (folder / "complete").exists():
        shutil.rmtree(folder, ignore_errors=True)
        _install([sys.executable, "-m", "venv", str(folder)])
        _install([str(python), "-m", "pip", "install", "--quiet", "thumbor"])
        (folder / "complete").touch()
    return [str(python), str(worker), "thumbor"]


def imaging() -> list[str]:
    """The command of the worker in Go; compiled on first use, with Debian's copy of imaging."""
    key = hashlib.sha256(IMAGING.read_bytes()).hexdigest()[:16]
    program = cache_folder() / f"imaging-{key}"
    if not program.exists():
        go = _find("go", "apt install golang-go golang-github-disintegration-imaging-dev")
        debian = {"GO111MODULE": "off", "GOPATH": "/usr/share/gocode"}
        building = program.with_suffix(".partial")
        program.parent.mkdir(parents=True, exist_ok=True)
        _install([go, "build", "-o", str(building), str(IMAGING)], environment=debian)
        building.rename(program)
    return [str(program)]


def _find(tool: str, hint: str = "") -> str:
    if path := shutil.which(tool):
        return path
    raise BenchError(f"{tool} is not installed" + (f" ({hint})" if hint else ""))


def _install(
    command: Sequence[str],
    folder: Path | None = None,
    environment: Mapping[str, str] | None = None,
) -> None:
    try:
        _run(command, folder, environment)
    except subprocess.CalledProcessError as error:
        last = (error.stderr or "").strip().splitlines()[-1:] or ["no message"]
        raise BenchError(f"{Path(command[0]).name} failed: {last[0]}") from error


def _run(
    command: Sequence[str],
    folder: Path | None,
    environment: Mapping[str, str] | None = None,
) -> None:
    whole = {**os.environ, **(environment or {})}
    subprocess.run(command, cwd=folder, env=whole, check=True, capture_output=True, text=True)
