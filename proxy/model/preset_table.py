"""The presets of one configuration, with those that URLs mean which name none. Pure."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from proxy.model.formats import Format
from proxy.model.keys import ImageKey
from proxy.model.picture_info import INFO_PRESET
from proxy.model.presets import Preset


@dataclass(frozen=True, slots=True)
class PresetTable:
    """What belongs together of a configuration: all of it is replaced, or nothing.

    Attributes:
        by_name: the presets, with their variants.
        avatar, banner, poster: the names of those for URLs that name none.
    """

    by_name: Mapping[str, Preset]
    avatar: str
    banner: str
    poster: str

    def of(self, key: ImageKey) -> Preset:
        """Return what makes the result of ``key``, which was made with this table."""
        return INFO_PRESET if key.format is Format.JSON else self.by_name[key.preset]
