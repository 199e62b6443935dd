"""The configuration: a mistake stops the start, and says which key, which value, and what is right.

The table over all keys is compared with the models, so that a new key cannot come in untested.
"""

from __future__ import annotations

import re
import tomllib
from pathlib import Path
from typing import Any

import pytest
from pydantic import BaseModel, SecretStr

from proxy.config import (
    CLOUDFLARE_VARIABLES,
    CONFIG_VARIABLE,
    SEED_VARIABLES,
    Config,
    ConfigError,
    Layer,
    load_config,
)
from proxy.model.presets import DEFAULT_PRESETS, Preset

ROOT = Path(__file__).parent.parent

SPECIFIED: dict[str, dict[str, object]] = {
    "server": {
        "enabled": True,
        "bind": ("127.0.0.1:8080",),
        "drain_delay": 0,
        "workers": 1,
        "root_path": "",
        "base_url": "",
        "cdn_url": "",
        "admin_token": SecretStr(""),
        "shutdown_timeout": 10,
        "admin_tokens": {},
    },
    "identity": {
        "plc_url": "https://plc.directory",
        "ttl": 3600,
        "stale_ttl": 86400,
        "negative_ttl": 60,
        "nameservers": (),
    },
    "fetch": {
        "client": "httpx2",
        "timeout": 30,
        "max_source_mb": 10,
        "queue_size": 256,
        "workers": 32,
        "per_host": 8,
        "max_redirects": 3,
        "allow_http": False,
        "allow_private_hosts": False,
        "proxy": SecretStr(""),
        "proxy_resolves": False,
    },
    "process": {
        "threads": 0,
        "max_megapixels": 50,
        "queue_wait": 5,
        "isolation": "sandbox",
        "webp_effort": 4,
    },
    "animation": {"max_frames": 500, "max_megapixels": 200, "max_seconds": 4},
    "blob": {"allowed_types": ("image/*",)},
    "video": {"preset": "content_preview", "max_source_mb": 300, "timeout": 120},
    "actors": {
        "collections": ("app.bsky.actor.profile",),
        "avatar_preset": "avatar",
        "banner_preset": "banner",
        "ttl": 300,
        "fallback": "none",
        "fallback_blocked": False,
    },
    "negotiate": {"formats": ()},
    "cache": {
        "path": Path("./cache"),
        "max_gb": 10,
        "ttl_days": 30,
        "revalidate_days": 7,
        "unconfirmed_days": 30,
        "cleanup_interval_minutes": 60,
        "memory_mb": 64,
        "write_queue": 256,
        "fsync": True,
    },
    "store": {
        "url": "",
        "endpoint": "",
        "region": "",
        "access_key_id": "",
        "secret_access_key": SecretStr(""),
        "allow_http": False,
        "timeout": 1,
        "sources": False,
    },
    "cache_control": {"browser": 86400, "shared": 31536000},
    "policy": {
        "url": "",
        "protocol": "status",
        "timeout": 2,
        "ttl": 300,
        "max_entries": 100_000,
        "fail_open": False,
    },
    "cdn": {
        "kind": "",
        "purge": "tags",
        "zone": "",
        "token": SecretStr(""),
        "key_id": "",
        "origins": (),
    },
    "labels": {"subscribe": (), "values": ("!takedown",), "scope": "owner"},
    "accounts": {"url": "", "kind": "jetstream"},
    "cluster": {"database": SecretStr(""), "lease": 3},
    "log": {"format": "auto", "level": "info"},
    "trace": {"endpoint": "", "sample": 1, "propagate": False},
}
"""The defaults that dashboards, documents and the seed's users know."""

KEYS = [f"{section}.{key}" for section, keys in SPECIFIED.items() for key in keys]


def load(
    toml: str = "",
    environment: dict[str, str] | None = None,
    overrides: Layer | None = None,
    *,
    folder: Path | None = None,
) -> Config:
    """The configuration of a file with ``toml`` in ``folder``, and nothing of this process."""
    file = None
    if folder is not None:
        file = folder / "imageproxy.toml"
        file.write_text(toml, encoding="utf-8")
    return load_config(file, environment=environment or {}, overrides=overrides)


def default(cache: Path | None = None) -> Config:
    """What a load yields where nothing was set.

    Args:
        cache: what its relative path means; None: one from the folder of this process.
    """
    section = Config().cache.model_copy(update={"path": cache or Path("cache").absolute()})
    return Config().model_copy(update={"cache": section})


def mistakes(
    toml: str = "", environment: dict[str, str] | None = None, *, folder: Path | None = None
) -> list[str]:
    """The mistakes of a configuration that has some."""
    with pytest.raises(ConfigError) as caught:
        load(toml, environment, folder=folder)
    return caught.value.mistakes


def value_of(config: Config, key: str) -> object:
    value: object = config
    for part in key.split("."):
        value = value[part] if isinstance(value, dict) else getattr(value, part)
    return value


def variable(key: str) -> str:
    return "IMAGE_PROXY_" + "__".join(key.split(".")).upper()


@pytest.mark.parametrize("key", KEYS)
def test_each_default_is_the_specified_one(key: str) -> None:
    """Catches a default that drifted: nobody who relies on it would be told."""
    section, _dot, name = key.partition(".")
    assert value_of(Config(), key) == SPECIFIED[section][name]
    assert value_of(load(), key) == value_of(default(), key)


def test_no_key_is_without_a_specified_default() -> None:
    """Catches a new key that this file does not know."""
    sections = {name: value for name, value in Config() if isinstance(value, BaseModel)}
    assert {name: set(type(value).model_fields) for name, value in sections.items()} == {
        name: set(keys) for name, keys in SPECIFIED.items()
    }
    assert set(Config.model_fields) == {*SPECIFIED, "presets"}


def test_the_file_at_the_root_is_the_default_configuration() -> None:
    """Catches a config.toml whose values or comments lag behind the code."""
    assert load_config(ROOT / "config.toml", environment={}) == default(ROOT / "cache")
    assert load() == default()
    file = tomllib.loads((ROOT / "config.toml").read_text(encoding="utf-8"))
    defaults = Config().model_dump(mode="json")
    assert {name: set(keys) for name, keys in file.items()} == {
        name: set(keys) for name, keys in defaults.items()
    }
    for name, preset in file["presets"].items():
        # A preset that says an effort would not follow the one in [process].
        assert set(preset) == set(Preset.model_fields) - {"webp_effort"}, name


def test_the_file_at_the_root_says_something_of_every_key() -> None:
    """Catches a key without its comment: the file is the manual."""
    lines = (ROOT / "config.toml").read_text(encoding="utf-8").partition("[presets.")[0]
    keys = re.findall(r"^(\w+) = ", lines, re.MULTILINE)
    commented = re.findall(r"^(\w+) = .*# \S", lines, re.MULTILINE)
    plain_by_name = {"path"}
    assert set(keys) - set(commented) <= plain_by_name
    assert keys == [key.partition(".")[2] for key in KEYS]


