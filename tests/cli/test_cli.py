"""The command line: what scripts read, and the exit code that they act on.

Commands that reach a network are tested where a network is; here the cache has what they need.
"""

from __future__ import annotations

import getpass
import json
import os
import pty
import pwd
import re
import shutil
import sqlite3
import subprocess
import sys
from collections.abc import Mapping
from contextlib import aclosing, closing
from pathlib import Path

import pytest
import trio
from click.testing import CliRunner, Result
from structlog.testing import capture_logs

from proxy.cache.interface import Entry
from proxy.cli import cli
from proxy.cli.caching import BAR, bar
from proxy.cli.warming import WARM_LINE, parse_warm_line
from proxy.config import Config, Layer, load_config
from proxy.errors import InvalidCid, InvalidDid, InvalidFormat, InvalidPreset, InvalidRequest
from proxy.lifecycle import open_moderator
from proxy.model.formats import Format
from proxy.model.keys import BlobKey, ImageKey, PosterKey, image_key, poster_key
from proxy.model.picture_info import PictureInfo, info_key
from proxy.model.presets import DEFAULT_PRESETS
from proxy.model.selection import Selection
from proxy.moderation.cdn.queue import CdnQueue
from proxy.moderation.configured_store import folder_store_of, moderation_database_of
from proxy.tools.nginx import server_block
from proxy.urls import image_url
from proxy.wiring import disk_cache_of
from tests.cache import blob_cid, entry, key, owner
from tests.cli import Run, put
from tests.required import skip_unless_required

DID = "did:plc:z72i7hdynmk6r22z27h6tvur"
CID = "bafkreibnoelefnzgwbcacyt4vh52ymxvzbjq7mmqhtcnwarfq4lzegsiqe"
PATH = f"/img/avatar/plain/{DID}/{CID}"

USER = f"cli:{getpass.getuser()}"


def without_store(folder: Path) -> None:
    """Have the folder of a server that could not keep anything."""
    shutil.rmtree(folder)
    (folder / "images").mkdir(parents=True)


def rows(result: Result) -> list[list[str]]:
    """What a command lists, without when that was."""
    assert result.exit_code == 0, result.stderr
    return [re.split(r" {2,}", line)[1:] for line in result.stdout.splitlines()[1:]]


def block(settings: Config, selection: Selection, *, by: str) -> None:
    async def work() -> None:
        async with open_moderator(settings) as moderator:
            await moderator.block(selection, by=by)

    trio.run(work)


def entries(settings: Config) -> int:
    async def work() -> int:
        async with aclosing(disk_cache_of(settings)) as disk:
            return sum(row.entries for row in (await disk.by_preset()).values())

    return trio.run(work)


# config


