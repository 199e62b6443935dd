"""From a DID to its PDS: the directory, the domain, and what is remembered of them."""

from __future__ import annotations

import json
import math
from collections import OrderedDict
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from typing import Any, Protocol

import trio

from proxy.config import Config
from proxy.egress.endpoint import configured_origin, parse_origin
from proxy.egress.errors import EgressError, Forbidden, Saturated, TimedOut
from proxy.egress.gateway import Gateway
from proxy.egress.get import Answer
from proxy.errors import (
    Busy,
    DidNotFound,
    DidUnresolvable,
    ForbiddenDomain,
    ImageProxyError,
    NoPdsEndpoint,
    UpstreamTimeout,
)
from proxy.flight import Flight, SingleFlight
from proxy.identifiers import Did, did_web_authority

MAX_DOCUMENT = 256 * 1024
"""Bytes of a DID document; real ones have about one thousand."""

MAX_REMEMBERED = 100_000
"""Documents remembered; about 30 MB when full."""

MIGRATION_AGE = 60.0
"""Seconds; when a PDS lacks a blob, a DID document older than this is asked for again."""


class Resolver(Protocol):
    """Finds the PDS of an account."""

    async def resolve(self, did: Did, *, max_age: float | None = None) -> str:
        """The URL of the PDS that hosts ``did``, as its DID document spells it.

        Args:
            max_age: seconds; what is remembered and older than this is asked for again.

        Raises:
            DidNotFound: the DID does not exist.
            DidUnresolvable: no usable document.
            NoPdsEndpoint: the document names no PDS.
            UpstreamTimeout, Busy: no answer in time, or no room to ask.
        """
        ...


def pds_of(did: Did, document: bytes) -> str:
    """The PDS that a DID document names: pure, total.

    Raises:
        DidUnresolvable: not a document of this DID.
        NoPdsEndpoint: no such service, or its endpoint is no string.
    """
    parsed = parse_document(did, document)
    endpoint = service_endpoint(did, parsed, "#atproto_pds", "AtprotoPersonalDataServer")
    if endpoint is None:
        raise NoPdsEndpoint(f"{did}: the document names no PDS")
    return endpoint


def parse_document(did: Did, document: bytes) -> dict[str, Any]:
    """The DID document in ``document``.

    Raises:
        DidUnresolvable: not a document of this DID.
    """
    try:
        parsed: Any = json.loads(document)
    except (ValueError, RecursionError) as error:
        raise DidUnresolvable(f"{did}: the document is not JSON: {error}") from None
    if not isinstance(parsed, dict) or parsed.get("id") != did:
        raise DidUnresolvable(f"{did}: the document is not of this DID")
    return parsed


def service_endpoint(did: Did, document: dict[str, Any], id: str, type: str) -> str | None:
    """The endpoint of a service, or None: pure, total.

    atproto, DID specification: the first service with the id (``#atproto_pds``, say) and the type.
    """
    for service in entries(did, document, "service", id):
        endpoint = service.get("serviceEndpoint")
        if service.get("type") == type and isinstance(endpoint, str) and endpoint:
            return endpoint
    return None


def entries(did: Did, document: dict[str, Any], section: str, id: str) -> Iterator[dict[str, Any]]:
    """What a section of a DID document has by an id, with or without the DID before it."""
    listed = document.get(section)
    for entry in listed if isinstance(listed, list) else ():
        if isinstance(entry, dict) and entry.get("id") in (id, f"{did}{id}"):
            yield entry


@dataclass(frozen=True, slots=True)
class _Remembered:
    """What the last question brought: a PDS, or the error that a new question would get."""

    at: float
    pds: str | None
    error: ImageProxyError | None = None
    failing_until: float = -math.inf
    """While its source fails, when it is asked next."""


