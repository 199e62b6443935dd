"""The documents say what is so."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
import tomllib
from contextlib import closing
from pathlib import Path

import pytest

from proxy.config import Config, load_config
from proxy.model.presets import DEFAULT_PRESETS
from proxy.model.selection import Selection
from proxy.moderation.store import ModerationStore
from tests.cache import owner
from tests.commands import check_line
from tests.deployed import guest
from tests.documents import blocks, shell_lines
from tests.moderation import feed_store_in
from tests.reference import MADE
from tests.required import skip_unless_required

ROOT = Path(__file__).parents[2]


def test_every_counterpart_of_the_seeds_tests_exists() -> None:
    """Catches a table that names tests which were renamed or never written."""
    table = (ROOT / "docs/seed-tests.md").read_text()
    named = set(re.findall(r"`(tests/[\w/]+\.py)::(\w+)`", table))
    missing = [
        f"{file}::{test}" for file, test in named if f"def {test}(" not in (ROOT / file).read_text()
    ]
    assert len(named) > 40
    assert not missing


def test_every_claim_of_security_is_held_by_tests_that_exist() -> None:
    """Catches a defence that is claimed, and whose test was renamed or never written."""
    text = (ROOT / "docs/security.md").read_text(encoding="utf-8")
    table = text.partition("\n## Guarded connections\n")[2].partition("\n## ")[0]
    rows = re.findall(r"^\| (?!what holds|---)(.*) \| (.*) \|$", table, re.MULTILINE)
    assert len(rows) > 15
    for claim, tests in rows:
        named = re.findall(r"`(tests/[\w/]+\.py)::(\w+)`", tests)
        assert named, claim
        for file, test in named:
            assert f"def {test}(" in (ROOT / file).read_text(), f"{claim}: {file}::{test}"


def test_every_module_that_a_document_names_exists() -> None:
    """Catches a module that moved away under a document."""
    named = {
        path
        for document in DOCUMENTS
        for path in re.findall(r"`(?:proxy/)?([\w/]+\.py)`", (ROOT / document).read_text())
        if not path.startswith(("tests/", "bench/", "test_"))
    }
    assert len(named) > 10
    assert [path for path in sorted(named) if not (ROOT / "proxy" / path).exists()] == []


DOCUMENTS = sorted(
    path.relative_to(ROOT).as_posix() for path in (*ROOT.glob("*.md"), *ROOT.glob("docs/*.md"))
)

OTHERS = {
    "apt",
    "curl",
    "git",
    "haproxy",
    "install",
    "mkdir",
    "printf",
    "ln",
    "nginx",
    "pip",
    "python3",
    "docker",
    "rm",
    "runuser",
    "systemctl",
    "systemd-run",
    ".ci/run",
}
"""Programs in the documents that are not ours: a block of theirs is held to the shell's syntax."""


def text_of(document: str) -> str:
    return (ROOT / document).read_text(encoding="utf-8")


@pytest.mark.parametrize("document", DOCUMENTS)
def test_every_command_in_the_documents_is_one_that_exists(document: str) -> None:
    """Catches a document that tells people to type what was renamed or never written."""
    text = text_of(document)
    for line in shell_lines(text):
        subprocess.run(["sh", "-n", "-c", line], check=True)
        assert check_line(line) or line.split()[0] in OTHERS, f"{line}: not known, not checked"
    for span in re.findall(r"`((?:imageproxy|\./run) [^`]*)`", text):
        # A table may name commands of one group together, and options that may be left out.
        check_line(re.sub(r"\[[^\]]*\]|…|\.\.\.", "", span))


def source_of(benchmark: str) -> str:
    """The program of ``./run bench BENCHMARK``."""
    found = ROOT / "bench" / f"{benchmark}.py"
    return (found if found.exists() else ROOT / "bench" / benchmark / "__main__.py").read_text()


def test_every_benchmark_in_the_documents_takes_the_options_it_is_shown_with() -> None:
    """Catches a figure whose command ends with "unrecognized arguments"."""
    shown = [
        (name, option)
        for document in DOCUMENTS
        for name, rest in re.findall(r"(?m)(?:\./run |`)bench ([a-z]+)([^`\n]*)", text_of(document))
        for option in re.findall(r"--[a-z-]+", rest)
    ]
    assert len(shown) > 30
    assert [each for each in shown if f'"{each[1]}"' not in source_of(each[0])] == []


