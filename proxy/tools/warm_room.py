"""Whether the cache has room for what is to be warmed, and what it kept of that."""

from __future__ import annotations

import shutil
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

from proxy.cache.index import Totals
from proxy.cache.layout import entry_folder, entry_name, possible_formats
from proxy.model.keys import ImageKey
from proxy.model.preset_table import PresetTable
from proxy.observability.metrics import Metrics
from proxy.shared.binary_size import in_gib

BYTES_PER_PIXEL = 0.15
"""Of photographs as JPEGs of quality 80 to 90, for presets of which the cache has none yet."""

PORTRAIT = 4 / 3
"""Height over width, where a preset bounds the width alone."""


def is_kept(images: Path, key: ImageKey) -> bool:
    """Whether the folder of results has a file of ``key``.

    Raises:
        OSError: the folder cannot be read.
    """
    folder = images / entry_folder(key)
    return any((folder / entry_name(key, each)).exists() for each in possible_formats(key))


def expected_bytes(
    keys: Iterable[ImageKey], presets: PresetTable, known: Mapping[str, Totals]
) -> int:
    """About how many bytes results take: as many as others of their presets, where there are some.

    Pure.

    Args:
        known: what the cache has of each preset, by ``{preset}-{fingerprint}``.
    """
    expected = 0.0
    for key in keys:
        found = known.get(f"{key.preset}-{key.fingerprint}")
        if found is not None and found.entries:
            expected += found.bytes / found.entries
        else:
            preset = presets.of(key)
            expected += preset.width * (preset.height or preset.width * PORTRAIT) * BYTES_PER_PIXEL
    return int(expected)


def lacks(folder: Path, needed: int, *, max_bytes: int, max_gb: float) -> Iterator[str]:
    """Yield why ``needed`` bytes more will not all stay in the cache folder.

    Raises:
        OSError: the disk cannot be examined.
    """
    about = f"the list takes about {in_gib(needed)}"
    if needed > max_bytes:
        yield f"{about}, and cache.max_gb is {max_gb:g}: the first of it will be evicted"
    there = next(each for each in (folder, *folder.parents) if each.exists())
    free = shutil.disk_usage(there).free
    if needed > free:
        yield f"{about}, and the disk of {folder} has {in_gib(free)} free"


@dataclass(frozen=True, slots=True)
class Lost:
    """How many results there were that the cache did not keep.

    Attributes:
        evicted: made room for later ones.
        unwritten: were never written: the disk failed, or was too slow.
    """

    evicted: int = 0
    unwritten: int = 0

    def __bool__(self) -> bool:
        return bool(self.evicted or self.unwritten)


def lost_of(images: Path, keys: Iterable[ImageKey], metrics: Metrics) -> Lost:
    """Look which of the results that there were are kept.

    Args:
        metrics: those of the service that made them, and nothing else.

    Raises:
        OSError: the folder cannot be read.
    """
    missing = sum(not is_kept(images, key) for key in keys)
    unwritten = min(missing, metrics.unwritten())
    return Lost(evicted=missing - unwritten, unwritten=unwritten)