class DidResolver:
    """Resolves did:plc and did:web, remembering answers.

    A good answer serves ``identity.ttl``, and ``stale_ttl`` while its source fails; an answer
    that there is none serves ``negative_ttl``.

    Args:
        nursery: owns the questions under way; concurrent ones for a DID are asked once.
        clock: seconds; Trio's by default.
    """

    def __init__(
        self,
        config: Config,
        gateway: Gateway,
        nursery: trio.Nursery,
        clock: Callable[[], float] = trio.current_time,
    ) -> None:
        self._settings = config.identity
        self._fetch = config.fetch
        self._directory, self._directory_path = configured_origin(config.identity.plc_url)
        self._gateway = gateway
        self._clock = clock
        self._remembered: OrderedDict[Did, _Remembered] = OrderedDict()
        self._flights: SingleFlight[Did, str] = SingleFlight(nursery)

    async def resolve(self, did: Did, *, max_age: float | None = None) -> str:
        """See ``Resolver.resolve``."""
        known = self._remembered.get(did)
        if known is not None and self._is_fresh(known, max_age):
            self._remembered.move_to_end(did)
            if known.error is not None:
                raise known.error.fresh()
            if known.pds is not None:
                return known.pds

        async def ask(_flight: Flight[str]) -> str:
            return await self._ask(did)

        async with self._flights.join(did, ask) as landed:
            return landed.value

    def forget(self, did: Did) -> None:
        """Ask again next time."""
        self._remembered.pop(did, None)

    def _is_fresh(self, known: _Remembered, max_age: float | None) -> bool:
        if max_age is None and self._clock() < known.failing_until:
            return True
        age = self._clock() - known.at
        limit = self._settings.ttl if known.error is None else self._settings.negative_ttl
        return age < limit and (max_age is None or age <= max_age)

    async def _ask(self, did: Did) -> str:
        try:
            pds = pds_of(did, await self.document(did))
        except (DidNotFound, NoPdsEndpoint) as error:
            # The source has spoken: this replaces what was known.
            self._remember(did, _Remembered(self._clock(), None, error.fresh()))
            raise
        except (DidUnresolvable, UpstreamTimeout, Busy):
            stale = self._stale(did)
            if stale is None or stale.pds is None:
                raise
            until = min(
                self._clock() + self._settings.negative_ttl, stale.at + self._settings.stale_ttl
            )
            self._remember(did, replace(stale, failing_until=until))
            return stale.pds
        self._remember(did, _Remembered(self._clock(), pds))
        return pds

    def _stale(self, did: Did) -> _Remembered | None:
        known = self._remembered.get(did)
        if known is None or self._clock() - known.at >= self._settings.stale_ttl:
            return None
        return known

    def _remember(self, did: Did, entry: _Remembered) -> None:
        self._remembered[did] = entry
        self._remembered.move_to_end(did)
        while len(self._remembered) > MAX_REMEMBERED:
            self._remembered.popitem(last=False)

    async def document(self, did: Did) -> bytes:
        """The DID document as its source has it now; nothing is remembered.

        Raises:
            DidNotFound, DidUnresolvable, UpstreamTimeout, Busy: as ``Resolver.resolve``.
        """
        try:
            answer = await self._get(did)
        except Saturated as error:
            raise Busy(str(error)) from error
        except TimedOut as error:
            raise UpstreamTimeout(str(error)) from error
        except Forbidden as error:
            raise ForbiddenDomain(f"{did}: {error}") from error
        except EgressError as error:
            raise DidUnresolvable(f"{did}: {error}") from error
        if answer.status in (404, 410):
            raise DidNotFound(f"{did}: status {answer.status}")
        if answer.status != 200:
            raise DidUnresolvable(f"{did}: status {answer.status}")
        return answer.body

    async def _get(self, did: Did) -> Answer:
        authority = did_web_authority(did)
        if authority is None:
            target = f"{self._directory_path}/{did}"
            return await self._gateway.get(
                self._directory, target, max_bytes=MAX_DOCUMENT, trusted=True
            )
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
        return await self._gateway.get(origin, "/.well-known/did.json", max_bytes=MAX_DOCUMENT)
