"""The family of errors: each knows its row of the table, and tells a client nothing else."""

from __future__ import annotations

import copy
import pickle
from typing import NamedTuple

import pytest

from proxy import errors
from proxy.errors import ImageProxyError, InvalidFormat, InvalidPreset
from proxy.model.presets import DEFAULT_PRESETS
from proxy.service import OUTCOMES
from tests.docs.test_urls import table

SECRET = "10.0.0.7:5432 /var/lib/imageproxy Traceback"


def family(base: type[ImageProxyError] = ImageProxyError) -> list[type[ImageProxyError]]:
    return [base, *(below for child in base.__subclasses__() for below in family(child))]


FAMILY = family()

NAMING = (InvalidPreset, InvalidFormat)
"""What repeats a part of the URL."""


class Row(NamedTuple):
    """What the table in docs/urls.md says of a class."""

    status: int
    message: str
    caching: str
    outcome: str


TABLE = table("## Errors")

ROWS = {
    name: Row(int(status), body.partition("NAME")[0], caching, outcome)
    for name, _, status, body, caching, outcome in TABLE
}


def test_every_class_of_the_family_has_its_row() -> None:
    """Catches an error that no document knows, or that is in another module."""
    assert sorted(error.__name__ for error in FAMILY) == sorted(row[0] for row in TABLE)
    assert all(error.__module__ == errors.__name__ for error in FAMILY)


@pytest.mark.parametrize("kind", FAMILY)
def test_status_and_message_are_those_of_the_table(kind: type[ImageProxyError]) -> None:
    """Catches a status or a line that clients already know under another meaning."""
    error = kind(SECRET)
    row = ROWS[kind.__name__]
    assert error.status == row.status
    assert error.public_message.startswith(row.message)


def test_each_error_that_ends_a_fetch_is_counted_as_the_table_says() -> None:
    """Catches a new error that is counted as another one, or by a name that no document knows."""
    counted = {error.__name__: outcome for error, outcome in OUTCOMES.items()}
    assert counted == {name: row.outcome for name, row in ROWS.items() if row.outcome}


@pytest.mark.parametrize("kind", [kind for kind in FAMILY if kind not in NAMING])
def test_a_client_sees_nothing_of_the_cause(kind: type[ImageProxyError]) -> None:
    """Catches an address, a path or a traceback in a body."""
    error = kind(SECRET)
    assert error.public_message == ROWS[kind.__name__].message
    assert error.cause == SECRET
    assert str(error) == SECRET, "the log needs it"
    assert error.explained == f"{error.public_message}: {SECRET}"


@pytest.mark.parametrize("kind", [kind for kind in FAMILY if kind not in NAMING])
def test_an_error_without_a_cause_still_says_something_in_a_log(
    kind: type[ImageProxyError],
) -> None:
    """Catches an empty log line."""
    assert str(kind()) == kind().explained == ROWS[kind.__name__].message


@pytest.mark.parametrize(
    ("refused", "twin"),
    [
        (errors.ForbiddenDestination, errors.FetchFailed),
        (errors.ForbiddenDomain, errors.DidUnresolvable),
        (errors.BlobBlocked, errors.BlobNotFound),
        (errors.TakenDown, errors.BlobNotFound),
    ],
)
def test_what_is_refused_looks_like_what_failed(
    refused: type[ImageProxyError], twin: type[ImageProxyError]
) -> None:
    """Catches a port scanner of this network, and a list of what is blocked."""
    assert issubclass(refused, twin)
    assert (refused.status, refused("why").public_message) == (twin.status, twin("").public_message)


@pytest.mark.parametrize(
    ("name", "shown"),
    [
        ("nosuch", "nosuch"),
        ("", ""),
        ("Avatar", "Avatar"),
        ("a\r\nSet-Cookie: b", "a\\r\\nSet-Cookie: b"),
        ("\x00\x1b[2J", "\\x00\\x1b[2J"),
        ("\u00e9\u4e2d\U0001f600", "\\xe9\\u4e2d\\U0001f600"),
        ("\ud800", "\\ud800"),
        ("it's", "it's"),
        ("'\"", "\\'\""),
        ("x" * 10_000, "x" * 64),
    ],
    ids=ascii,
)
def test_the_name_of_a_preset_is_echoed_cut_and_escaped(name: str, shown: str) -> None:
    """Catches a URL that writes into a terminal, a log or a body of any length."""
    error = InvalidPreset(name)
    assert error.public_message == f"invalid preset: {shown}"
    assert len(str(error)) < 1000
    assert str(error).isprintable()


