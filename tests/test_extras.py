"""What a configuration needs beyond its values: found out before anything starts."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from proxy import extras
from proxy.config import Config, ConfigError
from proxy.extras import check_extras
from tests.fakes.world import World
from tests.processes import run

pytestmark = pytest.mark.slow

DID = "did:plc:ar7c4by46qjdydhdevvrndac"

SETTINGS: list[tuple[str, dict[str, Any], str]] = [
    ("labels.subscribe", {"labels": {"subscribe": (DID,)}}, "[moderation]"),
    ("accounts.url", {"accounts": {"url": "wss://jetstream.example"}}, "[moderation]"),
    ("store.url", {"store": {"url": "file:///srv/pictures"}}, "[cluster]"),
    ("trace.endpoint", {"trace": {"endpoint": "http://127.0.0.1:4318/v1/traces"}}, "[otel]"),
]


@pytest.fixture
def no_extras(monkeypatch: pytest.MonkeyPatch) -> None:
    """None of them is installed."""
    monkeypatch.setattr(extras, "NEEDED", dict.fromkeys(extras.NEEDED, ("no_such_module",)))


@pytest.mark.parametrize(("key", "settings", "extra"), SETTINGS)
def test_an_extra_that_is_missing_is_named_with_the_key_that_needs_it(
    key: str, settings: dict[str, Any], extra: str, no_extras: None
) -> None:
    """Catches a start that fails at the first label, or with a traceback."""
    check_extras(Config())
    with pytest.raises(ConfigError) as caught:
        check_extras(Config.model_validate(settings))
    (mistake,) = caught.value.mistakes
    assert mistake.startswith(f"{key}: needs no_such_module; ")
    assert extra in mistake


def test_what_is_installed_is_enough() -> None:
    """Catches a module that no release of the packages has."""
    for _, settings, _ in SETTINGS:
        check_extras(Config.model_validate(settings))


def test_all_that_is_missing_is_told_at_once(no_extras: None) -> None:
    settings = {key: value for _, setting, _ in SETTINGS for key, value in setting.items()}
    with pytest.raises(ConfigError) as caught:
        check_extras(Config.model_validate(settings))
    assert [mistake.partition(":")[0] for mistake in caught.value.mistakes] == [
        key for key, _, _ in SETTINGS
    ]


async def test_a_service_that_lacks_an_extra_does_not_open(no_extras: None, world: World) -> None:
    """Catches one that starts, and silently traces nothing."""
    with pytest.raises(ConfigError, match=r"trace\.endpoint"):
        async with world.service(world.config(trace={"endpoint": "http://127.0.0.1:9/"})):
            pass


WITHOUT_EXTRAS = """
import sys
from proxy import extras
from proxy.cli import main
extras.NEEDED = dict.fromkeys(extras.NEEDED, ("no_such_module",))
sys.argv = ["imageproxy", *{arguments!r}]
main()
"""


@pytest.mark.parametrize(
    "command", [("serve",), ("serve", "--workers", "2"), ("config", "check"), ("doctor",)]
)
async def test_each_command_that_serves_or_checks_says_one_line(
    command: tuple[str, ...], tmp_path: Path
) -> None:
    """Catches "ok" before a start that fails, and a reason between a traceback and a lie."""
    environment = {
        "IMAGE_PROXY_TRACE__ENDPOINT": "http://127.0.0.1:4318/v1/traces",
        "IMAGE_PROXY_SERVER__BIND": "127.0.0.1:0",
        "IMAGE_PROXY_CACHE__PATH": str(tmp_path),
    }
    async with run(["-c", WITHOUT_EXTRAS.format(arguments=command)], environment) as process:
        assert await process.exit_code() == 2
    (line,) = process.lines
    assert line.startswith("config: trace.endpoint: needs no_such_module; install ")
