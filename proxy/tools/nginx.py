"""nginx before the proxy: a server block that serves hits straight from the disk cache. Pure.

nginx either answers as ``proxy.web`` does, or passes the request on. Its own decisions are two
regular expressions, both defined here: which URLs are canonical, and whether ``If-None-Match``
names an entity tag.
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterable, Sequence
from importlib.resources import files
from pathlib import Path
from string import Template
from urllib.parse import urlsplit

from proxy.cache.layout import AUTO, FORMATS_OF_AUTO
from proxy.config import Config
from proxy.errors import Busy
from proxy.imaging.workers.client import TIME_LIMIT
from proxy.model.formats import OUTPUTS, Format
from proxy.model.identifiers import Cid, Did
from proxy.model.keys import BlobKey, ImageKey
from proxy.web.responses import error_response, not_modified

_HEAD = r"^ (?:GET|HEAD) /img/(?P<imageproxy_preset>[a-z][a-z0-9_]*)/plain/did(?::|%3[Aa])"
_PLC = (
    r"(?P<imageproxy_method>plc)(?::|%3[Aa])"
    r"(?P<imageproxy_owner>(?P<imageproxy_shard>[a-z2-7]{2})[a-z2-7]{22})"
)
_WEB = (
    r"(?P<imageproxy_method>web)(?::|%3[Aa])"
    r"(?P<imageproxy_owner>(?P<imageproxy_shard>[a-z0-9][a-z0-9.-])[a-z0-9.-]*)"
)
_TAIL = (
    r"/(?P<imageproxy_cid>baf(?:krei|ybei)[a-z2-7]{52}|Qm[1-9A-HJ-NP-Za-km-z]{44})"
    rf"(?:@(?P<imageproxy_format>{'|'.join(OUTPUTS)}))?(?:[?]|$)"
)

CANONICAL = (_HEAD + _PLC + _TAIL, _HEAD + _WEB + _TAIL)
"""Requests to look up on disk: conditions, a space, the method, a space, the request target.

Every canonical URL of a result matches, except a did:web with a port. Some invalid hostnames and
CIDs match too: they have no file, and no match leads outside its owner's folder.
"""

IS_KNOWN = (
    r'^("[^" ]+") '
    r"(?:[ \t]*[*][ \t]*$"
    r'|[ \t,]*(?:(?:W/)?"[!#-~\x80-\xff]*"[ \t]*,[ \t,]*)*(?:W/)?\1)'
)
"""An entity tag, a space, and an ``If-None-Match`` that names it: the rules of ``none_match``."""

_FILE = (
    "$imageproxy_method/$imageproxy_shard/$imageproxy_owner"
    "/$imageproxy_preset-$imageproxy_fingerprint/$imageproxy_cid@$imageproxy_asked_format"
)
"""The file path by ``proxy.cache.layout``, without the extension."""

_ETAG = ImageKey(
    "$imageproxy_preset",
    BlobKey(Did(""), Cid("$imageproxy_cid")),
    None,
    "$imageproxy_fingerprint",
).etag

_WANTED = "$imageproxy_asked"
_NEGOTIATED = "$imageproxy_wanted"

_DOLLAR = "imageproxy_dollar"

MAX_MAP_KEY = 46
"""Characters of a map key that fit into nginx' default ``map_hash_bucket_size``, 64 bytes.

That setting is global to the server, so raising it in this block could conflict with another one.
With more than about 30 presets nginx warns that its hash is not optimal, but it works.
"""

LISTEN = ("80", "[::]:80")


class _Block(Template):
    delimiter = "%"


def server_block(config: Config, images: Path, *, listen: Sequence[str] = LISTEN) -> str:
    """Return the file for ``/etc/nginx/sites-enabled/``: upstream, maps and server.

    Args:
        images: the absolute folder that contains the layout.
        listen: values of nginx' ``listen``.
    """
    root = str(images)
    unreachable = error_response(Busy())
    candidates = [f"/$imageproxy_file.{name}" for name in _extensions_to_try()]
    negotiates = bool(config.negotiate.formats)
    vary = [("Vary", "$imageproxy_vary")] if negotiates else []
    block = _Block(files("proxy.tools").joinpath("nginx.conf").read_text(encoding="utf-8"))
    return block.substitute(
        upstream=_quoted(_upstream(config.server.bind)),
        grammar=_lines(
            4,
            (f"{_quoted(f'~{each}')} $imageproxy_preset@$imageproxy_format;" for each in CANONICAL),
        ),
        negotiation=_negotiation(config) if negotiates else "",
        wanted=_NEGOTIATED if negotiates else _WANTED,
        format="$imageproxy_output" if negotiates else "$imageproxy_format",
        fingerprints=_lines(4, _fingerprints(config)),
        file=_FILE,
        auto=AUTO,
        likely=_lines(4, _likely_extensions()),
        etag=_quoted(_ETAG),
        is_known=_quoted(f"~{IS_KNOWN}"),
        dollar=_dollar() if "$" in root else "",
        listen=_lines(4, (f"listen {each};" for each in listen)),
        server_name=_server_name(config.server.base_url),
        root=_quoted(root.replace("$", f"${{{_DOLLAR}}}")),
        read_timeout=_slowest_answer(config),
        candidates=" ".join(candidates),
        types=_lines(
            12, (f"{each.content_type} {each.extension};" for each in (*OUTPUTS, Format.GIF))
        ),
        hit_headers=_add_headers(
            (
                *not_modified("$imageproxy_etag").headers,
                ("X-Cache", "hit"),
                (
                    "Content-Disposition",
                    'inline; filename="$imageproxy_cid.$imageproxy_extension"',
                ),
                ("Last-Modified", ""),
                *vary,
            )
        ),
        known_headers=_add_headers(
            (*not_modified("$imageproxy_etag").headers, ("Last-Modified", ""), *vary)
        ),
        unreachable_type=_quoted(dict(unreachable.headers)["Content-Type"]),
        unreachable_headers=_add_headers(
            (header for header in unreachable.headers if header[0] != "Content-Type"),
            always=True,
        ),
        unreachable_status=unreachable.status,
        unreachable_body=_quoted(unreachable.body.decode()),
    )


def _quoted(text: str) -> str:
    """Quote a string for nginx' configuration; only variables (``$``) stay special in it."""
    for plain, escaped in (("\\", "\\\\"), ('"', '\\"'), ("\n", "\\n"), ("\r", "\\r")):
        text = text.replace(plain, escaped)
    return f'"{text}"'