@pytest.mark.parametrize(
    ("name", "said"),
    [
        ("avatar_smal", "avatar_smal (avatar, avatar_small, banner, avatar_thumbnail, …)"),
        ("feed", "feed (avatar, avatar_small, feed_thumbnail, feed_fullsize, …)"),
        ("", " (avatar, avatar_small, banner, content_preview, …)"),
    ],
)
def test_an_unknown_preset_is_told_the_names_nearest_to_it(name: str, said: str) -> None:
    """Catches a list of thirty names, and one without the name that was meant."""
    assert InvalidPreset(name, DEFAULT_PRESETS).public_message == f"invalid preset: {said}"
    few = InvalidPreset("a", ["b", "c"])
    assert few.public_message == few.fresh().public_message == "invalid preset: a (b, c)"


def test_an_unknown_format_is_told_all_that_there_are() -> None:
    """Catches a format that is echoed as it came, and one that hides what would do."""
    error = InvalidFormat("b\n\u00e9" + "x" * 100, ("jpeg", "png"))
    assert error.public_message == f"invalid format: b\\n\\xe9{'x' * 29} (jpeg, png)"


def made(kind: type[ImageProxyError]) -> ImageProxyError:
    return kind("what happened at 10.0.0.7")


@pytest.mark.parametrize("kind", FAMILY)
def test_fresh_gives_an_equal_error_without_its_history(kind: type[ImageProxyError]) -> None:
    """Catches a thousand waiters that chain a thousand tracebacks onto one instance, and a failure
    that is remembered with all that a broken fetch had received."""

    def fail() -> None:
        try:
            raise ValueError("the context")
        except ValueError as error:
            raise made(kind) from error

    with pytest.raises(kind) as caught:
        fail()
    original = caught.value
    twin = original.fresh()
    assert twin is not original
    assert type(twin) is kind
    assert str(twin) == str(original)
    assert twin.cause == original.cause
    assert twin.public_message == original.public_message
    assert twin.__traceback__ is None
    assert twin.__context__ is None
    assert twin.__cause__ is None
    with pytest.raises(kind):
        raise twin
    assert twin.__traceback__ is not None
    assert original.fresh().__traceback__ is None, "one copy's history is not the next one's"


@pytest.mark.parametrize("kind", FAMILY)
@pytest.mark.parametrize("protocol", range(pickle.HIGHEST_PROTOCOL + 1))
def test_every_error_survives_pickling(kind: type[ImageProxyError], protocol: int) -> None:
    """Catches an error that becomes a TypeError on its way out of a worker process."""
    original = made(kind)
    twin = pickle.loads(pickle.dumps(original, protocol))  # noqa: S301 (made here)
    assert type(twin) is kind
    assert (str(twin), twin.cause) == (str(original), original.cause)
    assert twin.public_message == original.public_message


@pytest.mark.parametrize("kind", FAMILY)
@pytest.mark.parametrize("copied", [copy.copy, copy.deepcopy], ids=["copy", "deepcopy"])
def test_every_error_survives_copying(kind: type[ImageProxyError], copied: object) -> None:
    """Catches a constructor that does not take what the copy gives it."""
    original = made(kind)
    assert callable(copied)
    twin = copied(original)
    assert type(twin) is kind
    assert (str(twin), twin.cause) == (str(original), original.cause)
    assert twin.public_message == original.public_message


def test_a_name_survives_pickling_whole() -> None:
    """Catches a name that is escaped once more with every copy."""
    twin = pickle.loads(pickle.dumps(InvalidPreset("\u00e9'")))  # noqa: S301 (made here)
    assert twin.name == "\u00e9'"
    assert twin.fresh().public_message == "invalid preset: \\xe9'"
