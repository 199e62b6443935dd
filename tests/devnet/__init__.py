"""The AT Protocol's own PLC directory and PDS on loopback, and a small client to fill them.

The servers are npm's ``@atproto/dev-env``; :func:`run_devnet` installs it on first use into
``$XDG_CACHE_HOME/atproto-imageproxy`` (``~/.cache`` without the variable). It needs Node.js (20,
or 18.7 at least) with its headers, npm, a C++ compiler, make and Python; on Debian: ``nodejs npm
libnode-dev g++ make``.

``python -m tests.devnet install`` only installs; ``./run devnet`` runs a network with some pictures
in it.
"""

import base64
import fcntl
import hashlib
import json
import shutil
import subprocess
import sys
from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx2
import trio

from tests.processes import cache_folder

__all__ = [
    "Account",
    "Blob",
    "Devnet",
    "DevnetUnavailable",
    "XrpcError",
    "blob_cid",
    "create_account",
    "create_post",
    "create_record",
    "deactivate_account",
    "delete_account",
    "delete_record",
    "ensure_installed",
    "post_with",
    "run_devnet",
    "set_profile",
    "takedown_account",
    "takedown_blob",
    "upload_blob",
]

HERE = Path(__file__).resolve().parent
READY_TIMEOUT = 120.0
"""Seconds for the servers to start; they take two or three on an idle machine."""
STOP_TIMEOUT = 10.0
"""Seconds for them to end by themselves; network.mjs gives up on its clients after five."""

Blob = dict[str, Any]
"""A blob as records refer to it: ``{"$type", "ref": {"$link": cid}, "mimeType", "size"}``."""


class DevnetUnavailable(Exception):
    """The network cannot be installed or started here; the message says why."""


class XrpcError(Exception):
    """The PDS refused a call.

    Attributes:
        status: the HTTP status.
        error: the error's name, such as ``InvalidRequest``; empty if the answer has none.
    """

    def __init__(self, method: str, status: int, error: str, message: str) -> None:
        super().__init__(f"{method}: {status} {error}: {message}")
        self.status = status
        self.error = error


@dataclass(frozen=True)
class Devnet:
    """Where a running network is. The URLs have no trailing slash."""

    plc_url: str
    pds_url: str
    admin_password: str
    pds_did: str = ""


@dataclass(frozen=True)
class Account:
    """An account on the PDS, with a token that is good for two hours."""

    did: str
    handle: str
    access_jwt: str


def _log_to_stderr(line: str) -> None:
    print(f"devnet: {line}", file=sys.stderr, flush=True)


