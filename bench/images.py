"""The images that are asked for."""

from __future__ import annotations

from bench.pictures import Size
from bench.upstream import account

PRESET = "avatar_small"

SOURCE = Size(2000, 1500)
"""About 0.9 MB, as phones upload them."""


class Images:
    """The paths of images: the hot ones, and cold ones that are handed out once each.

    Each image has an account of its own, so that a miss includes the look-up of its PDS.
    """

    def __init__(self, cids: list[str], hot: int, preset: str = PRESET) -> None:
        self._cids = cids
        self._preset = preset
        self.hot = [self.path(number) for number in range(hot)]
        self._cold = iter(range(hot, len(cids)))

    def path(self, number: int) -> str:
        """Of an image by number."""
        return f"/img/{self._preset}/plain/{account(number)}/{self._cids[number]}"

    def cold(self) -> tuple[str, str, str]:
        """The DID, CID and path of an image that nobody asked for yet."""
        number = next(self._cold)
        return account(number), self._cids[number], self.path(number)
