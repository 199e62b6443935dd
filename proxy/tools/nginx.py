"""nginx before the proxy: a server block that serves hits straight from the disk cache. Pure.

nginx either answers as ``proxy.web`` does, or passes the request on. Its own decisions are two
regular expressions, both defined here: which URLs are canonical, and whether ``If-None-Match``
names an entity tag.
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterable, Iterator, Sequence
from importlib.resources import files
from pathlib import Path
from string import Template
from urllib.parse import urlsplit

from proxy.cache.layout import AUTO, FORMATS_OF_AUTO
from proxy.config import Config
from proxy.errors import Busy
from proxy.imaging.memory_estimate import most_seconds
from proxy.imaging.workers.client import longest
from proxy.model.cache_tags import MAX_PLAIN_IDENTIFIER
from proxy.model.formats import OUTPUTS, Format
from proxy.model.identifiers import Cid, Did
from proxy.model.keys import BlobKey, ImageKey, poster_fingerprint
from proxy.model.picture_info import INFO, INFO_FINGERPRINT
from proxy.shared.binds import Bind
from proxy.tools.front_path import FrontPath, front_path
from proxy.web.caching import caching_of
from proxy.web.responses import SHARED, error_response, unmodified_headers
from proxy.web.shareable import purges_by_url

_HEAD = r"^ (?:GET|HEAD) /img/(?P<imageproxy_preset>[a-z][a-z0-9_]*)/plain/did(?::|%3[Aa])"
_PLC = (
    r"(?P<imageproxy_method>plc)(?::|%3[Aa])"
    r"(?P<imageproxy_owner>(?P<imageproxy_shard>[a-z2-7]{2})[a-z2-7]{22})"
)
_WEB = (
    r"(?P<imageproxy_method>web)(?::|%3[Aa])"
    r"(?P<imageproxy_owner>(?P<imageproxy_shard>[a-z0-9][a-z0-9.-])[a-z0-9.-]*)"
)
_FORMAT = rf"(?:@(?P<imageproxy_format>{'|'.join(OUTPUTS)}))?(?:[?]|$)"
_TAIL = r"/(?P<imageproxy_cid>baf(?:krei|ybei)[a-z2-7]{52}|Qm[1-9A-HJ-NP-Za-km-z]{44})" + _FORMAT

# nginx can take a tag of a CDN from a URL, and cannot make one: it hashes nothing.
_TAGGED_WEB = _WEB.removesuffix("*)") + f"{{0,{MAX_PLAIN_IDENTIFIER - 2}}})"
_TAGGED_TAIL = r"/(?P<imageproxy_cid>baf(?:krei|ybei)(?P<imageproxy_digest>[a-z2-7]{52}))" + _FORMAT

_INFO_HEAD = r"^ (?:GET|HEAD) /(?P<imageproxy_preset>info)/did(?::|%3[Aa])"
_INFO_TAIL, _TAGGED_INFO_TAIL = (
    tail.removesuffix(_FORMAT) + r"(?:[?]|$)" for tail in (_TAIL, _TAGGED_TAIL)
)

CANONICAL = (_HEAD + _PLC + _TAIL, _HEAD + _WEB + _TAIL)
"""Requests to look up on disk: conditions, a space, the method, a space, the request target.

