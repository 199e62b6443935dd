"""What commands are told by name, and on which folder they act."""

from __future__ import annotations

import json
import shutil
from collections.abc import AsyncIterator, Iterator
from contextlib import aclosing, asynccontextmanager, closing
from dataclasses import dataclass, field
from io import BytesIO
from pathlib import Path

import pytest
import trio
from PIL import Image

from proxy.cache.index import Totals
from proxy.config import Config
from proxy.model.identifiers import Cid, Did
from proxy.moderation.configured_store import folder_store_of
from proxy.moderation.store import ModerationStore
from proxy.wiring import coordination_of, disk_cache_of
from tests.cache import blob_cid, key, owner
from tests.cli import Run, put
from tests.fakes.dns import FakeDns, serving_dns
from tests.fakes.sites import document, pds_service
from tests.processes import Upstream, in_background, upstream

ALICE = "alice.test"
POST = "app.bsky.feed.post"
PROFILE = "app.bsky.actor.profile"


def blocked(settings: Config) -> set[tuple[Did | None, Cid | None]]:
    with closing(folder_store_of(settings)) as store:
        return {(each.did, each.cid) for each in store.blocks()}


def kept(settings: Config) -> dict[str, Totals]:
    async def work() -> dict[str, Totals]:
        async with aclosing(disk_cache_of(settings)) as disk:
            return await disk.by_preset()

    return trio.run(work)


# By DID, CID and URL: without a network


def test_several_are_blocked_and_lifted_at_once(run: Run, settings: Config) -> None:
    """Catches the second argument that is left out."""
    url = f"https://cdn.example/img/avatar/plain/{owner(3)}/{blob_cid(3)}@webp"
    what = (blob_cid(2), owner(1), url, f"{owner(4)}/{blob_cid(4)}")
    put(settings, key(1), key(2))
    added = run("blocks", "add", *what, "--reason", "spam")
    told = (
        f"4 blocked in {settings.cache.path}; 2 cached entries removed; in force in 0 processes\n"
    )
    assert (added.exit_code, added.stdout) == (0, told)
    everything = {
        (None, blob_cid(2)),
        (owner(1), None),
        (owner(3), blob_cid(3)),
        (owner(4), blob_cid(4)),
    }
    assert blocked(settings) == everything
    with closing(folder_store_of(settings)) as store:
        assert {each.reason for each in store.blocks()} == {"spam"}
    lifted = run("blocks", "remove", blob_cid(2), owner(1))
    told = f"2 lifted in {settings.cache.path}; in force in 0 processes\n"
    assert (lifted.exit_code, lifted.stdout) == (0, told)
    assert blocked(settings) == {(owner(3), blob_cid(3)), (owner(4), blob_cid(4))}


def test_lifting_several_fails_and_names_the_one_that_was_not_blocked(
    run: Run, settings: Config
) -> None:
    """Catches a success of which half did not happen."""
    run("blocks", "add", owner(1))
    lifted = run("blocks", "remove", owner(1), owner(2))
    assert lifted.exit_code == 1
    assert lifted.stdout.splitlines() == [
        f"1 lifted in {settings.cache.path}; in force in 0 processes",
        f"there was no such block in {settings.cache.path}: {owner(2)} *",
    ]


def test_several_are_purged_at_once(run: Run, settings: Config) -> None:
    """Catches a purge of the first alone."""
    put(settings, key(1), key(2), key(3))
    purged = run("cache", "purge", owner(1), f"/blob/{owner(2)}/{blob_cid(2)}")
    assert purged.stdout.startswith("2 removed from ")


def test_an_account_and_then_a_cid_could_mean_two_things_and_blocks_nothing(
    run: Run, settings: Config
) -> None:
    """Catches a whole account that is blocked for one of its pictures."""
    for command in (("blocks", "add"), ("cache", "purge")):
        result = run(*command, owner(1), blob_cid(1))
        assert result.exit_code == 2
        assert f"{owner(1)}/{blob_cid(1)}" in result.stderr
    assert blocked(settings) == set()


@pytest.mark.parametrize("more", [("--did", owner(2)), ("--file", "-")])
def test_two_ways_to_say_what_to_block_are_not_mixed(
    run: Run, settings: Config, more: tuple[str, str]
) -> None:
    """Catches the one of the two that would be left out."""
    assert run("blocks", "add", owner(1), *more, input=owner(3)).exit_code == 2
    assert blocked(settings) == set()


