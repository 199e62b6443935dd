"""The configuration: its keys, their types, and the layers they come from.

Precedence: command line, environment, file, defaults. Unknown keys and bad values are mistakes;
all of them are reported together. A relative path in the file starts at the folder of the file;
any other starts at the working directory of the process. Once loaded, every path is absolute.

Pure.
"""

from __future__ import annotations

import os
import re
import tomllib
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from difflib import get_close_matches
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
    ValidationInfo,
    field_validator,
    model_validator,
)
from pydantic_core import ErrorDetails

from proxy.egress.endpoint import Origin, parse_origin
from proxy.egress.errors import Forbidden
from proxy.errors import InvalidDid
from proxy.model.formats import Format
from proxy.model.identifiers import Did, parse_did
from proxy.model.presets import (
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
"""The environment variables of Coves' imageproxy, which work here unchanged."""


MIN_ADMIN_TOKEN = 16
"""Characters of an admin token."""

DEPLOYED = "deployed"
"""The validation context for a configuration that an operator wrote."""


class ConfigError(Exception):
    """The configuration is wrong; ``mistakes`` has a line for each wrong key."""

    def __init__(self, mistakes: list[str]) -> None:
        super().__init__("\n".join(mistakes))
        self.mistakes = mistakes


def _url(text: str) -> str:
    if text == "":
        return text
    parts = urlsplit(text)
    _ = parts.port  # raises ValueError if the port is invalid
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
    """Return the origin of ``wss://HOST`` or ``ws://HOST:PORT``.

    Raises:
        Forbidden: ``text`` has neither form.
    """
    scheme, separator, rest = text.partition("://")
    schemes = {"wss": "https", "ws": "http"}
    # ``parse_origin`` refuses any other scheme.
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
    if isinstance(value, str) and value.startswith("~"):
        raise ValueError("must not begin with ~, which only a shell expands")
    return value


def _admin_token(value: SecretStr) -> SecretStr:
    # RFC 9110, section 5.5: spaces around a field value are not part of it.
    if not re.fullmatch(r"([!-~]([ -~]*[!-~])?)?", value.get_secret_value()):
        raise ValueError("must be ASCII characters that are visible, with spaces only among them")
    if 0 < len(value.get_secret_value()) < MIN_ADMIN_TOKEN:
        raise ValueError(f"must have at least {MIN_ADMIN_TOKEN} characters")
    return value


def _token(value: SecretStr) -> SecretStr:
    # The token goes into a header; an error about an invalid header would reveal it.
    if not re.fullmatch(r"[!-~]*", value.get_secret_value()):
        raise ValueError("must be visible ASCII characters")
    return value


def _nameserver(text: str) -> str:
    host, port = _host_and_port(text)
    ip_address(host)  # raises ValueError if it is not an address
    if not 0 < port <= 65535:
        raise ValueError("must have a port of 1 to 65535")
    return text


def _host_and_port(text: str) -> tuple[str, int]:
    """Split ``192.0.2.1``, ``192.0.2.1:5353``, ``2001:db8::1`` or ``[2001:db8::1]:5353``."""
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
AdminToken = Annotated[SecretStr, AfterValidator(_admin_token)]
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
    admin_token: AdminToken = SecretStr("")
    shutdown_timeout: Duration = 10
    admin_tokens: dict[OperatorName, Annotated[AdminToken, Field(min_length=1)]] = {}


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
        """The configured formats as ``Format`` values."""
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
        """The origin of the stream; None if no stream is configured."""
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
        # The output of "config show" has the variants next to the presets that declare them.
        found = with_variants(presets)
        for name in found:
            if len(name) > MAX_PRESET_NAME:
                raise ValueError(f"{name} has more than {MAX_PRESET_NAME} characters")
        return found

    @model_validator(mode="after")
    def _is_consistent(self, info: ValidationInfo) -> Self:
        conflicts = list(_conflicts(self))
        if info.context == DEPLOYED:
            conflicts += _missing_presets(self)
        if conflicts:
            raise _Inconsistent(conflicts)
        return self


Location = tuple[int | str, ...]


@dataclass(frozen=True)
class _Conflict:
    """A mistake in a combination of values, each of which is valid alone.

    Attributes:
        at: the key that the report names.
        others: the other keys it depends on; if one is wrong, the rule cannot be checked.
    """

    at: Location
    message: str
    others: tuple[Location, ...]


class _Inconsistent(ValueError):
    """The values contradict each other."""

    def __init__(self, conflicts: list[_Conflict]) -> None:
        super().__init__("; ".join(f"{_dotted(each.at)}: {each.message}" for each in conflicts))
        self.conflicts = conflicts


def _conflicts(config: Config) -> Iterator[_Conflict]:
    """Check the rules between keys that hold for every configuration."""
    cdn, server = config.cdn, config.server
    kind = ("cdn", "kind")
    if cdn.kind and not cdn.token.get_secret_value():
        yield _Conflict(kind, "needs cdn.token", (("cdn", "token"),))
    if cdn.kind == "cloudflare" and not cdn.zone:
        yield _Conflict(kind, "needs cdn.zone", (("cdn", "zone"),))
    if cdn.kind and not (server.cdn_url or server.base_url):
        urls = (("server", "cdn_url"), ("server", "base_url"))
        yield _Conflict(kind, "needs server.cdn_url or server.base_url", urls)
    names: dict[str, str] = {}
    for name, token in [("admin", server.admin_token), *server.admin_tokens.items()]:
        secret = token.get_secret_value()
        if secret and (first := names.setdefault(secret, name)) != name:
            told = f"{first} and {name} have one token: nobody could tell who decides"
            yield _Conflict(("server", "admin_tokens"), told, (("server", "admin_token"),))


def _missing_presets(config: Config) -> Iterator[_Conflict]:
    """Check the presets of ``/avatar`` and ``/banner``; a config made in Python may lack them."""
    for key in ("avatar_preset", "banner_preset"):
        if (preset := getattr(config.actors, key)) not in config.presets:
            yield _Conflict(("actors", key), "no such preset", (("presets", preset),))


Layer = dict[str, Any]


@dataclass(frozen=True)
class _Source:
    """The values of a layer, and the name of their origin, for messages."""

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
        file: a TOML file; None: the one in ``IMAGE_PROXY_CONFIG``, or else no file.
        environment: None: the environment of this process.
        overrides: the values of the command line, as nested dictionaries.

    Raises:
        ConfigError: with all mistakes: unreadable file, unknown keys, bad values.
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
    wrong: set[Location] = set()
    while True:
        try:
            config = Config.model_validate(merged, context=DEPLOYED)
            break
        except ValidationError as error:
            details = error.errors()
        found = [each for detail in details for each in _mistakes_in(detail, merged, wrong)]
        mistakes += [_explain(*each, sources) for each in found]
        wrong.update(location for location, _, _ in found)
        # Rules between keys are checked only if each value is valid: retry without invalid ones.
        if any(not detail["loc"] for detail in details):
            break
        for detail in details:
            _drop(merged, _location_of(detail))
    if mistakes:
        raise ConfigError(mistakes)
    cache = config.cache.model_copy(update={"path": config.cache.path.absolute()})
    return config.model_copy(update={"cache": cache})


Mistake = tuple[Location, str, object]
"""The key, what is wrong with it, and its value."""


def _mistakes_in(detail: ErrorDetails, merged: Layer, wrong: set[Location]) -> Iterator[Mistake]:
    """The mistakes pydantic found, except those that may only follow from keys in ``wrong``."""
    cause = detail.get("ctx", {}).get("error")
    if isinstance(cause, _Inconsistent):
        for each in cause.conflicts:
            if not any(_overlap(key, bad) for key in (each.at, *each.others) for bad in wrong):
                yield each.at, each.message, _value_at(merged, each.at)
    elif not any(_overlap(_location_of(detail), bad) for bad in wrong):
        message = detail["msg"].removeprefix("Value error, ")
        yield _location_of(detail), message, detail["input"]


def _location_of(detail: ErrorDetails) -> Location:
    return tuple(part for part in detail["loc"] if part != "[key]")


def _overlap(first: Location, second: Location) -> bool:
    """Whether the keys are equal, or one is inside the other."""
    return all(a == b for a, b in zip(first, second, strict=False))


def _value_at(layer: Layer, location: Location) -> object:
    value: Any = layer
    for part in location:
        value = value.get(part) if isinstance(value, dict) else None
    return value


def _drop(layer: Layer, location: Location) -> None:
    """Remove a value, the list that contains it, or the table that lacks it."""
    holder: dict[Any, Any] = layer
    key = location[0]
    for part in location[1:]:
        inner = holder.get(key)
        if not isinstance(inner, dict) or part not in inner:
            break
        holder, key = inner, part
    holder.pop(key, None)


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
        layer = tomllib.loads(file.read_text(encoding="utf-8"))
    except OSError as error:
        mistakes.append(f"{file}: cannot be read: {error.strerror or error}")
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        mistakes.append(f"{file}: is not TOML: {error}")
    else:
        match layer:
            case {"cache": {"path": str(path)}} if path and not path.startswith("~"):
                # A command in any working directory uses the same folder as the server.
                layer["cache"]["path"] = str(file.absolute().parent / path)
        return layer
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
    """Yield variable, key path and value; the seed's names come first, so that ours win."""
    for variable, keys in SEED_VARIABLES.items():
        if environment.get(variable):
            value = environment[variable]
            if variable == "IMAGE_PROXY_ENABLED":
                # The seed accepts two spellings of true; everything else is false.
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


def _explain(location: Location, message: str, value: object, sources: list[_Source]) -> str:
    """Return one line with the key, its value, its origin and what is accepted."""
    key = _dotted(location)
    if message == "Field required":
        # No layer has the key: it belongs in the first layer that has the table.
        holders = [source.name for source in sources if _holds(source.values, location[:-1])]
    else:
        holders = [source.name for source in reversed(sources) if _holds(source.values, location)]
    origin = f" (from {holders[0]})" if holders else ""
    if message == "Extra inputs are not permitted":
        # The value is left out: the key may be the misspelled name of a secret.
        known = _known_beside(location)
        likely = get_close_matches(str(location[-1]), known, n=1)
        meant = f"did you mean {likely[0]}? " if likely else ""
        return f"{key}: unknown key{origin}; {meant}known: {', '.join(known)}"
    shown = "" if isinstance(value, dict) else f" = {_masked(key, value)}"
    return f"{key}{shown}: {message}{origin}"


def _dotted(location: Location) -> str:
    return ".".join(str(part) for part in location)


def _known_beside(location: Location) -> list[str]:
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


def _holds(layer: Layer, location: Location) -> bool:
    value: Any = layer
    for part in location:
        if not isinstance(value, dict):
            return True
        if part not in value:
            return False
        value = value[part]
    return True
