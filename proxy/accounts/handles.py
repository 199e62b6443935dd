"""Finds the DID of a handle, by DNS or by its domain, and confirms it by the DID document."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Iterable, Sequence
from typing import Protocol

import trio

from proxy.accounts.did_documents import MAX_BYTES, MIGRATION_AGE, Identity, times_of
from proxy.config import Config
from proxy.egress.endpoint import parse_origin
from proxy.egress.errors import EgressError, Saturated, TimedOut, TooLarge
from proxy.egress.gateway import Gateway
from proxy.errors import (
    AmbiguousHandle,
    BlobNotFound,
    Busy,
    DidNotFound,
    HandleNotFound,
    HandleUnresolvable,
    ImageProxyError,
    InvalidDid,
    NoPdsEndpoint,
    UpstreamTimeout,
    failing_at,
)
from proxy.model.identifiers import Did, Handle, parse_did
from proxy.shared.lookup_cache import LookupCache

MAX_ANSWER = 4096
"""The limit for a domain's answer, in bytes; a DID has a few dozen. Many domains answer any path
with a page."""

Lookup = Callable[[str], Awaitable[Sequence[bytes]]]
"""Returns the TXT records of a name; raises ``EgressError``."""


class IdentitySource(Protocol):
    """Reads DID documents; ``DidResolver`` is one."""

    async def identify(self, did: Did, *, max_age: float | None = None) -> Identity:
        """See ``DidResolver.identify``."""
        ...


def dids_in(records: Iterable[bytes]) -> frozenset[Did]:
    """The DIDs that TXT records name, without DIDs of other methods. Pure, total.

    atproto, Handle specification: values that do not begin with ``did=`` are ignored.
    """
    found = set()
    for record in records:
        prefix, _, text = record.partition(b"=")
        did = _did_in(text) if prefix == b"did" else None
        if did is not None:
            found.add(did)
    return frozenset(found)


def _did_in(text: bytes) -> Did | None:
    try:
        return parse_did(text.decode("ascii", errors="replace"))
    except InvalidDid:
        return None


class HandleResolver:
    """Resolves handles, and remembers the answers as ``DidResolver`` does.

    DNS is asked first, because the specification prefers it. If DNS names a DID, that is final. If
    DNS names no DID or fails, the domain is asked.

    Args:
        nursery: owns the questions under way.
        documents: reads the DID documents that confirm handles.
        lookup: asks for TXT records.
        clock: returns seconds; Trio's clock by default.
    """

    def __init__(
        self,
        config: Config,
        gateway: Gateway,
        nursery: trio.Nursery,
        documents: IdentitySource,
        lookup: Lookup,
        clock: Callable[[], float] = trio.current_time,
    ) -> None:
        self._fetch = config.fetch
        self._gateway = gateway
        self._documents = documents
        self._lookup = lookup
        self._remembered = LookupCache(
            nursery,
            self._ask,
            times_of(config),
            settled=(BlobNotFound, AmbiguousHandle, NoPdsEndpoint),
            max_bytes=MAX_BYTES,
            clock=clock,
        )

    async def resolve(self, handle: Handle) -> Did:
        """The DID of a handle. The DID document must name the handle too.

        Raises:
            HandleNotFound: no account has the handle, or its DID does not exist or does not name
                the handle.
            AmbiguousHandle: DNS names several DIDs.
            HandleUnresolvable: there is no usable answer.
            DidUnresolvable, NoPdsEndpoint: from its DID document.
            UpstreamTimeout, Busy: no answer in time, or the fetch channel is full.
        """
        return await self._remembered.get(handle)

    async def confirmed(self, did: Did) -> Handle | None:
        """The handle of an account: the one that its DID document claims, if it leads to ``did``.

        None: there is none, or it cannot be found out now.
        """
        try:
            handle = (await self._documents.identify(did)).handle
            return handle if handle is not None and await self.resolve(handle) == did else None
        except ImageProxyError:
            return None

    async def _ask(self, handle: Handle) -> Did:
        with failing_at(handle):
            did = await self._claimed(handle)
        try:
            identity = await self._documents.identify(did)
            if identity.handle != handle:
                # The account may have changed its handle since the document was read.
                identity = await self._documents.identify(did, max_age=MIGRATION_AGE)
        except DidNotFound as error:
            raise HandleNotFound(f"{handle} names {did}: {error}") from error
        if identity.handle != handle:
            raise HandleNotFound(f"{handle} names {did}, which names {identity.handle}")
        return did

    async def _claimed(self, handle: Handle) -> Did:
        """The DID that the handle's owner names."""
        failure: EgressError | None = None
        dids: frozenset[Did] = frozenset()
        try:
            dids = dids_in(await self._lookup(f"_atproto.{handle}"))
        except EgressError as error:
            failure = error
        if len(dids) > 1:
            raise AmbiguousHandle(f"{handle}: DNS names {len(dids)} DIDs")
        for did in dids:
            return did
        try:
            return await self._claimed_by_domain(handle)
        except HandleNotFound as error:
            if failure is None:
                raise
            # DNS failed, and may know the handle: do not say that it does not exist.
            raise _mapped(handle, failure) from error

    async def _claimed_by_domain(self, handle: Handle) -> Did:
        try:
            origin = parse_origin(
                f"https://{handle}",
                allow_http=False,
                allow_private_hosts=self._fetch.allow_private_hosts,
            )
            answer = await self._gateway.get(
                origin, "/.well-known/atproto-did", max_bytes=MAX_ANSWER, lane="handles"
            )
        except TooLarge as error:
            raise HandleNotFound(f"{handle}: {error}") from error
        except EgressError as error:
            raise _mapped(handle, error) from error
        if answer.status >= 500 or answer.status == 429:
            raise HandleUnresolvable(f"{handle}: status {answer.status}")
        did = _did_in(answer.body.strip()) if 200 <= answer.status < 300 else None
        if did is None:
            raise HandleNotFound(f"{handle}: status {answer.status}, without a DID")
        return did


def _mapped(handle: Handle, error: EgressError) -> ImageProxyError:
    """The public error for ``error``. A forbidden host looks like one that cannot be reached."""
    if isinstance(error, Saturated):
        return Busy(str(error))
    if isinstance(error, TimedOut):
        return UpstreamTimeout(str(error))
    return HandleUnresolvable(f"{handle}: {error}")
