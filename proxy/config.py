"""The configuration: its keys, their types, and the layers they come from.

Command line, then environment, then the file, then defaults. Unknown keys and bad values are
mistakes; all of them are reported at once.
"""

from __future__ import annotations

import os
import re
import tomllib
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from ipaddress import ip_address
from pathlib import Path
from typing import Annotated, Any, Literal, Self
from urllib.parse import urlsplit

from pydantic import (
    AfterValidator,
    BaseModel,
    BeforeValidator,
    Field,
    SecretStr,
    StringConstraints,
    ValidationError,
    field_validator,
    model_validator,
)

from proxy.egress.endpoint import Origin, parse_origin
from proxy.egress.errors import Forbidden
from proxy.errors import InvalidDid
from proxy.formats import Format
from proxy.identifiers import Did, parse_did
from proxy.presets import (
    DEFAULT_PRESETS,
    CommaSeparated,
    NoneOrMore,
    NotBool,
    Preset,
    with_variants,
)

ENV_PREFIX = "IMAGE_PROXY_"
CONFIG_VARIABLE = "IMAGE_PROXY_CONFIG"

SEED_VARIABLES: dict[str, tuple[str, str]] = {
    "IMAGE_PROXY_ENABLED": ("server", "enabled"),
    "IMAGE_PROXY_BASE_URL": ("server", "base_url"),
    "IMAGE_PROXY_CDN_URL": ("server", "cdn_url"),
    "IMAGE_PROXY_CACHE_PATH": ("cache", "path"),
    "IMAGE_PROXY_CACHE_MAX_GB": ("cache", "max_gb"),
    "IMAGE_PROXY_CACHE_TTL_DAYS": ("cache", "ttl_days"),
    "IMAGE_PROXY_CLEANUP_INTERVAL_MINUTES": ("cache", "cleanup_interval_minutes"),
    "IMAGE_PROXY_FETCH_TIMEOUT_SECONDS": ("fetch", "timeout"),
    "IMAGE_PROXY_MAX_SOURCE_SIZE_MB": ("fetch", "max_source_mb"),
}
"""The environment of Coves' imageproxy, which works here unchanged."""


class ConfigError(Exception):
    """The configuration is wrong; ``mistakes`` has a line for each key that is."""

    def __init__(self, mistakes: list[str]) -> None:
        super().__init__("\n".join(mistakes))
        self.mistakes = mistakes


def _url(text: str) -> str:
    if text == "":
        return text
    parts = urlsplit(text)
    _ = parts.port  # raises ValueError where it is none
    if parts.scheme not in ("http", "https") or not parts.hostname or parts.query or parts.fragment:
        raise ValueError("must be an http:// or https:// URL without query or fragment")
    return text.rstrip("/")


def _stream_url(text: str) -> str:
    if text:
        try:
            stream_origin(text)
        except Forbidden as error:
            raise ValueError(f"must be wss://HOST or ws://HOST:PORT: {error}") from None
    return text


def stream_origin(text: str) -> Origin:
    """Where ``wss://HOST`` or ``ws://HOST:PORT`` leads.

    Raises:
        Forbidden: it is none of these.
    """
    scheme, separator, rest = text.partition("://")
    schemes = {"wss": "https", "ws": "http"}
    # Another scheme is refused as it is.
    return parse_origin(
        schemes.get(scheme, "other") + separator + rest, allow_http=True, allow_private_hosts=True
    )


def _did(text: str) -> Did:
    try:
        return parse_did(text)
    except InvalidDid:
        raise ValueError("must be a DID such as did:plc:ar7c4by46qjdydhdevvrndac") from None


def _required_url(text: str) -> str:
    if text == "":
        raise ValueError("must not be empty")
    return _url(text)


def _bind(text: str) -> str:
    host, colon, port = text.rpartition(":")
    if not (colon and host and port.isascii() and port.isdigit() and int(port) <= 65535):
        raise ValueError("must be HOST:PORT")
    return text


def _path(value: object) -> object:
    if value == "":
        raise ValueError("must not be empty")
    return value


def _token(value: SecretStr) -> SecretStr:
    # It goes into a header, and what may not go there would come back in the error.
    if not re.fullmatch(r"[!-~]*", value.get_secret_value()):
        raise ValueError("must be visible ASCII characters")
    return value


def _nameserver(text: str) -> str:
    host, port = _host_and_port(text)
    ip_address(host)  # raises ValueError where it is none
    if not 0 < port <= 65535:
        raise ValueError("must have a port of 1 to 65535")
    return text


