"""The configuration: its keys, their types, and the layers they come from.

Precedence: command line, environment, file, defaults. Unknown keys and bad values are mistakes;
all of them are reported together. A relative path in the file starts at the folder of the file;
any other starts at the working directory of the process. Once loaded, every path is absolute.

Pure.
"""

from __future__ import annotations

import os
import re
import stat
import tomllib
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from difflib import get_close_matches
from ipaddress import ip_address
from pathlib import Path
from typing import Annotated, Any, Literal, NamedTuple, Self
from urllib.parse import SplitResult, unquote, urlsplit

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
from proxy.egress.own_hosts import PrivateHosts, own_host
from proxy.errors import InvalidDid
from proxy.model.animation import AnimationBounds
from proxy.model.formats import Format
from proxy.model.identifiers import Did, parse_did
from proxy.model.preset_table import PresetTable
from proxy.model.presets import (
    DEFAULT_PRESETS,
    DEFAULT_WEBP_EFFORT,
    CommaSeparated,
    InconsistentPreset,
    NoneOrMore,
    NotBool,
    Preset,
    WebpEffort,
    variants_of,
    with_variants,
)
from proxy.shared.binds import Bind, TcpBind, parse_bind

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
    "IMAGE_PROXY_MAX_SOURCE_MEGAPIXELS": ("process", "max_megapixels"),
    "IMAGE_PROXY_MAX_CONCURRENT_PROCESSES": ("process", "threads"),
    "IMAGE_PROXY_MAX_IN_FLIGHT_REQUESTS": ("fetch", "queue_size"),
    "CLOUDFLARE_CACHE_PURGE_ZONE_ID": ("cdn", "zone"),
    "CLOUDFLARE_CACHE_PURGE_API_TOKEN": ("cdn", "token"),
}
"""The environment variables of Coves' imageproxy, which work here unchanged."""

CLOUDFLARE_VARIABLES = ("CLOUDFLARE_CACHE_PURGE_ZONE_ID", "CLOUDFLARE_CACHE_PURGE_API_TOKEN")
"""Those that also say which CDN there is."""

PLATFORM_VARIABLES = re.compile(
    rf"{ENV_PREFIX}(?!.*__)(?:[A-Z0-9_]+_)?"
    "(?:SERVICE_HOST|SERVICE_PORT(?:_[A-Z0-9_]+)?"
    "|PORT(?:_[0-9]+_(?:TCP|UDP|SCTP)(?:_(?:PROTO|PORT|ADDR))?)?)"
)
"""What Kubernetes writes for services that are named ``image-proxy`` or ``image-proxy-...``, and
Docker for links (Kubernetes, "Service", "Environment variables")."""


NEVER_IN_URL = re.compile(r"[\s\x00-\x1f\x7f\"<>\\^`{|}]")
"""Characters that a URL has only escaped (RFC 3986); letters of other scripts are let through."""

STORES = ("s3", "gs", "az", "file")
"""The schemes of ``store.url``."""

OPERATIONS = ("admin", "healthz", "metrics", "readyz", "xrpc")
"""Routes that answer beside ``server.root_path``, to who asks the server itself."""

MIN_ADMIN_TOKEN = 16
"""Characters of an admin token."""

MIN_TOKEN = 6
"""Characters of a secret that a service gives: fewer are a slip of the keyboard."""

DEPLOYED = "deployed"
"""The validation context for a configuration that an operator wrote."""


class ConfigError(Exception):
    """The configuration is wrong; ``mistakes`` has a line for each wrong key.

    Attributes:
        rest: the configuration without the wrong keys, to look for more mistakes in; None if there
            is none.
    """

    def __init__(self, mistakes: list[str], rest: Config | None = None) -> None:
        super().__init__("\n".join(mistakes))
        self.mistakes = mistakes
        self.rest = rest


def _url(text: str) -> str:
    if text == "":
        return text
    parts = urlsplit(text)
    _ = parts.port  # raises ValueError if the port is invalid
    if parts.scheme not in ("http", "https") or not parts.hostname or parts.query or parts.fragment:
        raise ValueError("must be an http:// or https:// URL without query or fragment")
    if NEVER_IN_URL.search(text):  # it is put before paths, in headers too
        raise ValueError("must have no blank, line break, quote or other character that no URL has")
    return text.rstrip("/")


