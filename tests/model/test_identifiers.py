"""Identifiers: one spelling each, because a block and a cache entry know only one.

What is let through here becomes a folder name, a host to connect to, and a header.
"""

from __future__ import annotations

import base64
import hashlib
from collections.abc import Callable

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from proxy.errors import ImageProxyError, InvalidCid, InvalidDid, InvalidHandle
from proxy.model.identifiers import (
    MAX_CID,
    Cid,
    cid_digest,
    content_cid,
    did_web_authority,
    parse_cid,
    parse_did,
    parse_handle,
    spellings,
)
from tests.examples import examples

PLC = "did:plc:z72i7hdynmk6r22z27h6tvur"
CONTENT = b"the content"
DIGEST = hashlib.sha256(CONTENT).digest()
SHA2_256 = b"\x12\x20"
RAW, DAG_PB, DAG_CBOR = 0x55, 0x70, 0x71
CID_V0 = "QmYwAPJzv5CZsnA625s3Xf2nemtYgPpHdWEz79ojWnPbdG"

BASE58 = "123456789ABCDEFGHJKLMNPQRSTUVWXYZabcdefghijkmnopqrstuvwxyz"


def bare(encoded: bytes) -> str:
    """Without padding."""
    return encoded.decode().rstrip("=")


def base32(binary: bytes) -> str:
    """Multibase ``b``: RFC 4648 base32 in lower case."""
    return "b" + bare(base64.b32encode(binary)).lower()


def base58(binary: bytes) -> str:
    number, digits = int.from_bytes(binary, "big"), ""
    while number:
        number, digit = divmod(number, 58)
        digits = BASE58[digit] + digits
    return "1" * (len(binary) - len(binary.lstrip(b"\x00"))) + digits


V1_BINARY = b"\x01\x55" + SHA2_256 + DIGEST
CID = base32(V1_BINARY)

longest_host = ".".join(["a" * 63, "b" * 63, "c" * 63, "d" * 57, "com"])
assert len(longest_host) == 253


@pytest.mark.parametrize(
    "did",
    [
        PLC,
        "did:plc:" + "a" * 24,
        "did:plc:" + "234567" * 4,
        "did:web:example.com",
        "did:web:bsky.social",
        "did:web:a.b.c.d.example.com",
        "did:web:xn--bcher-kva.example",
        "did:web:1and1.com",
        "did:web:9.example",
        "did:web:a--b.com",
        "did:web:localhost",
        "did:web:localhost%3A1",
        "did:web:localhost%3A2583",
        "did:web:localhost%3A65535",
        f"did:web:{longest_host}",
        f"did:web:{'a' * 63}.com",
    ],
)
def test_a_canonical_did_comes_back_letter_for_letter(did: str) -> None:
    """Catches a grammar too narrow: hosts of digits, punycode, and the longest one."""
    assert parse_did(did) == did