# A key, values that are wrong, and what the message has to say is right.
INVALID: dict[str, tuple[list[object], str]] = {
    "server.enabled": (["perhaps", 2, ""], "boolean"),
    "server.bind": (
        ["8080", ":8080", "localhost", "localhost:", "localhost:http", "localhost:65536",
         "localhost:-1", "localhost:\u0668\u0660", "", 8080, "http://localhost:80", "::1:80",
         "[::1:80", "[127.0.0.1]:80", "[::g]:80", "unix:run/a", "unix:/", "unix:/a b", [],
         "a:1,", "a:1,a:1", "[::1]:1,[0:0::1]:1", "127.1:1", "256.1.1.1:80",
         "1.2.3.4.5:80", "0.0.0.0:1,127.0.0.1:1", "localhost:1,0.0.0.0:1", "[::]:1,[::1]:1",
         "unix:/" + "a" * 107],
        "HOST:PORT|tuple|absolute|blanks|at least 1|twice|at most 107|is .* too",
    ),
    "server.drain_delay": ([-1, "soon", True, 3601], "greater than|less than|number"),
    "server.workers": ([0, -1, 1.5, "two", "", True], "greater than or equal to 1|integer|number"),
    "server.root_path": (
        ["pics", "https://a/pics", "/a b", "/a//b", "/a/../b", "/.", "/%70ics", "/a?b", "/a;",
         "//a", 1, "/metrics", "/admin/", "/healthz/a"],
        "must be a path|string|route of operations",
    ),
    "server.base_url": (
        ["cdn.example", "ftp://cdn.example", "https://", "//cdn.example", "https://a/?b=c",
         "https://a/#b", "https://a:port", "https://a:99999", "https://[::1", 1, "https://a\n",
         " https://a", "https://a b", "https://a/\">", "https://me@a"],
        "http:// or https://|[Pp]ort|IPv6|string|line break|no user",
    ),
    "server.cdn_url": (
        ["cdn.example", "javascript:alert(1)", "https://me@a"], "http:// or https://|no user"
    ),
    "server.admin_token": (
        [5, True, " ", "\t", "s3cret ", " s3cret", "s3\ncret", "s\u00e4cret", "s3cret-fifteen-"],
        "string|visible|at least 16",
    ),
    "server.admin_tokens": (["s3cret", 5, ["s3cret"]], "dictionary"),
    "server.shutdown_timeout": (
        [-1, "soon", float("inf"), float("nan"), True],
        "greater than or equal to 0|number",
    ),
    "identity.plc_url": (["", "plc.directory", "file:///etc/passwd"], "empty|http:// or https://"),
    "identity.ttl": ([-1, "1h"], "greater than or equal to 0|number"),
    "identity.stale_ttl": ([-1, "1h"], "greater than or equal to 0|number"),
    "identity.negative_ttl": ([-0.1, "1h"], "greater than or equal to 0|number"),
    "identity.nameservers": (
        [["dns.example"], ["192.0.2.1:"], ["192.0.2.1:0"], ["192.0.2.1:65536"], ["192.0.2.1:dns"],
         ["2001:db8::1:"], ["[2001:db8::1]53"], ["192.0.2"], [""], [53], 53],
        "address|ADDRESS|port|string|tuple",
    ),
    "fetch.client": (["httpx", "HTTPX2", "", 2], "'httpx2' or 'asks'"),
    "fetch.timeout": ([0, -1, float("inf"), float("nan"), "30s", True], "greater than 0|number"),
    "fetch.max_source_mb": ([0, -5, 1025, "10MB", True], "greater than 0|equal to 1024|number"),
    "fetch.queue_size": ([0, -1, 1.5], "greater than or equal to 1|integer"),
    "fetch.workers": ([0, -1], "greater than or equal to 1"),
    "fetch.per_host": ([0, -1], "greater than or equal to 1"),
    "fetch.max_redirects": ([-1, 21, "none", False], "to 0|to 20|integer|number"),
    "fetch.allow_http": (["perhaps", 2], "boolean"),
    "fetch.allow_private_hosts": (
        [2, [True], "", "-x", ["https://pds"], ["pds:3000"], ["*.home.arpa"], ["10.0.0.1/8"],
         ["0.0.0.0/0"], ["127.1"], ["pds."]],
        "boolean|NAME, ADDRESS or NETWORK|every address",
    ),
    "fetch.proxy": (
        ["proxy:3128", "socks5://proxy", "http://", "http://proxy:x", "http://proxy/a", "http://proxy/?a",
         "http://proxy\r\nX: y", "http://a b@proxy", 5],
        "http://HOST:PORT|string",
    ),
    "fetch.proxy_resolves": (["perhaps", 2], "boolean"),
    "process.threads": ([-1, "all", True], "greater than or equal to 0|integer|number"),
    "process.max_megapixels": ([0, -1, float("nan")], "greater than 0|finite"),
    "process.queue_wait": ([-1, float("inf")], "greater than or equal to 0|finite"),
    "process.isolation": (["none", "Sandbox", True], "'sandbox' or 'thread'"),
    "process.webp_effort": ([-1, 7, 2.5, True], "to 0|to 6|integer|number"),
    "animation.max_frames": ([0, -1, 1.5, 10_001, True], "equal to|integer|number"),
    "animation.max_megapixels": ([0, -1, float("inf"), True], "greater than 0|finite|number"),
    "animation.max_seconds": ([0, 61, float("nan")], "greater than 0|less than or equal|finite"),
    "blob.allowed_types": (
        ["image", "image/*;q=1", "*/*", "", "Image/png", "image/png,", ["image"], [5], 5],
        "pattern|string|tuple",
    ),
    "cache.path": (["", 5, "~/cache", "~", "a\0b"], "empty|path|shell|zero"),
    "cache.max_gb": ([0, -5, float("inf"), "10GB", True], "greater than 0|finite|number"),
    "cache.ttl_days": ([-1, float("nan"), "30d"], "greater than or equal to 0|finite|number"),
    "cache.unconfirmed_days": ([-1, "7d"], "greater than or equal to 0|number"),
    "cache.revalidate_days": ([-1, float("inf"), "7d"], "greater than or equal to 0|finite|number"),
    "cache.cleanup_interval_minutes": ([-1, "1h"], "greater than or equal to 0|number"),
    "cache.memory_mb": ([-1, float("inf")], "greater than or equal to 0|finite"),
    "cache.write_queue": ([0, -1, 1.5], "greater than or equal to 1|integer"),
    "cache.fsync": (["often", 2], "boolean"),
    "video.preset": (["nosuch", "", 5], "no such preset|string"),
    "video.max_source_mb": ([0, -1, "inf", 1025, True], "greater than 0|less than|number"),
    "video.timeout": ([0, 601, "inf", "2m", True], "greater than|less than|number"),
    "actors.collections": (
        [["profile"], ["app.bsky"], ["app.bsky.actor.profile?"], [""], [5], 5, []],
        "pattern|string|tuple|at least 1",
    ),
    "actors.avatar_preset": (["nosuch", "", 5], "no such preset|string"),
    "actors.banner_preset": (["nosuch", "", 5], "no such preset|string"),
    "actors.ttl": ([-1, "5m"], "greater than or equal to 0|number"),
    "actors.fallback": (["letters", "", 5], "none"),
    "actors.fallback_blocked": (["often", 2], "boolean"),
    "cache_control.browser": ([-1, 1.5, "1d", True], "equal to|integer|number"),
    "cache_control.shared": ([-1, 1.5, "1y", 2**32], "equal to|integer"),
    "policy.url": (["policy.example", "ftp://policy.example"], "http:// or https://"),
    "policy.protocol": (["Porxie", "xrpc", 1], "'status' or 'porxie'"),
    "policy.timeout": ([0, -1, float("inf"), True], "greater than 0|finite|number"),
    "policy.ttl": ([-1, "5m"], "greater than or equal to 0|number"),
    "policy.max_entries": ([0, 1.5], "greater than or equal to 1|integer"),
    "policy.fail_open": (["perhaps", 2], "boolean"),
    "cdn.kind": (["Cloudflare", "fastly", 1], "'', 'cloudflare', 'bunny' or 'cloudfront'"),
    "cdn.purge": (["tag", "", 1], "'tags' or 'urls'"),
    "cdn.zone": (["0123x", "Z" * 32, "0" * 33, "../../zones/other", 5], "pattern|string"),
    "cdn.token": (
        ["with space", "line\nbreak", "umlaut\u00e4", "t", 5], "visible ASCII|at least 6|string",
    ),
    "cdn.key_id": (["AKID", "akidexample00000", "AKID EXAMPLE 000000", 5], "pattern|string"),
    "cdn.origins": (
        [["app.example"], ["https://app.example/"], ["HTTPS://app.example"], ["*"], [5], 5],
        "origin|string|tuple",
    ),
    "negotiate.formats": (
        [["jpeg"], ["gif"], ["AVIF"], [""], [5], 5], "'avif' or 'webp'|tuple",
    ),
    "labels.subscribe": (
        [["did:plc:short"], ["mod.example"], ["DID:PLC:AR7C4BY46QJDYDHDEVVRNDAC"], [5], 5],
        "DID|string|tuple",
    ),
    "labels.values": ([[""], ["two words"], ["x" * 129], ["caf\u00e9"], [5], 5],
                      "pattern|at least 1|at most 128|string|tuple"),
    "labels.scope": (["owners", "", True], "'owner' or 'everywhere'"),
    "accounts.url": (
        ["jetstream.example", "https://jetstream.example", "wss://", "wss://a/subscribe",
         "wss://a?cursor=1", "wss://user@a", "ws:a", "wss://a:99999", 5],
        "wss://HOST|string",
    ),
    "accounts.kind": (["firehose", "", 1], "'jetstream' or 'relay'"),
    "cluster.database": (["mysql://a/b", "db.example", 5], "postgresql://|string"),
    "cluster.lease": ([0, 0.5, 61, True, "long"], "equal to|number"),
    "log.format": (["JSON", "text", "", 1], "'auto', 'json' or 'console'"),
    "log.level": (["INFO", "warn", "", 1], "'debug', 'info', 'warning' or 'error'"),
    "store.url": (
        ["bucket", "s3://", "http://bucket", "file://host/folder", "file:///", "az:///path",
         "s3://key@bucket", "s3://bucket?region=x", "gs://bucket#x",
         "s3://bucket/a//b", "gs://bucket/a/../b", "az://bucket/%2E%2e", "s3://bucket/./a",
         "s3://bucket/a%00b", "file:///a%00b", 5],
        "s3://BUCKET|no query|no empty part|string",
    ),
    "store.endpoint": (
        ["store:8333", "ftp://a", "https://user@a", 5], "URL|no user|string"
    ),
    "store.region": (["EU WEST", "\u00e9", 5], "pattern|string"),
    "store.access_key_id": (["with space", 5], "pattern|string"),
    "store.secret_access_key": (
        ["with space", "line\nbreak", "t", 5], "visible ASCII|at least 6|string",
    ),
    "store.allow_http": (["perhaps", 2], "boolean"),
    "store.timeout": ([0, -1, 4.1, "soon", True, float("inf")], "than|number|finite"),
    "store.sources": (["perhaps", 2], "boolean"),
    "trace.endpoint": (["collector:4318", "ftp://a", 5], "URL|string"),
    "trace.sample": ([-0.1, 1.1, "all", True], "equal to|number"),
    "trace.propagate": (["perhaps", 2], "boolean"),
    "presets.avatar.width": ([0, -1, 8193, "wide", 1.5, True], "equal to|integer|number"),
    "presets.avatar.height": ([-1, 8193, True], "equal to|number"),
    "presets.avatar.fit": (["fill", "Cover", ""], "'cover' or 'contain'"),
    "presets.avatar.quality": ([0, 101, True], "equal to|number"),
    "presets.avatar.animated": (["perhaps", 2], "boolean"),
    "presets.avatar.webp_effort": ([-1, 7, True], "equal to|number"),
    "presets.avatar.png": (["jpeg", "", True], "'keep' or 'photographs-to-jpeg'"),
    "presets.avatar.variants": (
        [[0], [8193], ["wide"], [True], [1.5], "wide", "72,", 5],
        "equal to|integer|number|tuple",
    ),
}  # fmt: skip
LISTS = (
    "server.bind",
    "blob.allowed_types",
    "cdn.origins",
    "labels.subscribe",
    "labels.values",
    "identity.nameservers",
    "negotiate.formats",
    "actors.collections",
    "presets.avatar.variants",
)
CASES = [(key, value, right) for key, (values, right) in INVALID.items() for value in values]


