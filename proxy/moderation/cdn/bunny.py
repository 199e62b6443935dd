"""bunny.net's purge, by tag or by URL, with one of them in each request. Pure.

By tag: https://docs.bunny.net/cdn/purge-cache
By URL: https://docs.bunny.net/reference/purgepublic_indexpost
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from functools import partial
from urllib.parse import urlencode

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
    pairs_and_others,
    tags_of,
)
from proxy.moderation.cdn.parsing import json_object
from proxy.shared.current import Current
from proxy.urls import public_urls


class Bunny:
    """``POST /pullzone/{zone}/purgeCache``, or ``POST /purge?url=``."""

    origin = Origin("https", "api.bunny.net", 443)

    def __init__(self, config: Config, presets: Current[PresetTable]) -> None:
        self._zone = config.cdn.zone
        self._token = config.cdn.token
        self._by_url = config.cdn.purge == "urls"
        self._presets = presets
        self._base = config.server.public_base

    def posts(self, selections: Sequence[Selection]) -> list[Post]:
        """See ``CdnApi.posts``."""
        if not self._by_url:
            return [partial(self._post_tag, tag) for tag in tags_of(selections)]
        pairs, others = pairs_and_others(selections)
        presets = self._presets.now.by_name
        urls = [url for pair in pairs for url in public_urls(presets, pair, self._base)]
        tags = tags_of(others) if self._zone else []
        return [
            *(partial(self._post_tag, tag) for tag in tags),
            *(partial(self._post_url, url) for url in urls),
        ]

    def _post_tag(self, tag: str, _wall_clock: float) -> ApiRequest:
        headers = {**self._headers(), "Content-Type": "application/json"}
        body = json.dumps({"CacheTag": tag}).encode()
        return ApiRequest(f"/pullzone/{self._zone}/purgeCache", headers, body)

    def _post_url(self, url: str, _wall_clock: float) -> ApiRequest:
        """The answer comes when the purge is finished."""
        query = urlencode({"url": url, "async": "false"})
        return ApiRequest(f"/purge?{query}", self._headers(), b"")

    def _headers(self) -> dict[str, str]:
        return {"AccessKey": self._token.get_secret_value()}

    def failure(self, reply: ApiResponse, wall_clock: float) -> Failure | None:
        """See ``CdnApi.failure``."""
        if 200 <= reply.status < 300:
            return None
        message = str(json_object(reply.body).get("Message", ""))
        return failure_of(reply, message, self._token, wall_clock)
