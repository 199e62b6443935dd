"""Runs the application under Hypercorn's Trio worker."""

from __future__ import annotations

import errno
import gc
import os
import signal
import sys
from collections.abc import Awaitable, Callable
from functools import partial
from pathlib import Path
from tempfile import TemporaryDirectory

import hypercorn
import hypercorn.trio
import structlog
import trio
from hypercorn.utils import LifespanFailureError

from proxy.config import CONFIG_VARIABLE, Config, ConfigError, Layer, environment_for
from proxy.observability.log import configure_logging, server_log
from proxy.observability.metrics_snapshot import MetricsSnapshot
from proxy.serving import systemd
from proxy.serving.multiprocess.supervisor import Supervisor
from proxy.web.app import Peers, create_app
from proxy.web.hypercorn_connection import check_hypercorn

KEEP_ALIVE_SECONDS = 75
"""Longer than the 60 s for which reverse proxies keep idle connections: those close first."""

READ_SECONDS = 120
"""A client that sends nothing for this time, during a request or between two, is disconnected."""

BACKLOG = 1024

CANNOT_BIND = frozenset({errno.EADDRINUSE, errno.EADDRNOTAVAIL, errno.EACCES})
"""Errors that another address would solve."""

log = structlog.get_logger(__name__)


def serve(config: Config, file: Path | None, overrides: Layer) -> int:
    """Serve until SIGTERM, SIGINT or SIGHUP; return the exit code.

    Args:
        config: the effective configuration.
        file, overrides: its sources, from which worker processes load it again.
    """
    try:
        check_hypercorn()
    except ConfigError as error:
        print(f"imageproxy: {error}", file=sys.stderr)
        return 2
    if config.server.workers == 1:
        return run(
            config,
            config.server.bind,
            on_serving=lambda: systemd.notify(systemd.READY),
            on_stopping=lambda: systemd.notify(systemd.STOPPING),
        )
    configure_logging(config.log, names_process=True)
    environment = {**os.environ, **environment_for(overrides)}
    if file is not None:
        environment[CONFIG_VARIABLE] = str(file.absolute())
    settings = hypercorn_config(config, config.server.bind)
    try:
        (listener,) = settings.create_sockets().insecure_sockets
        listener.listen(BACKLOG)
    except OSError as error:
        return _cannot_start(config, error)
    # Only this user may enter it.
    with listener, TemporaryDirectory(prefix="imageproxy-") as folder:
        supervisor = Supervisor(
            listener,
            count=config.server.workers,
            environment=environment,
            folder=Path(folder),
            patience=settings.graceful_timeout + settings.shutdown_timeout,
        )
        return trio.run(_supervise, supervisor)


def run(
    config: Config,
    bind: str,
    *,
    on_serving: Callable[[], object],
    on_stopping: Callable[[], object] = lambda: None,
    also_until: Callable[[], Awaitable[object]] = trio.sleep_forever,
    peers: Callable[[Callable[[], MetricsSnapshot]], Peers] | None = None,
) -> int:
    """Serve in this process until a signal, or the end of ``also_until``; return the exit code.

    Args:
        bind: in Hypercorn's syntax.
        on_serving: called once the service answers.
        peers: see ``proxy.web.app.ImageProxyApp``.
        on_stopping: called when the stop begins, before the requests in flight are answered.
    """
    try:
        trio.run(
            _serve,
            config,
            hypercorn_config(config, bind),
            on_serving,
            on_stopping,
            also_until,
            peers,
        )
    except (OSError, ExceptionGroup) as error:
        return _cannot_start(config, error)
    return 0


def hypercorn_config(config: Config, bind: str) -> hypercorn.Config:
    """Derive Hypercorn's settings from ours."""
    settings = hypercorn.Config()
    settings.application_path = "proxy:create_app()"
    settings.worker_class = "trio"
    settings.bind = [bind]
    settings.backlog = BACKLOG
    settings.graceful_timeout = config.server.shutdown_timeout
    settings.shutdown_timeout = config.server.shutdown_timeout + 5
    settings.keep_alive_timeout = KEEP_ALIVE_SECONDS
    settings.read_timeout = READ_SECONDS
    settings.include_server_header = False
    settings.errorlog = server_log()
    return settings


async def _supervise(supervisor: Supervisor) -> int:
    async with trio.open_nursery() as nursery:
        nursery.start_soon(_on_signals, supervisor.stop)
        code = await supervisor.run()
        nursery.cancel_scope.cancel()
    return code


async def _serve(
    config: Config,
    settings: hypercorn.Config,
    on_serving: Callable[[], object],
    on_stopping: Callable[[], object],
    also_until: Callable[[], Awaitable[object]],
    peers: Callable[[Callable[[], MetricsSnapshot]], Peers] | None,
) -> None:
    app = create_app(config, peers=peers)
    stopping = trio.Event()
    has_started = False

    def stop() -> None:
        if not stopping.is_set():
            on_stopping()
            app.drain()
            stopping.set()
        if not has_started:  # there are no requests to wait for
            nursery.cancel_scope.cancel()

    async def stop_after_that() -> None:
        await also_until()
        stop()

    # Before anything listens: it takes a moment, for which no client should wait.
    _spare_what_stays()
    async with trio.open_nursery() as nursery:
        nursery.start_soon(_on_signals, stop)
        nursery.start_soon(stop_after_that)
        async with trio.open_nursery() as serving:
            await serving.start(
                partial(
                    hypercorn.trio.serve, app, settings, shutdown_trigger=stopping.wait, mode="asgi"
                )
            )
            has_started = True
            # Hypercorn listens for a moment even if the application could not start.
            if app.responder.service is not None:
                on_serving()
        nursery.cancel_scope.cancel()


def _spare_what_stays() -> None:
    """Let the garbage collector pass over the objects of the start: modules, classes, settings.

    They live as long as the process. A full collection that walks them stops the event loop for
    tens of milliseconds, and many requests bring many collections.
    """
    gc.collect()
    gc.freeze()


async def _on_signals(stop: Callable[[], None]) -> None:
    """Call ``stop`` for each signal that asks this process to end, until cancelled.

    SIGHUP is one of them, because a changed configuration needs a new process. It does not count
    if the parent process set it to be ignored, as nohup(1) does.
    """
    asked = [signal.SIGTERM, signal.SIGINT]
    if signal.getsignal(signal.SIGHUP) is not signal.SIG_IGN:
        asked.append(signal.SIGHUP)
    with trio.open_signal_receiver(*asked) as signals:
        async for number in signals:
            log.info("stopping", signal=signal.Signals(number).name)
            stop()


def _cannot_start(config: Config, error: OSError | ExceptionGroup[Exception]) -> int:
    """Print in one line why the start failed; raise failures of other kinds again."""
    cause: Exception = error
    while isinstance(cause, ExceptionGroup) and len(cause.exceptions) == 1:
        cause = cause.exceptions[0]
    if isinstance(cause, OSError):
        another = "; --bind HOST:PORT chooses another" if cause.errno in CANNOT_BIND else ""
        reason = f"{config.server.bind}: {cause.strerror or cause}{another}"
    elif isinstance(cause, LifespanFailureError):
        reason = str(cause)
    else:
        raise error
    print(f"imageproxy: {reason}", file=sys.stderr)
    return 1