def test_every_key_has_a_value_that_is_known_to_be_wrong() -> None:
    """Catches a key that takes whatever it is given."""
    assert set(INVALID) == {*KEYS, *(f"presets.avatar.{key}" for key in Preset.model_fields)}


def nested(key: str, value: object) -> Layer:
    """A layer with one value."""
    *tables, name = key.split(".")
    layer: Layer = {name: value}
    for table in reversed(tables):
        layer = {table: layer}
    return layer


@pytest.mark.parametrize(
    "tokens",
    [
        {"Alice": "x" * 16},
        {"a b": "x" * 16},
        {"": "x" * 16},
        {"alice": ""},
        {"alice": " "},
        {"alice": "x" * 15},
    ],
)
def test_a_name_that_a_log_line_cannot_hold_or_an_empty_token_is_refused(
    tokens: dict[str, str],
) -> None:
    """Catches a token that every request without one has."""
    with pytest.raises(ConfigError) as caught:
        load(overrides={"server": {"admin_tokens": tokens}})
    (message,) = caught.value.mistakes
    assert message.startswith("server.admin_tokens")


@pytest.mark.parametrize(("key", "value", "right"), CASES, ids=lambda part: ascii(part)[:40])
def test_a_bad_value_stops_the_start_and_is_named(key: str, value: object, right: str) -> None:
    """Catches the seed's way, a warning and the default; and a message one has to guess from."""
    with pytest.raises(ConfigError) as caught:
        load_config(environment={}, overrides=nested(key, value))
    (message,) = caught.value.mistakes
    assert message.startswith(key)
    secrets = ("token", "secret", "database")
    is_secret = key == "fetch.proxy" or any(word in key for word in secrets)
    is_whole = key == "fetch.allow_private_hosts"  # one value: a boolean, or a list
    first = value[0] if isinstance(value, list) and value and not is_whole else value
    shown = "***" if is_secret else repr(first)
    if key not in LISTS or isinstance(value, list):
        assert f" = {shown}: " in message
    assert re.search(right, message.partition(": ")[2])
    assert "command line" in message
    assert "\n" not in message


@pytest.mark.parametrize(
    ("key", "url"),
    [
        ("fetch.proxy", "http://user:hunter/2@host:80"),
        ("fetch.proxy", "http://user:hunter\u2100@host"),
        ("fetch.proxy", "http://[hunter]@host"),
        ("cluster.database", "postgresql://user:hunter\u2100@host"),
        ("cluster.database", "postgresql://[hunter]@host"),
        ("cluster.database", "postgresql://user:a@hunter@host/db"),
        ("cluster.database", "postgresql://user:a/hunter@host/db"),
        ("cluster.database", "postgresql://user:a?/hunter@host/db"),
        ("cluster.database", "postgresql://user:100%hunter@host/db"),
        ("cluster.database", "postgresql://user:a%00hunter@host/db"),
        ("cluster.database", "postgresql://user:a hunter@host/db"),
        ("cluster.database", "postgresql://host/db?password=%hunter"),
        ("cluster.database", "POSTGRESQL://user:hunter@host/db"),
        ("store.url", "s3://key:hunter@bucket"),
        ("store.endpoint", "https://key:hunter@host"),
        ("identity.plc_url", "ftp://key:hunter@host"),
    ],
    ids=ascii,
)
def test_a_password_that_breaks_its_url_is_not_in_the_message(key: str, url: str) -> None:
    """Catches the errors of ``urlsplit``, which quote what they do not understand, and a URL left
    to libpq, which does so too, or takes a part of the password for the host."""
    with pytest.raises(ConfigError) as caught:
        load_config(environment={}, overrides=nested(key, url))
    assert "hunter" not in str(caught.value)
    (message,) = caught.value.mistakes
    assert "hunter" not in message


STRINGS = [case for case in CASES if isinstance(case[1], str) and "\u0668" not in case[1]]


@pytest.mark.parametrize(("key", "value", "right"), STRINGS, ids=lambda part: ascii(part)[:40])
def test_a_bad_value_of_the_environment_is_named_too(key: str, value: str, right: str) -> None:
    """Catches an environment that is trusted more than the file."""
    (message,) = mistakes(environment={variable(key): value})
    assert message.startswith(key)
    assert re.search(right, message.partition(": ")[2])
    assert "environment" in message


