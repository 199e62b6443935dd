"""``/openapi.json``: it describes every route, and every route answers as it says."""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterator
from itertools import count
from pathlib import Path
from typing import Any

import pytest
import requests
import schemathesis
import trio
from hypothesis import given
from hypothesis import strategies as st
from schemathesis.core.result import Ok
from schemathesis.core.transport import Response
from schemathesis.generation import GenerationMode
from schemathesis.specs.openapi import checks

from proxy import errors
from proxy.config import Config
from proxy.errors import InvalidRequest
from proxy.model.formats import OUTPUTS
from proxy.model.identifiers import (
    CID_PATTERN,
    DID_PATTERN,
    HANDLE_PATTERN,
    parse_cid,
    parse_did,
    parse_handle,
)
from proxy.model.presets import DEFAULT_PRESETS
from proxy.model.selection import Selection
from proxy.web import app as web
from proxy.web.api_document import DOCUMENT, described
from proxy.web.app import create_app
from tests.examples import examples
from tests.fakes.cdns import SETTINGS
from tests.fakes.sites import new_plc_did
from tests.fakes.world import World, tiny_png
from tests.web import SECURITY, SHARED, Client, serving

TOKEN = "a-token-of-the-operator"
OPEN = {"server": {"admin_token": TOKEN}}

CHECKS = [
    checks.status_code_conformance,
    checks.content_type_conformance,
    checks.response_headers_conformance,
    checks.response_schema_conformance,
]

CASES = 4
"""Requests of each operation and kind."""

BASE = "http://proxy.test"

Document = dict[str, Any]
Case = schemathesis.Case[Any]


def document(config: Config | None = None) -> Document:
    config = config or Config()
    # As clients get it: without tuples and shared parts.
    found: Document = json.loads(json.dumps(described(config, config.preset_table)))
    return found


def operations_of(described: Document) -> Iterator[Any]:
    for found in schemathesis.openapi.from_dict(described).get_all_operations():
        assert isinstance(found, Ok), found
        yield found.ok()


def operations(described: Document) -> Iterator[tuple[str, str]]:
    for path, item in described["paths"].items():
        for method in item.keys() - {"parameters", "servers"}:
            yield path, method


def test_the_document_is_one_of_openapi_3_1() -> None:
    """Catches a reference to nowhere, and a field where none may be."""
    found = document()
    schemathesis.openapi.from_dict(found).validate()
    assert found["openapi"].startswith("3.1.")
    for name in re.findall(r'"#/([^"]+)"', json.dumps(found)):
        part: Any = found
        for step in name.split("/"):
            part = part[step]


def test_every_route_of_the_application_is_in_the_document() -> None:
    """Catches a route that is added and not described."""
    app = create_app(Config.model_validate(OPEN))
    found = set(operations(document()))
    for rule in app.url_map.iter_rules():
        # What is after /avatar/ has a grammar of its own.
        begins = rule.rule.replace("<rest:rest>", "{")
        for method in rule.methods or set():
            same = [
                path
                for path, of_path in found
                if of_path == method.lower()
                and (path.startswith(begins) if begins.endswith("{") else path == begins)
            ]
            assert same, f"{method} {rule.rule}"
    before_the_framework = {web.IMAGE, web.BLOB, web.POSTER, web.INFO, DOCUMENT}
    assert before_the_framework <= {path for path, _ in found}


def test_every_route_of_the_grammar_is_in_the_document() -> None:
    """Catches a kind of URL that docs/urls.md has alone."""
    text = (Path(__file__).parents[2] / "docs/urls.md").read_text(encoding="utf-8")
    asked = {
        path
        for line in re.findall(r"^    GET\|HEAD .*$", text, re.MULTILINE)
        for path in re.findall(r"(/\S+)", line)
        if path != "/HEAD"
    }
    assert len(asked) >= 9
    assert asked <= set(document()["paths"])


FILLED = {"preset": "avatar", "format": "webp", "cid": "Qm" + "a" * 44, "actor": "a.example.com"}


async def test_every_route_of_the_document_is_one_of_the_application(world: World) -> None:
    """Catches a route that is described and gone."""
    did = new_plc_did()
    async with serving(world, world.config(**OPEN)) as client:
        for path, method in operations(document()):
            target = path.format(did=did, **FILLED)
            reply = await client.ask(target, method=method.upper())
            assert reply.status != 405, f"{method} {path}"
            assert reply.body != b"not found\n", f"{method} {path}"
            if method == "head":
                assert reply.status == (await client.get(target)).status


