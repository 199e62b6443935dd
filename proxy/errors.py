"""The error classes of the service, one per row of the error table (docs/urls.md, "Errors").

Every class has its HTTP ``status`` and its public ``message``. A client sees only that message;
``cause`` is for the log, and may contain hosts and addresses.

Pure.
"""

from __future__ import annotations

import copy
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from itertools import takewhile
from typing import ClassVar, Self

MOST_NAMED = 4
"""Names of presets that an answer suggests."""


class ImageProxyError(Exception):
    """A request that ends in an error of the table.

    Args:
        cause: the reason, for the log; never sent to a client.
    """

    status: ClassVar[int] = 500
    message: ClassVar[str] = "internal server error"
    retry_after: float | None = None
    """Seconds after which a client should ask again; None if it is not known."""
    host: str = ""
    """The host that failed, for the log; empty if it was none, or is not known."""

    def __init__(self, cause: str = "") -> None:
        super().__init__(cause or self.message)
        self.cause = cause

    @property
    def public_message(self) -> str:
        """The message that a client sees."""
        return self.message

    @property
    def explained(self) -> str:
        """The public message and the cause, for an operator's terminal."""
        return f"{self.public_message}: {self.cause}" if self.cause else self.public_message

    def fresh(self) -> Self:
        """Return a copy without traceback and causes, for other tasks to raise, or to remember.

        Raising one instance in a thousand waiters would add a thousand tracebacks to it. And the
        traceback of a cause keeps what its functions had in hand, such as megabytes of a body.
        """
        twin = copy.copy(self)
        twin.__traceback__ = twin.__context__ = twin.__cause__ = None
        return twin


@contextmanager
def failing_at(host: str) -> Iterator[None]:
    """Name ``host`` in the errors that the block raises, but where this service was busy."""
    try:
        yield
    except ImageProxyError as error:
        if not isinstance(error, Busy):
            error.host = error.host or host
        raise


class InvalidRequest(ImageProxyError):
    """The URL does not follow the grammar; nothing was looked up."""

    status = 400
    message = "invalid request"


class TrailingSlash(InvalidRequest):
    """A URL of the grammar, and a slash after it."""

    message = "invalid request: a trailing slash"


class InvalidPreset(InvalidRequest):
    """No such preset. The message repeats ``name`` shortened and escaped: it comes from a URL.

    Args:
        known: the names that exist; clients are told those that begin most like ``name``.
    """

    message = "invalid preset"

    def __init__(self, name: str, known: Iterable[str] = ()) -> None:
        super().__init__(f"no preset {name[:64]!a}")
        self.name = name
        self._known = tuple(known)

    def __reduce__(self) -> tuple[type[Self], tuple[str, tuple[str, ...]]]:
        return type(self), (self.name, self._known)

    @property
    def named(self) -> str:
        """The message without suggestions."""
        return f"{self.message}: {_plain(self.name, 64)}"

    @property
    def public_message(self) -> str:
        if not self._known:
            return self.named
        near = sorted(self._known, key=lambda each: -_alike(each, self.name))
        names = [each for each in self._known if each in near[:MOST_NAMED]]
        more = ["…"] if len(self._known) > MOST_NAMED else []
        return f"{self.named} ({', '.join([*names, *more])})"


class InvalidDid(InvalidRequest):
    """Not a did:plc or did:web in canonical form."""

    message = "invalid DID format"


class InvalidCid(InvalidRequest):
    """Not a sha2-256 CID in canonical form."""

    message = "invalid CID format"


class InvalidHandle(InvalidRequest):
    """Neither a handle nor a DID, or a handle that may not be resolved."""

    message = "invalid handle format"


class InvalidFormat(InvalidRequest):
    """An output format other than those that exist. The message is as ``InvalidPreset`` has it.

    Args:
        known: the names that exist.
    """

    message = "invalid format"

    def __init__(self, name: str, known: Iterable[str] = ()) -> None:
        super().__init__(f"format {name[:32]!a}")
        self.name = name
        self._known = tuple(known)

    def __reduce__(self) -> tuple[type[Self], tuple[str, tuple[str, ...]]]:
        return type(self), (self.name, self._known)

    @property
    def public_message(self) -> str:
        known = f" ({', '.join(self._known)})" if self._known else ""
        return f"{self.message}: {_plain(self.name, 32)}{known}"


