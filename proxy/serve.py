"""Running the application under Hypercorn's Trio worker."""

from __future__ import annotations

import errno
import os
import signal
import sys
from functools import partial
from pathlib import Path
from tempfile import TemporaryDirectory

import hypercorn.run
import hypercorn.trio
import trio
from hypercorn.utils import LifespanFailureError

from proxy import systemd
from proxy.config import CONFIG_VARIABLE, Config, Layer, environment_for
from proxy.log import server_log
from proxy.siblings import FOLDER_VARIABLE
from proxy.web.app import ImageProxyApp, create_app

KEEP_ALIVE_SECONDS = 75
"""Longer than the 60 s that reverse proxies keep idle connections, so that they close first."""

READ_SECONDS = 120
"""A client that sends nothing for so long, in the middle of a request or between two, is cut."""

BACKLOG = 1024

CANNOT_BIND = frozenset({errno.EADDRINUSE, errno.EADDRNOTAVAIL, errno.EACCES})
"""What is wrong with the address alone."""


def serve(config: Config, file: Path | None, overrides: Layer) -> int:
    """Serve until SIGTERM or SIGINT; the process's exit code.

    Args:
        config: the effective configuration.
        file, overrides: what it was made from, for worker processes to make it again.
    """
    settings = hypercorn_config(config)
    try:
        if config.server.workers == 1:
            trio.run(_serve_here, config, settings)
            return 0
        if file is not None:
            os.environ[CONFIG_VARIABLE] = str(file.absolute())
        os.environ.update(environment_for(overrides))
        settings.application_path = "proxy.serve:worker_app()"
        settings.workers = config.server.workers
        # Only this user may enter it.
        with TemporaryDirectory(prefix="imageproxy-") as folder:
            os.environ[FOLDER_VARIABLE] = folder
            return hypercorn.run.run(settings)
    except (OSError, ExceptionGroup) as error:
        print(f"imageproxy: {_why_not(config, error)}", file=sys.stderr)
        return 1


def worker_app() -> ImageProxyApp:
    """The application of one of several worker processes; Hypercorn calls it in each."""
    # When the first worker has ended, Hypercorn sends SIGTERM to those that still have requests
    # in flight, and so do service managers; it tells its workers to stop in another way.
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    app = create_app()

    # After the application's own: by then it serves, on a socket that listens already.
    @app.before_serving
    async def ready() -> None:
        systemd.notify(systemd.READY)

    @app.after_serving
    async def stopping() -> None:
        systemd.notify(systemd.STOPPING)

    return app


def hypercorn_config(config: Config) -> hypercorn.Config:
    """Hypercorn's settings that follow from ours."""
    settings = hypercorn.Config()
    settings.application_path = "proxy:create_app()"
    settings.worker_class = "trio"
    settings.bind = [config.server.bind]
    settings.backlog = BACKLOG
    settings.graceful_timeout = config.server.shutdown_timeout
    settings.shutdown_timeout = config.server.shutdown_timeout + 5
    settings.keep_alive_timeout = KEEP_ALIVE_SECONDS
    settings.read_timeout = READ_SECONDS
    settings.include_server_header = False
    settings.errorlog = server_log()
    return settings


async def _serve_here(config: Config, settings: hypercorn.Config) -> None:
    app = create_app(config)

    async def stop_signal() -> None:
        with trio.open_signal_receiver(signal.SIGTERM, signal.SIGINT) as signals:
            async for _ in signals:
                systemd.notify(systemd.STOPPING)
                app.drain()
                return

    async with trio.open_nursery() as nursery:
        serving = partial(
            hypercorn.trio.serve, app, settings, shutdown_trigger=stop_signal, mode="asgi"
        )
        await nursery.start(serving)
        # Hypercorn listens for a moment also where the application could not start.
        if app.responder.service is not None:
            systemd.notify(systemd.READY)


def _why_not(config: Config, error: OSError | ExceptionGroup[Exception]) -> str:
    """In one line, why the start failed; a failure of another kind is raised again."""
    cause: Exception = error
    while isinstance(cause, ExceptionGroup) and len(cause.exceptions) == 1:
        cause = cause.exceptions[0]
    if isinstance(cause, OSError):
        another = "; --bind HOST:PORT chooses another" if cause.errno in CANNOT_BIND else ""
        return f"{config.server.bind}: {cause.strerror or cause}{another}"
    if isinstance(cause, LifespanFailureError):
        return str(cause)
    raise error
