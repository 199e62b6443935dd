"""The page for people at ``/``."""

from __future__ import annotations

from importlib.resources import files

from quart import Blueprint, Response

from proxy.config import Config

_PRESETS_MARK = "<!-- presets -->"


def page_routes(config: Config) -> Blueprint:
    """``/``: try a DID and a CID, see every preset."""
    routes = Blueprint("page", __name__)
    template = files("proxy.web").joinpath("page.html").read_text(encoding="utf-8")
    presets = "".join(f'<li data-preset="{name}">{name}</li>' for name in config.presets)
    page = template.replace(_PRESETS_MARK, presets)

    @routes.get("/")
    async def show() -> Response:
        return Response(
            page,
            content_type="text/html; charset=utf-8",
            headers={
                "Content-Security-Policy": (
                    "default-src 'none'; img-src 'self' blob:; connect-src 'self';"
                    " style-src 'unsafe-inline'; script-src 'unsafe-inline';"
                    " base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
                ),
                "X-Content-Type-Options": "nosniff",
                "Referrer-Policy": "no-referrer",
                "Cache-Control": "no-cache",
            },
        )

    return routes
