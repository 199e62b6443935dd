"""Runs the application under Hypercorn's Trio worker."""

from __future__ import annotations

import errno
import gc
import os
import signal
import socket
import sys
from collections.abc import Awaitable, Callable, Sequence
from contextlib import ExitStack
from functools import partial
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING

import hypercorn
import structlog
import trio
from hypercorn.utils import LifespanFailureError, LifespanTimeoutError

from proxy.config import Config, ConfigError, Layer
from proxy.observability.log import configure_logging, server_log, set_level
from proxy.observability.process_snapshot import ProcessSnapshot
from proxy.serving import systemd
from proxy.serving.accepting import serve_app
from proxy.serving.hangup import Reloader, on_hangups
from proxy.serving.sockets import open_sockets, remove_sockets
from proxy.shared.binds import TcpBind
from proxy.web.app import Peers, create_app
from proxy.web.hypercorn_connection import check_hypercorn
from proxy.web.hypercorn_protocols import DrainingContext

if TYPE_CHECKING:
    from proxy.serving.multiprocess.supervisor import Supervisor

KEEP_ALIVE_SECONDS = 75
"""Longer than the 60 s for which reverse proxies keep idle connections: those close first."""

READ_SECONDS = 120
"""A client that sends nothing for this time, during a request or between two, is disconnected."""

CANNOT_BIND = frozenset({errno.EADDRINUSE, errno.EADDRNOTAVAIL, errno.EACCES})
"""Errors that another address would solve."""

log = structlog.get_logger(__name__)


def serve(config: Config, file: Path | None, overrides: Layer) -> int:
    """Serve until SIGTERM or SIGINT; return the exit code. SIGHUP reloads the configuration.

    Args:
        config: the effective configuration.
        file, overrides: its sources, for a reload.
    """
    try:
        check_hypercorn()
    except ConfigError as error:
        print(f"imageproxy: {error}", file=sys.stderr)
        return 2
    binds = config.server.binds
    if config.server.workers == 1:
        opened: list[socket.socket] = []

        def sockets() -> Sequence[socket.socket]:
            opened.extend(open_sockets(binds))
            return opened

        code = run(
            config,
            sockets,
            on_serving=lambda: _tell_serving(config, opened),
            on_stopping=lambda: systemd.notify(systemd.STOPPING),
            reloader=partial(Reloader, config, file, overrides),
        )
        remove_sockets(binds)
        return code
    # Here: a server of one process has no use for it.
    from proxy.serving.multiprocess.supervisor import Supervisor

    configure_logging(config.log, names_process=True)
    settings = hypercorn_config(config)
    try:
        listeners = open_sockets(binds)
    except OSError as error:
        return _cannot_start(error)
    with ExitStack() as stack:
        stack.callback(remove_sockets, binds)
        for listener in listeners:
            stack.enter_context(listener)
        # Only this user may enter it.
        folder = stack.enter_context(TemporaryDirectory(prefix="imageproxy-"))
        patience = settings.graceful_timeout + settings.shutdown_timeout + config.server.drain_delay
        supervisor = Supervisor(
            listeners,
            config=config,
            environment=os.environ,
            folder=Path(folder),
            patience=patience,
            on_serving=lambda: _tell_serving(config, listeners),
        )

        def take(config: Config) -> None:
            set_level(config.log.level)
            supervisor.take(config)

        return trio.run(_supervise, supervisor, Reloader(config, file, overrides, take))


def run(
    config: Config,
    sockets: Callable[[], Sequence[socket.socket]],
    *,
    on_serving: Callable[[], object],
    on_stopping: Callable[[], object] = lambda: None,
    orders: Callable[[], Awaitable[Config | None]] | None = None,
    reloader: Callable[[Callable[[Config], None]], Reloader] | None = None,
    peers: Callable[[Callable[[], ProcessSnapshot]], Peers] | None = None,
) -> int:
    """Serve in this process until a signal or an order to stop; return the exit code.

    Args:
        sockets: returns those to listen on; called when the service has started.
        on_serving: called once the service answers.
        on_stopping: called when the stop begins, before the requests in flight are answered.
        orders: waits for a configuration, which is then in force, or None, which counts as a
            signal to stop; called until it has returned None twice.
        reloader: makes what reloads on SIGHUP, from what puts a configuration in force.
        peers: see ``proxy.web.app.ImageProxyApp``.
    """
    try:
        trio.run(
            _serve,
            config,
            hypercorn_config(config),
            sockets,
            on_serving,
            on_stopping,
            orders,
            reloader,
            peers,
        )
    except (OSError, ExceptionGroup) as error:
        return _cannot_start(error)
    return 0


