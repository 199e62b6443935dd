"""What the sender needs of a CDN's API: requests that purge, and the meaning of answers. Pure."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Protocol, TypeVar

from pydantic import SecretStr

from proxy.egress.circuit import retry_after
from proxy.egress.endpoint import Origin
from proxy.model.cache_tags import content_tag, owner_tag
from proxy.model.identifiers import Cid
from proxy.model.keys import BlobKey
from proxy.model.selection import Selection

T = TypeVar("T")

MAX_REASON = 300
"""Characters of a CDN's message that are kept."""


@dataclass(frozen=True, slots=True)
class ApiRequest:
    """A POST request.

    Attributes:
        headers: they contain the token, so ``repr`` does not show them.
    """

    target: str
    headers: Mapping[str, str] = field(repr=False)
    content: bytes


Post = Callable[[float], ApiRequest]
"""Makes a request; it may be sent for a few minutes after the given time (since the epoch)."""


@dataclass(frozen=True, slots=True)
class ApiResponse:
    """The answer to an ``ApiRequest``.

    Attributes:
        headers: by lower-case name.
        body: the first bytes of the body.
    """

    status: int
    headers: Mapping[str, str]
    body: bytes


@dataclass(frozen=True, slots=True)
class Failure:
    """A request that purged nothing.

    Attributes:
        reason: a text for the operator, without the token.
        is_refusal: the CDN refused what this request names; it may accept others.
        wait: seconds that the CDN asks to wait; 0: it does not ask.
    """

    reason: str
    is_refusal: bool = False
    wait: float = 0.0


class CdnApi(Protocol):
    """The API of one CDN.

    Attributes:
        origin: the origin of the API.
    """

    @property
    def origin(self) -> Origin: ...

    def posts(self, selections: Sequence[Selection]) -> list[Post]:
        """Return the requests that together purge every copy of ``selections``."""
        ...

    def failure(self, reply: ApiResponse, wall_clock: float) -> Failure | None:
        """Return the failure that an answer reports; None: what was named is purged. Total."""
        ...


def tags_of(selections: Sequence[Selection]) -> list[str]:
    """Return the tags of ``selections``, each once.

    That of a pair is the tag of its bytes: of other owners who have them, copies are fetched again.
    """
    return list(dict.fromkeys(_tag_of(each) for each in selections))


def _tag_of(selection: Selection) -> str:
    if selection.did is not None and selection.cid is None:
        return owner_tag(selection.did)
    return content_tag(selection.cid or Cid(""))


def pairs_and_others(
    selections: Sequence[Selection],
) -> tuple[list[BlobKey], list[Selection]]:
    """Divide into the blobs of an owner, which have URLs, and all others, which have tags alone."""
    pairs = [BlobKey(each.did, each.cid) for each in selections if each.did and each.cid]
    return pairs, [each for each in selections if not (each.did and each.cid)]


def in_batches(names: Sequence[T], size: int) -> list[Sequence[T]]:
    """Divide into lists of at most ``size``."""
    return [names[start : start + size] for start in range(0, len(names), size)]


def failure_of(
    reply: ApiResponse,
    message: str,
    token: SecretStr,
    wall_clock: float,
    *,
    is_refusal: bool | None = None,
) -> Failure:
    """Return the failure with a status and what the CDN says, as the log may show it.

    Args:
        is_refusal: None: as the status says.
    """
    reason = f"status {reply.status}: {message}" if message else f"status {reply.status}"
    # If a CDN repeats the request in its answer, the token must not be stored or logged.
    reason = reason.replace(token.get_secret_value(), "***")
    if is_refusal is None:
        # Too many requests, a refused token, a failing proxy: anything else would fail too.
        concerns_all = reply.status in (401, 403, 407, 408, 429) or not 400 <= reply.status < 500
        is_refusal = not concerns_all
    wait = retry_after(reply.headers.get("retry-after"), wall_clock)
    return Failure(ascii(reason)[1:-1][:MAX_REASON], is_refusal=is_refusal, wait=wait)
