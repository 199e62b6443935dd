"""The Quart-Trio application: images and blobs bypass its routing, other routes use it."""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from functools import cache, partial
from platform import python_version
from typing import Any, Protocol

import structlog
import trio
from quart import Response
from quart_trio import QuartTrio
from werkzeug.exceptions import HTTPException

from proxy.config import Config, load_config
from proxy.egress.known_hosts import KnownHosts
from proxy.egress.network import Network
from proxy.extras import check_extras
from proxy.lifecycle import open_service
from proxy.observability import metrics, request_id
from proxy.observability.log import configure_logging, set_level
from proxy.observability.metrics_snapshot import MetricsSnapshot, merge, render
from proxy.observability.process_snapshot import ProcessSnapshot
from proxy.shared.current import Current
from proxy.web import hypercorn_connection as connection
from proxy.web.actors import RestOfPath, actor_routes
from proxy.web.admin import admin_routes
from proxy.web.admin_access import AdminAccess
from proxy.web.api_document import DOCUMENT, described
from proxy.web.asgi import (
    Receive,
    Respond,
    Scope,
    Send,
    in_origin_form,
    quart_response,
    read_headers,
    serve,
)
from proxy.web.caching import caching_of
from proxy.web.hypercorn_protocols import MAX_BODY
from proxy.web.mounting import mounted
from proxy.web.negotiate import accept_of, as_negotiated, choose, is_negotiable
from proxy.web.page import admin_page_routes, page_routes
from proxy.web.porxie import porxie_routes
from proxy.web.ranges import wanted
from proxy.web.responder import Responder
from proxy.web.responses import (
    HttpResponse,
    PendingResponse,
    document_response,
    moved,
    plain_response,
)
from proxy.web.shareable import as_private, is_named, purges_by_url
from proxy.web.tracing_middleware import trace_at_once, traced

RESTART_PAUSE = 1.0
"""Seconds before a crashed service starts again."""

IMAGE, BLOB = "/img/{preset}/plain/{did}/{cid}", "/blob/{did}/{cid}"
POSTER = "/vid/{preset}/{did}/{cid}/thumbnail.jpg"
INFO = "/info/{did}/{cid}"
"""The routes, as traces name them."""

ACTORS = ("/avatar/", "/banner/")

PRIVATE = "fetch.allow_private_hosts"

log = structlog.get_logger(__name__)


class Peers(Protocol):
    """The other processes of this server; implemented in ``serving.multiprocess``."""

    async def run(self, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED) -> None:
        """Send the others this process's snapshot on request, until ``stop``."""
        ...

    def stop(self) -> None:
        """End ``run``."""
        ...

    async def snapshots(self) -> list[ProcessSnapshot]:
        """Return the snapshots of this process, and of the others that answer in time."""
        ...