@pytest.mark.parametrize(
    "environment",
    [
        {},
        {
            "IMAGE_PROXY_SERVER__BIND": "[::]:9000",
            "IMAGE_PROXY_SERVER__CDN_URL": "https://cdn.example",
            "IMAGE_PROXY_FETCH__TIMEOUT": "0.25",
            "IMAGE_PROXY_CACHE__MAX_GB": "1e-05",
            "IMAGE_PROXY_PROCESS__MAX_MEGAPIXELS": "1e+16",
            "IMAGE_PROXY_BLOB__ALLOWED_TYPES": "image/*,video/mp4",
            "IMAGE_PROXY_PRESETS__AVATAR__QUALITY": "70",
            "IMAGE_PROXY_PRESETS__MINE__WIDTH": "10",
            "IMAGE_PROXY_PRESETS__MINE__FIT": "contain",
            "IMAGE_PROXY_PRESETS__MINE__QUALITY": "1",
        },
        {"IMAGE_PROXY_CACHE__PATH": 'C:\\images "new"\n\t\x7f\x1b'},
        {"IMAGE_PROXY_CACHE__PATH": "/srv/caf\u00e9/\u4e2d/\U0001f600"},
    ],
    ids=["defaults", "every type", "escapes", "beyond ASCII"],
)
def test_what_config_show_prints_is_a_file_of_the_same_configuration(
    run: Run, tmp_path: Path, environment: dict[str, str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Catches output that only looks like the file it cannot be."""
    shown = run("config", "show", env=environment)
    assert shown.exit_code == 0
    file = tmp_path / "shown.toml"
    file.write_text(shown.stdout, encoding="utf-8")
    expected = load_config(environment={**os.environ, **environment})
    assert load_config(file, environment={}) == expected
    monkeypatch.delenv("IMAGE_PROXY_CACHE__PATH")
    of_file = run("config", "show", "--config", str(file)).stdout
    assert re.sub(r"  # .*", "", of_file) == re.sub(r"  # .*", "", shown.stdout)


def test_config_show_masks_the_token(run: Run) -> None:
    """Catches a secret in a terminal, a ticket, a screenshot."""
    shown = run("config", "show", env={"IMAGE_PROXY_SERVER__ADMIN_TOKEN": "s3cret-of-sixteen"})
    assert "s3cret" not in shown.output
    line = next(line for line in shown.stdout.splitlines() if line.startswith("admin_token"))
    assert "*" in line, "one must still see that there is one"


def test_config_show_masks_named_tokens_and_keeps_their_names(run: Run) -> None:
    """Catches secrets in a table of the file, which the mask of single keys does not reach."""
    shown = run(
        "config", "show", env={"IMAGE_PROXY_SERVER__ADMIN_TOKENS__ALICE": "s3cret-of-sixteen"}
    )
    assert "s3cret" not in shown.output
    assert '[server.admin_tokens]\nalice = "***' in shown.stdout


def test_config_show_says_where_each_value_is_from(run: Run, tmp_path: Path) -> None:
    """Catches a variable of a container image that beats a mounted file, and nobody sees it."""
    file = tmp_path / "mounted.toml"
    file.write_text(
        '[server]\nbind = "0.0.0.0:80"\nworkers = 2\n[fetch]\ntimeout = 5\n'
        "[presets.avatar]\nquality = 70\n"
    )
    environment = {
        "IMAGE_PROXY_SERVER__BIND": "127.0.0.1:1",
        "IMAGE_PROXY_FETCH_TIMEOUT_SECONDS": "5",
        "IMAGE_PROXY_FETCH__WORKERS": "7",
    }
    shown = run("config", "show", "--config", str(file), env=environment).stdout.splitlines()
    assert f'bind = ["127.0.0.1:1"]  # IMAGE_PROXY_SERVER__BIND, over {file}' in shown
    assert f"workers = 2  # {file}" in shown
    assert "timeout = 5.0  # IMAGE_PROXY_FETCH_TIMEOUT_SECONDS" in shown, "the same value"
    assert "workers = 7  # IMAGE_PROXY_FETCH__WORKERS" in shown
    assert f"quality = 70  # {file}" in shown
    assert "queue_size = 256" in shown


def test_config_show_tells_no_secret_of_a_file(run: Run, tmp_path: Path) -> None:
    """Catches a comment that shows what the value hides."""
    file = tmp_path / "mounted.toml"
    file.write_text('[server]\nadmin_token = "secret-of-the-file"\n')
    environment = {"IMAGE_PROXY_SERVER__ADMIN_TOKEN": "secret-of-the-environment"}
    shown = run("config", "show", "--config", str(file), env=environment)
    assert "IMAGE_PROXY_SERVER__ADMIN_TOKEN, over" in shown.stdout
    assert "secret-of" not in shown.output


def test_serve_warns_of_a_variable_that_beats_its_file(
    run: Run, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """Catches a mounted file that is not in force, in silence; and a warning of an option."""
    monkeypatch.setattr("proxy.serving.serve.serve", lambda *_arguments: 0)
    file = tmp_path / "mounted.toml"
    file.write_text('[server]\nbind = "0.0.0.0:80"\n[log]\nlevel = "info"\n')
    environment = {"IMAGE_PROXY_SERVER__BIND": "127.0.0.1:1", "IMAGE_PROXY_LOG__LEVEL": "info"}
    for arguments, warned in ([], ["server.bind"]), (["--bind", "127.0.0.1:2"], []):
        with capture_logs() as lines:
            served = CliRunner().invoke(
                cli, ["serve", "--config", str(file), *arguments], env=environment
            )
        assert served.exit_code == 0
        assert [line["key"] for line in lines] == warned


@pytest.mark.parametrize("mark", ["", "\ufeff"])
def test_a_byte_order_mark_is_skipped(
    run: Run, settings: Config, tmp_path: Path, mark: str
) -> None:
    """Catches files of editors on Windows whose first line is no key, no CID and no DID."""
    file = tmp_path / "marked.toml"
    file.write_text(f"{mark}[server]\nworkers = 3\n", encoding="utf-8")
    assert '"workers": 3' in run("config", "show", "--json", "--config", str(file)).stdout
    blocks = tmp_path / "blocks"
    blocks.write_text(f"{mark}{owner(1)}\n{owner(2)}\n", encoding="utf-8")
    assert run("blocks", "add", "--file", str(blocks)).exit_code == 0
    assert run("blocks", "add", "--file", "-", input=f"{mark}{owner(3)}\n").exit_code == 0
    put(settings, key(4))
    images = tmp_path / "images"
    images.write_text(f"{mark}{image_url(key(4))}\n", encoding="utf-8")
    environment = {"IMAGE_PROXY_PROCESS__ISOLATION": "thread"}
    assert run("warm", str(images), env=environment).exit_code == 0
    assert run("warm", input=f"{mark}{image_url(key(4))}\n", env=environment).exit_code == 0


def test_config_check_tells_a_missing_package_beside_a_wrong_value(
    run: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Catches a mistake that appears only once another one is mended."""
    monkeypatch.setattr("proxy.extras.NEEDED", {"otel": ("no_such_module",)})
    environment = {
        "IMAGE_PROXY_FETCH__TIMEOUT": "soon",
        "IMAGE_PROXY_NOSUCH": "1",
        "IMAGE_PROXY_TRACE__ENDPOINT": "http://127.0.0.1:4318",
    }
    checked = run("config", "check", env=environment)
    assert checked.exit_code == 2
    found = {line.split()[1].rstrip(":") for line in checked.stderr.splitlines()}
    assert found == {"IMAGE_PROXY_NOSUCH", "fetch.timeout", "trace.endpoint"}


def test_config_check_passes_what_is_right(run: Run) -> None:
    """Catches a check that says nothing, so that nobody knows whether it ran."""
    result = run("config", "check")
    assert (result.exit_code, result.stdout, result.stderr) == (0, "ok\n", "")


@pytest.mark.parametrize("command", [("config", "check"), ("config", "show"), ("cache", "stats")])
def test_every_mistake_is_told_with_its_key_and_the_exit_code_is_2(
    run: Run, tmp_path: Path, command: tuple[str, str]
) -> None:
    """Catches a check that stops at the first mistake, and a command that runs in spite of them."""
    file = tmp_path / "wrong.toml"
    file.write_text("[server]\nworkers = 0\ncolour = 'red'\nadmin_token = 12345\n[nosuch]\n")
    result = run(*command, "--config", str(file), env={"IMAGE_PROXY_FETCH__TIMEOUT": "soon"})
    assert result.exit_code == 2
    assert result.stdout == ""
    lines = result.stderr.splitlines()
    assert all(line.startswith("config: ") for line in lines)
    assert sorted(line.split()[1].rstrip(":") for line in lines) == [
        "fetch.timeout",
        "nosuch",
        "server.admin_token",
        "server.colour",
        "server.workers",
    ]
    assert "12345" not in result.output


def test_a_configuration_that_cannot_be_read_is_exit_code_2(run: Run, tmp_path: Path) -> None:
    """Catches a start with the defaults where a file was asked for."""
    missing = tmp_path / "missing.toml"
    for result in (
        run("config", "check", "--config", str(missing)),
        run("config", "check", env={"IMAGE_PROXY_CONFIG": str(missing)}),
        run("config", "check", "--config", str(tmp_path)),
    ):
        assert result.exit_code == 2
        assert str(tmp_path) in result.stderr


# url


@pytest.mark.parametrize(
    ("environment", "base"),
    [
        ({}, ""),
        ({"IMAGE_PROXY_SERVER__BASE_URL": "https://img.example/"}, "https://img.example"),
        ({"IMAGE_PROXY_SERVER__CDN_URL": "https://cdn.example"}, "https://cdn.example"),
        (
            {
                "IMAGE_PROXY_SERVER__BASE_URL": "https://img.example",
                "IMAGE_PROXY_SERVER__CDN_URL": "https://cdn.example",
            },
            "https://cdn.example",
        ),
        ({"IMAGE_PROXY_BASE_URL": "https://seed.example"}, "https://seed.example"),
    ],
)
def test_url_prints_the_public_url_of_the_cdn_first(
    run: Run, environment: dict[str, str], base: str
) -> None:
    """Catches links that go around the CDN, and links of 127.0.0.1."""
    assert run("url", "avatar", DID, CID, env=environment).stdout == f"{base}{PATH}\n"


def test_url_knows_formats_and_escapes_a_port(run: Run) -> None:
    """Catches a URL that the server it is for would refuse."""
    assert run("url", "avatar", DID, CID, "--format", "webp").stdout == f"{PATH}@webp\n"
    result = run("url", "avatar", "did:web:localhost%3A2583", CID)
    assert result.stdout == f"/img/avatar/plain/did:web:localhost%253A2583/{CID}\n"


WRONG_PARTS = [
    (("nosuch", DID, CID), "invalid preset: nosuch"),
    (("avatar", "did:plc:x", CID), "invalid DID format"),
    (("avatar", DID, "x"), "invalid CID format"),
    (("avatar", DID, CID, "--format", "gif"), "invalid format"),
]


@pytest.mark.parametrize("command", ["url", "fetch"])
@pytest.mark.parametrize(("arguments", "message"), WRONG_PARTS)
def test_a_part_that_is_wrong_is_a_usage_error(
    run: Run, command: str, arguments: tuple[str, ...], message: str
) -> None:
    """Catches a script that prints a dead link and goes on."""
    result = run(command, *arguments)
    assert result.exit_code == 2
    assert result.stdout == ""
    assert message in result.stderr


RIGHT_PARTS = [
    (("avatr", DID, CID), "avatr", "avatar_small"),
    (("avatar", "alice.example", CID), "alice.example", "alice.community"),
    (("avatar", DID, "cid"), "'cid'", "bafkrei"),
    (("avatar", DID, CID, "--format", "bmp"), "'bmp'", "jpeg, png, webp, avif"),
]


@pytest.mark.parametrize("command", ["url", "fetch", "warm"])
@pytest.mark.parametrize(("arguments", "wrong", "right"), RIGHT_PARTS)
def test_a_part_that_is_wrong_is_told_with_what_would_be_right(
    run: Run, command: str, arguments: tuple[str, ...], wrong: str, right: str
) -> None:
    """Catches a message after which one has to look the names up."""
    if command == "warm":
        line = " ".join(part for part in arguments if part != "--format")
        result = run("warm", input=line)
    else:
        result = run(command, *arguments)
    assert result.exit_code == 2
    assert wrong in result.stderr
    assert right in result.stderr


@pytest.mark.parametrize(
    ("arguments", "right"),
    [
        (("warm", "--preset", "avatr"), "avatar_small"),
        (("warm", "--account", "alice"), "alice.community"),
        (("cache", "purge", "--did", "alice"), "a handle such as alice.community"),
        (("blocks", "add", "bafkreix"), "bafkrei..."),
        (("blocks", "add", "https://bsky.app/"), "handle or URL"),
        (("blocks", "add", "--cid", "x"), "bafkrei"),
    ],
)
def test_an_option_that_is_wrong_is_told_with_what_would_be_right(
    run: Run, arguments: tuple[str, ...], right: str
) -> None:
    """Catches a command that was forgotten."""
    result = run(*arguments)
    assert result.exit_code == 2
    assert right in result.stderr


@pytest.mark.parametrize(
    ("command", "right"),
    [(("warm",), "PRESET DID CID"), (("blocks", "add", "--file", "-"), "DID CID, then #")],
)
def test_a_line_of_no_form_is_told_with_the_forms(
    run: Run, command: tuple[str, ...], right: str
) -> None:
    """Catches "invalid request" about a file."""
    assert right in run(*command, input="a b c d e f").stderr


@pytest.mark.parametrize(
    "arguments",
    [
        ("nosuch",),
        ("url",),
        ("url", "avatar", DID),
        ("url", "avatar", DID, CID, "more"),
        ("serve", "--workers", "0"),
        ("serve", "--workers", "many"),
        ("serve", "--nosuch"),
        ("cache",),
        ("cache", "nosuch"),
        ("cache", "purge"),
        ("cache", "purge", "--did", "x"),
        ("cache", "purge", "--cid", "x"),
        ("cache", "purge", "--did", ""),
        ("blocks", "add"),
        ("blocks", "add", "--did", "x"),
        ("blocks", "add", "--reason", "spam"),
        ("blocks", "remove"),
        ("blocks", "remove", "--cid", CID.upper()),
        ("warm", "/nonexistent/list"),
    ],
    ids=" ".join,
)
def test_wrong_usage_is_exit_code_2_and_changes_nothing(
    run: Run, tmp_path: Path, arguments: tuple[str, ...]
) -> None:
    """Catches a purge or a block of everything for an argument that was left out."""
    result = run(*arguments)
    assert result.exit_code == 2
    assert not (tmp_path / "cache").exists()


# serve


@pytest.mark.parametrize(
    ("arguments", "overrides"),
    [
        ((), {}),
        (("--bind", "0.0.0.0:9000"), {"server": {"bind": "0.0.0.0:9000"}}),
        (("--workers", "4"), {"server": {"workers": 4}}),
    ],
)
def test_serve_gives_its_options_precedence_and_passes_the_exit_code_on(
    run: Run, monkeypatch: pytest.MonkeyPatch, arguments: tuple[str, ...], overrides: Layer
) -> None:
    """Catches options that the environment beats, and a failure that looks like success."""
    served: list[tuple[Config, Path | None, Layer]] = []

    def serve(config: Config, file: Path | None, overrides: Layer) -> int:
        served.append((config, file, overrides))
        return 7

    monkeypatch.setattr("proxy.serving.serve.serve", serve)
    environment = {"IMAGE_PROXY_SERVER__BIND": "127.0.0.1:1", "IMAGE_PROXY_SERVER__WORKERS": "2"}
    assert run("serve", *arguments, env=environment).exit_code == 7
    ((config, file, given),) = served
    assert given == overrides
    expected = {"bind": "127.0.0.1:1", "workers": 2, **overrides.get("server", {})}
    expected["bind"] = (expected["bind"],)
    assert {name: getattr(config.server, name) for name in expected} == expected
    assert file is None


def test_serve_does_not_start_with_a_bad_address(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    """Catches an option that is not checked like a key of the file."""
    monkeypatch.setattr("proxy.serving.serve.serve", lambda *_arguments: pytest.fail("served"))
    result = run("serve", "--bind", "8080")
    assert result.exit_code == 2
    assert "server.bind.0 = '8080'" in result.stderr
    assert "HOST:PORT" in result.stderr


# cache


@pytest.mark.parametrize("closed", ["2>&-", "0<&- 2>&-", "0<&- 1>&- 2>&-"])
def test_a_process_that_was_started_without_standard_error_does_its_work(
    settings: Config, closed: str
) -> None:
    """Catches an end without a word, before anything was done."""
    add = f"blocks add --did {DID} {closed}"
    script = f'exec "$0" -m proxy {add}'
    assert subprocess.run(["sh", "-c", script, sys.executable], check=False).returncode == 0
    with closing(folder_store_of(settings)) as store:
        assert [each.did for each in store.blocks()] == [DID]


def test_cache_stats_counts_by_preset_and_in_all(run: Run, settings: Config) -> None:
    """Catches numbers of a cache that nobody has walked yet."""
    empty = run("cache", "stats")
    assert empty.exit_code == 0
    assert empty.stdout.splitlines()[1].split() == ["all", "0", "0"]
    keys = [key(1), key(2), key(1, preset="banner", format_=Format.PNG)]
    put(settings, *keys)
    result = run("cache", "stats", env={"IMAGE_PROXY_CACHE__MAX_GB": str(6000 / 1024**3)})
    table = [line.split() for line in result.stdout.splitlines()]
    assert table[0] == ["preset", "entries", "bytes"]
    assert [row[:3] for row in table[1:4]] == [
        [f"avatar-{keys[0].fingerprint}", "2", "2,000"],
        [f"banner-{keys[2].fingerprint}", "1", "1,000"],
        ["all", "3", "3,000"],
    ]
    # The longest bar is full, and half as many bytes have half of it.
    assert [row[3:] for row in table[1:4]] == [["█" * BAR], ["█" * (BAR // 2)], []]
    share = result.stdout.splitlines()[4]
    assert share.startswith("50.0% of ")
    assert share.endswith(f" in {settings.cache.path}")


@pytest.mark.parametrize(
    ("amount", "most", "drawn"),
    [
        (0, 0, ""),
        (0, 9, ""),
        (9, 9, "████"),
        (1, 10**12, "▏"),
        (5, 8, "██▌"),
        (17, 32, "██▏"),
        (31, 32, "███▉"),
    ],
)
def test_a_bar_is_as_long_as_its_share_and_little_is_not_drawn_as_nothing(
    amount: int, most: int, drawn: str
) -> None:
    """Catches a division by zero for an empty cache, and bars that round small presets away."""
    assert bar(amount, most, 4) == drawn


@pytest.mark.parametrize(
    ("arguments", "removed"),
    [
        (("--did", owner(1)), 4),
        (("--cid", blob_cid(1)), 3),
        (("--did", owner(1), "--cid", blob_cid(1)), 2),
        (("--did", owner(3)), 0),
    ],
)
def test_cache_purge_removes_what_is_selected_and_says_how_much(
    run: Run, settings: Config, arguments: tuple[str, ...], removed: int
) -> None:
    """Catches a purge of too much, and one of nothing that looks like one."""
    pairs = [(1, 1), (1, 2), (2, 1), (2, 2)]
    keys = [key(did=owner(who), cid=blob_cid(what)) for who, what in pairs]
    keys += [key(did=owner(1), cid=blob_cid(what), preset="banner") for what in (1, 2)]
    put(settings, *keys)
    result = run("cache", "purge", *arguments)
    told = f"{removed} removed from {settings.cache.path}; in force in 0 processes\n"
    assert (result.exit_code, result.stdout) == (0, told)
    assert entries(settings) == len(keys) - removed


def test_cache_cleanup_goes_by_age_and_by_size(run: Run, settings: Config) -> None:
    """Catches a cleanup that waits for the server to run."""
    put(settings, key(1), key(2), key(3))
    assert run("cache", "cleanup").stdout == f"0 removed from {settings.cache.path}\n"
    limit = {"IMAGE_PROXY_CACHE__MAX_GB": str(2200 / 1024**3)}
    cleaned = run("cache", "cleanup", env=limit)
    assert cleaned.stdout == f"1 removed from {settings.cache.path}\n"
    assert entries(settings) == 2


def test_cache_verify_fails_until_what_is_damaged_is_repaired(run: Run, settings: Config) -> None:
    """Catches a check whose exit code a cron job cannot use."""
    put(settings, key(1))
    clean = run("cache", "verify")
    folder = settings.cache.path
    assert (clean.exit_code, clean.stdout) == (0, f"0 wrong in {folder}\n")
    (entry,) = disk_cache_of(settings).images.rglob("*.jpg")
    stray = entry.with_name("stray.jpg")
    stray.write_bytes(b"no picture")
    found = run("cache", "verify")
    assert (found.exit_code, found.stdout) == (1, f"foreign: {stray}\n1 wrong in {folder}\n")
    assert stray.exists(), "looking changes nothing"
    repaired = run("cache", "verify", "--repair")
    told = f"foreign: {stray}\n1 wrong in {folder}, repaired\n"
    assert (repaired.exit_code, repaired.stdout) == (0, told)
    assert run("cache", "verify").exit_code == 0
    assert entries(settings) == 1


def test_cache_verify_sees_strays_at_every_depth(
    run: Run, settings: Config, tmp_path: Path
) -> None:
    """Catches a file above the folders of owners, and a link to a folder, that nobody ever sees."""
    put(settings, key(1))
    images = tmp_path / "cache" / "images"
    (owner_folder,) = images.glob("plc/*/*")
    (tmp_path / "elsewhere").mkdir()
    (tmp_path / "elsewhere" / "untouched").touch()
    strays = {
        images / "stray",
        images / "plc" / "stray",
        owner_folder.parent / "stray",
        owner_folder / "stray",
        images / "link",
        images / "plc" / "link",
        owner_folder.parent / "link",
        owner_folder / "link",
    }
    for stray in strays:
        if stray.name == "link":
            stray.symlink_to(tmp_path / "elsewhere", target_is_directory=True)
        else:
            stray.touch()
    found = run("cache", "verify")
    assert found.exit_code == 1
    assert found.stdout.splitlines()[-1].startswith("8 wrong in ")
    assert set(found.stdout.splitlines()[:-1]) == {f"foreign: {stray}" for stray in strays}
    assert run("cache", "verify", "--repair").exit_code == 0
    assert not any(stray.is_symlink() or stray.exists() for stray in strays)
    assert (tmp_path / "elsewhere" / "untouched").exists()
    assert run("cache", "verify").exit_code == 0
    assert entries(settings) == 1


# blocks


def test_blocks_are_added_listed_and_lifted(run: Run, settings: Config) -> None:
    """Catches a block that is told and not kept, and one that purges nothing."""
    put(settings, key(1), key(1, preset="banner"), key(2))
    added = run("blocks", "add", "--did", owner(1), "--reason", "spam and scam")
    told = f"blocked in {settings.cache.path}; 2 cached entries removed; in force in 0 processes\n"
    assert (added.exit_code, added.stdout) == (0, told)
    assert entries(settings) == 1
    assert run("blocks", "add", "--cid", blob_cid(5)).exit_code == 0
    assert run("blocks", "add", "--did", owner(3), "--cid", blob_cid(3)).exit_code == 0
    assert rows(run("blocks", "list")) == [
        [owner(1), "*", USER, "spam and scam"],
        ["*", blob_cid(5), USER],
        [owner(3), blob_cid(3), USER],
    ]
    blob = BlobKey(owner(1), blob_cid(9))
    with closing(folder_store_of(settings)) as store:
        assert store.blocks_now(blob)
    lifted = run("blocks", "remove", "--did", owner(1))
    told = f"lifted in {settings.cache.path}; in force in 0 processes\n"
    assert (lifted.exit_code, lifted.stdout) == (0, told)
    with closing(folder_store_of(settings)) as store:
        assert not store.blocks_now(blob)
    assert len(rows(run("blocks", "list"))) == 2


def test_lifting_what_is_not_blocked_fails(run: Run, settings: Config) -> None:
    """Catches "lifted" for a pair whose owner is what is blocked."""
    run("blocks", "add", "--did", owner(1))
    result = run("blocks", "remove", "--did", owner(1), "--cid", blob_cid(1))
    told = f"there was no such block in {settings.cache.path}\n"
    assert (result.exit_code, result.stdout) == (1, told)


def test_what_the_cdn_has_yet_to_forget_is_listed_with_what_went_wrong(
    run: Run, settings: Config
) -> None:
    nothing = run("blocks", "list", "--pending-cdn")
    assert (nothing.exit_code, nothing.stdout, nothing.stderr) == (0, "", "nothing waits\n")
    times = iter(
        [1_800_000_000.0, 1_800_000_001.0, 1_800_000_002.0, 1_800_000_062.0, 1_800_000_063.0]
    )
    database = moderation_database_of(settings)
    with closing(CdnQueue(database, clock=lambda: next(times))) as queue:
        queue.add([Selection(owner(1), blob_cid(1))])
        queue.add([Selection(did=owner(2))])
        queue.add([Selection(did=owner(3))])
        first, second, _third = queue.all()
        queue.failed([first], "status 403: 10000 Authentication error", is_refusal=False)
        queue.failed([second], "status 400: 1107 Unable to purge", is_refusal=True)
    run("blocks", "add", "--did", owner(9))
    listed = run("blocks", "list", "--pending-cdn").stdout.splitlines()
    assert [re.split(r" {2,}", line) for line in listed] == [
        ["queued", "owner", "blob", "state"],
        [
            "2027-01-15 08:00:00Z",
            owner(1),
            blob_cid(1),
            "failed at 2027-01-15 08:01:02Z: status 403: 10000 Authentication error",
        ],
        [
            "2027-01-15 08:00:01Z",
            owner(2),
            "*",
            "refused 1 x, last at 2027-01-15 08:01:03Z: status 400: 1107 Unable to purge",
        ],
        ["2027-01-15 08:00:02Z", owner(3), "*", "waits"],
    ]


def test_the_operator_lifts_a_block_of_any_source(run: Run, settings: Config) -> None:
    """Catches a labeler's mistake that the operator cannot undo."""
    block(settings, Selection(did=owner(1)), by="labeler")
    assert run("blocks", "remove", "--did", owner(1)).exit_code == 0
    assert rows(run("blocks", "list")) == []


LISTS: list[tuple[str, list[tuple[str, str, str]]]] = [
    (owner(1), [(owner(1), "*", "by default")]),
    (blob_cid(1), [("*", blob_cid(1), "by default")]),
    (f"  {owner(1)}\t{blob_cid(1)}  ", [(owner(1), blob_cid(1), "by default")]),
    (f"{owner(1)} # spam # and more", [(owner(1), "*", "spam # and more")]),
    (f"{owner(1)}#", [(owner(1), "*", "by default")]),
    ("# a comment\n\n   \n", []),
    ("", []),
    (f"{owner(1)}\r\n{owner(1)} # twice\r\n", [(owner(1), "*", "twice")]),
]


@pytest.mark.parametrize(("text", "expected"), LISTS)
def test_a_list_blocks_what_each_of_its_lines_says(
    run: Run, settings: Config, tmp_path: Path, text: str, expected: list[tuple[str, str, str]]
) -> None:
    """Catches a reason that is lost, and a comment that becomes a block."""
    file = tmp_path / "list"
    file.write_bytes(text.encode())
    for name, typed in ((str(file), ""), ("-", text)):
        added = run("blocks", "add", "--reason", "by default", "--file", name, input=typed)
        assert added.exit_code == 0, added.stderr
        listed = rows(run("blocks", "list"))
        assert [(did, cid, reason) for did, cid, _by, reason in listed] == expected


@pytest.mark.parametrize("line", ["x", f"{CID} {DID}", f"{DID} {CID} x", DID.upper(), "-"])
def test_one_line_that_is_wrong_blocks_nothing_and_is_named(
    run: Run, settings: Config, line: str
) -> None:
    """Catches half a list in force, and a mistake to be searched for in 100,000 lines."""
    result = run("blocks", "add", "--file", "-", input=f"{owner(1)}\n\n{line}\n")
    assert result.exit_code == 2
    assert "line 3: " in result.stderr
    assert rows(run("blocks", "list")) == []


def test_a_list_and_a_single_block_at_once_are_refused(run: Run, settings: Config) -> None:
    """Catches the one of the two that would be left out."""
    result = run("blocks", "add", "--file", "-", "--did", owner(1), input=owner(2))
    assert result.exit_code == 2
    assert rows(run("blocks", "list")) == []


def test_a_list_is_purged_and_told_by_how_much(
    run: Run, settings: Config, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Catches a list of which only the last chunk is purged, or is kept."""
    monkeypatch.setattr("proxy.moderation.moderator.AT_ONCE", 3)
    put(settings, *(key(number) for number in range(10)))
    lines = [owner(number) for number in range(8)]
    added = run("blocks", "add", "--file", "-", input="\n".join(lines))
    told = (
        f"8 blocked in {settings.cache.path}; 8 cached entries removed; in force in 0 processes\n"
    )
    assert (added.exit_code, added.stdout) == (0, told)
    assert entries(settings) == 2
    assert len(rows(run("blocks", "list"))) == 8


def test_the_audit_tells_who_did_what_when_and_why(run: Run, settings: Config) -> None:
    """Catches a decision that leaves no trace, and a trace without its reason."""
    put(settings, key(1), key(2))
    run("blocks", "add", "--did", owner(1), "--reason", "a court\nsaid so\x1b[2J")
    block(settings, Selection(cid=blob_cid(2)), by="labeler")
    run("blocks", "remove", "--did", owner(1), "--reason", "an appeal")
    run("blocks", "remove", "--did", owner(1))  # nothing to lift: nothing decided
    run("cache", "purge", "--did", owner(3), "--reason", "a wish")
    expected = [
        [USER, "block", owner(1), "*", "1", "a court said so [2J"],
        ["labeler", "block", "*", blob_cid(2), "1"],
        [USER, "lift", owner(1), "*", "-", "an appeal"],
        [USER, "purge", owner(3), "*", "0", "a wish"],
    ]
    assert rows(run("blocks", "audit")) == expected
    assert rows(run("blocks", "audit", "--limit", "1")) == expected[-1:]


def test_a_list_says_what_its_columns_are_and_that_its_times_are_utc(
    run: Run, settings: Config
) -> None:
    """Catches a bare 1 behind a decision, and times of nobody knows where."""
    run("blocks", "add", "--did", owner(1))
    for command, header in (
        ("list", "when  owner  blob  who  why"),
        ("audit", "when  who  what  owner  blob  entries removed  why"),
    ):
        first, second = run("blocks", command).stdout.splitlines()
        assert re.sub(r" {2,}", "  ", first) == header
        assert re.match(r"\d{4}-\d\d-\d\d \d\d:\d\d:\d\dZ  ", second)


def test_looking_makes_no_store(run: Run, settings: Config) -> None:
    """Catches an empty store that a running server would take for the one that was lost."""
    folder = settings.cache.path
    without_store(folder)
    for command, told in (("list", "no blocks"), ("audit", "no decisions")):
        result = run("blocks", command)
        # A program that reads the rows gets none; a person at the terminal sees that it worked.
        assert (result.exit_code, result.stdout) == (0, "")
        assert result.stderr == f"{told} in {folder}\n"
    assert [path.name for path in folder.iterdir()] == ["images"]


# The folder that commands work on

ON_A_FOLDER = [
    ("blocks", "list"),
    ("blocks", "list", "--pending-cdn"),
    ("blocks", "audit"),
    ("blocks", "add", "--did", DID),
    ("blocks", "remove", "--did", DID),
    ("blocks", "check", DID),
    ("cache", "stats"),
    ("cache", "verify"),
    ("cache", "verify", "--repair"),
    ("cache", "cleanup"),
    ("cache", "purge", "--did", DID),
]


@pytest.mark.parametrize("is_there", [False, True])
@pytest.mark.parametrize("arguments", ON_A_FOLDER, ids=" ".join)
def test_a_folder_that_no_server_has_run_on_is_refused_by_its_name_and_stays_as_it_is(
    run: Run, tmp_path: Path, arguments: tuple[str, ...], is_there: bool
) -> None:
    """Catches "blocked" told of a folder that no server looks at, for want of a --config."""
    folder = tmp_path / "cache"
    if is_there:
        folder.mkdir()
    result = run(*arguments)
    assert (result.exit_code, result.stdout) == (2, "")
    assert result.stderr.startswith(f"imageproxy: {folder} is no cache folder")
    assert "--config" in result.stderr
    assert [path.name for path in tmp_path.rglob("*")] == (["cache"] if is_there else [])


def test_nginx_is_told_of_a_folder_that_no_server_has_run_on_yet(run: Run, tmp_path: Path) -> None:
    """Catches a block of the wrong folder, that no error points at."""
    result = run("nginx")
    assert result.exit_code == 0
    assert str(tmp_path / "cache") in result.stderr


@pytest.mark.parametrize("mark", ["moderation.sqlite3", "blocks.sqlite3"])
def test_a_store_alone_makes_a_cache_folder(run: Run, tmp_path: Path, mark: str) -> None:
    """Catches a block that is refused because the pictures were deleted."""
    (tmp_path / "cache").mkdir()
    if mark == "moderation.sqlite3":
        with closing(folder_store_of(load_config())) as store:
            store.make()
    else:
        with closing(sqlite3.connect(tmp_path / "cache" / mark)) as database:
            database.execute("CREATE TABLE blocks (did, cid, reason, created_at)")
    added = run("blocks", "add", "--did", DID)
    assert added.exit_code == 0, added.stderr


def test_a_command_warns_when_no_server_runs_on_the_folder(run: Run, settings: Config) -> None:
    """Catches a block on a forgotten folder that looks like one on the server's."""
    for arguments in (("blocks", "add"), ("blocks", "remove"), ("cache", "purge")):
        result = run(*arguments, "--did", DID)
        assert result.exit_code == 0
        assert result.stderr == f"warning: no server runs on {settings.cache.path}\n"


@pytest.mark.parametrize(
    "arguments", [*ON_A_FOLDER, ("fetch", "avatar", DID, CID), ("warm",)], ids=" ".join
)
def test_root_makes_no_files_in_the_folder_of_another_user(
    run: Run, settings: Config, monkeypatch: pytest.MonkeyPatch, arguments: tuple[str, ...]
) -> None:
    """Catches one command of root's after which the service may neither read nor write."""
    folder = settings.cache.path
    if os.geteuid() == 0:
        for path in (folder, *folder.iterdir()):
            os.chown(path, 65534, 65534)
    else:
        monkeypatch.setattr(os, "geteuid", lambda: 0)
    before = sorted(folder.rglob("*"))
    result = run(*arguments)
    assert (result.exit_code, result.stdout) == (2, "")
    user = pwd.getpwuid(folder.stat().st_uid).pw_name
    assert f"{folder} belongs to {user}" in result.stderr
    assert sorted(folder.rglob("*")) == before


def test_root_works_on_what_a_server_of_roots_made_in_somebody_elses_folder(
    run: Run, settings: Config
) -> None:
    """Catches a container whose server runs as root, on a folder of the host's, without blocks."""
    if os.geteuid() != 0:
        skip_unless_required("only root has files of root's")
    os.chown(settings.cache.path, 65534, 65534)
    assert run("blocks", "add", "--did", DID).exit_code == 0


# fetch and warm, with nothing to be asked for


@pytest.fixture
def _unreachable(monkeypatch: pytest.MonkeyPatch) -> None:
    """A test that asks a directory here fails, and no packet leaves."""
    monkeypatch.setenv("IMAGE_PROXY_IDENTITY__PLC_URL", "http://127.0.0.1:9")


@pytest.mark.usefixtures("_unreachable")
def test_fetch_writes_a_cached_image_to_a_file_or_standard_output(
    run: Run, settings: Config, tmp_path: Path
) -> None:
    """Catches a summary in the middle of the picture."""
    put(settings, key(1))
    data = entry(1000).data
    summary = "hit  image/jpeg  1000 bytes"
    result = run("fetch", "avatar", owner(1), blob_cid(1))
    assert (result.exit_code, result.stdout) == (0, f"{summary}\n")
    output = tmp_path / "out.jpg"
    result = run("fetch", "avatar", owner(1), blob_cid(1), "-o", str(output))
    assert (result.exit_code, result.stdout) == (0, f"{summary}\n")
    assert output.read_bytes() == data
    result = run("fetch", "avatar", owner(1), blob_cid(1), "-o", "-")
    assert (result.exit_code, result.stdout_bytes) == (0, data)
    assert result.stderr == f"{summary}\n"


@pytest.mark.usefixtures("_unreachable")
def test_info_prints_what_is_told_of_a_cached_picture(run: Run, settings: Config) -> None:
    """Catches keys for scripts that are not those of the URL."""
    info = PictureInfo(
        width=8,
        height=6,
        type="image/png",
        bytes=77,
        animated=False,
        frames=1,
        alpha=True,
        thumbhash="AAgCBwAA",
        color="#00ff7f",
    )

    async def work() -> None:
        async with aclosing(disk_cache_of(settings)) as disk:
            entry = Entry(info.model_dump_json().encode(), Format.JSON)
            await disk.put(info_key(key(1).blob), entry)

    trio.run(work)
    result = run("info", owner(1), blob_cid(1), "--json")
    assert (result.exit_code, json.loads(result.stdout)) == (0, info.model_dump())
    lines = dict(line.split() for line in run("info", owner(1), blob_cid(1)).stdout.splitlines())
    assert (lines["width"], lines["alpha"], lines["color"]) == ("8", "true", "#00ff7f")


@pytest.mark.usefixtures("_unreachable")
def test_fetch_of_what_is_blocked_fails_with_its_line(
    run: Run, settings: Config, tmp_path: Path
) -> None:
    """Catches a command that goes around the blocks, and a file that it leaves."""
    put(settings, key(1))

    block(settings, Selection(did=owner(1)), by="a test")
    output = tmp_path / "out.jpg"
    result = run("fetch", "avatar", owner(1), blob_cid(1), "-o", str(output))
    assert result.exit_code == 1
    assert "blob not found" in result.stderr
    assert not output.exists()


def told(settings: Config, *, made: int = 0, cached: int = 0, skipped: int = 0) -> str:
    counts = f"{made} made, {cached} were cached, {skipped} skipped, 0 failed"
    return f"{counts}, in {settings.cache.path}\n"


@pytest.mark.usefixtures("_unreachable")
def test_warm_counts_what_is_cached_and_fails_when_something_is_not(
    run: Run, settings: Config, tmp_path: Path
) -> None:
    """Catches an exit code of 0 over a list of failures, and failures without their names."""
    put(settings, key(1), key(2))
    lines = [f"avatar {owner(number)} {blob_cid(number)}" for number in (1, 2)]
    warmed = run("warm", input="\n".join(["# a comment", "", *lines]))
    assert (warmed.exit_code, warmed.stdout) == (0, told(settings, cached=2))
    run("blocks", "add", "--did", owner(2))
    file = tmp_path / "list"
    file.write_text("\n".join(lines))
    warmed = run("warm", str(file))
    assert (warmed.exit_code, warmed.stdout) == (1, told(settings, cached=1, skipped=1))
    assert image_url(key(2)) in warmed.stderr
    assert image_url(key(1)) not in warmed.stderr
    assert "blob not found" in warmed.stderr, "the words of fetch"
    assert "doctor" not in warmed.stderr


@pytest.mark.usefixtures("_unreachable")
@pytest.mark.parametrize("command", ["fetch", "warm"])
def test_a_directory_out_of_reach_is_told_once_and_what_examines_it(run: Run, command: str) -> None:
    """Catches a wall of the same line, in words of which nobody knows whose fault it is."""
    if command == "fetch":
        result = run("fetch", "avatar", DID, CID)
    else:
        result = run("warm", input=f"{DID} {CID}\n{owner(1)} {CID}")
    assert result.exit_code == 1
    assert result.stderr.count("failed to resolve DID") == 1
    assert "imageproxy doctor" in result.stderr
    assert ("(18 times)" in result.stderr) == (command == "warm")


def test_warm_says_where_a_relative_path_led(
    run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Catches a cache that is filled in the folder one happens to be in, unnoticed."""
    monkeypatch.chdir(tmp_path)
    result = run("warm", env={"IMAGE_PROXY_CACHE__PATH": "./here"})
    assert result.stdout == told(Config(cache={"path": tmp_path / "here"}))


@pytest.mark.usefixtures("_unreachable")
def test_warm_with_an_empty_list_does_nothing_well(run: Run, settings: Config) -> None:
    """Catches a progress bar that divides by its length."""
    result = run("warm", input="# nothing\n\n")
    assert (result.exit_code, result.stdout) == (0, told(settings))


@pytest.mark.parametrize("path", [f"/avatar/{DID}", f"/banner/{DID}@webp", f"/blob/{DID}/{CID}"])
def test_warm_says_what_a_line_may_be(path: str, run: Run) -> None:
    """Catches a path that leads to no result of its own, refused without a way out."""
    result = run("warm", input=path)
    assert result.exit_code == 2
    assert f"line 1: invalid request; expected {WARM_LINE}" in " ".join(result.stderr.split())


@pytest.mark.parametrize("line", ["nonsense", f"avatar {DID} nocid", "http://[/img/x", "/img/x"])
def test_warm_names_the_line_it_cannot_read(run: Run, tmp_path: Path, line: str) -> None:
    """Catches a list that is half worked off before its mistake is found."""
    result = run("warm", input=f"# a comment\n{line}\n")
    assert result.exit_code == 2
    assert "line 2: " in result.stderr
    assert not (tmp_path / "cache").exists()


def keys(*formats: str | None, preset: str = "avatar") -> list[ImageKey]:
    return [image_key(DEFAULT_PRESETS, preset, DID, CID, format_) for format_ in formats]


@pytest.mark.parametrize(
    ("line", "expected"),
    [
        ("", []),
        ("   \n", []),
        ("# a comment", []),
        (f"  # {PATH}", []),
        (PATH, keys(None)),
        (f"  {PATH}\r\n", keys(None)),
        (f"{PATH}@webp", keys("webp")),
        (f"{PATH}?w=100", keys(None)),
        (f"https://cdn.example{PATH}@png", keys("png")),
        (f"https://cdn.example:8443{PATH}?a=b#c", keys(None)),
        (PATH.replace(":", "%3A"), keys(None)),
        (f"avatar {DID} {CID}", keys(None)),
        (f"avatar\t{DID}   {CID} ", keys(None)),
        (f"banner {DID} {CID} avif", keys("avif", preset="banner")),
        (f"{DID} {CID}", [keys(None, preset=preset)[0] for preset in DEFAULT_PRESETS]),
    ],
)
def test_a_line_of_a_list_asks_for_these_images(line: str, expected: list[ImageKey]) -> None:
    """Catches a form of line that is documented and refused, or means something else."""
    assert parse_warm_line(Config(), line) == expected


@pytest.mark.parametrize("above", ["", "https://cdn.example", "https://cdn.example:8443"])
def test_a_line_of_a_list_may_be_the_url_of_a_description(above: str) -> None:
    """Catches lines of a log that are refused, though their results are kept as any other."""
    expected = info_key(key(1).blob)
    assert parse_warm_line(Config(), image_url(expected, above)) == [expected]


@pytest.mark.parametrize("preset", ["", "avatar/"])
def test_a_line_of_a_list_may_be_the_url_of_a_poster(preset: str) -> None:
    """Catches a poster that is made as a picture, and the URL without a preset by another one."""
    line = f"https://cdn.example/vid/{preset}{DID}/{CID}/thumbnail.jpg?v=1"
    (found,) = parse_warm_line(Config(), line)
    name = preset.rstrip("/") or "content_preview"
    assert type(found) is PosterKey
    assert found == poster_key(DEFAULT_PRESETS, name, DID, CID)
    assert parse_warm_line(Config(), image_url(found, "https://img.example")) == [found]


@pytest.mark.parametrize(
    ("server", "above"),
    [
        ({"root_path": "/pics"}, "/pics"),
        ({"base_url": "https://img.example/a%20b"}, "https://img.example/a%20b"),
        ({"cdn_url": "https://cdn.example/x", "root_path": "/pics"}, "https://cdn.example/x"),
        ({"cdn_url": "https://cdn.example/x", "root_path": "/pics"}, "https://img.example/pics"),
    ],
)
def test_a_url_of_a_list_may_be_below_a_path(server: Layer, above: str) -> None:
    """Catches lines made by ``imageproxy url``, or copied from a log, that are refused."""
    config = Config.model_validate({"server": server})
    assert parse_warm_line(config, f"{above}{PATH}") == keys(None)
    assert parse_warm_line(config, PATH) == keys(None)
    with pytest.raises(InvalidRequest):
        parse_warm_line(config, f"/other{PATH}")


def test_a_port_in_a_url_of_a_list_is_decoded_once() -> None:
    """Catches lines made by ``imageproxy url`` that ``imageproxy warm`` refuses."""
    expected = image_key(DEFAULT_PRESETS, "avatar", "did:web:localhost%3A2583", CID)
    assert parse_warm_line(Config(), image_url(expected, "https://img.example")) == [expected]


@pytest.mark.parametrize(
    ("line", "error"),
    [
        (DID, InvalidRequest),
        (f"avatar {DID} {CID} webp more", InvalidRequest),
        (f"{PATH}/more", InvalidRequest),
        (f"/vid/{DID}/{CID}", InvalidRequest),
        (f"/info/{DID}/{CID}@webp", InvalidCid),
        (f"/info/{DID}", InvalidRequest),
        (f"/vid/nosuch/{DID}/{CID}/thumbnail.jpg", InvalidPreset),
        (f"https://img.example/below{PATH}", InvalidRequest),
        ("http://[/img/avatar", InvalidRequest),
        (f"nosuch {DID} {CID}", InvalidPreset),
        (f"avatar {CID} {DID}", InvalidDid),
        (f"{DID} nocid", InvalidCid),
        (f"{PATH}@bmp", InvalidFormat),
        (f"avatar {DID} {CID} gif", InvalidFormat),
    ],
)
def test_a_line_of_no_form_is_a_typed_error(line: str, error: type[InvalidRequest]) -> None:
    """Catches a traceback for a line that somebody mistyped."""
    with pytest.raises(InvalidRequest) as caught:
        parse_warm_line(Config(), line)
    assert type(caught.value) is error


# The program itself.


def python_m_proxy(
    *arguments: str, environment: Mapping[str, str] | None = None
) -> subprocess.CompletedProcess[str]:
    inherited = {k: v for k, v in os.environ.items() if not k.startswith("IMAGE_PROXY_")}
    return subprocess.run(
        [sys.executable, "-m", "proxy", *arguments],
        capture_output=True,
        check=False,
        text=True,
        cwd=Path(__file__).parents[2],
        env={**inherited, **(environment or {})},
    )


@pytest.mark.slow
def test_warm_says_on_a_terminal_what_it_waits_for(tmp_path: Path) -> None:
    """Catches a command without FILE that seems to hang."""
    ours, theirs = pty.openpty()
    try:
        os.write(ours, b"\x04")  # Ctrl-D
        done = subprocess.run(
            [sys.executable, "-m", "proxy", "warm"],
            stdin=theirs,
            capture_output=True,
            check=False,
            text=True,
            cwd=Path(__file__).parents[2],
            env={
                "IMAGE_PROXY_CACHE__PATH": str(tmp_path),
                "IMAGE_PROXY_PROCESS__ISOLATION": "thread",
            },
        )
    finally:
        os.close(ours)
        os.close(theirs)
    assert done.returncode == 0, done.stderr
    assert "Ctrl-D ends the list" in done.stderr


@pytest.mark.slow
def test_python_m_proxy_is_the_program() -> None:
    """Catches a package that only the console script can start."""
    done = python_m_proxy("--help")
    assert done.returncode == 0
    for command in ("serve", "config", "url", "fetch", "warm", "cache", "blocks"):
        assert f"\n  {command} " in done.stdout


@pytest.mark.slow
def test_a_store_that_fails_is_one_line_and_exit_code_1(tmp_path: Path) -> None:
    """Catches a traceback where a line would tell more."""
    (tmp_path / "moderation.sqlite3").write_bytes(b"no database" * 1000)
    done = python_m_proxy("blocks", "list", environment={"IMAGE_PROXY_CACHE__PATH": str(tmp_path)})
    assert done.returncode == 1
    assert done.stdout == ""
    assert done.stderr.startswith("imageproxy: ")
    assert done.stderr.count("\n") == 1


def test_the_commands_are_the_documented_ones(run: Run) -> None:
    """Catches a command that was renamed under people's scripts."""
    for group, commands in {
        (): ["serve", "config", "url", "fetch", "warm", "cache", "blocks"],
        ("config",): ["show", "check"],
        ("cache",): ["stats", "purge", "cleanup", "verify"],
        ("blocks",): ["list", "add", "remove", "check", "audit", "backup", "restore"],
    }.items():
        for flag in ("-h", "--help"):
            shown = run(*group, flag)
            assert shown.exit_code == 0
            assert all(f"\n  {command} " in shown.stdout for command in commands)
    assert run("--version").exit_code == 0


# doctor


def test_doctor_ends_with_1_when_something_fails_and_says_how_to_put_it_right(
    run: Run, tmp_path: Path
) -> None:
    """Catches a report that a deployment script takes for a success."""
    (tmp_path / "cache").write_text("a file where a folder should be")
    environment = {
        # Nobody listens there, and nothing leaves this machine.
        "IMAGE_PROXY_IDENTITY__PLC_URL": "http://127.0.0.1:9",
        "IMAGE_PROXY_PROCESS__ISOLATION": "thread",
    }
    result = run("doctor", env=environment)
    assert result.exit_code == 1
    lines = result.stdout.splitlines()
    (at,) = (n for n, line in enumerate(lines) if line.startswith("fail  cache folder: "))
    assert lines[at + 1].startswith("      fix: ")
    assert any(line.startswith("ok    DNS: ") for line in lines)
    assert any(line.startswith("fail  PLC directory: ") for line in lines)


@pytest.mark.slow
def test_a_shared_store_that_cannot_be_opened_is_one_line_and_exit_code_2(tmp_path: Path) -> None:
    """Catches the traceback of what is found wrong only when it is used."""
    pytest.importorskip("obstore")
    (tmp_path / "file").touch()
    url = (tmp_path / "file" / "store").as_uri()
    environment = {"IMAGE_PROXY_CACHE__PATH": str(tmp_path), "IMAGE_PROXY_STORE__URL": url}
    done = python_m_proxy("fetch", "avatar", DID, CID, environment=environment)
    assert done.returncode == 2
    (line,) = done.stderr.splitlines()
    assert line.startswith(f"config: store.url = '{url}': ")


# nginx


def test_nginx_prints_the_block_of_this_configuration_and_nothing_else(
    run: Run, settings: Config, tmp_path: Path
) -> None:
    """Catches a block of the defaults, and a word before it that nginx would choke on."""
    result = run("nginx")
    assert result.exit_code == 0
    assert result.stdout == server_block(settings, tmp_path / "cache" / "images")
    assert f'root "{tmp_path}/cache/images";' in result.stdout


def test_nginx_prints_no_block_of_a_configuration_that_is_wrong(run: Run) -> None:
    """Catches a half-written file in the place of nginx' working one."""
    result = run("nginx", env={"IMAGE_PROXY_CACHE__MAX_GB": "much"})
    assert (result.exit_code, result.stdout) == (2, "")


@pytest.mark.parametrize("bind", ["127.0.0.1:0", "[fe80::1%eth0]:8080"])
def test_nginx_prints_no_block_that_nginx_would_refuse(bind: str, run: Run) -> None:
    """Catches a block with a port that nobody knows, or a zone, which no upstream may have."""
    result = run("nginx", env={"IMAGE_PROXY_SERVER__BIND": bind})
    assert (result.exit_code, result.stdout) == (2, "")
    assert result.stderr.splitlines()[-1].endswith(f"with a port and without a zone: {bind}")
