"""See the package."""

from __future__ import annotations

import sys
import tempfile
from collections.abc import Callable
from pathlib import Path

from tests.deployed import image, unit
from tests.deployed.debian import missing

CHECKS: dict[str, Callable[[Path], None]] = {"image": image.check, "unit": unit.check}


def main(names: list[str]) -> int:
    """Run the checks of these names, or all; the exit code."""
    if unknown := set(names) - CHECKS.keys():
        print(f"deployed: no {', '.join(unknown)}; there are {', '.join(CHECKS)}", file=sys.stderr)
        return 2
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