class ImageProxyApp(QuartTrio):
    """The application, and the one service that it runs between start-up and shutdown.

    Args:
        peers: creates the ``Peers`` from a function that returns this process's snapshot.
            None: this process serves alone.

    Attributes:
        presets: those in force; who needs them asks here, and nobody ``config``.
        responder: answers images and blobs.
        images: see ``Door.images``.
    """

    def __init__(
        self,
        config: Config,
        networks: tuple[Network, Network] | None = None,
        peers: Callable[[Callable[[], ProcessSnapshot]], Peers] | None = None,
    ) -> None:
        super().__init__("proxy", static_folder=None)
        # Else it redirects to what it takes for the same: at the root, with the scheme of a front.
        self.url_map.merge_slashes = False
        self.presets = Current(config.preset_table)
        self.responder = Responder(self.presets, caching_of(config))
        self._config = config
        self._root = config.server.root_path
        self.images = f"{self._root}/img/"
        # Made when it is asked for: that takes as long as the rest of a start.
        self._document = self.presets.derived(
            lambda table: cache(lambda: json.dumps(described(config, table)))
        )
        self._negotiated = config.negotiate.outputs
        self._purges_by_url = purges_by_url(config)
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
            scope = in_origin_form(scope)
        if scope["type"] == "http" and not scope["path"].startswith("/"):
            # The path is missing, or the framework cannot parse it.
            return await serve(scope, receive, send, _not_a_path)
        if scope["type"] == "http" and self._root:
            if scope["path"] == self._root:
                return await serve(scope, receive, send, partial(self._to_page, scope))
            scope = mounted(self._root, scope)
        if scope["type"] == "http" and (found := self._route(scope)) is not None:
            return await self._serve(scope, receive, send, *found)
        if scope["type"] == "http" and scope["path"] == DOCUMENT:
            return await self._serve(scope, receive, send, DOCUMENT, self._describe)
        if scope["type"] == "http" and self._is_preflight(scope):
            return await serve(scope, receive, send, _not_a_path)
        return await super().asgi_app(scope, receive, send)  # type: ignore[arg-type]

    def answer(self, scope: Scope) -> HttpResponse | PendingResponse | None:
        """See ``Door.answer``: the same rules as in ``asgi_app``."""
        if self._root:
            scope = mounted(self._root, scope)
        found = self._route(scope)
        if found is None:
            return None
        route, respond = found
        if_none_match, _ = read_headers(scope)
        identifier = request_id.of(scope["headers"])
        named = request_id.current.set(identifier)
        try:
            answer = respond(scope["path"], if_none_match)
            traced_by = self.responder.service if self._config.trace.endpoint else None
            if not isinstance(answer, HttpResponse):
                return partial(_await_named, identifier, answer) if traced_by is None else None
            if traced_by is not None:
                trace_at_once(traced_by.spans, route, scope, answer)
            return answer
        finally:
            request_id.current.reset(named)

    def _route(self, scope: Scope) -> tuple[str, Respond] | None:
        """Return the route of an image or a blob, and what answers; None: the framework knows."""
        if not self._config.server.enabled:
            return None
        respond: Respond
        if scope["path"].startswith("/img/"):
            route, respond = IMAGE, self.responder.image
            if self._negotiated:
                respond = self._negotiating(scope)
        elif scope["path"].startswith("/vid/"):
            route, respond = POSTER, self.responder.poster
        elif scope["path"].startswith("/blob/"):
            route, respond = BLOB, self.responder.blob
            if (asked := wanted(scope["method"], scope["headers"])) is not None:
                respond = partial(self.responder.blob, asked_range=asked)
        elif scope["path"].startswith("/info/"):
            route, respond = INFO, self.responder.image
        else:
            return None
        if self._purges_by_url and not is_named(self._config, self.presets.now.by_name, scope):
            respond = _private(respond)
        return route, respond

    def _describe(self, _path: str, if_none_match: str | None) -> HttpResponse:
        return document_response(self._document()(), if_none_match)

    def _to_page(self, scope: Scope, _path: str, _if_none_match: str | None) -> HttpResponse:
        query = scope["query_string"].decode("latin-1")
        return moved(f"{self._root}/?{query}" if query else f"{self._root}/")

    def _is_preflight(self, scope: Scope) -> bool:
        """Whether this asks what may be done with a picture of an account."""
        is_public = self._config.server.enabled and scope["path"].startswith(ACTORS)
        return is_public and scope["method"] == "OPTIONS"

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
        if not is_negotiable(self.presets.now.by_name, scope["path"]):
            return image
        chosen = choose(accept_of(scope["headers"]), self._negotiated)
        return lambda path, if_none_match: as_negotiated(image(path, if_none_match, chosen))

    def take(self, config: Config) -> None:
        """Put ``config`` in force; it differs from the one before in what a reload may change.

        A request under way ends with the presets that it began with.
        """
        self._config = config
        set_level(config.log.level)
        self.presets.now = config.preset_table

    async def make_default_options_response(self, *context: Any) -> Response:
        """204 for the framework's routes (RFC 9110, section 9.3.7), as for pictures.

        Args:
            context: of the request, which Quart 0.23 gives.
        """
        found = await super().make_default_options_response(*context)
        allowed = _in_order(found.headers["Allow"])
        return quart_response(HttpResponse(204, (("Allow", allowed),)))

    def drain(self) -> None:
        """Report on ``/readyz`` that this process will end."""
        self.responder.draining = True

    def _is_draining(self) -> bool:
        return self.responder.draining

    async def metrics(self) -> bytes:
        """Return the metrics of all worker processes of this server, in Prometheus text format."""
        snapshots = await self.snapshots()
        return render(merge(each.metrics for each in snapshots))

    async def snapshots(self) -> list[ProcessSnapshot]:
        """Return the snapshots of all worker processes of this server that answer in time."""
        return [self._snapshot()] if self._peers is None else await self._peers.snapshots()

    def _snapshot(self) -> ProcessSnapshot:
        service = self.responder.service
        if service is None:
            return ProcessSnapshot(os.getpid(), MetricsSnapshot(()), KnownHosts())
        return ProcessSnapshot(os.getpid(), service.metrics.snapshot(), service.known_hosts())

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
                    async with open_service(
                        self._config, networks=self._networks, presets=self.presets
                    ) as service:
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
        if self._config.fetch.allow_private_hosts is True:
            log.warning("strangers' URLs may lead into private networks", key=PRIVATE)


def create_app(
    config: Config | None = None,
    *,
    networks: tuple[Network, Network] | None = None,
    peers: Callable[[Callable[[], ProcessSnapshot]], Peers] | None = None,
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
        if reason:
            return quart_response(plain_response(503, reason))
        degraded = responder.degraded_because()
        return quart_response(plain_response(200, f"ok\n{degraded}" if degraded else "ok"))

    @app.get("/metrics")
    async def show_metrics() -> Response:
        return Response(await app.metrics(), content_type=metrics.CONTENT_TYPE)

    @app.errorhandler(HTTPException)
    async def as_text(error: HTTPException) -> Response:
        response = quart_response(plain_response(error.code or 500, error.name.lower()))
        for name, value in error.get_headers():
            if name in ("Retry-After", "WWW-Authenticate"):
                response.headers[name] = value
            elif name == "Allow":
                response.headers[name] = _in_order(value)
        return response

    access = AdminAccess(config)
    app.register_blueprint(admin_routes(access, responder, app.snapshots))
    app.register_blueprint(porxie_routes(access, responder))
    app.url_map.converters["rest"] = RestOfPath
    app.register_blueprint(actor_routes(config, app.presets, responder))
    app.register_blueprint(page_routes(config, app.presets, responder))
    app.register_blueprint(admin_page_routes(config, app.presets, access))
    return app


def _private(respond: Respond) -> Respond:
    return lambda path, if_none_match: as_private(respond(path, if_none_match))


async def _await_named(identifier: str | None, pending: PendingResponse) -> HttpResponse:
    named = request_id.current.set(identifier)
    try:
        return await pending()
    finally:
        request_id.current.reset(named)


def _in_order(methods: str) -> str:
    """The framework has them in a set, whose order each process has for itself."""
    return ", ".join(sorted(methods.split(", ")))


def _not_a_path(_path: str, _if_none_match: str | None) -> HttpResponse:
    return plain_response(400, "bad request")
