"""docs/urls.md is enough: its grammar, tables and examples are all that is known of URLs here."""

from __future__ import annotations

import doctest
import re
from functools import cache
from pathlib import Path
from urllib.parse import unquote

import pytest
from hypothesis import given
from hypothesis import strategies as st

from proxy.errors import (
    ImageProxyError,
    InvalidCid,
    InvalidDid,
    InvalidHandle,
    InvalidPreset,
    InvalidRequest,
)
from proxy.model.formats import OUTPUTS, Format
from proxy.model.keys import image_key, poster_key
from proxy.model.presets import DEFAULT_PRESETS, Preset, variant_name, variants_of
from proxy.model.references import parse_actor
from proxy.urls import (
    blob_url,
    image_url,
    info_url,
    parse_actor_path,
    parse_blob_path,
    parse_image_path,
    parse_poster_path,
    poster_url,
)
from proxy.web.negotiate import choose
from tests.documents import blocks
from tests.fakes.sites import cid_of

TEXT = (Path(__file__).parents[2] / "docs/urls.md").read_text(encoding="utf-8")

RULES = {
    name: definition
    for block in blocks(TEXT, "abnf")
    for name, definition in re.findall(r"^([\w-]+) *= (.*)$", block, re.MULTILINE)
}

_TOKEN = re.compile(
    r"""\s*(?:
        %s"(?P<exact>[^"]*)" | "(?P<text>[^"]*)" | %x(?P<low>[0-9A-F]+)-(?P<high>[0-9A-F]+)
        | (?P<repeat>\d*\*\d*|\d+) | (?P<name>[a-zA-Z][\w-]*) | (?P<sign>[()\[\]/])
    )""",
    re.VERBOSE,
)


@cache
def expression(rule: str) -> str:
    """The regular expression of an ABNF rule: as much of RFC 5234 and 7405 as the document uses."""
    definition = RULES[rule].strip()
    tokens, position = [], 0
    while position < len(definition):
        found = _TOKEN.match(definition, position)
        assert found, f"{rule}: {definition[position:]}"
        tokens.append(found)
        position = found.end()
    tokens.reverse()
    result = _alternation(tokens)
    assert not tokens, rule
    return result


def _alternation(tokens: list[re.Match[str]]) -> str:
    """Takes its tokens off the end; so do the others."""
    branches = [""]
    while tokens and tokens[-1]["sign"] not in (")", "]"):
        if tokens[-1]["sign"] == "/":
            tokens.pop()
            branches.append("")
        else:
            branches[-1] += _repetition(tokens)
    return f"(?:{'|'.join(branches)})"


def _repetition(tokens: list[re.Match[str]]) -> str:
    if tokens[-1]["repeat"] is None:
        return _element(tokens)
    low, star, high = tokens.pop()["repeat"].partition("*")
    return _element(tokens) + (f"{{{low or 0},{high}}}" if star else f"{{{low}}}")


def _element(tokens: list[re.Match[str]]) -> str:
    token = tokens.pop()
    if token["sign"] is not None:
        inside = _alternation(tokens)
        closed = tokens.pop()["sign"]
        assert {"(": ")", "[": "]"}[token["sign"]] == closed
        return inside + ("?" if closed == "]" else "")
    if token["name"] is not None:
        return expression(token["name"])
    if token["low"] is not None:
        return f"[\\x{token['low']}-\\x{token['high']}]"
    # Without %s a literal has any case; the document uses that for signs alone.
    assert token["exact"] is not None or not re.search("[a-zA-Z]", token["text"])
    return re.escape(token["exact"] if token["exact"] is not None else token["text"])


def table(after: str) -> list[list[str]]:
    """The rows of the first table behind a text, without its head; code without its quotes."""
    lines = TEXT[TEXT.index(after) + len(after) :].splitlines()
    start = next(number for number, line in enumerate(lines) if line.startswith("|"))
    rows = []
    for line in lines[start + 2 :]:
        if not line.startswith("|"):
            break
        rows.append([cell.strip().strip("`") for cell in line.strip("|").split("|")])
    assert rows
    return rows


IMAGES = table("Only this spelling is served")
MISTAKES = table("Anything else is a `400`")
ORIGINALS = table("The verified original as a download")
POSTERS = table("poster-path = ")
ACTORS = table("A handle is looked up by DNS")
BOXES = table("They are presets like any other")
ACCEPTS = table("a CDN that ignores")


@pytest.mark.parametrize(("path", "preset", "did", "cid", "format_"), IMAGES)
def test_an_example_of_an_image_means_what_its_row_says(
    path: str, preset: str, did: str, cid: str, format_: str
) -> None:
    """Catches a document that people build wrong URLs from."""
    assert re.fullmatch(expression("image-path"), path)
    key = parse_image_path(DEFAULT_PRESETS, unquote(path))
    assert (key.preset, key.blob.did, key.blob.cid) == (preset, did, cid)
    assert key.format == (Format(format_) if format_ else None)
    assert image_url(key) == path


@pytest.mark.parametrize(("path", "answer"), MISTAKES)
def test_an_example_of_a_mistake_is_answered_as_its_row_says(path: str, answer: str) -> None:
    """Catches a grammar that is wider than what is served."""
    # The grammar knows no configuration.
    assert bool(re.fullmatch(expression("image-path"), path)) == answer.startswith("invalid preset")
    with pytest.raises(ImageProxyError) as caught:
        parse_image_path(DEFAULT_PRESETS, unquote(path))
    assert (caught.value.status, caught.value.public_message) == (400, answer)


