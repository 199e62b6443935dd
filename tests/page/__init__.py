"""The page in a real browser, over a real PDS: what it needs, as tests and the picture of the
documents have it."""

from __future__ import annotations

import io
import shutil
from collections.abc import AsyncIterator, Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import asynccontextmanager, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

import numpy as np
from PIL import Image
from playwright.sync_api import Browser, expect, sync_playwright

from proxy.config import ENV_PREFIX
from tests import devnet as real
from tests.devnet import Devnet, blob_cid
from tests.fakes.dns import FakeDns, serving_dns
from tests.imaging.videos import video
from tests.processes import SERVE, serve

T = TypeVar("T")

HANDLE = "alice.test"

PATIENCE = 60_000
"""Milliseconds; an AVIF of 2000 pixels takes a second."""

Look = Callable[..., None]
"""Opens a page for a function, and fails on what the browser complains of."""

FLAGS = (
    "--headless",
    "--no-sandbox",
    "--disable-gpu",
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
)


class NoBrowser(Exception):
    """There is no Chromium here."""


@dataclass(frozen=True)
class PageSite:
    """A proxy that serves the page, and an account with pictures.

    Attributes:
        url: of the page, without a slash at its end.
        avatar, banner, photos: CIDs.
        post: the at:// URI of what has ``photos``, two with descriptions.
        quoting: that of a gallery of these that quotes a post of ``other_did``, with one picture.
        quoting_nothing: that of a post that quotes what is gone.
        film, damaged_film: those of posts with a video.
    """

    url: str
    did: str
    avatar: str
    banner: str
    photos: tuple[str, str]
    post: str
    other_did: str
    quoted: str
    quoting: str
    quoting_nothing: str
    film: str
    damaged_film: str


OTHER_HANDLE = "bob.test"
"""Of an account whose only picture is its avatar in Tangled, beside the one that it posted."""


@asynccontextmanager
async def page_site(folder: Path, **settings: str) -> AsyncIterator[PageSite]:
    """Run one while the block runs.

    Args:
        settings: by the names of their environment variables, without the prefix.

    Raises:
        DevnetUnavailable: there is no PDS here.
    """
    async with real.run_devnet() as devnet, serving_dns() as dns:
        account = await real.create_account(devnet, HANDLE)
        dns.records[f"_atproto.{HANDLE}"] = [f"did={account.did}"]

        async def upload(width: int, height: int, seed: int) -> real.Blob:
            data = landscape(width, height, seed)
            return await real.upload_blob(devnet, account, data, "image/jpeg")

        avatar, banner = await upload(1200, 1200, 1), await upload(1500, 500, 2)
        await real.set_profile(devnet, account, avatar, banner)
        photos = [await upload(2400, 1600, 3), await upload(1600, 2000, 4)]
        post = await real.create_post(devnet, account, photos)
        other = await real.create_account(devnet, OTHER_HANDLE)
        dns.records[f"_atproto.{OTHER_HANDLE}"] = [f"did={other.did}"]
        data = landscape(800, 600, 5)
        shown = await real.upload_blob(devnet, other, data, "image/jpeg")
        quoted = await real.create_post(devnet, other, [shown])
        tangled = {"$type": "sh.tangled.actor.profile", "bluesky": True, "avatar": shown}
        await real.create_record(devnet, other, tangled)

        def quoting(uri: str) -> dict[str, object]:
            return {
                "$type": "app.bsky.embed.record",
                "record": {"uri": uri, "cid": blob_cid(shown)},
            }

        async def post_of(embed: dict[str, object]) -> str:
            return await real.create_record(devnet, account, real.post_with(embed))

        items = [{"image": photo, "alt": f"Hills {i}"} for i, photo in enumerate(photos)]
        gallery = {"$type": "app.bsky.embed.gallery", "items": items}
        both = {"record": quoting(quoted), "media": gallery}

        async def post_of_film(data: bytes) -> str:
            film = await real.upload_blob(devnet, account, data, "video/mp4")
            return await post_of({"$type": "app.bsky.embed.video", "video": film, "alt": "A film"})

        async with serve(SERVE, _environment(devnet, dns, folder, settings)) as server:
            yield PageSite(
                f"http://127.0.0.1:{server.port}",
                account.did,
                blob_cid(avatar),
                blob_cid(banner),
                (blob_cid(photos[0]), blob_cid(photos[1])),
                post,
                other.did,
                blob_cid(shown),
                await post_of({"$type": "app.bsky.embed.recordWithMedia"} | both),
                await post_of(quoting(f"at://{other.did}/app.bsky.feed.post/3k")),
                await post_of_film(video(size=(640, 360))),
                await post_of_film(b"no film" * 99),
            )


