"""Parses what people type and paste: a handle, a DID, a link to a post or a profile, the URL of an
image. Pure."""

from __future__ import annotations

import re
from dataclasses import dataclass
from urllib.parse import parse_qsl, unquote, urlsplit

from proxy.errors import InvalidHandle, InvalidRequest
from proxy.model.identifiers import Cid, Did, Handle, OwnNames, parse_cid, parse_did, parse_handle
from proxy.model.keys import KINDS, Kind, Medium
from proxy.model.selection import Selection

MAX_LENGTH = 2048

_BARE = re.compile(r"[a-zA-Z0-9_-]*")
"""A word that is no handle, which has a dot, and neither a DID nor a URL, which have a colon."""

_INVISIBLE = dict.fromkeys(
    (
        *range(0x202A, 0x202F),
        *range(0x2066, 0x206A),
        *range(0x200B, 0x2010),
        *(0x00AD, 0x061C, 0x2060, 0xFEFF),
    )
)
"""Marks of writing direction, spaces and joiners without width, and soft hyphens: apps put them
around handles that are copied, and into them."""

_BARE_URL = re.compile(
    r"[^\s/:@]+(?::[0-9]+)?(?:(?:/[^\s/]+){2}|/at://)|(?:www\.)?tangled\.(?:org|sh)/[^\s/]*[@.:]",
    re.IGNORECASE,
)
"""How a URL without its scheme begins. A handle has at most a CID after it, so one slash, and a
CID is of letters and digits."""

_TANGLED = frozenset(("tangled.org", "www.tangled.org", "tangled.sh", "www.tangled.sh"))
"""Hosts whose links to a profile are an account alone: ``/@ACTOR`` or ``/ACTOR``."""

POST = "app.bsky.feed.post"
GALLERY = "social.grain.gallery"

_SHOWN_BY = {
    "post": POST,
    "feed": "app.bsky.feed.generator",
    "lists": "app.bsky.graph.list",
    "gallery": GALLERY,
}
"""The collection of the record that a link below a profile shows, by the word in the link."""

_GET_BLOB = "com.atproto.sync.getBlob"

_STARTER_PACK = "app.bsky.graph.starterpack"

# atproto, NSID and Record Key specifications; not all limits of length are checked.
_COLLECTION = re.compile(r"[a-zA-Z][a-zA-Z0-9-]*(?:\.[a-zA-Z0-9-]+){2,}")
_RECORD_KEY = re.compile(r"(?!\.\.?$)[a-zA-Z0-9._:~-]{1,512}")


@dataclass(frozen=True, slots=True)
class Reference:
    """An account, or one of its records or blobs.

    Attributes:
        record: collection and key of a record; None if the reference does not name a record.
        cid: the CID of a blob; None if the reference does not name a blob.
        kind: which picture of the profile; None if the reference does not name one.
        medium: of the blob, as far as the reference tells.
    """

    actor: Did | Handle
    record: tuple[str, str] | None = None
    cid: Cid | None = None
    kind: Kind | None = None
    medium: Medium = "image"


def visible(text: str) -> str:
    """``text`` without the marks that nobody sees, and the space around it. Total."""
    return text.translate(_INVISIBLE).strip()


def parse_actor(text: str, *, own_names: OwnNames = False) -> Did | Handle:
    """A DID, or a handle with or without its ``@``; invisible marks do not count (``visible``).

    Raises:
        InvalidDid: it begins like a DID, but is not one.
        InvalidHandle: it is anything else that is not a handle.
    """
    text = text.translate(_INVISIBLE)
    if text.startswith("did:"):
        return parse_did(text)
    return parse_handle(text.removeprefix("@"), own_names=own_names)


def parse_account(text: str, *, own_names: OwnNames = False) -> Did | Handle:
    """The account of a DID, a handle (``parse_actor``), or a link that names nothing more.

    Raises:
        InvalidRequest: it names no account, or more than it: a record or a blob of it.
    """
    if not re.search(r"[\s/]", text := visible(text)):
        return parse_actor(text, own_names=own_names)
    reference = parse_reference(text, own_names=own_names)
    if reference != Reference(reference.actor):
        raise InvalidHandle(f"{text[:200]!a} names more than an account")
    return reference.actor


def split_format(name: str) -> tuple[str, str | None]:
    """Split a name into the account and the format after an ``@``, if there is one.

    The ``@`` that a handle may begin with stays with the account.
    """
    name = name.translate(_INVISIBLE)
    text, at, format_ = name[1:].partition("@")
    return name[:1] + text, format_ if at else None


