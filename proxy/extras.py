"""The optional packages that a configuration needs."""

from __future__ import annotations

from collections.abc import Iterator
from importlib import import_module

from proxy.config import Config, ConfigError

NEEDED = {
    "moderation": ("trio_websocket", "cryptography"),
    "cluster": ("psycopg", "obstore"),
    "otel": ("opentelemetry.sdk.trace", "opentelemetry.exporter.otlp.proto.http.trace_exporter"),
}
"""The modules that each extra installs."""


def check_extras(config: Config) -> None:
    """Check that the modules which the keys need can be imported.

    Raises:
        ConfigError: with a line for each key whose modules are missing.
    """
    mistakes = []
    for key, modules, remedy in _needs(config):
        missing = [name for name in modules if not _is_importable(name)]
        if missing:
            mistakes.append(f"{key}: needs {' and '.join(missing)}; {remedy}")
    if mistakes:
        raise ConfigError(mistakes)


def _needs(config: Config) -> Iterator[tuple[str, tuple[str, ...], str]]:
    """Yield each key that is set and needs modules: the modules, and the remedy without them."""
    for key, is_set, extra in (
        ("labels.subscribe", config.labels.subscribe, "moderation"),
        ("accounts.url", config.accounts.url, "moderation"),
        ("cluster.database", config.cluster.url, "cluster"),
        ("store.url", config.store.url, "cluster"),
        ("trace.endpoint", config.trace.endpoint, "otel"),
    ):
        if is_set:
            yield key, NEEDED[extra], f"install atproto-imageproxy[{extra}]"
    if config.fetch.client == "asks":
        yield "fetch.client", ("asks",), 'see docs/clients.md, or set it to "httpx2"'


def _is_importable(name: str) -> bool:
    try:
        import_module(name)
    except ImportError:
        return False
    return True
