"""The one family of errors, a class per row of the error table (docs/urls.md, "Errors").

Every class knows its HTTP ``status`` and its public ``message``. What a client may see is that
message alone; ``cause`` is for the log, and may name hosts and addresses.

Pure.
"""

from __future__ import annotations

import copy
from typing import ClassVar, Self


class ImageProxyError(Exception):
    """A request that ends in an error of the table.

    Args:
        cause: what happened, for the log; never sent to a client.
    """

    status: ClassVar[int] = 500
    message: ClassVar[str] = "internal server error"

    def __init__(self, cause: str = "") -> None:
        super().__init__(cause or self.message)
        self.cause = cause

    @property
    def public_message(self) -> str:
        """The line a client sees."""
        return self.message

    @property
    def explained(self) -> str:
        """That line and the cause: for an operator's terminal."""
        return f"{self.public_message}: {self.cause}" if self.cause else self.public_message

    def fresh(self) -> Self:
        """A copy without traceback, so that one failure can be raised in many tasks.

        Raising one instance in a thousand waiters would chain a thousand tracebacks onto it.
        """
        twin = copy.copy(self)
        twin.__traceback__ = None
        twin.__context__ = None
        twin.__cause__ = self.__cause__
        return twin


class InvalidRequest(ImageProxyError):
    """The URL does not follow the grammar; nothing was looked up."""

    status = 400
    message = "invalid request"


class InvalidPreset(InvalidRequest):
    """No such preset. ``name`` is echoed, cut and escaped: it comes from the URL."""

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
    """Not a did:plc or did:web in its canonical spelling."""

    message = "invalid DID format"


class InvalidCid(InvalidRequest):
    """Not a sha2-256 CID in its canonical spelling."""

    message = "invalid CID format"


class InvalidHandle(InvalidRequest):
    """Neither a handle nor a DID, or a handle that may not be resolved."""

    message = "invalid handle format"


class InvalidFormat(InvalidRequest):
    """An output format other than jpeg, png, webp and avif."""

    message = "invalid format"


class UnsupportedImage(ImageProxyError):
    """The blob is no image of a supported format."""

    status = 400
    message = "unsupported image format"


class ImageTooLarge(ImageProxyError):
    """The blob exceeds the byte limit, or its picture the pixel limit."""

    status = 400
    message = "image too large"


class ResultTooLarge(ImageTooLarge):
    """The result would exceed what its format can hold; another preset or format may not."""


class BlobNotFound(ImageProxyError):
    """The PDS has no such blob or repo."""

    status = 404
    message = "blob not found"


class DidNotFound(BlobNotFound):
    """The DID does not exist: the directory or the domain says so."""


class RecordNotFound(BlobNotFound):
    """The repo has no such record."""

    message = "no such record"


class AccountNotFound(BlobNotFound):
    """There is no such account, where one was asked for and not a blob of it."""

    message = "no such account"


class HandleNotFound(AccountNotFound):
    """Nobody has the handle, or its DID does not name it in return."""


class NoAvatar(BlobNotFound):
    """The account's profile names none, or one that is refused."""

    message = "profile names no avatar"


class NoBanner(BlobNotFound):
    """The account's profile names none, or one that is refused."""

    message = "profile names no banner"


class BlobBlocked(BlobNotFound):
    """The operator blocked this owner, blob or pair; from outside it looks absent."""


class TakenDown(BlobNotFound):
    """The policy service took it down; from outside it looks absent."""


class UndecodableImage(ImageProxyError):
    """A supported format that does not decode: corrupt or truncated by its owner."""

    status = 422
    message = "image could not be decoded"


class DidUnresolvable(ImageProxyError):
    """The directory or the DID's domain gave no usable document."""

    status = 502
    message = "failed to resolve DID"


class ForbiddenDomain(DidUnresolvable):
    """The DID's domain may not be connected to; from outside it looks like any failure."""


class HandleUnresolvable(DidUnresolvable):
    """Neither DNS nor the handle's domain gave a usable answer."""

    message = "failed to resolve handle"


class AmbiguousHandle(HandleUnresolvable):
    """DNS names several DIDs."""


class NoPdsEndpoint(ImageProxyError):
    """The DID document names no PDS that may be connected to."""

    status = 502
    message = "no PDS endpoint found"


class FetchFailed(ImageProxyError):
    """The PDS refused, reset, or answered badly."""

    status = 502
    message = "failed to fetch blob from PDS"


class RateLimited(FetchFailed):
    """The PDS asks for fewer fetches: a 429, or a 503 that says for how long.

    Not ``Busy``, which is our own want of room: from outside it is a bad answer like any other.

    Args:
        retry_after: seconds that it asks to be left alone for, and is; None where it names none.
    """

    def __init__(self, cause: str = "", retry_after: float | None = None) -> None:
        super().__init__(cause)
        self.retry_after = retry_after


class ForbiddenDestination(FetchFailed):
    """The PDS may not be connected to; from outside it looks like any failed fetch."""


class CidMismatch(ImageProxyError):
    """The bytes are not those the CID names."""

    status = 502
    message = "blob does not match its CID"


class Busy(ImageProxyError):
    """Saturated: the fetch channel or the processing pool has no room now."""

    status = 503
    message = "busy"


class PolicyUnavailable(Busy):
    """Nobody permitted it: the policy service does not answer, and ``policy.fail_open`` is off."""


class ModerationUnreadable(ImageProxyError):
    """What is blocked cannot be told at the moment, so nothing is served."""

    status = 503
    message = "busy"


class UpstreamTimeout(ImageProxyError):
    """The PDS or the directory took too long."""

    status = 504
    message = "request timed out"
