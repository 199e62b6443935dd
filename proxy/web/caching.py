"""What the caches between this service and its viewers are told of an answer. Pure."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from proxy.config import Config
from proxy.model.cache_tags import content_tag, owner_tag
from proxy.model.keys import BlobKey

TAG_FIELDS: Mapping[str, str] = {
    "cloudflare": "Cache-Tag",
    "bunny": "CDN-Tag",
    "cloudfront": "Cache-Tag",
}
"""The header in which each CDN reads tags. At CloudFront the operator names it."""


@dataclass(frozen=True, slots=True)
class Caching:
    """How long caches may keep a picture or an original (RFC 9111, section 5.2.2).

    Browsers ask again after a day, so that a block and a changed preset reach them, for the price
    of a 304. A shared cache may keep its copy for longer where that copy can be purged.

    Attributes:
        browser: seconds.
        shared: seconds; None: no shared cache is known that purges what it is told to.
        tag_field: the header in which a CDN reads tags; None: there is none.
    """

    browser: int = 86400
    shared: int | None = None
    tag_field: str | None = None

    @property
    def control(self) -> str:
        """The value of ``Cache-Control``."""
        shared = "" if self.shared is None else f", s-maxage={self.shared}"
        return f"public, max-age={self.browser}{shared}"

    def headers(self, blob: BlobKey) -> tuple[tuple[str, str], ...]:
        """Return the headers of a picture or an original."""
        return (("Cache-Control", self.control), *self.tags(blob))

    def tags(self, blob: BlobKey) -> tuple[tuple[str, str], ...]:
        """Return the header with the tags of a blob, if tags are read."""
        return self.tagged((owner_tag(blob.did), content_tag(blob.cid)) if self.tag_field else ())

    def tagged(self, tags: Sequence[str]) -> tuple[tuple[str, str], ...]:
        """Return the header with ``tags``, if tags are read."""
        return ((self.tag_field, ",".join(tags)),) if self.tag_field else ()


def caching_of(config: Config) -> Caching:
    """Return the configured lifetimes and tags."""
    lifetimes = config.cache_control
    return Caching(
        browser=lifetimes.browser,
        shared=lifetimes.shared if config.cdn.kind else None,
        tag_field=TAG_FIELDS.get(config.cdn.kind),
    )
