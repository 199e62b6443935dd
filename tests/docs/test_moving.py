"""docs/moving.md: what it says of this side is so, and its configuration gives what it promises."""

from __future__ import annotations

import re

import pytest

from proxy.config import SEED_VARIABLES, Config, load_config
from proxy.errors import InvalidFormat
from proxy.model.presets import DEFAULT_PRESETS, MAX_SIDE, Preset
from proxy.urls import parse_image_path
from tests.processes import ROOT

TEXT = (ROOT / "docs/moving.md").read_text(encoding="utf-8")

ROWS = re.findall(r"^\| `(\w+)` \| (.*) \| (.*) \|$", TEXT.partition("## From Coves")[0], re.M)
"""Bluesky's presets: name, theirs, here."""

BLOB = "did:plc:z72i7hdynmk6r22z27h6tvur/QmYwAPJzv5CZsnA625s3Xf2nemtYgPpHdWEz79ojWnPbdG"


def written(preset: Preset) -> str:
    """As the table has it, without the quality."""
    return f"{preset.width} x {preset.height}, {preset.fit}"


def test_the_sizes_of_this_side_are_the_defaults() -> None:
    """Catches a preset that changed without the table."""
    assert len(ROWS) == 5
    for name, _, here in ROWS:
        assert written(DEFAULT_PRESETS[name]) == here.partition(", quality")[0]


def test_the_file_gives_the_sizes_of_the_other_side() -> None:
    """Catches a table that says other than the file that is ready to use."""
    presets = load_config(ROOT / "deploy/bluesky-presets.toml", environment={}).presets
    for name, theirs, _ in ROWS:
        size, _, quality = theirs.partition(", quality ")
        if " x " in size:
            assert written(presets[name]) == size
        elif size.endswith(" wide"):
            assert f"{presets[name].width} wide" == size
            assert (presets[name].height, presets[name].fit) == (0, "contain")
        else:
            assert (size, presets[name].width) == ("not resized", MAX_SIDE)
        assert not quality or presets[name].quality == int(quality)
    assert set(presets) == set(DEFAULT_PRESETS), "nothing else is gone"


def test_urls_that_are_said_to_be_the_same_are_taken() -> None:
    for preset in DEFAULT_PRESETS:
        for format_ in ("", "@jpeg", "@jpg", "@webp"):
            parse_image_path(DEFAULT_PRESETS, f"/img/{preset}/plain/{BLOB}{format_}")
    with pytest.raises(InvalidFormat):
        parse_image_path(DEFAULT_PRESETS, f"/img/avatar/plain/{BLOB}@gif")


def test_every_variable_of_coves_that_it_names_works() -> None:
    """Catches a limit, or a purge, that an operator believes in and nobody keeps."""
    named = set(re.findall(r"`((?:IMAGE_PROXY|CLOUDFLARE)_[A-Z_]+)`", TEXT))
    assert {"IMAGE_PROXY_MAX_IN_FLIGHT_REQUESTS", "CLOUDFLARE_CACHE_PURGE_ZONE_ID"} <= named
    assert named <= set(SEED_VARIABLES)


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
