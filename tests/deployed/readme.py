"""The first steps of README.md, in a new checkout with nothing installed."""

from __future__ import annotations

import re
import shlex
import time
from pathlib import Path

import trio
from PIL import Image

from tests.deployed.debian import checkout
from tests.documents import shell_lines
from tests.fakes.dns import serving_dns
from tests.fakes.sites import document, pds_service
from tests.fakes.world import tiny_jpeg
from tests.processes import ROOT, own_environment, started, upstream

SERVE, FETCH, TEST = "./run serve", "curl ", "./run test"

HANDLE = "bsky.app"


def check(folder: Path) -> None:
    """Fail where what README.md tells people to type first does not work as it says."""
    lines = shell_lines((ROOT / "README.md").read_text(encoding="utf-8"))
    serve, by_name, by_cid, test, *_containers = lines
    assert (serve, test) == (SERVE, TEST), "the gate runs the tests"
    assert all(line.startswith(FETCH) for line in (by_name, by_cid))
    checkout(folder)
    began = time.monotonic()
    trio.run(_first_steps, folder, serve, [by_name, by_cid])
    took = time.monotonic() - began
    for name, kind in (("avatar.webp", "WEBP"), ("picture.jpg", "JPEG")):
        with Image.open(folder / name) as image:
            assert (image.format, image.size) == (kind, (360, 360))
    print(
        f"deployed: the first three commands of README.md, installation and all, took {took:.0f} s"
    )


async def _first_steps(folder: Path, serve: str, fetches: list[str]) -> None:
    # What the first "./run serve" does before it serves; it takes longer than a start may.
    await trio.run_process([folder / "run", "imageproxy", "--version"], env=own_environment({}))
    program, *arguments = shlex.split(serve)
    command = [str(folder / program), *arguments]
    async with upstream() as internet, serving_dns() as dns:
        # Of an account that can be had here, on a port that is free.
        did, cid = internet.add_blob(tiny_jpeg(size=(600, 400)))
        dns.records[f"_atproto.{HANDLE}"] = [f"did={did}"]
        internet.plc.documents[did] = document(
            did, pds_service(internet.pds.url), alsoKnownAs=[f"at://{HANDLE}"]
        )
        avatar = {"$type": "blob", "ref": {"$link": cid}, "mimeType": "image/jpeg", "size": 1}
        profile = {"$type": "app.bsky.actor.profile", "avatar": avatar}
        internet.pds.add_record(did, "app.bsky.actor.profile/self", profile)
        environment = internet.environment(
            folder / "cache", SERVER__BIND="127.0.0.1:0", IDENTITY__NAMESERVERS=dns.address
        )
        async with started(command, environment) as server:
            for fetch in fetches:
                line = re.sub(r"did:plc:\w+/\w+", f"{did}/{cid}", fetch)
                line = line.replace("127.0.0.1:8080", f"127.0.0.1:{server.port}")
                await trio.run_process(shlex.split(line), cwd=folder, capture_stderr=True)