# By handle, and by what only an account's PDS knows


@dataclass
class Accounts:
    """A directory, a PDS and a nameserver on loopback."""

    upstream: Upstream
    dns: FakeDns
    environment: dict[str, str] = field(default_factory=dict)

    def name(self, did: Did, handle: str, pds: str | None = None) -> None:
        self.dns.records[f"_atproto.{handle}"] = [f"did={did}"]
        service = pds_service(pds or self.upstream.pds.url)
        self.upstream.plc.documents[did] = document(did, service, alsoKnownAs=[f"at://{handle}"])


@asynccontextmanager
async def accounts_on_loopback() -> AsyncIterator[Accounts]:
    async with upstream() as internet, serving_dns() as dns:
        yield Accounts(internet, dns)


@pytest.fixture
def accounts(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[Accounts]:
    with in_background(accounts_on_loopback) as background:
        made = background.value
        environment = made.upstream.environment(
            tmp_path / "cache", IDENTITY__NAMESERVERS=made.dns.address
        )
        for name, value in environment.items():
            monkeypatch.setenv(name, value)
        yield made


def test_a_handle_blocks_its_account_and_the_audit_has_both_names(
    run: Run, settings: Config, accounts: Accounts
) -> None:
    """Catches an audit in which nobody finds who was meant."""
    # Its PDS is gone: a block does not need it.
    accounts.name(owner(1), ALICE, "http://127.0.0.1:9")
    put(settings, key(1))
    added = run("blocks", "add", f"@{ALICE}", "--reason", "spam")
    assert added.exit_code == 0, added.stderr
    first, second = added.stdout.splitlines()
    assert first == f"@{ALICE}: {owner(1)} *"
    assert second.startswith(f"blocked in {settings.cache.path}; 1 cached entries removed")
    assert blocked(settings) == {(owner(1), None)}
    lifted = run("blocks", "remove", "--did", ALICE, "--json")
    assert json.loads(lifted.stdout)["names"] == [{"name": ALICE, "did": owner(1), "cid": None}]
    purged = run("cache", "purge", f"https://bsky.app/profile/{ALICE}")
    assert purged.exit_code == 0, purged.stderr
    with closing(folder_store_of(settings)) as store:
        assert [(each.action, each.did, each.reason) for each in store.audit(10)] == [
            ("block", owner(1), f"spam (named as @{ALICE})"),
            ("lift", owner(1), f"named as {ALICE}"),
            ("purge", owner(1), f"named as https://bsky.app/profile/{ALICE}"),
        ]


def test_handles_in_a_list_are_looked_up_each(
    run: Run, settings: Config, accounts: Accounts
) -> None:
    """Catches a list that takes less than the command line."""
    accounts.name(owner(1), ALICE)
    accounts.name(owner(2), "bob.test")
    lines = f"{ALICE} # spam\n{owner(3)}\nbob.test {blob_cid(2)}\n"
    added = run("blocks", "add", "--file", "-", input=lines)
    assert added.exit_code == 0, added.stderr
    assert blocked(settings) == {(owner(1), None), (owner(3), None), (owner(2), blob_cid(2))}


def test_a_handle_that_leads_nowhere_fails_and_nothing_is_blocked(
    run: Run, settings: Config, accounts: Accounts
) -> None:
    """Catches half of a command in force, and a handle that somebody else's account claims."""
    accounts.name(owner(1), ALICE)
    accounts.dns.records["_atproto.mallory.test"] = [f"did={owner(1)}"]
    added = run("blocks", "add", owner(2), "mallory.test")
    assert added.exit_code == 1
    assert "mallory.test" in added.stderr
    assert blocked(settings) == set()


def test_a_post_blocks_its_pictures_and_an_avatars_url_the_avatar(
    run: Run, settings: Config, accounts: Accounts
) -> None:
    """Catches a whole account that is blocked for the URL of one picture."""
    pds = accounts.upstream.pds
    did, avatar = accounts.upstream.add_blob(b"1")
    accounts.name(did, ALICE)
    pictures = [pds.add_blob(did, data) for data in (b"2", b"3")]
    references = [
        {"$type": "blob", "ref": {"$link": cid}, "mimeType": "image/png", "size": 1}
        for cid in (avatar, *pictures)
    ]
    pds.add_record(did, f"{PROFILE}/self", {"$type": PROFILE, "avatar": references[0]})
    pds.add_record(did, f"{POST}/3kabc", {"$type": POST, "embed": {"images": references[1:]}})
    pds.add_record(did, f"{POST}/3kdef", {"$type": POST, "text": "words"})
    assert run("blocks", "add", f"https://cdn.example/avatar/{ALICE}").exit_code == 0
    assert blocked(settings) == {(did, avatar)}
    added = run("blocks", "add", f"https://bsky.app/profile/{ALICE}/post/3kabc")
    assert added.exit_code == 0, added.stderr
    assert "\n2 blocked in " in added.stdout
    assert blocked(settings) == {(did, avatar), *((did, cid) for cid in pictures)}
    words = run("blocks", "add", f"https://bsky.app/profile/{ALICE}/post/3kdef")
    assert words.exit_code == 1
    assert "has no pictures" in words.stderr
    banner = run("blocks", "add", f"https://cdn.example/banner/{ALICE}")
    assert banner.exit_code == 1
    assert len(blocked(settings)) == 3


# Where one picture is asked for


def test_url_fetch_and_warm_take_a_handle(run: Run, settings: Config, accounts: Accounts) -> None:
    """Catches the one command that wants a DID to be looked up elsewhere first."""
    picture = BytesIO()
    Image.new("RGB", (8, 6)).save(picture, "PNG")
    did, cid = accounts.upstream.add_blob(picture.getvalue(), "image/png")
    accounts.name(did, ALICE)
    environment = {"IMAGE_PROXY_PROCESS__ISOLATION": "thread"}
    assert run("url", "avatar", ALICE, cid).stdout == f"/img/avatar/plain/{did}/{cid}\n"
    link = f"bsky.app/profile/{ALICE}"
    assert run("url", "avatar", link, cid).stdout == f"/img/avatar/plain/{did}/{cid}\n"
    assert run("url", "avatar", f"{link}/post/3abc", cid).exit_code == 2
    fetched = run("fetch", "avatar", ALICE, cid, env=environment)
    assert fetched.exit_code == 0, fetched.stderr
    lines = f"# {ALICE} {cid}\navatar @{ALICE} {cid}\nbanner {ALICE} {cid} webp\n"
    warmed = run("warm", input=lines, env=environment)
    assert warmed.stdout == (
        f"1 made, 1 were cached, 0 skipped, 0 failed, in {settings.cache.path}\n"
    )
    assert {name.partition("-")[0] for name in kept(settings)} == {"avatar", "banner"}
    for arguments in (
        ("url", "avatar", "nobody.test", cid),
        ("fetch", "avatar", "nobody.test", cid),
    ):
        failed = run(*arguments, env=environment)
        assert failed.exit_code == 1
        assert "nobody.test" in failed.stderr
    assert run("warm", input=f"nobody.test {cid}", env=environment).exit_code == 1
    told = run("info", f"https://{link}", f"\u202a{cid}\u202c", env=environment)
    assert told.exit_code == 0, told.stderr


def test_warm_tells_what_it_skipped_and_what_the_cache_did_not_keep(
    run: Run, settings: Config, accounts: Accounts
) -> None:
    """Catches "14 made" over a cache that evicted most of them, and a video that is a failure."""
    picture = BytesIO()
    Image.new("RGB", (8, 6)).save(picture, "PNG")
    did, cid = accounts.upstream.add_blob(picture.getvalue(), "image/png")
    video = accounts.upstream.pds.add_blob(did, b"\0\0\0\x18ftypmp42" + bytes(100), "video/mp4")
    environment = {
        "IMAGE_PROXY_PROCESS__ISOLATION": "thread",
        "IMAGE_PROXY_CACHE__MAX_GB": "5e-7",
    }
    lines = f"{did} {cid}\navatar {did} {video}\n"
    warmed = run("warm", "--json", input=lines, env=environment)
    document = json.loads(warmed.stdout)
    assert warmed.exit_code == 1
    assert (document["images"], document["made"], document["skipped"]) == (10, 9, 1)
    assert document["unwritten"] == 0
    on_disk = sum(totals.entries for totals in kept(settings).values())
    assert document["evicted"] == 9 - on_disk > 0
    (skip,) = document["skips"]
    assert "a video (video/mp4)" in skip["reason"]
    assert "cache.max_gb is 5e-07: the first of it will be evicted" in warmed.stderr
    again = run("warm", input=f"{did} {cid}\n", env=environment)
    assert again.exit_code == 1, "nothing was skipped, and something was not kept"
    assert "not kept: evicted, as cache.max_gb is full" in again.stdout
    enough = run(
        "warm", input=f"{did} {cid}\n", env=environment | {"IMAGE_PROXY_CACHE__MAX_GB": "1"}
    )
    assert enough.exit_code == 0, enough.stdout
    assert "warning: the list" not in enough.stderr


def test_a_did_is_looked_up_by_nobody(run: Run, settings: Config, accounts: Accounts) -> None:
    """Catches a URL that cannot be printed while DNS is down, or that waits for it."""
    assert run("url", "avatar", owner(1), blob_cid(1)).exit_code == 0
    assert run("blocks", "add", owner(1)).exit_code == 0
    assert accounts.dns.asked == []
    assert accounts.upstream.plc.requests == []


# The folder


@pytest.fixture
def here(run: Run, settings: Config, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A server's folder that is only in the working directory: nothing names it."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("IMAGE_PROXY_CACHE__PATH")
    return settings.cache.path


ON_A_FOLDER_THAT_IS_MEANT = [
    ("blocks", "add", owner(1)),
    ("blocks", "remove", owner(1)),
    ("blocks", "check", owner(1)),
    ("cache", "purge", owner(1)),
]


@pytest.mark.parametrize("command", ON_A_FOLDER_THAT_IS_MEANT, ids=" ".join)
def test_a_folder_that_only_happens_to_be_here_is_refused(
    run: Run, here: Path, command: tuple[str, ...]
) -> None:
    """Catches "blocked" told of the folder of a trial, while the server's is elsewhere."""
    before = sorted(here.rglob("*"))
    result = run(*command)
    assert (result.exit_code, result.stdout) == (2, "")
    assert f"IMAGE_PROXY_CACHE__PATH={here}" in result.stderr
    assert "--config" in result.stderr
    assert sorted(here.rglob("*")) == before


@pytest.mark.parametrize("by", ["environment", "seed", "config", "server"])
def test_a_folder_that_is_meant_is_taken(run: Run, here: Path, tmp_path: Path, by: str) -> None:
    """Catches a refusal for which there is no way to say "this one"."""
    arguments: list[str] = []
    environment: dict[str, str] = {}
    replicas = coordination_of(Config.model_validate({"cache": {"path": here}})).replicas()
    match by:
        case "environment":
            environment["IMAGE_PROXY_CACHE__PATH"] = "./cache"
        case "seed":
            environment["IMAGE_PROXY_CACHE_PATH"] = str(here)
        case "config":
            file = tmp_path / "config.toml"
            file.write_text('[cache]\npath = "./cache"\n')
            arguments = ["--config", str(file)]
        case "server":
            replicas.enter()
            replicas.note(2**40)
    try:
        result = run("blocks", "add", owner(1), *arguments, env=environment)
    finally:
        replicas.leave()
    assert result.exit_code == 0, result.stderr
    in_force = "in force in 1 process\n" if by == "server" else "in force in 0 processes\n"
    assert result.stdout.endswith(in_force)
    with closing(ModerationStore(here / "moderation.sqlite3")) as store:
        assert len(list(store.blocks())) == 1


def test_a_configuration_that_does_not_name_the_folder_means_none(
    run: Run, here: Path, tmp_path: Path
) -> None:
    """Catches the folder of the working directory behind a file that says nothing of it."""
    file = tmp_path / "config.toml"
    file.write_text("[server]\nworkers = 2\n")
    assert run("blocks", "add", owner(1), "--config", str(file)).exit_code == 2


def test_what_is_merely_listed_tells_its_folder(run: Run, here: Path) -> None:
    """Catches a look at a folder of one's own that is refused."""
    result = run("blocks", "list")
    assert (result.exit_code, result.stderr) == (0, f"no blocks in {here}\n")
    shutil.rmtree(here)
