"""The examples that the page offers: what the configured network has. Pure."""

from __future__ import annotations

from html import escape
from urllib.parse import urlencode

from proxy.config import Config

PUBLIC_PLC = "https://plc.directory"

_BLUESKY = "did:plc:z72i7hdynmk6r22z27h6tvur"
_AVATAR = "bafkreihagr2cmvl2jt4mgx3sppwe2it3fwolkrbtjrhcnwjk4jdijhsoze"

_PUBLIC = (
    ("a handle", "bsky.app"),
    ("a DID", _BLUESKY),
    ("a link to a profile or post", "https://bsky.app/profile/bsky.app"),
    ("an at:// URI", f"at://{_BLUESKY}/app.bsky.actor.profile/self"),
    ("the URL of an image", f"/img/avatar_small/plain/{_BLUESKY}/{_AVATAR}@jpeg"),
)

_DEVELOPMENT = (
    ("a handle", "alice.test"),
    ("another one", "bob.test"),
    ("a link to a profile or post", "https://bsky.app/profile/alice.test"),
    ("a gallery that quotes", "at://alice.test/app.bsky.feed.post/3m2gallery2a2"),
)
"""The accounts of ``./run devnet``."""


_FORMS = (
    ("a handle", "alice.example.com"),
    ("a link to a profile or post", "https://bsky.app/profile/alice.example.com"),
    ("an at:// URI", "at://alice.example.com/app.bsky.actor.profile/self"),
)
"""For a network whose accounts nobody knows here."""


def examples(config: Config) -> str:
    """Return HTML, the items of a list: what each example is, and a link that looks it up.

    Where the accounts of the network are not known, they show only what may be typed.
    """
    if config.identity.plc_url.rstrip("/") == PUBLIC_PLC:
        return "\n".join(_item(about, _linked(text)) for about, text in _PUBLIC)
    if config.fetch.allow_private_hosts is True:
        return "\n".join(_item(about, _linked(text)) for about, text in _DEVELOPMENT)
    return "\n".join(_item(about, _code(text)) for about, text in _FORMS)


def _item(about: str, shown: str) -> str:
    return f"<li><span>{escape(about)}</span> {shown}</li>"


def _linked(text: str) -> str:
    return f'<a href="?{escape(urlencode({"q": text}))}">{_code(text)}</a>'


def _code(text: str) -> str:
    return f"<code>{escape(text.removeprefix('https://'))}</code>"
