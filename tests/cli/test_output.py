"""What programs read of the commands, and the columns that people do."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path
from typing import Any

import click
import pytest

from proxy.cli import cli
from proxy.cli.output import PAGE, aligned
from proxy.config import Config
from proxy.model.presets import DEFAULT_PRESETS
from proxy.model.selection import Selection
from proxy.moderation.cdn.queue import CdnQueue
from proxy.moderation.configured_store import moderation_database_of
from proxy.wiring import disk_cache_of
from tests.cache import blob_cid, key, owner
from tests.cli import Run, put

PRINT_NO_REPORT = {"serve", "url", "nginx", "haproxy", "completion", "man"}
"""Run, or answer with one word or a file that is used as it is."""


def commands(group: click.Group, *names: str) -> Iterator[tuple[str, click.Command]]:
    for name, command in group.commands.items():
        if isinstance(command, click.Group):
            yield from commands(command, *names, name)
        else:
            yield " ".join([*names, name]), command


def test_every_command_that_lists_or_reports_takes_json() -> None:
    """Catches the command that was forgotten, or that came later."""
    found = {
        name: any("--json" in option.opts for option in command.params)
        for name, command in commands(cli)
    }
    assert {name for name, has_json in found.items() if not has_json} == PRINT_NO_REPORT
    assert len(found) > 15


def documents(run: Run, *arguments: str, exit_code: int = 0, **more: Any) -> list[Any]:
    """The lines of standard output, each a JSON document with the keys of the documents."""
    result = run(*arguments, "--json", **more)
    assert result.exit_code == exit_code, result.stderr
    found = [json.loads(line) for line in result.stdout.splitlines()]
    words = [word for word in arguments if word.isalpha() or word.startswith("--")]
    expected = next(keys for row, keys in documented_keys().items() if starts_with(words, row))
    assert all(not expected or list(each) == expected for each in found)
    return found


def documented_keys() -> dict[str, list[str]]:
    """The keys of the objects by command, those with most words first; empty: not listed."""
    table = Path(__file__).parents[2].joinpath("docs/commands.md").read_text(encoding="utf-8")
    rows = re.findall(r"^\| `([^`]*)`.* \| .* \| (.*) \|$", table, re.MULTILINE)
    keys = {row: re.findall(r"`(\w+)`", cell.partition(" with ")[0]) for row, cell in rows}
    # The levels of doctor's findings stand behind their key.
    keys["doctor"] = ["level", "name", "text", "fix"]
    return dict(sorted(keys.items(), key=lambda each: -len(each[0])))


def starts_with(words: list[str], row: str) -> bool:
    named = row.split()
    return words[: len(named)] == named


def test_every_json_has_its_keys_in_the_documents() -> None:
    """Catches a command whose objects one has to try out."""
    has_json = {name for name, _ in commands(cli)} - PRINT_NO_REPORT
    rows = documented_keys()
    assert all(any(starts_with(row.split(), name) for row in rows) for name in has_json)


def test_blocks_come_as_objects_with_the_keys_of_the_admin_route(
    run: Run, settings: Config
) -> None:
    """Catches a second name for one thing, and a null that became an asterisk."""
    folder = str(settings.cache.path)
    put(settings, key(1))
    assert documents(run, "blocks", "add", "--did", owner(1), "--reason", "a\n\x1b[2Jb") == [
        {"folder": folder, "blocked": 1, "removed": 1, "processes": 0, "names": []}
    ]
    pair = f"{owner(2)} {blob_cid(2)} # both"
    assert documents(run, "blocks", "add", "--file", "-", input=pair) == [
        {"folder": folder, "blocked": 1, "removed": 0, "processes": 0, "names": []}
    ]
    first, second = documents(run, "blocks", "list")
    assert first.keys() == {"did", "cid", "by", "reason", "created_at"}
    assert (first["did"], first["cid"], first["reason"]) == (owner(1), None, "a\n\x1b[2Jb")
    assert (second["did"], second["cid"], second["reason"]) == (owner(2), blob_cid(2), "both")
    assert documents(run, "blocks", "remove", "--did", owner(1)) == [
        {"folder": folder, "lifted": 1, "processes": 0, "names": []}
    ]
    assert documents(run, "blocks", "remove", "--did", owner(1), exit_code=1) == [
        {"folder": folder, "lifted": 0, "processes": 0, "names": []}
    ]
    audit = documents(run, "blocks", "audit")
    assert [(each["action"], each["removed"]) for each in audit] == [
        ("block", 1),
        ("block", 0),
        ("lift", None),
    ]


def test_what_the_cdn_has_yet_to_forget_comes_with_its_failures(run: Run, settings: Config) -> None:
    """Catches a failure that a program takes for a wait."""
    times = iter([1_800_000_000.0, 1_800_000_001.0])
    with closing(CdnQueue(moderation_database_of(settings), lambda: next(times))) as queue:
        queue.add([Selection(did=owner(1))])
        queue.failed(queue.first(1), "status 400", is_refusal=True)
    assert documents(run, "blocks", "list", "--pending-cdn") == [
        {
            "did": owner(1),
            "cid": None,
            "queued_at": 1_800_000_000.0,
            "failures": 1,
            "failed_at": 1_800_000_001.0,
            "error": "status 400",
        }
    ]


def test_an_empty_listing_prints_nothing_for_a_program(run: Run, settings: Config) -> None:
    """Catches a sentence among the objects."""
    for arguments in (("blocks", "list"), ("blocks", "audit"), ("cache", "verify")):
        assert documents(run, *arguments) == []


def test_the_cache_is_reported_in_figures(run: Run, settings: Config) -> None:
    """Catches thousands that are set off by commas, and a bar in the middle of numbers."""
    folder = str(settings.cache.path)
    put(settings, key(1), key(2), key(1, preset="banner"))
    (stats,) = documents(run, "cache", "stats")
    assert stats == {
        "folder": folder,
        "max_bytes": settings.cache.max_bytes,
        "entries": 3,
        "bytes": 3000,
        "presets": [
            {
                "preset": each.preset,
                "fingerprint": each.fingerprint,
                "entries": n,
                "bytes": 1000 * n,
            }
            for each, n in ((key(1), 2), (key(1, preset="banner"), 1))
        ],
    }
    stray = next(disk_cache_of(settings).images.rglob("*.jpg")).with_name("stray.jpg")
    stray.write_bytes(b"no picture")
    wrong = {"wrong": "foreign", "file": str(stray), "repaired": False}
    assert documents(run, "cache", "verify", exit_code=1) == [wrong]
    assert documents(run, "cache", "verify", "--repair") == [wrong | {"repaired": True}]
    assert documents(run, "cache", "cleanup") == [{"folder": folder, "removed": 0}]
    assert documents(run, "cache", "purge", "--did", owner(1)) == [
        {"folder": folder, "removed": 2, "processes": 0, "names": []}
    ]


def test_a_backup_and_a_restore_are_reported(run: Run, settings: Config, tmp_path: Path) -> None:
    """Catches a report whose folder is an object that JSON does not have."""
    folder, copy = settings.cache.path, tmp_path / "copy.sqlite3"
    run("blocks", "add", "--did", owner(1))
    assert documents(run, "blocks", "backup", str(copy)) == [
        {"folder": str(folder), "blocks": 1, "file": str(copy)}
    ]
    (folder / "moderation.sqlite3").unlink()
    assert documents(run, "blocks", "restore", str(copy)) == [
        {"folder": str(folder), "blocks": 1, "removed": 0, "unnamed": 0}
    ]


def test_the_configuration_is_one_object_with_its_secrets_masked(run: Run) -> None:
    """Catches a second way out of the configuration that forgets the mask."""
    token = {"IMAGE_PROXY_SERVER__ADMIN_TOKEN": "s3cret-of-sixteen"}
    (shown,) = documents(run, "config", "show", env=token)
    assert shown["presets"]["avatar"]["width"] == 1000
    assert set(shown["server"]["admin_token"]) == {"*"}
    assert documents(run, "config", "check") == [{"mistakes": []}]
    wrong = {"IMAGE_PROXY_SERVER__WORKERS": "0", "IMAGE_PROXY_FETCH__TIMEOUT": "soon"}
    (checked,) = documents(run, "config", "check", exit_code=2, env=wrong)
    assert [each.split()[0] for each in checked["mistakes"]] == ["server.workers", "fetch.timeout"]


def test_the_source_of_each_value_stands_beside_the_configuration(run: Run, tmp_path: Path) -> None:
    """Catches a key that is left out, and a variable over a file that says nothing of the file."""
    file = tmp_path / "mounted.toml"
    file.write_text("[server]\nworkers = 2\n[fetch]\ntimeout = 5\n[presets.avatar]\nquality = 70\n")
    environment = {"IMAGE_PROXY_SERVER__WORKERS": "3"}
    (shown,) = documents(run, "config", "show", "--config", str(file), env=environment)
    sources = shown.pop("sources")
    variable = {"from": "IMAGE_PROXY_SERVER__WORKERS", "over": str(file)}
    assert sources["server.workers"] == variable
    assert sources["fetch.timeout"] == {"from": str(file), "over": None}
    assert sources["presets.avatar.quality"] == {"from": str(file), "over": None}
    assert sources["presets.avatar.width"] == {"from": "default", "over": None}
    keys = {f"{section}.{key}" for section, values in shown.items() for key in values}
    assert keys - {*sources} <= {f"presets.{name}" for name in shown["presets"]} | {
        "server.admin_tokens"
    }
    assert {name.rpartition(".")[0].split(".")[0] for name in sources} == {*shown}


def test_the_presets_are_one_object_that_a_page_can_be_laid_out_by(run: Run) -> None:
    """Catches the default presets, a variant without its box, and a base that is not public."""
    configured = {
        "IMAGE_PROXY_PRESETS__BANNER__VARIANTS": "320",
        "IMAGE_PROXY_SERVER__BASE_URL": "https://img.example",
        "IMAGE_PROXY_SERVER__CDN_URL": "https://cdn.example",
    }
    (shown,) = documents(run, "presets", env=configured)
    assert shown["base_url"] == "https://cdn.example"
    assert shown["formats"] == ["jpeg", "png", "webp", "avif"]
    assert list(shown["presets"]) == [
        name for each in DEFAULT_PRESETS for name in (each, *["banner_w320"] * (each == "banner"))
    ]
    box = {"fit": "cover", "quality": 85, "animated": False}
    assert shown["presets"]["banner"] == {"width": 640, "height": 300, **box, "variants": [320]}
    assert shown["presets"]["banner_w320"] == {"width": 320, "height": 150, **box, "variants": []}
    assert documents(run, "presets")[0]["base_url"] == ""


def test_the_presets_are_a_table_for_people(run: Run) -> None:
    """Catches a height of 0, which nothing has."""
    header, *rows = run("presets").stdout.splitlines()
    assert header.split() == ["preset", "width", "height", "fit", "quality", "animated"]
    assert [row.split()[0] for row in rows] == list(DEFAULT_PRESETS)
    cells = {row.split()[0]: row.split()[1:] for row in rows}
    assert cells["avatar"] == ["1000", "1000", "cover", "85"]
    assert cells["content_full"] == ["1600", "contain", "90", "yes"]


def test_an_image_that_is_fetched_and_a_list_that_is_warmed_are_reported(
    run: Run, settings: Config, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Catches timings in words, and failures that a program has to find on standard error."""
    monkeypatch.setenv("IMAGE_PROXY_IDENTITY__PLC_URL", "http://127.0.0.1:9")  # nobody is there
    monkeypatch.setenv("IMAGE_PROXY_PROCESS__ISOLATION", "thread")
    put(settings, key(1))
    (fetched,) = documents(run, "fetch", "avatar", owner(1), blob_cid(1))
    timings = fetched.pop("timings")
    assert fetched == {"cache": "hit", "content_type": "image/jpeg", "bytes": 1000}
    assert all(isinstance(seconds, float) for seconds in timings.values())
    run("blocks", "add", "--did", owner(2))
    lines = "".join(f"avatar {owner(number)} {blob_cid(number)}\n" for number in (1, 2))
    (warmed,) = documents(run, "warm", input=lines, exit_code=1)
    (reason,) = warmed.pop("skips")
    assert warmed == {
        "folder": str(settings.cache.path),
        "images": 2,
        "made": 0,
        "cached": 1,
        "skipped": 1,
        "failed": 0,
        "evicted": 0,
        "unwritten": 0,
        "reasons": [],
    }
    assert reason["count"] == 1
    assert owner(2) in reason["urls"][0]


