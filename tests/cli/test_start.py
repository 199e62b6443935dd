"""A command imports what it uses, so that it starts at once; a server what it is configured for."""

from __future__ import annotations

import subprocess
import sys
from contextlib import closing
from pathlib import Path

import pytest

from proxy.config import load_config
from proxy.model.identifiers import Did
from proxy.model.selection import Selection
from proxy.moderation.configured_store import folder_store_of
from tests.processes import ROOT

DID = "did:plc:z72i7hdynmk6r22z27h6tvur"
CID = "bafkreibnoelefnzgwbcacyt4vh52ymxvzbjq7mmqhtcnwarfq4lzegsiqe"

HEAVY = {
    "PIL",
    "dns",
    "httpcore2",
    "hypercorn",
    "prometheus_client",
    "proxy.lifecycle",
    "proxy.service",
    "proxy.serving",
    "proxy.web",
    "proxy.wiring",
    "quart",
    "trio",
}
"""What serves, fetches and transforms; each takes longer to import than such a command may run."""

TELL_IMPORTS = """
import sys
from proxy.cli import main
try:
    main()
finally:
    print(*sys.modules, file=sys.stderr)
"""


UNUSED = {
    "PIL",  # in the image workers alone
    "av",
    "cryptography",
    "cykooz_resizer",
    "obstore",
    "opentelemetry",
    "proxy.cache.object_client",
    "proxy.coordination.cluster.members",
    "proxy.imaging.pipeline",
    "proxy.moderation.cdn.bunny",
    "proxy.moderation.cdn.cloudflare",
    "proxy.moderation.cdn.cloudfront",
    "proxy.moderation.cluster",
    "proxy.moderation.policy",
    "proxy.observability.tracing",
    "proxy.serving.multiprocess.supervisor",
    "proxy.tools",
    "psycopg",
    "trio_websocket",
}
"""What one process with the default configuration never uses."""

TELL_SERVED = """
import os, signal, sys
from proxy.config import load_config
from proxy.serving.serve import run
from proxy.serving.sockets import open_sockets
from proxy.shared.binds import parse_bind

def tell():
    print(*sys.modules, file=sys.stderr)
    os.kill(os.getpid(), signal.SIGTERM)

run(load_config(), lambda: open_sockets([parse_bind("127.0.0.1:0")]), on_serving=tell)
"""


def imported_by(*arguments: str, folder: Path) -> set[str]:
    """Every module that a command has imported when it ends; it must succeed."""
    return imported_in(TELL_IMPORTS, *arguments, folder=folder)


def imported_in(program: str, *arguments: str, folder: Path) -> set[str]:
    """What ``program`` prints that it has imported; it must succeed."""
    done = subprocess.run(
        [sys.executable, "-c", program, *arguments],
        env={"IMAGE_PROXY_CACHE__PATH": str(folder), "PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        check=True,
    )
    return set(done.stderr.split())


@pytest.mark.parametrize(
    ("command", "more"),
    [
        ("--version", {"pydantic", "structlog"}),
        ("--help", {"pydantic", "structlog"}),
        ("warm --help", {"pydantic", "structlog"}),
        (f"url avatar {DID} {CID}", {"structlog"}),
        ("blocks list", set()),
        ("blocks audit", set()),
        ("config show", {"structlog"}),
        ("config check", {"structlog"}),
        ("presets", {"structlog"}),
    ],
)
def test_a_command_that_needs_no_service_imports_none(
    command: str, more: set[str], tmp_path: Path
) -> None:
    """Catches a module of the command line that imports at its head what one command needs."""
    config = load_config(environment={"IMAGE_PROXY_CACHE__PATH": str(tmp_path)})
    with closing(folder_store_of(config)) as store:
        store.make()
        store.record("block", [(Selection(Did(DID)), "why")], by="admin", owner="")
    found = imported_by(*command.split(), folder=tmp_path)
    assert "proxy.cli.common" in found
    assert found & (HEAVY | more) == set()


def test_the_check_sees_what_a_command_imports(tmp_path: Path) -> None:
    """Catches a check of a list that the command never prints."""
    assert {"trio", "proxy.wiring"} <= imported_by("nginx", folder=tmp_path)


def test_a_server_imports_what_it_is_configured_for(tmp_path: Path) -> None:
    """Catches a part that few services have, imported at the head of what all of them have."""
    found = imported_in(TELL_SERVED, folder=tmp_path)
    assert {"proxy.service", "proxy.web.app"} <= found
    assert found & UNUSED == set()
