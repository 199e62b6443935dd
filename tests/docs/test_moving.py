"""docs/moving.md: what it says of this side is so, and its configuration gives what it promises."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from proxy.config import Config, ConfigError, load_config
from proxy.errors import InvalidFormat
from proxy.model.presets import DEFAULT_PRESETS, Preset
from proxy.urls import parse_image_path
from tests.documents import blocks
from tests.processes import ROOT

TEXT = (ROOT / "docs/moving.md").read_text(encoding="utf-8")

ROWS = re.findall(r"^\| `(\w+)` \| (.*) \| (.*) \|$", TEXT.partition("## From Coves")[0], re.M)
"""Bluesky's presets: name, theirs, here."""

BLOB = "did:plc:z72i7hdynmk6r22z27h6tvur/QmYwAPJzv5CZsnA625s3Xf2nemtYgPpHdWEz79ojWnPbdG"


def written(preset: Preset) -> str:
    """As the table has it."""
    return f"{preset.width} x {preset.height}, {preset.fit}"


@pytest.fixture
def config(tmp_path: Path) -> Config:
    """Of the only block of TOML."""
    (block,) = blocks(TEXT, "toml")
    file = tmp_path / "config.toml"
    file.write_text(block)
    return load_config(file, environment={})


def test_the_sizes_of_this_side_are_the_defaults() -> None:
    """Catches a preset that changed without the table."""
    assert len(ROWS) == 5
    for name, _, here in ROWS:
        assert written(DEFAULT_PRESETS[name]) == here


def test_the_configuration_gives_the_sizes_of_the_other_side(config: Config) -> None:
    """Catches a key that is missing or misspelt, and a preset that loses its fit."""
    sizes = {name: theirs for name, theirs, _ in ROWS if " x " in theirs}
    assert len(sizes) == 4
    assert {name: written(config.presets[name]) for name in sizes} == sizes
    assert set(config.presets) == set(DEFAULT_PRESETS), "nothing else is gone"
    assert config.negotiate.formats == ("webp",)


def test_urls_that_are_said_to_be_the_same_are_taken() -> None:
    for preset in DEFAULT_PRESETS:
        for format_ in ("", "@jpeg", "@webp"):
            parse_image_path(DEFAULT_PRESETS, f"/img/{preset}/plain/{BLOB}{format_}")
    with pytest.raises(InvalidFormat):
        parse_image_path(DEFAULT_PRESETS, f"/img/avatar/plain/{BLOB}@jpg")


def test_later_variables_of_coves_stop_the_start_by_their_names() -> None:
    """Catches a limit that an operator believes in, and nobody keeps."""
    later = re.findall(r"^\| `(IMAGE_PROXY_MAX_\w+)` \|", TEXT, re.MULTILINE)
    assert len(later) == 3
    with pytest.raises(ConfigError) as caught:
        load_config(environment=dict.fromkeys(later, "4"))
    assert {mistake.partition(":")[0] for mistake in caught.value.mistakes} == set(later)


def test_every_key_that_it_names_exists() -> None:
    """Catches a key that was renamed."""
    keys = {
        f"{section}.{key}"
        for section, values in Config().model_dump().items()
        if section != "presets"
        for key in values
    }
    sections = {key.partition(".")[0] for key in keys}
    named = {
        text
        for text in re.findall(r"`([a-z]+\.[a-z_]+)`", TEXT)
        if text.partition(".")[0] in sections
    }
    assert len(named) >= 8
    assert named <= keys