@pytest.mark.parametrize(
    ("did", "why"),
    [
        ("", "empty"),
        ("did:", "no method"),
        ("did:plc:", "no identifier"),
        ("did:web:", "no host"),
        ("not-a-did-at-all", "no DID"),
        ("z72i7hdynmk6r22z27h6tvur", "no prefix"),
        ("plc:z72i7hdynmk6r22z27h6tvur", "no scheme"),
        ("did:key:z6MkhaXgBZDvotDkL5257faiztiGiC2QtKLGpbnnEGta2doK", "another method"),
        ("at://did:plc:z72i7hdynmk6r22z27h6tvur", "a URI"),
        ("did:plc:abc123", "too short, and a 1"),
        (PLC[:-1], "one character too few"),
        (PLC + "a", "one character too many"),
        ("did:plc:Z72I7HDYNMK6R22Z27H6TVUR", "upper case"),
        ("did:plc:z72i7hdynmk6r22z27h6tvuR", "one letter in upper case"),
        ("DID:plc:z72i7hdynmk6r22z27h6tvur", "scheme in upper case"),
        ("did:PLC:z72i7hdynmk6r22z27h6tvur", "method in upper case"),
        ("did:plc:z72i7hdynmk6r22z27h6tvu1", "1 is no digit of base32"),
        ("did:plc:z72i7hdynmk6r22z27h6tvu\u0661", "a digit of another script"),
        ("did:plc:z72i7hdynmk6r22z27h6tvu\uff52", "a full-width letter"),
        (" " + PLC, "space before"),
        (PLC + " ", "space after"),
        (PLC + "\n", "newline after: $ would let it through"),
        (PLC + "\r\nX-Injected: 1", "a header in it"),
        (PLC + "#atproto", "a fragment"),
        (PLC + "?a=b", "a query"),
        (PLC + "/", "a slash after"),
        ("did:plc:%7A72i7hdynmk6r22z27h6tvur", "a letter percent-encoded"),
        ("did%3Aplc%3Az72i7hdynmk6r22z27h6tvur", "colons percent-encoded"),
        ("did:plc:../../../etc/passwd", "traversal"),
        ("did:plc:" + "../" * 8, "traversal of the right length"),
        ("did:plc:abc\x00def", "NUL"),
        (PLC[:-1] + "\x00", "NUL of the right length"),
        ("did:plc:abc/def", "slash"),
        ("did:plc:abc\\def", "backslash"),
        ("did:plc:\u202ez72i7hdynmk6r22z27h6tvur", "right-to-left override"),
        ("did:web:.", "a dot"),
        ("did:web:..", "two dots"),
        ("did:web:../../etc/passwd", "traversal"),
        ("did:web:..%2F..%2Fetc", "traversal, percent-encoded"),
        ("did:web:example.com/../..", "traversal behind a host"),
        ("did:web:example.com.", "trailing dot: a second spelling of the host"),
        ("did:web:.example.com", "leading dot"),
        ("did:web:example..com", "empty label"),
        ("did:web:Example.com", "upper case"),
        ("did:web:example.COM", "upper case"),
        ("did:web:%65xample.com", "a letter percent-encoded"),
        ("did:web:example%2Ecom", "dot percent-encoded"),
        ("did:web:b\u00fccher.example", "not ASCII"),
        ("did:web:example.com:user:alice", "path-based"),
        ("did:web:example.com:", "colon after"),
        ("did:web:example.com%3A443", "a port elsewhere than on localhost"),
        ("did:web:example.com%3Auser", "path-based, percent-encoded"),
        ("did:web:example.com#frag", "a fragment"),
        ("did:web:user@example.com", "user information"),
        ("did:web:example.com?x=y", "a query"),
        ("did:web:example.com ", "space"),
        ("did:web:exam ple.com", "space inside"),
        ("did:web:example.com\n", "newline"),
        ("did:web:example.com\x00", "NUL"),
        ("did:web:exa_mple.com", "underscore"),
        ("did:web:-example.com", "label begins with a hyphen"),
        ("did:web:example-.com", "label ends with a hyphen"),
        ("did:web:example.-com", "last label begins with a hyphen"),
        ("did:web:example", "one label"),
        ("did:web:127.0.0.1", "IPv4 address"),
        ("did:web:93.184.216.34", "IPv4 address, public"),
        ("did:web:0x7f.0.0.1", "IPv4 address in hexadecimal"),
        ("did:web:0x7f.1", "IPv4 address, short"),
        ("did:web:0177.0.0.01", "IPv4 address in octal"),
        ("did:web:2130706433", "IPv4 address, one number"),
        ("did:web:example.0x7f", "ends in a number"),
        ("did:web:example.1", "ends in a number"),
        ("did:web:[::1]", "IPv6 address"),
        ("did:web:%5B%3A%3A1%5D", "IPv6 address, percent-encoded"),
        ("did:web:::1", "IPv6 address, bare"),
        ("did:web:LOCALHOST", "upper case"),
        ("did:web:localhost.", "trailing dot"),
        ("did:web:localhost:2583", "port not escaped"),
        ("did:web:localhost%3a2583", "escape in lower case: a second spelling"),
        ("did:web:localhost%253A2583", "escaped twice"),
        ("did:web:localhost%3A", "no port"),
        ("did:web:localhost%3A0", "port 0"),
        ("did:web:localhost%3A02583", "leading zero: a second spelling"),
        ("did:web:localhost%3A65536", "port too large"),
        ("did:web:localhost%3A99999", "port too large"),
        ("did:web:localhost%3A123456", "port too long"),
        ("did:web:localhost%3A-1", "port below zero"),
        ("did:web:localhost%3A+80", "port with a sign"),
        ("did:web:localhost%3A8_0", "port that int() would take"),
        ("did:web:localhost%3A\u0668\u0660", "port in other digits"),
        ("did:web:localhost%3A2583%3A1", "two ports"),
        ("did:web:localhost%3A2583:path", "path-based behind a port"),
        (f"did:web:{'a' * 64}.com", "label too long"),
        ("did:web:" + longest_host.replace(".d", ".dd"), "host too long by one"),
        ("did:web:" + "a." * 1_000_000 + "com", "two megabytes"),
        ("did:plc:" + "a" * 1_000_000, "a megabyte"),
    ],
)
def test_any_other_spelling_of_a_did_is_refused(did: str, why: str) -> None:
    """Catches a second spelling of an owner, hosts that are addresses, and path traversal."""
    with pytest.raises(InvalidDid) as caught:
        parse_did(did)
    assert len(str(caught.value)) < 700, "a log line must not grow with the request"


