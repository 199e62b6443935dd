"""The error classes of the service, one per row of the error table (docs/urls.md, "Errors").

Every class has its HTTP ``status`` and its public ``message``. A client sees only that message;
``cause`` is for the log, and may contain hosts and addresses.

Pure.
"""

from __future__ import annotations

import copy
from typing import ClassVar, Self


class ImageProxyError(Exception):
    """A request that ends in an error of the table.

    Args:
        cause: the reason, for the log; never sent to a client.
    """

    status: ClassVar[int] = 500
    message: ClassVar[str] = "internal server error"

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


class InvalidRequest(ImageProxyError):
    """The URL does not follow the grammar; nothing was looked up."""

    status = 400
    message = "invalid request"


class InvalidPreset(InvalidRequest):
    """No such preset. The message repeats ``name`` shortened and escaped: it comes from a URL."""

    message = "invalid preset"

    def __init__(self, name: str) -> None:
        super().__init__(f"no preset {name[:64]!a}")
        self.name = name

    def __reduce__(self) -> tuple[type[Self], tuple[str]]:
        return type(self), (self.name,)

    @property
    def public_message(self) -> str:
        return f"invalid preset: {ascii(self.name[:64])[1:-1]}"


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
    """An output format other than jpeg, png, webp and avif."""

    message = "invalid format"


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


class RateLimited(FetchFailed):
    """The PDS asks for fewer fetches: a 429, or a 503 that gives a duration.

    Differs from ``Busy``, our own lack of capacity. Clients see an ordinary failed fetch.

    Args:
        retry_after: seconds that the PDS asks us to pause, and we do; None if it gives none.
    """

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
