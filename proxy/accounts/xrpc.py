"""Sends queries to a PDS over XRPC (atproto, HTTP API specification)."""

from __future__ import annotations

from collections.abc import Mapping
from urllib.parse import quote, urlencode

from proxy.egress.endpoint import parse_origin
from proxy.egress.gateway import FetchSettings, Gateway
from proxy.egress.guarded_get import Response
from proxy.model.identifiers import Did


async def query(
    gateway: Gateway,
    settings: FetchSettings,
    pds: str,
    method: str,
    parameters: Mapping[str, str],
    *,
    max_bytes: int,
) -> Response:
    """The PDS's response to ``GET /xrpc/{method}``.

    Args:
        pds: the URL of the PDS, as a DID document spells it.
        max_bytes: the limit for the body.

    Raises:
        EgressError: see ``proxy.egress.errors``.
    """
    origin = parse_origin(
        pds, allow_http=settings.allow_http, allow_private_hosts=settings.allow_private_hosts
    )
    target = f"/xrpc/{method}?{urlencode(parameters, safe=':', quote_via=quote)}"
    return await gateway.get(origin, target, max_bytes=max_bytes)


def record_query(did: Did, collection: str, key: str) -> tuple[str, dict[str, str]]:
    """The method and the parameters that ask for a record."""
    return "com.atproto.repo.getRecord", {"repo": did, "collection": collection, "rkey": key}