# Columns


def test_columns_begin_where_their_header_does_and_numbers_end_together() -> None:
    """Catches a table that is read by counting blanks."""
    rows = [("did:web:a.example", "7", "why"), ("did:plc:" + "a" * 24, "12,345", "")]
    header, first, second = aligned(("owner", "entries", "reason"), rows, right=(1,))
    assert header.index("reason") == first.index("why")
    assert header.index("entries") + len("entries") == first.index("7") + 1
    assert second.endswith(" 12,345")
    assert len(second) == header.index("entries") + len("entries")


def test_a_cell_that_would_act_on_the_terminal_is_escaped_before_it_is_measured() -> None:
    """Catches a column that is one off for each invisible character, and a screen that is wiped."""
    lines = list(aligned(("a", "b"), [("\x1b[2J", "x"), ("long enough", "y")]))
    assert "\x1b" not in "".join(lines)
    assert lines[1].rindex("x") == lines[2].rindex("y")


def test_a_million_rows_are_not_waited_for() -> None:
    """Catches widths that are measured over all of a list before its first line is shown."""
    taken = 0

    def endless() -> Iterator[tuple[str, str]]:
        nonlocal taken
        while True:
            taken += 1
            yield str(taken), "x"

    lines = aligned(("number", "x"), endless())
    for _ in range(PAGE + 1):
        next(lines)
    assert taken == PAGE
    next(lines)
    assert taken == 2 * PAGE


def test_columns_that_were_wide_stay_wide_on_the_next_page() -> None:
    """Catches columns that jump back and forth every thousand lines."""
    rows = [("a long first row", "x"), *[("short", "x")] * PAGE]
    assert {line.index("x") for line in aligned(("a", "b"), rows) if "x" in line} == {18}


def test_a_table_without_rows_has_no_header() -> None:
    """Catches a line on standard output that a script counts as one block."""
    assert list(aligned(("a",), [])) == []