# A key, texts of the environment, and what they mean.
VALID: list[tuple[str, str, object]] = [
    ("server.enabled", "false", False),
    ("server.enabled", "0", False),
    ("server.bind", "0.0.0.0:0", ("0.0.0.0:0",)),
    ("server.bind", "127.0.0.1:80, [::1]:65535", ("127.0.0.1:80", "[::1]:65535")),
    ("server.bind", "localhost:80,unix:/run/a", ("localhost:80", "unix:/run/a")),
    ("server.bind", "0.0.0.0:80,[::]:80", ("0.0.0.0:80", "[::]:80")),
    ("server.bind", "[::0]:80,127.0.0.1:80,[::1]:81", ("[::]:80", "127.0.0.1:80", "[::1]:81")),
    ("server.bind", "0.0.0.0:0,127.0.0.1:0", ("0.0.0.0:0", "127.0.0.1:0")),
    ("server.drain_delay", "7.5", 7.5),
    ("server.workers", "4", 4),
    ("server.root_path", "", ""),
    ("server.root_path", "/", ""),
    ("server.root_path", "/pics/", "/pics"),
    ("server.root_path", "/img", "/img"),
    ("server.root_path", "/a-1/b.c/~d_", "/a-1/b.c/~d_"),
    ("server.base_url", "", ""),
    ("server.base_url", "https://img.example/", "https://img.example"),
    ("server.base_url", "http://localhost:8080/below/", "http://localhost:8080/below"),
    ("server.cdn_url", "https://cdn.example", "https://cdn.example"),
    ("server.admin_token", "s3cret-of-sixteen", SecretStr("s3cret-of-sixteen")),
    ("server.admin_tokens.alice", "s3cret-of-sixteen", SecretStr("s3cret-of-sixteen")),
    ("server.shutdown_timeout", "0", 0),
    ("identity.plc_url", "http://127.0.0.1:2582", "http://127.0.0.1:2582"),
    ("identity.ttl", "0", 0),
    ("identity.stale_ttl", "0", 0),
    ("identity.negative_ttl", "0.5", 0.5),
    ("identity.nameservers", "", ()),
    (
        "identity.nameservers",
        "192.0.2.1, 192.0.2.1:5353, 2001:db8::1, [2001:db8::1]:5353",
        ("192.0.2.1", "192.0.2.1:5353", "2001:db8::1", "[2001:db8::1]:5353"),
    ),
    ("fetch.client", "asks", "asks"),
    ("fetch.timeout", "0.25", 0.25),
    ("fetch.max_source_mb", "0.5", 0.5),
    ("fetch.max_source_mb", "1024", 1024),
    ("fetch.queue_size", "1", 1),
    ("fetch.workers", "1", 1),
    ("fetch.per_host", "1", 1),
    ("fetch.max_redirects", "0", 0),
    ("fetch.max_redirects", "20", 20),
    ("fetch.allow_http", "true", True),
    ("fetch.allow_private_hosts", "1", True),
    ("fetch.allow_private_hosts", "off", False),
    (
        "fetch.allow_private_hosts",
        "PDS.home.arpa, 10.1.0.0/16,[FD00:0::5], fd00::/64, pds",
        ("pds.home.arpa", "10.1.0.0/16", "fd00::5", "fd00::/64", "pds"),
    ),
    ("fetch.proxy", "https://u:p%40@proxy:3128", SecretStr("https://u:p%40@proxy:3128")),
    ("fetch.proxy_resolves", "off", False),
    ("process.threads", "0", 0),
    ("process.max_megapixels", "0.5", 0.5),
    ("process.queue_wait", "0", 0),
    ("process.isolation", "thread", "thread"),
    ("process.webp_effort", "0", 0),
    ("process.webp_effort", "6", 6),
    ("animation.max_frames", "20", 20),
    ("animation.max_megapixels", "0.5", 0.5),
    ("animation.max_seconds", "1.5", 1.5),
    ("blob.allowed_types", "image/*, video/mp4", ("image/*", "video/mp4")),
    ("cache.path", "/srv/images", Path("/srv/images")),
    ("cache.max_gb", "0.001", 0.001),
    ("cache.ttl_days", "0", 0),
    ("cache.revalidate_days", "0.5", 0.5),
    ("cache.unconfirmed_days", "0", 0),
    ("cache.cleanup_interval_minutes", "0", 0),
    ("cache.memory_mb", "0", 0),
    ("cache.write_queue", "1", 1),
    ("cache.fsync", "false", False),
    (
        "actors.collections",
        "app.bsky.actor.profile, social.example.profile",
        ("app.bsky.actor.profile", "social.example.profile"),
    ),
    ("video.preset", "avatar_small", "avatar_small"),
    ("video.max_source_mb", "0.5", 0.5),
    ("video.timeout", "60", 60),
    ("actors.avatar_preset", "avatar_small", "avatar_small"),
    ("actors.banner_preset", "content_full", "content_full"),
    ("actors.ttl", "0", 0),
    ("actors.fallback", "shapes", "shapes"),
    ("actors.fallback_blocked", "true", True),
    ("cache_control.browser", "0", 0),
    ("cache_control.shared", "3600", 3600),
    ("policy.url", "http://127.0.0.1:7000/v1/", "http://127.0.0.1:7000/v1"),
    ("policy.protocol", "porxie", "porxie"),
    ("policy.timeout", "0.5", 0.5),
    ("policy.ttl", "0", 0),
    ("policy.max_entries", "1", 1),
    ("policy.fail_open", "true", True),
    ("cdn.kind", "", ""),
    ("cdn.zone", "0123456789abcdef" * 2, "0123456789abcdef" * 2),
    ("cdn.token", "s3cret-_~!", SecretStr("s3cret-_~!")),
    ("cdn.purge", "urls", "urls"),
    ("cdn.zone", "4711", "4711"),
    ("cdn.zone", "E2EXAMPLE9Z", "E2EXAMPLE9Z"),
    ("cdn.key_id", "AKIDEXAMPLE0000000", "AKIDEXAMPLE0000000"),
    ("cdn.origins", "", ()),
    (
        "cdn.origins",
        "https://app.example, http://localhost:5173",
        ("https://app.example", "http://localhost:5173"),
    ),
    ("negotiate.formats", "", ()),
    ("negotiate.formats", "avif, webp", ("avif", "webp")),
    ("labels.subscribe", "", ()),
    (
        "labels.subscribe",
        "did:plc:ar7c4by46qjdydhdevvrndac, did:web:mod.example",
        ("did:plc:ar7c4by46qjdydhdevvrndac", "did:web:mod.example"),
    ),
    ("labels.values", "!takedown,!suspend", ("!takedown", "!suspend")),
    ("labels.scope", "everywhere", "everywhere"),
    ("accounts.url", "", ""),
    ("accounts.url", "wss://jetstream.example", "wss://jetstream.example"),
    ("accounts.url", "ws://10.0.0.5:6008", "ws://10.0.0.5:6008"),
    ("accounts.kind", "relay", "relay"),
    ("cluster.database", "postgresql://u:p@db/x", SecretStr("postgresql://u:p@db/x")),
    *(
        ("cluster.database", url, SecretStr(url))
        for url in (
            "postgres://u:%40%2F%25:#?!@[::1]:5432,b/x?sslmode=require",
            "postgresql:///x?host=/run/postgresql&options=-csearch_path%3Dy",
        )
    ),
    ("cluster.lease", "5", 5),
    ("log.format", "json", "json"),
    ("log.level", "warning", "warning"),
    ("store.url", "", ""),
    ("store.url", "s3://bucket/a/prefix/", "s3://bucket/a/prefix"),
    ("store.url", "gs://bucket", "gs://bucket"),
    ("store.url", "az://container/prefix", "az://container/prefix"),
    ("store.url", "file:///srv/pictures", "file:///srv/pictures"),
    ("store.endpoint", "http://10.0.0.5:8333/", "http://10.0.0.5:8333"),
    ("store.region", "eu-central-1", "eu-central-1"),
    ("store.access_key_id", "AKIAIOSFODNN7EXAMPLE", "AKIAIOSFODNN7EXAMPLE"),
    ("store.secret_access_key", "s3cret/+=", SecretStr("s3cret/+=")),
    ("store.timeout", "0.5", 0.5),
    ("store.sources", "true", True),
    ("store.allow_http", "true", True),
    ("trace.endpoint", "http://127.0.0.1:4318/v1/traces", "http://127.0.0.1:4318/v1/traces"),
    ("trace.sample", "0.01", 0.01),
    ("trace.propagate", "true", True),
    ("presets.avatar.width", "8192", 8192),
    ("presets.avatar.height", "1", 1),
    ("presets.avatar.fit", "contain", "contain"),
    ("presets.avatar.quality", "1", 1),
    ("presets.avatar.webp_effort", "2", 2),
    ("presets.avatar.png", "photographs-to-jpeg", "photographs-to-jpeg"),
    ("presets.avatar.animated", "true", True),
    ("presets.avatar.variants", "", ()),
    ("presets.avatar.variants", "72, 144", (72, 144)),
]


@pytest.mark.parametrize(("key", "text", "value"), VALID)
def test_every_key_can_be_set_in_the_environment(key: str, text: str, value: object) -> None:
    """Catches bounds off by one, and a key that only the file can reach."""
    config = load(environment={variable(key): text})
    assert value_of(config, key) == value
    sections = {key.partition(".")[0]}
    if key == "process.webp_effort":  # the presets take it
        sections.add("presets")
    others = {name: part for name, part in config if name not in sections}
    assert others == {name: part for name, part in default() if name not in sections}


def test_presets_take_the_effort_of_the_section_unless_they_say_their_own(tmp_path: Path) -> None:
    """Catches an effort that variants, or the presets that nobody wrote down, do not get."""
    toml = """
        [process]
        webp_effort = 2
        [presets.avatar]
        webp_effort = 6
        variants = [72]
        [presets.banner]
        variants = [320]
    """
    presets = load(toml, folder=tmp_path).presets
    own = {name: preset.webp_effort for name, preset in presets.items() if preset.webp_effort != 2}
    assert own == {"avatar": 6, "avatar_w72": 6}
    assert presets["banner_w320"].webp_effort == 2
    assert Config.model_validate({"process": {"webp_effort": 0}}).presets["avatar"].webp_effort == 0


def test_what_is_shown_of_efforts_is_the_same_configuration_when_it_is_read_again(
    tmp_path: Path,
) -> None:
    """Catches a preset's effort that is lost, or another's that is taken for its own."""
    config = load(
        "[process]\nwebp_effort = 2\n[presets.avatar]\nwebp_effort = 4\n", folder=tmp_path
    )
    assert Config.model_validate(config.model_dump()) == config


def test_every_key_was_set_in_the_environment() -> None:
    """Catches a new key that the test above does not know."""
    assert {key.removesuffix(".alice") for key, _text, _value in VALID} == set(INVALID)


def test_all_mistakes_are_told_at_once(tmp_path: Path) -> None:
    """Catches a start that fails once for each mistake."""
    toml = """
        [server]
        workers = 0
        colour = "red"
        [fetch]
        client = "curl"
        [nosuch]
        key = 1
        [presets.avatar]
        quality = 200
    """
    found = mistakes(
        toml, {"IMAGE_PROXY_CACHE__MAX_GB": "x", "IMAGE_PROXY_X": "1"}, folder=tmp_path
    )
    assert sorted(message.split(" ")[0].rstrip(":") for message in found) == [
        "IMAGE_PROXY_X",
        "cache.max_gb",
        "fetch.client",
        "nosuch",
        "presets.avatar.quality",
        "server.colour",
        "server.workers",
    ]
    with pytest.raises(ConfigError) as caught:
        load(toml, folder=tmp_path)
    assert str(caught.value).splitlines() == caught.value.mistakes


