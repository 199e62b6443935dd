"""``python -m bench.constant_pixels serve``: the service, whose image workers answer a constant.

All but the pixels is as it is: the worker processes, their sandbox, and what passes between them
and the service. So this is the rate that the main process could keep up with.
"""

from __future__ import annotations

import io
from collections.abc import Iterator, Sequence
from typing import NoReturn

from PIL import Image

from proxy.cli import main as service
from proxy.imaging.recipes import Outcome, Recipe, Rendered
from proxy.imaging.workers import fork_server, forks
from proxy.model.formats import Format

STARTS = "from proxy.imaging.workers.fork_server import main"
STARTS_OURS = "from bench.constant_pixels import workers as main"


def _constant() -> bytes:
    """A JPEG of about the bytes that ``avatar_small`` has of a photograph."""
    out = io.BytesIO()
    Image.effect_noise((360, 360), 40).convert("RGB").save(out, "JPEG", quality=50)
    return out.getvalue()


def workers(descriptor: int) -> NoReturn:
    """As ``proxy.imaging.workers.fork_server.main``."""
    data = _constant()

    def render_job(source: bytes, recipes: Sequence[Recipe], max_pixels: int) -> Iterator[Outcome]:
        del source, max_pixels  # the picture is not looked at
        for _ in recipes:
            yield Rendered(data, Format.JPEG)

    fork_server.render_job = render_job  # type: ignore[attr-defined]
    fork_server.main(descriptor)


if __name__ == "__main__":
    assert STARTS in forks.BOOTSTRAP
    forks.BOOTSTRAP = forks.BOOTSTRAP.replace(STARTS, STARTS_OURS)
    service()