@pytest.mark.parametrize(
    ("did", "authority"),
    [
        ("did:web:example.com", "example.com"),
        ("did:web:localhost", "localhost"),
        ("did:web:localhost%3A2583", "localhost:2583"),
        (PLC, None),
    ],
)
def test_the_authority_of_a_did_web_is_its_host_and_port_unescaped(
    did: str, authority: str | None
) -> None:
    """Catches a port that stays escaped, and a did:plc taken for a host."""
    assert did_web_authority(parse_did(did)) == authority


def varint(number: int) -> bytes:
    out = b""
    while number > 0x7F:
        out += bytes([number & 0x7F | 0x80])
        number >>= 7
    return out + bytes([number])


@pytest.mark.parametrize("codec", [RAW, DAG_PB])
def test_a_cid_of_a_codec_of_blobs_comes_back_letter_for_letter(codec: int) -> None:
    """Catches a CID that is re-encoded as another one."""
    cid = base32(b"\x01" + varint(codec) + SHA2_256 + DIGEST)
    assert parse_cid(cid) == cid
    assert cid_digest(parse_cid(cid)) == DIGEST


@pytest.mark.parametrize("codec", [0x00, 0x51, DAG_CBOR, 0x72, 0x0129, 0x0200, 0x4000, 2**63 - 1])
def test_a_cid_of_another_codec_is_not_that_of_a_blob(codec: int) -> None:
    """Catches one digest with any number of CIDs (atproto, Data Model: raw for links to blobs)."""
    with pytest.raises(InvalidCid):
        parse_cid(base32(b"\x01" + varint(codec) + SHA2_256 + DIGEST))


def test_all_cids_of_the_same_bytes_have_one_content() -> None:
    """Catches a block of one CID that leaves another CID of the same picture served."""
    raw, dag_pb = (base32(bytes([1, each]) + SHA2_256 + DIGEST) for each in (RAW, DAG_PB))
    record = base32(bytes([1, DAG_CBOR]) + SHA2_256 + DIGEST)
    accepted = {raw, dag_pb, base58(SHA2_256 + DIGEST)}
    for cid in (*accepted, record):
        assert content_cid(Cid(cid)) == raw
        assert set(spellings(Cid(cid))) == accepted
        assert spellings(Cid(cid))[0] == raw
    assert content_cid(parse_cid(CID)) == CID
    assert content_cid(parse_cid(CID_V0)) != content_cid(parse_cid(CID))


@given(st.text(max_size=80) | st.binary(max_size=50).map(base32))
def test_any_text_has_a_content(text: str) -> None:
    """Catches an old row of a store at which the service stops."""
    assert content_cid(Cid(text)) in spellings(Cid(text))
    assert content_cid(content_cid(Cid(text))) == content_cid(Cid(text))


def test_cid_version_0_is_canonical_too() -> None:
    """Catches a proxy that serves CIDv1 alone: old PDS and old records name CIDv0."""
    assert parse_cid(CID_V0) == CID_V0
    cid = base58(SHA2_256 + DIGEST)
    assert parse_cid(cid) == cid
    assert cid_digest(parse_cid(cid)) == DIGEST


