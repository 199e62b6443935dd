"""CloudFront's invalidations, by tag or by path. Pure.

https://docs.aws.amazon.com/cloudfront/latest/APIReference/API_CreateInvalidation.html,
https://docs.aws.amazon.com/AmazonCloudFront/latest/DeveloperGuide/invalidation-specifying-tags.html
and invalidation-specifying-objects.html, by which ``*`` is a wildcard at the end of a path alone.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Sequence
from functools import partial
from html import escape
from urllib.parse import urlsplit

from proxy.config import Config
from proxy.egress.endpoint import Origin
from proxy.model.keys import ImageKey
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
from proxy.moderation.cdn.sigv4 import Credentials, signed_headers
from proxy.shared.current import Current
from proxy.urls import blob_url, image_url, info_url

TAGS, WILDCARDS = 1000, 15
"""Items in one request. At once 3000 tags and paths may be in progress, and 15 wildcards."""

_TAKES_NO_MORE = re.compile(r"TooManyInvalidationsInProgress|Throttl|NoSuchDistribution")
"""Codes of a 400 or 404 that say nothing of the items."""


class CloudFront:
    """``POST /2020-05-31/distribution/{zone}/invalidation``."""

    origin = Origin("https", "cloudfront.amazonaws.com", 443)

    def __init__(self, config: Config, presets: Current[PresetTable]) -> None:
        cdn = config.cdn
        self._distribution = cdn.zone
        self._token = cdn.token
        self._credentials = Credentials(cdn.key_id, cdn.token, "us-east-1", "cloudfront")
        self._by_path = cdn.purge == "urls"
        self._presets = presets
        self._root = urlsplit(config.server.public_base).path

    def posts(self, selections: Sequence[Selection]) -> list[Post]:
        """See ``CdnApi.posts``."""
        pairs, others = pairs_and_others(selections)
        tags = [f"#{tag}" for tag in tags_of(others if self._by_path else selections)]
        paths: list[str] = []
        if self._by_path:
            for pair in pairs:
                of_blob = (ImageKey(preset, pair, None, "") for preset in self._presets.now.by_name)
                # Each preset by itself, as the wildcard has to be the last character.
                paths += [f"{image_url(key, self._root)}*" for key in of_blob]
                paths += [f"{info_url(pair, self._root)}*", f"{blob_url(pair, self._root)}*"]
        return [
            *(partial(self._post, batch) for batch in in_batches(tags, TAGS)),
            *(partial(self._post, batch) for batch in in_batches(paths, WILDCARDS)),
        ]

    def _post(self, items: Sequence[str], wall_clock: float) -> ApiRequest:
        listed = "".join(f"<Path>{escape(item)}</Path>" for item in items)
        digest = hashlib.sha256(listed.encode()).hexdigest()[:16]
        body = (
            '<?xml version="1.0" encoding="UTF-8"?>'
            '<InvalidationBatch xmlns="http://cloudfront.amazonaws.com/doc/2020-05-31/">'
            f"<Paths><Quantity>{len(items)}</Quantity><Items>{listed}</Items></Paths>"
            # Another one each time: with one that was used, nothing would be invalidated.
            f"<CallerReference>{wall_clock:.6f}-{digest}</CallerReference></InvalidationBatch>"
        ).encode()
        target = f"/2020-05-31/distribution/{self._distribution}/invalidation"
        headers = {"Content-Type": "application/xml"}
        signed = signed_headers(
            self._credentials, self.origin.authority, target, headers, body, wall_clock
        )
        return ApiRequest(target, signed, body)

    def failure(self, reply: ApiResponse, wall_clock: float) -> Failure | None:
        """See ``CdnApi.failure``. A 201 accepts an invalidation, which takes some seconds more."""
        if reply.status == 201:
            return None
        text = reply.body.decode("utf-8", "replace")
        code, message = _element("Code", text), _element("Message", text)
        is_refusal = False if _TAKES_NO_MORE.search(code) else None
        return failure_of(
            reply, f"{code} {message}".strip(), self._token, wall_clock, is_refusal=is_refusal
        )


def _element(name: str, text: str) -> str:
    """The text of the first element of this name. A parser of XML would expand entities."""
    found = re.search(rf"<{name}>([^<]*)</{name}>", text)
    return found[1] if found else ""
