"""Frames of an atproto event stream (atproto, Event Stream specification, wire protocol v0).

A frame is two DAG-CBOR objects, one after the other: a header and a body. Pure, total.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from libipld import decode_dag_cbor_multi, encode_dag_cbor

MAX_SEQ = 2**53
"""Sequence numbers lie below this: JavaScript has to hold them."""


class BadFrame(Exception):
    """Not what the stream's specification allows; the connection is dropped."""


class StreamRefused(Exception):
    """The server ends the stream, and said why."""


class CursorRefused(StreamRefused):
    """The server does not know the cursor yet: it lost its numbers, or it is another server."""


@dataclass(frozen=True, slots=True)
class Message:
    """A message.

    Attributes:
        type: its Lexicon type in short form, such as ``#labels``.
    """

    type: str
    body: dict[str, Any]


def frame_header(type: str) -> bytes:
    """How the header of a message begins a frame, where its server adds nothing to it."""
    header: bytes = encode_dag_cbor({"op": 1, "t": type})
    return header


def decode_frame(data: str | bytes) -> Message | None:
    """What a frame says; None for an operation that is not known, which has to be ignored.

    Raises:
        BadFrame: not two DAG-CBOR objects, or not of the types they must have.
        CursorRefused, StreamRefused: it is an error, after which nothing comes.
    """
    if isinstance(data, str):
        raise BadFrame("text")
    try:
        parts = decode_dag_cbor_multi(data)
    except (ValueError, RecursionError) as error:
        raise BadFrame(f"not DAG-CBOR: {error}") from None
    if len(parts) != 2 or not all(isinstance(part, dict) for part in parts):
        raise BadFrame("not a header and a body")
    header, body = parts
    operation = header.get("op")
    if not isinstance(operation, int) or isinstance(operation, bool):
        raise BadFrame("a header without an operation")
    if operation == -1:
        name, text = str(body.get("error"))[:64], str(body.get("message", ""))[:200]
        refused = CursorRefused if name == "FutureCursor" else StreamRefused
        raise refused(f"{name!a}: {text!a}")
    if operation != 1:
        return None
    kind = header.get("t")
    if not isinstance(kind, str):
        raise BadFrame("a message without a type")
    return Message(kind, body)


def seq_of(body: dict[str, Any]) -> int:
    """The sequence number of a message.

    Raises:
        BadFrame: it is missing, or cannot be a cursor.
    """
    seq = body.get("seq")
    if not isinstance(seq, int) or isinstance(seq, bool) or not 0 < seq < MAX_SEQ:
        raise BadFrame("a message without a sequence number")
    return seq


def is_gap(message: Message) -> bool:
    """Whether the server says that what came next after the cursor is not kept any more."""
    return message.type == "#info" and message.body.get("name") == "OutdatedCursor"
