"""What is in ``deploy/``: run where it can be, held against the program where it cannot."""

from __future__ import annotations

import json
import os
import re
import runpy
import shlex
import shutil
import subprocess
import sys
import tomllib
from collections.abc import Iterator
from configparser import RawConfigParser
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import pytest
import trio
import yaml

from proxy.config import Config, load_config
from proxy.coordination.cluster.served_name import NAME
from proxy.tools.doctor.memory_ceiling import ceiling
from proxy.tools.nginx import server_block
from proxy.wiring import disk_cache_of
from tests.commands import assert_is_command
from tests.deployed.unit import UNIT, head
from tests.documents import shell_lines
from tests.fakes.world import tiny_jpeg
from tests.ports import free_port
from tests.processes import (
    PATIENCE,
    ROOT,
    SERVE,
    imageproxy,
    own_environment,
    serve,
    started,
    until,
    upstream,
)
from tests.required import skip_unless_required

pytestmark = pytest.mark.slow

DEPLOY = ROOT / "deploy"


def need(program: str) -> str:
    """Its path, or the test is skipped."""
    found = shutil.which(program)
    if found is None:
        skip_unless_required(f"{program} is not installed")
    return found


# systemd


def unit() -> RawConfigParser:
    parser = RawConfigParser(strict=False, comment_prefixes="#", delimiters="=")
    parser.optionxform = str  # type: ignore[assignment, method-assign]
    parser.read(UNIT)
    return parser


def test_the_documented_examination_has_the_limits_of_the_unit() -> None:
    """Catches a doctor that judges limits which are not those of the service."""
    document = (ROOT / "docs/operations.md").read_text(encoding="utf-8")
    joined = document.replace("\\\n", " ")
    (command,) = re.findall(r"^systemd-run .*$", joined, re.MULTILINE)
    words = shlex.split(command)
    given = dict(words[at + 1].split("=", 1) for at, word in enumerate(words) if word == "-p")
    service = unit()["Service"]
    assert given == {name: service[name] for name in given}
    limits = {name for name in service if name.startswith("Limit") or name.endswith("Max")}
    assert given.keys() >= limits - {"MemorySwapMax"}, "swap is of no interest to it"


def with_python_for_program() -> str:
    return UNIT.read_text().replace("=/opt/imageproxy/bin/imageproxy", f"={sys.executable}")


def installed_config(folder: Path) -> Config:
    """The configuration that these commands install."""
    (line,) = [line for line in head() if line.endswith(" > /etc/imageproxy/config.toml")]
    file = folder / "config.toml"
    command = line.replace("/etc/imageproxy/config.toml", str(file))
    subprocess.run(["sh", "-c", command], cwd=ROOT, check=True)
    return load_config(file, environment={})


@pytest.fixture
def installed_unit(tmp_path: Path) -> Path:
    """The unit with a program and a user that this machine has."""
    text = with_python_for_program()
    text = re.sub(r"^(User|Group)=.*$", r"\1=root", text, flags=re.MULTILINE)
    file = tmp_path / "imageproxy.service"
    file.write_text(text)
    return file