def _store_url(text: str) -> str:
    if text == "":
        return text
    parts = urlsplit(text)
    is_file = parts.scheme == "file"
    named = parts.path.strip("/") and not parts.netloc if is_file else parts.netloc
    # The service's own secrets are no part of a URL, which logs and reports show.
    if parts.scheme not in STORES or not named or "@" in parts.netloc:
        raise ValueError("must be s3://BUCKET, gs://BUCKET or az://CONTAINER, or file:///FOLDER")
    if parts.query or parts.fragment:
        raise ValueError("must have no query and no fragment")
    path = unquote(parts.path).strip("/")
    names = [] if is_file or not path else path.split("/")
    if {"", ".", ".."}.intersection(names) or re.search(r"[\x00-\x1f\x7f]", path):
        raise ValueError("must have no empty part, . or .., and no control character in its path")
    return text.rstrip("/")


def _store_endpoint(text: str) -> str:
    if "@" in urlsplit(text).netloc:  # the client repeats it in its errors
        raise ValueError("must have no user or password: store.access_key_id is for them")
    return text


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
    if scheme not in schemes:
        raise Forbidden(f"{text[:200]!a} begins with neither")
    return parse_origin(
        schemes[scheme] + separator + rest, allow_http=True, allow_private_hosts=True
    )


def _did(text: str) -> Did:
    try:
        return parse_did(text)
    except InvalidDid:
        raise ValueError("must be a DID such as did:plc:ar7c4by46qjdydhdevvrndac") from None


def _cors_origin(text: str) -> str:
    if not re.fullmatch(r"https?://[a-z0-9.-]+(:[0-9]{1,5})?", text):
        raise ValueError("must be an origin as browsers send it, such as https://app.example")
    return text


def _public_url(text: str) -> str:
    text = _url(text)
    if "@" in urlsplit(text).netloc:
        raise ValueError("must have no user and no password: everybody is told it")
    return text


def _required_url(text: str) -> str:
    if text == "":
        raise ValueError("must not be empty")
    return _url(text)


def _bind(text: str) -> str:
    return str(parse_bind(text))


def _root_path(text: str) -> str:
    path = text.rstrip("/")
    if not re.fullmatch(r"(?:/(?!\.{1,2}(?:/|$))[A-Za-z0-9._~-]+)*", path):
        raise ValueError("must be a path, as /pictures, of letters, digits and ._~-, or empty")
    if path.partition("/")[2].partition("/")[0] in OPERATIONS:
        raise ValueError("must not begin with a route of operations")
    return path


def _each_once(texts: tuple[str, ...]) -> tuple[str, ...]:
    # Port 0 is another one each time.
    again = dict.fromkeys(each for each in texts if texts.count(each) > 1 and each[-2:] != ":0")
    if again:
        raise ValueError(f"names {' and '.join(again)} twice")
    binds = tuple(map(parse_bind, texts))
    for each in binds:
        taken = [str(other) for other in binds if isinstance(each, TcpBind) and each.takes(other)]
        if taken:
            raise ValueError(f"{each} is {' and '.join(taken)} too")
    return texts


def _path(value: object) -> object:
    if value == "":
        raise ValueError("must not be empty")
    if isinstance(value, str) and value.startswith("~"):
        raise ValueError("must not begin with ~, which only a shell expands")
    if isinstance(value, str) and "\0" in value:
        raise ValueError("must not have a zero byte")
    return value


def checked_admin_token(value: SecretStr) -> SecretStr:
    """Return a token as it is.

    Raises:
        ValueError: no header can have it, or it is short; the message does not repeat it.
    """
    # RFC 9110, section 5.5: spaces around a field value are not part of it.
    if not re.fullmatch(r"([!-~]([ -~]*[!-~])?)?", value.get_secret_value()):
        raise ValueError("must be ASCII characters that are visible, with spaces only among them")
    if 0 < len(value.get_secret_value()) < MIN_ADMIN_TOKEN:
        raise ValueError(f"must have at least {MIN_ADMIN_TOKEN} characters")
    return value


_PLAIN = r"(?:[^@/%\s]|%(?!00)[0-9A-Fa-f]{2})"
_DATABASE = re.compile(rf"postgres(?:ql)?://(?:{_PLAIN}*@)?(?:{_PLAIN}|/)*")
"""A URL that libpq reads as it was meant. It takes what follows a bare ``@`` or ``/`` of a password
for the host, and repeats that, and what it cannot decode, in its errors."""


