"""The Quart-Trio application: images and blobs bypass its routing, other routes use it."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from platform import python_version
from typing import Protocol

import structlog
import trio
from quart import Response
from quart_trio import QuartTrio
from werkzeug.exceptions import HTTPException

from proxy.config import Config, load_config
from proxy.egress.network import Network
from proxy.extras import check_extras
from proxy.lifecycle import open_service
from proxy.observability import metrics, request_id
from proxy.observability.log import configure_logging
from proxy.observability.metrics_snapshot import MetricsSnapshot, merge, render
from proxy.web import hypercorn_connection as connection
from proxy.web.actors import actor_routes
from proxy.web.admin import admin_routes
from proxy.web.asgi import Receive, Respond, Scope, Send, quart_response, serve
from proxy.web.hypercorn_protocols import MAX_BODY
from proxy.web.negotiate import accept_of, as_negotiated, choose, is_negotiable
from proxy.web.page import page_routes
from proxy.web.responder import Responder
from proxy.web.responses import HttpResponse, plain_response
from proxy.web.tracing_middleware import traced

RESTART_PAUSE = 1.0
"""Seconds before a crashed service starts again."""

IMAGE, BLOB = "/img/{preset}/plain/{did}/{cid}", "/blob/{did}/{cid}"
"""The routes, as traces name them."""

PRIVATE = "fetch.allow_private_hosts"

log = structlog.get_logger(__name__)


class Peers(Protocol):
    """The other processes of this server; implemented in ``serving.multiprocess``."""

    async def run(self, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED) -> None:
        """Send the others this process's metrics on request, until ``stop``."""
        ...

    def stop(self) -> None:
        """End ``run``."""
        ...

    async def snapshots(self) -> list[MetricsSnapshot]:
        """Return the snapshots of this process, and of the others that answer in time."""
        ...


class ImageProxyApp(QuartTrio):
    """The application, and the one service that it runs between start-up and shutdown.

    Args:
        peers: creates the ``Peers`` from a function that returns this process's metrics.
            None: this process serves alone.

    Attributes:
        responder: answers images and blobs.
    """

    def __init__(
        self,
        config: Config,
        networks: tuple[Network, Network] | None = None,
        peers: Callable[[Callable[[], MetricsSnapshot]], Peers] | None = None,
    ) -> None:
        super().__init__("proxy", static_folder=None)
        self.responder = Responder(config.presets)
        self._config = config
        self._negotiated = config.negotiate.outputs
        self._networks = networks
        self._peers = peers(self._snapshot) if peers is not None else None
        self._stopping = trio.Event()
        self._stopped = trio.Event()
        self.config["BACKGROUND_TASK_SHUTDOWN_TIMEOUT"] = config.server.shutdown_timeout + 1
        self.config["MAX_CONTENT_LENGTH"] = MAX_BODY
        self.before_serving(self._start)
        self.after_serving(self._stop)

    async def asgi_app(self, scope: Scope, receive: Receive, send: Send) -> None:  # type: ignore[override]
        """Answer images and blobs without the framework, whose routing costs more than a hit."""
        if scope["type"] == "websocket":
            return await send({"type": "websocket.close"})
        if scope["type"] == "http":
            request_id.current.set(request_id.of(scope["headers"]))
        if scope["type"] == "http" and not scope["path"].startswith("/"):
            # The path is missing, or the framework cannot parse it.
            return await serve(scope, receive, send, _not_a_path)
        if scope["type"] == "http" and self._config.server.enabled:
            if scope["path"].startswith("/img/"):
                respond = self._negotiating(scope) if self._negotiated else self.responder.image
                return await self._serve(scope, receive, send, IMAGE, respond)
            if scope["path"].startswith("/blob/"):
                return await self._serve(scope, receive, send, BLOB, self.responder.blob)
        return await super().asgi_app(scope, receive, send)  # type: ignore[arg-type]

    async def _serve(
        self, scope: Scope, receive: Receive, send: Send, route: str, respond: Respond
    ) -> None:
        if self._config.trace.endpoint and self.responder.service is not None:
            app = partial(serve, respond=respond)
            return await traced(self.responder.service.spans, route, scope, receive, send, app)
        return await serve(scope, receive, send, respond)

    def _negotiating(self, scope: Scope) -> Respond:
        """Return the function that answers this request in the format its client prefers."""
        image = self.responder.image
        if not is_negotiable(self._config.presets, scope["path"]):
            return image
        chosen = choose(accept_of(scope["headers"]), self._negotiated)
        return lambda path, if_none_match: as_negotiated(image(path, if_none_match, chosen))

    def drain(self) -> None:
        """Report on ``/readyz`` that this process will end."""
        self.responder.draining = True

    def _is_draining(self) -> bool:
        return self.responder.draining

    async def metrics(self) -> bytes:
        """Return the metrics of all worker processes of this server, in Prometheus text format."""
        if self._peers is None:
            return render(self._snapshot())
        return render(merge(await self._peers.snapshots()))

    def _snapshot(self) -> MetricsSnapshot:
        service = self.responder.service
        return service.metrics.snapshot() if service else MetricsSnapshot(())

    async def _start(self) -> None:
        # The lifespan's nursery; the service opens its own nursery inside.
        await self.nursery.start(self._run_service)
        if self._peers is not None:
            await self.nursery.start(self._peers.run)

    async def _stop(self) -> None:
        if self._peers is not None:
            self._peers.stop()
        self._stopping.set()
        await self._stopped.wait()

    async def _run_service(
        self, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED
    ) -> None:
        """Run the service until ``_stop``; after a crash, start it again after a pause."""
        started = False
        try:
            while not self._stopping.is_set():
                try:
                    async with open_service(self._config, networks=self._networks) as service:
                        self.responder.service = service
                        service.metrics.tell_not_ready("draining", self._is_draining)
                        if not started:
                            started = True
                            self._tell_start()
                            task_status.started()
                        await self._stopping.wait()
                except Exception:
                    if not started:
                        raise
                    log.exception("service crashed; it starts again")
                    self.responder.service = None
                    await trio.sleep(RESTART_PAUSE)
        finally:
            self.responder.service = None
            if started:
                log.info("service stopped", version=metrics.VERSION)
            self._stopped.set()

    def _tell_start(self) -> None:
        """Log the start, and warnings that apply while the process runs."""
        log.info("service started", version=metrics.VERSION, python=python_version())
        if self._config.fetch.allow_private_hosts:
            log.warning("strangers' URLs may lead into private networks", key=PRIVATE)


