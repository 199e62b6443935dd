"""Where entries lie: nginx computes the same paths, and no URL may lead out of the folder."""

from __future__ import annotations

from pathlib import PurePosixPath

import pytest
from hypothesis import given
from hypothesis import strategies as st

from proxy.cache.layout import (
    FORMATS_OF_AUTO,
    blob_of,
    entry_folder,
    entry_name,
    format_of,
    owner_folder,
    possible_formats,
)
from proxy.model.formats import OUTPUTS, Format, moving_output, output_for
from proxy.model.identifiers import Did, parse_did
from proxy.model.keys import ImageKey
from proxy.model.presets import DEFAULT_PRESETS
from tests.cache import blob_cid, key

PLC = parse_did("did:plc:z72i7hdynmk6r22z27h6tvur")
LONGEST = parse_did("did:web:" + ".".join(["a" * 63, "b" * 63, "c" * 63, "d" * 57, "com"]))
SHORT = parse_did("did:web:a.b")
PORT = parse_did("did:web:localhost%3A2583")
NAME_MAX = 255
"""Bytes of a file name, on every file system in use."""


def path_of(key: ImageKey, format_: Format) -> PurePosixPath:
    return PurePosixPath(entry_folder(key), entry_name(key, format_))


def test_a_path_is_the_documented_one() -> None:
    """Catches a layout that changes under a cache that is full, and under nginx."""
    asked = key(did=PLC, cid=blob_cid(7), format_=Format.WEBP)
    assert str(path_of(asked, Format.WEBP)) == (
        f"plc/z7/z72i7hdynmk6r22z27h6tvur/avatar-{asked.fingerprint}/{blob_cid(7)}@webp.webp"
    )
    auto = key(did=PLC, cid=blob_cid(7))
    assert str(path_of(auto, Format.PNG)) == (
        f"plc/z7/z72i7hdynmk6r22z27h6tvur/avatar-{auto.fingerprint}/{blob_cid(7)}@auto.png"
    )


@pytest.mark.parametrize(
    ("did", "folder"),
    [
        (PLC, "plc/z7/z72i7hdynmk6r22z27h6tvur"),
        (parse_did("did:web:example.com"), "web/ex/example.com"),
        (SHORT, "web/a./a.b"),
        (PORT, "web/lo/localhost%3A2583"),
        (LONGEST, f"web/aa/{LONGEST.removeprefix('did:web:')}"),
    ],
)
def test_an_owner_has_one_folder_without_colons(did: Did, folder: str) -> None:
    """Catches a colon in a file name, which some file systems refuse."""
    assert owner_folder(did) == folder


@pytest.mark.parametrize("did", [PLC, SHORT, PORT, LONGEST])
@pytest.mark.parametrize("format_", OUTPUTS)
def test_no_name_is_too_long_for_a_file_system(did: Did, format_: Format) -> None:
    """Catches an owner whose pictures can never be kept, for the length of its host."""
    path = path_of(key(did=did, format_=format_), format_)
    assert all(len(part.encode()) <= NAME_MAX for part in path.parts)


def test_different_keys_lie_in_different_places() -> None:
    """Catches a path without the preset, the format or the owner in it."""
    keys = [
        key(preset=preset, did=did, cid=cid, format_=format_)
        for preset in DEFAULT_PRESETS
        for did in (PLC, SHORT, PORT, LONGEST)
        for cid in (blob_cid(1), blob_cid(2))
        for format_ in (None, *OUTPUTS)
    ]
    paths = {path_of(key, format_) for key in keys for format_ in possible_formats(key)}
    assert len(paths) == sum(len(possible_formats(key)) for key in keys)


def test_every_format_that_a_source_can_give_is_looked_for() -> None:
    """Catches a result that is written and never found: a miss for ever."""
    moving = {moving_output(source, None) for source in Format} - {None}
    assert {output_for(source) for source in Format} | moving == set(FORMATS_OF_AUTO)
    assert possible_formats(key()) == FORMATS_OF_AUTO
    for format_ in OUTPUTS:
        assert possible_formats(key(format_=format_)) == (format_,)


@pytest.mark.parametrize("did", [PLC, SHORT, PORT, LONGEST])
@pytest.mark.parametrize("asked", [None, *OUTPUTS])
def test_blob_and_format_can_be_read_off_a_path(did: Did, asked: Format | None) -> None:
    """Catches a purge of a blob that finds none of its files, and an index made anew of nothing."""
    wanted = key(3, did=did, format_=asked)
    for format_ in possible_formats(wanted):
        name = entry_name(wanted, format_)
        assert blob_of(entry_folder(wanted), name) == wanted.blob
        assert format_of(name) is format_


@pytest.mark.parametrize(
    "name",
    ["", "stray.txt", ".0-1.tmp", "bafkrei", "x@auto.heic", "x@webp.jpg",
     "x@gif.gif", "x@heic.heic", "x@.jpg", "x.jpg"],
)  # fmt: skip
def test_what_no_entry_is_called_has_no_format(name: str) -> None:
    """Catches a stray file that the index takes for a picture."""
    assert format_of(name) is None


@pytest.mark.parametrize(
    ("folder", "name"),
    [
        ("", "x@auto.jpg"),
        ("plc/z7", "x@auto.jpg"),
        (entry_folder(key()), "bafkreibroken@auto.jpg"),
        ("web/ex/EXAMPLE.com/avatar-0", f"{blob_cid()}@auto.jpg"),
        ("key/z6/z6Mk/avatar-0", f"{blob_cid()}@auto.jpg"),
        ("plc/../../etc", f"{blob_cid()}@auto.jpg"),
    ],
)
def test_other_files_are_told_from_results(folder: str, name: str) -> None:
    """Catches an exception from a file that somebody else put there."""
    assert blob_of(folder, name) is None


label = st.from_regex(r"[a-z0-9]([a-z0-9-]{0,61}[a-z0-9])?", fullmatch=True)
top = st.from_regex(r"[a-z]([a-z0-9-]{0,10}[a-z0-9])?", fullmatch=True)
dids = st.one_of(
    st.from_regex(r"did:plc:[a-z2-7]{24}", fullmatch=True),
    st.builds(
        lambda labels, last: "did:web:" + ".".join([*labels, last]),
        st.lists(label, min_size=1, max_size=3),
        top,
    ),
    st.integers(1, 65535).map("did:web:localhost%3A{}".format),
).map(parse_did)


@given(did=dids)
def test_every_owner_stays_below_the_folder_of_its_method(did: Did) -> None:
    """Catches a host name that climbs, hides, or shares its folder with another owner's."""
    folder = PurePosixPath(owner_folder(did))
    method, shard, identifier = folder.parts
    assert not folder.is_absolute()
    assert {".", ".."}.isdisjoint(folder.parts)
    assert not any(part.startswith(".") for part in folder.parts)
    assert f"did:{method}:{identifier}" == did
    assert identifier.startswith(shard)
