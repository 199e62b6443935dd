"""What is made from the code, and checked in: ``MADE``.

    ./run docs

writes each file into its place; ``tests/docs/test_docs.py`` fails when one is stale. Here is
``docs/configuration.md``, made from the settings' types and the comments of ``config.toml``.
"""

from __future__ import annotations

import builtins
import re
import textwrap
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, get_args, get_origin

from annotated_types import Ge, Gt, Le
from pydantic import AfterValidator, BaseModel, SecretStr, StringConstraints
from pydantic.fields import FieldInfo

from proxy.config import ENV_PREFIX, SEED_VARIABLES, Config
from proxy.egress.own_hosts import PrivateHosts
from proxy.model.presets import DEFAULT_PRESETS, Preset
from proxy.serving.reload import TAKEN
from proxy.tools.balancer.haproxy import haproxy_balancer
from proxy.tools.nginx import server_block
from proxy.wiring import disk_cache_of
from tests.metrics_reference import metrics_reference
from tests.pds_answers import moderation_upstream
from tests.rooms import architecture

ROOT = Path(__file__).parent.parent

HEAD = """# Configuration

Made by `./run docs` from the settings' types and the comments of `config.toml`.

Order: command line, then environment, then the file that `--config` or `IMAGE_PROXY_CONFIG` names,
then defaults. In the environment a key is `IMAGE_PROXY_` + section + `__` + key, in capitals:
`IMAGE_PROXY_FETCH__TIMEOUT=10`. `imageproxy config show` prints what is in force, secrets masked;
`imageproxy config check` every mistake at once. An unknown key is a mistake, and stops the start.
A change of {taken}
counts after a [reload](operations.md#the-configuration), any other from the next start on.

What a variable holds is taken as it stands, without quotes:

| | | |
|---|---|---|
| a text or a number | `IMAGE_PROXY_CACHE__MAX_GB=20` | |
| true or false | `IMAGE_PROXY_FETCH__ALLOW_HTTP=true` | or `1`; `false` or `0` |
| a list | `IMAGE_PROXY_NEGOTIATE__FORMATS=avif,webp` | its items between commas; JSON is not read |
| an empty list | `IMAGE_PROXY_NEGOTIATE__FORMATS=` | where a list may be empty |
| a key of a table | `IMAGE_PROXY_SERVER__ADMIN_TOKENS__ALICE=bz7-Xw1cKf0y-Qm3` | one for each |
| a key of a preset | `IMAGE_PROXY_PRESETS__AVATAR__QUALITY=90` | the same |
"""

FORMS = {
    "_proxy_url": "empty, or an `http://` or `https://` URL with user and password if asked",
    "_root_path": "a path, as `/pictures`, or empty",
    "_url": "an http(s) URL, or empty",
    "_public_url": "an http(s) URL without a user, or empty",
    "_required_url": "an http(s) URL",
    "_each_once": "HOST:PORT, [IPV6]:PORT or unix:/PATH, or a list of them",
    "_stream_url": "a ws(s) URL of a host, or empty",
}
"""What the validators of ``proxy.config`` accept, by their names."""


def reference() -> str:
    """The whole document."""
    comments = comments_of((ROOT / "config.toml").read_text(encoding="utf-8"))
    names = ["presets", *(f"`{section}.{key}`" for section, key in TAKEN)]
    parts = [HEAD.replace("{taken}", f"{', '.join(names[:-1])} and {names[-1]}")]
    for name, field in Config.model_fields.items():
        if name != "presets":
            assert isinstance(field.annotation, type)
            parts.append(section(name, field.annotation, comments.get(name, {})))
    parts.append(presets())
    parts.append(seed())
    return "\n".join(parts)


def comments_of(text: str) -> dict[str, dict[str, str]]:
    """The comment behind each key, by section."""
    found: dict[str, dict[str, str]] = {}
    table: dict[str, str] = {}
    for line in text.splitlines():
        if header := re.match(r"\[([\w.]+)\]", line):
            table = found.setdefault(header[1], {})
        elif key := re.match(r"(\w+) = (?:\"[^\"]*\"|\[[^\]]*\]|[^#\"\[]*?)\s*#\s*(.*)$", line):
            table[key[1]] = key[2]
    return found


