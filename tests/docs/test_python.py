"""The programs of the documents run as they stand, against servers on loopback."""

from __future__ import annotations

from collections.abc import AsyncIterator
from io import BytesIO
from pathlib import Path

import pytest
from PIL import Image

from proxy.model.identifiers import cid_of
from tests.documents import blocks
from tests.fakes.world import tiny_jpeg
from tests.processes import ROOT, SERVE, Upstream, run, serve, upstream

README, PICTURE, APPLICATION, ASYNCIO = (
    *blocks((ROOT / "README.md").read_text(encoding="utf-8"), "python"),
    *blocks((ROOT / "docs/python.md").read_text(encoding="utf-8"), "python"),
)

MISSING = cid_of(b"nobody has this")


@pytest.fixture
async def internet() -> AsyncIterator[Upstream]:
    async with upstream() as found:
        yield found


def program(code: str, folder: Path) -> str:
    file = folder / "program.py"
    file.write_text(code, encoding="utf-8")
    return str(file)


async def test_the_program_of_the_readme_fetches_a_picture(
    internet: Upstream, tmp_path: Path
) -> None:
    """Catches names that are imported from elsewhere now, half a program, and the CDN left out."""
    did, cid = internet.add_blob(tiny_jpeg())
    environment = internet.environment(
        tmp_path / "cache",
        SERVER__BASE_URL="https://origin.example",
        SERVER__CDN_URL="https://img.example",
    )
    async with run([program(README, tmp_path), did, cid], environment) as process:
        assert await process.exit_code() == 0, process.text
        await process.line_with("image/jpeg")
    url = f"https://img.example/img/avatar/plain/{did}/{cid}"
    assert f'<img srcset="{url} 1000w">' in process.lines
    (told,) = [line for line in process.lines if line.startswith("image/jpeg ")]
    assert f'"avatar-{cid}-' in told
    assert " miss " in told
    assert "'fetch': " in told


async def test_a_picture_is_written_to_a_file_and_a_failure_is_told(
    internet: Upstream, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Catches attributes of results and errors that are named otherwise."""
    did, cid = internet.add_blob(tiny_jpeg(size=(40, 30)))
    environment = internet.environment(tmp_path / "cache")
    code = f"import os; os.chdir({str(tmp_path)!r})\n{PICTURE}"
    async with run([program(code, tmp_path), did, cid], environment) as process:
        assert await process.exit_code() == 0, process.text
        await process.line_with("^40 x 30 image/jpeg, now [0-9]+ bytes of image/webp$")
    with Image.open(BytesIO((tmp_path / "picture.webp").read_bytes())) as picture:
        assert (picture.format, picture.size) == ("WEBP", (1000, 1000))
    async with run([program(code, tmp_path), did, MISSING], environment) as process:
        assert await process.exit_code() == 1
        await process.line_with("^404 blob not found")


async def test_an_application_of_ones_own_serves_pictures_until_it_is_stopped(
    internet: Upstream, tmp_path: Path
) -> None:
    """Catches a service that another server's loop cannot hold, and errors as 500."""
    did, cid = internet.add_blob(tiny_jpeg())
    environment = internet.environment(tmp_path / "cache")
    async with serve([program(APPLICATION, tmp_path), "127.0.0.1:0"], environment) as server:
        made = await server.get(f"/picture/{did}/{cid}")
        assert (made.status, made.headers["content-type"]) == (200, "image/jpeg")
        tag = made.headers["etag"]
        assert tag.startswith(f'"content_preview-{cid}-')
        known = await server.get(f"/picture/{did}/{cid}", ("If-None-Match", tag))
        assert (known.status, known.body) == (304, b"")
        missing = await server.get(f"/picture/{did}/{MISSING}")
        assert (missing.status, missing.body) == (404, b"blob not found")
        wrong = await server.get("/picture/did:plc:short/abc")
        assert (wrong.status, wrong.body) == (400, b"invalid DID format")


async def test_a_program_of_asyncio_asks_a_server(internet: Upstream, tmp_path: Path) -> None:
    """Catches a sample for a client that is no more, and a URL that the server refuses."""
    did, cid = internet.add_blob(tiny_jpeg())
    environment = internet.environment(tmp_path / "cache")
    async with serve(SERVE, environment) as server:
        arguments = [f"http://127.0.0.1:{server.port}", did, cid, MISSING, "wrong"]
        async with run([program(ASYNCIO, tmp_path), *arguments], {}) as process:
            assert await process.exit_code() == 0, process.text
            await process.line_with("^wrong ")
    first, second, third = process.lines
    assert first.startswith(f"{cid} image/webp ")
    assert f'"avatar_small-{cid}-' in first
    assert second == f"{MISSING} 404 blob not found"
    assert third == "wrong 400 invalid CID format"