@pytest.mark.parametrize(("path", "did", "cid"), ORIGINALS)
def test_an_example_of_an_original_means_what_its_row_says(path: str, did: str, cid: str) -> None:
    assert re.fullmatch(expression("blob-path"), path)
    blob = parse_blob_path(unquote(path))
    assert (blob.did, blob.cid, blob_url(blob)) == (did, cid, path)


@pytest.mark.parametrize(("path", "preset", "did", "cid"), POSTERS)
def test_an_example_of_a_poster_means_what_its_row_says(
    path: str, preset: str, did: str, cid: str
) -> None:
    assert re.fullmatch(expression("poster-path"), path)
    key = parse_poster_path(DEFAULT_PRESETS, "banner", unquote(path))
    assert (key.preset, key.blob.did, key.blob.cid) == (preset or "banner", did, cid)
    assert poster_url(key) == (path if preset else path.replace("/vid/", "/vid/banner/"))
    for wrong in (f"{path}@jpeg", path.replace("/thumbnail.jpg", "@webp/thumbnail.jpg")):
        assert not re.fullmatch(expression("poster-path"), wrong)
        with pytest.raises(InvalidRequest):
            parse_poster_path(DEFAULT_PRESETS, "banner", unquote(wrong))


@pytest.mark.parametrize(("path", "kind", "preset", "actor", "format_"), ACTORS)
def test_an_example_of_an_account_means_what_its_row_says(
    path: str, kind: str, preset: str, actor: str, format_: str
) -> None:
    assert re.fullmatch(expression("actor-path"), path)
    key = parse_actor_path(DEFAULT_PRESETS, unquote(path))
    assert (key.kind, key.preset or "", key.actor, key.format or "") == (
        kind, preset, actor, format_,
    )  # fmt: skip


@pytest.mark.parametrize(("box", "width", "variant"), BOXES)
def test_an_example_of_a_variant_has_its_box(box: str, width: str, variant: str) -> None:
    across, high = map(int, box.split(" x "))
    fit = "cover" if high else "contain"
    preset = Preset.model_validate(
        {"width": across, "height": high, "fit": fit, "quality": 80, "variants": [int(width)]}
    )
    (made,) = variants_of("any", preset).values()
    assert f"{made.width} x {made.height}" == variant


@pytest.mark.parametrize(("accept", "format_"), ACCEPTS)
def test_an_example_of_accept_has_its_format(accept: str, format_: str) -> None:
    assert (choose(accept, [Format.AVIF, Format.WEBP]) or "") == format_


@given(path=st.from_regex(expression("image-path"), fullmatch=True))
def test_every_url_of_the_grammar_is_read(path: str) -> None:
    """Catches a rule that lets through what is refused, but for what the text says besides."""
    _, _, preset, _, did, _ = unquote(path).split("/")
    port = did.partition("%3A")[2]
    if len(did) > 253 + len("did:web:") or int(port or 1) > 65535:
        return
    presets = {preset: DEFAULT_PRESETS["avatar"]}
    try:
        key = parse_image_path(presets, unquote(path))
    except InvalidCid:  # the last characters of a CID have bits that must be 0
        return
    assert image_url(key) == path
    with pytest.raises(InvalidPreset):
        parse_image_path({}, unquote(path))


@given(path=st.from_regex(expression("actor-path"), fullmatch=True))
def test_every_url_by_name_of_the_grammar_is_read(path: str) -> None:
    """Catches a format or a preset that is taken for a part of the name, and a second spelling."""
    _, kind, *preset, name = path.split("/")
    parts = re.fullmatch(f"({expression('actor')})(?:@({expression('format')}))?", name)
    assert parts is not None
    try:
        actor = parse_actor(unquote(parts[1]), own_names=True)
    except (InvalidHandle, InvalidDid):  # too long, or below a domain that has no handles
        return
    presets = dict.fromkeys(preset, DEFAULT_PRESETS["avatar"])
    key = parse_actor_path(presets, unquote(path), own_names=True)
    assert key == (kind, preset[0] if preset else None, actor, parts[2])


CIDS = st.binary().map(cid_of)


@given(
    preset=st.from_regex(r"[a-z][a-z0-9_]{0,30}", fullmatch=True),
    did=st.from_regex(r"did:plc:[a-z2-7]{24}", fullmatch=True)
    | st.from_regex(r"did:web:([a-z0-9]{1,9}\.){1,4}[a-z]{2,9}", fullmatch=True)
    | st.integers(1, 65535).map("did:web:localhost%3A{}".format),
    cid=CIDS,
    format_=st.sampled_from([None, *OUTPUTS]),
    width=st.integers(1, 8192).filter(lambda width: width != 1000),
)
def test_every_url_that_is_built_is_of_the_grammar(
    preset: str, did: str, cid: str, format_: Format | None, width: int
) -> None:
    """Catches a grammar that is narrower than what is served."""
    parent = DEFAULT_PRESETS["avatar"].model_copy(update={"variants": (width,)})
    presets = {preset: parent} | variants_of(preset, parent)
    for name in (preset, variant_name(preset, width)):
        key = image_key(presets, name, did, cid, format_ and format_.value)
        assert re.fullmatch(expression("image-path"), image_url(key))
        assert re.fullmatch(expression("blob-path"), blob_url(key.blob))
        assert re.fullmatch(expression("info-path"), info_url(key.blob))
        poster = poster_key(presets, name, did, cid)
        assert re.fullmatch(expression("poster-path"), poster_url(poster))
        assert parse_poster_path(presets, "", unquote(poster_url(poster))) == poster


def test_the_examples_in_python_say_what_they_print() -> None:
    """Catches an example that was never run."""
    example = doctest.DocTestParser().get_doctest(TEXT, {}, "urls.md", "docs/urls.md", 0)
    found = doctest.DocTestRunner(verbose=False).run(example)
    assert found.attempted > 5
    assert found.failed == 0