def create_app(
    config: Config | None = None,
    *,
    networks: tuple[Network, Network] | None = None,
    peers: Callable[[Callable[[], MetricsSnapshot]], Peers] | None = None,
) -> ImageProxyApp:
    """Create the ASGI application, for Hypercorn's Trio worker.

    Args:
        config: None: from the environment, and the file that ``IMAGE_PROXY_CONFIG`` names.
        networks: see ``open_service``.
        peers: see ``ImageProxyApp``.

    Raises:
        ConfigError: the configuration is wrong, or needs a package that is not installed.
    """
    config = config or load_config()
    check_extras(config)
    configure_logging(config.log, names_process=config.server.workers > 1)
    connection.install()
    app = ImageProxyApp(config, networks, peers)
    responder = app.responder

    @app.get("/healthz")
    async def healthz() -> Response:
        return quart_response(plain_response(200, "ok"))

    @app.get("/readyz")
    async def readyz() -> Response:
        reason = responder.not_ready_because()
        return quart_response(plain_response(503, reason) if reason else plain_response(200, "ok"))

    @app.get("/metrics")
    async def show_metrics() -> Response:
        return Response(await app.metrics(), content_type=metrics.CONTENT_TYPE)

    @app.errorhandler(HTTPException)
    async def as_text(error: HTTPException) -> Response:
        response = quart_response(plain_response(error.code or 500, error.name.lower()))
        for name, value in error.get_headers():
            if name in ("Allow", "Retry-After", "WWW-Authenticate"):
                response.headers[name] = value
        return response

    app.register_blueprint(admin_routes(config, responder))
    app.register_blueprint(actor_routes(config, responder))
    app.register_blueprint(page_routes(config))
    return app


def _not_a_path(_path: str, _if_none_match: str | None) -> HttpResponse:
    return plain_response(400, "bad request")
