"""The HTML pages: ``/`` for everybody, ``/admin`` for moderators."""

from __future__ import annotations

import base64
import hashlib
import re
from collections.abc import Mapping
from html import escape
from importlib.resources import files
from types import MappingProxyType
from urllib.parse import urlencode

import trio
from quart import Blueprint, Response, request

from proxy.config import Config
from proxy.errors import Busy, UpstreamTimeout
from proxy.model.preset_table import PresetTable
from proxy.model.presets import Preset
from proxy.posters import is_decoder_installed
from proxy.shared.current import Current
from proxy.web.admin_access import AdminAccess
from proxy.web.examples import examples
from proxy.web.found import as_list, as_problem
from proxy.web.responder import Responder, as_ours
from proxy.web.responses import Headers, retry_after

_COMMON_MARKS = {
    "  /* common.css */\n": "common.css",
    "  // common.js\n": "common.js",
    "  // thumbhash.js\n": "thumbhash.js",
    "  // compare.js\n": "compare.js",
    "  // builder.js\n": "builder.js",
}
_PRESETS_MARK = "<!-- presets -->"
_BASE_MARK = 'data-base=""'
_PREVIEW_MARK = 'data-preview="" data-below=""'
_VIDEO_MARK = 'data-video=""'
_ICON_MARK = 'href="icon.svg"'
_EXAMPLES_MARK = "<!-- examples -->"
_FOUND_MARK = "<!-- found -->"
_REFRESH_MARK = "<!-- refresh -->"
_INVITATION = '<p class="told-plain">Without JavaScript, the form answers with a list.</p>'

PATIENCE = 10.0
"""Seconds in which a list comes, or the page without one."""

PREVIEW_WIDTH = 600
"""Pixels in which a moderator sees enough of a picture."""


def page_routes(config: Config, presets: Current[PresetTable], responder: Responder) -> Blueprint:
    """The route ``/``: enter an account, a post or a blob, and see every preset.

    ``?q=`` alone is answered at once: the page's script looks it up. A browser without JavaScript
    goes on to the same with ``list=1``, as its form does, and gets a list.
    """
    routes = Blueprint("page", __name__)
    base = config.server.cdn_url or config.server.base_url
    template = _page("page.html").replace(_EXAMPLES_MARK, examples(config), 1)
    page = presets.derived(
        lambda table: _Page(render_page(template, table.by_name, base), form_action="'self'")
    )
    icon = _resource("icon.svg")

    @routes.get("/icon.svg")
    async def show_icon() -> Response:
        headers = {"X-Content-Type-Options": "nosniff", "Cache-Control": "public, max-age=86400"}
        return Response(icon, content_type="image/svg+xml", headers=headers)

    @routes.get("/")
    async def show() -> Response:
        given = {name: request.args.get(name, "").strip() for name in ("q", "cid")}
        asked = " ".join(given.values()).strip()
        if not asked:
            return page().response("no-cache", {_REFRESH_MARK: "", _FOUND_MARK: _INVITATION})
        format_ = request.args.get("format", "")
        kept = {
            f'name="{name}" value=""': f'name="{name}" value="{escape(text)}"'
            for name, text in given.items()
        }
        option = f"<option>{escape(format_)}</option>"
        kept[option] = option.replace(">", " selected>", 1)
        if request.args.get("list") != "1":
            sent = given | {"format": format_, "list": "1"}
            return page().response(
                "no-store", {_REFRESH_MARK: _refresh(sent), **kept, _FOUND_MARK: ""}
            )
        status = 200
        retry: Headers = ()
        try:
            found = await listed(asked, format_)
        except Exception as failure:
            error = as_ours(failure)
            status, retry = error.status, retry_after(error)
            found = as_problem(asked, error.public_message)
        answer = page().response("no-store", {_REFRESH_MARK: "", **kept, _FOUND_MARK: found})
        answer.status_code = status
        answer.headers.extend(retry)
        return answer

    async def listed(asked: str, format_: str) -> str:
        service = responder.service
        if service is None or not config.server.enabled:
            raise Busy("the service is not running")
        with trio.move_on_after(PATIENCE):
            found = await service.actors.look_up(asked)
            return as_list(found, service.gate.refuses, presets.now.by_name, format_)
        raise UpstreamTimeout("a list for the page")

    return routes


