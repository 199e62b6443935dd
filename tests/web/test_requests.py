"""What strangers may write in a request: properties that hold for all of it.

The examples are the same in every run; ``FUZZ_EXAMPLES`` in the environment asks for more of them.
"""

from __future__ import annotations

import json
import os
import re
import string
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from functools import partial
from ipaddress import ip_address
from itertools import count
from pathlib import Path
from urllib.parse import unquote

import pytest
import trio
from hypothesis import example, given, settings
from hypothesis import strategies as st

from proxy.model.formats import OUTPUTS
from proxy.model.identifiers import Cid, Did
from proxy.model.presets import DEFAULT_PRESETS
from tests.examples import many
from tests.fakes.sites import GET_BLOB
from tests.fakes.world import World
from tests.processes import Background, in_background, until
from tests.web import WAYS, Client, Reply, Way, img, serving

EXAMPLES = int(os.environ.get("FUZZ_EXAMPLES") or many(200))

# The service beside it draws pauses at random while Hypothesis, in another thread, looks who draws.
pytestmark = pytest.mark.filterwarnings("ignore:Do not use the `random` module inside strategies")

stable = settings(max_examples=EXAMPLES, database=None)

TOKEN = "a-token-of-the-operator"


@dataclass
class Stage:
    """An application, one owner of one blob, and a folder in which all of it happens."""

    world: World
    client: Client
    folder: Path
    did: Did
    cid: Cid

    @property
    def files(self) -> set[str]:
        """Every file below the folder, by its path in it."""
        found = (path for path in self.folder.rglob("*") if path.is_file())
        return {str(path.relative_to(self.folder)) for path in found}

    def is_spelled_as_it_should_be(self, path: str) -> bool:
        """Whether a decoded path names the blob in its one spelling."""
        start = f"/plain/{self.did}/{self.cid}"
        names = {"", "@jpg", *(f"@{format_.value}" for format_ in OUTPUTS)}
        paths = {f"/img/{preset}{start}{name}" for preset in DEFAULT_PRESETS for name in names}
        return path in paths | {f"/blob/{self.did}/{self.cid}"}


@asynccontextmanager
async def open_stage(folder: Path) -> AsyncIterator[Stage]:
    async with trio.open_nursery() as nursery:
        world = World(nursery, folder)
        did, cid = world.add_blob()
        config = world.config(server={"admin_token": TOKEN})
        async with serving(world, config) as client:
            yield Stage(world, client, folder, did, cid)
        nursery.cancel_scope.cancel()


@pytest.fixture(autouse=True)
def connections() -> None:
    """Not counted for each test: the server that all of them ask keeps its own open."""


@pytest.fixture(scope="module", params=WAYS, autouse=True)
def way(request: pytest.FixtureRequest) -> Iterator[None]:
    """Each property holds through the server's interface, and through the door."""
    Way.name = request.param
    yield
    Way.name = WAYS[0]


@pytest.fixture(scope="module")
def stage(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Background[Stage]]:
    """One for all examples: what one request leaves behind, the next one meets."""
    with in_background(partial(open_stage, tmp_path_factory.mktemp("stage"))) as background:
        yield background


FILES = re.compile(
    r"cache/(?:moderation\.sqlite3(?:-wal|-shm)?|\.moderation\.sqlite3\.lock"
    r"|blocks-are-kept-here|backups/[^/]+"
    r"|followers/[0-9a-f]{16}(?:\.new)?|turns/[a-z]+"
    r"|index-1\.sqlite3(?:-wal|-shm)?|\.index-1\.sqlite3\.lock|flights\.lock"
    r"|processes/[0-9a-f]{16}(?:\.new)?|writing/[0-9a-f]{16}/[0-9]+"
    r"|images/plc/[a-z2-7]{2}/[a-z2-7]{24}/[a-z_]+-[0-9a-f]{10}"
    r"/(?:b[a-z2-7]{58}@(?:auto|jpeg|png|webp|avif|json)\.(?:jpg|png|webp|avif|gif|json))"
    r"|images/\.[0-9a-f]{16})"
)
"""All that may be in the folder."""

