"""Frames of event streams: what Bluesky's own code encodes is read, and nothing breaks out."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from libipld import encode_dag_cbor

from proxy.moderation.feeds.event_frames import (
    BadFrame,
    CursorRefused,
    Message,
    StreamRefused,
    decode_frame,
    frame_header,
    is_gap,
    seq_of,
)
from tests.fakes.streams import error_frame, frame

FRAMES = json.loads((Path(__file__).parent / "vectors.json").read_text())["frames"]


def theirs(name: str) -> bytes:
    return bytes.fromhex(FRAMES[name])


def test_an_info_of_the_real_encoder_is_a_message() -> None:
    message = decode_frame(theirs("outdated"))
    assert message == Message("#info", {"name": "OutdatedCursor", "message": "too old"})
    assert is_gap(message)


def test_an_error_of_the_real_encoder_is_that_error() -> None:
    """Catches: an error of the real encoder is taken for a message or for another error."""
    with pytest.raises(CursorRefused, match="future"):
        decode_frame(theirs("future"))
    with pytest.raises(StreamRefused, match="ConsumerTooSlow") as caught:
        decode_frame(theirs("slow"))
    assert type(caught.value) is StreamRefused


def test_the_fakes_frames_are_those_of_the_real_encoder() -> None:
    """Or what the fakes send proves nothing.

    Catches: the fake's frames differ from the real encoder's.
    """
    info = {"name": "OutdatedCursor", "message": "too old"}
    assert frame("#info", info) == theirs("outdated")
    assert error_frame("FutureCursor", "Cursor in the future.") == theirs("future")


def test_the_header_that_commits_are_told_by_is_that_of_the_wire() -> None:
    """Catches: the header that commits are told by is not that of the wire."""
    assert frame("#commit", {"seq": 1}).startswith(frame_header("#commit"))
    assert theirs("outdated").startswith(frame_header("#info"))


def test_an_operation_or_field_of_the_future_is_passed_over() -> None:
    """The specification wants both ignored.

    Catches: an operation or field of the future drops the connection.
    """
    assert decode_frame(encode_dag_cbor({"op": 2}) + encode_dag_cbor({})) is None
    header = encode_dag_cbor({"op": 1, "t": "#labels", "more": [1]})
    assert decode_frame(header + encode_dag_cbor({"seq": 1})) == Message("#labels", {"seq": 1})


@pytest.mark.parametrize(
    "data",
    [
        b"",
        b"\x00",
        encode_dag_cbor({"op": 1, "t": "#labels"}),
        encode_dag_cbor({"op": 1, "t": "#labels"}) + encode_dag_cbor([]),
        encode_dag_cbor([]) + encode_dag_cbor({}),
        encode_dag_cbor({"op": 1}) + encode_dag_cbor({}),
        encode_dag_cbor({"op": 1, "t": 5}) + encode_dag_cbor({}),
        encode_dag_cbor({"op": "1", "t": "#labels"}) + encode_dag_cbor({}),
        encode_dag_cbor({"op": True, "t": "#labels"}) + encode_dag_cbor({}),
        encode_dag_cbor({"t": "#labels"}) + encode_dag_cbor({}),
        frame("#labels", {}) + b"\x00",
        frame("#labels", {})[:-1],
        b"\x81" * 100_000 + b"\x00",
        b"\x9b\xff\xff\xff\xff\xff\xff\xff\xff",
        "text",
    ],
    ids=lambda data: ascii(data)[:30],
)
def test_garbage_is_a_bad_frame(data: str | bytes) -> None:
    """Catches: garbage is taken for a message or breaks out as another error."""
    with pytest.raises(BadFrame):
        decode_frame(data)


@given(st.binary(max_size=200))
def test_no_bytes_make_any_other_error(data: bytes) -> None:
    for bytes_ in (data, frame_header("#labels") + data):
        try:
            message = decode_frame(bytes_)
        except (BadFrame, StreamRefused):
            continue
        assert message is None or isinstance(message.body, dict)


@pytest.mark.parametrize("seq", [0, -1, 2**53, True, "1", 1.0, None])
def test_a_number_that_no_cursor_can_be_is_not_kept_as_one(seq: object) -> None:
    """Catches: a number that no cursor can be is kept as one."""
    with pytest.raises(BadFrame):
        seq_of({"seq": seq})
    assert seq_of({"seq": 2**53 - 1}) == 2**53 - 1
