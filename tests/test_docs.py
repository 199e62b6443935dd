"""The documents say what is so."""

from __future__ import annotations

import re
from pathlib import Path

ROOT = Path(__file__).parent.parent


def test_every_counterpart_of_the_seeds_tests_exists() -> None:
    """Catches a table that names tests which were renamed or never written."""
    table = (ROOT / "docs/seed-tests.md").read_text()
    named = set(re.findall(r"`(tests/[\w/]+\.py)::(\w+)`", table))
    missing = [
        f"{file}::{test}" for file, test in named if f"def {test}(" not in (ROOT / file).read_text()
    ]
    assert len(named) > 40
    assert not missing
