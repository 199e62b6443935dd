"""Build the wheel, the sdist and their bill of materials into ``build/dist/``, and try each package
in clean environments of every Python here.

    ./run package

The dependencies are those of ``requirements/serve.txt``, with their hashes. What an installation
must do: say its version, print a URL and an nginx block, and check the default configuration.
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import zipfile
from pathlib import Path
from tempfile import TemporaryDirectory

from tests.documents import shell_lines
from tests.pythons.interpreters import interpreter, named
from tests.sbom import bill_of

ROOT = Path(__file__).resolve().parents[1]

DID = "did:plc:z72i7hdynmk6r22z27h6tvur"
CID = "bafkreihagr2cmvl2jt4mgx3sppwe2it3fwolkrbtjrhcnwjk4jdijhsoze"

QUIET = ("-qq", "--disable-pip-version-check")


def build(folder: Path) -> tuple[Path, Path]:
    """The wheel and the sdist, made into ``folder`` by the build backend that is installed."""
    code = (
        "import hatchling.build as b, sys; b.build_wheel(sys.argv[1]); b.build_sdist(sys.argv[1])"
    )
    subprocess.run([sys.executable, "-c", code, str(folder)], cwd=ROOT, check=True)
    (wheel,), (sdist,) = folder.glob("*.whl"), folder.glob("*.tar.gz")
    return wheel, sdist


def look_into(wheel: Path) -> None:
    """Fail for a wheel with too little or too much in it."""
    names = zipfile.ZipFile(wheel).namelist()
    assets = ("page.html", "admin.html", "common.css", "common.js", "thumbhash.js")
    pages = [f"proxy/web/{name}" for name in assets]
    for needed in ("proxy/py.typed", "proxy/tools/nginx.conf", *pages):
        assert needed in names, f"{needed} is not in the wheel"
    strangers = {name.split("/")[0] for name in names if ".dist-info/" not in name}
    strangers -= {"proxy", "atproto_imageproxy.py"}
    assert not strangers, f"in the wheel: {strangers}"


def try_out(python: str, package: Path, folder: Path) -> None:
    """Install ``package`` in an environment of its own below ``folder``, and use it."""
    subprocess.run([python, "-m", "venv", str(folder)], check=True)
    pip = [str(folder / "bin/python"), "-m", "pip", "install", *QUIET]
    requirements = ROOT / "requirements"
    hashed = ["--require-hashes", "--no-deps", "--no-build-isolation", "-r"]
    subprocess.run([*pip, *hashed, str(requirements / "build.txt")], check=True)
    subprocess.run([*pip, *hashed, str(requirements / "serve.txt")], check=True)
    subprocess.run([*pip, "--no-deps", "--no-build-isolation", str(package)], check=True)
    subprocess.run([str(folder / "bin/python"), "-m", "pip", "check"], check=True)

    def imageproxy(*arguments: str) -> str:
        command = [str(folder / "bin/imageproxy"), *arguments]
        # From elsewhere, so that the checkout is not what is imported.
        done = subprocess.run(command, cwd=folder, capture_output=True, text=True, check=True)
        return done.stdout.strip()

    assert "0." in imageproxy("--version")
    expected = f"/img/avatar/plain/{DID}/{CID}@webp"
    assert imageproxy("url", "avatar", DID, CID, "--format", "webp") == expected
    assert imageproxy("config", "check") == "ok"
    assert imageproxy("nginx").startswith("# nginx")


def keep(folder: Path, wheel: Path, sdist: Path) -> None:
    """Leave the two in ``folder``, alone with the bill of what they are installed with."""
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    name, version = wheel.name.split("-")[:2]
    pinned = (ROOT / "requirements/serve.txt").read_text(encoding="utf-8")
    bill = bill_of(name.replace("_", "-"), version, pinned)
    (folder / f"{name}-{version}.cdx.json").write_text(json.dumps(bill, indent=1) + "\n")
    for package in (wheel, sdist):
        shutil.copy(package, folder)


def try_asks(folder: Path) -> None:
    """Install the other HTTP client into an environment as docs/clients.md says."""
    path = f"{folder / 'bin'}:{os.environ['PATH']}"
    lines = shell_lines((ROOT / "docs/clients.md").read_text(encoding="utf-8"))
    assert all(line.startswith("pip ") for line in lines)
    for line in (*lines, "python -c 'import proxy.egress.asks_client'"):
        subprocess.run(
            ["sh", "-ec", line], env={**os.environ, "PATH": path}, check=True, cwd=folder
        )


def main() -> None:
    """The command."""
    with TemporaryDirectory() as name:
        folder = Path(name)
        wheel, sdist = build(folder)
        look_into(wheel)
        for version in named():
            python = interpreter(version)
            if python is None:
                print(f"Python {version}: not on this machine")
                continue
            for package in (wheel, sdist):
                try_out(python, package, folder / f"{version}-{package.suffix[1:]}")
                print(f"Python {version}: {package.name} installs and runs", flush=True)
            try_asks(folder / f"{version}-{wheel.suffix[1:]}")
        keep(ROOT / "build/dist", wheel, sdist)
        print("in build/dist: ", *sorted(os.listdir(ROOT / "build/dist")))


if __name__ == "__main__":
    main()