@pytest.mark.parametrize(
    ("toml", "environment", "key", "known"),
    [
        ("[fetch]\ntimeuot = 5", {}, "fetch.timeuot", "timeout"),
        ("", {"IMAGE_PROXY_FETCH__TIMEUOT": "5"}, "fetch.timeuot", "timeout"),
        ("[cahce]\nmax_gb = 5", {}, "cahce", "cache"),
        ("", {"IMAGE_PROXY_CAHCE__MAX_GB": "5"}, "cahce", "cache"),
        ("timeout = 5", {}, "timeout", "fetch"),
        ("[presets.avatar]\nsize = 5", {}, "presets.avatar.size", "width"),
        ("", {"IMAGE_PROXY_PRESETS__AVATAR__SIZE": "5"}, "presets.avatar.size", "width"),
        ("", {"IMAGE_PROXY_SERVER__ADMIN__TOKEN": "s3cret"}, "server.admin", "admin_token"),
    ],
)
def test_an_unknown_key_stops_the_start_and_names_the_known_ones(
    toml: str, environment: dict[str, str], key: str, known: str, tmp_path: Path
) -> None:
    """Catches a typing error that leaves a limit at its default."""
    (message,) = mistakes(toml, environment, folder=tmp_path)
    assert message.startswith(f"{key}: unknown key")
    assert ("environment" if environment else "imageproxy.toml") in message
    assert known in message.partition("known: ")[2].split(", ")
    assert "s3cret" not in message


@pytest.mark.parametrize(
    "name",
    ["IMAGE_PROXY_", "IMAGE_PROXY_TIMEOUT", "IMAGE_PROXY___TIMEOUT", "IMAGE_PROXY_FETCH__",
     "IMAGE_PROXY_FETCH____TIMEOUT", "IMAGE_PROXY_CACHE_MAX_TB"],
)  # fmt: skip
def test_a_variable_that_names_no_key_stops_the_start(name: str) -> None:
    """Catches a misspelled variable that is passed over."""
    (message,) = mistakes(environment={name: "s3cret"})
    assert message.startswith(f"{name}: unknown")
    assert "IMAGE_PROXY_SECTION__KEY" in message
    assert "s3cret" not in message


def test_variables_of_other_programs_are_ignored() -> None:
    """Catches a prefix that is compared too loosely."""
    environment = {"PATH": "/bin", "IMAGE_PROXYFETCH__TIMEOUT": "x", "XIMAGE_PROXY_A__B": "x"}
    assert load(environment=environment) == default()


def test_a_folder_that_a_shell_would_expand_is_refused_in_a_file_too(tmp_path: Path) -> None:
    """Catches a folder named ~ beside the file, full of pictures."""
    (message,) = mistakes('[cache]\npath = "~/cache"', folder=tmp_path)
    assert message.startswith("cache.path = '~/cache': ")


def test_a_table_and_a_value_of_one_name_are_a_mistake() -> None:
    """Catches one of two contradicting variables winning by its place in the alphabet."""
    environment = {"IMAGE_PROXY_PRESETS__AVATAR": "x", "IMAGE_PROXY_PRESETS__AVATAR__WIDTH": "5"}
    assert any("PRESETS__AVATAR__WIDTH" in message for message in mistakes("", environment))


LAYERED = "fetch.timeout"


@pytest.mark.parametrize(
    ("layers", "value"),
    [
        ("", 30),
        ("file", 1),
        ("environment", 2),
        ("line", 3),
        ("file environment", 2),
        ("file line", 3),
        ("environment line", 3),
        ("file environment line", 3),
    ],
)
def test_the_command_line_wins_over_environment_over_file_over_defaults(
    layers: str, value: float, tmp_path: Path
) -> None:
    """Catches any two layers in the wrong order."""
    toml = "[fetch]\ntimeout = 1\nworkers = 7" if "file" in layers else ""
    environment = {variable(LAYERED): "2"} if "environment" in layers else {}
    overrides = {"fetch": {"timeout": 3}} if "line" in layers else None
    config = load(toml, environment, overrides, folder=tmp_path)
    assert config.fetch.timeout == value
    assert config.fetch.workers == (7 if "file" in layers else 32), "a layer replaced a table"


def test_a_mistake_names_the_layer_that_it_came_from(tmp_path: Path) -> None:
    """Catches a search in the file for what a forgotten variable says."""
    (message,) = mistakes("[fetch]\ntimeout = 0", folder=tmp_path)
    assert f"(from {tmp_path / 'imageproxy.toml'})" in message
    (message,) = mistakes("[fetch]\ntimeout = 0", {variable(LAYERED): "-1"}, folder=tmp_path)
    assert "(from environment)" in message
    assert "'-1'" in message


@pytest.mark.parametrize(
    ("name", "text", "key", "value"),
    [
        ("IMAGE_PROXY_ENABLED", "true", "server.enabled", True),
        ("IMAGE_PROXY_BASE_URL", "https://img.example", "server.base_url", "https://img.example"),
        ("IMAGE_PROXY_CDN_URL", "https://cdn.example", "server.cdn_url", "https://cdn.example"),
        ("IMAGE_PROXY_CACHE_PATH", "/var/cache/coves/images", "cache.path",
         Path("/var/cache/coves/images")),
        ("IMAGE_PROXY_CACHE_MAX_GB", "20", "cache.max_gb", 20),
        ("IMAGE_PROXY_CACHE_TTL_DAYS", "0", "cache.ttl_days", 0),
        ("IMAGE_PROXY_CACHE_TTL_DAYS", "7", "cache.ttl_days", 7),
        ("IMAGE_PROXY_CLEANUP_INTERVAL_MINUTES", "0", "cache.cleanup_interval_minutes", 0),
        ("IMAGE_PROXY_CLEANUP_INTERVAL_MINUTES", "5", "cache.cleanup_interval_minutes", 5),
        ("IMAGE_PROXY_FETCH_TIMEOUT_SECONDS", "15", "fetch.timeout", 15),
        ("IMAGE_PROXY_MAX_SOURCE_SIZE_MB", "25", "fetch.max_source_mb", 25),
        ("IMAGE_PROXY_MAX_SOURCE_MEGAPIXELS", "30", "process.max_megapixels", 30),
        ("IMAGE_PROXY_MAX_CONCURRENT_PROCESSES", "4", "process.threads", 4),
        ("IMAGE_PROXY_MAX_IN_FLIGHT_REQUESTS", "64", "fetch.queue_size", 64),
    ],
)  # fmt: skip
def test_the_seeds_names_work_unchanged(
    name: str, text: str, key: str, value: object, tmp_path: Path
) -> None:
    """Catches a Coves environment file that has to be rewritten."""
    assert value_of(load(environment={name: text}), key) == value
    *_tables, last = key.split(".")
    toml = f"[{key.split('.')[0]}]\n{last} = 1" if isinstance(value, int) and value > 1 else ""
    assert value_of(load(toml, {name: text}, folder=tmp_path), key) == value, "the file wins"


def test_the_seed_has_fourteen_names() -> None:
    """Catches a name that was forgotten, or one that leads to no key."""
    assert len(SEED_VARIABLES) == 14
    assert {".".join(path) for path in SEED_VARIABLES.values()} <= set(KEYS)


PURGES_OF_COVES = {
    "IMAGE_PROXY_BASE_URL": "https://img.example",
    "CLOUDFLARE_CACHE_PURGE_ZONE_ID": "0123456789abcdef0123456789abcdef",
    "CLOUDFLARE_CACHE_PURGE_API_TOKEN": "a-token-of-cloudflare",
}


def test_the_purges_of_the_seed_go_to_cloudflare() -> None:
    """Catches an environment file of Coves with which nothing is purged, and nobody is told."""
    cdn = load(environment=PURGES_OF_COVES).cdn
    assert (cdn.kind, cdn.zone) == ("cloudflare", "0123456789abcdef0123456789abcdef")
    assert cdn.token.get_secret_value() == "a-token-of-cloudflare"
    other = load(environment=PURGES_OF_COVES | {"IMAGE_PROXY_CDN__KIND": ""})
    assert other.cdn.kind == "", "our own name wins"


def test_a_purge_by_tag_needs_no_url() -> None:
    """Catches an environment file of Coves, whose URLs are paths alone, that stops the start."""
    alone = {name: PURGES_OF_COVES[name] for name in CLOUDFLARE_VARIABLES}
    assert load(environment=alone).cdn.purge == "tags"
    with pytest.raises(ConfigError, match="to purge by URL"):
        load(environment=alone | {"IMAGE_PROXY_CDN__PURGE": "urls"})


@pytest.mark.parametrize(
    "name",
    ["SERVICE_HOST", "SERVICE_PORT", "SERVICE_PORT_HTTP", "PORT", "PORT_80_TCP",
     "PORT_80_TCP_PROTO", "PORT_80_TCP_PORT", "PORT_80_TCP_ADDR", "CANARY_SERVICE_HOST",
     "CANARY_PORT_8080_UDP_ADDR"],
)  # fmt: skip
def test_what_a_platform_writes_for_a_service_of_this_name_is_not_a_setting(name: str) -> None:
    """Catches a pod that does not start because its service is called image-proxy."""
    assert load(environment={f"IMAGE_PROXY_{name}": "tcp://10.0.0.1:80"}) == load(environment={})


