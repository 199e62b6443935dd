"""The URL grammar: parses request paths, and builds public URLs. See docs/urls.md.

    /img/{preset}/plain/{did}/{cid}[@{format}]
    /blob/{did}/{cid}
    /vid/[{preset}/]{did}/{cid}/thumbnail.jpg
    /info/{did}/{cid}
    /avatar/[{preset}/]{actor}[@{format}], and /banner likewise

Pure. The path must be percent-decoded once, as ASGI servers pass it.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from urllib.parse import quote

from proxy.errors import InvalidPreset, InvalidRequest, TrailingSlash
from proxy.model.formats import OUTPUTS, Format, parse_output
from proxy.model.identifiers import OwnNames, parse_cid, parse_did
from proxy.model.keys import KINDS, ActorKey, BlobKey, ImageKey, PosterKey, image_key, poster_key
from proxy.model.picture_info import info_key_of
from proxy.model.presets import Preset, variant_name
from proxy.model.references import parse_actor, split_format


def parse_image_path(presets: Mapping[str, Preset], path: str) -> ImageKey:
    """Parse ``/img/...``, or ``/info/...``, percent-decoded once.

    Raises:
        InvalidRequest: or a subclass that names the invalid part.
    """
    match path.split("/"):
        case ["", "img", preset, "plain", did, name]:
            cid, at, format_ = name.partition("@")
            return image_key(presets, preset, did, cid, format_ if at else None)
        case ["", "info", did, cid]:
            return info_key_of(did, cid)
        case ["", "img", _, "plain", _, _, ""] | ["", "info", _, _, ""]:
            raise TrailingSlash(f"path {path[:200]!a}")
        case _:
            raise InvalidRequest(f"path {path[:200]!a}")


def parse_poster_path(presets: Mapping[str, Preset], preset: str, path: str) -> PosterKey:
    """Parse ``/vid/...``, percent-decoded once.

    Args:
        preset: of a path that names none.

    Raises:
        InvalidRequest: or a subclass that names the invalid part.
    """
    match path.split("/"):
        case ["", "vid", did, cid, "thumbnail.jpg"]:
            return poster_key(presets, preset, did, cid)
        case ["", "vid", named, did, cid, "thumbnail.jpg"]:
            return poster_key(presets, named, did, cid)
        case ["", "vid", *_, "thumbnail.jpg", ""]:
            raise TrailingSlash(f"path {path[:200]!a}")
        case _:
            raise InvalidRequest(f"path {path[:200]!a}")


def parse_blob_path(path: str) -> BlobKey:
    """Parse ``/blob/{did}/{cid}``, percent-decoded once.

    Raises:
        InvalidRequest: or a subclass that names the invalid part.
    """
    match path.split("/"):
        case ["", "blob", did, cid]:
            return BlobKey(parse_did(did), parse_cid(cid))
        case ["", "blob", _, _, ""]:
            raise TrailingSlash(f"path {path[:200]!a}")
        case _:
            raise InvalidRequest(f"path {path[:200]!a}")


def parse_actor_path(
    presets: Mapping[str, Preset], path: str, *, own_names: OwnNames = False
) -> ActorKey:
    """Parse ``/avatar/...`` or ``/banner/...``, percent-decoded once.

    Raises:
        InvalidRequest: or a subclass that names the first invalid part.
    """
    match path.split("/"):
        case ["", _, _, ""] | ["", _, _, _, ""]:
            raise TrailingSlash(f"path {path[:200]!a}")
        case ["", first, name] if first in KINDS:
            preset = None
        case ["", first, preset, name] if first in KINDS:
            if preset not in presets:
                raise InvalidPreset(preset, presets)
        case _:
            raise InvalidRequest(f"path {path[:200]!a}")
    kind = next(kind for kind in KINDS if kind == first)
    actor, format_ = split_format(name)
    return ActorKey(
        kind,
        preset,
        parse_actor(actor, own_names=own_names),
        None if format_ is None else parse_output(format_),
    )


def image_url(key: ImageKey, base: str = "") -> str:
    """Return the URL of a result below ``base`` (``https://host``, or empty for only a path).

    Percent signs in a did:web with a port are escaped, because the server decodes once.
    """
    if key.format is Format.JSON:
        return info_url(key.blob, base)
    if isinstance(key, PosterKey):
        return poster_url(key, base)
    suffix = "" if key.format is None else f"@{key.format.value}"
    did = quote(key.blob.did, safe=":")
    return f"{base.rstrip('/')}/img/{key.preset}/plain/{did}/{key.blob.cid}{suffix}"


def srcset(
    presets: Mapping[str, Preset],
    preset: str,
    did: str,
    cid: str,
    format_: str | None = None,
    base: str = "",
) -> str:
    """Return the value of an ``<img srcset>``: a preset and its variants, narrowest first.

    A width is the width of the preset's box. With ``contain``, a smaller picture gives a narrower
    result.

    Args:
        presets: the configured presets, ``Config.presets``.
        base: see ``image_url``.

    Raises:
        InvalidPreset, InvalidDid, InvalidCid, InvalidFormat: for the first invalid part.
    """
    image_key(presets, preset, did, cid, format_)
    names = {presets[preset].width: preset} | {
        width: variant_name(preset, width) for width in presets[preset].variants
    }
    keys = {width: image_key(presets, name, did, cid, format_) for width, name in names.items()}
    return ", ".join(f"{image_url(keys[width], base)} {width}w" for width in sorted(keys))


def poster_url(key: PosterKey, base: str = "") -> str:
    """Return the URL of a poster below ``base``, with its preset."""
    did = quote(key.blob.did, safe=":")
    return f"{base.rstrip('/')}/vid/{key.preset}/{did}/{key.blob.cid}/thumbnail.jpg"


def info_url(blob: BlobKey, base: str = "") -> str:
    """Return the URL of what is told of a picture, below ``base``."""
    return f"{base.rstrip('/')}/info/{quote(blob.did, safe=':')}/{blob.cid}"


def blob_url(blob: BlobKey, base: str = "") -> str:
    """Return the URL of an original below ``base``."""
    return f"{base.rstrip('/')}/blob/{quote(blob.did, safe=':')}/{blob.cid}"


def public_urls(presets: Iterable[str], blob: BlobKey, base: str) -> list[str]:
    """Return every URL of a blob below ``base``: results, what is told of it, and the original.

    But for posters, which only browsers keep where a CDN is purged by URL (``web.shareable``).
    """
    # Without fingerprints, which no URL has: of thousands of URLs they were most of the time.
    images = (
        image_url(ImageKey(preset, blob, output, ""), base)
        for preset in presets
        for output in (None, *OUTPUTS)
    )
    return [*images, info_url(blob, base), blob_url(blob, base)]