def test_the_document_says_which_benchmarks_have_a_small_form_and_which_the_gate_runs() -> None:
    """Catches ``--quick`` promised of one that refuses it, a check that nothing makes, and a
    benchmark that ``./run help`` does not know."""
    text = text_of("docs/benchmarks.md")
    told = re.search(
        r"each but ([^;]*) a small one; the gate\s+runs these, but for (.*?), for", text, re.S
    )
    assert told is not None
    not_quick, not_in_gate = ({*re.findall(r"`(\w+)`", names)} for names in told.groups())
    names = {*re.findall(r"(?m)^    \./run bench (\w+)", text)}
    helped = text_of("run").partition("./run bench NAME")[2].partition("./run profile")[0]
    assert names <= {*re.findall(r"\w+", helped)}
    quick = {name for name in names if '"--quick"' in source_of(name)}
    assert not_quick == names - quick
    in_gate = re.findall(r"(?m)^\./run bench (\w+) --quick$", text_of(".ci/run"))
    assert not_in_gate == quick - {*in_gate}


def test_an_unknown_command_would_be_noticed() -> None:
    """Catches a check that passes everything."""
    for line in ("imageproxy nosuch", "imageproxy serve --nosuch", "./run nosuch"):
        with pytest.raises(Exception):  # noqa: B017, PT011 (click's, and an assertion)
            check_line(line)


@pytest.mark.parametrize("file", MADE)
def test_what_is_made_from_the_code_is_as_the_code_would_make_it(file: str) -> None:
    """Catches a key or a metric without its document, and an nginx that would find no file."""
    assert (ROOT / file).read_text(encoding="utf-8") == MADE[file](), "stale: run ./run docs"


VARIABLES = sorted(
    {
        (document, name, value)
        for document in DOCUMENTS
        for name, value in re.findall(
            r"(IMAGE_PROXY_\w+)=([^`\"'\s]*)", (ROOT / document).read_text(encoding="utf-8")
        )
    }
)


@pytest.mark.parametrize(("document", "name", "value"), VARIABLES)
def test_every_variable_in_the_documents_is_one_and_takes_its_value(
    document: str, name: str, value: str
) -> None:
    """Catches an example of the environment that stops the start, or changes nothing."""
    assert load_config(environment={name: value}) != Config() or value == "", document


def test_the_documents_show_each_form_of_a_variable() -> None:
    """Catches lists and tables that nobody can guess the spelling of."""
    shown = {name.removeprefix("IMAGE_PROXY_"): value for _, name, value in VARIABLES}
    config = load_config(environment={f"IMAGE_PROXY_{name}": v for name, v in shown.items() if v})
    assert config.negotiate.formats == ("avif", "webp")
    assert set(config.server.admin_tokens) == {"alice"}
    assert config.presets["avatar"].quality == 90


def test_the_readme_lists_the_presets_as_they_are() -> None:
    """Catches a table that the first who reads it builds wrong layouts from."""
    rows = [
        f"| `{name}` | {f'{each.width} x {each.height}' if each.height else f'{each.width} wide'} "
        f"| {each.fit}{', animated' if each.animated else ''} | {each.quality} |"
        for name, each in DEFAULT_PRESETS.items()
    ]
    table = ["| preset | size | fit | quality |", "|---|---|---|---|", *rows, ""]
    assert "\n".join(table) in (ROOT / "README.md").read_text(encoding="utf-8")


def test_every_link_between_the_documents_leads_somewhere() -> None:
    """Catches a document, or a section, that moved."""
    missing = []
    for document in DOCUMENTS:
        for target, section in re.findall(r"\]\(([^)#:]*)(?:#([^)]*))?\)", text_of(document)):
            file = (ROOT / document).parent / target if target else ROOT / document
            if not file.exists() or (section and section not in anchors(file)):
                missing.append(f"{document}: {target}#{section}")
    assert missing == []


def anchors(file: Path) -> set[str]:
    """What the sections of a document are called in links to them."""
    headings = re.findall(r"^#+ (.*)$", file.read_text(encoding="utf-8"), re.MULTILINE)
    return {re.sub(r"[^\w -]", "", heading.lower()).replace(" ", "-") for heading in headings}


