from __future__ import annotations

import os
from collections.abc import Mapping
from contextlib import closing
from pathlib import Path

import pytest
from click.testing import CliRunner, Result
from structlog.testing import capture_logs

from proxy.cli import cli
from proxy.config import Config, load_config
from proxy.moderation.configured_store import folder_store_of
from tests.cli import Run


@pytest.fixture
def run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Run:
    """Runs a command with a cache of its own; ``env`` comes to the environment."""
    for name in os.environ:
        if name.startswith("IMAGE_PROXY_"):
            monkeypatch.delenv(name)
    monkeypatch.setenv("IMAGE_PROXY_CACHE__PATH", str(tmp_path / "cache"))

    def run(*arguments: str, input: str = "", env: Mapping[str, str] | None = None) -> Result:
        with capture_logs():  # main() has them go to standard error
            result = CliRunner().invoke(cli, arguments, input=input, env=env)
        unexpected = result.exception is not None and not isinstance(result.exception, SystemExit)
        if unexpected:
            raise AssertionError(f"{arguments} raised") from result.exception
        return result

    return run


@pytest.fixture
def settings(run: Run, tmp_path: Path) -> Config:
    """The configuration of the commands that ``run`` runs, on a folder that a server has made."""
    (tmp_path / "cache" / "images").mkdir(parents=True)
    settings = load_config()
    with closing(folder_store_of(settings)) as store:
        store.make()
    return settings
