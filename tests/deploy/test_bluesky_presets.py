"""``deploy/bluesky-presets.toml``: the sizes and the format that people see of Bluesky's CDN."""

from __future__ import annotations

from io import BytesIO
from pathlib import Path

import pytest
from PIL import Image

from proxy.config import load_config
from tests.fakes.world import World
from tests.imaging.sources import jpeg, photo
from tests.web import img, serving

FILE = Path(__file__).parents[2] / "deploy" / "bluesky-presets.toml"

ACCEPT = ("Accept", "image/avif,image/webp,image/apng,image/svg+xml,image/*,*/*;q=0.8")


@pytest.mark.parametrize(
    ("preset", "size"),
    [
        ("avatar", (1000, 1000)),
        ("avatar_thumbnail", (128, 128)),
        ("banner", (3000, 1000)),
        ("feed_thumbnail", (1000, 500)),
        ("feed_fullsize", (1200, 600)),
    ],
)
async def test_each_preset_gives_the_size_and_format_of_blueskys_cdn(
    preset: str, size: tuple[int, int], world: World
) -> None:
    """Catches the sizes of the two of the feed the wrong way round, and a JPEG for a browser."""
    did, cid = world.add_blob(jpeg(photo(1200, 600)))
    settings = load_config(FILE, environment={})
    presets = {name: preset.model_dump() for name, preset in settings.presets.items()}
    config = world.config(presets=presets, negotiate=settings.negotiate.model_dump())
    async with serving(world, config) as client:
        reply = await client.get(img(did, cid, preset), ACCEPT)
        assert (reply.status, reply.headers["content-type"]) == (200, "image/webp")
        with Image.open(BytesIO(reply.body)) as picture:
            assert picture.size == size
        named = await client.get(f"{img(did, cid, preset)}@jpeg")
        assert named.headers["content-type"] == "image/jpeg"