def test_the_operators_document_is_in_the_order_of_their_work() -> None:
    """Catches what is looked up once a year between what is read on the first day."""
    headings = re.findall(r"^## (.*)$", text_of("docs/operations.md"), re.MULTILINE)
    assert headings == ["Install", "Watch", "Act", "Upgrade"]


def test_the_changelog_knows_the_version_that_is_released() -> None:
    version = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["version"]
    changes = (ROOT / "CHANGELOG.md").read_text()
    headings = re.findall(r"^## \[(.*?)\]", changes, re.MULTILINE)
    assert headings[:2] == ["Unreleased", version]
    allowed = {"Added", "Changed", "Deprecated", "Removed", "Fixed", "Security"}
    assert set(re.findall(r"^### (.*)$", changes, re.MULTILINE)) <= allowed


def test_blocks_come_back_from_a_backup_by_the_lines_of_the_documents(tmp_path: Path) -> None:
    """Catches a copy beside the log of what it replaces, which wins over it in silence."""
    if shutil.which("sqlite3") is None:
        skip_unless_required("needs sqlite3")
    live, backups, later = (tmp_path / name for name in ("live", "backups", "later"))
    backups.mkdir()

    def follow(heading: str, folder: Path) -> None:
        text = (ROOT / "docs/operations.md").read_text().partition(f"## {heading}\n")[2]
        for line in blocks(text, "sh")[0].splitlines():
            line = line.removeprefix("runuser -u imageproxy -- ")
            line = line.replace("/var/lib/imageproxy", str(folder))
            line = line.replace("/var/backups/imageproxy", str(backups))
            line = line.replace("--config /etc/imageproxy/config.toml ", "")
            if line.startswith("imageproxy "):
                line = line.replace("imageproxy", f"{sys.executable} -m proxy", 1)
            if line.split()[0] not in ("install", "systemctl"):
                environment = {**os.environ, "IMAGE_PROXY_CACHE__PATH": str(folder)}
                subprocess.run(["sh", "-euc", line], check=True, env=environment)

    store = ModerationStore(live / "moderation.sqlite3")
    store.make()
    store.record("block", [(Selection(did=owner(1)), "")], by="test", owner="test")
    with closing(feed_store_in(live)) as feeds:
        feeds.follow(owner(9), "")
    follow("Back up", live)
    assert (backups / "feeds.sqlite3").exists()
    store.record("block", [(Selection(did=owner(2)), "")], by="test", owner="test")
    # As a service leaves it that was killed: what came last is in the log alone.
    shutil.copytree(live, later)
    store.close()
    assert (later / "moderation.sqlite3-wal").stat().st_size
    follow("Restore", later)
    restored = ModerationStore(later / "moderation.sqlite3")
    assert [block.did for block in restored.blocks()] == [owner(1)]
    restored.close()


RUN_BY = {
    "./run serve": "tests/deployed/readme.py",
    "./run test": "tests/pythons/__main__.py",
    "./run test tests/test_urls.py": "tests/pythons/__main__.py",
    "./run lint": ".ci/run",
    "curl": "tests/deployed/readme.py",
    "pip": "tests/package.py",
    "imageproxy": "tests/docs/test_cluster.py",
    "haproxy": "tests/docs/test_cluster.py",
    "systemctl": "tests/docs/test_cluster.py",
    # Parsed alone: held against the Compose file. The image is run by tests/deployed/image.py.
    "docker": "tests/deploy/test_deploy.py",
}
"""What runs the commands of documents that no virtual machine does: whole, or by the program."""


def test_every_command_in_the_documents_is_run_somewhere() -> None:
    """Catches one that is parsed, and fails for everybody who types it."""
    for document in DOCUMENTS:
        if document.removeprefix("docs/") in guest.DOCUMENTS:
            continue
        for line in shell_lines(text_of(document)):
            if line == ".ci/run":  # which runs this
                continue
            runner = RUN_BY.get(line) or RUN_BY[line.split()[0]]
            words = " ".join(line.split()[:2]) if line.startswith("./run") else line.split()[0]
            assert words in (ROOT / runner).read_text(), f"{line}: not in {runner}"
    assert "./run deployed" in (ROOT / ".ci/run").read_text()
    assert "./run package" in (ROOT / ".ci/run").read_text()
    assert "./run pythons" in (ROOT / ".ci/run").read_text()
