"""Cloudflare's purge, by tag or by URL. Pure.

https://developers.cloudflare.com/api/resources/cache/methods/purge/ and, for limits,
https://developers.cloudflare.com/cache/how-to/purge-cache/
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from functools import partial

from proxy.config import Config
from proxy.egress.endpoint import Origin
from proxy.model.preset_table import PresetTable
from proxy.model.selection import Selection
from proxy.moderation.cdn.interface import (
    ApiRequest,
    ApiResponse,
    Failure,
    Post,
    failure_of,
    in_batches,
    pairs_and_others,
    tags_of,
)
from proxy.moderation.cdn.parsing import json_object
from proxy.shared.current import Current
from proxy.urls import public_urls

BATCH = 100
"""Operations in one request. The free plan has five requests by tag a minute, and 25 at once."""


class Cloudflare:
    """``POST /client/v4/zones/{zone}/purge_cache``."""

    origin = Origin("https", "api.cloudflare.com", 443)

    def __init__(self, config: Config, presets: Current[PresetTable]) -> None:
        self._zone = config.cdn.zone
        self._token = config.cdn.token
        self._by_url = config.cdn.purge == "urls"
        self._origins = config.cdn.origins
        self._presets = presets
        self._base = config.server.public_base

    def posts(self, selections: Sequence[Selection]) -> list[Post]:
        """See ``CdnApi.posts``."""
        pairs, others = pairs_and_others(selections)
        tags = tags_of(others if self._by_url else selections)
        files: list[object] = []
        if self._by_url:
            presets = self._presets.now.by_name
            urls = [url for pair in pairs for url in public_urls(presets, pair, self._base)]
            files = [form for url in urls for form in self._forms(url)]
        return [
            *(partial(self._post, "tags", batch) for batch in in_batches(tags, BATCH)),
            *(partial(self._post, "files", batch) for batch in in_batches(files, BATCH)),
        ]

    def _forms(self, url: str) -> list[object]:
        """Return the cache keys of a URL: without ``Origin``, and with each that is configured."""
        forms = [{"url": url, "headers": {"Origin": origin}} for origin in self._origins]
        return [url, *forms]

    def _post(self, kind: str, names: Sequence[object], _wall_clock: float) -> ApiRequest:
        headers = {
            "Authorization": f"Bearer {self._token.get_secret_value()}",
            "Content-Type": "application/json",
        }
        body = json.dumps({kind: list(names)}).encode()
        return ApiRequest(f"/client/v4/zones/{self._zone}/purge_cache", headers, body)

    def failure(self, reply: ApiResponse, wall_clock: float) -> Failure | None:
        """See ``CdnApi.failure``. The body of a 200 says whether the purge succeeded."""
        envelope = json_object(reply.body)
        if reply.status == 200 and envelope.get("success") is True:
            return None
        return failure_of(reply, _errors(envelope), self._token, wall_clock)


def _errors(envelope: Mapping[str, object]) -> str:
    """The codes and messages in the body of an answer."""
    errors = envelope.get("errors")
    return "; ".join(
        f"{error.get('code')} {error.get('message')}"
        for error in (errors if isinstance(errors, list) else ())
        if isinstance(error, dict)
    )
