"""nginx before several nodes. Pure.

nginx without a subscription asks no node whether it is well. It learns from answers: a request
that a node does not take, or answers with a 503, goes to the next node of the ring. No node is
marked as failed for it, because a PDS of a stranger can cause a 503 too, and would otherwise take
nodes out of service.
"""

from __future__ import annotations

from collections.abc import Sequence
from importlib.resources import files

from proxy.config import Config
from proxy.errors import Busy
from proxy.tools.balancer.nodes import HOT_RATE, HOT_SECONDS
from proxy.tools.front_path import front_path
from proxy.tools.nginx import (
    NginxTemplate,
    add_headers,
    elsewhere,
    lines,
    listening,
    quoted,
    server_name,
    slowest_answer,
    taking_away,
)
from proxy.web.responses import error_response

BLOB = (
    r"/(?:img/[^/]+/plain|blob|info|vid(?:/[^/:]+)?)"
    r"/(?P<imageproxy_blob>did:[^/]+/[^/@]+)"
)
"""How decoded paths of a blob go on below the path of the front, whatever is made of it: its owner
and CID decide the node."""

ACTOR = r"/(?:avatar|banner)/(?:[^/]+/)?@?(?P<imageproxy_actor>[^/@]+)"
"""The same of paths that name an actor."""


def nginx_balancer(
    config: Config, nodes: Sequence[str], *, listen: Sequence[str] | None = None
) -> str:
    """Return the file for ``/etc/nginx/sites-enabled/`` of the balancer.

    Args:
        nodes: ``HOST:PORT`` of each, from ``parse_nodes``.
        listen: as for ``server_block``.
    """
    unreachable, path = error_response(Busy()), front_path(config)
    text = files("proxy.tools.balancer").joinpath("nginx.conf").read_text(encoding="utf-8")
    return NginxTemplate(text).substitute(
        nodes=lines(4, (f"server {quoted(node)} weight=10 max_fails=0;" for node in sorted(nodes))),
        path=path.text,
        below="$imageproxy_below" if path.is_taken_away else "",
        taking_away=taking_away(path),
        elsewhere=elsewhere(path),
        blob=quoted(f"~^{path.pattern}{BLOB}"),
        actor=quoted(f"~^{path.pattern}{ACTOR}"),
        rate=HOT_RATE,
        burst=HOT_RATE * HOT_SECONDS,
        listen=lines(4, listening(config.server.base_url, listen)),
        server_name=server_name(config.server.base_url),
        read_timeout=slowest_answer(config),
        unreachable_type=quoted(dict(unreachable.headers)["Content-Type"]),
        unreachable_headers=add_headers(
            (header for header in unreachable.headers if header[0] != "Content-Type"),
            always=True,
        ),
        unreachable_status=unreachable.status,
        unreachable_body=quoted(unreachable.body.decode()),
    )
