"""Decides what of a changed configuration is taken while the service runs. Pure."""

from __future__ import annotations

from dataclasses import dataclass

from proxy.config import Config
from proxy.imaging.memory_estimate import budget

TAKEN = (
    ("log", "level"),
    ("process", "webp_effort"),
    ("actors", "avatar_preset"),
    ("actors", "banner_preset"),
    ("video", "preset"),
)
"""The keys that are taken, beside the presets: these are part of presets, or name one of them."""


@dataclass(frozen=True, slots=True)
class Reload:
    """What comes of a new configuration.

    Attributes:
        config: that in force from now on: the one before, with what is taken of the new one.
        taken: the keys that were taken; a preset is one of them.
        presets: the names of presets that came, went or changed.
        waiting: the keys that need a restart.
        needs_memory: whether pictures may need more memory than was set aside at the start.
    """

    config: Config
    taken: tuple[str, ...]
    presets: tuple[str, ...]
    waiting: tuple[str, ...]
    needs_memory: bool


def reloaded(before: Config, new: Config) -> Reload:
    """Compare a configuration that was found to be valid with that in force."""
    taken: dict[str, dict[str, object]] = {}
    waiting = []
    for section in Config.model_fields.keys() - {"presets"}:
        old_values, values = getattr(before, section), getattr(new, section)
        for key in type(values).model_fields:
            if getattr(old_values, key) == getattr(values, key):
                continue
            if (section, key) in TAKEN:
                taken.setdefault(section, {})[key] = getattr(values, key)
            else:
                waiting.append(f"{section}.{key}")
    names = before.presets.keys() | new.presets.keys()
    presets = sorted(each for each in names if before.presets.get(each) != new.presets.get(each))
    sections = {
        section: getattr(before, section).model_copy(update=values)
        for section, values in taken.items()
    }
    keys = [f"{section}.{key}" for section, values in taken.items() for key in values]
    config = before.model_copy(update={**sections, "presets": new.presets})
    return Reload(
        config,
        tuple(sorted([*keys, *(f"presets.{each}" for each in presets)])),
        tuple(presets),
        tuple(sorted(waiting)),
        needs_memory=budget(config) > budget(before),
    )
