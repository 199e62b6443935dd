"""A cache folder as release 0.1.0 left it: what it says is used, and nothing of it is misread.

What that release wrote is spelt out here, and not made by the code of today.
"""

from __future__ import annotations

import os
import re
import shutil
import sqlite3
import time
from contextlib import closing
from pathlib import Path

import pytest
import trio

from proxy.model.formats import Format
from proxy.model.presets import DEFAULT_PRESETS
from tests.fakes.world import tiny_jpeg, tiny_png
from tests.processes import ROOT, SERVE, Upstream, imageproxy, run, serve, until, upstream

pytestmark = pytest.mark.slow

BLOCKS = """
CREATE TABLE IF NOT EXISTS blocks (
    did TEXT NOT NULL,
    cid TEXT NOT NULL,
    reason TEXT NOT NULL,
    created_at REAL NOT NULL,
    PRIMARY KEY (did, cid)
) WITHOUT ROWID
"""

PRESET = "avatar_thumbnail"

FINGERPRINT = DEFAULT_PRESETS[PRESET].fingerprint(Format.PNG)
"""Of this preset as PNG. Encoders are new since 0.1.0; what it put elsewhere is as it was."""

OLD_FINGERPRINT = "0123456789"
"""Of a preset before its parameters, or our encoders, changed."""


def write(cache: Path, did: str, cid: str, fingerprint: str, data: bytes) -> Path:
    """A result where 0.1.0 kept it, with times as it set them: written, and used since."""
    identifier = did.removeprefix("did:plc:")
    folder = cache / "images/plc" / identifier[:2] / identifier / f"{PRESET}-{fingerprint}"
    folder.mkdir(parents=True)
    file = folder / f"{cid}@png.png"
    file.write_bytes(data)
    os.utime(file, (time.time() - 60, time.time() - 3600))
    return file


class Left:
    """A folder of 0.1.0, and the accounts whose pictures are in it."""

    def __init__(self, internet: Upstream, cache: Path) -> None:
        self.cache = cache
        self.kept = internet.add_blob(tiny_jpeg())
        self.kept_data = tiny_png((1, 2, 3), (128, 128))
        self.stale = internet.add_blob(tiny_jpeg((9, 9, 9)))
        self.stale_data = tiny_png((4, 5, 6), (128, 128))
        self.blocked = internet.add_blob(tiny_png())
        write(cache, *self.kept, FINGERPRINT, self.kept_data)
        write(cache, *self.stale, OLD_FINGERPRINT, self.stale_data)
        # What a write that was cut off left behind.
        unfinished = cache / "images/plc" / self.kept[0][8:10] / ".0123456789abcdef-7.tmp"
        unfinished.write_bytes(b"half a picture")
        with closing(sqlite3.connect(cache / "blocks.sqlite3")) as database:
            database.execute("PRAGMA journal_mode = WAL")
            database.execute(BLOCKS)
            row = (self.blocked[0], "", "spam", time.time() - 86400)
            database.execute("INSERT INTO blocks VALUES (?, ?, ?, ?)", row)
            database.commit()


def path(blob: tuple[str, str]) -> str:
    return f"/img/{PRESET}/plain/{blob[0]}/{blob[1]}@png"


async def test_a_folder_of_the_last_release_is_used_as_it_is(tmp_path: Path) -> None:
    """Catches an upgrade that begins with an empty cache, or that lifts every block."""
    async with upstream() as internet:
        left = Left(internet, tmp_path)
        environment = internet.environment(tmp_path, PROCESS__ISOLATION="thread")
        async with serve(SERVE, environment) as server:
            assert (await server.get("/readyz")).status == 200
            # Blocks first: they must hold from the first request on.
            assert (await server.get(path(left.blocked))).status == 404
            reply = await server.get(path(left.kept))
            assert (reply.headers["x-cache"], reply.body) == ("hit", left.kept_data)
            # The pixels of an older preset or encoder are not served as today's.
            reply = await server.get(path(left.stale))
            assert (reply.status, reply.headers["x-cache"]) == (200, "miss")
            assert reply.body != left.stale_data

            async def all_are_indexed() -> bool:
                return b"imageproxy_cache_entries 3.0" in (await server.get("/metrics")).body

            await until(all_are_indexed)
        async with run(imageproxy("blocks", "list"), environment) as listing:
            assert await listing.exit_code() == 0
            await until(lambda: "spam" in listing.text)
            assert left.blocked[0] in listing.text


async def test_a_folder_that_is_copied_as_documented_goes_on_on_another_disk(
    tmp_path: Path,
) -> None:
    """Catches a copy that loses the times, the blocks, or what the index says of the files."""
    text = (ROOT / "docs/operations.md").read_text().partition("## Move to another disk\n")[2]
    old, new = tmp_path / "old", tmp_path / "new"
    old.mkdir()
    new.mkdir()
    async with upstream() as internet:
        left = Left(internet, old)
        environment = internet.environment(old, PROCESS__ISOLATION="thread")
        async with serve(SERVE, environment) as server:  # makes the files of today
            assert (await server.get(path(left.blocked))).status == 404
        command = re.findall(r"`(cp .*?)`", text)[0]
        command = command.replace("/var/lib/imageproxy", str(old)).replace("/mnt/new", str(new))
        await trio.run_process(["sh", "-ec", command])
        shutil.rmtree(old)
        environment = internet.environment(new, PROCESS__ISOLATION="thread")
        async with serve(SERVE, environment) as server:
            assert (await server.get(path(left.blocked))).status == 404
            reply = await server.get(path(left.kept))
            assert (reply.headers["x-cache"], reply.body) == ("hit", left.kept_data)


async def test_old_files_count_against_the_limits_of_today(tmp_path: Path) -> None:
    """Catches files that an index begun afresh does not know: they would never go."""
    async with upstream() as internet:
        left = Left(internet, tmp_path)
        one = len(left.kept_data)
        environment = internet.environment(tmp_path, CACHE__MAX_GB=str(one * 1.5 / 1024**3))
        async with run(imageproxy("cache", "cleanup"), environment) as cleanup:
            assert await cleanup.exit_code() == 0
        files = [file for file in (tmp_path / "images").rglob("*.png") if file.is_file()]
        assert len(files) == 1


@pytest.mark.parametrize("damage", [b"", b"no database at all" * 1000])
async def test_an_index_of_an_unknown_version_is_made_anew_and_the_files_are_kept(
    damage: bytes, tmp_path: Path
) -> None:
    """Catches an index of another release, or a broken one, that is believed."""
    async with upstream() as internet:
        left = Left(internet, tmp_path)
        (tmp_path / "index.sqlite3").write_bytes(damage)
        environment = internet.environment(tmp_path, PROCESS__ISOLATION="thread")
        async with serve(SERVE, environment) as server:
            reply = await server.get(path(left.kept))
            assert (reply.headers["x-cache"], reply.body) == ("hit", left.kept_data)
