"""An image proxy of the AT Protocol.

from proxy import create_app, open_service, load_config, Config

These names are imported lazily, on first use: the sandboxed workers also import this package, and
they need neither the web nor the network.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from proxy.config import Config, load_config
    from proxy.egress.network import Network
    from proxy.lifecycle import open_service
    from proxy.web.app import ImageProxyApp

__all__ = ["Config", "create_app", "load_config", "open_service"]


# A real function: Hypercorn evaluates "create_app()" among this module's variables.
def create_app(
    config: Config | None = None, *, networks: tuple[Network, Network] | None = None
) -> ImageProxyApp:
    """See ``proxy.web.app.create_app``."""
    from proxy.web import app

    return app.create_app(config, networks=networks)


if not TYPE_CHECKING:
    _HOMES = {
        "Config": "proxy.config",
        "load_config": "proxy.config",
        "open_service": "proxy.lifecycle",
    }

    def __getattr__(name: str) -> object:
        if name not in _HOMES:
            raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
        return getattr(import_module(_HOMES[name]), name)