def section(name: str, model: type[BaseModel], comments: dict[str, str]) -> str:
    """A section's heading and table."""
    lines = [
        f"## [{name}]\n",
        "| key | default | accepts | |",
        "|---|---|---|---|",
    ]
    for key, field in model.model_fields.items():
        row = (f"`{key}`", f"`{default_of(field)}`", accepts(field), comments.get(key, ""))
        lines.append("| " + " | ".join(cell.replace("|", "\\|") for cell in row) + " |")
    return "\n".join(lines) + "\n"


def default_of(field: FieldInfo) -> str:
    """As TOML writes it."""
    return toml(field.get_default(call_default_factory=True))


def toml(value: object) -> str:
    """A value of the configuration."""
    if isinstance(value, SecretStr):
        value = value.get_secret_value()
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, tuple):
        return "[" + ", ".join(f'"{each}"' for each in value) + "]"
    if isinstance(value, dict):
        return "{" + ", ".join(f'{key} = "{each}"' for key, each in value.items()) + "}"
    if isinstance(value, Path):
        value = f"./{value}"
    return f'"{value}"' if isinstance(value, str) else f"{value:g}"


def accepts(field: FieldInfo) -> str:
    """In words, what a value may be."""
    kind = field.annotation
    choices = get_args(kind)
    if kind == PrivateHosts:
        return "true, false, or a list of names, addresses and networks"
    if kind is bool:
        return "true or false"
    if choices and all(isinstance(each, str) for each in choices):
        return ", ".join(f'`"{each}"`' for each in choices)
    for each in field.metadata:
        if isinstance(each, AfterValidator) and each.func.__name__ in FORMS:
            return FORMS[each.func.__name__]
        if isinstance(each, StringConstraints) and each.pattern:
            return f"text that matches `{each.pattern}`"
    if kind in (int, float):
        return ("a whole number" if kind is int else "a number") + bounds(field.metadata)
    if kind is Path:
        return "a path"
    match get_origin(kind):
        case builtins.tuple:
            return "a list of texts"
        case builtins.dict:
            return "a table of texts"
    return "text"


def bounds(metadata: list[Any]) -> str:
    """Of a number."""
    words = []
    for each in metadata:
        match each:
            case Ge(ge=least):
                words.append(f"at least {least}")
            case Gt(gt=below):
                words.append(f"more than {below}")
            case Le(le=most):
                words.append(f"at most {most}")
    return f", {', '.join(words)}" if words else ""


def presets() -> str:
    """The keys of a preset, and those that there are."""
    lines = [
        "## [presets.NAME]\n",
        "A name is `[a-z][a-z0-9_]*`, at most 64 characters long, those of its variants too. A"
        " section for a name below changes what it names alone.\n",
        "| key | default | accepts |",
        "|---|---|---|",
    ]
    for key, field in Preset.model_fields.items():
        default = "required" if field.is_required() else f"`{default_of(field)}`"
        lines.append(f"| `{key}` | {default} | {accepts(field)} |")
    lines += ["", "| preset | " + " | ".join(Preset.model_fields) + " |"]
    lines.append("|---" * (len(Preset.model_fields) + 1) + "|")
    for name, preset in DEFAULT_PRESETS.items():
        values = (toml(value).strip('"') for value in preset.model_dump().values())
        lines.append(f"| `{name}` | " + " | ".join(values) + " |")
    return "\n".join(lines) + "\n"


