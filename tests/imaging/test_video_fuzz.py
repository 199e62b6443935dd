"""Damaged videos, each through a sandboxed worker of its own.

``python -m tests.imaging.test_video_fuzz [--cases N] [--seed N]`` sends other ones.
"""

from __future__ import annotations

import argparse
import random
import tempfile
from collections import Counter
from functools import cache

import pytest
import trio

from proxy.config import Config
from proxy.errors import ImageTooLarge, UndecodableImage, UnsupportedImage
from proxy.imaging.workers.pool import ProcessingPool
from proxy.imaging.workers.shared_source import VideoSource
from proxy.model.formats import Format
from proxy.model.presets import Preset
from tests.imaging.videos import video

CASES, SEED = 40, 20_261_129

PRESET = Preset(width=40, fit="contain", quality=80)

CONFIG = Config.model_validate(
    {"process": {"threads": 2, "max_megapixels": 0.25, "queue_wait": 600}}
)


@cache
def corpus() -> tuple[bytes, ...]:
    """A valid video of each container and codec."""
    kinds = (("mp4", "libx264"), ("mov", "mpeg4"), ("webm", "libvpx"), ("webm", "libvpx-vp9"))
    return tuple(video(container=container, codec=codec) for container, codec in kinds)


def damaged(number: random.Random) -> bytes:
    """A video with bytes that were changed, removed, repeated, or set to extremes."""
    data = bytearray(number.choice(corpus()))
    for _ in range(number.randint(1, 8)):
        at = number.randrange(12, len(data) - 8)
        length = number.randint(1, 64)
        match number.randrange(5):
            case 0:
                data[at] ^= 1 << number.randrange(8)
            case 1:
                del data[at : at + min(length, len(data) - 40)]
            case 2:
                data[at:at] = data[at : at + length]
            case 3:
                extreme = number.choice((b"\xff" * 4, b"\x7f\xff\xff\xff", bytes(4)))
                data[at : at + 4] = extreme
            case _:
                data[at : at + length] = number.randbytes(length)
        if len(data) < 64:
            break
    return bytes(data)


async def outcomes(cases: int, seed: int) -> Counter[str]:
    """What became of each video: a status, or the name of an error that has none of the three."""
    number, found = random.Random(seed), Counter[str]()
    deaths, pool = Counter[str](), ProcessingPool(CONFIG, on_death=lambda why: deaths.update([why]))
    places = trio.CapacityLimiter(2)

    async def one(data: bytes) -> None:
        async with places:
            with tempfile.TemporaryFile() as file:
                file.write(data)
                file.flush()
                source = VideoSource(file.fileno(), len(data))
                try:
                    made = await pool.poster(source, PRESET, Format.JPEG)
                    found["200" if made.format is Format.JPEG else "wrong format"] += 1
                except (UnsupportedImage, ImageTooLarge):
                    found["400"] += 1
                except UndecodableImage:
                    found["422"] += 1
                except Exception as error:
                    found[f"{type(error).__name__}: {error}"] += 1

    async with trio.open_nursery() as nursery:
        await nursery.start(pool.run)
        async with trio.open_nursery() as jobs:
            for _ in range(cases):
                jobs.start_soon(one, damaged(number))
        nursery.cancel_scope.cancel()
    for reason, count in deaths.items():
        found[f"died: {reason}"] += count
    return found


@pytest.mark.slow
async def test_a_damaged_video_gets_a_poster_or_one_of_two_errors_and_ends_no_worker() -> None:
    """Catches an exception of FFmpeg's that is taken for a defect, and a worker that it ends."""
    found = await outcomes(CASES, SEED)
    assert sum(found.values()) == CASES
    assert found.keys() <= {"200", "400", "422"}, found
    assert found["200"], "damage that leaves nothing to decode tests little"


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--cases", type=int, default=2000)
    parser.add_argument("--seed", type=int, default=SEED)
    arguments = parser.parse_args()
    for outcome, count in (found := trio.run(outcomes, arguments.cases, arguments.seed)).items():
        print(f"{count:6} {outcome}")
    raise SystemExit(0 if found.keys() <= {"200", "400", "422"} else 1)