def ensure_installed(log: Callable[[str], None] = _log_to_stderr) -> Path:
    """Installs and builds the servers, unless that was done before.

    Processes that need it at the same time wait for the one that builds. A build that fails or
    is interrupted leaves nothing that a later call would take for a complete one.

    Returns:
        The folder that holds ``node_modules``.

    Raises:
        DevnetUnavailable: a tool is missing, or the installation or the build failed.
    """
    node, npm = _find("node"), _find("npm")
    about = "[process.version, process.platform, process.arch, process.execPath].join('\\n')"
    platform = _run("node", [node, "-p", about])
    names = ["package.json", "package-lock.json", ".npmrc"]
    key = hashlib.sha256(platform.encode())
    for name in names:
        key.update((HERE / name).read_bytes())
    cache = cache_folder()
    installed = cache / f"devnet-{key.hexdigest()[:16]}"
    if installed.exists():
        return installed

    headers = Path(platform.splitlines()[3]).parents[1]
    if not (headers / "include/node/node.h").exists():
        raise DevnetUnavailable(f"no node headers in {headers / 'include/node'}")
    cache.mkdir(parents=True, exist_ok=True)
    with open(installed.with_suffix(".lock"), "w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if installed.exists():
            return installed
        # One name, so that what a killed build left behind goes away here.
        building = installed.with_suffix(".partial")
        if building.exists():
            shutil.rmtree(building)
        building.mkdir()
        for name in names:
            shutil.copy(HERE / name, building)
        log("installing the PLC directory and the PDS, once; this takes some minutes")
        # Install scripts would download binaries; the one module that needs one is compiled.
        npm_ci = [npm, "ci", "--ignore-scripts", "--no-audit", "--no-fund"]
        _run("npm ci", npm_ci, cwd=building)
        log("compiling better-sqlite3")
        modules = building / "node_modules"
        gyp = [node, str(modules / "node-gyp/bin/node-gyp.js"), "rebuild", "--release"]
        gyp.append(f"--nodedir={headers}")
        _run("building better-sqlite3", gyp, cwd=modules / "better-sqlite3")
        building.rename(installed)
        log(f"installed in {installed}")
    return installed


def _find(tool: str) -> str:
    if path := shutil.which(tool):
        return path
    raise DevnetUnavailable(f"{tool} is not installed")


def _run(what: str, command: list[str], cwd: Path | None = None) -> str:
    done = subprocess.run(
        command,
        cwd=cwd,
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        errors="replace",
    )
    if done.returncode:
        tail = "\n".join((done.stderr or done.stdout).splitlines()[-30:])
        raise DevnetUnavailable(f"{what} failed with status {done.returncode}:\n{tail}")
    return done.stdout


@asynccontextmanager
async def run_devnet(plc_port: int = 0, pds_port: int = 0) -> AsyncIterator[Devnet]:
    """Runs an empty network while the block runs.

    Nothing outlives the block, nor this process, however it ends: the servers stop when their
    standard input closes. Cancellation ends them too, but waits for an installation under way.

    Args:
        plc_port, pds_port: where to listen on 127.0.0.1; 0 takes a free port.

    Raises:
        DevnetUnavailable: it could not be installed, did not start, or took too long to.
    """
    installed = await trio.to_thread.run_sync(ensure_installed)
    command = [_find("node"), str(HERE / "network.mjs"), str(plc_port), str(pds_port)]
    process = await trio.lowlevel.open_process(
        command, cwd=installed, stdin=subprocess.PIPE, stdout=subprocess.PIPE
    )
    assert process.stdin is not None
    assert process.stdout is not None
    try:
        try:
            with trio.fail_after(READY_TIMEOUT):
                line = await _first_line(process.stdout)
        except trio.TooSlowError:
            raise DevnetUnavailable(f"not ready after {READY_TIMEOUT:.0f} seconds") from None
        if not line:
            raise DevnetUnavailable("the servers did not start; standard error says why")
        ready = json.loads(line)
        yield Devnet(**ready)
    finally:
        with trio.CancelScope(shield=True):
            await process.stdin.aclose()
            with trio.move_on_after(STOP_TIMEOUT):
                await process.wait()
            if process.returncode is None:
                process.kill()
                await process.wait()
            await process.stdout.aclose()


async def _first_line(stream: trio.abc.ReceiveStream) -> bytes:
    """The line, or nothing if the stream ends before it does."""
    data = bytearray()
    async for chunk in stream:
        data += chunk
        if b"\n" in chunk:
            return bytes(data)
    return b""


async def create_account(devnet: Devnet, handle: str) -> Account:
    """Creates an account and its did:plc.

    Args:
        handle: one label of at least three letters, digits or hyphens under ``.test``.

    Raises:
        XrpcError: ``InvalidHandle``, or ``InvalidRequest`` when it is taken.
    """
    body = {"handle": handle, "email": f"{handle}@example.com", "password": "password"}
    made = await _post(devnet, "com.atproto.server.createAccount", body)
    return Account(made["did"], made["handle"], made["accessJwt"])


async def upload_blob(devnet: Devnet, account: Account, data: bytes, mime: str) -> Blob:
    """Uploads a blob, which nobody can fetch before a record refers to it.

    Where the PDS knows the type by the content, ``mime`` does not count.

    Raises:
        XrpcError: 413 for more than 16 MiB; 500 for a PNG whose chunks cannot be told apart,
            so a test's broken PNG must be broken inside its pixels.
    """
    headers = _bearer(account) | {"Content-Type": mime}
    answer = await _post(devnet, "com.atproto.repo.uploadBlob", data, headers)
    blob: Blob = answer["blob"]
    return blob


def blob_cid(blob: Blob) -> str:
    """The CID of a blob, as in an image URL."""
    cid: str = blob["ref"]["$link"]
    return cid


async def create_post(devnet: Devnet, account: Account, blobs: Sequence[Blob]) -> str:
    """Posts pictures and returns the record's at:// URI.

    The record is not validated: any number, size and type of blobs will do.
    """
    images = [{"alt": "", "image": blob} for blob in blobs]
    embed = {"$type": "app.bsky.embed.images", "images": images}
    return await create_record(devnet, account, post_with(embed))


def post_with(embed: dict[str, Any]) -> dict[str, Any]:
    """The record of a post without text."""
    created = "2026-01-01T00:00:00Z"
    return {"$type": "app.bsky.feed.post", "text": "", "createdAt": created, "embed": embed}


async def create_record(
    devnet: Devnet, account: Account, record: dict[str, Any], key: str = ""
) -> str:
    """Creates a record in the collection of its ``$type`` and returns its at:// URI.

    It is not validated, so that any Lexicon will do.

    Args:
        key: its record key; empty: one that the PDS makes.
    """
    body = {"repo": account.did, "collection": record["$type"], "record": record, "validate": False}
    body |= {"rkey": key} if key else {}
    made = await _post(devnet, "com.atproto.repo.createRecord", body, _bearer(account))
    uri: str = made["uri"]
    return uri


async def delete_record(devnet: Devnet, account: Account, uri: str) -> None:
    """Deletes a record, and with it the blobs that no other record refers to."""
    collection, rkey = uri.split("/")[-2:]
    body = {"repo": account.did, "collection": collection, "rkey": rkey}
    await _post(devnet, "com.atproto.repo.deleteRecord", body, _bearer(account))


async def set_profile(
    devnet: Devnet, account: Account, avatar: Blob | None = None, banner: Blob | None = None
) -> None:
    """Replaces the account's profile; PNG and JPEG of at most 1 MB are valid in it.

    Raises:
        XrpcError: ``InvalidRequest`` for any other.
    """
    record: dict[str, Any] = {"$type": "app.bsky.actor.profile"}
    record |= {k: blob for k, blob in (("avatar", avatar), ("banner", banner)) if blob}
    body = {"repo": account.did, "collection": record["$type"], "rkey": "self", "record": record}
    await _post(devnet, "com.atproto.repo.putRecord", body, _bearer(account))


async def deactivate_account(devnet: Devnet, account: Account) -> None:
    """Deactivates the account, as its owner."""
    await _post(devnet, "com.atproto.server.deactivateAccount", {}, _bearer(account))


async def delete_account(devnet: Devnet, did: str) -> None:
    """Deletes the account, as the PDS's admin. Its DID stays in the directory."""
    await _admin(devnet, "com.atproto.admin.deleteAccount", {"did": did})


async def takedown_account(devnet: Devnet, did: str, *, applied: bool = True) -> None:
    """Takes the account down, or with ``applied=False`` restores it, as the PDS's admin."""
    await _takedown(devnet, {"$type": "com.atproto.admin.defs#repoRef", "did": did}, applied)


async def takedown_blob(devnet: Devnet, did: str, cid: str, *, applied: bool = True) -> None:
    """Takes one account's blob down, or with ``applied=False`` restores it, as the admin."""
    subject = {"$type": "com.atproto.admin.defs#repoBlobRef", "did": did, "cid": cid}
    await _takedown(devnet, subject, applied)


async def _takedown(devnet: Devnet, subject: Mapping[str, str], applied: bool) -> None:
    body = {"subject": subject, "takedown": {"applied": applied}}
    await _admin(devnet, "com.atproto.admin.updateSubjectStatus", body)


async def _admin(devnet: Devnet, method: str, body: Mapping[str, Any]) -> None:
    credentials = base64.b64encode(f"admin:{devnet.admin_password}".encode()).decode()
    await _post(devnet, method, body, {"Authorization": f"Basic {credentials}"})


def _bearer(account: Account) -> dict[str, str]:
    return {"Authorization": f"Bearer {account.access_jwt}"}


async def _post(
    devnet: Devnet,
    method: str,
    body: Mapping[str, Any] | bytes,
    headers: Mapping[str, str] | None = None,
) -> Any:
    """The decoded answer, or nothing for an empty one; bytes are sent as they are."""
    url = f"{devnet.pds_url}/xrpc/{method}"
    # Without the environment: its proxy settings are not for loopback.
    async with httpx2.AsyncClient(trust_env=False, timeout=30) as client:
        if isinstance(body, bytes):
            response = await client.post(url, content=body, headers=headers)
        else:
            response = await client.post(url, json=body, headers=headers)
    if response.is_success:
        return response.json() if response.content else None
    try:
        answer = response.json()
    except ValueError:
        answer = {"message": response.text}
    error, message = answer.get("error", ""), answer.get("message", "")
    raise XrpcError(method, response.status_code, error, message)