class UnsupportedImage(ImageProxyError):
    """The blob is not an image of a supported format."""

    status = 400
    message = "unsupported image format"


class ImageTooLarge(ImageProxyError):
    """The blob exceeds the byte limit, or its image exceeds the pixel limit."""

    status = 400
    message = "image too large"


class ResultTooLarge(ImageTooLarge):
    """The result is too large for its format; another preset or format may fit."""


class BlobNotFound(ImageProxyError):
    """The PDS has no such blob or repo."""

    status = 404
    message = "blob not found"


class DidNotFound(BlobNotFound):
    """The DID does not exist, according to the directory or the domain."""


class RecordNotFound(BlobNotFound):
    """The repo has no such record."""

    message = "no such record"


class AccountNotFound(BlobNotFound):
    """No such account; for requests that name an account, not a blob."""

    message = "no such account"


class HandleNotFound(AccountNotFound):
    """No account has the handle, or its DID document does not name the handle."""


class NoAvatar(BlobNotFound):
    """The account's profile names no avatar, or one that is refused."""

    message = "profile names no avatar"


class NoBanner(BlobNotFound):
    """The account's profile names no banner, or one that is refused."""

    message = "profile names no banner"


class BlobBlocked(BlobNotFound):
    """The operator blocked this owner, blob or pair. Clients see a missing blob."""


class TakenDown(BlobNotFound):
    """The policy service took the blob down. Clients see a missing blob."""


class UndecodableImage(ImageProxyError):
    """A supported format that cannot be decoded.

    The owner's file is corrupt or truncated, costs more than any real picture, or ended its worker.
    """

    status = 422
    message = "image could not be decoded"


class ResultTooCostly(UndecodableImage):
    """The result took too much CPU time, or ended its worker; another preset or format may do."""


class DidUnresolvable(ImageProxyError):
    """The directory or the DID's domain gave no usable document."""

    status = 502
    message = "failed to resolve DID"


class ForbiddenDomain(DidUnresolvable):
    """Connecting to the DID's domain is forbidden. Clients see an ordinary failure."""


class HandleUnresolvable(DidUnresolvable):
    """Neither DNS nor the handle's domain gave a usable answer."""

    message = "failed to resolve handle"


class AmbiguousHandle(HandleUnresolvable):
    """DNS names several DIDs."""


class NoPdsEndpoint(ImageProxyError):
    """The DID document names no PDS to which connecting is allowed."""

    status = 502
    message = "no PDS endpoint found"


class FetchFailed(ImageProxyError):
    """The PDS refused or reset the connection, or sent a bad response."""

    status = 502
    message = "failed to fetch blob from PDS"


class RateLimited(ImageProxyError):
    """The PDS or the directory asks for fewer requests: a 429, or a 503 that gives a duration.

    Differs from ``Busy``, our own lack of capacity; clients see the same.

    Args:
        retry_after: seconds for which the host is left alone; None if it is not.
    """

    status = 503
    message = "busy"

    def __init__(self, cause: str = "", retry_after: float | None = None) -> None:
        super().__init__(cause)
        self.retry_after = retry_after


class ForbiddenDestination(FetchFailed):
    """Connecting to the PDS is forbidden. Clients see an ordinary failed fetch."""


class CidMismatch(ImageProxyError):
    """The bytes do not match the CID."""

    status = 502
    message = "blob does not match its CID"


class Busy(ImageProxyError):
    """Overloaded: the fetch channel or the processing pool is full."""

    status = 503
    message = "busy"


class PolicyUnavailable(Busy):
    """No permission: the policy service does not answer, and ``policy.fail_open`` is off."""


class ModerationUnreadable(ImageProxyError):
    """The blocks cannot be read at the moment, so nothing is served."""

    status = 503
    message = "busy"


class UpstreamTimeout(ImageProxyError):
    """The PDS or the directory took too long."""

    status = 504
    message = "request timed out"


def _plain(text: str, length: int) -> str:
    return ascii(text[:length])[1:-1]


def _alike(one: str, other: str) -> int:
    """With how many equal characters both begin."""
    return sum(1 for _ in takewhile(lambda pair: pair[0] == pair[1], zip(one, other, strict=False)))
