"""How a policy service is asked about a blob, and what it means by its answer. Pure.

``status``: ``GET {policy.url}/{did}/{cid}`` answers 200 to permit and 410 to take down.

``porxie``: ``GET {policy.url}/xrpc/dev.blooym.porxie.getBlobPolicy`` answers 200 with JSON whose
``policy`` is the variant ``#allowed`` or ``#forbidden`` (Porxie 0.2.0 and later, by its Lexicon).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from enum import StrEnum
from typing import Final, Literal, NamedTuple
from urllib.parse import quote

import orjson

from proxy.model.keys import BlobKey

Name = Literal["status", "porxie"]

GET_BLOB_POLICY: Final = "dev.blooym.porxie.getBlobPolicy"


class Verdict(StrEnum):
    """The answer of the policy service about a blob."""

    PERMITTED = "permitted"
    TAKEN_DOWN = "taken_down"


class Protocol(NamedTuple):
    """One way to ask.

    Attributes:
        target_of: returns what follows the path of ``policy.url`` in the question about a blob.
        verdict_of: returns what a status and a body mean, or None if they are no answer. Total.
    """

    target_of: Callable[[BlobKey], str]
    verdict_of: Callable[[int, bytes], Verdict | None]


def _path(blob: BlobKey) -> str:
    return f"/{quote(blob.did, safe=':')}/{blob.cid}"


def _by_status(status: int, _body: bytes) -> Verdict | None:
    return {200: Verdict.PERMITTED, 410: Verdict.TAKEN_DOWN}.get(status)


def _query(blob: BlobKey) -> str:
    return f"/xrpc/{GET_BLOB_POLICY}?did={quote(blob.did, safe=':')}&cid={blob.cid}"


_VARIANTS = {
    f"{GET_BLOB_POLICY}#allowed": Verdict.PERMITTED,
    f"{GET_BLOB_POLICY}#forbidden": Verdict.TAKEN_DOWN,
}


def _by_variant(status: int, body: bytes) -> Verdict | None:
    if status != 200:
        return None
    try:
        match orjson.loads(body):
            case {"policy": {"$type": str(variant)}}:
                return _VARIANTS.get(variant)
    except orjson.JSONDecodeError:
        pass
    return None


PROTOCOLS: Final[Mapping[Name, Protocol]] = {
    "status": Protocol(_path, _by_status),
    "porxie": Protocol(_query, _by_variant),
}
