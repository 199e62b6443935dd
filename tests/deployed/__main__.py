"""See the package."""

from __future__ import annotations

import os
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path

from tests.deployed import image, readme, unit
from tests.deployed.debian import missing

CHECKS: dict[str, Callable[[Path], None]] = {
    "readme": readme.check,
    "image": image.check,
    "unit": unit.check,
}


def main(names: list[str]) -> int:
    """Run the checks of these names, or all; the exit code."""
    if unknown := set(names) - CHECKS.keys():
        print(f"deployed: no {', '.join(unknown)}; there are {', '.join(CHECKS)}", file=sys.stderr)
        return 2
    # Where programs for root are, which is not on every PATH.
    os.environ["PATH"] += ":/usr/sbin:/sbin"
    if lacking := missing():
        print(f"deployed: {lacking}", file=sys.stderr)
        return 2
    for name in names or CHECKS:
        with tempfile.TemporaryDirectory() as folder:
            CHECKS[name](Path(folder))
        print(f"deployed: {name} is as promised")
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