def parse_reference(text: str, *, own_names: OwnNames = False) -> Reference:
    """Parse a pasted reference. These forms are accepted:

    - a handle or a DID; after it, separated by a space or a slash, there may be a blob's CID
    - ``at://ACTOR``, ``at://ACTOR/COLLECTION/KEY``
    - ``https://HOST/profile/ACTOR``, ``https://HOST/profile/ACTOR/post/KEY``, and likewise
      ``feed``, ``lists``, ``gallery`` and ``https://HOST/starter-pack/ACTOR/KEY``: links of
      bsky.app, of Grain, and of other apps with the same form. They name the record that they show
    - ``https://tangled.org/@ACTOR``, with or without its ``@``, and of tangled.sh
    - ``https://HOST/at://ACTOR…``: links of explorers of repositories; a post embedded elsewhere
    - a URL of any host, or its path, by the grammar of ``proxy.urls``; Bluesky's own of a video or
      its poster; what a PDS answers with a blob (``com.atproto.sync.getBlob``)

    A URL may be without its scheme. Invisible marks do not count (``visible``).

    Raises:
        InvalidRequest: the reference has none of these forms; or a subclass for the part that is
            wrong.
    """
    text = visible(text)
    if len(text) > MAX_LENGTH:
        raise InvalidRequest(f"a reference of {len(text)} characters")
    if text[:5].lower() == "at://":
        return _of_parts(text[5:].rstrip("/").split("/"), own_names)
    if _BARE_URL.match(text):
        text = f"https://{text}"
    if text.lower().startswith(("https://", "http://", "/")):
        try:
            url = urlsplit(text)
        except ValueError:  # its host is not valid
            raise InvalidRequest(f"URL {text[:200]!a}") from None
        parts = unquote(url.path).strip("/").split("/")
        if url.hostname in _TANGLED and len(parts) == 1 and re.search(r"[.:]", parts[0]):
            return _of_parts([parts[0].removeprefix("@")], own_names)
        if parts[-2:] == ["xrpc", _GET_BLOB]:
            return _of_query(url.query)
        return _of_path(parts, own_names)
    actor, *cids = re.split(r"[\s/]+", text, maxsplit=1)
    return Reference(
        parse_actor(actor, own_names=own_names), cid=parse_cid(cids[0]) if cids else None
    )


def parse_selection(text: str, *, own_names: OwnNames = False) -> Selection | Reference:
    """Parse what an operator names: a CID, or what ``parse_reference`` accepts.

    Returns:
        What the text alone selects; or a reference, whose account has to be asked for it.

    Raises:
        InvalidRequest: as ``parse_reference``.
    """
    if _BARE.fullmatch(bare := visible(text)):
        return Selection(cid=parse_cid(bare))
    return selection_in(parse_reference(text, own_names=own_names))


def selection_in(reference: Reference) -> Selection | Reference:
    """The selection of a reference that names a DID, alone or with a blob; else the reference."""
    is_all = reference.record is None and reference.kind is None
    if is_all and reference.actor.startswith("did:"):
        return Selection(Did(reference.actor), reference.cid)
    return reference


def _of_query(query: str) -> Reference:
    given = dict(parse_qsl(query))
    return Reference(parse_did(given.get("did", "")), cid=parse_cid(given.get("cid", "")))


def _of_path(parts: list[str], own_names: OwnNames) -> Reference:
    match parts:
        case ["profile", actor, word, key, *_] if word in _SHOWN_BY:
            return _of_parts([actor, _SHOWN_BY[word], key], own_names)
        case ["starter-pack" | "start", actor, key]:
            return _of_parts([actor, _STARTER_PACK, key], own_names)
        case ["profile", actor, *_]:
            return _of_parts([actor], own_names)
        case ["at:", *rest]:
            return _of_parts([*filter(None, rest)] or [""], own_names)
        case ["embed", actor, collection, key] if _COLLECTION.fullmatch(collection):
            return _of_parts([actor, collection, key], own_names)
        case [*_, ("avatar" | "banner") as first, _, name]:  # a preset may be called "banner"
            return _of_profile(first, name, own_names)
        case [*_, ("avatar" | "banner") as first, name]:
            return _of_profile(first, name, own_names)
        case [*_, "img", _, "plain", did, name]:
            return Reference(parse_did(did), cid=parse_cid(name.partition("@")[0]))
        case [*_, "blob" | "info", did, cid]:
            return Reference(parse_did(did), cid=parse_cid(cid))
        case [*_, "vid", _, did, cid, "thumbnail.jpg"]:
            return Reference(parse_did(did), cid=parse_cid(cid), medium="video")
        case [*_, "vid", did, cid, "thumbnail.jpg"]:
            return Reference(parse_did(did), cid=parse_cid(cid), medium="video")
        case [*_, "watch", did, cid, "thumbnail.jpg" | "playlist.m3u8"]:
            return Reference(parse_did(did), cid=parse_cid(cid), medium="video")
        case _:
            raise InvalidRequest(f"path {'/'.join(parts)[:200]!a}")


def _of_profile(first: str, name: str, own_names: OwnNames) -> Reference:
    actor = parse_actor(split_format(name)[0], own_names=own_names)
    return Reference(actor, kind=next(kind for kind in KINDS if kind == first))


def _of_parts(parts: list[str], own_names: OwnNames) -> Reference:
    actor = parse_actor(parts[0], own_names=own_names)
    match parts[1:]:
        case []:
            return Reference(actor)
        case [collection, key] if _COLLECTION.fullmatch(collection) and _RECORD_KEY.fullmatch(key):
            return Reference(actor, (collection, key))
        case _:
            raise InvalidRequest(f"record {'/'.join(parts)[:200]!a}")
