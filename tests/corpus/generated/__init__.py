"""The corpus that is made: every kind of file that was ever shown wrongly, and its neighbours."""

from __future__ import annotations

from tests.corpus.cases import Case

FOREIGN = b"52.5041N 13.2010E: bytes of nobody's business."
"""What files carry beside their pictures, and no answer may."""


def generated() -> list[Case]:
    """Every case, by a name of its own."""
    from tests.corpus.generated import isomedia, jpegs, moving, pngs

    found = [case for module in (jpegs, pngs, moving, isomedia) for case in module.cases()]
    names = [case.name for case in found]
    assert len(set(names)) == len(names), "two cases of one name"
    return found