def _host_and_port(text: str) -> tuple[str, int]:
    """``192.0.2.1``, ``192.0.2.1:5353``, ``2001:db8::1`` or ``[2001:db8::1]:5353``."""
    bare = text.count(":") > 1 and not text.startswith("[")
    host, colon, port = (text, "", "") if bare else text.partition("]:" if "]" in text else ":")
    if colon and not (port.isascii() and port.isdigit()):
        raise ValueError("must be ADDRESS or ADDRESS:PORT")
    return host.strip("[]"), int(port or 53)


Positive = Annotated[int, NotBool, Field(ge=1)]
Seconds = Annotated[float, NotBool, Field(gt=0, allow_inf_nan=False)]
Duration = Annotated[float, NotBool, Field(ge=0, allow_inf_nan=False)]
Size = Annotated[float, NotBool, Field(gt=0, allow_inf_nan=False)]
OptionalSize = Annotated[float, NotBool, Field(ge=0, allow_inf_nan=False)]
OptionalUrl = Annotated[str, AfterValidator(_url)]
Nameserver = Annotated[str, AfterValidator(_nameserver)]
Collection = Annotated[
    str, StringConstraints(pattern=r"^[a-zA-Z][a-zA-Z0-9-]*(\.[a-zA-Z0-9-]+){2,}$", max_length=317)
]
OperatorName = Annotated[str, StringConstraints(pattern=r"^[a-z][a-z0-9_-]*$", max_length=64)]
LabelerDid = Annotated[Did, AfterValidator(_did)]
LabelValue = Annotated[str, StringConstraints(pattern=r"^[!-+\--~]+$", max_length=128)]
MediaRange = Annotated[str, StringConstraints(pattern=r"^[a-z]+/(\*|[a-z0-9.+-]+)$")]


class Section(BaseModel, frozen=True, extra="forbid"):
    """A table of the file."""


class ServerSection(Section):
    """[server]"""

    enabled: bool = True
    bind: Annotated[str, AfterValidator(_bind)] = "127.0.0.1:8080"
    workers: Positive = 1
    base_url: OptionalUrl = ""
    cdn_url: OptionalUrl = ""
    admin_token: SecretStr = SecretStr("")
    shutdown_timeout: Duration = 10
    admin_tokens: dict[OperatorName, Annotated[SecretStr, Field(min_length=1)]] = {}


class IdentitySection(Section):
    """[identity]"""

    plc_url: Annotated[str, AfterValidator(_required_url)] = "https://plc.directory"
    ttl: Duration = 3600
    stale_ttl: Duration = 86400
    negative_ttl: Duration = 60
    nameservers: Annotated[tuple[Nameserver, ...], NoneOrMore] = ()

    @property
    def nameserver_addresses(self) -> list[tuple[str, int]]:
        """Addresses and ports."""
        return [_host_and_port(text) for text in self.nameservers]


class FetchSection(Section):
    """[fetch]"""

    client: Literal["httpx2", "asks"] = "httpx2"
    timeout: Seconds = 30
    max_source_mb: Annotated[float, NotBool, Field(gt=0, le=1024, allow_inf_nan=False)] = 10
    queue_size: Positive = 256
    workers: Positive = 32
    per_host: Positive = 8
    max_redirects: Annotated[int, NotBool, Field(ge=0, le=20)] = 3
    allow_http: bool = False
    allow_private_hosts: bool = False

    @property
    def max_source_bytes(self) -> int:
        """Bytes; a megabyte is 1024 x 1024 of them, as in the seed."""
        return int(self.max_source_mb * 1024 * 1024)


class ProcessSection(Section):
    """[process]"""

    threads: Annotated[int, NotBool, Field(ge=0)] = 0
    max_megapixels: Size = 50
    queue_wait: Duration = 5
    isolation: Literal["sandbox", "thread"] = "sandbox"

    @property
    def max_pixels(self) -> int:
        return int(self.max_megapixels * 1_000_000)


class BlobSection(Section):
    """[blob]"""

    allowed_types: Annotated[tuple[MediaRange, ...], CommaSeparated] = ("image/*",)


class ActorsSection(Section):
    """[actors]"""

    collections: Annotated[
        tuple[Collection, ...], CommaSeparated, Field(min_length=1, max_length=8)
    ] = ("app.bsky.actor.profile",)
    avatar_preset: str = "avatar"
    banner_preset: str = "banner"
    ttl: Duration = 300


class NegotiateSection(Section):
    """[negotiate]"""

    formats: Annotated[tuple[Literal["avif", "webp"], ...], NoneOrMore] = ()

    @property
    def outputs(self) -> tuple[Format, ...]:
        """The same as formats of a URL."""
        return tuple(Format(name) for name in self.formats)


