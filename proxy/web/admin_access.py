"""Who may use the operator's routes: whoever has one of the configured tokens."""

from __future__ import annotations

import base64
import binascii
import hmac
from typing import Literal

import structlog
import trio
from quart import Response, request
from werkzeug.datastructures import WWWAuthenticate
from werkzeug.exceptions import TooManyRequests, Unauthorized

from proxy.config import Config
from proxy.moderation.store import ADMIN
from proxy.web.failed_tokens import FailedTokens
from proxy.web.responder import LOGGED, Responder

Scheme = Literal["bearer", "basic"]

log = structlog.get_logger(__name__)


class AdminAccess:
    """Checks the token of a request. One for all routes, so that guesses are counted together.

    Attributes:
        is_open: whether any token is configured.
    """

    def __init__(self, config: Config) -> None:
        named = [(ADMIN, config.server.admin_token), *config.server.admin_tokens.items()]
        values = [(name, token.get_secret_value().encode()) for name, token in named]
        self._tokens = [(name, token) for name, token in values if token]
        self._failed = FailedTokens()
        self.is_open = bool(self._tokens)

    def name_of_caller(self, scheme: Scheme) -> str:
        """Return the name of the owner of the token that the request under way has.

        Args:
            scheme: where the token is: alone (RFC 6750), or the password of ``admin`` (RFC 7617,
                as atproto's specification of XRPC has it for administration).

        Raises:
            Unauthorized: there is no token, or it is nobody's.
            TooManyRequests: too many wrong ones came from this address.
        """
        address, now = _address(), trio.current_time()
        if (seconds := self._failed.wait(address, now)) is not None:
            raise TooManyRequests(retry_after=seconds)
        header = request.headers.get("Authorization", "")
        used, _, given = header.partition(" ")
        is_meant = used.lower() == scheme
        secret = given.strip().encode()
        if is_meant and scheme == "basic":
            secret = _password_of_admin(secret)
        name = self._owner_of(secret)
        if is_meant and name is not None:
            return name
        cause = "a token that is nobody's" if is_meant else f"no {scheme} token"
        if header and self._failed.add(address, now):
            cause += f"; {address} has to wait"
        log_refusal(401, cause)
        raise Unauthorized(www_authenticate=WWWAuthenticate(scheme))

    def _owner_of(self, given: bytes) -> str | None:
        """Return the name of the token's owner. Every token is compared, in constant time."""
        found = [name for name, token in self._tokens if hmac.compare_digest(given, token)]
        return found[0] if found else None


def counted(response: Response, responder: Responder) -> Response:
    """Count an answer of the operator's routes, and keep it out of caches."""
    if responder.service is not None:
        responder.service.metrics.admin_requests.labels(str(response.status_code)).inc()
    response.headers["Cache-Control"] = "no-store"
    return response


def log_refusal(status: int, cause: str, **more: str) -> None:
    """Log a refused request, without the header, which may contain part of a token."""
    log.warning(
        "admin request refused",
        method=request.method,
        path=request.path[:LOGGED],
        status=status,
        cause=cause,
        **more,
    )


def _address() -> str:
    """Return the address of the client, or of the reverse proxy that passes its requests on."""
    client = request.scope.get("client")
    return client[0] if client else ""


def _password_of_admin(encoded: bytes) -> bytes:
    """Return the password of the user ``admin``, or b"", which is no token."""
    try:
        user, _, password = base64.b64decode(encoded, validate=True).partition(b":")
    except binascii.Error:
        return b""
    return password if user == b"admin" else b""