Every canonical URL of a result matches, except a did:web with a port. Some invalid hostnames and
CIDs match too: they have no file, and no match leads outside its owner's folder.
"""

TAGGED = (_HEAD + _PLC + _TAGGED_TAIL, _HEAD + _TAGGED_WEB + _TAGGED_TAIL)
"""The same for a block that sends a CDN tags: without CIDv0, and without very long hostnames."""

INFO_CANONICAL = (_INFO_HEAD + _PLC + _INFO_TAIL, _INFO_HEAD + _WEB + _INFO_TAIL)
"""The same for what is told of pictures. Behind ``CANONICAL``, because it is asked for less."""

INFO_TAGGED = (_INFO_HEAD + _PLC + _TAGGED_INFO_TAIL, _INFO_HEAD + _TAGGED_WEB + _TAGGED_INFO_TAIL)
"""The same as ``TAGGED`` is of ``CANONICAL``."""


_POSTER_HEAD = r"^ (?:GET|HEAD) /vid/(?:(?P<imageproxy_preset>[a-z][a-z0-9_]*)/)?did(?::|%3[Aa])"
_POSTER_TAIL, _TAGGED_POSTER_TAIL = (
    tail.removesuffix(_FORMAT) + r"/thumbnail\.(?P<imageproxy_format>jpg)(?:[?]|$)"
    for tail in (_TAIL, _TAGGED_TAIL)
)

POSTER_CANONICAL = (_POSTER_HEAD + _PLC + _POSTER_TAIL, _POSTER_HEAD + _WEB + _POSTER_TAIL)
"""The same for posters of videos."""

POSTER_TAGGED = (
    _POSTER_HEAD + _PLC + _TAGGED_POSTER_TAIL,
    _POSTER_HEAD + _TAGGED_WEB + _TAGGED_POSTER_TAIL,
)
"""The same as ``TAGGED`` is of ``CANONICAL``."""


def _exact(patterns: Sequence[str]) -> tuple[str, ...]:
    return tuple(each.replace("(?::|%3[Aa])", ":").replace("(?:[?]|$)", "$") for each in patterns)


EXACT, INFO_EXACT = _exact(TAGGED), _exact(INFO_TAGGED)
"""The same where a CDN is purged by URL: only the URLs that a purge names."""

_INFO_ASKED = f"{INFO}@{Format.JSON}"

_POSTER = "jpg"
"""The format that is asked for by the name of a poster, which says nothing of posters in a file."""


def _poster_asked(preset: str) -> str:
    return f"vid/{preset}@{_POSTER}"


_TAGS = ("$imageproxy_method-$imageproxy_owner", "cid-$imageproxy_digest")
"""The tags of ``model.cache_tags``."""

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
With more than about 25 presets nginx warns that its hash is not optimal, but it works.
"""

_CONDITIONS = "$http_if_match$http_if_unmodified_since"


class NginxTemplate(Template):
    """A configuration in which ``%name`` is replaced; dollar signs are nginx' own."""

    delimiter = "%"


_LOOK_UP = NginxTemplate("""\
        # Not on disk, not readable, or removed just now.
        error_page 403 404 500 = @imageproxy;
        # 418 is an internal signal of this block; a client never sees it.
        error_page 418 =304 @known;
        if ($imageproxy_file = "") {
            return 404;
        }
        if ($imageproxy_is_known) {
            return 418;
        }
        try_files %{candidates} =404;
        types {
%{types}
        }
%{hit_headers}""")
"""The inside of each location that has files."""