def admin_page_routes(
    config: Config, presets: Current[PresetTable], access: AdminAccess
) -> Blueprint:
    """The route ``/admin``: a page that has no secret, and asks for the token; none without one."""
    routes = Blueprint("admin_page", __name__)
    if not access.is_open:
        return routes
    template, below = _page("admin.html"), config.server.root_path
    page = presets.derived(lambda table: _Page(render_admin_page(template, table.by_name, below)))

    @routes.get("/admin")
    async def show() -> Response:
        return page().response("no-store")

    return routes


class _Page:
    """A page, and the policy that allows it and nothing else."""

    def __init__(self, text: str, form_action: str = "'none'") -> None:
        self._text = text
        self._policy = policy_of(text, form_action)

    def response(
        self, cache_control: str, inside: Mapping[str, str] = MappingProxyType({})
    ) -> Response:
        """Return the page, with HTML in the place of marks; it has neither script nor style."""
        text = self._text
        for mark, html in inside.items():
            text = text.replace(mark, html, 1)
        headers = {
            "Content-Security-Policy": self._policy,
            "X-Content-Type-Options": "nosniff",
            "Referrer-Policy": "no-referrer",
            "Cache-Control": cache_control,
        }
        return Response(text, content_type="text/html; charset=utf-8", headers=headers)


def render_page(template: str, presets: Mapping[str, Preset], base: str) -> str:
    """Return the page with ``presets`` and the public URL."""
    items = "".join(_item(name, preset) for name, preset in presets.items())
    page = template.replace(_PRESETS_MARK, items)
    return page.replace(_BASE_MARK, f'data-base="{escape(base)}"', 1)


def render_admin_page(template: str, presets: Mapping[str, Preset], below: str = "") -> str:
    """Return the page of moderators.

    Args:
        below: ``server.root_path``. This page stays at the root, and asks for pictures below it.
    """
    preview = f'data-preview="{preview_preset(presets)}" data-below="{below}"'
    page = template.replace(_PREVIEW_MARK, preview, 1)
    return page.replace(_ICON_MARK, f'href=".{below}/icon.svg"', 1)


def preview_preset(presets: Mapping[str, Preset]) -> str:
    """Return the name of the preset in which a moderator sees a picture.

    The smallest that is wide enough and shows all of it; where none does, the widest.
    """

    def rank(name: str) -> tuple[bool, bool, int]:
        preset = presets[name]
        is_wide = preset.width >= PREVIEW_WIDTH
        return preset.fit != "contain", not is_wide, preset.width if is_wide else -preset.width

    return min(presets, key=rank)


def _refresh(sent: Mapping[str, str]) -> str:
    """Return what makes a browser without JavaScript ask for the page with ``sent``."""
    url = escape(f"?{urlencode(sent)}")
    return f'<noscript><meta http-equiv="refresh" content="0; url={url}"></noscript>'


def _page(name: str) -> str:
    """Return a page with the style and the functions that all of them share.

    It tells them whether this server decodes videos.
    """
    page = _resource(name)
    for mark, common in _COMMON_MARKS.items():
        page = page.replace(mark, _resource(common), 1)
    return page.replace(_VIDEO_MARK, 'data-video="true"', 1) if is_decoder_installed() else page


def _resource(name: str) -> str:
    return files("proxy.web").joinpath(name).read_text(encoding="utf-8")


def _item(name: str, preset: Preset) -> str:
    size = f"{preset.width} &times; {preset.height}" if preset.height else f"{preset.width} wide"
    about = f"{size}, {preset.fit}, quality {preset.quality}" + ", animated" * preset.animated
    return (
        f'<li data-preset="{name}" data-width="{preset.width}" data-height="{preset.height}"'
        f' data-fit="{preset.fit}" data-animated="{preset.animated}">{about}</li>'
    )


def policy_of(page: str, form_action: str) -> str:
    """Return the Content-Security-Policy that allows only the page's own script and style.

    They are named by their digests (CSP Level 3, section 2.3.1): an injected script has another
    digest.
    """
    return (
        "default-src 'none'; img-src 'self' blob:; connect-src 'self';"
        f" style-src {_digest(page, 'style')}; script-src {_digest(page, 'script')};"
        f" base-uri 'none'; form-action {form_action}; frame-ancestors 'none'"
    )


def _digest(page: str, tag: str) -> str:
    (inside,) = re.findall(rf"<{tag}>(.*?)</{tag}>", page, re.DOTALL)
    digest = hashlib.sha256(inside.encode()).digest()
    return f"'sha256-{base64.b64encode(digest).decode()}'"
