"""``If-None-Match``: a wrong 304 shows an old picture, a missing one sends it again."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from proxy.web.conditional import none_match
from tests.examples import examples

ETAG = '"avatar-bafkrei-0123456789"'


@pytest.mark.parametrize(
    "header",
    [
        ETAG,
        f"W/{ETAG}",
        f'"a", {ETAG}',
        f'{ETAG}, "b"',
        f'"a", W/"b", {ETAG}, "c"',
        f'"a",{ETAG}',
        f'"a"\t,\t{ETAG}',
        f'"a" , {ETAG} ',
        f"  {ETAG}",
        # Section 5.6.1.2: a recipient must accept empty elements.
        f", , {ETAG}",
        f'"a",,,{ETAG},',
        # Any visible character but the quote, and obs-text: a comma is no separator within a tag.
        f'"a,b", {ETAG}',
        f'"\\", {ETAG}',
        f'"W/", {ETAG}',
        f'"*", {ETAG}',
        f'"", {ETAG}',
        f'"!#~", {ETAG}',
        f'"\x80\xe9\xff", {ETAG}',
        "*",
        " * ",
        "\t*",
        # What came before the mistake counts.
        f'{ETAG}, "not closed',
        f"{ETAG} nonsense",
    ],
)
def test_a_header_that_names_the_tag_is_a_304(header: str) -> None:
    """Catches comparing the whole header, strong comparison, and splitting at every comma."""
    assert none_match(header, ETAG) is False


@pytest.mark.parametrize(
    "header",
    [
        "",
        " ",
        ",",
        ", ,",
        '""',
        '"other-preset-somecid"',
        '"a", "b", W/"c"',
        # Not the same tag.
        ETAG.upper(),
        ETAG[:-2] + '"',
        ETAG[:-1] + '0"',
        f'"{ETAG}"',
        '" ' + ETAG[1:],
        # Not a list of tags.
        ETAG.strip('"'),
        ETAG[1:],
        ETAG[:-1],
        ETAG.replace('"', "'"),
        f"w/{ETAG}",
        f"W{ETAG}",
        f"/{ETAG}",
        f"W/ {ETAG}",
        f"W/W/{ETAG}",
        f'"a" {ETAG}',
        f'"a"{ETAG}',
        f'"a"; {ETAG}',
        f"nonsense, {ETAG}",
        f'"a b", {ETAG}',
        f'"a\x00", {ETAG}',
        f'"a\x7f", {ETAG}',
        f'"a\u0100", {ETAG}',
        f'"a, {ETAG}',
        "**",
        "*, *",
        '"a", *',
        "W/*",
        '"*"',
        # The tag within another one.
        f'"a,{ETAG[1:-1]},b"',
    ],
)
def test_a_header_that_does_not_name_the_tag_is_no_304(header: str) -> None:
    """Catches substring search, and a list read on behind its first mistake."""
    assert none_match(header, ETAG) is True


@given(
    header=st.one_of(
        st.text(),
        st.text(alphabet='"W/,* \tab\xff\x00'),
        st.lists(st.sampled_from(['"', "W/", ",", "*", " ", ETAG, "a"])).map("".join),
    ),
    etag=st.one_of(st.just(ETAG), st.text()),
)
@examples(300)
def test_any_header_is_answered(header: str, etag: str) -> None:
    """Catches a 500 for a header that somebody made up."""
    assert none_match(header, etag) in (True, False)


visible = st.characters(codec="latin-1", exclude_characters='"\x7f', min_codepoint=0x21)
tags = st.builds(
    "{}{}".format,
    st.sampled_from(["", "W/"]),
    st.text(visible).map('"{}"'.format),
)
separators = st.sampled_from([",", ", ", " ,", "\t,\t", ",,", ", , "])


@given(
    before=st.lists(st.tuples(tags, separators)),
    weak=st.sampled_from(["", "W/"]),
    after=st.lists(st.tuples(separators, tags)),
    etag=st.text(visible).map('"{}"'.format),
)
def test_the_tag_matches_wherever_it_stands_in_a_well_formed_list(
    before: list[tuple[str, str]], weak: str, after: list[tuple[str, str]], etag: str
) -> None:
    """Catches a parser that loses its place behind some other tag of the list."""
    parts = [*(tag + comma for tag, comma in before), weak + etag]
    parts += [comma + tag for comma, tag in after]
    assert none_match("".join(parts), etag) is False


@given(others=st.lists(tags, min_size=1), etag=st.text(visible).map('"{}"'.format))
def test_a_list_of_other_tags_never_matches(others: list[str], etag: str) -> None:
    """Catches two tags taken for one across their quotes."""
    expected = all(other.removeprefix("W/") != etag for other in others)
    assert none_match(", ".join(others), etag) is expected
