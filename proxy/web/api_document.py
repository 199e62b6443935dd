"""The document at ``/openapi.json``: every route, in OpenAPI 3.1. Pure."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

from proxy.cache.layout import FORMATS_OF_AUTO
from proxy.config import OPERATIONS, Config
from proxy.model.formats import OUTPUTS, Format
from proxy.model.keys import KINDS
from proxy.model.preset_table import PresetTable
from proxy.observability import metrics
from proxy.web import api_parts as parts
from proxy.web.api_parts import ALWAYS, READABLE, Json, fixed, free, json_body, ref, text
from proxy.web.caching import caching_of
from proxy.web.responses import PLAIN, plain_response, preflight

DOCUMENT = "/openapi.json"

VERSION = "3.1.1"

_PARAMETER = re.compile(r"{(\w+)}")
_HTML = "text/html; charset=utf-8"
_JSON = Format.JSON.content_type
_STORED_NOWHERE = fixed((("Cache-Control", "no-store"),))


def described(config: Config, table: PresetTable) -> dict[str, Any]:
    """Return the document of a service: its pictures where it is enabled, and its operations.

    Operators' routes are there without a token too, as they are routes of every service: they
    answer 404 then.
    """
    paths = {DOCUMENT: _document()}
    if config.server.enabled:
        paths |= _pictures(config) | _accounts(config)
    paths |= _for_people() | _operations() | _admin() | _purges_of_porxie()
    for path, item in paths.items():
        item.setdefault("options", _options_of_framework(path, item))
        if names := _PARAMETER.findall(path):
            item["parameters"] = [ref("parameters", name) for name in names]
        if config.server.root_path and path.split("/")[1] in OPERATIONS:
            item["servers"] = [{"url": "/"}]
    return {
        "openapi": VERSION,
        "info": {
            "title": "atproto-imageproxy",
            "summary": "An image proxy of the AT Protocol",
            "description": "Blobs of accounts, verified and made into pictures by preset.",
            "license": {"name": "MIT", "identifier": "MIT"},
            "version": metrics.VERSION,
        },
        "servers": [{"url": config.server.public_base or "/"}],
        "paths": paths,
        "components": {
            "parameters": parts.parameters(table.by_name),
            "schemas": parts.schemas(),
            "responses": parts.error_responses(),
            "securitySchemes": {
                "token": {"type": "http", "scheme": "bearer"},
                "password": {"type": "http", "scheme": "basic"},
            },
        },
    }


def _pictures(config: Config) -> Json:
    owned = "/{did}/{cid}"
    varying = {"Vary": free("Where formats are negotiated.", required=False)}

    def picture(types: Mapping[str, Json], **headers: Json) -> Json:
        shown = _result_headers(config, "inline") | headers
        unmodified = {name: shown[name] for name in ("Cache-Control", "ETag")} | ALWAYS | headers
        return {
            "200": {"description": "The result", "headers": shown, "content": types},
            "304": {"description": "The client has it", "headers": unmodified},
            **parts.errors_of("Picture"),
        }

    def route(summary: str, responses: Json, *headers: str) -> Json:
        sent = [ref("parameters", name) for name in ("If-None-Match", *headers)]
        return _get(summary, responses, sent=sent, has_options=True)

    auto: Json = {each.content_type: {} for each in FORMATS_OF_AUTO}
    named: Json = {each.content_type: {} for each in OUTPUTS}
    poster = picture({Format.JPEG.content_type: {}})
    return {
        f"/img/{{preset}}/plain{owned}": route("A picture by preset", picture(auto, **varying)),
        f"/img/{{preset}}/plain{owned}@{{format}}": route(
            "A picture by preset, in a format", picture(named)
        ),
        f"/blob{owned}": route("The verified original", _original(config), "Range", "If-Range"),
        f"/info{owned}": route("What a picture is", picture(json_body("PictureInfo"))),
        f"/vid{owned}/thumbnail.jpg": route("The poster of a video", poster),
        f"/vid/{{preset}}{owned}/thumbnail.jpg": route("The poster of a video by preset", poster),
    }


def _result_headers(config: Config, disposition: str) -> Json:
    caching = caching_of(config)
    headers = {
        "Cache-Control": free("What caches may do.", "^(public|private), max-age=[0-9]+"),
        "ETag": free("Strong.", '^"[^"]+"$'),
        "Content-Disposition": free("A name for the file.", f'^{disposition}; filename="[^"]+"$'),
        **ALWAYS,
        **READABLE,
    }
    if disposition == "inline":
        states = {"enum": ["hit", "miss", "coalesced"]}
        headers["X-Cache"] = {"required": True, "schema": states}
        headers["Server-Timing"] = free("Milliseconds of a miss.", required=False)
    if caching.tag_field:
        headers[caching.tag_field] = free("By which a CDN purges.")
    return headers


def _original(config: Config) -> Json:
    headers = _result_headers(config, "attachment") | fixed((("Accept-Ranges", "bytes"),))
    part = headers | {"Content-Range": free("Of the part.", "^bytes [0-9]+-[0-9]+/[0-9]+$")}
    content: Json = {allowed: {} for allowed in config.blob.allowed_types}
    unmodified = {name: headers[name] for name in ("Cache-Control", "ETag")} | ALWAYS
    beyond = _plain(416, "A range beyond the end")
    beyond["headers"]["Content-Range"] = free("The length.", "^bytes [*]/[0-9]+$")
    return {
        "200": {"description": "All of it", "headers": headers, "content": content},
        "206": {"description": "One range", "headers": part, "content": content},
        "304": {"description": "The client has it", "headers": unmodified},
        "416": beyond,
        **parts.errors_of("Picture"),
    }


def _accounts(config: Config) -> Json:
    found = {
        "302": {
            "description": "Where the picture is that the profile names now",
            "headers": {
                "Location": free("Its URL."),
                "Cache-Control": free("How long.", "^(public|private), max-age=[0-9]+$"),
                **ALWAYS,
            },
        },
        **parts.errors_of("Account"),
    }
    if config.actors.fallback != "none":
        shown = _result_headers(config, "inline")
        unmodified = {name: shown[name] for name in ("Cache-Control", "ETag")} | ALWAYS
        types: Json = {each.content_type: {} for each in OUTPUTS}
        found |= {
            "200": {"description": "Drawn from the DID", "headers": shown, "content": types},
            "304": {"description": "The client has it", "headers": unmodified},
        }
    paths: Json = {}
    for kind in KINDS:
        for preset in ("", "/{preset}"):
            for format_ in ("", "@{format}"):
                path = f"/{kind}{preset}/{{actor}}{format_}"
                paths[path] = _get(f"The {kind} of an account", found, has_options=True)
    query = [{"name": "q", "in": "query", "required": True, "schema": {"type": "string"}}]
    headers = fixed((("Cache-Control", "no-store"), ("X-Content-Type-Options", "nosniff")))
    looked_up = {"description": "Found", "headers": headers, "content": json_body("Found")}
    paths["/lookup"] = _get(
        "What an account, a post or a link shows: what the page asks",
        {"200": looked_up, **parts.errors_of("Account")},
        sent=query,
    )
    return paths


def _document() -> Json:
    cached = fixed((("Cache-Control", "no-cache"),)) | {"ETag": free("Strong.", '^"[0-9a-f]+"$')}
    body = {_JSON: {"schema": {"type": "object", "required": ["openapi", "paths"]}}}
    headers = cached | ALWAYS | READABLE
    responses = {
        "200": {"description": "The document", "headers": headers, "content": body},
        "304": {"description": "The client has it", "headers": cached | ALWAYS},
    }
    sent = [ref("parameters", "If-None-Match")]
    return _get("This document", responses, sent=sent, has_options=True)


def _for_people() -> Json:
    page, listed = _page("no-cache"), _page("no-store")
    # What has a query is not stored, and the page alone is.
    page["headers"]["Cache-Control"] = free("Whether it has a query.", "^no-(cache|store)$")
    retried = {**listed["headers"], "Retry-After": free("Seconds.", "^[0-9]+$")}
    refused = {
        status: {**listed, "description": "Why not"} for status in parts.errors_of("Account")
    }
    seen = {"200": page, **refused, "503": {**refused["503"], "headers": retried}}
    query = [
        {"name": name, "in": "query", "schema": {"type": "string"}}
        for name in ("q", "cid", "format", "list")
    ]
    return {
        "/": _get(
            "The page for people; with a query and list=1, a list of pictures", seen, sent=query
        ),
        "/icon.svg": _get(
            "Its icon",
            {"200": {"description": "The icon", "content": {"image/svg+xml": {}}}},
        ),
    }


def _operations() -> Json:
    ready = _plain(200, "It serves", r"^ok\n(degraded: [^\n]+\n)?$")
    count = {metrics.CONTENT_TYPE: {"schema": {"type": "string"}}}
    return {
        "/healthz": _get("Whether the process can serve", {"200": _plain(200, "ok", r"^ok\n$")}),
        "/readyz": _get(
            "Whether it should get traffic",
            {"200": ready, "503": _plain(503, "Why not")},
        ),
        "/metrics": _get(
            "Metrics for Prometheus", {"200": {"description": "Metrics", "content": count}}
        ),
    }


def _options_of_framework(path: str, item: Json) -> Json:
    """Describe OPTIONS on a route without CORS; those of operators ask for the token first."""
    of_operators = path.startswith(("/admin", "/xrpc"))
    (other, *_) = item.values()
    answers = {"204": {"description": "What may be asked", "headers": {"Allow": free("Methods.")}}}
    if of_operators:
        found = other["responses"]
        answers |= {status: found[status] for status in ("401", "404", "429") if status in found}
    own = {"security": other["security"]} if "security" in other else {}
    return {"summary": "Its methods", **own, "responses": answers}


def _admin() -> Json:
    selected = [
        {"name": name, "in": "query", "schema": ref("schemas", name.title())}
        for name in ("did", "cid")
    ]
    page = [
        {"name": "limit", "in": "query", "schema": {"type": "integer", "minimum": 1}},
        {"name": "before", "in": "query", "schema": {"type": "integer", "minimum": 1}},
    ]
    query = [{"name": "q", "in": "query", "required": True, "schema": {"type": "string"}}]
    looks = {
        status: {"description": "Why not", "content": json_body("Error")}
        for status in parts.errors_of("Account")
    }
    page_of_moderators = {"200": _page("no-store"), "404": _plain(404, "No token is configured")}
    return {
        "/admin": _get("The page for moderators", page_of_moderators),
        "/admin/state": _get("The state of the server", _asked("State"), security="token"),
        "/admin/purge": {"post": _change("Removes what is cached", "Removed")},
        "/admin/blocks": {
            **_get("The blocks", _asked("Blocks"), security="token"),
            "post": _change("Blocks an owner, a blob everywhere, or a pair", "Removed"),
            "delete": _change("Lifts a block", "Lifted"),
        },
        "/admin/check": _get(
            "Whether something is blocked", _asked("Check"), sent=selected, security="token"
        ),
        "/admin/audit": _get("Decisions", _asked("Audit"), sent=page, security="token"),
        "/admin/lookup": _get(
            "What a moderator may decide about",
            _asked("FoundByModerator", looks),
            sent=query,
            security="token",
        ),
    }


def _change(summary: str, schema: str) -> Json:
    return {
        "summary": summary,
        "security": [{"token": []}],
        "requestBody": {"required": True, "content": json_body("Selection")},
        "responses": _asked(schema),
    }


def _asked(schema: str, more: Json | None = None, error: str = "Error") -> Json:
    """Return the answers to an operator."""
    busy = {**json_body(error), PLAIN: {}}
    unauthorized = _plain(401, "No such token")
    unauthorized["headers"]["WWW-Authenticate"] = free("The scheme.")
    too_many = _plain(429, "Too many wrong tokens from this address")
    too_many["headers"]["Retry-After"] = free("Seconds.", "^[0-9]+$")
    found = {
        "200": {
            "description": "Done",
            "headers": _STORED_NOWHERE,
            "content": json_body(schema) if schema else {_JSON: {"schema": {"type": "object"}}},
        },
        "400": {"description": "What is wrong", "content": json_body(error)},
        **(more or {}),
        "401": unauthorized,
        "429": too_many,
        "503": {"description": "Not done, or not everywhere", "content": busy},
    }
    none = _plain(404, "No token is configured")
    if "404" in found:
        none["content"] |= found["404"]["content"]
    return {**found, "404": none}


def _purges_of_porxie() -> Json:
    return {
        f"/xrpc/dev.blooym.porxie.cache.{name}": {
            "post": {
                "summary": summary,
                "security": [{"password": []}],
                "requestBody": {
                    "required": True,
                    "content": {
                        _JSON: {
                            "schema": {
                                "type": "object",
                                "properties": {key: ref("schemas", key.title())},
                                "required": [key],
                            }
                        }
                    },
                },
                "responses": _asked("", error="XrpcError"),
            }
        }
        for name, key, summary in (
            ("purgeActor", "did", "Removes what is cached of an owner"),
            ("purgeBlob", "cid", "Removes what is cached of a blob"),
        )
    }


def _page(cache_control: str) -> Json:
    headers = fixed((("Cache-Control", cache_control), ("X-Content-Type-Options", "nosniff")))
    headers["Content-Security-Policy"] = free("Its own script and style alone.")
    content = {_HTML: {"schema": {"type": "string"}}}
    return {"description": "A page", "headers": headers, "content": content}


def _plain(status: int, description: str, pattern: str = r"^[^\n]+\n$") -> Json:
    """Describe a line of text that no cache stores."""
    headers = fixed(plain_response(status, "").headers)
    return {"description": description, "headers": headers, "content": text(pattern)}


def _get(
    summary: str,
    responses: Json,
    *,
    sent: list[Json] | None = None,
    security: str | None = None,
    has_options: bool = False,
) -> Json:
    """Describe GET, and HEAD, which is answered alike without a body.

    Args:
        sent: what requests have in their query and headers.
    """
    bodiless = {
        status: each if "$ref" in each else {k: v for k, v in each.items() if k != "content"}
        for status, each in responses.items()
    }
    own = {"parameters": sent} if sent else {}
    if security is not None:
        own["security"] = [{security: []}]
    item: Json = {
        "get": {"summary": summary, **own, "responses": responses},
        "head": {"summary": f"{summary}: its headers", **own, "responses": bodiless},
    }
    if has_options:
        answer = {"description": "What may be asked", "headers": fixed(preflight().headers)}
        item["options"] = {"summary": "A preflight", "responses": {"204": answer}}
    return item
