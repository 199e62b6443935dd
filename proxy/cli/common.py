"""Shared by the commands: the configuration, the cache folder, and how mistakes are reported."""

from __future__ import annotations

import getpass
import os
import sqlite3
import sys
from collections.abc import Awaitable, Callable, Iterable, Iterator
from contextlib import aclosing, contextmanager
from functools import wraps
from pathlib import Path
from typing import Any, NoReturn, TypeVar

import click
import trio

from proxy.cache.disk import DiskCache
from proxy.config import Config, ConfigError, Layer, load_config
from proxy.errors import (
    DidUnresolvable,
    ImageProxyError,
    InvalidCid,
    InvalidDid,
    InvalidFormat,
    InvalidHandle,
    InvalidPreset,
    InvalidRequest,
    UpstreamTimeout,
)
from proxy.extras import check_extras
from proxy.lifecycle import open_moderator, open_service
from proxy.model.formats import OUTPUTS
from proxy.model.identifiers import parse_cid, parse_did
from proxy.model.selection import Selection
from proxy.moderation.moderator import Moderator
from proxy.service import Service
from proxy.shared.printable import printable
from proxy.tools.existing_folder import owner_beside_root, signs_in
from proxy.wiring import disk_cache_of

T = TypeVar("T")


class Context:
    """The configuration of this run."""

    def __init__(self, file: Path | None) -> None:
        self.file = file

    def load(self, overrides: Layer | None = None, *, to_serve: bool = False) -> Config:
        """Load the configuration. On a mistake, print all mistakes and end the process.

        Args:
            to_serve: also check that the packages that a service needs are installed.
        """
        try:
            config = load_config(self.file, overrides=overrides)
            if to_serve:
                check_extras(config)
            return config
        except ConfigError as error:
            for mistake in error.mistakes:
                click.echo(f"config: {mistake}", err=True)
            sys.exit(2)


_config_option = click.option(
    "--config",
    "file",
    type=click.Path(dir_okay=False, path_type=Path),
    help="A TOML file; without it IMAGE_PROXY_CONFIG, or the defaults.",
)


def with_config(command: Callable[..., Any]) -> Callable[..., Any]:
    """Give ``command`` a ``context`` made from its ``--config`` option."""

    @_config_option
    @wraps(command)
    def wrapper(file: Path | None, **arguments: Any) -> Any:
        return command(context=Context(file), **arguments)

    return wrapper


@contextmanager
def in_folder(settings: Config, *, may_be_new: bool = False) -> Iterator[None]:
    """Guard work in a server's cache folder; report failures in the block with its path.

    Args:
        may_be_new: work in a folder that no server has run on, too.
    """
    folder = settings.cache.path
    try:
        if not may_be_new and not signs_in(folder):
            refuse(no_cache(settings))
        refuse_root(settings)
        yield
    except (OSError, sqlite3.Error) as error:
        if isinstance(error, BrokenPipeError) or str(folder) in str(error):
            raise
        click.echo(f"imageproxy: {folder}: {error}", err=True)
        sys.exit(1)


def no_cache(settings: Config) -> str:
    return (
        f"{settings.cache.path} is no cache folder: no server has run on it;"
        " give the server's configuration with --config"
    )


def refuse_root(settings: Config) -> None:
    owner = owner_beside_root(settings.cache.path)
    if owner is not None:
        refuse(
            f"{settings.cache.path} belongs to {owner}, who could not use the files that root"
            f" makes there; run this as {owner}"
        )


def refuse(why: str) -> NoReturn:
    click.echo(f"imageproxy: {why}", err=True)
    sys.exit(2)


def selection_of(did: str | None, cid: str | None) -> Selection:
    if did is None and cid is None:
        raise click.UsageError("give --did, --cid, or both")
    try:
        return Selection(
            None if did is None else parse_did(did), None if cid is None else parse_cid(cid)
        )
    except InvalidRequest as error:
        raise click.UsageError(in_words(error)) from None


def with_cache(settings: Config, work: Callable[[DiskCache], Awaitable[T]]) -> T:
    """Run ``work`` with only the disk cache, once its index has every file."""

    async def run() -> T:
        async with aclosing(disk_cache_of(settings)) as disk:
            await disk.make_indexed()
            return await work(disk)

    with in_folder(settings):
        return trio.run(run)


def with_service(settings: Config, work: Callable[[Service], Awaitable[None]]) -> None:
    """Run ``work`` with its own service; an ``ImageProxyError`` ends the process with 1."""
    # A single run skips the cleanup, which would walk the whole cache.
    once = settings.cache.model_copy(update={"cleanup_interval_minutes": 0})
    settings = settings.model_copy(update={"cache": once})
    refuse_root(settings)

    async def run() -> None:
        async with open_service(settings) as service:
            await work(service)

    try:
        trio.run(run)
    except InvalidRequest as error:
        raise click.UsageError(in_words(error, settings.presets)) from None
    except ImageProxyError as error:
        click.echo(f"imageproxy: {printable(error.explained)}", err=True)
        point_to_doctor([type(error)])
        sys.exit(1)


def point_to_doctor(kinds: Iterable[type[ImageProxyError]]) -> None:
    """Point to ``doctor`` if this machine may be the one that cannot reach others."""
    if any(issubclass(kind, (DidUnresolvable, UpstreamTimeout)) for kind in kinds):
        click.echo('"imageproxy doctor" tells whether it lies on this machine', err=True)


_EXPECTED: dict[type[InvalidRequest], str] = {
    InvalidDid: "did:plc:... or did:web:HOST; a handle is no DID",
    InvalidCid: "the CID of a blob, bafkrei... as a rule",
    InvalidHandle: "a handle such as alice.example, or a DID",
    InvalidFormat: ", ".join(format_.value for format_ in OUTPUTS),
}


def in_words(error: InvalidRequest, presets: Iterable[str] = (), line: str = "") -> str:
    """Return the message for a client, and what is expected instead.

    Args:
        presets: the configured names.
        line: the form of a line of a list.
    """
    if isinstance(error, InvalidPreset):
        return f"{error.public_message}; expected one of {', '.join(presets)}"
    if type(error) in _EXPECTED:
        return f"{error.public_message}: {error}; expected {_EXPECTED[type(error)]}"
    return f"{error.public_message}; expected {line}" if line else error.public_message


def decide(settings: Config, work: Callable[[Moderator], Awaitable[T]]) -> tuple[T, str]:
    """Return the result of ``work``, and a text: in how many processes it is in force."""

    async def run() -> tuple[T, int]:
        async with open_moderator(settings) as moderator:
            return await work(moderator), await moderator.serving()

    with in_folder(settings):
        done, serving = trio.run(run)
    if not serving:
        click.echo(f"warning: no server runs on {settings.cache.path}", err=True)
    return done, f"in force in {serving} process{'' if serving == 1 else 'es'}"


def user() -> str:
    """The name of the user who decides, for the audit log."""
    try:
        return f"cli:{getpass.getuser()}"
    except (KeyError, OSError):  # an account without a name
        return f"cli:{os.getuid()}"
