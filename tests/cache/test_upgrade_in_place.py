"""A cache folder goes from the code of an earlier commit to today's, whose modules lie elsewhere.

The earlier code makes the folder itself: it comes from the history of the checkout and runs in
processes of its own. A rolling restart has both versions at work on one folder, so they are also
tested side by side.
"""

from __future__ import annotations

import io
import json
import os
import re
import signal
import subprocess
import sys
import tarfile
from collections.abc import Mapping
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest
import trio

from proxy.coordination.leader import FolderLeadership
from proxy.model.formats import Format
from proxy.model.identifiers import Cid, Did
from proxy.model.presets import ENCODER_REVISIONS
from proxy.model.selection import Selection
from proxy.moderation.feeds.labels import Label
from proxy.moderation.store import ModerationStore
from tests.fakes.world import tiny_jpeg, tiny_png
from tests.moderation import feed_store_in
from tests.processes import (
    PATIENCE,
    ROOT,
    SERVE,
    Reply,
    Server,
    Upstream,
    files_in,
    imageproxy,
    own_environment,
    serve,
    until,
    upstream,
)
from tests.required import skip_unless_required

pytestmark = pytest.mark.slow

LAST_COMMIT = "0e8232895a51ffb3c281c21920a17fa2a7797051"
"""The last one with another layout of modules."""

PATHS = ("avatar_thumbnail/plain/{}@png", "avatar/plain/{}@png", "banner/plain/{}@png")
"""Results of each blob, by an encoder that both codes have."""

LABELER = "did:plc:ar7c4by46qjdydhdevvrndac"

TOKEN = "a-token-of-the-operator"

CDN = {
    "IMAGE_PROXY_CDN__KIND": "cloudflare",
    "IMAGE_PROXY_CDN__ZONE": "0123456789abcdef" * 2,
    "IMAGE_PROXY_CDN__TOKEN": "secret",
    "IMAGE_PROXY_SERVER__CDN_URL": "https://cdn.example",
}

OF_A_FEED = """
import sys
from pathlib import Path
from proxy.cache.base import Selection
from proxy.moderation.feeds.labels import Label
from proxy.moderation.feeds.store import FeedStore
from proxy.moderation.store import ModerationStore

folder, labeler, did = Path(sys.argv[1]), *sys.argv[2:]
ModerationStore(folder / "moderation.sqlite3").set_cursor("relay", 4711)
feeds = FeedStore(folder / "feeds.sqlite3")
number = feeds.follow(labeler, "settings")
label = Label(labeler, did, "", "spam", False, 100.0, None, b"", b"")
assert feeds.put(label, Selection(did), 0.0) is not None
print("followed as", number)
"""
"""What no command writes, by the names that the modules of the last commit have."""


@pytest.fixture(scope="module")
def last_commit(tmp_path_factory: pytest.TempPathFactory) -> Mapping[str, str]:
    """The environment in which ``python -m proxy`` runs the code of the last commit.

    With today's revision of PNG, so that what it makes is taken over, whatever encoders are new.
    """
    folder = tmp_path_factory.mktemp("last-commit")
    command = ["git", "archive", LAST_COMMIT, "proxy", "config.toml"]
    try:
        archive = subprocess.run(command, cwd=ROOT, capture_output=True, check=True).stdout
    except (FileNotFoundError, subprocess.CalledProcessError):
        skip_unless_required("needs git, and a clone with the history of the project")
    with tarfile.open(fileobj=io.BytesIO(archive)) as files:
        files.extractall(folder, filter="data")
    presets = folder / "proxy/presets.py"
    revision = f"ENCODER_REVISION = {ENCODER_REVISIONS[Format.PNG]}\n"
    text, changed = re.subn(r"ENCODER_REVISION = \d+\n", revision, presets.read_text())
    assert changed == 1
    presets.write_text(text)
    # Ahead of the installed package; and the current folder, which has today's code, is left out.
    return {"PYTHONPATH": str(folder), "PYTHONSAFEPATH": "1"}


async def output(environment: Mapping[str, str], *arguments: str) -> str:
    """What ``python`` with ``arguments`` prints, once it has ended well."""
    with trio.fail_after(PATIENCE):
        done = await trio.run_process(
            [sys.executable, *arguments],
            cwd=ROOT,
            env=own_environment(environment),
            capture_stdout=True,
        )
    return done.stdout.decode()


class Accounts:
    """Pictures of some accounts at an upstream, and how a proxy is asked for them."""

    def __init__(self, internet: Upstream) -> None:
        self.kept = [internet.add_blob(tiny_jpeg((at, 2, 3))) for at in range(3)]
        self.blocked = internet.add_blob(tiny_png())
        self.purged = internet.add_blob(tiny_png((1, 1, 1)))
        self.lifted = internet.add_blob(tiny_png((2, 2, 2)))

    @property
    def targets(self) -> list[str]:
        """Of what has to be there afterwards."""
        return [target for blob in self.kept for target in targets_of(blob)]


def targets_of(blob: tuple[Did, Cid]) -> list[str]:
    did, cid = blob
    return [f"/img/{path.format(f'{did}/{cid}')}" for path in PATHS]


