"""Which answers may stay in a CDN that is purged by URL: those whose request a purge names. Pure.

A CDN keeps a copy for each URL as it was written, with its query, and Cloudflare one for each
``Origin``. A purge names the canonical URL alone, and the configured origins. Any other copy
could not be taken back, so only browsers may keep it.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from proxy.config import Config
from proxy.errors import InvalidRequest
from proxy.model.presets import Preset
from proxy.urls import blob_url, image_url, parse_blob_path, parse_image_path
from proxy.web.responses import HttpResponse, PendingResponse

_SHARED = re.compile(r"public, (max-age=[0-9]+)(, s-maxage=[0-9]+)?")


def purges_by_url(config: Config) -> bool:
    """Whether there is a CDN whose copies are purged by URL."""
    return bool(config.cdn.kind) and config.cdn.purge == "urls"


def is_named(config: Config, presets: Mapping[str, Preset], scope: Mapping[str, Any]) -> bool:
    """Whether a purge by URL names what this request asks for. Total."""
    if scope["query_string"]:
        return False
    for name, value in scope["headers"]:
        if name == b"origin" and value.decode("latin-1") not in config.cdn.origins:
            return False
    return bool(scope["raw_path"] == _canonical(presets, scope["path"]).encode())


def as_private(answer: HttpResponse | PendingResponse) -> HttpResponse | PendingResponse:
    """Let only browsers keep ``answer``. Errors stay as they are: they are kept for a minute."""
    if isinstance(answer, HttpResponse):
        return private(answer)

    async def later() -> HttpResponse:
        return private(await answer())

    return later


def private(answer: HttpResponse) -> HttpResponse:
    """See ``as_private``."""
    if answer.status >= 400:
        return answer
    headers = tuple(
        (name, _SHARED.sub(r"private, \1", value) if name == "Cache-Control" else value)
        for name, value in answer.headers
    )
    return replace(answer, headers=headers)


def _canonical(presets: Mapping[str, Preset], path: str) -> str:
    try:
        if path.startswith(("/img/", "/info/")):
            return image_url(parse_image_path(presets, path))
        return blob_url(parse_blob_path(path))
    except InvalidRequest:
        return ""