def _database(value: SecretStr) -> SecretStr:
    text = value.get_secret_value()
    # The value is not repeated: it may have a password.
    if text and (_secret_parts(text) is None or not _DATABASE.fullmatch(text)):
        raise ValueError(
            "must be postgresql://USER:PASSWORD@HOST/DATABASE,"
            " with @, /, % and spaces of a password as %40, %2F, %25 and %20"
        )
    return value


def _secret_parts(url: str) -> SplitResult | None:
    """The parts of a URL, or None. The errors of ``urlsplit`` repeat what may be a password."""
    try:
        return urlsplit(url)
    except ValueError:
        return None


def _token(value: SecretStr) -> SecretStr:
    # The token goes into a header; an error about an invalid header would reveal it.
    if not re.fullmatch(r"[!-~]*", value.get_secret_value()):
        raise ValueError("must be visible ASCII characters")
    if 0 < len(value.get_secret_value()) < MIN_TOKEN:
        raise ValueError(f"must have at least {MIN_TOKEN} characters")
    return value


def _nameserver(text: str) -> str:
    host, port = _host_and_port(text)
    ip_address(host)  # raises ValueError if it is not an address
    if not 0 < port <= 65535:
        raise ValueError("must have a port of 1 to 65535")
    return text


def _private_hosts(value: object) -> object:
    # In the environment everything is text: the words of a boolean come before the names of hosts.
    words = dict.fromkeys(("true", "1", "yes", "y", "on", "t"), True)
    words |= dict.fromkeys(("false", "0", "no", "n", "off", "f"), False)
    if isinstance(value, bool):
        return value
    if isinstance(value, str):
        if value.lower() in words:
            return words[value.lower()]
        value = value.split(",")
    if not isinstance(value, (list, tuple)) or not all(isinstance(each, str) for each in value):
        raise ValueError("must be a boolean, or a list of names, addresses and networks")
    hosts, wrong = [], []
    for each in value:
        try:
            hosts.append(own_host(each.strip()))
        except ValueError as error:
            wrong.append(str(error))
    if wrong:
        raise ValueError("; ".join(wrong))
    return tuple(hosts)


def _proxy_url(value: SecretStr) -> SecretStr:
    text = value.get_secret_value()
    # The value is not repeated: it may have a password.
    if text and not _is_proxy_url(text):
        raise ValueError("must be http://HOST:PORT or https://USER:PASSWORD@HOST:PORT")
    return value


def _is_proxy_url(text: str) -> bool:
    parts = _secret_parts(text)
    # None of it may end a line of a request.
    if parts is None or not (re.fullmatch(r"https?://[!-~]+", text) and parts.hostname):
        return False
    try:
        _ = parts.port
    except ValueError:
        return False
    return parts.path in ("", "/") and not (parts.query or parts.fragment)


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
Lifetime = Annotated[int, NotBool, Field(ge=0, le=2**31)]
Size = Annotated[float, NotBool, Field(gt=0, allow_inf_nan=False)]
OptionalSize = Annotated[float, NotBool, Field(ge=0, allow_inf_nan=False)]
OptionalUrl = Annotated[str, AfterValidator(_url)]
PublicUrl = Annotated[str, AfterValidator(_public_url)]
Nameserver = Annotated[str, AfterValidator(_nameserver)]
Collection = Annotated[
    str, StringConstraints(pattern=r"^[a-zA-Z][a-zA-Z0-9-]*(\.[a-zA-Z0-9-]+){2,}$", max_length=317)
]
CdnZone = Annotated[
    str, StringConstraints(pattern=r"^([0-9a-f]{32}|[0-9]{1,19}|E[0-9A-Z]{5,31})?$")
]
CorsOrigin = Annotated[str, AfterValidator(_cors_origin)]
AdminToken = Annotated[SecretStr, AfterValidator(checked_admin_token)]
OperatorName = Annotated[str, StringConstraints(pattern=r"^[a-z][a-z0-9_-]*$", max_length=64)]
LabelerDid = Annotated[Did, AfterValidator(_did)]
LabelValue = Annotated[str, StringConstraints(pattern=r"^[!-+\--~]+$", max_length=128)]
MediaRange = Annotated[str, StringConstraints(pattern=r"^[a-z]+/(\*|[a-z0-9.+-]+)$")]


class Section(BaseModel, frozen=True, extra="forbid"):
    """A table of the file."""


