"""Finds the PDS of a DID: asks the directory or the domain, and remembers their answers."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import dataclass
from typing import Any, Protocol

import trio

from proxy.accounts.rate_limits import rate_limit_of
from proxy.accounts.renewals import Renewals
from proxy.config import Config
from proxy.egress.endpoint import configured_origin, parse_origin
from proxy.egress.errors import AskedToWait, EgressError, Forbidden, Saturated, TimedOut
from proxy.egress.gateway import Gateway
from proxy.egress.guarded_get import Response
from proxy.egress.neighbours import groups_by_name
from proxy.errors import (
    Busy,
    DidNotFound,
    DidUnresolvable,
    ForbiddenDomain,
    InvalidHandle,
    NoPdsEndpoint,
    RateLimited,
    UpstreamTimeout,
    failing_at,
)
from proxy.model.identifiers import Did, Handle, OwnNames, did_web_authority, parse_handle
from proxy.shared.lookup_cache import Lifetimes, LookupCache

MAX_DOCUMENT = 16 * 1024
"""The limit for a DID document, in bytes. Real ones have about one thousand. The operation from
which the directory makes a document has at most 7,500 (did:plc specification)."""

MAX_NAMES = 64
"""The most entries of ``alsoKnownAs`` that are tried as a handle; real documents have one or
two."""

MAX_BYTES = 48 * 1024**2
"""Bytes of answers remembered: room for about 70,000 accounts."""

MAX_ENDPOINT = 268
"""Characters of ``https://``, a host name of 253 (RFC 1035, section 2.3.4), a port and a slash.
atproto, DID specification: an endpoint has no more than these."""

MIGRATION_AGE = 60.0
"""Seconds; when a PDS fails, a DID document older than this is asked for again."""


GONE = (404, 410)
"""Statuses that mean that the DID does not exist."""


class Resolver(Protocol):
    """Finds the PDS of an account."""

    async def resolve(self, did: Did, *, max_age: float | None = None) -> str:
        """The URL of the PDS that hosts ``did``, as its DID document spells it.

        Args:
            max_age: seconds; a remembered answer older than this is asked for again.

        Raises:
            DidNotFound: the DID does not exist.
            DidUnresolvable: there is no usable document.
            NoPdsEndpoint: the document does not name a PDS.
            RateLimited: the directory asks for fewer questions.
            UpstreamTimeout, Busy: no answer in time, or the fetch channel is full.
        """
        ...


@dataclass(frozen=True, slots=True)
class Identity:
    """The PDS and the handle in a DID document.

    Attributes:
        pds: the URL of the account's PDS, as the document spells it.
        handle: the handle that the document claims, confirmed or not; None if it claims none.
    """

    pds: str
    handle: Handle | None


def handle_of(did: Did, document: bytes, own_names: OwnNames = False) -> Handle | None:
    """The handle that a DID document claims: pure, total.

    atproto, DID specification: this is the first valid ``at://`` URI of ``alsoKnownAs``; the others
    are not the account's handle.

    Args:
        own_names: see ``parse_handle``; those below ``.test`` count in any case.

    Raises:
        DidUnresolvable: it is not a document of this DID.
    """
    names = parse_document(did, document).get("alsoKnownAs")
    for name in names[:MAX_NAMES] if isinstance(names, list) else ():
        if isinstance(name, str) and name.startswith("at://"):
            name = name.removeprefix("at://")
            is_listed = isinstance(own_names, tuple) and name.lower() in own_names
            with suppress(InvalidHandle):
                return parse_handle(name, own_names=own_names if is_listed else True)
    return None


def parse_document(did: Did, document: bytes) -> dict[str, Any]:
    """Parse a DID document.

    Raises:
        DidUnresolvable: it is not a document of this DID.
    """
    try:
        parsed: Any = json.loads(document)
    except (ValueError, RecursionError) as error:
        raise DidUnresolvable(f"{did}: the document is not JSON: {error}") from None
    if not isinstance(parsed, dict) or parsed.get("id") != did:
        raise DidUnresolvable(f"{did}: the document is not for this DID")
    return parsed


def pds_of(did: Did, document: bytes) -> str:
    """The URL of the PDS that a DID document names: pure, total.

    Raises:
        DidUnresolvable: it is not a document of this DID.
        NoPdsEndpoint: it has no such service, or the service's endpoint is not a string of at most
            ``MAX_ENDPOINT`` characters.
    """
    parsed = parse_document(did, document)
    endpoint = service_endpoint(did, parsed, "#atproto_pds", "AtprotoPersonalDataServer")
    if endpoint is None:
        raise NoPdsEndpoint(f"{did}: the document does not name a PDS")
    return endpoint


def service_endpoint(did: Did, document: dict[str, Any], id: str, type: str) -> str | None:
    """The endpoint of a service, or None: pure, total.

    atproto, DID specification: this is the first service with the id (such as ``#atproto_pds``) and
    the type, which may be one of a list (DID Core, section 5.4). One longer than ``MAX_ENDPOINT``
    counts as absent.
    """
    for service in entries(did, document, "service", id):
        endpoint = service.get("serviceEndpoint")
        types = service.get("type")
        if type not in (types if isinstance(types, list) else [types]):
            continue
        if not isinstance(endpoint, str):
            continue
        if 0 < len(endpoint) <= MAX_ENDPOINT:
            return endpoint
    return None


def entries(did: Did, document: dict[str, Any], section: str, id: str) -> Iterator[dict[str, Any]]:
    """The entries of a section of a DID document with an id, with or without the DID before it."""
    listed = document.get(section)
    for entry in listed if isinstance(listed, list) else ():
        if isinstance(entry, dict) and entry.get("id") in (id, f"{did}{id}"):
            yield entry


def times_of(config: Config) -> Lifetimes:
    """How long answers about identities are remembered."""
    identity = config.identity
    return Lifetimes(identity.ttl, identity.stale_ttl, identity.negative_ttl)


class DidResolver:
    """Resolves did:plc and did:web, and remembers the answers.

    A good answer is used for ``identity.ttl``, and for ``stale_ttl`` while its source fails. The
    answer that there is no DID or no PDS is used for ``negative_ttl``.

    Args:
        nursery: owns the questions under way; concurrent questions for one DID are asked once.
        on_directory: called with ``ok`` when the directory answered, also when it said that the DID
            does not exist, and with ``failed`` when it gave no such answer.
        clock: returns seconds; Trio's clock by default.
    """

    def __init__(
        self,
        config: Config,
        gateway: Gateway,
        nursery: trio.Nursery,
        clock: Callable[[], float] = trio.current_time,
        on_directory: Callable[[str], None] = lambda outcome: None,
    ) -> None:
        self._on_directory = on_directory
        self._clock = clock
        self._renewals = Renewals()
        self._fetch = config.fetch
        self._directory, self._directory_path = configured_origin(config.identity.plc_url)
        self._gateway = gateway
        self._remembered = LookupCache(
            nursery,
            self._ask,
            times_of(config),
            settled=(DidNotFound, NoPdsEndpoint),
            max_bytes=MAX_BYTES,
            clock=clock,
        )

    async def resolve(self, did: Did, *, max_age: float | None = None) -> str:
        """See ``Resolver.resolve``."""
        return (await self.identify(did, max_age=max_age)).pds

    async def identify(self, did: Did, *, max_age: float | None = None) -> Identity:
        """The PDS and the handle of ``did``; otherwise like ``resolve``."""
        if did_web_authority(did) is not None:  # the domain answers for itself
            return await self._remembered.get(did, max_age=max_age)
        return await self._remembered.get(
            did, max_age=max_age, may_renew=self._may_ask_the_directory
        )

    def _may_ask_the_directory(self, identity: Identity) -> bool:
        """Whether it may be asked again about an account at a PDS. If so, that is counted."""
        try:
            pds = parse_origin(identity.pds, allow_http=True, allow_private_hosts=True)
        except Forbidden:
            return self._renewals.admit("", self._clock())
        (domain,) = groups_by_name(pds.host)
        return self._renewals.admit(domain, self._clock())

    def forget(self, did: Did) -> None:
        """Drop the remembered answer, so that the next call asks again."""
        self._remembered.forget(did)

    async def _ask(self, did: Did) -> Identity:
        with failing_at(did_web_authority(did) or self._directory.host):
            document = await self.document(did)
        own_names = self._fetch.allow_private_hosts
        return Identity(pds_of(did, document), handle_of(did, document, own_names))

    async def document(self, did: Did) -> bytes:
        """Get the current DID document from its source. The answer is not remembered.

        Raises:
            DidNotFound, DidUnresolvable, RateLimited, UpstreamTimeout, Busy: see
                ``Resolver.resolve``.
        """
        try:
            answer = await self._get(did)
        except Saturated as error:
            raise Busy(str(error)) from error
        except TimedOut as error:
            raise UpstreamTimeout(str(error)) from error
        except AskedToWait as error:
            raise RateLimited(f"{did}: {error}", error.seconds) from error
        except Forbidden as error:
            raise ForbiddenDomain(f"{did}: {error}") from error
        except EgressError as error:
            raise DidUnresolvable(f"{did}: {error}") from error
        if answer.status in GONE:
            raise DidNotFound(f"{did}: status {answer.status}")
        if (limited := rate_limit_of(f"{did}: status {answer.status}", answer)) is not None:
            raise limited
        if answer.status != 200:
            raise DidUnresolvable(f"{did}: status {answer.status}")
        return answer.body

    async def _get(self, did: Did) -> Response:
        authority = did_web_authority(did)
        if authority is None:
            return await self._ask_directory(did)
        # atproto, DID specification: did:web on localhost is for development, over plain http.
        is_localhost = authority.partition(":")[0] == "localhost"
        if is_localhost and not self._fetch.allow_http:
            raise Forbidden(f"{did}: localhost needs fetch.allow_http")
        scheme = "http" if is_localhost else "https"
        origin = parse_origin(
            f"{scheme}://{authority}",
            allow_http=self._fetch.allow_http,
            allow_private_hosts=self._fetch.allow_private_hosts,
        )
        return await self._gateway.get(
            origin, "/.well-known/did.json", max_bytes=MAX_DOCUMENT, lane="did_web"
        )

    async def _ask_directory(self, did: Did) -> Response:
        target = f"{self._directory_path}/{did}"
        outcome = "failed"
        try:
            answer = await self._gateway.get(
                self._directory, target, max_bytes=MAX_DOCUMENT, lane="operator"
            )
            if answer.status in (200, *GONE):
                outcome = "ok"
            return answer
        except (Saturated, trio.Cancelled):
            outcome = ""  # the directory was not asked, or no task waits for its answer any more
            raise
        finally:
            if outcome:
                self._on_directory(outcome)