def server_block(config: Config, images: Path, *, listen: Sequence[str] | None = None) -> str:
    """Return the file for ``/etc/nginx/sites-enabled/``: upstream, maps and server.

    Args:
        images: the absolute folder that contains the layout.
        listen: values of nginx' ``listen``; None: where ``server.base_url`` says.

    Raises:
        ValueError: nginx cannot connect to any address of ``server.bind``; for a person.
    """
    root, path = str(images), front_path(config)
    unreachable = error_response(Busy())
    candidates = [f"/$imageproxy_file.{name}" for name in _extensions_to_try()]
    caching = caching_of(config)
    unmodified = unmodified_headers(
        "$imageproxy_etag", (("Cache-Control", caching.control), *caching.tagged(_TAGS))
    )
    negotiates = bool(config.negotiate.formats)
    served = (*OUTPUTS, Format.GIF, Format.JSON)
    types = [f"{each.content_type} {each.extension};" for each in served]
    vary = [("Vary", "$imageproxy_vary")] if negotiates else []
    hit_headers = add_headers(
        (
            *unmodified,
            *SHARED,
            ("X-Cache", "hit"),
            ("Content-Disposition", 'inline; filename="$imageproxy_cid.$imageproxy_extension"'),
            ("Last-Modified", ""),
            *vary,
        )
    )
    look_up = _LOOK_UP.substitute(
        candidates=" ".join(candidates), types=lines(12, types), hit_headers=hit_headers
    )
    block = NginxTemplate(files("proxy.tools").joinpath("nginx.conf").read_text(encoding="utf-8"))
    return block.substitute(
        path=path.text,
        below="$imageproxy_below" if path.is_taken_away else "",
        taking_away=taking_away(path),
        elsewhere=elsewhere(path),
        upstream=quoted(_upstream(config.server.binds)),
        conditions=_CONDITIONS + ("$http_origin" if purges_by_url(config) else ""),
        grammar=lines(
            4,
            (
                f"{quoted(f'~{each}')} $imageproxy_preset@$imageproxy_format;"
                for each in canonical(config)
            ),
        ),
        info_grammar=lines(
            4, (f'{quoted(f"~{each}")} "{_INFO_ASKED}";' for each in canonical_info(config))
        ),
        poster_grammar=lines(
            4,
            (
                f"{quoted(f'~{each}')} {quoted(_poster_asked('$imageproxy_preset'))};"
                for each in canonical_posters(config)
            ),
        ),
        poster=_POSTER,
        jpeg=Format.JPEG,
        poster_file=lines(4, _of_default_poster(config, _FILE)),
        poster_etag=lines(4, _of_default_poster(config, _ETAG)),
        look_up=look_up,
        negotiation=_negotiation(config) if negotiates else "",
        wanted=_NEGOTIATED if negotiates else _WANTED,
        format="$imageproxy_output" if negotiates else "$imageproxy_format",
        fingerprints=lines(4, _fingerprints(config)),
        file=_FILE,
        auto=AUTO,
        info=quoted(_INFO_ASKED),
        json=Format.JSON.extension,
        likely_of_auto=FORMATS_OF_AUTO[0].extension,
        likely=lines(4, _likely_extensions()),
        etag=quoted(_ETAG),
        is_known=quoted(f"~{IS_KNOWN}"),
        dollar=_dollar() if "$" in root else "",
        listen=lines(4, listening(config.server.base_url, listen)),
        server_name=server_name(config.server.base_url),
        root=quoted(root.replace("$", f"${{{_DOLLAR}}}")),
        read_timeout=slowest_answer(config),
        candidates=" ".join(candidates),
        extensions=lines(4, types),
        known_headers=add_headers(
            (
                *unmodified,
                ("Last-Modified", ""),
                *vary,
            )
        ),
        unreachable_type=quoted(dict(unreachable.headers)["Content-Type"]),
        unreachable_headers=add_headers(
            (header for header in unreachable.headers if header[0] != "Content-Type"),
            always=True,
        ),
        unreachable_status=unreachable.status,
        unreachable_body=quoted(unreachable.body.decode()),
    )


def _upstream(binds: Sequence[Bind]) -> str:
    for bind in binds:
        if bind.fits_fronts:
            return bind.reached_at
    told = ", ".join(map(str, binds))
    raise ValueError(f"server.bind has no address with a port and without a zone: {told}")


def canonical(config: Config) -> tuple[str, ...]:
    """Return the requests to look up on disk, see ``CANONICAL``; below the path of the front."""
    if purges_by_url(config):
        return _below(config, EXACT)
    return _below(config, TAGGED if config.cdn.kind else CANONICAL)


def canonical_info(config: Config) -> tuple[str, ...]:
    """Return the same requests for ``/info/``."""
    if purges_by_url(config):
        return _below(config, INFO_EXACT)
    return _below(config, INFO_TAGGED if config.cdn.kind else INFO_CANONICAL)


def canonical_posters(config: Config) -> tuple[str, ...]:
    """Return the same requests for posters: none where a purge by URL could not name them."""
    if purges_by_url(config):
        return ()
    return _below(config, POSTER_TAGGED if config.cdn.kind else POSTER_CANONICAL)


def _of_default_poster(config: Config, text: str) -> Iterator[str]:
    """Yield what the map of a fingerprint says where the URL of a poster names no preset."""
    name = config.video.preset
    if (preset := config.presets.get(name)) is not None:
        yield f"{poster_fingerprint(preset)} {quoted(text.replace('$imageproxy_preset', name))};"