def test_the_digest_is_that_of_the_content() -> None:
    """Catches a digest with its multihash prefix still on it: no content would ever match."""
    assert cid_digest(parse_cid(CID)) == hashlib.sha256(CONTENT).digest()


def with_last_bits(cid: str) -> str:
    """``cid`` with a bit set that base32 does not need: it decodes to the same bytes."""
    alphabet = "abcdefghijklmnopqrstuvwxyz234567"
    return cid[:-1] + alphabet[alphabet.index(cid[-1]) | 1]


@pytest.mark.parametrize(
    "cid",
    [
        pytest.param(CID.upper(), id="upper case"),
        pytest.param("b" + CID[1:].upper(), id="upper case behind a lower-case prefix"),
        pytest.param(CID[:-1] + CID[-1].upper(), id="one letter in upper case"),
        pytest.param(CID + "=" * 6, id="padded"),
        pytest.param("c" + CID[1:] + "=" * 6, id="base32 with padding"),
        pytest.param("z" + base58(V1_BINARY), id="base58"),
        pytest.param("f" + V1_BINARY.hex(), id="base16"),
        pytest.param("F" + V1_BINARY.hex().upper(), id="base16 in upper case"),
        pytest.param("v" + bare(base64.b32hexencode(V1_BINARY)).lower(), id="base32hex"),
        pytest.param("m" + bare(base64.b64encode(V1_BINARY)), id="base64"),
        pytest.param("u" + bare(base64.urlsafe_b64encode(V1_BINARY)), id="base64url"),
        pytest.param("z" + CID_V0, id="CIDv0 behind a multibase prefix"),
        pytest.param(base32(SHA2_256 + DIGEST), id="CIDv0 in base32"),
        pytest.param(base58(V1_BINARY), id="CIDv1 without its multibase prefix"),
        pytest.param(with_last_bits(CID), id="loose bits at the end"),
        pytest.param("\x00" + CID, id="NUL before"),
        pytest.param(CID + "\x00", id="NUL after"),
        pytest.param(" " + CID, id="space before"),
        pytest.param(CID + " ", id="space after"),
        pytest.param(CID + "\n", id="newline after"),
        pytest.param(CID[:20] + "\n" + CID[20:], id="newline inside"),
        pytest.param(CID[:20] + " " + CID[20:], id="space inside"),
        pytest.param("/ipfs/" + CID, id="a path"),
        pytest.param(CID + "/", id="slash after"),
        pytest.param(CID + "@jpeg", id="a format after"),
        pytest.param("%62" + CID[1:], id="percent-encoded"),
    ],
)
def test_another_spelling_of_a_valid_cid_is_refused(cid: str) -> None:
    """Catches a blocked blob that is served under a second name, from a second cache entry."""
    with pytest.raises(InvalidCid):
        parse_cid(cid)