def _lines(indent: int, lines: Iterable[str]) -> str:
    return "\n".join(" " * indent + line for line in lines)


def _upstream(bind: str) -> str:
    """Convert a listen address to the address to connect to."""
    host, _, port = bind.rpartition(":")
    host = host.strip("[]")
    host = {"0.0.0.0": "127.0.0.1", "::": "::1"}.get(host, host)  # noqa: S104 (compared with)
    return f"[{host}]:{port}" if ":" in host else f"{host}:{port}"


def _server_name(base_url: str) -> str:
    """Return the host of ``server.base_url``; without one, ``_``, which matches no host."""
    host = urlsplit(base_url).hostname or ""
    try:
        host = host.encode("idna").decode()
    except UnicodeError:
        return "_"
    return host if re.fullmatch(r"[a-z0-9][a-z0-9_.-]*", host) else "_"


def _fingerprints(config: Config) -> Iterable[str]:
    if not config.server.enabled:
        return
    for name, preset in config.presets.items():
        for format_ in (None, *OUTPUTS):
            key = f"{name}@{format_ or ''}"
            if len(key) > MAX_MAP_KEY:
                key = f"~^{key}$"
            yield f"{key} {preset.fingerprint(format_)};"


def accept_patterns(formats: Sequence[Format]) -> Iterable[tuple[str, str]]:
    """Yield regular expressions for ``Accept``, with the format ``negotiate.choose`` gives each.

    They cover the headers of browsers: a format is named without a quality, or not named. The
    proxy decides all other headers.
    """
    for number, format_ in enumerate(formats):
        names = "|".join(formats[:number])
        not_before = f"(?!.*image/(?:{names}))" if names else ""
        yield rf"^{not_before}(?:.*,)?[ \t]*image/{format_}[ \t]*(?:,|$)", format_
    yield rf"^(?!.*image/(?:{'|'.join(formats)}))", ""


def _negotiation(config: Config) -> str:
    """Return the maps that give a URL without a format one of ``negotiate.formats``."""
    formats = config.negotiate.outputs
    accepted = _lines(
        4, (f'{_quoted(f"~*{each}")} "{name}";' for each, name in accept_patterns(formats))
    )
    names = "|".join(name for name, preset in config.presets.items() if not preset.animated)
    asked = f"(?P<imageproxy_negotiable>(?:{names})@)$"
    return f"""
# For URLs without a format, the one that the client prefers: "-" is for the proxy to decide.
map $http_accept $imageproxy_accepted {{
    default "-";
    "" "";
{accepted}
}}

map "$imageproxy_accepted $imageproxy_asked" $imageproxy_wanted {{
    default $imageproxy_asked;
    "~^- {asked}" "";
    "~^(?P<imageproxy_chosen>[a-z]+) {asked}" $imageproxy_negotiable$imageproxy_chosen;
}}

map $imageproxy_wanted $imageproxy_output {{
    default "";
    "~@(?P<imageproxy_named>[a-z]+)$" $imageproxy_named;
}}

# What depends on Accept says so (RFC 9110, section 12.5.5).
map $imageproxy_asked $imageproxy_vary {{
    default "";
    "~^(?:{names})@$" Accept;
}}
"""


def _likely_extensions() -> Iterable[str]:
    yield f'"" {FORMATS_OF_AUTO[0].extension};'
    for format_ in OUTPUTS:
        yield f"{format_} {format_.extension};"


def _extensions_to_try() -> Iterable[str]:
    yield "$imageproxy_likely"
    for format_ in FORMATS_OF_AUTO[1:]:
        yield format_.extension


def _dollar() -> str:
    return f"""
# nginx has no other way to write a dollar sign that begins no variable.
geo ${_DOLLAR} {{
    default "$";
}}
"""


def _add_headers(headers: Iterable[tuple[str, str]], *, always: bool = False) -> str:
    suffix = " always" if always else ""
    return _lines(8, (f"add_header {name} {_quoted(value)}{suffix};" for name, value in headers))


def _slowest_answer(config: Config) -> int:
    """Seconds for a DID and a blob, both twice after a migration, and a transform run twice."""
    transform = config.process.queue_wait + TIME_LIMIT
    return math.ceil(4 * config.fetch.timeout + 2 * transform) + 10
