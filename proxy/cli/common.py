"""Shared by the commands: the configuration, the cache folder, and how mistakes are reported.

The modules of this room import at their head only what every command needs: each function imports
what it uses, so that a command that needs little starts at once (tests/cli/test_start.py).
"""

from __future__ import annotations

import getpass
import os
import sqlite3
import sys
from collections.abc import Awaitable, Callable, Iterable, Iterator
from contextlib import aclosing, contextmanager
from functools import wraps
from pathlib import Path
from typing import TYPE_CHECKING, Any, NoReturn, TypeVar

import click

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
from proxy.model.formats import OUTPUTS
from proxy.shared.printable import printable

if TYPE_CHECKING:
    from proxy.cache.disk import DiskCache
    from proxy.config import Config, ConfigError, Layer
    from proxy.moderation.moderator import Moderator
    from proxy.service import Service

T = TypeVar("T")


class Context:
    """The configuration of this run.

    Args:
        log_warnings: configures logging; None: it is not the console script that runs.
    """

    def __init__(self, file: Path | None, log_warnings: Callable[[], None] | None = None) -> None:
        self.file = file
        self._log_warnings = log_warnings

    def log_warnings(self) -> None:
        """Have what the work of the command logs on standard error, from warnings up."""
        if self._log_warnings is not None:
            self._log_warnings()

    def read(self, overrides: Layer | None = None, *, to_serve: bool = False) -> Config:
        """Load the configuration.

        Args:
            to_serve: also check that the packages that a service needs are installed.

        Raises:
            ConfigError: with all mistakes.
        """
        from proxy.config import ConfigError, load_config
        from proxy.extras import check_extras

        mistakes: list[str] = []
        try:
            config = load_config(self.file, overrides=overrides)
        except ConfigError as error:
            if not to_serve or error.rest is None:
                raise
            # What can be found at once is not told one by one.
            config, mistakes = error.rest, error.mistakes
        if to_serve:
            try:
                check_extras(config)
            except ConfigError as error:
                mistakes = [*mistakes, *error.mistakes]
        if mistakes:
            raise ConfigError(mistakes)
        return config

    def load(
        self, overrides: Layer | None = None, *, to_serve: bool = False, logs: bool = True
    ) -> Config:
        """Load the configuration as ``read`` does. On a mistake, print all and end the process.

        Args:
            logs: whether the command does what may log. Without it, a command starts sooner.
        """
        from proxy.config import ConfigError

        if logs:
            self.log_warnings()
        try:
            return self.read(overrides, to_serve=to_serve)
        except ConfigError as error:
            for line in mistakes_in(error):
                click.echo(line, err=True)
            sys.exit(2)


def mistakes_in(error: ConfigError) -> list[str]:
    return [f"config: {mistake}" for mistake in error.mistakes]


_config_option = click.option(
    "--config",
    "file",
    type=click.Path(dir_okay=False, path_type=Path),
    metavar="FILE",
    help="A TOML file; without it that of IMAGE_PROXY_CONFIG, or the defaults.",
)


def with_config(command: Callable[..., Any]) -> Callable[..., Any]:
    """Give ``command`` a ``context`` made from its ``--config`` option."""

    @_config_option
    @wraps(command)
    def wrapper(file: Path | None, **arguments: Any) -> Any:
        log_warnings = click.get_current_context().find_root().obj
        return command(context=Context(file, log_warnings), **arguments)

    return wrapper


def lines_of(file: Iterable[str]) -> Iterator[str]:
    """Yield the lines of a list, without the byte order mark that some editors begin it with."""
    for number, line in enumerate(file):
        yield line.removeprefix("\ufeff") if number == 0 else line


@contextmanager
def in_folder(
    settings: Config, *, may_be_new: bool = False, must_be_meant: bool = False
) -> Iterator[None]:
    """Guard work in a server's cache folder; report failures in the block with its path.

    Args:
        may_be_new: work in a folder that no server has run on, too.
        must_be_meant: refuse the default folder, which is whatever ``cache`` is in the working
            directory, unless a server runs on it.
    """
    from proxy.tools.existing_folder import signs_in

    folder = settings.cache.path
    try:
        if not may_be_new and not signs_in(folder):
            refuse(no_cache(settings))
        refuse_root(settings)
        is_named = "path" in settings.cache.model_fields_set
        if must_be_meant and not is_named and not serving_in(settings):
            refuse(
                f"{folder} only happens to be in the working directory, and no server runs on it;"
                " give the server's configuration with --config, or, if you mean this folder,"
                f" IMAGE_PROXY_CACHE__PATH={folder}"
            )
        yield
    except (OSError, sqlite3.Error) as error:
        if isinstance(error, BrokenPipeError) or str(folder) in str(error):
            raise
        click.echo(f"imageproxy: {folder}: {error}", err=True)
        sys.exit(1)


