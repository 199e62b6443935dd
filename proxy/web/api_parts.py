"""The parts of the API document: parameters, headers, errors and bodies, from the code. Pure."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from functools import cache
from typing import Any

from pydantic import TypeAdapter

from proxy import errors
from proxy.egress.known_hosts import HostPace, OpenCircuit
from proxy.errors import ImageProxyError
from proxy.model.formats import OUTPUTS, Format
from proxy.model.identifiers import CID_PATTERN, DID_PATTERN, HANDLE_PATTERN
from proxy.model.picture_info import PictureInfo
from proxy.model.presets import Preset
from proxy.moderation.decision_store import Block, Decision
from proxy.observability.state import CacheState, RequestsState, WaitingState, WorkerState
from proxy.web.admin_input import MAX_REASON
from proxy.web.responses import PLAIN, SECURITY, SHARED, Headers, error_response

Json = dict[str, Any]

OF_ACCOUNTS = (
    errors.InvalidHandle,
    errors.AccountNotFound,
    errors.RecordNotFound,
    errors.NoAvatar,
    errors.NoBanner,
    errors.HandleUnresolvable,
)
"""Errors of requests that name an account; those that name a blob have none of them."""

_DID, _CID, _HANDLE = (
    {"type": "string", "pattern": f"^(?:{pattern})$"}
    for pattern in (DID_PATTERN, CID_PATTERN, HANDLE_PATTERN)
)


def ref(kind: str, name: str) -> Json:
    """Return a reference to a component."""
    return {"$ref": f"#/components/{kind}/{name}"}


def parameters(presets: Mapping[str, Preset]) -> Json:
    """Return the parameters that paths have, by name."""
    formats = dict.fromkeys(name for each in OUTPUTS for name in (each.value, each.extension))
    of_paths: dict[str, tuple[str, Json]] = {
        "preset": (
            "\n".join(f"- `{name}`: {about(preset)}" for name, preset in presets.items()),
            {"enum": list(presets)},
        ),
        "did": ("The owner. A `%` in it is written `%25`.", ref("schemas", "Did")),
        "cid": ("Of the blob, as records have it.", ref("schemas", "Cid")),
        "format": ("`jpg` is `jpeg`.", {"enum": list(formats)}),
        "actor": (
            "An account by handle, with or without an `@`, or by DID.",
            {"type": "string", "pattern": f"^(?:{DID_PATTERN}|@?(?:{HANDLE_PATTERN}))$"},
        ),
    }
    own = {
        name: {"name": name, "in": "path", "required": True, "description": told, "schema": schema}
        for name, (told, schema) in of_paths.items()
    }
    return own | {
        name: {"name": name, "in": "header", "schema": {"type": "string", "pattern": pattern}}
        for name, pattern in _OF_REQUESTS.items()
    }


def about(preset: Preset) -> str:
    """Return a preset in a few words."""
    size = f"{preset.width} x {preset.height}" if preset.height else f"{preset.width} wide"
    parts = [size, preset.fit, f"quality {preset.quality}", *(["animated"] * preset.animated)]
    if preset.png != "keep":
        parts.append(f"png {preset.png}")
    return ", ".join(parts)


def schemas() -> Json:
    """Return the schemas of bodies, by name."""
    selection: Json = {"did": ref("schemas", "Did"), "cid": ref("schemas", "Cid")}
    reason = {"type": "string", "maxLength": MAX_REASON}
    picture = {"cid": ref("schemas", "Cid"), "name": _TEXT, "alt": _TEXT, "medium": _TEXT}
    shown = _object(did=ref("schemas", "Did"), **picture, source=_or_null(_TEXT))
    return {
        "Did": _DID,
        "Cid": _CID,
        "Handle": _HANDLE,
        "PictureInfo": PictureInfo.model_json_schema(),
        "Found": _object(
            did=ref("schemas", "Did"),
            profile_of=_or_null(_TEXT),
            pictures=_array(shown),
            problems=_array(_object(source=_TEXT, problem=_TEXT)),
        ),
        "FoundByModerator": _object(
            did=_or_null(ref("schemas", "Did")),
            handle=_or_null(_TEXT),
            pictures=_array(_object(**picture)),
            problem=_or_null(_TEXT),
        ),
        "Selection": {
            "type": "object",
            "properties": {**selection, "reason": reason},
            "anyOf": [{"required": ["did"]}, {"required": ["cid"]}],
            "additionalProperties": False,
        },
        "Removed": _object(removed=_COUNT),
        "Lifted": _object(lifted={"type": "boolean"}),
        "Block": _without_id(_of_dataclass(Block)),
        "Decision": _of_dataclass(Decision),
        "Blocks": _object(blocks=_array(ref("schemas", "Block"))),
        "Check": _object(blocked={"type": "boolean"}, blocks=_array(ref("schemas", "Block"))),
        "Audit": _object(
            decisions=_array(ref("schemas", "Decision")),
            before=_or_null({"type": "integer", "minimum": 1}),
        ),
        "Worker": _of_dataclass(WorkerState),
        "HostPace": _of_dataclass(HostPace),
        "OpenCircuit": _of_dataclass(OpenCircuit),
        "State": _object(
            workers=_array(ref("schemas", "Worker")),
            requests=_of_dataclass(RequestsState),
            waiting=_of_dataclass(WaitingState),
            refused=_COUNT,
            memory_bytes=_COUNT,
            cache=_of_dataclass(CacheState),
            blocks=_COUNT,
            hosts=_array(ref("schemas", "HostPace")),
            circuits=_array(ref("schemas", "OpenCircuit")),
        ),
        "Error": _object(error=_TEXT),
        "XrpcError": _object(error=_TEXT, message=_TEXT),
    }


def error_responses() -> Json:
    """Return the rows of the error table by status: for pictures, and for accounts."""
    return {
        f"{kind}{status}": _error(status, found)
        for kind, of_kind in (("Picture", False), ("Account", True))
        for status, found in _by_status(of_accounts=of_kind).items()
    }


def errors_of(kind: str) -> Json:
    """Return the errors of an operation by status; ``kind`` is ``Picture`` or ``Account``."""
    statuses = _by_status(of_accounts=kind == "Account")
    return {str(status): ref("responses", f"{kind}{status}") for status in statuses}


def fixed(headers: Headers) -> Json:
    """Describe headers that always have these values."""
    return {
        name: {"required": True, "schema": {"const": value}}
        for name, value in headers
        if name != "Content-Type"
    }


def free(description: str, pattern: str = "", *, required: bool = True) -> Json:
    """Describe a header whose value differs from answer to answer."""
    schema = {"type": "string", **({"pattern": pattern} if pattern else {})}
    return {"description": description, "required": required, "schema": schema}


def text(pattern: str) -> Json:
    """Describe a body of one line of text."""
    return {PLAIN: {"schema": {"type": "string", "pattern": pattern}}}


def json_body(schema: str) -> Json:
    """Describe a body of JSON."""
    return {Format.JSON.content_type: {"schema": ref("schemas", schema)}}


ALWAYS = fixed(SECURITY)
READABLE = fixed(SHARED)

_OF_REQUESTS = {
    "If-None-Match": r'^(?:[*]|(?:W/)?"[!#-~]*")$',
    "Range": "^bytes=(?:[0-9]+-[0-9]*|-[0-9]+)$",
    "If-Range": '^"[!#-~]*"$',
}
"""Headers of requests that change the answer, in the forms that clients send."""

_TEXT: Json = {"type": "string"}
_COUNT: Json = {"type": "integer", "minimum": 0}


def _object(**properties: Json) -> Json:
    return {"type": "object", "properties": properties, "required": list(properties)}


def _or_null(schema: Json) -> Json:
    return {"anyOf": [schema, {"type": "null"}]}


def _array(items: Json) -> Json:
    return {"type": "array", "items": items}


@cache
def _of_dataclass(kind: type) -> Json:
    return TypeAdapter(kind).json_schema()


def _without_id(schema: Json) -> Json:
    properties = {name: each for name, each in schema["properties"].items() if name != "id"}
    return {**schema, "properties": properties, "required": list(properties)}


def _by_status(*, of_accounts: bool) -> dict[int, list[type[ImageProxyError]]]:
    found: dict[int, list[type[ImageProxyError]]] = {}
    for each in _family(ImageProxyError):
        if of_accounts or not issubclass(each, OF_ACCOUNTS):
            found.setdefault(each.status, []).append(each)
    return dict(sorted(found.items()))


def _family(kind: type[ImageProxyError]) -> Iterator[type[ImageProxyError]]:
    """Yield the error classes of the table."""
    if kind.__module__ == errors.__name__:
        yield kind
    for each in kind.__subclasses__():
        yield from _family(each)


def _error(status: int, found: Sequence[type[ImageProxyError]]) -> Json:
    messages = list(dict.fromkeys(each.message for each in found))
    answer = error_response(found[0]())
    headers = fixed(tuple(pair for pair in answer.headers if pair[0] != "Retry-After"))
    if status == 503:
        headers["Retry-After"] = free("Seconds.", "^[0-9]+$")
    begins = "|".join(re.escape(message) for message in messages)
    return {
        "description": "; ".join(f"`{message}`" for message in messages),
        "headers": headers,
        "content": text(rf"^(?:{begins})[^\n]*\n$"),
    }
