"""Public keys and signatures (atproto, Cryptography specification). Pure, total."""

from __future__ import annotations

from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.asymmetric.utils import encode_dss_signature
from cryptography.hazmat.primitives.hashes import SHA256
from libipld import decode_multibase

MAX_KEY = 128
"""Longest key looked at; an uncompressed point in base58 has 89 characters."""

# The curves, and their order (SEC 2, section 2.4.1; FIPS 186-4, D.1.2.3).
_K256 = (ec.SECP256K1(), 0xFFFFFFFFFFFFFFFFFFFFFFFFFFFFFFFEBAAEDCE6AF48A03BBFD25E8CD0364141)
_P256 = (ec.SECP256R1(), 0xFFFFFFFF00000000FFFFFFFFFFFFFFFFBCE6FAADA7179E84F3B9CAC2FC632551)

# Multicodec varints before the compressed point of a Multikey.
_MULTICODECS: dict[bytes, tuple[ec.EllipticCurve, int]] = {b"\xe7\x01": _K256, b"\x80\x24": _P256}

# Types whose name has the curve, before the point alone (atproto, Cryptography, "Public Key
# Encoding"): older documents have them, and directories of an older version write them still.
_LEGACY_TYPES: dict[str, tuple[ec.EllipticCurve, int]] = {
    "EcdsaSecp256k1VerificationKey2019": _K256,
    "EcdsaSecp256r1VerificationKey2019": _P256,
}


class BadKey(Exception):
    """Not a key of a curve that atproto uses."""


class PublicKey:
    """A key that signatures are checked against."""

    def __init__(self, point: ec.EllipticCurvePublicKey, order: int) -> None:
        self._point = point
        self._order = order

    def has_signed(self, data: bytes, signature: bytes) -> bool:
        """Whether ``signature`` is this key's over the SHA-256 of ``data``.

        Only the canonical form counts: 64 bytes, r and s, and s in the lower half of its range.
        About 0.2 ms of CPU.
        """
        if len(signature) != 64:
            return False
        r, s = int.from_bytes(signature[:32]), int.from_bytes(signature[32:])
        if not (0 < r < self._order and 0 < s <= self._order // 2):
            return False
        try:
            self._point.verify(encode_dss_signature(r, s), data, ec.ECDSA(SHA256()))
        except InvalidSignature:
            return False
        return True


def parse_key(type: str, text: str) -> PublicKey:
    """The key of a verification method.

    Args:
        type: ``Multikey``, or one of the older types.
        text: its ``publicKeyMultibase``.

    Raises:
        BadKey: another type, encoding or curve, or not a point of it.
    """
    if not text.startswith("z") or len(text) > MAX_KEY:
        raise BadKey("not base58btc")
    try:
        _base, data = decode_multibase(text)
    except ValueError as error:
        raise BadKey(f"not base58btc: {error}") from None
    if type == "Multikey":
        curve, point = _MULTICODECS.get(data[:2]), data[2:]
    else:
        curve, point = _LEGACY_TYPES.get(type), data
    if curve is None:
        raise BadKey("neither a k256 nor a p256 key")
    try:
        return PublicKey(ec.EllipticCurvePublicKey.from_encoded_point(curve[0], point), curve[1])
    except ValueError as error:
        raise BadKey(f"no point of its curve: {error}") from None