class CacheSection(Section):
    """[cache]"""

    path: Annotated[Path, BeforeValidator(_path)] = Path("./cache")
    max_gb: Size = 10
    ttl_days: Duration = 30
    revalidate_days: Duration = 7
    cleanup_interval_minutes: Duration = 60
    memory_mb: OptionalSize = 64
    write_queue: Positive = 256

    @property
    def max_bytes(self) -> int:
        """Bytes; a gigabyte is 1024 ** 3 of them, as in the seed."""
        return int(self.max_gb * 1024**3)


class PolicySection(Section):
    """[policy]"""

    url: OptionalUrl = ""
    timeout: Seconds = 2
    ttl: Duration = 300
    max_entries: Positive = 100_000
    fail_open: bool = False


class CdnSection(Section):
    """[cdn]"""

    kind: Literal["", "cloudflare", "bunny"] = ""
    zone: Annotated[str, StringConstraints(pattern=r"^([0-9a-f]{32})?$")] = ""
    token: Annotated[SecretStr, AfterValidator(_token)] = SecretStr("")

    @model_validator(mode="after")
    def _is_complete(self) -> Self:
        if self.kind and not self.token.get_secret_value():
            raise ValueError(f"kind {self.kind!r} needs a token")
        if self.kind == "cloudflare" and not self.zone:
            raise ValueError("kind 'cloudflare' needs a zone")
        return self


class LabelsSection(Section):
    """[labels]"""

    subscribe: Annotated[tuple[LabelerDid, ...], NoneOrMore] = ()
    values: Annotated[tuple[LabelValue, ...], CommaSeparated] = ("!takedown",)
    scope: Literal["owner", "everywhere"] = "owner"


class AccountsSection(Section):
    """[accounts]"""

    url: Annotated[str, AfterValidator(_stream_url)] = ""
    kind: Literal["jetstream", "relay"] = "jetstream"

    @property
    def origin(self) -> Origin | None:
        """Where the stream is; None: nowhere."""
        return stream_origin(self.url) if self.url else None


class LogSection(Section):
    """[log]"""

    format: Literal["auto", "json", "console"] = "auto"
    level: Literal["debug", "info", "warning", "error"] = "info"


class TraceSection(Section):
    """[trace]"""

    endpoint: OptionalUrl = ""
    sample: Annotated[float, NotBool, Field(ge=0, le=1, allow_inf_nan=False)] = 1
    propagate: bool = False


MAX_PRESET_NAME = 64

PresetName = Annotated[
    str, StringConstraints(pattern=r"^[a-z][a-z0-9_]*$", max_length=MAX_PRESET_NAME)
]


class Config(BaseModel, frozen=True, extra="forbid"):
    """The whole configuration; ``Config()`` is the default one."""

    server: ServerSection = ServerSection()
    identity: IdentitySection = IdentitySection()
    fetch: FetchSection = FetchSection()
    process: ProcessSection = ProcessSection()
    blob: BlobSection = BlobSection()
    actors: ActorsSection = ActorsSection()
    negotiate: NegotiateSection = NegotiateSection()
    cache: CacheSection = CacheSection()
    policy: PolicySection = PolicySection()
    cdn: CdnSection = CdnSection()
    labels: LabelsSection = LabelsSection()
    accounts: AccountsSection = AccountsSection()
    log: LogSection = LogSection()
    trace: TraceSection = TraceSection()
    presets: dict[PresetName, Preset] = DEFAULT_PRESETS

    @field_validator("presets")
    @classmethod
    def _have_variants(cls, presets: dict[str, Preset]) -> dict[str, Preset]:
        # A file that "config show" printed has the variants beside what declares them.
        found = with_variants(presets)
        for name in found:
            if len(name) > MAX_PRESET_NAME:
                raise ValueError(f"{name} has more than {MAX_PRESET_NAME} characters")
        return found

    @model_validator(mode="after")
    def _has_public_url(self) -> Self:
        if self.cdn.kind and not (self.server.cdn_url or self.server.base_url):
            raise ValueError("server.cdn_url: must not be empty where there is a cdn.kind")
        return self


Layer = dict[str, Any]


@dataclass(frozen=True)
class _Source:
    """Where a layer's values came from, for messages."""

    name: str
    values: Layer