def test_systemd_finds_no_mistake_in_the_unit(installed_unit: Path) -> None:
    """Catches a misspelt setting, which systemd otherwise only logs, and ignores."""
    command = [need("systemd-analyze"), "verify", "--man=no", str(installed_unit)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    mistakes = [line for line in done.stderr.splitlines() if "imageproxy.service" in line]
    assert (done.returncode, mistakes) == (0, [])
    broken = installed_unit.read_text().replace("PrivateTmp=", "PrivateTemp=")
    installed_unit.write_text(broken)
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert "PrivateTemp" in done.stderr, "the check must be able to fail"


def test_systemd_counts_the_unit_among_the_well_confined(installed_unit: Path) -> None:
    """Its scale goes from 0 to 10; a unit without hardening has 9.6, and below 3 is well done."""
    text = with_python_for_program()
    installed_unit.write_text(text)
    command = [need("systemd-analyze"), "security", "--offline=true", "--threshold=25"]
    done = subprocess.run([*command, str(installed_unit)], capture_output=True, text=True)
    assert done.returncode == 0, done.stdout[-200:]


def test_the_unit_leaves_the_service_its_time_to_stop_and_its_memory() -> None:
    service = unit()["Service"]
    shutdown = Config().server.shutdown_timeout
    assert float(service["TimeoutStopSec"]) > 2 * shutdown + 5
    assert int(service["MemoryMax"].removesuffix("G")) << 30 > ceiling(Config(), 2)
    assert service["Type"] == "notify"
    for key in ("ExecStart", "ExecStartPre"):
        _, *arguments = shlex.split(service[key])
        assert_is_command(arguments)


def test_a_service_whose_processes_were_all_killed_leaves_no_file_to_nginx(tmp_path: Path) -> None:
    """Catches a watcher that systemd or a lack of memory kills with its parent: in a cluster the
    name is there when the lease has ended, and nginx serves what was blocked since."""
    service = unit()["Service"]
    folder = tmp_path / service["StateDirectory"]
    folder.mkdir()
    (folder / "images").mkdir()
    (folder / NAME).symlink_to("images")
    command = service["ExecStopPost"].removeprefix("-").replace("%S", str(tmp_path))
    for _ in range(2):
        subprocess.run(shlex.split(command), check=True)
        assert [each.name for each in folder.iterdir()] == ["images"]


def test_the_installed_configuration_alone_says_where_the_cache_is(tmp_path: Path) -> None:
    """Catches a unit whose cache is not that of ``imageproxy blocks`` with the same file."""
    service = unit()["Service"]
    config = installed_config(tmp_path)
    assert config.cache.path == Path("/var/lib") / service["StateDirectory"]
    own = {"cache": {"path": config.cache.path}}
    assert config == load_config(environment={}, overrides=own), "nothing else is changed"
    assert "Environment" not in service
    for key in ("ExecStart", "ExecStartPre"):
        assert "--config /etc/imageproxy/config.toml" in service[key]


def test_what_the_unit_says_to_type_is_there_to_be_typed() -> None:
    """Catches a package that no index has, and a link to where the command is not."""
    for line in head():
        subprocess.run(["sh", "-n", "-c", line], check=True)
    typed = "\n".join(head())
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    (wanted,) = re.findall(r"/bin/pip install '\.\[(\w+)\]'", typed)
    assert wanted in project["optional-dependencies"]
    assert "ln -sf /opt/imageproxy/bin/imageproxy /usr/local/bin/imageproxy" in typed
    assert unit()["Service"]["ExecStart"].split()[0] == "/opt/imageproxy/bin/imageproxy"


CONFINED = """
set -e
mount --make-rprivate /
mount -o remount,bind,ro /
mount -t tmpfs none {state}
exec setpriv --no-new-privs --bounding-set=-all --inh-caps=-all {python} {arguments}
"""
"""A root that cannot be written, a state folder that can, and no privileges."""

DENY_WRITE_EXECUTE = """
import ctypes, os, sys
# PR_SET_MDWE (linux/prctl.h), what MemoryDenyWriteExecute= is made of
assert ctypes.CDLL(None).prctl(65, *map(ctypes.c_ulong, (1, 0, 0, 0))) == 0
os.execv(sys.argv[1], sys.argv[1:])
"""


@pytest.fixture
def state_folder() -> Iterator[Path]:
    """A folder to mount on."""
    probe = subprocess.run(["unshare", "--mount", "true"], capture_output=True, check=False)
    if probe.returncode:
        skip_unless_required("no mount namespaces here")
    with TemporaryDirectory(prefix="imageproxy-") as folder:
        yield Path(folder)
        assert os.listdir(folder) == [], "what was written is in the namespace alone"


async def test_it_serves_on_a_root_that_cannot_be_written_and_without_privileges(
    state_folder: Path,
) -> None:
    """Catches what writes beside the cache, and memory that is written and then run."""
    need("setpriv")
    script = CONFINED.format(
        state=state_folder,
        python=shlex.join([sys.executable, "-c", DENY_WRITE_EXECUTE, sys.executable]),
        arguments=shlex.join(SERVE),
    )
    confined = ["unshare", "--mount", "sh", "-c", script]
    arguments = ["-c", f"import os; os.execvp('unshare', {confined!r})"]
    async with upstream() as internet:
        did, cid = internet.add_blob(tiny_jpeg())
        path = f"/img/avatar_thumbnail/plain/{did}/{cid}"
        environment = internet.environment(state_folder / "cache")
        async with serve(arguments, environment) as server:
            first = await server.get(path)
            assert (first.status, first.headers["x-cache"]) == (200, "miss")

            async def written() -> bool:
                return b"imageproxy_cache_entries 1.0" in (await server.get("/metrics")).body

            await until(written)
            assert (await server.get("/readyz")).status == 200
            lines = [json.loads(line) for line in server.text.splitlines() if line.startswith("{")]
            missing = {part for line in lines for part in line.get("missing", ())}
            # The user is root, without its privileges; the kernel does not count its threads.
            assert {part.partition(" (")[0] for part in missing} <= {"thread limit"}


# containers


def compose() -> dict[str, Any]:
    document: dict[str, Any] = yaml.safe_load((DEPLOY / "compose.yaml").read_text())
    return document


def test_the_compose_file_is_one_and_keeps_the_container_confined() -> None:
    service = compose()["services"]["imageproxy"]
    assert service["read_only"] is True
    assert service["cap_drop"] == ["ALL"]
    assert "no-new-privileges:true" in service["security_opt"]
    assert int(service["mem_limit"].removesuffix("g")) << 30 > ceiling(Config(), 2)
    assert all(port.startswith("127.0.0.1:") for port in service["ports"])
    built_from = DEPLOY / service["build"]["context"] / service["build"]["dockerfile"]
    assert built_from.resolve() == DEPLOY / "Dockerfile"
    set_here = {
        name: "" if "$" in value else value for name, value in service["environment"].items()
    }
    load_config(environment=set_here)
    volumes = dict(volume.split(":") for volume in service["volumes"])
    assert volumes == {"cache": dockerfile_environment()["IMAGE_PROXY_CACHE__PATH"]}


def test_the_container_of_the_readme_is_confined_as_that_of_the_compose_file() -> None:
    """Catches a way to start that is shown first, and gives the container more."""
    lines = [each for each in shell_lines((ROOT / "README.md").read_text()) if "docker" in each]
    build, start, inside = (shlex.split(line) for line in lines)
    (service,) = compose()["services"].values()
    assert build == ["docker", "build", "-f", "deploy/Dockerfile", "-t", service["image"], "."]
    options = dict(zip(start[2:-1], [*start[3:-1], ""], strict=True))
    assert ("--read-only" in options) is service["read_only"]
    assert [options["--tmpfs"]] == service["tmpfs"]
    assert [options["--cap-drop"]] == service["cap_drop"]
    assert [options["--security-opt"]] == service["security_opt"]
    assert [options["-p"]] == service["ports"]
    assert [options["-v"]] == service["volumes"]
    assert options["--memory"] == service["mem_limit"]
    assert int(options["--pids-limit"]) == service["pids_limit"]
    assert options["--ulimit"] == f"nofile={service['ulimits']['nofile']}"
    assert f"{options['--stop-timeout']}s" == service["stop_grace_period"]
    assert start[-1] == service["image"]
    assert inside[:4] == ["docker", "exec", options["--name"], dockerfile()[-2][1].strip('[]"')]


def test_compose_itself_reads_the_file() -> None:
    command = [need("docker-compose"), "-f", str(DEPLOY / "compose.yaml"), "config", "--quiet"]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


def dockerfile() -> list[tuple[str, str]]:
    """Instructions and their arguments."""
    text = (DEPLOY / "Dockerfile").read_text()
    text = re.sub(r"^#.*\n", "", text, flags=re.MULTILINE).replace("\\\n", " ")
    lines = [line.split(maxsplit=1) for line in text.splitlines() if line.strip()]
    return [(line[0], " ".join(line[1].split())) for line in lines]


def dockerfile_environment() -> dict[str, str]:
    """The settings of the image."""
    pairs = [
        pair.split("=", 1) for name, text in dockerfile() if name == "ENV" for pair in text.split()
    ]
    return {name: value for name, value in pairs if name.startswith("IMAGE_PROXY_")}


def test_the_dockerfile_copies_what_exists_and_ends_as_a_user_without_privileges() -> None:
    instructions = dockerfile()
    known = {"FROM", "WORKDIR", "COPY", "RUN", "USER", "ENV", "VOLUME", "EXPOSE", "STOPSIGNAL"}
    assert {name for name, _ in instructions} <= known | {"HEALTHCHECK", "ENTRYPOINT", "CMD"}
    stages = [text.split(" AS ") for name, text in instructions if name == "FROM"]
    assert len(stages) == 2
    for name, text in instructions:
        if name == "COPY" and text.startswith("--from="):
            assert text.split()[0] == f"--from={stages[0][1]}"
        elif name == "COPY":
            *sources, _ = text.split()
            assert all((ROOT / source).exists() for source in sources), text
        elif name == "RUN":
            subprocess.run(["sh", "-n", "-c", text], check=True)
    final = instructions[[name for name, _ in instructions].index("FROM", 1) :]
    users = [text for name, text in final if name == "USER"]
    assert users
    assert users[-1] not in ("root", "0")
    load_config(environment=dockerfile_environment())
    assert_is_command(json.loads(dict(final)["CMD"]))
    assert f"deploy/{HEALTHCHECK.name} {COPIED_TO}/" in [text for _, text in final]
    check = json.loads(dict(final)["HEALTHCHECK"].split(" CMD ")[1])
    assert check == ["python", f"{COPIED_TO}/{HEALTHCHECK.name}"]


HEALTHCHECK, COPIED_TO = DEPLOY / "healthcheck.py", "/opt/imageproxy"


@pytest.mark.parametrize(
    "bind", ["127.0.0.1:{port}", "[::1]:{port},127.0.0.1:0", "unix:{folder}/s,127.0.0.1:0"]
)
async def test_the_health_check_asks_where_the_server_listens(bind: str, tmp_path: Path) -> None:
    """Catches one that asks port 8080 of a server elsewhere, and one that is pleased by nobody."""
    bind = bind.format(port=free_port(), folder=tmp_path)
    environment = own_environment({"IMAGE_PROXY_SERVER__BIND": bind})
    with trio.fail_after(PATIENCE):
        check = [sys.executable, str(HEALTHCHECK)]
        unserved = await trio.run_process(check, env=environment, check=False, capture_stderr=True)
        assert unserved.returncode == 1
        serving = [sys.executable, *imageproxy("serve", "--bind", bind)]
        async with started(serving, {"IMAGE_PROXY_CACHE__PATH": str(tmp_path / "cache")}):
            served = await trio.run_process(check, env=environment, check=False)
            assert served.returncode == 0


@pytest.mark.parametrize(
    ("command", "expected"),
    [
        ("python /opt/imageproxy/bin/imageproxy serve", "0.0.0.0:8080"),
        ("python imageproxy serve --bind 127.0.0.1:9000", "127.0.0.1:9000"),
        ("/sbin/docker-init -- imageproxy serve --bind=unix:/run/a,[::1]:80", "unix:/run/a"),
    ],
)
def test_the_health_check_reads_the_command_of_its_container(command: str, expected: str) -> None:
    """Catches a container that is restarted because its port was given on the command line."""
    bind_of = runpy.run_path(str(HEALTHCHECK))["bind_of"]
    assert bind_of(command.split(), dockerfile_environment()) == expected


# nginx


def test_the_nginx_block_is_what_the_command_prints_for_the_units_cache(tmp_path: Path) -> None:
    """Catches a checked-in block of yesterday's fingerprints: nginx would find no file."""
    installed = installed_config(tmp_path)
    named = installed.server.model_copy(update={"base_url": "https://img.example.com"})
    config = installed.model_copy(update={"server": named})
    images = disk_cache_of(config).images
    found = (DEPLOY / "nginx.conf").read_text()
    assert found == server_block(config, images), "stale: run ./run docs"


# Caddy


def test_caddy_takes_the_file() -> None:
    command = [need("caddy"), "validate", "--adapter", "caddyfile", "--config"]
    done = subprocess.run([*command, str(DEPLOY / "Caddyfile")], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


# HAProxy


def test_haproxy_takes_the_file() -> None:
    command = [need("haproxy"), "-c", "-f", str(DEPLOY / "haproxy.cfg")]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert (done.returncode, "WARNING" in done.stderr) == (0, False), done.stderr