@pytest.mark.parametrize(
    "binary",
    [
        pytest.param(b"\x01\x55\x13\x40" + hashlib.sha512(CONTENT).digest(), id="sha2-512"),
        pytest.param(b"\x01\x55\x16\x20" + DIGEST, id="sha3-256"),
        pytest.param(b"\x01\x55\x1b\x20" + DIGEST, id="keccak-256"),
        pytest.param(b"\x01\x55\x1e\x20" + DIGEST, id="blake3"),
        pytest.param(b"\x01\x55\x11\x14" + DIGEST[:20], id="sha1"),
        pytest.param(b"\x01\x55\x00\x20" + DIGEST, id="identity of 32 bytes"),
        pytest.param(b"\x01\x55\x00\x00", id="identity of nothing"),
        pytest.param(b"\x01\x55\x00\x0b" + CONTENT, id="identity of the content"),
        pytest.param(b"\x01\x55\x12\x1f" + DIGEST[:31], id="31 bytes"),
        pytest.param(b"\x01\x55\x12\x14" + DIGEST[:20], id="20 bytes"),
        pytest.param(b"\x01\x55\x12\x21" + DIGEST + b"\x00", id="33 bytes"),
        pytest.param(b"\x01\x55\x12\x00", id="no bytes"),
        pytest.param(V1_BINARY[:-1], id="length says 32, 31 follow"),
        pytest.param(V1_BINARY + b"\x00", id="a trailing byte"),
        pytest.param(V1_BINARY + V1_BINARY, id="two CIDs"),
        pytest.param(b"\x81\x00\x55" + SHA2_256 + DIGEST, id="version as a padded varint"),
        pytest.param(b"\x01\xd5\x00" + SHA2_256 + DIGEST, id="codec as a padded varint"),
        pytest.param(b"\x01\x55\x92\x00\x20" + DIGEST, id="hash as a padded varint"),
        pytest.param(b"\x01\x55\x12\xa0\x00" + DIGEST, id="length as a padded varint"),
        pytest.param(b"\x01" + b"\xff" * 9 + b"\x7f" + SHA2_256 + DIGEST, id="codec over 64 bits"),
        pytest.param(b"\x00\x55" + SHA2_256 + DIGEST, id="version 0 in the form of 1"),
        pytest.param(b"\x02\x55" + SHA2_256 + DIGEST, id="version 2"),
        pytest.param(b"\x03\x55" + SHA2_256 + DIGEST, id="version 3"),
        pytest.param(b"\x01\x55", id="no hash"),
        pytest.param(b"\x01", id="a version alone"),
        pytest.param(b"", id="nothing"),
    ],
)
def test_a_cid_of_another_hash_or_shape_is_refused(binary: bytes) -> None:
    """Catches content that nothing can be checked against, and a check against a short digest."""
    for cid in (base32(binary), base58(binary)):
        with pytest.raises(InvalidCid):
            parse_cid(cid)


@pytest.mark.parametrize(
    "cid",
    [
        "",
        "b",
        "Qm",
        ".",
        "..",
        "bafyabc",
        "../../../etc/passwd",
        "bafyrei/abc/def",
        "bafyrei\\abc",
        "bafyrei..abc",
        CID + "!@#",
        "this_is_not_a_valid_cid_at_all_12345",
        # Coves' tests call this one valid; it has 60 characters, which no base32 has.
        "bafyreihgdyzzpkkzq2izfnhcmm77ycuacvkuziwbnqxfxtqsz7tmxwhnshi",
        CID[:-1],
        CID_V0[:-1],
        CID_V0 + "1",
        CID_V0[:-1] + "0",
        CID_V0[:-1] + "l",
        "\u0431" + CID[1:],
        CID[:-1] + "\uff51",
        "bafyrei" + "\x00" * 200,
        "bafyrei" + "a" * 250,
        "Qm" + "1" * 1_000_000,
        "b" + "a" * 1_000_000,
    ],
    ids=lambda cid: ascii(cid[:40]),
)
def test_an_invalid_cid_is_refused(cid: str) -> None:
    """Catches a syntax check that does not decode, and work in proportion to a hostile URL."""
    with pytest.raises(InvalidCid) as caught:
        parse_cid(cid)
    assert len(str(caught.value)) < 700


def test_a_long_cid_is_refused_before_it_is_decoded(monkeypatch: pytest.MonkeyPatch) -> None:
    """Catches base58 decoding, quadratic in its input, over a URL of any length."""

    def never(text: str) -> None:
        raise AssertionError("decoded")

    monkeypatch.setattr("proxy.model.identifiers.decode_cid", never)
    with pytest.raises(InvalidCid):
        parse_cid("Q" * (MAX_CID + 1))


def mutated(valid: str) -> st.SearchStrategy[str]:
    """``valid`` with one character replaced, inserted, or dropped."""
    places = st.integers(0, len(valid))
    characters = st.one_of(st.sampled_from("aAzZ01.%/\\:@-_= \n\x00\u00e9"), st.characters())
    return st.one_of(
        st.builds(lambda at, new: valid[:at] + new + valid[at:], places, characters),
        st.builds(lambda at, new: valid[:at] + new + valid[at + 1 :], places, characters),
        st.builds(lambda at: valid[:at] + valid[at + 1 :], places),
    )


texts = st.one_of(
    st.text(),
    st.text(alphabet="did:plcweb.%3A/\\\x00", max_size=40).map("did:web:".__add__),
    st.from_regex(r"did:(plc|web):[a-zA-Z0-9.%:-]*", fullmatch=True),
    st.binary(max_size=60).map(base32),
    st.binary(max_size=60).map(base58),
    st.text(alphabet=BASE58, min_size=44, max_size=44).map("Qm".__add__),
    mutated(PLC),
    mutated("did:web:example.com"),
    mutated("did:web:localhost%3A2583"),
    mutated(CID),
    mutated(CID_V0),
)


