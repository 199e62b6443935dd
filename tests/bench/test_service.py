"""The peers of the whole-service benchmark: what they are asked, and how they are compared."""

from __future__ import annotations

import math

from bench.service import ALIKE, BLUESKY, OURS, PRESETS, Cell, Found, Peer, Source, peer_of

SOURCE = Source("did:plc:a", "bafk", "http://127.0.0.1:1/x?did=did:plc:a&cid=bafk", b"")


def test_a_pattern_is_filled_with_what_is_asked_for() -> None:
    """Catches a source whose query would be read as that of the peer, and a height that is none."""
    pattern = "http://127.0.0.1:8080/rs:fit:{width}:{height}/q:{quality}/{source}@{format}"
    url = Peer("imgproxy", pattern, 1).url(SOURCE, "content_preview", "webp")
    source = "http%3A%2F%2F127.0.0.1%3A1%2Fx%3Fdid%3Ddid%3Aplc%3Aa%26cid%3Dbafk"
    assert url == f"http://127.0.0.1:8080/rs:fit:800:8192/q:80/{source}@webp"
    assert Peer(OURS, ALIKE, 1).url(SOURCE, "avatar", "jpeg") == (
        "/img/avatar/plain/did:plc:a/bafk@jpeg"
    )


def test_a_peer_that_cannot_crop_is_not_asked_to() -> None:
    """Catches whole pictures of a peer compared with crops of others."""
    assert peer_of("x", "http://127.0.0.1/{width}/{file}", 1).presets == [
        "content_preview",
        "content_full",
    ]
    assert list(peer_of("x", "http://127.0.0.1/{fit}/{file}", 1).presets) == list(PRESETS)


def test_a_ratio_is_of_one_round_and_none_where_a_peer_did_nothing() -> None:
    """Catches a round of ours compared with another one of a peer, and a division by zero."""
    found = Found()
    kind = ("avatar", "jpeg")
    found.cells[OURS, *kind] = [Cell(1, 1, 1), Cell(2, 1, 1)]
    found.cells[BLUESKY, *kind] = [Cell(4, 1, 1), Cell(0, 1, 1)]
    first, second = found.ratios(*kind, BLUESKY)
    assert first == 0.25
    assert math.isnan(second)
    assert found.ratios(*kind, "another") == []