@pytest.mark.parametrize("name", ["SERVER__PORT", "REPORT", "PORTS", "PORT_HTTP", "SERVICE"])
def test_what_only_resembles_it_is_a_mistake(name: str) -> None:
    """Catches a misspelled setting that is silently ignored."""
    with pytest.raises(ConfigError, match=name if "__" not in name else "server.port"):
        load(environment={f"IMAGE_PROXY_{name}": "80"})


@pytest.mark.parametrize("missing", CLOUDFLARE_VARIABLES)
def test_half_of_what_a_purge_needs_is_a_mistake(missing: str) -> None:
    """Catches a purge that is off because one of two variables was forgotten."""
    rest = {name: value for name, value in PURGES_OF_COVES.items() if name != missing}
    with pytest.raises(ConfigError, match="needs cdn"):
        load(environment=rest)


@pytest.mark.parametrize(
    ("text", "enabled"),
    [("true", True), ("1", True), ("TRUE", False), ("True", False), ("yes", False), ("on", False),
     ("false", False), ("0", False), ("nonsense", False), (" true", False), ("", True)],
)  # fmt: skip
def test_the_seeds_switch_knows_two_spellings_of_yes(text: str, enabled: bool) -> None:
    """Catches a proxy that runs where Coves' would not."""
    assert load(environment={"IMAGE_PROXY_ENABLED": text}).server.enabled is enabled


@pytest.mark.parametrize("name", SEED_VARIABLES)
def test_an_empty_variable_of_the_seed_means_its_default(name: str) -> None:
    """Catches ``VARIABLE=`` in an environment file, which the seed takes as not set."""
    assert load(environment={name: ""}) == default()


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("IMAGE_PROXY_CACHE_MAX_GB", "0"),
        ("IMAGE_PROXY_CACHE_MAX_GB", "-5"),
        ("IMAGE_PROXY_CACHE_MAX_GB", "ten"),
        ("IMAGE_PROXY_FETCH_TIMEOUT_SECONDS", "0"),
        ("IMAGE_PROXY_FETCH_TIMEOUT_SECONDS", "-1"),
        ("IMAGE_PROXY_MAX_SOURCE_SIZE_MB", "0"),
        ("IMAGE_PROXY_MAX_SOURCE_SIZE_MB", "-5"),
        ("IMAGE_PROXY_CACHE_TTL_DAYS", "-1"),
        ("IMAGE_PROXY_CLEANUP_INTERVAL_MINUTES", "-1"),
        ("IMAGE_PROXY_BASE_URL", "img.example"),
    ],
)
def test_a_bad_value_under_a_name_of_the_seed_stops_the_start(name: str, text: str) -> None:
    """Catches the seed's warning and default: a limit of nobody's choosing."""
    (message,) = mistakes(environment={name: text})
    assert message.startswith(".".join(SEED_VARIABLES[name]))
    assert repr(text) in message


@pytest.mark.parametrize("name", SEED_VARIABLES.keys() - set(CLOUDFLARE_VARIABLES))
def test_our_name_wins_over_the_seeds(name: str) -> None:
    """Catches an order by alphabet between two names of one key."""
    section, key = SEED_VARIABLES[name]
    ours = {
        "enabled": "false", "base_url": "https://ours.example", "cdn_url": "https://ours.example",
        "path": "/ours",
    }.get(key, "3")  # fmt: skip
    seeds = {
        "enabled": "true", "base_url": "https://seed.example", "cdn_url": "https://seed.example",
        "path": "/seed",
    }.get(key, "4")  # fmt: skip
    both = load(environment={name: seeds, variable(f"{section}.{key}"): ours})
    assert both == load(environment={variable(f"{section}.{key}"): ours})
    assert both != load(environment={name: seeds})


def test_one_key_of_a_preset_can_be_overridden(tmp_path: Path) -> None:
    """Catches a preset whose other keys are lost, or must be repeated."""
    config = load("[presets.avatar]\nquality = 70", folder=tmp_path)
    expected = DEFAULT_PRESETS["avatar"].model_copy(update={"quality": 70})
    assert config.presets["avatar"] == expected
    assert {**config.presets, "avatar": DEFAULT_PRESETS["avatar"]} == DEFAULT_PRESETS
    assert load() == default(), "the defaults themselves were changed"


def test_a_preset_of_ones_own_comes_to_the_others(tmp_path: Path) -> None:
    """Catches own presets in place of the default ones."""
    toml = "[presets.og_image]\nwidth = 1200\nheight = 630\nfit = 'cover'\nquality = 85"
    config = load(toml, folder=tmp_path)
    own = Preset(width=1200, height=630, fit="cover", quality=85)
    assert config.presets == {**DEFAULT_PRESETS, "og_image": own}
    environment = {
        "IMAGE_PROXY_PRESETS__OG_IMAGE__WIDTH": "1200",
        "IMAGE_PROXY_PRESETS__OG_IMAGE__HEIGHT": "630",
        "IMAGE_PROXY_PRESETS__OG_IMAGE__FIT": "cover",
        "IMAGE_PROXY_PRESETS__OG_IMAGE__QUALITY": "85",
    }
    assert load(environment=environment) == config


@pytest.mark.parametrize(
    "name", ["Avatar", "1st", "_x", "a-b", "a.b", "", "a b", "../x", "\u00e9", "x" * 65]
)
def test_a_preset_name_that_no_url_can_have_stops_the_start(name: str, tmp_path: Path) -> None:
    """Catches a preset that can never be asked for, and one that is no folder name."""
    toml = f"[presets.{name!r}]\nwidth = 10\nfit = 'contain'\nquality = 80"
    (message,) = mistakes(toml, folder=tmp_path)
    assert message.startswith(f"presets.{name}")
    assert message.endswith("imageproxy.toml)"), "where it is from"


def test_what_is_missing_from_a_preset_is_named(tmp_path: Path) -> None:
    """Catches a message about a preset that leaves one to compare it with the others."""
    found = mistakes("[presets.mine]\nheight = 5", folder=tmp_path)
    assert [message.partition(":")[0] for message in found] == [
        "presets.mine.width",
        "presets.mine.fit",
        "presets.mine.quality",
    ]
    file = tmp_path / "imageproxy.toml"
    assert all(message.endswith(f"(from {file})") for message in found)
    begun = mistakes(
        "[presets.mine]\nwidth = 5\nquality = 5",
        {variable("presets.mine.height"): "5"},
        folder=tmp_path,
    )
    assert begun == [f"presets.mine.fit: Field required (from {file})"]
    (message,) = mistakes(
        "",
        {variable("presets.mine.width"): "5", variable("presets.mine.fit"): "contain"},
        folder=tmp_path,
    )
    assert message.endswith("(from environment)")
    (message,) = mistakes("[presets.avatar]\nheight = 0", folder=tmp_path)
    assert message.startswith("presets.avatar: ")
    assert "cover" in message


def test_a_secret_is_in_no_message_and_in_no_repr(tmp_path: Path) -> None:
    """Catches the admin token in a log, a bug report, or a terminal that is shared."""
    config = load('[server]\nadmin_token = "s3cret-of-sixteen"', folder=tmp_path)
    assert config.server.admin_token.get_secret_value() == "s3cret-of-sixteen"
    assert "s3cret" not in f"{config!r} {config} {config.model_dump_json()}"
    for toml in ('[server]\nadmin_token = ["s3cret"]', "[server]\nadmin_token = 53271"):
        (message,) = mistakes(toml, folder=tmp_path)
        assert message.startswith("server.admin_token = ***: ")
        assert "s3cret" not in message
        assert "53271" not in message


@pytest.mark.parametrize(
    ("store", "key"),
    [
        ({"url": "s3://b", "access_key_id": "a"}, "access_key_id"),
        ({"url": "s3://b", "secret_access_key": "s3cret"}, "access_key_id"),
        ({"url": "gs://b", "access_key_id": "a", "secret_access_key": "s3cret"}, "access_key_id"),
        ({"url": "gs://b", "endpoint": "https://a"}, "endpoint"),
        ({"url": "az://b", "region": "eu"}, "region"),
        ({"url": "s3://b", "endpoint": "http://a"}, "endpoint"),
    ],
)
def test_keys_of_a_store_that_would_have_no_effect_stop_the_start(store: Layer, key: str) -> None:
    """Catches a store that is asked elsewhere, or as somebody else, than the file says."""
    with pytest.raises(ConfigError) as caught:
        load(overrides={"store": store})
    (message,) = caught.value.mistakes
    assert message.startswith(f"store.{key}")
    assert "s3cret" not in message


@pytest.mark.parametrize(
    "toml", ['[cdn]\ntoken = "s3cret but spaced"', '[cdn]\nkind = "bad"\ntoken = "s3cret"']
)
def test_a_cdns_token_is_in_no_message_either(toml: str, tmp_path: Path) -> None:
    assert "s3cret" not in "".join(mistakes(toml, folder=tmp_path))
    config = load('[cdn]\ntoken = "s3cret"', folder=tmp_path)
    assert "s3cret" not in f"{config!r} {config} {config.model_dump_json()}"


CLOUDFLARE_AND_BAD_TOKEN = '[cdn]\nkind = "cloudflare"\ntoken = "with space"'


