"""The HTML page at ``/``."""

from __future__ import annotations

import base64
import hashlib
import re
from html import escape
from importlib.resources import files

from quart import Blueprint, Response

from proxy.config import Config
from proxy.model.presets import Preset

_PRESETS_MARK = "<!-- presets -->"
_BASE_MARK = 'data-base=""'


def page_routes(config: Config) -> Blueprint:
    """The route ``/``: enter an account, a post or a blob, and see every preset."""
    routes = Blueprint("page", __name__)
    page = render_page(config)
    headers = {
        "Content-Security-Policy": policy_of(page),
        "X-Content-Type-Options": "nosniff",
        "Referrer-Policy": "no-referrer",
        "Cache-Control": "no-cache",
    }

    icon = _resource("icon.svg")

    @routes.get("/icon.svg")
    async def show_icon() -> Response:
        headers = {"X-Content-Type-Options": "nosniff", "Cache-Control": "public, max-age=86400"}
        return Response(icon, content_type="image/svg+xml", headers=headers)

    @routes.get("/")
    async def show() -> Response:
        return Response(page, content_type="text/html; charset=utf-8", headers=headers)

    return routes


def render_page(config: Config) -> str:
    """Return the page with the configured presets and public URL."""
    base = config.server.cdn_url or config.server.base_url
    items = "".join(_item(name, preset) for name, preset in config.presets.items())
    return (
        _resource("page.html")
        .replace(_PRESETS_MARK, items)
        .replace(_BASE_MARK, f'data-base="{escape(base)}"', 1)
    )


def _resource(name: str) -> str:
    return files("proxy.web").joinpath(name).read_text(encoding="utf-8")


def _item(name: str, preset: Preset) -> str:
    size = f"{preset.width} &times; {preset.height}" if preset.height else f"{preset.width} wide"
    about = f"{size}, {preset.fit}, quality {preset.quality}" + ", animated" * preset.animated
    return (
        f'<li data-preset="{name}" data-width="{preset.width}" data-height="{preset.height}"'
        f' data-fit="{preset.fit}" data-animated="{preset.animated}">{about}</li>'
    )


def policy_of(page: str) -> str:
    """Return the Content-Security-Policy that allows only the page's own script and style.

    They are named by their digests (CSP Level 3, section 2.3.1): an injected script has another
    digest.
    """
    return (
        "default-src 'none'; img-src 'self' blob:; connect-src 'self';"
        f" style-src {_digest(page, 'style')}; script-src {_digest(page, 'script')};"
        " base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
    )


def _digest(page: str, tag: str) -> str:
    (inside,) = re.findall(rf"<{tag}>(.*?)</{tag}>", page, re.DOTALL)
    digest = hashlib.sha256(inside.encode()).digest()
    return f"'sha256-{base64.b64encode(digest).decode()}'"