async def all_of(server: Server, targets: list[str], state: str) -> dict[str, Reply]:
    """The answers, each with ``state`` as its ``X-Cache``."""
    found = {target: await server.get(target) for target in targets}
    assert {each.headers["x-cache"] for each in found.values()} == {state}
    return found


async def decided(server: Server, method: str, route: str, blob: tuple[Did, Cid]) -> Any:
    """What the administrative API answers to a decision about an account."""
    body = json.dumps({"did": blob[0], "reason": "of the last commit"}).encode()
    headers = (("Authorization", f"Bearer {TOKEN}"), ("Content-Type", "application/json"))
    reply = await server.get(f"/admin/{route}", *headers, method=method, body=body)
    assert reply.status == 200, reply
    return json.loads(reply.body)


def has_open(pid: int, file: Path) -> bool:
    """Whether a process has ``file`` open; by Linux' /proc."""
    descriptors = Path(f"/proc/{pid}/fd")
    return any(os.path.realpath(each) == str(file) for each in descriptors.iterdir())


def settings(internet: Upstream, cache: Path) -> dict[str, str]:
    return internet.environment(cache, PROCESS__ISOLATION="thread", SERVER__ADMIN_TOKEN=TOKEN)


async def test_the_processes_of_the_last_commit_run_its_code(
    last_commit: Mapping[str, str],
) -> None:
    """Catches tests below that have today's code take over its own folder."""
    where = "import proxy, proxy.opening; print(proxy.__file__)"
    assert last_commit["PYTHONPATH"] in await output(last_commit, "-c", where)


async def test_a_folder_of_the_last_commit_is_taken_over_whole(
    last_commit: Mapping[str, str], tmp_path: Path
) -> None:
    """Catches results that are made again or get another ETag, blocks that are lifted, an audit
    that begins anew, and a queue for the CDN that is lost."""
    async with upstream() as internet:
        accounts = Accounts(internet)
        today = settings(internet, tmp_path)
        old = {**today, **last_commit}
        did, cid = accounts.purged
        async with serve(SERVE, old) as server:
            before = await all_of(server, accounts.targets, "miss")
            for blob in (accounts.blocked, accounts.lifted, accounts.purged):
                await all_of(server, targets_of(blob), "miss")
            await until(lambda: len(files_in(tmp_path)) == len(PATHS) * 6)
            assert await decided(server, "POST", "blocks", accounts.blocked) == {"removed": 3}
            assert await decided(server, "POST", "blocks", accounts.lifted) == {"removed": 3}
            assert await decided(server, "DELETE", "blocks", accounts.lifted) == {"lifted": True}
            # The server has no CDN, and leaves its queue alone.
            purge = imageproxy("cache", "purge", "--did", did, "--cid", cid)
            assert "3 removed" in await output({**old, **CDN}, *purge)
            # Nothing is tidied up at its end.
            server.send(signal.SIGKILL)
            await server.exit_code()
        fetched = internet.blobs_asked_for

        async with serve(SERVE, today) as server:
            # Blocks first: they hold from the first request on.
            assert (await server.get(targets_of(accounts.blocked)[0])).status == 404
            after = await all_of(server, accounts.targets, "hit")
            for target, reply in before.items():
                assert after[target].body == reply.body
                assert after[target].headers["etag"] == reply.headers["etag"]
            assert internet.blobs_asked_for == fetched
            await all_of(
                server, [*targets_of(accounts.purged), *targets_of(accounts.lifted)], "miss"
            )
            # A file that is being written is what verify would tell of.
            server.send(signal.SIGTERM)
            assert await server.exit_code() == 0
        with closing(ModerationStore(tmp_path / "moderation.sqlite3")) as decisions:
            assert [(each.did, each.reason) for each in decisions.blocks()] == [
                (accounts.blocked[0], "of the last commit")
            ]
            assert [(each.action, each.did, each.removed) for each in decisions.audit(10)] == [
                ("block", accounts.blocked[0], 3),
                ("block", accounts.lifted[0], 3),
                ("lift", accounts.lifted[0], None),
                ("purge", did, 3),
            ]
        assert cid in await output(today, *imageproxy("blocks", "list", "--pending-cdn"))
        await output(today, *imageproxy("cache", "verify"))


async def test_the_last_commit_takes_the_folder_back_and_leaves_what_it_does_not_know(
    last_commit: Mapping[str, str], tmp_path: Path
) -> None:
    """Catches a way back that lifts blocks, that serves nothing, or that costs today's results."""
    async with upstream() as internet:
        accounts = Accounts(internet)
        today = settings(internet, tmp_path)
        old = {**today, **last_commit}
        async with serve(SERVE, today) as server:
            before = await all_of(server, accounts.targets, "miss")
            await decided(server, "POST", "blocks", accounts.blocked)
            await until(lambda: len(files_in(tmp_path)) == len(PATHS) * 3)
        async with serve(SERVE, old) as server:
            assert (await server.get(targets_of(accounts.blocked)[0])).status == 404
            assert {(await server.get(each)).status for each in accounts.targets} == {200}
            assert await decided(server, "DELETE", "blocks", accounts.blocked) == {"lifted": True}
        async with serve(SERVE, today) as server:
            after = await all_of(server, accounts.targets, "hit")
            assert {each: reply.body for each, reply in after.items()} == {
                each: reply.body for each, reply in before.items()
            }
            assert (await server.get(targets_of(accounts.blocked)[0])).status == 200