class ServerSection(Section):
    """[server]"""

    enabled: bool = True
    bind: Annotated[
        tuple[Annotated[str, AfterValidator(_bind)], ...],
        CommaSeparated,
        Field(min_length=1, max_length=16),
        AfterValidator(_each_once),
    ] = ("127.0.0.1:8080",)
    drain_delay: Annotated[Duration, Field(le=3600)] = 0
    workers: Positive = 1
    root_path: Annotated[str, AfterValidator(_root_path)] = ""
    base_url: PublicUrl = ""
    cdn_url: PublicUrl = ""
    admin_token: AdminToken = SecretStr("")
    shutdown_timeout: Duration = 10
    admin_tokens: dict[OperatorName, Annotated[AdminToken, Field(min_length=1)]] = {}

    @property
    def binds(self) -> tuple[Bind, ...]:
        """Addresses to listen on."""
        return tuple(map(parse_bind, self.bind))

    @property
    def public_base(self) -> str:
        """What the path of a public URL stands behind: a URL, or as little as is known of it."""
        return self.cdn_url or self.base_url or self.root_path


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
    allow_private_hosts: Annotated[PrivateHosts, BeforeValidator(_private_hosts)] = False
    proxy: Annotated[SecretStr, AfterValidator(_proxy_url)] = SecretStr("")
    proxy_resolves: bool = False

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
    webp_effort: WebpEffort = DEFAULT_WEBP_EFFORT

    @property
    def max_pixels(self) -> int:
        return int(self.max_megapixels * 1_000_000)


class BlobSection(Section):
    """[blob]"""

    allowed_types: Annotated[tuple[MediaRange, ...], CommaSeparated] = ("image/*",)


class VideoSection(Section):
    """[video]"""

    preset: str = "content_preview"
    max_source_mb: Annotated[float, NotBool, Field(gt=0, le=1024, allow_inf_nan=False)] = 300
    timeout: Annotated[float, NotBool, Field(ge=1, le=600)] = 120

    @property
    def max_source_bytes(self) -> int:
        """``max_source_mb`` in bytes."""
        return int(self.max_source_mb * 1024 * 1024)


class ActorsSection(Section):
    """[actors]"""

    collections: Annotated[
        tuple[Collection, ...], CommaSeparated, Field(min_length=1, max_length=8)
    ] = ("app.bsky.actor.profile",)
    avatar_preset: str = "avatar"
    banner_preset: str = "banner"
    ttl: Duration = 300
    fallback: Literal["none", "initials", "shapes"] = "none"
    fallback_blocked: bool = False


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
    unconfirmed_days: Duration = 30
    cleanup_interval_minutes: Duration = 60
    memory_mb: OptionalSize = 64
    write_queue: Positive = 256
    fsync: bool = True

    @property
    def max_bytes(self) -> int:
        """Bytes; a gigabyte is 1024 ** 3 of them, as in the seed."""
        return int(self.max_gb * 1024**3)


class StoreSection(Section):
    """[store]"""

    url: Annotated[str, AfterValidator(_store_url)] = ""
    endpoint: Annotated[OptionalUrl, AfterValidator(_store_endpoint)] = ""
    region: Annotated[str, StringConstraints(pattern=r"^[a-z0-9-]*$", max_length=64)] = ""
    access_key_id: Annotated[str, StringConstraints(pattern=r"^[!-~]*$")] = ""
    secret_access_key: Annotated[SecretStr, AfterValidator(_token)] = SecretStr("")
    allow_http: bool = False
    timeout: Annotated[float, NotBool, Field(gt=0, le=4, allow_inf_nan=False)] = 1
    sources: bool = False


class CacheControlSection(Section):
    """[cache_control]"""

    browser: Lifetime = 86400
    shared: Lifetime = 31536000


class PolicySection(Section):
    """[policy]"""

    url: OptionalUrl = ""
    protocol: Literal["status", "porxie"] = "status"
    timeout: Seconds = 2
    ttl: Duration = 300
    max_entries: Positive = 100_000
    fail_open: bool = False


class CdnSection(Section):
    """[cdn]"""

    kind: Literal["", "cloudflare", "bunny", "cloudfront"] = ""
    purge: Literal["tags", "urls"] = "tags"
    zone: CdnZone = ""
    token: Annotated[SecretStr, AfterValidator(_token)] = SecretStr("")
    key_id: Annotated[str, StringConstraints(pattern=r"^([0-9A-Z]{16,128})?$")] = ""
    origins: Annotated[tuple[CorsOrigin, ...], NoneOrMore] = ()


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


