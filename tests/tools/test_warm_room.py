"""What a list takes, and whether that fits."""

from __future__ import annotations

from pathlib import Path

from proxy.cache.index import Totals
from proxy.config import Config
from proxy.model.keys import image_key
from proxy.model.picture_info import info_key
from proxy.model.presets import DEFAULT_PRESETS
from proxy.tools.warm_room import expected_bytes, lacks
from tests.fakes.sites import cid_of, new_plc_did


def test_a_list_takes_what_others_of_its_presets_take() -> None:
    """Catches a guess by size in pixels where the cache knows better."""
    did, cid = new_plc_did(), cid_of(b"a picture")
    names = ("avatar", "avatar", "content_preview")
    keys = [image_key(DEFAULT_PRESETS, name, did, cid) for name in names]
    known = {f"avatar-{keys[0].fingerprint}": Totals(entries=10, bytes=1_000)}
    table = Config().preset_table
    guessed = expected_bytes(keys[2:], table, known)
    assert guessed > 10_000
    assert expected_bytes(keys, table, known) == 200 + guessed
    described = expected_bytes([info_key(keys[0].blob)], table, known)
    assert 0 < described < 1000, "a preset called info is not meant"


def test_a_list_that_does_not_fit_is_told_by_what_is_too_small(tmp_path: Path) -> None:
    """Catches a folder that is not made yet, of which no disk can be asked."""
    folder = tmp_path / "not" / "made"
    gib = 1024**3
    assert list(lacks(folder, 1, max_bytes=10 * gib, max_gb=10)) == []
    (limit,) = lacks(folder, 1025, max_bytes=1024, max_gb=1e-6)
    assert "cache.max_gb is 1e-06" in limit
    (disk,) = lacks(folder, 2**60, max_bytes=2**62, max_gb=2**32)
    assert "free" in disk
