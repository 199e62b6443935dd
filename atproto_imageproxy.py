"""The console script: runs ``proxy.cli`` where the package ``proxy`` is this distribution's.

It is outside of that package, because the distribution ``proxy.py`` installs one of the same name:
installed later, or found first, that is the one which answers.
"""

from __future__ import annotations

import sys
from importlib.util import find_spec
from pathlib import Path

FIRST_LINE = '"""An image proxy of the AT Protocol.'
"""How ``proxy/__init__.py`` begins."""


def problem() -> str | None:
    """Return in a sentence why ``proxy`` cannot be used, or None. Runs nothing of a stranger's."""
    spec = find_spec("proxy")
    places = [*(spec.submodule_search_locations or ())] if spec is not None else []
    if spec is None or not places:
        return 'the package "proxy" is missing; install atproto-imageproxy again'
    beginning = Path(places[0], "__init__.py")
    if not beginning.is_file():
        return (
            f'the package "proxy" in {places[0]} has lost files, as when proxy.py is removed, whose'
            " package has the same name; install atproto-imageproxy again"
        )
    with beginning.open(encoding="utf-8", errors="replace") as lines:
        if lines.readline().rstrip() == FIRST_LINE:
            return None
    return (
        f'the package "proxy" in {places[0]} is not of atproto-imageproxy: proxy.py has one of the'
        " same name; install atproto-imageproxy into a virtual environment of its own"
    )


def main() -> None:
    """Run the command line; exit with 1 and a sentence where another package answers."""
    found = problem()
    if found is not None:
        print(f"imageproxy: {found}", file=sys.stderr)
        sys.exit(1)
    from proxy.cli import main as run

    run()