STATUSES = {200, 204, 304, 400, 401, 404, 405, 413}

NUMBERS = count(1)

NAME = re.compile(rb"[!#$%&'*+.^_`|~0-9A-Za-z-]+")
VALUE = re.compile(rb"[\x20-\x7e]*")


def ask(
    stage: Background[Stage],
    target: str,
    *headers: tuple[str, str],
    method: str = "GET",
    body: bytes = b"",
) -> Reply:
    """One request, and all that must hold whatever it was.

    Each comes from an address of its own, so that none has to wait for the tokens of another.
    """
    here = stage.value
    address = str(ip_address("10.0.0.0") + next(NUMBERS))
    work = partial(here.client.ask, target, *headers, method=method, body=body, address=address)
    reply = stage.run(work)
    assert reply.status in STATUSES, (reply.status, target)
    for name, value in reply.pairs:
        assert NAME.fullmatch(name), name
        assert VALUE.fullmatch(value), value
    if reply.status >= 400:
        # The operator is told in JSON why a body is wrong.
        told = ("application/json",) if (reply.status, target[:7]) == (400, "/admin/") else ()
        assert reply.headers["content-type"] in ("text/plain; charset=utf-8", *told)
        assert len(reply.body) < 1000
    for file in here.files:
        assert FILES.fullmatch(file), file
    # Nobody makes this service send what it would not send by itself.
    for request in here.world.pds.requests:
        assert request.target.startswith(f"{GET_BLOB}?did=did:plc:"), request.target
    for request in here.world.plc.requests:
        assert re.fullmatch(r"/did:plc:[a-z2-7]{24}", request.target), request.target
    here.world.pds.requests.clear()
    here.world.plc.requests.clear()
    return reply


ODD = ["..", ".", "", "%2e%2e", "%2F", "%5C", "%00", "%0d%0aX-Evil:%201", "%ff", "%25", "%", "~",
       "%E2%80%AE", "%C0%AF", "\\", ";", "@", "*", "?", "#", "plain", "img", "blob", "admin",
       "blocks", "purge", "metrics", "did:web:a.example", "did:web:localhost%253A80", "did:plc:",
       "con", "a" * 300, "etc", "passwd", "0", "-1", "<script>", '"', "'", "${x}", "{{x}}",
       "avatar", "avatar_thumbnail"]  # fmt: skip

visible = st.text(st.sampled_from(string.printable[:94]), max_size=30)
escaped = st.binary(max_size=12).map(lambda data: "".join(f"%{byte:02X}" for byte in data))
segments = st.one_of(st.sampled_from(ODD), visible, escaped)
starts = st.sampled_from(
    ["/img/", "/blob/", "/img/avatar/plain/", "/vid/", "/vid/avatar/", "/info/", "/admin/", "/",
     "//", "/img%2F"]
)  # fmt: skip
targets = st.builds(
    lambda start, parts, query: start + "/".join(parts) + query,
    starts,
    st.lists(segments, max_size=7),
    st.one_of(st.just(""), visible.map("?{}".format)),
)

methods = st.one_of(
    st.sampled_from(
        ["GET", "HEAD", "POST", "PUT", "DELETE", "PATCH", "OPTIONS", "TRACE", "CONNECT"]
    ),
    st.text(st.sampled_from(string.ascii_uppercase), min_size=1, max_size=20),
)
latin = st.text(st.characters(max_codepoint=255, exclude_characters="\r\n"), max_size=60)
header_names = st.sampled_from(
    ["If-None-Match", "If-Match", "Range", "Accept", "Accept-Encoding", "Origin", "Cookie", "Host",
     "Content-Type", "Content-Length", "Authorization", "X-Forwarded-Host", "Expect", "Te", "X-A"]
)  # fmt: skip
headers = st.lists(st.tuples(header_names, latin), max_size=4)