async def test_the_document_is_served_with_a_tag_and_to_every_origin(world: World) -> None:
    """Catches a document that is sent whole each time, or stays after a change of the presets."""
    async with serving(world) as client:
        got = await client.get(DOCUMENT)
        tag = got.headers["etag"]
        known = await client.get(DOCUMENT, ("If-None-Match", tag))
        other = await client.get(DOCUMENT, ("If-None-Match", '"other"'))
        head = await client.head(DOCUMENT)
        preflight = await client.ask(DOCUMENT, method="OPTIONS")
        refused = await client.ask(DOCUMENT, method="POST")
    assert json.loads(got.body) == document(world.config())
    assert got.headers == {
        "content-type": "application/json",
        "content-length": str(len(got.body)),
        "cache-control": "no-cache",
        "etag": tag,
        **SECURITY,
        **SHARED,
    }
    assert (known.status, known.body, known.headers["etag"]) == (304, b"", tag)
    assert (other.status, other.body) == (200, got.body)
    assert (head.status, head.body, head.headers) == (200, b"", got.headers)
    assert (preflight.status, refused.status) == (204, 405)
    presets = {"tiny": {"width": 8, "height": 8, "fit": "cover", "quality": 50}}
    async with serving(world, world.config(presets=presets)) as client:
        changed = await client.get(DOCUMENT, ("If-None-Match", tag))
    assert (changed.status, changed.headers["etag"] == tag) == (200, False)
    assert json.loads(changed.body)["components"]["parameters"]["preset"]["schema"] == {
        "enum": ["tiny"]
    }


def test_presets_formats_and_errors_are_those_of_the_code() -> None:
    """Catches a list that is written down twice."""
    found = document()["components"]
    assert found["parameters"]["preset"]["schema"]["enum"] == list(DEFAULT_PRESETS)
    assert set(found["parameters"]["format"]["schema"]["enum"]) == {*OUTPUTS, "jpg"}
    told = {name: each["description"] for name, each in found["responses"].items()}
    classes = [
        each
        for each in vars(errors).values()
        if isinstance(each, type) and issubclass(each, errors.ImageProxyError)
    ]
    for each in classes:
        assert f"`{each.message}`" in told[f"Account{each.status}"]
    assert f"`{errors.NoAvatar.message}`" not in told["Picture404"]


def test_where_the_service_is_mounted_is_where_the_document_says() -> None:
    """Catches URLs without the path, and operators' routes below it, where they are not."""
    found = document(Config.model_validate({"server": {"root_path": "/pictures"}}))
    assert found["servers"] == [{"url": "/pictures"}]
    elsewhere = {path for path, item in found["paths"].items() if "servers" in item}
    assert "/admin/blocks" in elsewhere
    assert "/metrics" in elsewhere
    assert not any(path.startswith(("/img/", "/avatar/")) for path in elsewhere)


def test_a_service_that_is_not_enabled_describes_its_operations_alone() -> None:
    """Catches pictures that are promised and not served."""
    paths = document(Config.model_validate({"server": {"enabled": False}}))["paths"]
    assert {"/healthz", "/readyz", "/metrics", DOCUMENT} <= set(paths)
    assert not any("{" in path for path in paths)


@pytest.mark.parametrize(
    ("pattern", "parse"),
    [(DID_PATTERN, parse_did), (HANDLE_PATTERN, parse_handle)],
    ids=["did", "handle"],
)
@given(data=st.data())
def test_what_a_pattern_lets_through_is_refused_for_its_length_or_its_end_alone(
    pattern: str, parse: Callable[[str], str], data: st.DataObject
) -> None:
    """Catches a pattern for another grammar than the parser's."""
    text = data.draw(st.from_regex(f"^(?:{pattern})$", fullmatch=True))
    try:
        parse(text)
    except InvalidRequest:
        name = text.removeprefix("did:web:")
        reserved = {"alt", "arpa", "example", "internal", "invalid", "local", "localhost", "onion"}
        port = name.partition("%3A")[2]
        assert (
            len(name) > 253
            or name.rpartition(".")[2].lower() in {*reserved, "test"}
            or int(port or 0) > 65535
        )


@pytest.mark.parametrize(
    "text",
    [
        "bafkreihagr2cmvl2jt4mgx3sppwe2it3fwolkrbtjrhcnwjk4jdijhsoze",
        "QmYwAPJzv5CZsnA625s3Xf2nemtYgPpHdWEz79ojWnPbdG",
        "bafybeihagr2cmvl2jt4mgx3sppwe2it3fwolkrbtjrhcnwjk4jdijhsoze",
    ],
)
def test_every_spelling_of_a_cid_that_is_accepted_has_the_pattern(text: str) -> None:
    """Catches a client that refuses its own CIDs by the document."""
    assert parse_cid(text)
    assert re.fullmatch(CID_PATTERN, text)
    assert not re.fullmatch(CID_PATTERN, text.upper())