def _below(config: Config, patterns: Sequence[str]) -> tuple[str, ...]:
    methods = "^ (?:GET|HEAD) "
    path = front_path(config).pattern
    return tuple(each.replace(methods, f"{methods}{path}", 1) for each in patterns)


def taking_away(path: FrontPath) -> str:
    """Return the map that takes the path of the front away, where the service has none."""
    if not path.is_taken_away:
        return ""
    pattern = quoted(f"~^{path.pattern}(?P<imageproxy_rest>/.*)$")
    return f"""
# The URL as the proxy has it: without the path of server.base_url.
map $request_uri $imageproxy_below {{
    default $request_uri;
    {pattern} $imageproxy_rest;
}}
"""


def elsewhere(path: FrontPath) -> str:
    """Return the location of what is not below the path of the front."""
    if not path.text:
        return ""
    return """
    # The place of your own site.
    location / {
        default_type "text/plain; charset=utf-8";
        return 404 "not found\\n";
    }
"""


def quoted(text: str) -> str:
    """Quote a string for nginx' configuration; only variables (``$``) stay special in it."""
    for plain, escaped in (("\\", "\\\\"), ('"', '\\"'), ("\n", "\\n"), ("\r", "\\r")):
        text = text.replace(plain, escaped)
    return f'"{text}"'


def lines(indent: int, texts: Iterable[str]) -> str:
    """Return one indented line for each text."""
    return "\n".join(" " * indent + text for text in texts)


def listening(base_url: str, listen: Sequence[str] | None) -> Iterator[str]:
    """Yield the lines of where nginx listens: ``listen``, or the port and scheme of the URL."""
    parts = urlsplit(base_url)
    is_tls = parts.scheme == "https"
    if listen is not None:
        yield from (f"listen {each};" for each in listen)
    elif is_tls:
        port, folder = parts.port or 443, f"/etc/letsencrypt/live/{_certificate(base_url)}"
        yield "# As server.base_url says, with certbot's files. Where TLS ends in front of nginx,"
        yield "# these lines are: listen 80; listen [::]:80;"
        yield from (f"listen {each} ssl;" for each in (port, f"[::]:{port}"))
        yield f"ssl_certificate {folder}/fullchain.pem;"
        yield f"ssl_certificate_key {folder}/privkey.pem;"
    else:
        port = parts.port or 80
        yield "# An https:// URL as server.base_url adds the lines of TLS; certbot does so too."
        yield from (f"listen {each};" for each in (port, f"[::]:{port}"))


def _certificate(base_url: str) -> str:
    name = server_name(base_url)
    return "HOST" if name == "_" else name


def server_name(base_url: str) -> str:
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
    yield f"{_INFO_ASKED} {INFO_FINGERPRINT};"
    named = dict(config.presets)
    if (default := named.get(config.video.preset)) is not None:
        named[""] = default
    for name, preset in named.items():
        key = _poster_asked(name)
        if len(key) > MAX_MAP_KEY:
            key = f"~^{key}$"
        yield f"{key} {poster_fingerprint(preset)};"


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
    accepted = lines(
        4, (f'{quoted(f"~*{each}")} "{name}";' for each, name in accept_patterns(formats))
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
    yield '"" $imageproxy_unnamed_extension;'
    for format_ in (*OUTPUTS, Format.JSON):
        yield f"{format_} {format_.extension};"
    yield f"{_POSTER} {Format.JPEG.extension};"


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


def add_headers(headers: Iterable[tuple[str, str]], *, always: bool = False) -> str:
    """Return ``add_header`` lines for the inside of a location."""
    suffix = " always" if always else ""
    return lines(8, (f"add_header {name} {quoted(value)}{suffix};" for name, value in headers))


def slowest_answer(config: Config) -> int:
    """Seconds for a DID and a blob, both twice after a migration, and a transform run twice."""
    transform = config.process.queue_wait + longest(most_seconds(config))
    return math.ceil(4 * config.fetch.timeout + 2 * transform) + 10
