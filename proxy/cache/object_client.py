"""The client of an object store. Blocks: call in threads. Imported only with ``store.url``."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from datetime import timedelta
from typing import TYPE_CHECKING, Any
from urllib.parse import unquote, urlsplit

import obstore
from obstore.exceptions import AlreadyExistsError, BaseError
from obstore.store import AzureStore, GCSStore, LocalStore, S3Store

from proxy.cache.object_interface import PAGE, Oversized
from proxy.config import ConfigError, StoreSection
from proxy.egress.errors import BadAnswer

if TYPE_CHECKING:
    from obstore.store import ClientConfig, RetryConfig


class StoredObjects:
    """Implements ``Objects`` for the configured store.

    Raises:
        ConfigError: there is no such store: a folder cannot be made, or a credential is missing.
    """

    def __init__(self, settings: StoreSection) -> None:
        try:
            self._store = _opened(settings)
        except (BaseError, OSError, ValueError) as error:
            why = str(error).partition("\n")[0]
            raise ConfigError([f"store.url = {settings.url!r}: {why}"]) from None

    def get(self, path: str, max_bytes: int) -> bytes | None:
        """See ``Objects.get``."""
        with _failures():
            try:
                found = obstore.get(self._store, path)
            except FileNotFoundError:
                return None
            if found.meta["size"] > max_bytes:
                raise Oversized(f"{found.meta['size']} bytes")
            return bytes(found.bytes())

    def put(self, path: str, content: bytes, *, replaces: bool = False) -> bool:
        """See ``Objects.put``."""
        with _failures():
            try:
                # Without parts: what is left of an upload in parts would have to be removed.
                obstore.put(
                    self._store,
                    path,
                    content,
                    mode="overwrite" if replaces else "create",
                    use_multipart=False,
                )
            except AlreadyExistsError:
                return False
            return True

    def pages(self, prefix: str) -> Iterator[list[str]]:
        """See ``Objects.pages``."""
        with _failures():
            listed = iter(obstore.list(self._store, prefix, chunk_size=PAGE))
        while True:
            with _failures():
                page = next(listed, None)
            if page is None:
                return
            yield [each["path"] for each in page]

    def delete(self, paths: Sequence[str]) -> None:
        """See ``Objects.delete``."""
        with _failures():
            try:
                obstore.delete(self._store, list(paths))
            except FileNotFoundError:
                # Some stores fail where one of them is missing; what of the others, is not said.
                for path in paths:
                    with suppress(FileNotFoundError):
                        obstore.delete(self._store, path)


@contextmanager
def _failures() -> Iterator[None]:
    try:
        yield
    except (BaseError, OSError) as error:
        # The rest of the message has the whole request.
        raise BadAnswer(str(error).partition("\n")[0]) from None


def _opened(settings: StoreSection) -> S3Store | GCSStore | AzureStore | LocalStore:
    url = urlsplit(settings.url)
    path = unquote(url.path)
    if url.scheme == "file":
        return LocalStore(path, mkdir=True, automatic_cleanup=True)
    prefix = path.strip("/") or None
    timeout = timedelta(seconds=settings.timeout)
    client: ClientConfig = {
        "allow_http": settings.allow_http,
        "connect_timeout": timeout,
        "timeout": timeout,
    }
    # A miss does not wait for a second try: the PDS has the picture too.
    retry: RetryConfig = {"max_retries": 0}
    given: dict[str, Any] = {}
    names = _AZURE if url.scheme == "az" else _S3
    for key, name in names.items():
        value = getattr(settings, key)
        text = value if isinstance(value, str) else value.get_secret_value()
        if text:
            given[name] = text
    if url.scheme == "s3":
        return S3Store(
            url.netloc, prefix=prefix, client_options=client, retry_config=retry, **given
        )
    if url.scheme == "az":
        return AzureStore(
            url.netloc, prefix=prefix, client_options=client, retry_config=retry, **given
        )
    return GCSStore(url.netloc, prefix=prefix, client_options=client, retry_config=retry)


_S3 = {
    "endpoint": "endpoint",
    "region": "region",
    "access_key_id": "access_key_id",
    "secret_access_key": "secret_access_key",
}

_AZURE = {
    "endpoint": "endpoint",
    "access_key_id": "account_name",
    "secret_access_key": "account_key",
}
"""obstore's names for the keys of ``[store]``."""