@pytest.mark.parametrize(
    ("parse", "error"), [(parse_did, InvalidDid), (parse_cid, InvalidCid)], ids=["did", "cid"]
)
@given(text=texts)
@example(text="did:web:a.com\n")
@example(text="\ud800")
@examples(500)
def test_any_text_is_refused_or_comes_back_unchanged_and_harmless(
    parse: Callable[[str], str], error: type[ImageProxyError], text: str
) -> None:
    """Catches normalising, untyped errors, and whatever could leave the cache's folder."""
    try:
        parsed = parse(text)
    except error:
        return
    assert parsed == text
    assert parsed.isascii()
    assert parsed.isprintable()
    assert not set(parsed) & set("/\\\x00 \"'<>&?#@")
    assert ".." not in parsed


# Handles. The first two lists are those of the Handle specification, section "Identifier Examples".


@pytest.mark.parametrize(
    "text",
    ["jay.bsky.social", "8.cn", "name.t--t", "a.co", "xn--notarealidn.com", "example.t",
     "xn--fiqa61au8b7zsevnm8ak20mc4a87e.xn--fiqs8s", "a" * 63 + ".com", longest_host],
)  # fmt: skip
def test_a_handle_is_any_hostname_of_two_labels(text: str) -> None:
    """Catches a grammar that is stricter than the specification's."""
    assert parse_handle(text) == text


@pytest.mark.parametrize(
    "text",
    ["jo@hn.dev", "\U0001f4a9.dev", "john..dev", "xn--bcher-.tld", "john.0", "cn.8",
     "www.mase\u0142kowski.pl.com", "org", "name.org.", "", ".", ".com", "-a.com", "a-.com",
     " a.com", "a.com\n", "a.com/", "a.com:443", "a_b.com", "127.0.0.1", "[::1]", "a.c\u212aom",
     "a" * 64 + ".com", "a." + longest_host, "user@a.com", "a.com#", "a%2ecom"],
    ids=ascii,
)  # fmt: skip
def test_an_invalid_hostname_is_not_a_handle(text: str) -> None:
    """Catches a name that ends up in a URL, or before a DNS server, as something else."""
    with pytest.raises(InvalidHandle):
        parse_handle(text)


@pytest.mark.parametrize(
    "top", ["alt", "arpa", "example", "internal", "invalid", "local", "localhost", "onion", "LOCAL"]
)
def test_no_handle_is_below_a_reserved_name(top: str) -> None:
    """Catches a stranger who has the proxy ask for names of its own network."""
    with pytest.raises(InvalidHandle):
        parse_handle(f"someone.{top}", own_names=True)


def test_handles_for_development_are_for_development() -> None:
    """Catches .test in production, where the specification has it fail."""
    assert parse_handle("alice.test", own_names=True) == "alice.test"
    for own_names in (False, (), ("bob.test", "test", "10.0.0.0/8")):
        with pytest.raises(InvalidHandle):
            parse_handle("alice.test", own_names=own_names)


@pytest.mark.parametrize("name", ["alice.test", "alice.pds.home.arpa", "bob.internal"])
def test_handles_of_a_network_of_ones_own_are_those_that_are_listed(name: str) -> None:
    """Catches a listed PDS whose accounts have no picture by name, and a listed address literal."""
    assert parse_handle(name.upper(), own_names=("10.0.0.0/8", name)) == name
    assert parse_handle("alice.example.com", own_names=(name,)) == "alice.example.com"
    for other in (f"x.{name}", name.replace(".", "-", 1)):
        with pytest.raises(InvalidHandle):
            parse_handle(other, own_names=(name,))
    with pytest.raises(InvalidHandle):
        parse_handle("10.0.0.1", own_names=("10.0.0.1",))


def test_handles_have_one_spelling_from_here_on() -> None:
    """Catches one account under as many names as there are ways to write it."""
    assert parse_handle("XX.LCS.MIT.EDU") == "xx.lcs.mit.edu"