@pytest.mark.parametrize(
    ("toml", "keys"),
    [
        ('[actors]\navatar_preset = "nosuch"', {"actors.avatar_preset", "server.workers"}),
        ('[cdn]\nkind = "cloudflare"', {"cdn.kind", "server.workers"}),
        # The zone is told beside the token that is wrong; that a token is missing is not.
        (CLOUDFLARE_AND_BAD_TOKEN, {"cdn.token", "cdn.kind", "server.workers"}),
        ('[fetch]\ntimuot = 1\n[cdn]\nkind = "bunny"\ntoken = "a-token"',
         {"fetch.timuot", "cdn.kind", "server.workers"}),
        ("[presets.avatar]\nheight = 0\n[presets.banner]\nquality = 0",
         {"presets.avatar", "presets.banner.quality", "server.workers"}),
        # Nothing is known of a preset that is wrong, nor of whether it is there.
        ('[actors]\navatar_preset = "mine"\n[presets.mine]\nfit = "cover"\nquality = 0\nwidth = 1',
         {"presets.mine.quality", "server.workers"}),
        ('[actors]\navatar_preset = "mine"\n[presets.mine]\nfit = "contain"\nquality = 1',
         {"presets.mine.width", "server.workers"}),
        ('[actors]\navatar_preset = "mine"\n[labels]\nvalues = ["!takedown", ""]',
         {"actors.avatar_preset", "labels.values.1", "server.workers"}),
        ("presets = 5", {"presets", "server.workers"}),
        ("cdn = 5", {"cdn", "server.workers"}),
    ],
)  # fmt: skip
def test_mistakes_between_keys_are_told_beside_those_of_single_ones(
    toml: str, keys: set[str], tmp_path: Path
) -> None:
    """Catches a second run that finds what the first one hid, and what only seems wrong then."""
    found = mistakes(toml, {"IMAGE_PROXY_SERVER__WORKERS": "a"}, folder=tmp_path)
    assert {re.split(" = |: ", message)[0] for message in found} == keys
    assert len(found) == len(set(found))
    told = [message for message in found if message.startswith("cdn.kind")]
    if toml == CLOUDFLARE_AND_BAD_TOKEN:
        assert [message.partition(": ")[2].partition(" (")[0] for message in told] == [
            "needs cdn.zone, Cloudflare's zone ID"
        ]


@pytest.mark.parametrize(
    ("toml", "parts"),
    [
        ('widht = 1\nvariants = [72, 72]', ["widht: unknown key", "variants must be widths"]),
        ('png = "x"\nheight = 0', ["png = 'x'", "needs a height"]),
        ("variants = [1000, 0]\nheight = 0", ["variants.1 = 0", "needs a height"]),
        ("variants = [72, 72]\nheight = 0", ["variants must be widths", "needs a height"]),
        ('fit = "x"\nheight = 0', ["fit = 'x'"]),
        ("height = -1", ["height = -1"]),
    ],
)  # fmt: skip
def test_a_mistake_in_a_preset_hides_none_between_its_other_options(
    toml: str, parts: list[str], tmp_path: Path
) -> None:
    """Catches a mistyped option beside which the rules of its preset are not looked at."""
    told = mistakes(f"[presets.avatar]\n{toml}", folder=tmp_path)
    assert len(told) == len(parts)
    for part in parts:
        assert any(part in message for message in told)


SHARED = "s3cret-of-sixteen"


@pytest.mark.parametrize(
    "server",
    [
        {"admin_token": SHARED, "admin_tokens": {"alice": SHARED}},
        {"admin_tokens": {"alice": SHARED, "bob": "o" * 16, "carol": SHARED}},
    ],
)
def test_one_token_of_two_names_stops_the_start(server: Layer) -> None:
    """Catches an audit that names the first of several."""
    with pytest.raises(ConfigError) as caught:
        load(overrides={"server": server})
    (message,) = caught.value.mistakes
    assert re.match(r"server\.admin_tokens\.\w+ = \*\*\*: ", message)
    assert "alice" in message
    assert "s3cret" not in message


def test_a_mistake_hides_no_other_of_its_table_or_list(tmp_path: Path) -> None:
    """Catches a second round of mending: of presets, of tokens, of addresses, of hosts."""
    one, other = "o" * 16, "p" * 16
    toml = f"""
        [server]
        bind = ["127.0.0.1:1", "127.0.0.1:1", "127.0.0.1:2", "127.0.0.1:2"]
        admin_token = "{one}"
        admin_tokens = {{ a = "{one}", b = "short", c = "{other}", d = "{other}" }}
        [fetch]
        allow_private_hosts = ["10.0.0.0/33", "pds.home.arpa", "*"]
        proxy_resolves = true
        [identity]
        nameservers = ["here", "there"]
        [cdn]
        kind = "bunny"
        zone = "1"
        [presets.half]
        width = 10
        [presets.avatar]
        variants = [128]
        [presets.avatar_w128]
        width = 128
        fit = "contain"
        quality = 1
        [presets.{"x" * 61}]
        width = 9
        fit = "contain"
        quality = 1
        variants = [10]
    """
    told = mistakes(toml, folder=tmp_path)
    for key, *parts in (
        ("server.bind", "127.0.0.1:1 and 127.0.0.1:2 twice"),
        ("server.admin_tokens.a", "admin and a have one token"),
        ("server.admin_tokens.b", "at least 16"),
        ("server.admin_tokens.d", "c and d have one token"),
        ("fetch.allow_private_hosts", "'10.0.0.0/33' does not", "not '*'"),
        ("fetch.proxy_resolves", "needs fetch.proxy"),
        ("identity.nameservers.0", "'here'"),
        ("identity.nameservers.1", "'there'"),
        ("cdn.kind", "needs cdn.token"),
        ("presets.half.fit", "required"),
        ("presets.half.quality", "required"),
        ("presets.avatar", "avatar_w128 is a variant of avatar"),
        (f"presets.{'x' * 61}", "more than 64"),
    ):
        (line,) = [each for each in told if re.match(rf"{re.escape(key)}[ :]", each)]
        assert all(part in line for part in parts), line
    assert len(told) == 13


def test_a_configuration_made_in_python_is_held_to_the_same_rules() -> None:
    """Catches rules that only files are held to."""
    with pytest.raises(ValueError, match=r"cdn\.kind: needs cdn\.token"):
        Config.model_validate(
            {"cdn": {"kind": "bunny", "zone": "1"}, "server": {"cdn_url": "https://a.example"}}
        )


def test_a_configuration_made_in_python_may_have_presets_of_its_own_alone() -> None:
    """Catches a program that must keep ours, for routes that it does not use."""
    small = {"width": 9, "fit": "contain", "quality": 80}
    assert set(Config.model_validate({"presets": {"small": small}}).presets) == {"small"}


def test_no_message_speaks_of_how_it_was_found(tmp_path: Path) -> None:
    """Catches the validator's own words before ours."""
    for key, value, _ in CASES:
        with pytest.raises(ConfigError) as caught:
            load_config(environment={}, overrides=nested(key, value))
        assert "Value error" not in str(caught.value)


def test_a_likely_key_is_offered_first() -> None:
    """Catches a list of twenty keys to look through for one letter."""
    (message,) = mistakes(environment={"IMAGE_PROXY_FETCH__TIMOUT": "5"})
    assert "; did you mean timeout? known: " in message
    (message,) = mistakes(environment={"IMAGE_PROXY_FETCH__COLOUR": "5"})
    assert "did you mean" not in message


ZONE = "0123456789abcdef" * 2


@pytest.mark.parametrize(
    ("cdn", "url", "missing"),
    [
        ({"kind": "bunny", "zone": "1"}, "https://a.example", "token"),
        ({"kind": "bunny", "token": "a-token"}, "https://a.example", "pull zone"),
        ({"kind": "bunny", "token": "a-token", "zone": ZONE}, "https://a.example", "pull zone"),
        (
            {"kind": "cloudfront", "token": "a-token", "zone": "E2EXAMPLE9Z"},
            "https://a.example",
            "key_id",
        ),
        (
            {"kind": "cloudfront", "token": "a-token", "key_id": "A" * 16},
            "https://a.example",
            "zone",
        ),
        ({"kind": "cloudflare", "zone": ZONE}, "https://a.example", "token"),
        ({"kind": "cloudflare", "token": "a-token"}, "https://a.example", "zone"),
        ({"kind": "bunny", "token": "a-token", "purge": "urls"}, "", "server.cdn_url"),
        (
            {"kind": "cloudflare", "zone": ZONE, "token": "a-token", "purge": "urls"},
            "",
            "server.cdn_url",
        ),
    ],
)
def test_a_cdn_that_cannot_be_asked_stops_the_start(cdn: Layer, url: str, missing: str) -> None:
    """Catches a take-down that waits for ever because nobody said where it is to be sent."""
    with pytest.raises(ConfigError) as caught:
        load_config(environment={}, overrides={"cdn": cdn, "server": {"base_url": url}})
    (message,) = caught.value.mistakes
    assert missing in message
    assert message.startswith(("cdn", "server.cdn_url"))


