"""A later release of the service: its schema has more steps. ``python -m bench.cluster.release``.

As many more as ``BENCH_RELEASE`` says. Each adds a column that the release before knows nothing of.
"""

from __future__ import annotations

import os
from functools import partial

from bench.cluster.members import RELEASE
from proxy.cli import main
from proxy.moderation.cluster import parts, schema

later = tuple(
    (f"ALTER TABLE audit ADD COLUMN of_release_{number} text NOT NULL DEFAULT ''",)
    for number in range(int(os.environ[RELEASE]))
)

if __name__ == "__main__":
    vars(parts)["migrate"] = partial(schema.migrate, steps=schema.STEPS + later)
    main()
