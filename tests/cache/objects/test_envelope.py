"""What an object proves of itself."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from proxy.cache.object_envelope import Damaged, pack, unpack

PATH = "v1/owners/plc/a/b/c"


@given(st.binary(max_size=100), st.floats(0, 2**40))
def test_what_was_packed_is_what_comes_out(data: bytes, seen: float) -> None:
    """Catches a header that loses data or its age."""
    assert unpack(PATH, pack(PATH, data, seen)) == (data, seen)


@given(st.data())
def test_any_changed_byte_is_noticed(data: st.DataObject) -> None:
    """Catches a part of an object that no checksum covers, its age among them."""
    content = bytearray(pack(PATH, b"some data", 1000.0))
    at = data.draw(st.integers(0, len(content) - 1))
    content[at] ^= data.draw(st.integers(1, 255))
    with pytest.raises(Damaged):
        unpack(PATH, bytes(content))


@given(st.binary(max_size=200))
def test_other_bytes_are_no_object(content: bytes) -> None:
    """Catches an exception of another class, which would end the request."""
    with pytest.raises(Damaged):
        unpack(PATH, content)


def test_shorter_longer_and_others_objects_are_noticed() -> None:
    """Catches a store that answers with the object of another path, or a part of it."""
    content = pack(PATH, b"some data", 1000.0)
    for wrong in (content[:-1], content + b"\x00", pack("v1/other", b"some data", 1000.0), b""):
        with pytest.raises(Damaged):
            unpack(PATH, wrong)
