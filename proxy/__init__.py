"""An image proxy of the AT Protocol.

from proxy import create_app, open_service, Config
"""

from proxy.config import Config
from proxy.service import open_service
from proxy.web.app import create_app

__all__ = ["Config", "create_app", "open_service"]
