"""A server's standard error in files, as a supervisor keeps it: moved, or truncated."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Iterator
from pathlib import Path

import trio


class LogFiles:
    """The file that a server's lines go to, and those of before.

    Args:
        folder: is made.
    """

    def __init__(self, folder: Path) -> None:
        folder.mkdir()
        self._folder = folder
        self._current = folder / "current"
        self._output = self._open()
        self._writing = trio.Lock()
        self._older_files = 0

    async def write_from(self, stream: trio.abc.ReceiveStream) -> None:
        """Write what comes, until the server has ended."""
        async for data in stream:
            async with self._writing:
                await trio.to_thread.run_sync(os.write, self._output, data)
        os.close(self._output)

    async def move(self) -> None:
        """Give the file another name, and go on in a new one."""
        async with self._writing:
            await trio.to_thread.run_sync(self._current.rename, self._older())
            os.close(self._output)
            self._output = self._open()

    async def copy_and_truncate(self) -> None:
        """Copy it, and empty it under the one who writes; what comes between the two is lost."""
        await trio.to_thread.run_sync(shutil.copyfile, self._current, self._older())
        await trio.to_thread.run_sync(os.truncate, self._current, 0)

    def lines(self) -> Iterator[dict[str, object]]:
        """Every line of every file; ValueError for one that is none."""
        for file in sorted(self._folder.iterdir()):
            for line in file.read_bytes().splitlines():
                yield json.loads(line)

    def _older(self) -> Path:
        self._older_files += 1
        return self._folder / f"older{self._older_files}"

    def _open(self) -> int:
        return os.open(self._current, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o600)