class ClusterSection(Section):
    """[cluster]"""

    database: Annotated[SecretStr, AfterValidator(_database)] = SecretStr("")
    lease: Annotated[float, NotBool, Field(ge=1, le=60, allow_inf_nan=False)] = 3

    @property
    def url(self) -> str:
        """The database of the decisions; "": they are kept in the cache folder."""
        return self.database.get_secret_value()


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
    animation: AnimationBounds = AnimationBounds()
    blob: BlobSection = BlobSection()
    video: VideoSection = VideoSection()
    actors: ActorsSection = ActorsSection()
    negotiate: NegotiateSection = NegotiateSection()
    cache: CacheSection = CacheSection()
    store: StoreSection = StoreSection()
    cache_control: CacheControlSection = CacheControlSection()
    policy: PolicySection = PolicySection()
    cdn: CdnSection = CdnSection()
    labels: LabelsSection = LabelsSection()
    accounts: AccountsSection = AccountsSection()
    cluster: ClusterSection = ClusterSection()
    log: LogSection = LogSection()
    trace: TraceSection = TraceSection()
    presets: Annotated[dict[PresetName, Preset], Field(validate_default=True)] = DEFAULT_PRESETS

    @property
    def preset_table(self) -> PresetTable:
        """The presets, and the names of those that other sections choose."""
        actors = self.actors
        return PresetTable(
            self.presets, actors.avatar_preset, actors.banner_preset, self.video.preset
        )

    @field_validator("presets")
    @classmethod
    def _are_complete(cls, presets: dict[str, Preset], info: ValidationInfo) -> dict[str, Preset]:
        if process := info.data.get("process"):  # absent if it is invalid
            effort = {"webp_effort": process.webp_effort}
            presets = {
                name: preset
                if "webp_effort" in preset.model_fields_set
                else preset.model_copy(update=effort)
                for name, preset in presets.items()
            }
        # The output of "config show" has the variants next to the presets that declare them.
        return with_variants(presets)

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


class _Zone(NamedTuple):
    """What a CDN calls that in which it purges, and the form of its ID."""

    name: str
    pattern: str


_ZONE_ID = _Zone("Cloudflare's zone ID", "[0-9a-f]{32}")
_PULL_ZONE = _Zone("bunny.net's ID of the pull zone, to purge by tag", "[0-9]{1,19}")
_DISTRIBUTION = _Zone("CloudFront's distribution ID", "E[0-9A-Z]{5,31}")
_ZONES = {
    ("cloudflare", "tags"): _ZONE_ID,
    ("cloudflare", "urls"): _ZONE_ID,
    ("bunny", "tags"): _PULL_ZONE,
    ("cloudfront", "tags"): _DISTRIBUTION,
    ("cloudfront", "urls"): _DISTRIBUTION,
}


def _conflicts(config: Config) -> Iterator[_Conflict]:
    """Check the rules between keys that hold for every configuration."""
    cdn, server = config.cdn, config.server
    kind = ("cdn", "kind")
    if cdn.kind and not cdn.token.get_secret_value():
        yield _Conflict(kind, "needs cdn.token", (("cdn", "token"),))
    zone = _ZONES.get((cdn.kind, cdn.purge))
    if zone and not re.fullmatch(zone.pattern, cdn.zone):
        yield _Conflict(kind, f"needs cdn.zone, {zone.name}", (("cdn", "zone"),))
    if cdn.kind == "cloudfront" and not cdn.key_id:
        yield _Conflict(kind, "needs cdn.key_id, an access key's ID", (("cdn", "key_id"),))
    names_urls = cdn.purge == "urls" and cdn.kind in ("cloudflare", "bunny")
    if names_urls and not (server.cdn_url or server.base_url):
        urls = (("server", "cdn_url"), ("server", "base_url"))
        yield _Conflict(kind, "needs server.cdn_url or server.base_url, to purge by URL", urls)
    if server.root_path and server.base_url and urlsplit(server.base_url).path != server.root_path:
        told = f"{server.base_url} is below another path: it names what a browser asks for"
        yield _Conflict(("server", "root_path"), told, (("server", "base_url"),))
    if config.fetch.proxy_resolves and not config.fetch.proxy.get_secret_value():
        yield _Conflict(("fetch", "proxy_resolves"), "needs fetch.proxy", (("fetch", "proxy"),))
    if config.store.url:
        yield from _store_conflicts(config.store)
    yield from _variant_conflicts(config.presets)
    admin: Location = ("server", "admin_token")
    first_of = {server.admin_token.get_secret_value(): ("admin", admin)}
    for name, token in server.admin_tokens.items():
        secret, at = token.get_secret_value(), ("server", "admin_tokens", name)
        first, other = first_of.setdefault(secret, (name, at))
        if secret and first != name:
            told = f"{first} and {name} have one token: nobody could tell who decides"
            yield _Conflict(at, told, (other,))


