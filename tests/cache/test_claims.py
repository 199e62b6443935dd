"""Claims: one process makes a result, and its end frees at once what it claimed."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import trio
from trio.testing import wait_all_tasks_blocked

from proxy.coordination.build_locks import BuildLocks, _byte_of
from proxy.model.formats import Format
from proxy.model.keys import ImageKey

from . import blob_cid, key, owner

CLAIM = """
import sys
from pathlib import Path
import trio
from proxy.coordination.build_locks import BuildLocks
from tests.cache import key

async def main():
    claims = BuildLocks(Path(sys.argv[1]))
    free, waited = await claims.claim(key(int(sys.argv[2])))
    print("waited" if waited else "had it", flush=True)
    for line in sys.stdin:
        free()
        print("freed", flush=True)

trio.run(main)
"""


class Neighbour:
    """Another process that claims a result, and keeps it."""

    def __init__(self, path: Path, number: int) -> None:
        self._process = subprocess.Popen(
            [sys.executable, "-c", CLAIM, str(path), str(number)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )

    def told(self) -> str:
        assert self._process.stdout is not None
        return self._process.stdout.readline().strip()

    def free(self) -> None:
        assert self._process.stdin is not None
        self._process.stdin.write("\n")
        self._process.stdin.flush()
        assert self.told() == "freed"

    def kill(self) -> None:
        self._process.kill()
        self._process.communicate()


async def is_free(claims: BuildLocks, wanted: ImageKey) -> bool:
    """Whether a claim is had at once."""
    with trio.move_on_after(0.1) as patience:
        free, _ = await claims.claim(wanted)
        free()
    return not patience.cancelled_caught


@pytest.mark.parametrize("end", [Neighbour.free, Neighbour.kill])
async def test_a_claim_of_another_process_is_waited_for_until_it_is_freed_or_its_process_ends(
    tmp_path: Path, end: Callable[[Neighbour], None]
) -> None:
    """Catches work done twice, and a lock that a SIGKILL leaves behind for ever."""
    path = tmp_path / "sub" / "flights.lock"
    neighbour = Neighbour(path, 1)
    try:
        assert neighbour.told() == "had it"
        claims = BuildLocks(path)
        assert not await is_free(claims, key(1))
        assert await is_free(claims, key(2)), "another result is another claim"
        end(neighbour)
        with trio.fail_after(10):
            free, _ = await claims.claim(key(1))
        free()
    finally:
        neighbour.kill()


async def test_a_claim_says_whether_another_process_had_it(tmp_path: Path) -> None:
    """Catches a second fetch because nobody looked into the cache again."""
    claims = BuildLocks(tmp_path / "flights.lock")
    free, had_been_claimed = await claims.claim(key(1))
    free()
    assert not had_been_claimed
    neighbour = Neighbour(tmp_path / "flights.lock", 1)
    claimed: list[bool] = []

    async def claim() -> None:
        free, had_been_claimed = await claims.claim(key(1))
        claimed.append(had_been_claimed)
        free()

    try:
        assert neighbour.told() == "had it"
        async with trio.open_nursery() as nursery:
            nursery.start_soon(claim)
            await wait_all_tasks_blocked()
            assert claimed == []
            neighbour.free()
        assert claimed == [True]
    finally:
        neighbour.kill()


async def test_a_cancelled_wait_leaves_no_claim(tmp_path: Path) -> None:
    """Catches a result that nobody makes any more because somebody once waited for it."""
    claims = BuildLocks(tmp_path / "flights.lock")
    free, _ = await claims.claim(key(1))
    assert not await is_free(claims, key(1))
    free()
    assert await is_free(claims, key(1))


def test_every_part_of_a_key_makes_another_claim(tmp_path: Path) -> None:
    """Catches two results that wait for each other."""
    keys = [
        key(preset=preset, did=owner(who), cid=blob_cid(what), format_=format_)
        for preset in ("avatar", "banner")
        for who in (1, 2)
        for what in (1, 2)
        for format_ in (None, *Format)
        if format_ not in (Format.GIF, Format.HEIC)
    ]
    positions = {_byte_of(each) for each in keys}
    assert len(positions) == len(keys)
    assert max(positions) < 2**62


async def test_without_a_usable_file_nobody_waits(tmp_path: Path) -> None:
    """Catches a broken disk that takes the images down which could still be fetched."""
    (tmp_path / "file").write_bytes(b"")
    claims = BuildLocks(tmp_path / "file" / "flights.lock")
    assert await is_free(claims, key(1))
    claims.close()