@pytest.mark.parametrize(
    ("base_url", "is_right"),
    [
        ("", True),
        ("https://a.test/pics", True),
        ("https://a.test", False),
        ("https://a.test/b", False),
    ],
)
def test_a_root_path_is_that_of_the_public_url(base_url: str, is_right: bool) -> None:
    """Catches URLs that are built for one path, and served at another."""
    server = {"root_path": "/pics", "base_url": base_url, "cdn_url": "https://cdn.test"}
    if is_right:
        assert load(overrides={"server": server}).server.root_path == "/pics"
        return
    with pytest.raises(ConfigError, match=r"server\.root_path.*below another path"):
        load(overrides={"server": server})


@pytest.mark.parametrize("key", ["base_url", "cdn_url"])
def test_either_public_url_is_enough_for_a_cdn(key: str) -> None:
    load(
        overrides={
            "cdn": {"kind": "bunny", "purge": "urls", "token": "a-token"},
            "server": {key: "https://cdn.example"},
        }
    )


def test_the_variable_for_the_file_is_used_where_none_is_given(tmp_path: Path) -> None:
    """Catches a variable that wins over the option, or that is taken for a key."""
    named, given = tmp_path / "named.toml", tmp_path / "given.toml"
    named.write_text("[fetch]\ntimeout = 1")
    given.write_text("[fetch]\ntimeout = 2")
    environment = {CONFIG_VARIABLE: str(named)}
    assert load_config(environment=environment).fetch.timeout == 1
    assert load_config(given, environment=environment).fetch.timeout == 2
    assert load_config(environment={CONFIG_VARIABLE: ""}) == default()


def test_the_environment_of_this_process_is_the_default_one(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Catches an environment that is only looked at in tests."""
    monkeypatch.setenv("IMAGE_PROXY_FETCH__TIMEOUT", "7")
    assert load_config().fetch.timeout == 7


@pytest.mark.parametrize(
    ("content", "problem"),
    [
        (None, "cannot be read"),
        (b"[server", "is not TOML"),
        (b"server.workers: 4", "is not TOML"),
        (b"{}", "is not TOML"),
        (b"[server]\nworkers = 1\nworkers = 2", "is not TOML"),
        (b"\xff\xfe\x00", "is not TOML"),
        (b"\x89PNG\r\n\x1a\n\x00", "is not TOML"),
        (b"x = " + b"[" * 100_000, "is not TOML"),
        (b"x = " + b"1" * 5_000, "is not TOML"),
    ],
)
def test_a_file_that_is_missing_or_garbage_is_named(
    content: bytes | None, problem: str, tmp_path: Path
) -> None:
    """Catches a traceback, and a start with the defaults where a file was asked for."""
    file = tmp_path / "imageproxy.toml"
    if content is not None:
        file.write_bytes(content)
    with pytest.raises(ConfigError) as caught:
        load_config(file, environment={variable("fetch.timeout"): "0"})
    first, second = caught.value.mistakes
    assert first.startswith(f"{file}: {problem}")
    assert second.startswith("fetch.timeout"), "the other layers are checked all the same"


def test_a_folder_in_place_of_the_file_is_named(tmp_path: Path) -> None:
    """Catches a traceback for ``--config /etc/imageproxy``."""
    with pytest.raises(ConfigError, match="cannot be read: Is a directory"):
        load_config(tmp_path, environment={})


def test_an_empty_file_is_the_default_configuration(tmp_path: Path) -> None:
    """Catches a file that has to be complete."""
    assert load("", folder=tmp_path) == default()


@pytest.mark.parametrize("given", ["--config", CONFIG_VARIABLE])
def test_a_relative_path_in_a_file_is_one_from_the_files_folder(
    given: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Catches a command that runs elsewhere than the server, and blocks nothing there."""
    (tmp_path / "etc").mkdir()
    file = tmp_path / "etc" / "imageproxy.toml"
    file.write_text("[cache]\npath = '../cache'", encoding="utf-8")
    for folder, named in ((Path("/"), file), (tmp_path, file.relative_to(tmp_path))):
        monkeypatch.chdir(folder)
        if given == "--config":
            config = load_config(named, environment={})
        else:
            config = load_config(environment={CONFIG_VARIABLE: str(named)})
        assert config.cache.path == tmp_path / "etc" / ".." / "cache"


def test_a_relative_path_of_another_layer_is_one_from_the_working_directory(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Catches the variable of a server that means one folder without a file, another with one."""
    (tmp_path / "etc").mkdir()
    monkeypatch.chdir(tmp_path)
    environment = {variable("cache.path"): "here"}
    for toml in ("", "[cache]\npath = 'there'", "[cache]\npath = '/there'"):
        config = load(toml, environment, folder=tmp_path / "etc")
        assert config.cache.path == tmp_path / "here"
    assert load("[fetch]", folder=tmp_path / "etc").cache.path == tmp_path / "cache"


def test_an_absolute_path_in_a_file_stays_as_it_is(tmp_path: Path) -> None:
    assert load("[cache]\npath = '/srv/images'", folder=tmp_path).cache.path == Path("/srv/images")


@pytest.mark.parametrize("toml", ["server = 5", "server = [1]", "presets = 'x'", "presets.x = 1"])
def test_a_value_where_a_table_belongs_is_a_mistake(toml: str, tmp_path: Path) -> None:
    """Catches a traceback out of the merging of layers."""
    (message,) = mistakes(toml, folder=tmp_path)
    assert message.startswith(toml.split(" = ")[0])


@pytest.mark.parametrize(
    ("key", "value", "attribute", "derived"),
    [
        ("fetch.max_source_mb", 10, "max_source_bytes", 10 * 1024 * 1024),
        ("fetch.max_source_mb", 0.5, "max_source_bytes", 512 * 1024),
        ("cache.max_gb", 1, "max_bytes", 1024**3),
        ("cache.max_gb", 0.25, "max_bytes", 256 * 1024**2),
        ("process.max_megapixels", 50, "max_pixels", 50_000_000),
        ("process.max_megapixels", 0.5, "max_pixels", 500_000),
        ("animation.max_megapixels", 200, "max_pixels", 200_000_000),
    ],
)
def test_units_are_those_of_the_seed(key: str, value: float, attribute: str, derived: int) -> None:
    """Catches a megabyte of 1000 x 1000 bytes, which refuses what the seed took."""
    config = load(overrides=nested(key, value))
    assert getattr(getattr(config, key.partition(".")[0]), attribute) == derived


def test_a_configuration_cannot_be_changed_in_place() -> None:
    """Catches a service whose parts see two configurations."""
    config: Any = Config()
    with pytest.raises(ValueError, match="frozen"):
        config.fetch.timeout = 1
    with pytest.raises(ValueError, match="frozen"):
        config.fetch = Config().fetch


# Variants.


def test_variants_are_presets_like_any_other(tmp_path: Path) -> None:
    """Catches variants that only URL building knows, and answers refuse."""
    config = load("[presets.avatar]\nvariants = [72]", folder=tmp_path)
    assert config.presets["avatar_w72"] == Preset(width=72, height=72, fit="cover", quality=85)
    assert set(config.presets) == {*DEFAULT_PRESETS, "avatar_w72"}


def test_variants_follow_a_preset_that_another_layer_changes(tmp_path: Path) -> None:
    """Catches variants that are made from one layer alone."""
    environment = {"IMAGE_PROXY_PRESETS__AVATAR__QUALITY": "50"}
    config = load("[presets.avatar]\nvariants = [72]", environment, folder=tmp_path)
    assert config.presets["avatar_w72"].quality == 50


@pytest.mark.parametrize(
    ("toml", "right"),
    [
        (
            "[presets.avatar]\nvariants = [128]\n"
            "[presets.avatar_w128]\nwidth = 128\nfit = 'contain'\nquality = 1",
            "avatar_w128 is a variant of avatar",
        ),
        (
            "[presets.big_w128]\nwidth = 128\nfit = 'contain'\nquality = 1\n"
            "[presets.big]\nwidth = 900\nfit = 'contain'\nquality = 80\nvariants = [128]",
            "big_w128 is a variant of big",
        ),
        (f"[presets.{'a' * 61}]\nwidth = 9\nfit = 'contain'\nquality = 1\nvariants = [10]", "64"),
    ],
)
def test_a_variant_without_a_name_of_its_own_stops_the_start(
    toml: str, right: str, tmp_path: Path
) -> None:
    """Catches a preset that replaces a variant, or is replaced by it, unnoticed."""
    (message,) = mistakes(toml, folder=tmp_path)
    assert message.startswith("presets")
    assert right in message


def test_a_stream_of_another_scheme_is_told_by_what_was_written() -> None:
    """Catches "other://x", which nobody wrote."""
    with pytest.raises(ConfigError) as caught:
        load(environment={"IMAGE_PROXY_ACCOUNTS__URL": "https://x"})
    (mistake,) = caught.value.mistakes
    assert mistake.count("'https://x'") == 2
    assert "other://" not in mistake
