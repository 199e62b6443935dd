"""Commands, run in this process with a cache folder of their own."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import aclosing

import trio
from click.testing import Result

from proxy.config import Config
from proxy.model.formats import Format
from proxy.model.keys import ImageKey
from proxy.wiring import disk_cache_of
from tests.cache import entry

Run = Callable[..., Result]


def put(settings: Config, *keys: ImageKey) -> None:
    async def work() -> None:
        async with aclosing(disk_cache_of(settings)) as disk:
            for each in keys:
                await disk.put(each, entry(1000, each.format or Format.JPEG))

    trio.run(work)
