"""A file of a corpus, and what is known of it beforehand. Pure."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

from tests.imaging.sources import Pixels


@dataclass(frozen=True)
class Case:
    """A file.

    Attributes:
        name: as the reviewed differences know it, and the report shows it.
        read: its bytes, without arguments.
        status: of every answer, where it does not follow from what the references show.
        pixels: what it shows by its format's specification (RGB or RGBA, upright, sRGB), where no
            reference can tell.
    """

    name: str
    read: Callable[..., bytes]
    status: int | None = None
    pixels: Pixels | None = None


def of_folder(folder: Path) -> Iterator[Case]:
    """Every file below a folder, by name."""
    for file in sorted(folder.rglob("*")):
        if file.is_file():
            yield Case(str(file.relative_to(folder)), file.read_bytes)
