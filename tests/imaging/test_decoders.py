"""Which libraries decode is told by what they say of themselves."""

from __future__ import annotations

import re
import sys
from typing import Literal

import pytest
from PIL import features
from prometheus_client import generate_latest

from proxy.imaging.decoders import decoders, imported
from proxy.lifecycle import open_service
from proxy.observability.metrics import DECODERS
from proxy.tools.doctor.checks import judge_decoders
from tests.fakes.world import World, tiny_jpeg


def test_each_decoder_that_a_picture_may_reach_has_a_version() -> None:
    """Catches a list of what Pillow was built for, in place of what is loaded."""
    found = decoders()
    assert found["libwebp"] == features.version("webp")
    assert {
        "libjpeg-turbo",
        "zlib",
        "deflate",
        "libavif",
        "dav1d",
        "aom",
        "libheif",
        "libde265",
    } <= set(found)
    assert all(re.match(r"[0-9]+(\.[0-9]+)+", version) for version in found.values())
    assert f"libwebp {found['libwebp']}" in judge_decoders(found).text


def test_what_is_not_installed_is_not_told() -> None:
    """Catches a machine without an extra, where the examination ends in an error."""
    assert {"libheif", "FFmpeg", "dav1d"}.isdisjoint(decoders(lambda name: None))
    assert imported("no_such_package") is None


@pytest.mark.parametrize("isolation", ["sandbox", "thread"])
async def test_a_running_service_tells_its_decoders(
    world: World, isolation: Literal["sandbox", "thread"]
) -> None:
    """Catches labels that stay empty, and a package of which this process has no module."""
    config = world.config(process={"isolation": isolation, "threads": 1})
    async with open_service(config, networks=(world.network, world.directory_network)) as service:
        did, cid = world.add_blob(tiny_jpeg())
        await service.get_image("avatar_thumbnail", did, cid)
        text = generate_latest(service.metrics.registry).decode()
    (labels,) = re.findall(r"^imageproxy_build_info\{(.*)\} 1\.0$", text, re.MULTILINE)
    told = dict(re.findall(r'(\w+)="([^"]*)"', labels))
    found = decoders(sys.modules.get)
    assert told["libwebp"] == found["libwebp"]
    assert told["libheif"] == found["libheif"]
    assert told["libjpeg_turbo"] == found["libjpeg-turbo"]
    assert set(DECODERS) <= {*told}
