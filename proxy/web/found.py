"""What a look-up found: as the page's script reads it, and as HTML where no script runs. Pure."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import asdict
from html import escape
from typing import Any

from proxy.accounts.profiles import AccountPictures, ShownPicture
from proxy.model.formats import OUTPUTS
from proxy.model.keys import BlobKey, image_key, poster_key
from proxy.model.presets import Preset
from proxy.urls import image_url

MAX_LISTED = 24
"""Pictures in one list in HTML: each asks for a thumbnail, and has a link for every preset."""

THUMB_WIDTH = 208
"""Pixels of a thumbnail: 104, on screens of twice the density."""


def as_json(found: AccountPictures, is_refused: Callable[[BlobKey], bool]) -> dict[str, Any]:
    """Return what was found, without what may not be served."""
    return {
        "did": found.did,
        "profile_of": found.profile_of,
        "pictures": [
            {"did": each.did, **asdict(each.picture), "source": each.source}
            for each in found.shown
            if not is_refused(BlobKey(each.did, each.picture.cid))
        ],
        "problems": [
            {"source": each.uri, "problem": each.problem} for each in found.related if each.problem
        ],
    }


def as_list(
    found: AccountPictures,
    is_refused: Callable[[BlobKey], bool],
    presets: Mapping[str, Preset],
    format_: str,
) -> str:
    """Return a list in HTML of at most ``MAX_LISTED`` pictures, and of what is not shown.

    Its URLs are relative to the page's.

    Args:
        format_: for the presets' results; unknown ones do not count.
    """
    shown = [each for each in found.shown if not is_refused(BlobKey(each.did, each.picture.cid))]
    format_ = format_ if format_ in OUTPUTS else ""
    items = [
        _item(number, each, presets, format_ or None)
        for number, each in enumerate(shown[:MAX_LISTED], 1)
    ]
    said = f"{len(items)} of {len(shown)}" if len(items) < len(shown) else str(len(shown))
    told = [f"Pictures of {found.did}: {said}." if shown else "There are no pictures there."]
    told += [f"Not shown: {each.uri}: {each.problem}." for each in found.related if each.problem]
    paragraphs = "".join(f'<p class="told-plain">{escape(each)}</p>' for each in told)
    return f'{paragraphs}<ol class="plain">{"".join(items)}</ol>'


def as_problem(asked: str, message: str) -> str:
    """Return a paragraph that says what is wrong with what was asked for."""
    return f'<p class="told-plain">{escape(asked[:80])}: {escape(message)}.</p>'


def thumb_preset(presets: Mapping[str, Preset]) -> str:
    """Return the narrowest preset that is wide enough for a thumbnail; or the widest there is."""
    widths = {name: preset.width for name, preset in presets.items()}
    enough = [name for name, width in widths.items() if width >= THUMB_WIDTH]
    return min(enough, key=widths.__getitem__) if enough else max(widths, key=widths.__getitem__)


def _item(
    number: int, shown: ShownPicture, presets: Mapping[str, Preset], format_: str | None
) -> str:
    did, picture = shown.did, shown.picture

    def url(preset: str, format_: str | None) -> str:
        key = (
            poster_key(presets, preset, did, picture.cid)
            if picture.medium == "video"
            else image_key(presets, preset, did, picture.cid, format_)
        )
        return escape(image_url(key).removeprefix("/"))

    links = "".join(f'<li><a href="{url(name, format_)}">{name}</a></li>' for name in presets)
    source = f"<p>{escape(shown.source)}</p>" if shown.source else ""
    alt = escape(picture.alt or f"Picture {number}")
    return (
        f'<li class="card"><h2>{number}. {escape(picture.name)}</h2>{source}<div class="frame">'
        f'<img src="{url(thumb_preset(presets), None)}" alt="{alt}" loading="lazy"></div>'
        f"<ul>{links}</ul></li>"
    )