async def test_a_configuration_goes_forward_and_is_refused_in_words_on_the_way_back(
    last_commit: Mapping[str, str],
) -> None:
    """Catches a key that a release has no more, and one that an older release passes over."""
    file = Path(last_commit["PYTHONPATH"]) / "config.toml"
    check = imageproxy("config", "check")
    assert await output({}, *check, "--config", str(file)) == "ok\n"
    newer = {"IMAGE_PROXY_FETCH__PROXY": "http://proxy.example:3128"}
    assert await output(newer, *check) == "ok\n"
    done = await trio.run_process(
        [sys.executable, *check],
        cwd=ROOT,
        env=own_environment({**newer, **last_commit}),
        capture_stderr=True,
        check=False,
    )
    assert done.returncode != 0
    assert "fetch.proxy: unknown key" in done.stderr.decode()


async def test_feeds_go_on_where_the_last_commit_stopped(
    last_commit: Mapping[str, str], tmp_path: Path
) -> None:
    """Catches cursors and labels that are not found, so that feeds are followed from the start."""
    did = Did("did:plc:ewvi7nxzyoun6zhxrhs64oiz")
    told = await output(last_commit, "-c", OF_A_FEED, str(tmp_path), LABELER, did)
    with closing(ModerationStore(tmp_path / "moderation.sqlite3")) as decisions:
        assert decisions.cursor("relay") == 4711
    with closing(feed_store_in(tmp_path)) as feeds:
        assert f"followed as {feeds.follow(LABELER, 'settings')}" in told
        older = Label(LABELER, did, "", "spam", True, 99.0, None, b"", b"")
        assert feeds.put(older, Selection(did), 0.0) is None
        newer = Label(LABELER, did, "", "spam", True, 101.0, None, b"", b"")
        touched = feeds.put(newer, Selection(did), 0.0)
        assert touched is not None
        assert touched.lift == (Selection(did),)


async def test_a_block_of_either_code_is_in_force_in_both_when_its_call_returns(
    last_commit: Mapping[str, str], tmp_path: Path
) -> None:
    """Catches marks of followers, or versions, that the other code does not read."""
    async with upstream() as internet:
        today = settings(internet, tmp_path)
        old = {**today, **last_commit}
        async with serve(SERVE, old) as earlier, serve(SERVE, today) as later:
            both = (earlier, later)
            for deciding in both:
                blob = internet.add_blob(tiny_jpeg())
                target = targets_of(blob)[0]
                assert [(await each.get(target)).status for each in both] == [200, 200]
                await decided(deciding, "POST", "blocks", blob)
                assert [(await each.get(target)).status for each in both] == [404, 404]
                await decided(deciding, "DELETE", "blocks", blob)
                assert [(await each.get(target)).status for each in both] == [200, 200]


@pytest.mark.parametrize("first_is_old", [True, False])
async def test_both_codes_make_a_result_once(
    first_is_old: bool, last_commit: Mapping[str, str], tmp_path: Path
) -> None:
    """Catches build locks of another file or another byte: the same work is done twice."""
    async with upstream() as internet:
        target = targets_of(internet.add_blob(tiny_jpeg()))[0]
        today = settings(internet, tmp_path)
        old = {**today, **last_commit}
        first, second = (old, today) if first_is_old else (today, old)
        async with serve(SERVE, first) as leading, serve(SERVE, second) as waiting:
            held = internet.hold_blobs()
            replies: dict[str, Reply] = {}

            async def ask(name: str, server: Server) -> None:
                replies[name] = await server.get(target)

            async with trio.open_nursery() as nursery:
                nursery.start_soon(ask, "leading", leading)
                await held.seen.wait()
                nursery.start_soon(ask, "waiting", waiting)
                # A process opens the file with its first try to lock a byte of it.
                await until(lambda: has_open(waiting.pid, tmp_path / "flights.lock"))
                held.released.set()
            assert internet.blobs_asked_for == 1
            assert replies["leading"].headers["x-cache"] == "miss"
            assert replies["waiting"].headers["x-cache"] == "coalesced"
            assert replies["waiting"].body == replies["leading"].body


async def test_both_codes_lock_the_same_file_for_a_chore(
    last_commit: Mapping[str, str], tmp_path: Path
) -> None:
    """Catches a chore that two processes do at once, each by the lock file of its own code."""
    lock = FolderLeadership(tmp_path / "turns" / "revalidation")

    def is_taken() -> bool:
        if not lock.take():
            return True
        lock.give_up()
        return False

    async with upstream() as internet:
        today = settings(internet, tmp_path)
        for code in ({**today, **last_commit}, today):
            async with serve(SERVE, code):
                await until(is_taken)
            assert not is_taken()
