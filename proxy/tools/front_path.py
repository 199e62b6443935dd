"""The path below which fronts have the service, as the files printed for them have it. Pure."""

from __future__ import annotations

import re
from dataclasses import dataclass
from urllib.parse import urlsplit

from proxy.config import Config


@dataclass(frozen=True, slots=True)
class FrontPath:
    """Where the service is.

    Attributes:
        text: as ``/pics``; empty where the service has a host of its own.
        is_taken_away: the service is asked without it.
    """

    text: str
    is_taken_away: bool

    @property
    def pattern(self) -> str:
        """A regular expression for it."""
        return re.escape(self.text)


def front_path(config: Config) -> FrontPath:
    """Return ``server.root_path``, which is passed on, or the path of ``server.base_url``.

    A ``base_url`` whose path has more than letters, digits and ``._~-`` counts as one without.
    """
    if config.server.root_path:
        return FrontPath(config.server.root_path, is_taken_away=False)
    path = urlsplit(config.server.base_url).path
    if not re.fullmatch(r"(?:/[A-Za-z0-9_~-][A-Za-z0-9._~-]*)+", path):
        return FrontPath("", is_taken_away=False)
    return FrontPath(path, is_taken_away=True)
