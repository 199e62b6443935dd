"""Chooses the API of the configured CDN, and imports that one alone. Pure."""

from __future__ import annotations

from proxy.config import Config
from proxy.model.preset_table import PresetTable
from proxy.moderation.cdn.interface import CdnApi
from proxy.shared.current import Current


def api_of(config: Config, presets: Current[PresetTable]) -> CdnApi | None:
    """Return the API of the configured CDN, or None.

    Args:
        presets: a purge by URL names those of the moment.
    """
    match config.cdn.kind:
        case "cloudflare":
            from proxy.moderation.cdn.cloudflare import Cloudflare

            return Cloudflare(config, presets)
        case "bunny":
            from proxy.moderation.cdn.bunny import Bunny

            return Bunny(config, presets)
        case "cloudfront":
            from proxy.moderation.cdn.cloudfront import CloudFront

            return CloudFront(config, presets)
        case _:
            return None
