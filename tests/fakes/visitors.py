"""People who look at pictures through a CDN, each in another spelling of the request."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from proxy.model.identifiers import Cid, Did
from proxy.model.selection import Selection
from tests.fakes.cdns import BASE, Copy, FakeCdn
from tests.fakes.world import World, tiny_png

ORIGIN = "https://app.example"

PRESET, OTHER_PRESET = "avatar_thumbnail", "avatar_small"


@dataclass(frozen=True)
class Picture:
    """A blob, and the avatar of its owner."""

    did: Did
    cid: Cid

    @property
    def selections(self) -> tuple[Selection, Selection, Selection]:
        """What blocks it: its owner, its bytes, the pair."""
        return Selection(did=self.did), Selection(cid=self.cid), Selection(self.did, self.cid)

    def spellings(self) -> dict[str, tuple[str, tuple[tuple[str, str], ...], str]]:
        """Requests for it: target, headers and method of each."""
        path = f"/img/{PRESET}/plain/{self.did}/{self.cid}"
        return {
            "a query": (f"{path}?v=1", (), "GET"),
            "an Origin": (path, (("Origin", ORIGIN),), "GET"),
            "%3A": (path.replace(":", "%3A"), (), "GET"),
            "another preset": (path.replace(PRESET, OTHER_PRESET), (), "GET"),
            "a format": (f"{path}@webp", (), "GET"),
            "a HEAD of the original": (f"/blob/{self.did}/{self.cid}", (), "HEAD"),
            "by name": (f"/avatar/{PRESET}/{self.did}", (), "GET"),
        }


class Visitors:
    """Look at pictures of a world through a CDN, which asks the service behind it."""

    def __init__(self, world: World, cdn: FakeCdn) -> None:
        self._world = world
        self._cdn = cdn

    def add_pictures(self, count: int) -> list[Picture]:
        """Make accounts with an avatar each, no two alike."""
        found = []
        for number in range(count):
            color = (number % 256, number // 256 % 256, 99)
            did, cid = self._world.add_blob(tiny_png(color))
            avatar = {"$type": "blob", "ref": {"$link": cid}, "mimeType": "image/png", "size": 1}
            record = {"$type": "app.bsky.actor.profile", "avatar": avatar}
            self._world.pds.add_record(did, "app.bsky.actor.profile/self", record)
            found.append(Picture(did, cid))
        return found

    async def look_at(self, picture: Picture) -> list[str]:
        """Ask in each spelling; return those that show the picture, or lead to it."""
        shown = []
        for name, (target, headers, method) in picture.spellings().items():
            reply = await self._cdn.get(target, *headers, method=method)
            if reply.status in (200, 302):
                shown.append(name)
        return shown

    def copies(self, pictures: Sequence[Picture]) -> list[Copy]:
        """What the CDN keeps that shows these pictures, or leads to them."""
        targets = {
            BASE + target
            for picture in pictures
            for target, _headers, _method in picture.spellings().values()
        }
        return [
            copy
            for copy in self._cdn.copies
            if copy.url in targets and copy.reply is not None and copy.reply.status in (200, 302)
        ]