def _environment(
    devnet: Devnet, dns: FakeDns, folder: Path, settings: dict[str, str]
) -> dict[str, str]:
    own = {f"{ENV_PREFIX}{name}": value for name, value in settings.items()}
    return own | {
        "IMAGE_PROXY_IDENTITY__PLC_URL": devnet.plc_url,
        "IMAGE_PROXY_IDENTITY__NAMESERVERS": dns.address,
        "IMAGE_PROXY_FETCH__ALLOW_HTTP": "true",
        "IMAGE_PROXY_FETCH__ALLOW_PRIVATE_HOSTS": "true",
        "IMAGE_PROXY_CACHE__PATH": str(folder / "cache"),
    }


@contextmanager
def chromium(*flags: str) -> Iterator[Callable[[Callable[[Browser], T]], T]]:
    """A browser, and what runs a function with it: on a thread of its own, as it brings asyncio.

    Args:
        flags: further ones of its command line.

    Raises:
        NoBrowser: it is not installed.
    """
    program = shutil.which("chromium")
    if program is None:
        raise NoBrowser("no Chromium; on Debian: apt install chromium")
    expect.set_options(timeout=PATIENCE)  # five seconds are what a busy machine takes
    with ThreadPoolExecutor(1) as thread:
        playwright = thread.submit(lambda: sync_playwright().start()).result()
        try:
            browser = thread.submit(
                lambda: playwright.chromium.launch(
                    executable_path=program, args=[*FLAGS, *flags], timeout=PATIENCE
                )
            ).result()
            try:
                yield lambda work: thread.submit(work, browser).result()
            finally:
                thread.submit(browser.close).result()
        finally:
            thread.submit(playwright.stop).result()


def landscape(width: int, height: int, seed: int) -> bytes:
    """A JPEG of hills under an evening sky."""
    random = np.random.default_rng(seed)
    x, y = np.meshgrid(np.linspace(0, 1, width), np.linspace(0, 1, height))
    top, bottom = np.array([[52, 70, 130], [250, 180, 120]]) + random.integers(-25, 25, (2, 3))
    picture = top + (bottom - top) * np.clip(y[..., None] * 1.5, 0, 1)
    ratio = width / height
    sun_x, sun_y = random.uniform(0.3, 0.7), random.uniform(0.25, 0.4)
    distance = np.hypot((x - sun_x) * max(ratio, 1), (y - sun_y) / min(ratio, 1))
    glow = np.exp(-((distance / 0.3) ** 2))[..., None]
    picture += (np.array([255, 236, 190]) - picture) * np.where(
        distance[..., None] < 0.08, 1, glow * 0.6
    )
    for layer in range(5):
        near = layer / 4
        line = np.full_like(x, 0.5 + 0.11 * layer)
        for wave in range(1, 5):
            phase, swing = random.uniform(0, 6.3), random.uniform(0.4, 1) * 0.07 / wave
            line = line + swing * np.sin(phase + x * 4 * wave * (1 + near))
        shade = np.array([120, 110, 150]) * (1 - near) + np.array([24, 44, 52]) * near
        grain = random.normal(0, 5, (height, width, 1)) * near
        picture = np.where((y > line)[..., None], shade + (1 - y[..., None]) * 40 + grain, picture)
    out = io.BytesIO()
    Image.fromarray(np.clip(picture, 0, 255).astype(np.uint8)).save(out, "JPEG", quality=92)
    return out.getvalue()
