"""The family of errors: each knows its row of the table, and tells a client nothing else."""

from __future__ import annotations

import copy
import pickle

import pytest

from proxy import errors
from proxy.errors import ImageProxyError, InvalidPreset

SECRET = "10.0.0.7:5432 /var/lib/imageproxy Traceback"


def family(base: type[ImageProxyError] = ImageProxyError) -> list[type[ImageProxyError]]:
    return [base, *(below for child in base.__subclasses__() for below in family(child))]


FAMILY = family()

ROWS: dict[str, tuple[int, str]] = {
    "ImageProxyError": (500, "internal server error"),
    "InvalidRequest": (400, "invalid request"),
    "InvalidPreset": (400, "invalid preset: "),
    "InvalidDid": (400, "invalid DID format"),
    "InvalidCid": (400, "invalid CID format"),
    "InvalidHandle": (400, "invalid handle format"),
    "InvalidFormat": (400, "invalid format"),
    "UnsupportedImage": (400, "unsupported image format"),
    "ImageTooLarge": (400, "image too large"),
    "ResultTooLarge": (400, "image too large"),
    "BlobNotFound": (404, "blob not found"),
    "DidNotFound": (404, "blob not found"),
    "RecordNotFound": (404, "blob not found"),
    "HandleNotFound": (404, "blob not found"),
    "BlobBlocked": (404, "blob not found"),
    "TakenDown": (404, "blob not found"),
    "UndecodableImage": (422, "image could not be decoded"),
    "DidUnresolvable": (502, "failed to resolve DID"),
    "ForbiddenDomain": (502, "failed to resolve DID"),
    "HandleUnresolvable": (502, "failed to resolve handle"),
    "AmbiguousHandle": (502, "failed to resolve handle"),
    "NoPdsEndpoint": (502, "no PDS endpoint found"),
    "FetchFailed": (502, "failed to fetch blob from PDS"),
    "RateLimited": (502, "failed to fetch blob from PDS"),
    "ForbiddenDestination": (502, "failed to fetch blob from PDS"),
    "CidMismatch": (502, "blob does not match its CID"),
    "Busy": (503, "busy"),
    "PolicyUnavailable": (503, "busy"),
    "ModerationUnreadable": (503, "busy"),
    "UpstreamTimeout": (504, "request timed out"),
}


def test_every_class_of_the_family_has_its_row() -> None:
    """Catches an error that is added without a status, or in another module."""
    assert {error.__name__ for error in FAMILY} == set(ROWS)
    assert all(error.__module__ == errors.__name__ for error in FAMILY)


@pytest.mark.parametrize("kind", FAMILY)
def test_status_and_message_are_those_of_the_table(kind: type[ImageProxyError]) -> None:
    """Catches a status or a line that clients already know under another meaning."""
    error = kind(SECRET)
    status, message = ROWS[kind.__name__]
    assert error.status == status
    assert error.public_message.startswith(message)


@pytest.mark.parametrize("kind", [kind for kind in FAMILY if kind is not InvalidPreset])
def test_a_client_sees_nothing_of_the_cause(kind: type[ImageProxyError]) -> None:
    """Catches an address, a path or a traceback in a body."""
    error = kind(SECRET)
    assert error.public_message == ROWS[kind.__name__][1]
    assert error.cause == SECRET
    assert str(error) == SECRET, "the log needs it"
    assert error.explained == f"{error.public_message}: {SECRET}"


@pytest.mark.parametrize("kind", [kind for kind in FAMILY if kind is not InvalidPreset])
def test_an_error_without_a_cause_still_says_something_in_a_log(
    kind: type[ImageProxyError],
) -> None:
    """Catches an empty log line."""
    assert str(kind()) == kind().explained == ROWS[kind.__name__][1]


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


def made(kind: type[ImageProxyError]) -> ImageProxyError:
    return kind("what happened at 10.0.0.7")


@pytest.mark.parametrize("kind", FAMILY)
def test_fresh_gives_an_equal_error_without_its_history(kind: type[ImageProxyError]) -> None:
    """Catches a thousand waiters that chain a thousand tracebacks onto one instance."""

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
    assert twin.__cause__ is original.__cause__
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
