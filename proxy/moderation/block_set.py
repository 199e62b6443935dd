"""The set of blocked owners, blobs and pairs. A million need 20 MB; a check takes a microsecond.

A set of strings would need ten times as much, in every process. Pure.
"""

from __future__ import annotations

import secrets
from hashlib import blake2b

from proxy.model.identifiers import Cid, content_cid
from proxy.model.keys import BlobKey

DIGEST = 16
"""Bytes of a block's digest. Two of 2 ** 40 digests are equal with a probability of 2 ** -49."""

BUCKETS = 2**14
"""The number of buckets. With a million blocks each has 61 digests: a kilobyte to search."""

FILTER_BYTES = 2**21
"""The size of the filter. With a million blocks, it lets 6 % of the unblocked blobs through."""


_FILTER_MASK = FILTER_BYTES * 8 - 1


class BlockSet:
    """A set of pairs (DID, CID), where ``""`` means every DID or every CID.

    A CID stands for its digest.
    """

    def __init__(self) -> None:
        # Each set has its own salt, so that nobody can choose identifiers that fill one bucket.
        self._salt = secrets.token_bytes(blake2b.SALT_SIZE)
        self._filter = bytearray(FILTER_BYTES)
        self._buckets = [b""] * BUCKETS
        self._count = 0

    def __len__(self) -> int:
        return self._count

    def covers(self, blob: BlobKey) -> bool:
        """Whether the owner, the blob, or the pair is in the set."""
        if not self._count:
            return False
        bits = self._filter
        did, cid = blob.did, content_cid(blob.cid)
        # This runs before every hit, so it avoids function calls: the filter ends most look-ups.
        for pair in ((did, ""), ("", cid), (did, cid)):
            place = hash(pair) & _FILTER_MASK
            if bits[place >> 3] >> (place & 7) & 1 and self._holds(pair):
                return True
        return False

    def add(self, did: str, cid: str) -> None:
        """Add a pair. Idempotent."""
        cid = content_cid(Cid(cid))
        digest, number = self._digest(did, cid)
        if _position(self._buckets[number], digest) is None:
            self._buckets[number] += digest
            self._count += 1
            place = hash((did, cid)) & _FILTER_MASK
            self._filter[place >> 3] |= 1 << (place & 7)

    def discard(self, did: str, cid: str) -> None:
        """Remove a pair. Idempotent."""
        # Its bit in the filter stays: another pair may share it, and it costs only a look-up.
        digest, number = self._digest(did, content_cid(Cid(cid)))
        bucket = self._buckets[number]
        position = _position(bucket, digest)
        if position is not None:
            self._buckets[number] = bucket[:position] + bucket[position + DIGEST :]
            self._count -= 1

    def _holds(self, pair: tuple[str, str]) -> bool:
        digest, number = self._digest(*pair)
        return _position(self._buckets[number], digest) is not None

    def _digest(self, did: str, cid: str) -> tuple[bytes, int]:
        """The digest of a pair, and the number of its bucket."""
        # DIDs and CIDs contain no space, so different pairs give different texts.
        text = f"{did} {cid}".encode()
        digest = blake2b(text, digest_size=DIGEST, salt=self._salt).digest()
        return digest, (digest[0] << 8 | digest[1]) % BUCKETS


def _position(bucket: bytes, digest: bytes) -> int | None:
    """Where ``digest`` begins, or None. A match that spans two digests does not count."""
    position = bucket.find(digest)
    while position % DIGEST and position >= 0:
        position = bucket.find(digest, position + 1)
    return None if position < 0 else position
