"""The first steps of README.md, in a new checkout with nothing installed."""

from __future__ import annotations

import re
import shlex
from pathlib import Path

import trio
from PIL import Image

from tests.deployed.debian import checkout
from tests.documents import shell_lines
from tests.fakes.world import tiny_jpeg
from tests.processes import ROOT, own_environment, started, upstream

SERVE, FETCH, TEST = "./run serve", "curl ", "./run test"


def check(folder: Path) -> None:
    """Fail where what README.md tells people to type first does not work as it says."""
    serve, fetch, test = shell_lines((ROOT / "README.md").read_text(encoding="utf-8"))
    assert (serve, test) == (SERVE, TEST), "the gate runs the tests"
    assert fetch.startswith(FETCH)
    checkout(folder)
    trio.run(_first_steps, folder, serve, fetch)
    with Image.open(folder / "avatar.jpg") as image:
        assert (image.format, image.size) == ("JPEG", (360, 360))


async def _first_steps(folder: Path, serve: str, fetch: str) -> None:
    # What the first "./run serve" does before it serves; it takes longer than a start may.
    await trio.run_process([folder / "run", "imageproxy", "--version"], env=own_environment({}))
    program, *arguments = shlex.split(serve)
    command = [str(folder / program), *arguments]
    async with upstream() as internet:
        # Of an account that can be had here, on a port that is free.
        did, cid = internet.add_blob(tiny_jpeg(size=(600, 400)))
        environment = internet.environment(folder / "cache", SERVER__BIND="127.0.0.1:0")
        async with started(command, environment) as server:
            line = re.sub(r"did:plc:\w+/\w+", f"{did}/{cid}", fetch)
            line = line.replace("127.0.0.1:8080", f"127.0.0.1:{server.port}")
            await trio.run_process(shlex.split(line), cwd=folder, capture_stderr=True)