class Asker:
    """Asks an application, from the thread in which requests are made up.

    Attributes:
        statuses: what was answered, with the path of the document.
    """

    def __init__(self, client: Client, authorization: str | None = None) -> None:
        self._client = client
        self._authorization = authorization
        self._addresses = count()
        self.statuses: set[tuple[str, int]] = set()

    def check(self, case: Case) -> None:
        """Fail unless the answer is one of those in the document."""
        made = requests.Request(**_request(case)).prepare()
        assert made.url is not None
        target = made.url.removeprefix(BASE)
        assert isinstance(made.body, str | bytes | None)
        body = made.body.encode() if isinstance(made.body, str) else made.body or b""
        headers = {
            name: value if isinstance(value, str) else value.decode()
            for name, value in made.headers.items()
        }
        if self._authorization is not None:
            headers["Authorization"] = self._authorization
        # Of many clients: one that guesses tokens would wait.
        address = f"10.0.{next(self._addresses) // 200 % 200}.1"
        reply = trio.from_thread.run(
            lambda: self._client.ask(
                target, *headers.items(), method=case.method, body=body, address=address
            )
        )
        self.statuses.add((case.operation.path, reply.status))
        response = Response(
            reply.status,
            {name: [value] for name, value in reply.headers.items()},
            reply.body,
            made,
            elapsed=0.0,
            verify=False,
        )
        case.validate_response(response, checks=CHECKS)


def _request(case: Case) -> dict[str, Any]:
    known = case.as_transport_kwargs(BASE)
    names = ("method", "url", "headers", "params", "cookies", "data", "json", "files")
    return {name: known[name] for name in names if name in known}


def add_account(world: World) -> dict[str, str]:
    """What paths name: an account with a picture, which is its avatar and banner too."""
    did, cid = world.add_blob(tiny_png())
    blob = {"$type": "blob", "ref": {"$link": cid}, "mimeType": "image/png", "size": 1}
    record = {"$type": "app.bsky.actor.profile", "avatar": blob, "banner": blob}
    world.pds.add_record(did, "app.bsky.actor.profile/self", record)
    return {"did": did, "cid": cid, "actor": did}


# The service beside it draws pauses at random while Hypothesis, in a thread, looks who draws.
@pytest.mark.filterwarnings("ignore:Do not use the `random` module inside strategies")
@pytest.mark.parametrize("mode", GenerationMode)
async def test_every_route_answers_as_the_document_says(mode: GenerationMode, world: World) -> None:
    """Catches a status, a type, a header or a body that is not described, for any request."""
    values = add_account(world)
    config = world.config(**OPEN)
    async with serving(world, config) as client:
        is_right = mode is GenerationMode.POSITIVE
        asker = Asker(client, f"Bearer {TOKEN}" if is_right else None)

        def ask_all() -> None:
            for operation in operations_of(document(config)):
                if not is_right and not any(operation.iter_parameters()) and not operation.body:
                    continue  # nothing can be wrong
                names = {each.name for each in operation.path_parameters} & values.keys()
                strategies = [operation.as_strategy(mode)]
                if is_right and names:
                    known = {name: values[name] for name in names}
                    strategies.append(operation.as_strategy(mode, path_parameters=known))
                for strategy in strategies:
                    examples(CASES)(given(case=strategy)(asker.check))()

        await trio.to_thread.run_sync(ask_all)


IMG, BLOB = "/img/{preset}/plain/{did}/{cid}", "/blob/{did}/{cid}"


@pytest.mark.parametrize(
    ("path", "headers", "status"),
    [
        (IMG, {}, 200),
        (IMG + "@{format}", {}, 200),
        (IMG, {"If-None-Match": "TAG"}, 304),
        (BLOB, {}, 200),
        (BLOB, {"If-None-Match": "TAG"}, 304),
        (BLOB, {"Range": "bytes=2-5"}, 206),
        (BLOB, {"Range": "bytes=99999-"}, 416),
        ("/info/{did}/{cid}", {}, 200),
        ("/avatar/{actor}", {}, 302),
        ("/banner/{preset}/{actor}@{format}", {}, 302),
        ("/lookup?q", {}, 200),
        ("/admin/blocks", {}, 200),
        ("/admin/check?cid", {}, 200),
        ("/admin/audit", {}, 200),
        ("/admin/lookup?q", {}, 200),
        ("/metrics", {}, 200),
        ("/", {}, 200),
        ("/?q", {}, 200),
    ],
)
@pytest.mark.parametrize("cdn", [False, True])
async def test_what_is_found_is_as_the_document_says(
    path: str, headers: dict[str, str], status: int, cdn: bool, world: World
) -> None:
    """Catches a document that describes mistakes alone, and one that forgets the CDN's header."""
    values = add_account(world)
    path, _, asked = path.partition("?")
    query = {"q": {"q": values["did"]}, "cid": {"cid": values["cid"]}}.get(asked, {})
    config = world.config(**OPEN, **({"cdn": SETTINGS["cloudflare"]} if cdn else {}))
    async with serving(world, config) as client:
        await client.service.moderator.block(Selection(new_plc_did()), by="alice", reason="test")
        asker = Asker(client, f"Bearer {TOKEN}")
        operation = schemathesis.openapi.from_dict(document(config))[path]["GET"]
        filled = {**FILLED, **values}
        parts = {each.name: filled[each.name] for each in operation.path_parameters}
        if "TAG" in headers.values():
            whole = await client.get(path.format(**filled))
            headers = {"If-None-Match": whole.headers["etag"]}
        case = operation.Case(path_parameters=parts, headers=headers, query=query, method="GET")
        await trio.to_thread.run_sync(asker.check, case)
        assert asker.statuses == {(path, status)}