def _variant_conflicts(presets: Mapping[str, Preset]) -> Iterator[_Conflict]:
    for name, preset in presets.items():
        at = ("presets", name)
        for variant, made in variants_of(name, preset).items():
            if presets[variant] != made:
                told = f"{variant} is a variant of {name}, and also the name of a preset"
                yield _Conflict(at, told, (("presets", variant),))
            elif len(variant) > MAX_PRESET_NAME:
                yield _Conflict(at, f"{variant} has more than {MAX_PRESET_NAME} characters", ())


def _store_conflicts(store: StoreSection) -> Iterator[_Conflict]:
    url, kind = ("store", "url"), store.url.partition(":")[0]
    secret = store.secret_access_key.get_secret_value()
    if bool(store.access_key_id) != bool(secret):
        other = ("store", "secret_access_key")
        told = "go together: give both, or neither for those of the environment"
        yield _Conflict(("store", "access_key_id"), f"{told} (with secret_access_key)", (other,))
    for key, kinds in (
        ("endpoint", ("s3", "az")),
        ("region", ("s3",)),
        ("access_key_id", ("s3", "az")),
    ):
        if getattr(store, key) and kind not in kinds:
            yield _Conflict(("store", key), f"is for {' and '.join(kinds)} alone", (url,))
    if store.endpoint.startswith("http:") and not store.allow_http:
        http = ("store", "allow_http")
        yield _Conflict(("store", "endpoint"), "needs store.allow_http", (http,))


def _missing_presets(config: Config) -> Iterator[_Conflict]:
    """Check the presets that other keys name; a config made in Python may lack them."""
    for section, key in (
        ("actors", "avatar_preset"),
        ("actors", "banner_preset"),
        ("video", "preset"),
    ):
        if (preset := getattr(getattr(config, section), key)) not in config.presets:
            yield _Conflict((section, key), "no such preset", (("presets", preset),))


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
    again: bool = False,
) -> Config:
    """Build the configuration from its layers.

    Args:
        file: a TOML file; None: the one in ``IMAGE_PROXY_CONFIG``, or else no file.
        environment: None: the environment of this process.
        overrides: the values of the command line, as nested dictionaries.
        again: whether this process has read the file before. A pipe is then empty, or never ends.

    Raises:
        ConfigError: with all mistakes: unreadable file, unknown keys, bad values.
    """
    environment = os.environ if environment is None else environment
    file = file or _named_file(environment)
    mistakes: list[str] = []
    sources = [
        _Source("default", {"presets": _dump_presets()}),
        _Source(str(file), _read_file(file, mistakes, again=again)),
        _Source("environment", _read_environment(environment, mistakes)),
        _Source("command line", overrides or {}),
    ]
    merged: Layer = {}
    for source in sources:
        _merge(merged, source.values)
    wrong: set[Location] = set()
    config: Config | None = None
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
        # All are found before any goes: what a mistake beside them took along is found nowhere.
        for holder, key in [_place_of(merged, _location_of(detail)) for detail in details]:
            holder.pop(key, None)
    if mistakes or config is None:
        raise ConfigError(mistakes, rest=config)
    # ``model_fields_set`` goes on telling whether any layer names the path.
    values = {name: getattr(config.cache, name) for name in CacheSection.model_fields}
    values["path"] = config.cache.path.absolute()
    cache = CacheSection.model_construct(config.cache.model_fields_set, **values)
    return config.model_copy(update={"cache": cache})


@dataclass(frozen=True)
class ValueOrigin:
    """Where a value that is not the default comes from.

    Attributes:
        name: an environment variable, or the path of the file.
        over: the file whose other value it takes the place of, or None.
    """

    name: str
    over: str | None = None