@stable
@given(target=targets, method=methods, headers=headers, body=st.binary(max_size=40))
@example("/img/avatar/plain/%2e%2e%2f%2e%2e/etc/passwd", "GET", [], b"")
@example("/img/%0d%0aSet-Cookie:%20a=b/plain/a/b", "GET", [], b"")
@example("/", "GET", [("Content-Length", "x"), ("Host", "\xff")], b"")
def test_no_request_whatever_is_a_500_or_reaches_a_header_or_a_file_it_should_not(
    stage: Background[Stage],
    target: str,
    method: str,
    headers: list[tuple[str, str]],
    body: bytes,
) -> None:
    reply = ask(stage, target, *headers, method=method, body=body)
    path = unquote(target.partition("?")[0])
    if path.startswith(("/img/", "/blob/", "/vid/", "/info/")):
        if method == "OPTIONS":
            assert (reply.status, reply.headers["allow"]) == (204, "GET, HEAD, OPTIONS")
        elif method not in ("GET", "HEAD"):
            assert (reply.status, reply.headers["allow"]) == (405, "GET, HEAD, OPTIONS")
        else:
            assert reply.status in (400, 404)


@st.composite
def spellings(draw: st.DrawFn) -> tuple[list[bool], list[bool], str]:
    """Which characters to escape, in which case, and a query."""
    flags = st.lists(st.booleans(), min_size=200, max_size=200)
    return draw(flags), draw(flags), draw(st.one_of(st.just(""), visible.map("?{}".format)))


@stable
@given(spelling=spellings(), headers=headers)
def test_no_encoding_and_no_query_makes_a_second_entry_of_one_picture(
    stage: Background[Stage],
    spelling: tuple[list[bool], list[bool], str],
    headers: list[tuple[str, str]],
) -> None:
    here = stage.value
    plain = img(here.did, here.cid)
    first = ask(stage, plain)
    assert first.status == 200
    escapes, cases, query = spelling
    written = plain[:5] + "".join(
        (f"%{ord(c):02x}" if upper else f"%{ord(c):02X}") if escape else c
        for c, escape, upper in zip(plain[5:], escapes, cases, strict=False)
    )
    headers = [(name, value) for name, value in headers if name != "If-None-Match"]
    reply = ask(stage, written + query, *headers)
    assert (reply.status, reply.headers["x-cache"], reply.body) == (200, "hit", first.body)
    assert reply.headers["etag"] == first.headers["etag"]


edits = st.tuples(
    st.integers(0, 150),
    st.sampled_from(["insert", "delete", "replace", "double", "upper"]),
    st.one_of(st.sampled_from(string.printable[:94]), st.sampled_from(ODD), escaped),
)


def edited(path: str, at: int, kind: str, text: str) -> str:
    at %= len(path)
    match kind:
        case "insert":
            return path[:at] + text + path[at:]
        case "delete":
            return path[:at] + path[at + 1 :]
        case "replace":
            return path[:at] + text + path[at + 1 :]
        case "double":
            return path[:at] + path[at] + path[at:]
        case _:
            return path[:at] + path[at].upper() + path[at + 1 :]


@stable
@given(
    edits=st.lists(edits, min_size=1, max_size=3),
    suffix=st.sampled_from(["", "@webp", "@png"]),
    blob=st.booleans(),
)
@example([(0, "insert", "/")], "", False)
@example([(130, "insert", "%00")], "", False)
@example([(40, "upper", "")], "", False)
def test_a_path_that_is_almost_right_is_refused_unless_it_is_exactly_right(
    stage: Background[Stage], edits: list[tuple[int, str, str]], suffix: str, blob: bool
) -> None:
    here = stage.value
    path = f"/blob/{here.did}/{here.cid}" if blob else img(here.did, here.cid, suffix=suffix)
    for at, kind, text in edits:
        path = edited(path, at, kind, text)
    if not path.startswith("/"):
        path = "/" + path
    reply = ask(stage, path)
    decoded = unquote(path.partition("?")[0])
    if decoded in ("/", "/healthz"):
        return
    assert (reply.status == 200) == here.is_spelled_as_it_should_be(decoded), path


