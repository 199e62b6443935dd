"""The whole matrix through a sandboxed worker, and each case also in a thread.

``tests/imaging/kinds.py`` has the rows, and says how to add one.
"""

from __future__ import annotations

import re
import sys
from collections import Counter

import pytest
import trio

from proxy.config import Config
from proxy.errors import ImageProxyError
from proxy.imaging.pipeline import render
from proxy.imaging.workers.pool import ProcessingPool
from proxy.model import formats
from proxy.model.formats import SOURCES, Format
from proxy.model.presets import Preset
from tests.imaging import kinds

pytestmark = [
    pytest.mark.slow,
    pytest.mark.time_limit(600),
    pytest.mark.skipif(sys.platform != "linux", reason="confinement is Linux's"),
]

CONFIG = Config.model_validate({"process": {"threads": 1, "queue_wait": 600}})

Answers = dict[str, bytes | str]
"""By the name of the recipe: the bytes of a result, or an error."""


async def ask_worker(pool: ProcessingPool, source: bytes, said: Answers) -> None:
    async def ask(name: str, preset: Preset, output: Format | None) -> None:
        try:
            said[name] = (await pool.process(source, preset, output)).data
        except Exception as error:
            said[name] = told(error)

    async with trio.open_nursery() as nursery:
        for name, recipe in kinds.RECIPES.items():
            nursery.start_soon(ask, name, *recipe)


def render_here(source: bytes, said: Answers) -> None:
    for name, (preset, output) in kinds.RECIPES.items():
        try:
            said[name] = render(source, preset, output, max_pixels=CONFIG.process.max_pixels).data
        except Exception as error:
            said[name] = told(error)


def told(error: Exception) -> str:
    """The class of an error, and its cause in the characters that a worker may send."""
    cause = error.cause if isinstance(error, ImageProxyError) else str(error)
    return f"{type(error).__name__}: {re.sub(r'[^ -~]|' + ESCAPED, '?', cause)}"


ESCAPED = r"\\+(?:n|x[0-9a-f]{2}|u[0-9a-f]{4})"


async def differences(pool: ProcessingPool, picture: kinds.Picture) -> list[str]:
    sandbox: Answers = {}
    thread: Answers = {}
    async with trio.open_nursery() as nursery:
        nursery.start_soon(ask_worker, pool, picture.source, sandbox)
        nursery.start_soon(trio.to_thread.run_sync, render_here, picture.source, thread)
    found = []
    for recipe in kinds.RECIPES:
        answers = sandbox[recipe], thread[recipe]
        fails = any(isinstance(each, str) for each in answers)
        if answers[0] != answers[1] or (picture.is_whole and fails):
            shown = (each if isinstance(each, str) else f"{len(each)} bytes" for each in answers)
            found.append(f"{picture.name}, {recipe}: " + " in the sandbox, but ".join(shown))
    return found


@pytest.mark.parametrize("name", [*kinds.KINDS, *kinds.LONE])
async def test_a_picture_has_one_answer_in_the_sandbox_and_in_a_thread(name: str) -> None:
    """Catches code that a library loads, and files that it reads, when they are first needed."""
    if name.startswith("heic"):
        pytest.importorskip("pillow_heif")
    deaths: Counter[str] = Counter()
    defects: list[None] = []
    pool = ProcessingPool(
        CONFIG,
        on_death=lambda reason: deaths.update([reason]),
        on_defect=lambda: defects.append(None),
    )
    wrong = []
    async with trio.open_nursery() as nursery:
        # A new worker for each kind, in which nothing was needed yet.
        await nursery.start(pool.run)
        for picture in kinds.pictures(name):
            wrong += await differences(pool, picture)
        nursery.cancel_scope.cancel()
    assert wrong == []
    assert (deaths, defects) == (Counter(), [])


def test_the_matrix_has_every_format_and_every_kind_is_of_its_own() -> None:
    """Catches a row that is another format than its name says, and one that is there twice."""
    seen: dict[bytes, str] = {}
    for name in (*kinds.KINDS, *kinds.LONE):
        if name.startswith("heic"):
            pytest.importorskip("pillow_heif")
        source = next(kinds.pictures(name)).source
        format_ = formats.sniff(source)
        assert format_ is Format(name.split()[0].replace("apng", "png")), name
        assert seen.setdefault(source, name) == name
    found = {name.split()[0] for name in (*kinds.KINDS, *kinds.LONE)}
    assert found == {format_.value for format_ in SOURCES} | {"apng"}
