"""Another distribution, proxy.py, has a package of the same name: what is said of that."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from proxy.tools.doctor.checks import judge_package
from proxy.tools.doctor.probes import shares_package_with
from tests.processes import ROOT

THEIRS = {
    "proxy/__init__.py": "from pathlib import Path\nPath('ran').touch()\nfrom .proxy import main\n",
    "proxy/__main__.py": "from pathlib import Path\nPath('ran').touch()\n",
    "proxy/proxy.py": "def main():\n    pass\n",
    "proxy/common/__init__.py": "",
    "proxy/http/__init__.py": "",
    "proxy.py-2.4.10.dist-info/METADATA": "Name: proxy.py\nVersion: 2.4.10\n",
}
"""A stand-in: its files where the real one has them, and a note that they ran."""

SCRIPT = "from atproto_imageproxy import main; main()"
"""What pip writes into ``bin/imageproxy``."""


def install_theirs(site: Path) -> None:
    for name, text in THEIRS.items():
        file = site / name
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(text)


def remove_theirs(site: Path) -> None:
    for name in THEIRS:
        (site / name).unlink()


def install_ours(site: Path) -> None:
    shutil.copytree(
        ROOT / "proxy",
        site / "proxy",
        ignore=shutil.ignore_patterns("__pycache__"),
        dirs_exist_ok=True,
    )
    shutil.copy(ROOT / "atproto_imageproxy.py", site)


def run(folder: Path, *sites: Path, script: tuple[str, ...]) -> subprocess.CompletedProcess[str]:
    """Run Python in ``folder`` with these folders of packages, the first before the others."""
    path = os.pathsep.join(map(str, sites))
    environment = {**os.environ, "PYTHONPATH": path}
    return subprocess.run(
        [sys.executable, *script], cwd=folder, env=environment, capture_output=True, text=True
    )


def assert_refused(done: subprocess.CompletedProcess[str], folder: Path, *words: str) -> None:
    assert (done.returncode, done.stdout) == (1, "")
    assert done.stderr.startswith('imageproxy: the package "proxy" in ')
    assert done.stderr.count("\n") == 1, "one sentence, and no traceback"
    for word in words:
        assert word in done.stderr
    assert not (folder / "ran").exists(), "code of theirs ran"


@pytest.fixture
def site(tmp_path: Path) -> Path:
    found = tmp_path / "site"
    found.mkdir()
    return found


@pytest.mark.parametrize("command", ["--version", "serve", "doctor"])
def test_a_package_of_theirs_over_ours_is_a_sentence(
    command: str, site: Path, tmp_path: Path
) -> None:
    """Catches "cannot import name" minutes after a pip install of something else."""
    install_ours(site)
    install_theirs(site)
    done = run(tmp_path, site, script=("-c", SCRIPT, command))
    assert_refused(done, tmp_path, str(site / "proxy"), "proxy.py", "virtual environment")


def test_a_package_of_theirs_that_is_found_first_is_a_sentence(site: Path, tmp_path: Path) -> None:
    """Catches "No module named proxy.cli"."""
    install_ours(site)
    other = tmp_path / "other"
    install_theirs(other)
    done = run(tmp_path, other, site, script=("-c", SCRIPT, "--version"))
    assert_refused(done, tmp_path, str(other / "proxy"), "virtual environment")
    assert run(tmp_path, site, other, script=("-c", SCRIPT, "--version")).returncode == 0


def test_a_package_that_their_removal_has_torn_is_a_sentence(site: Path, tmp_path: Path) -> None:
    """Catches what is left of ours being taken for a package of it."""
    install_ours(site)
    install_theirs(site)
    remove_theirs(site)
    # Without the checkout that these tests run from: a whole package wins over a torn one.
    done = run(tmp_path, site, script=("-S", "-c", SCRIPT, "--version"))
    assert_refused(done, tmp_path, str(site / "proxy"), "install atproto-imageproxy again")


def test_the_module_refuses_what_is_not_its_package(site: Path, tmp_path: Path) -> None:
    """Catches ``python -m proxy`` that asks nobody: here the first file alone is theirs."""
    install_ours(site)
    (site / "proxy/__init__.py").write_text("")
    done = run(tmp_path, site, script=("-m", "proxy", "--version"))
    assert_refused(done, tmp_path, "virtual environment")


def test_ours_over_theirs_runs_and_the_doctor_warns_of_it(site: Path, tmp_path: Path) -> None:
    """Catches a command that refuses to work though it could, and a doctor that sees nothing."""
    install_theirs(site)
    install_ours(site)
    for script in (("-c", SCRIPT), ("-m", "proxy")):
        done = run(tmp_path, site, script=(*script, "--version"))
        assert (done.returncode, done.stderr) == (0, "")
    assert shares_package_with(site / "proxy", [str(site)]) == "proxy.py 2.4.10"
    assert shares_package_with(site / "proxy", [str(tmp_path)]) is None
    elsewhere = tmp_path / "elsewhere"
    install_theirs(elsewhere)
    assert shares_package_with(ROOT / "proxy", [str(elsewhere)]) is None
    finding = judge_package(str(site / "proxy"), "proxy.py 2.4.10")
    assert (finding.level, finding.name) == ("warn", "package")
    assert "proxy.py 2.4.10" in finding.text
    assert "virtual environment" in finding.fix
    assert judge_package("anywhere", None).level == "ok"