def seed() -> str:
    """The environment of Coves' proxy."""
    lines = ["## Variables of Coves' imageproxy\n", "| variable | key |", "|---|---|"]
    lines += [f"| `{name}` | `{'.'.join(key)}` |" for name, key in SEED_VARIABLES.items()]
    lines.append(f"\nA variable of the form `{ENV_PREFIX}SECTION__KEY` wins over these.")
    lines.append(
        f"What a platform writes by itself for a service of this name is ignored:"
        f" `{ENV_PREFIX}SERVICE_HOST`, `…_SERVICE_PORT…`, `…_PORT` and `…_PORT_n_TCP…`."
    )
    return "\n".join(lines) + "\n"


def nginx_conf() -> str:
    """What ``imageproxy nginx`` prints where the head of the systemd unit puts the cache."""
    unit = (ROOT / "deploy/imageproxy.service").read_text(encoding="utf-8")
    (folder,) = re.findall(r'echo .*path = "(/.*?)"', unit)
    values = {"server": {"base_url": "https://img.example.com"}, "cache": {"path": folder}}
    config = Config.model_validate(values)
    return server_block(config, disk_cache_of(config).images)


INSIDE = (":8080",)
"""Where the balancers of ``deploy/cluster`` listen: containers without privileges."""


def compose_balancer() -> str:
    """The balancer before the nodes of ``deploy/cluster/compose.yaml``."""
    return haproxy_balancer(Config(), ("node1:8080", "node2:8080"), bind=INSIDE)


def kubernetes_balancer() -> str:
    """The ConfigMap of the balancer before the pods of ``deploy/cluster/kubernetes.yaml``."""
    nodes = [f"node-{number}.nodes.imageproxy.svc.cluster.local:8080" for number in range(3)]
    text = haproxy_balancer(Config(), nodes, bind=INSIDE)
    # Pods change their addresses; their whole names are in DNS, and not always when HAProxy starts.
    named = text.replace(
        "default-server ", "default-server resolvers cluster init-addr last,libc,none "
    )
    assert named.count("init-addr") == 2
    named += KUBERNETES_DNS
    lines = (f"    {line}".rstrip() for line in named.splitlines())
    return KUBERNETES_HEAD + "\n".join(lines) + "\n"


KUBERNETES_DNS = """
resolvers cluster
    parse-resolv-conf
    hold valid 5s
"""

KUBERNETES_HEAD = """# Made by ./run docs: what "imageproxy haproxy --nodes" prints for these
# pods, and a resolver that follows their addresses.
apiVersion: v1
kind: ConfigMap
metadata:
  name: balancer
  namespace: imageproxy
data:
  haproxy.cfg: |
"""


def placeholder_module() -> str:
    """The decoder of placeholders that the page has, as a module."""
    text = textwrap.dedent((ROOT / "proxy/web/thumbhash.js").read_text(encoding="utf-8"))
    return "// Made by ./run docs from proxy/web/thumbhash.js.\n" + re.sub(
        r"^function ", "export function ", text, flags=re.MULTILINE
    )


def placeholder_example() -> str:
    """``docs/placeholder.html`` with that decoder between its marks."""
    text = (ROOT / "docs/placeholder.html").read_text(encoding="utf-8")
    decoder = (ROOT / "proxy/web/thumbhash.js").read_text(encoding="utf-8")
    before, begin, rest = text.partition("  // proxy/web/thumbhash.js, put here by ./run docs\n")
    _, end, after = rest.partition("  // until here\n")
    return before + begin + decoder + end + after


MADE: Mapping[str, Callable[[], str]] = {
    "clients/js/thumbhash.js": placeholder_module,
    "docs/architecture.md": architecture,
    "docs/configuration.md": reference,
    "docs/metrics.md": metrics_reference,
    "docs/moderation-upstream.md": moderation_upstream,
    "docs/placeholder.html": placeholder_example,
    "deploy/cluster/haproxy.cfg": compose_balancer,
    "deploy/cluster/kubernetes-balancer.yaml": kubernetes_balancer,
    "deploy/nginx.conf": nginx_conf,
}
"""The files that are made, and what makes the text of each."""


if __name__ == "__main__":
    for file, make in MADE.items():
        (ROOT / file).write_text(make(), encoding="utf-8")
        print(file)