tags = st.text(st.characters(max_codepoint=255, exclude_characters='"', exclude_categories=["Cc"]))
entity_tags = tags.filter(lambda tag: " " not in tag and "\xa0" not in tag).map('"{}"'.format)
weak_or_strong = st.tuples(st.sampled_from(["", "W/"]), entity_tags).map("".join)
blanks = st.sampled_from([",", ", ", " , ", ",,", "\t,\t", ", , "])


@stable
@given(
    before=st.lists(weak_or_strong, max_size=3),
    after=st.lists(weak_or_strong, max_size=3),
    weak=st.sampled_from(["", "W/"]),
    blank=blanks,
)
def test_a_list_of_tags_is_a_304_if_and_only_if_ours_is_among_them(
    stage: Background[Stage], before: list[str], after: list[str], weak: str, blank: str
) -> None:
    target = img(stage.value.did, stage.value.cid)
    etag = ask(stage, target).headers["etag"]
    others = blank.join([*before, *after])
    assert ask(stage, target, ("If-None-Match", others)).status == 200
    everything = blank.join([*before, weak + etag, *after])
    assert ask(stage, target, ("If-None-Match", everything)).status == 304


@stable
@given(value=latin)
@example("*")
@example('W/"')
@example(",,,")
@example('"' * 1000)
def test_any_other_value_of_if_none_match_is_ignored(stage: Background[Stage], value: str) -> None:
    target = img(stage.value.did, stage.value.cid)
    reply = ask(stage, target, ("If-None-Match", value))
    assert reply.status == (304 if value.strip(" \t") == "*" else 200)


identifiers = st.one_of(
    st.none(), visible, latin, st.sampled_from(["did:plc:" + "a" * 24, "did:web:a.example"])
)
values = st.recursive(
    st.one_of(st.none(), st.booleans(), st.integers(), st.floats(), st.text(max_size=20)),
    lambda inner: st.one_of(
        st.lists(inner, max_size=3), st.dictionaries(st.text(max_size=5), inner)
    ),
    max_leaves=8,
)
selections = st.fixed_dictionaries(
    {}, optional={"did": identifiers | values, "cid": identifiers | values, "reason": values}
)
bodies = st.one_of(
    st.binary(max_size=60),
    values.map(json.dumps).map(str.encode),
    selections.map(json.dumps).map(str.encode),
)


@stable
@given(
    route=st.sampled_from(["purge", "blocks", "", "nothing"]),
    method=st.sampled_from(["GET", "POST", "DELETE", "PUT"]),
    body=bodies,
    content_type=latin,
)
def test_no_body_whatever_makes_an_admin_route_fail(
    stage: Background[Stage], route: str, method: str, body: bytes, content_type: str
) -> None:
    authorized = (("Authorization", f"Bearer {TOKEN}"), ("Content-Type", content_type))
    ask(stage, f"/admin/{route}", *authorized, method=method, body=body)
    # Without the token, nothing of it is even read.
    reply = ask(stage, f"/admin/{route}", method=method, body=body)
    assert reply.status in (401, 404, 405)


@stable
@given(given=latin)
def test_no_token_but_the_right_one_opens_an_admin_route(
    stage: Background[Stage], given: str
) -> None:
    for value in (given, f"Bearer {given}"):
        reply = ask(stage, "/admin/blocks", ("Authorization", value))
        assert reply.status == (200 if value.split() == ["Bearer", TOKEN] else 401)


def test_after_all_of_it_the_picture_has_one_entry_for_each_of_its_urls(
    stage: Background[Stage],
) -> None:
    here = stage.value
    for suffix in ("", "@webp"):
        assert ask(stage, img(here.did, here.cid, suffix=suffix)).status == 200
    name = re.compile(rf".*/(avatar_thumbnail-[0-9a-f]+/{here.cid}@[a-z]+)\.[a-z]+")

    def written() -> list[str]:
        return [found[1] for file in here.files if (found := name.fullmatch(file))]

    stage.run(until, lambda: len(set(written())) >= 2)
    entries = written()
    assert len(entries) == len(set(entries))