def serving_in(settings: Config) -> int:
    """How many processes serve from the cache folder."""
    from proxy.wiring import coordination_of

    replicas = coordination_of(settings).replicas()
    try:
        return replicas.serving()
    finally:
        replicas.leave()


def no_cache(settings: Config) -> str:
    return (
        f"{settings.cache.path} is no cache folder: no server has run on it;"
        " give the server's configuration with --config"
    )


def refuse_root(settings: Config) -> None:
    from proxy.tools.existing_folder import owner_beside_root

    owner = owner_beside_root(settings.cache.path)
    if owner is not None:
        refuse(
            f"{settings.cache.path} belongs to {owner}, who could not use the files that root"
            f" makes there; run this as {owner}"
        )


def refuse(why: str) -> NoReturn:
    click.echo(f"imageproxy: {why}", err=True)
    sys.exit(2)


def with_cache(
    settings: Config, work: Callable[[DiskCache], Awaitable[T]], *, must_be_meant: bool = False
) -> T:
    """Run ``work`` with only the disk cache, once its index has every file.

    Args:
        must_be_meant: see ``in_folder``.
    """
    import trio

    from proxy.wiring import disk_cache_of

    async def run() -> T:
        async with aclosing(disk_cache_of(settings)) as disk:
            await disk.make_indexed()
            return await work(disk)

    with in_folder(settings, must_be_meant=must_be_meant):
        return trio.run(run)


def with_service(settings: Config, work: Callable[[Service], Awaitable[None]]) -> None:
    """Run ``work`` with its own service; an ``ImageProxyError`` ends the process with 1."""
    import trio

    from proxy.lifecycle import open_service

    # A single run skips the cleanup, which would walk the whole cache.
    once = settings.cache.model_copy(update={"cleanup_interval_minutes": 0})
    settings = settings.model_copy(update={"cache": once})
    refuse_root(settings)

    async def run() -> None:
        async with open_service(settings) as service:
            await work(service)

    with mapped_errors(settings):
        trio.run(run)


@contextmanager
def mapped_errors(settings: Config) -> Iterator[None]:
    """End the process with 1 for an ``ImageProxyError``; what was mistyped is wrong usage."""
    try:
        yield
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
    InvalidDid: "did:plc:..., did:web:HOST, or a handle such as alice.community",
    InvalidCid: "the CID of a blob, bafkrei... as a rule",
    InvalidHandle: "a handle such as alice.community, or a DID",
    InvalidFormat: ", ".join(format_.value for format_ in OUTPUTS),
}


def in_words(error: InvalidRequest, presets: Iterable[str] = (), line: str = "") -> str:
    """Return the message for a client, and what is expected instead.

    Args:
        presets: the configured names.
        line: the form of a line of a list.
    """
    if isinstance(error, InvalidPreset):
        return f"{error.named}; expected one of {', '.join(presets)}"
    if type(error) in _EXPECTED:
        return f"{error.message}: {error}; expected {_EXPECTED[type(error)]}"
    return f"{error.public_message}; expected {line}" if line else error.public_message


def decide(settings: Config, work: Callable[[Moderator], Awaitable[T]]) -> tuple[T, int]:
    """Return the result of ``work``, and in how many other processes it is in force."""
    import trio

    from proxy.lifecycle import open_moderator

    async def run() -> tuple[T, int]:
        async with open_moderator(settings) as moderator:
            return await work(moderator), await moderator.serving()

    with in_folder(settings, must_be_meant=True), mapped_errors(settings):
        done, serving = trio.run(run)
    if not serving:
        click.echo(f"warning: no server runs on {settings.cache.path}", err=True)
    return done, serving


def in_force(processes: int) -> str:
    return f"in force in {processes} process{'' if processes == 1 else 'es'}"


def user() -> str:
    """The name of the user who decides, for the audit log."""
    try:
        return f"cli:{getpass.getuser()}"
    except (KeyError, OSError):  # an account without a name
        return f"cli:{os.getuid()}"