def hypercorn_config(config: Config) -> hypercorn.Config:
    """Derive Hypercorn's settings from ours."""
    settings = hypercorn.Config()
    settings.application_path = "proxy:create_app()"
    settings.worker_class = "trio"
    settings.graceful_timeout = config.server.shutdown_timeout
    settings.shutdown_timeout = config.server.shutdown_timeout + 5
    settings.keep_alive_timeout = KEEP_ALIVE_SECONDS
    settings.read_timeout = READ_SECONDS
    settings.include_server_header = False
    settings.errorlog = server_log()
    return settings


def _tell_serving(config: Config, listeners: Sequence[socket.socket]) -> None:
    """Tell systemd, and a person where the page is: the last line of the start."""
    systemd.notify(systemd.READY)
    if config.server.base_url:
        log.info("ready", open=f"{config.server.base_url}/")
        return
    for listener in listeners:
        if listener.family != socket.AF_UNIX:
            host, port = listener.getsockname()[:2]
            path = f"{config.server.root_path}/"
            log.info("ready", open=f"http://{TcpBind(host, port).reached_at}{path}")
            return
    log.info("ready")


async def _supervise(supervisor: Supervisor, reloader: Reloader) -> int:
    async with trio.open_nursery() as nursery:
        nursery.start_soon(_on_signals, supervisor.stop, supervisor.stop_now)
        nursery.start_soon(on_hangups, reloader, supervisor.stop)
        code = await supervisor.run()
        nursery.cancel_scope.cancel()
    return code


async def _serve(
    config: Config,
    settings: hypercorn.Config,
    sockets: Callable[[], Sequence[socket.socket]],
    on_serving: Callable[[], object],
    on_stopping: Callable[[], object],
    orders: Callable[[], Awaitable[Config | None]] | None,
    reloader: Callable[[Callable[[Config], None]], Reloader] | None,
    peers: Callable[[Callable[[], ProcessSnapshot]], Peers] | None,
) -> None:
    app = create_app(config, peers=peers)
    context, closing = DrainingContext(others_accept=peers is not None), trio.Event()
    has_started = False

    def stop(*, is_repeated: bool = False) -> None:
        if is_repeated:  # no balancer is waited for
            closing.set()
        if not context.draining.is_set():
            on_stopping()
            app.drain()
            context.draining.set()
        if not has_started:  # there are no requests to wait for
            nursery.cancel_scope.cancel()

    async def close_after_delay() -> None:
        await context.draining.wait()
        with trio.move_on_after(config.server.drain_delay):
            await closing.wait()
        closing.set()

    async def obey(orders: Callable[[], Awaitable[Config | None]]) -> None:
        while (config := await orders()) is not None:
            app.take(config)
            log.info("configuration taken")
        context.others_accept = False  # the first process stops all of them
        stop()
        while await orders() is not None:
            pass
        stop(is_repeated=True)

    # Before anything listens: it takes a moment, for which no client should wait.
    _spare_what_stays()
    async with trio.open_nursery() as nursery:
        nursery.start_soon(_on_signals, stop, lambda: stop(is_repeated=True))
        if reloader is not None:
            nursery.start_soon(on_hangups, reloader(app.take), stop)
        if orders is not None:
            nursery.start_soon(obey, orders)
        nursery.start_soon(close_after_delay)
        async with trio.open_nursery() as serving:
            await serving.start(serve_app, app, settings, sockets, context, closing)
            has_started = True
            # It listens for a moment even if the application could not start.
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


async def _on_signals(stop: Callable[[], None], stop_now: Callable[[], None]) -> None:
    """Call ``stop`` at the first signal that asks this process to end, ``stop_now`` at others."""
    with trio.open_signal_receiver(signal.SIGTERM, signal.SIGINT) as signals:
        async for number in signals:
            log.info("stopping", signal=signal.Signals(number).name)
            stop()
            stop = stop_now


def _cannot_start(error: OSError | ExceptionGroup[Exception]) -> int:
    """Print in one line why the start failed; raise failures of other kinds again."""
    cause: Exception = error
    while isinstance(cause, ExceptionGroup) and len(cause.exceptions) == 1:
        cause = cause.exceptions[0]
    if isinstance(cause, OSError):
        another = "; --bind HOST:PORT chooses another" if cause.errno in CANNOT_BIND else ""
        where = f"{cause.filename}: " if cause.filename else ""
        reason = f"{where}{cause.strerror or cause}{another}"
    elif isinstance(cause, LifespanFailureError):
        reason = str(cause)
    elif isinstance(cause, LifespanTimeoutError):
        reason = "the service did not start in time"
    else:
        raise error
    print(f"imageproxy: {reason}", file=sys.stderr)
    return 1
