"""HAProxy before several nodes. Pure."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from importlib.resources import files

from proxy.config import Config
from proxy.errors import Busy
from proxy.tools.balancer.nodes import HOT_RATE, HOT_SECONDS, numbered
from proxy.tools.front_path import FrontPath, front_path
from proxy.tools.nginx import NginxTemplate, lines, slowest_answer
from proxy.web.responses import error_response

BIND = (":80",)

UNANSWERED = (502, 503, 504)
"""The statuses that HAProxy has for a node that gives no answer."""


def haproxy_balancer(config: Config, nodes: Sequence[str], *, bind: Sequence[str] = BIND) -> str:
    """Return the file for ``/etc/haproxy/haproxy.cfg`` of the balancer.

    Args:
        nodes: ``HOST:PORT`` of each, from ``parse_nodes``.
        bind: values of HAProxy's ``bind``.
    """
    text = files("proxy.tools.balancer").joinpath("haproxy.cfg").read_text(encoding="utf-8")
    servers = list(numbered(nodes))
    return NginxTemplate(text).substitute(
        below=_below(front_path(config)),
        bind=lines(4, (f"bind {each}" for each in bind)),
        read_timeout=slowest_answer(config),
        unanswered=lines(4, _unanswered()),
        hot=HOT_RATE * HOT_SECONDS,
        seconds=HOT_SECONDS,
        # A redispatch counts as a retry. Each request is sent to at most three nodes.
        retries=min(len(servers), 3) - 1 or 1,
        nodes=lines(4, (f"server {_name(node)} {node} id {number}" for number, node in servers)),
        tracking=lines(
            4,
            (
                f"server {_name(node)} {node} id {number} track nodes/{_name(node)}"
                for number, node in servers
            ),
        ),
    )


def _below(path: FrontPath) -> str:
    """Return the rules for a service below a path: what decides the node is the path below it."""
    if not path.text:
        return ""
    skipped, itself = f"bytes({len(path.text)})", f"{{ var(txn.path) -m str {path.text} }}"
    to_page = f"http-request redirect code 308 location {path.text}/"
    not_found = 'status 404 content-type "text/plain; charset=utf-8" string "not found\\n"'
    rules = [
        "",
        "# What is below server.root_path, or below the path of server.base_url, and nothing else.",
        f"{to_page}?%[query] if {itself} {{ query -m found }}",
        f"{to_page} if {itself}",
        f"http-request return {not_found} if !{{ var(txn.path) -m beg {path.text}/ }}",
        f"http-request set-var(txn.path) var(txn.path),{skipped}",
    ]
    if path.is_taken_away:
        rules.append(f"http-request set-path %[path,{skipped}] if {{ path_beg {path.text}/ }}")
    return lines(4, rules).replace("    \n", "\n") + "\n"


def _name(node: str) -> str:
    """Return a server's name: letters, digits, ``-``, ``.`` and ``:`` are allowed in one."""
    return node.replace("[", "").replace("]", "")


def _unanswered() -> Iterable[str]:
    answer = error_response(Busy())
    kind = dict(answer.headers)["Content-Type"]
    headers = "".join(
        f' hdr "{name}" "{_formatted(value)}"'
        for name, value in answer.headers
        if name != "Content-Type"
    )
    body = answer.body.decode().replace("\n", "\\n")
    for status in UNANSWERED:
        yield f'http-error status {status} content-type "{kind}" string "{body}"{headers}'


def _formatted(value: str) -> str:
    """Escape a text for HAProxy's log format, in double quotes."""
    for plain, escaped in (("\\", "\\\\"), ('"', '\\"'), ("%", "%%"), ("$", "\\$")):
        value = value.replace(plain, escaped)
    return value