def origins(
    file: Path | None = None, *, environment: Mapping[str, str] | None = None
) -> dict[Location, ValueOrigin]:
    """Return where each value is from that the file or the environment gives, by its key.

    Args:
        file, environment: as for ``load_config``, which raises what is wrong with them.
    """
    environment = os.environ if environment is None else environment
    file = file or _named_file(environment)
    layer = _read_file(file, [])
    found = {location: ValueOrigin(str(file)) for location in leaves(layer)}
    for variable, location, value in _settings_of(environment, []):
        if location == ("cdn", "kind") and variable in CLOUDFLARE_VARIABLES:
            continue
        in_file = _value_at(layer, location)
        differs = in_file is not None and str(in_file).lower() != value.lower()
        found[location] = ValueOrigin(variable, str(file) if differs else None)
    return found


def leaves(layer: Layer, above: Location = ()) -> Iterator[Location]:
    """Yield the key of each value that is no table."""
    for key, value in layer.items():
        if isinstance(value, dict):
            yield from leaves(value, (*above, key))
        else:
            yield (*above, key)


def _named_file(environment: Mapping[str, str]) -> Path | None:
    named = environment.get(CONFIG_VARIABLE)
    return Path(named) if named else None


Mistake = tuple[Location, str, object]
"""The key, what is wrong with it, and its value."""


def _mistakes_in(detail: ErrorDetails, merged: Layer, wrong: set[Location]) -> Iterator[Mistake]:
    """The mistakes pydantic found, except those that may only follow from keys in ``wrong``."""
    cause = detail.get("ctx", {}).get("error")
    if isinstance(cause, _Inconsistent):
        for each in cause.conflicts:
            if not any(_overlap(key, bad) for key in (each.at, *each.others) for bad in wrong):
                yield each.at, each.message, _value_at(merged, each.at)
    elif isinstance(cause, InconsistentPreset):
        at = _location_of(detail)
        for found in cause.found:
            keys = [(*at, option) for option in found.options]
            if not any(_overlap(key, bad) for key in keys for bad in wrong):
                yield at, found.message, detail["input"]
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


def _place_of(layer: Layer, location: Location) -> tuple[dict[Any, Any], int | str]:
    """The table and the key of a value, of the list around it, or of the table that lacks it."""
    holder: dict[Any, Any] = layer
    key = location[0]
    for part in location[1:]:
        inner = holder.get(key)
        if not isinstance(inner, dict) or part not in inner:
            break
        holder, key = inner, part
    return holder, key


def environment_name(section: str, key: str) -> str:
    """The environment variable of a key."""
    return f"{ENV_PREFIX}{section.upper()}__{key.upper()}"


def _dump_presets() -> Layer:
    # An effort that is not said is that of ``process``.
    return {
        name: preset.model_dump(exclude={"webp_effort"}) for name, preset in DEFAULT_PRESETS.items()
    }


def _read_file(file: Path | None, mistakes: list[str], *, again: bool = False) -> Layer:
    if file is None:
        return {}
    try:
        if again and not stat.S_ISREG(file.stat().st_mode):
            raise OSError("what is no regular file is read once, at the start")
        # Editors on Windows begin a file with a byte order mark.
        layer = tomllib.loads(file.read_text(encoding="utf-8-sig"))
    except OSError as error:
        mistakes.append(f"{file}: cannot be read: {error.strerror or error}")
    except (ValueError, RecursionError) as error:  # a number too long is a ValueError alone
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
            if variable in CLOUDFLARE_VARIABLES:
                yield variable, ("cdn", "kind"), "cloudflare"
    for variable, value in sorted(environment.items()):
        if not variable.startswith(ENV_PREFIX):
            continue
        if variable in SEED_VARIABLES or variable == CONFIG_VARIABLE:
            continue
        if PLATFORM_VARIABLES.fullmatch(variable):
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
    is_secret = key == "fetch.proxy" or any(word in key for word in ("token", "database", "secret"))
    # Nor is a password that somebody wrote into a URL to be in a log.
    return "***" if is_secret else re.sub(r"(://[^/@:]*:)[^/@]*@", r"\1***@", repr(value))


def _holds(layer: Layer, location: Location) -> bool:
    value: Any = layer
    for part in location:
        if not isinstance(value, dict):
            return True
        if part not in value:
            return False
        value = value[part]
    return True
