"""A store in memory that fails on demand: slow, dead and lying, as a real one will not be."""

from __future__ import annotations

import threading
from collections.abc import Iterator, Sequence

from proxy.cache.object_interface import PAGE, Oversized
from proxy.egress.errors import ConnectFailed


class FakeObjects:
    """``Objects`` in a dictionary. Its methods run in threads.

    Attributes:
        asked: the operations, in order.
        is_dead: every request fails at once.
        released: cleared, every request waits for it.
        entered: set when a request has begun.
        deletes: whether objects go that are deleted.
    """

    def __init__(self) -> None:
        self.kept: dict[str, bytes] = {}
        self.asked: list[str] = []
        self.is_dead = False
        self.deletes = True
        self.entered = threading.Event()
        self.released = threading.Event()
        self.released.set()

    def get(self, path: str, max_bytes: int) -> bytes | None:
        """See ``Objects.get``."""
        self._request("get")
        content = self.kept.get(path)
        if content is not None and len(content) > max_bytes:
            raise Oversized
        return content

    def put(self, path: str, content: bytes, *, replaces: bool = False) -> bool:
        """See ``Objects.put``."""
        self._request("put")
        if path in self.kept and not replaces:
            return False
        self.kept[path] = content
        return True

    def pages(self, prefix: str) -> Iterator[list[str]]:
        """See ``Objects.pages``."""
        found = sorted(path for path in self.kept if path.startswith(prefix + "/"))
        for at in range(0, len(found) or 1, PAGE):
            self._request("list")
            yield found[at : at + PAGE]

    def delete(self, paths: Sequence[str]) -> None:
        """See ``Objects.delete``."""
        self._request("delete")
        for path in paths:
            if self.deletes:
                self.kept.pop(path, None)

    def _request(self, operation: str) -> None:
        self.asked.append(operation)
        self.entered.set()
        self.released.wait()
        if self.is_dead:
            raise ConnectFailed("refused")
