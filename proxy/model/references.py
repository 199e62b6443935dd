"""Parses references that people paste: a handle, a DID, a link to a post or a profile, the URL of
an image. Pure."""

from __future__ import annotations

import re
from dataclasses import dataclass
from urllib.parse import unquote, urlsplit

from proxy.errors import InvalidRequest
from proxy.model.identifiers import Cid, Did, Handle, parse_cid, parse_did, parse_handle

MAX_LENGTH = 2048

POST = "app.bsky.feed.post"

# atproto, NSID and Record Key specifications; not all limits of length are checked.
_COLLECTION = re.compile(r"[a-zA-Z][a-zA-Z0-9-]*(?:\.[a-zA-Z0-9-]+){2,}")
_RECORD_KEY = re.compile(r"(?!\.\.?$)[a-zA-Z0-9._:~-]{1,512}")


@dataclass(frozen=True, slots=True)
class Reference:
    """An account, or one of its records or blobs.

    Attributes:
        record: collection and key of a record; None if the reference does not name a record.
        cid: the CID of a blob; None if the reference does not name a blob.
    """

    actor: Did | Handle
    record: tuple[str, str] | None = None
    cid: Cid | None = None


def parse_actor(text: str, *, allow_test: bool = False) -> Did | Handle:
    """A DID, or a handle with or without its ``@``.

    Raises:
        InvalidDid: it begins like a DID, but is not one.
        InvalidHandle: it is anything else that is not a handle.
    """
    if text.startswith("did:"):
        return parse_did(text)
    return parse_handle(text.removeprefix("@"), allow_test=allow_test)


def split_format(name: str) -> tuple[str, str | None]:
    """Split a name into the account and the format after an ``@``, if there is one.

    The ``@`` that a handle may begin with stays with the account.
    """
    text, at, format_ = name[1:].partition("@")
    return name[:1] + text, format_ if at else None


def parse_reference(text: str, *, allow_test: bool = False) -> Reference:
    """Parse a pasted reference. These forms are accepted:

    - a handle or a DID; after it, separated by a space or a slash, there may be a blob's CID
    - ``at://ACTOR``, ``at://ACTOR/COLLECTION/KEY``
    - ``https://HOST/profile/ACTOR``, ``https://HOST/profile/ACTOR/post/KEY``: links of bsky.app,
      and links of other apps with the same form
    - a URL of any host, or its path, by the grammar of ``proxy.urls``

    Raises:
        InvalidRequest: the reference has none of these forms; or a subclass for the part that is
            wrong.
    """
    text = text.strip()
    if len(text) > MAX_LENGTH:
        raise InvalidRequest(f"a reference of {len(text)} characters")
    if text.startswith("at://"):
        return _of_parts(text.removeprefix("at://").rstrip("/").split("/"), allow_test)
    if text.startswith(("https://", "http://", "/")):
        try:
            path = unquote(urlsplit(text).path)
        except ValueError:  # its host is not valid
            raise InvalidRequest(f"URL {text[:200]!a}") from None
        return _of_path(path.strip("/").split("/"), allow_test)
    actor, *cids = re.split(r"[\s/]+", text, maxsplit=1)
    return Reference(
        parse_actor(actor, allow_test=allow_test), cid=parse_cid(cids[0]) if cids else None
    )


def _of_path(parts: list[str], allow_test: bool) -> Reference:
    match parts:
        case ["profile", actor, "post", key]:
            return _of_parts([actor, POST, key], allow_test)
        case ["profile", actor, *_]:
            return _of_parts([actor], allow_test)
        case [*_, "avatar" | "banner", name] | [*_, "avatar" | "banner", _, name]:
            return _of_parts([split_format(name)[0]], allow_test)
        case [*_, "img", _, "plain", did, name]:
            return Reference(parse_did(did), cid=parse_cid(name.partition("@")[0]))
        case [*_, "blob", did, cid]:
            return Reference(parse_did(did), cid=parse_cid(cid))
        case _:
            raise InvalidRequest(f"path {'/'.join(parts)[:200]!a}")


def _of_parts(parts: list[str], allow_test: bool) -> Reference:
    actor = parse_actor(parts[0], allow_test=allow_test)
    match parts[1:]:
        case []:
            return Reference(actor)
        case [collection, key] if _COLLECTION.fullmatch(collection) and _RECORD_KEY.fullmatch(key):
            return Reference(actor, (collection, key))
        case _:
            raise InvalidRequest(f"record {'/'.join(parts)[:200]!a}")