def load_config(
    file: Path | None = None,
    *,
    environment: Mapping[str, str] | None = None,
    overrides: Layer | None = None,
) -> Config:
    """Build the configuration from its layers.

    Args:
        file: a TOML file; None looks at ``IMAGE_PROXY_CONFIG``, then uses defaults alone.
        environment: None is this process's.
        overrides: the command line's values, as nested dictionaries.

    Raises:
        ConfigError: with every mistake at once: unreadable file, unknown keys, bad values.
    """
    environment = os.environ if environment is None else environment
    if file is None and (named := environment.get(CONFIG_VARIABLE)):
        file = Path(named)
    mistakes: list[str] = []
    sources = [
        _Source("default", {"presets": _dump_presets()}),
        _Source(str(file), _read_file(file, mistakes)),
        _Source("environment", _read_environment(environment, mistakes)),
        _Source("command line", overrides or {}),
    ]
    merged: Layer = {}
    for source in sources:
        _merge(merged, source.values)
    try:
        config = Config.model_validate(merged)
    except ValidationError as error:
        for detail in error.errors():
            mistakes.append(_explain(detail["loc"], detail["msg"], detail["input"], sources))
    else:
        for key in ("avatar_preset", "banner_preset"):
            if (name := getattr(config.actors, key)) not in config.presets:
                mistakes.append(_explain(("actors", key), "no such preset", name, sources))
    if mistakes:
        raise ConfigError(mistakes)
    return config


def environment_for(overrides: Layer) -> dict[str, str]:
    """Environment variables that carry ``overrides`` to another process."""
    return {
        f"{ENV_PREFIX}{section.upper()}__{key.upper()}": str(value)
        for section, values in overrides.items()
        for key, value in values.items()
    }


def _dump_presets() -> Layer:
    return {name: preset.model_dump() for name, preset in DEFAULT_PRESETS.items()}


def _read_file(file: Path | None, mistakes: list[str]) -> Layer:
    if file is None:
        return {}
    try:
        return tomllib.loads(file.read_text(encoding="utf-8"))
    except OSError as error:
        mistakes.append(f"{file}: cannot be read: {error.strerror or error}")
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        mistakes.append(f"{file}: is not TOML: {error}")
    return {}


def _read_environment(environment: Mapping[str, str], mistakes: list[str]) -> Layer:
    layer: Layer = {}
    for variable, keys, value in _settings_of(environment, mistakes):
        table = layer
        for key in keys[:-1]:
            table = table.setdefault(key, {})
            if not isinstance(table, dict):
                mistakes.append(f"{variable}: lies below a variable that has a value")
                break
        else:
            table[keys[-1]] = value
    return layer


def _settings_of(
    environment: Mapping[str, str], mistakes: list[str]
) -> Iterator[tuple[str, tuple[str, ...], str]]:
    """Variable, key path and value; the seed's names first, so that ours win."""
    for variable, keys in SEED_VARIABLES.items():
        if environment.get(variable):
            value = environment[variable]
            if variable == "IMAGE_PROXY_ENABLED":
                # The seed knows two spellings of yes; all else is no.
                value = "true" if value in ("true", "1") else "false"
            yield variable, keys, value
    for variable, value in sorted(environment.items()):
        if not variable.startswith(ENV_PREFIX):
            continue
        if variable in SEED_VARIABLES or variable == CONFIG_VARIABLE:
            continue
        path = tuple(variable.removeprefix(ENV_PREFIX).lower().split("__"))
        if len(path) < 2 or "" in path:
            mistakes.append(f"{variable}: unknown; expected {ENV_PREFIX}SECTION__KEY")
            continue
        yield variable, path, value


def _merge(into: Layer, layer: Layer) -> None:
    for key, value in layer.items():
        present = into.get(key)
        if isinstance(present, dict) and isinstance(value, dict):
            _merge(present, value)
        elif isinstance(value, dict):
            into[key] = {}
            _merge(into[key], value)
        else:
            into[key] = value


def _explain(
    location: tuple[int | str, ...], message: str, value: object, sources: list[_Source]
) -> str:
    """One line that names key, value, its origin and what is accepted."""
    if not location:  # it concerns two sections, and names the key itself
        return message.removeprefix("Value error, ")
    key = ".".join(str(part) for part in location if part != "[key]")
    origin = next(
        (source.name for source in reversed(sources) if _holds(source.values, location)), ""
    )
    origin = f" (from {origin})" if origin else ""
    if message == "Extra inputs are not permitted":
        # Without its value: the key may be a misspelled secret.
        return f"{key}: unknown key{origin}; known: {', '.join(_known_beside(location))}"
    shown = "" if isinstance(value, dict) else f" = {_masked(key, value)}"
    return f"{key}{shown}: {message}{origin}"


def _known_beside(location: tuple[int | str, ...]) -> list[str]:
    match location:
        case (_,):
            return list(Config.model_fields)
        case ("presets", *_):
            return list(Preset.model_fields)
        case (section, *_):
            return list(type(getattr(Config(), str(section))).model_fields)
    return []


def _masked(key: str, value: object) -> str:
    return "***" if "token" in key else repr(value)


def _holds(layer: Layer, location: tuple[int | str, ...]) -> bool:
    value: Any = layer
    for part in location:
        if not isinstance(value, dict):
            return True
        if part not in value:
            return False
        value = value[part]
    return True
