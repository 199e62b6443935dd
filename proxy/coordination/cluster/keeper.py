"""The tasks of a process that holds a lease: they renew it, listen for decisions, and watch."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import NoReturn

import structlog
import trio

from proxy.coordination.cluster import watcher
from proxy.coordination.cluster.members import LeaseLost, Members
from proxy.coordination.cluster.served_name import ServedName
from proxy.shared.postgres import PostgresConnection, PostgresDatabase, PostgresError

RENEWALS = 6
"""How often a lease is renewed in its time."""

RETRY_SECONDS = 0.25
"""Pause after a renewal that failed; there is time for a few."""

RESTART_SECONDS = 1.0
"""Pause before a lost connection or a watcher that ended is replaced."""

CHANNEL = "imageproxy"
"""The channel on which the database tells of decisions. It only wakes: nothing depends on it."""

log = structlog.get_logger(__name__)


class LeaseKeeper:
    """Keeps the lease of this process.

    Args:
        database: to listen; its connection is kept open.
        name: the name of the served files, which the watcher takes away.
    """

    def __init__(self, members: Members, database: PostgresDatabase, name: ServedName) -> None:
        self._members = members
        self._database = database
        self._name = name
        self._listening = trio.CapacityLimiter(1)

    async def run(self, wake: Callable[[], None]) -> NoReturn:
        """Keep it until cancelled. The lease itself then goes on to its end.

        Args:
            wake: called when a decision was announced, or the lease has ended.
        """
        async with trio.open_nursery() as nursery:
            nursery.start_soon(keep_renewed, self._members, wake, name="lease_renewal")
            nursery.start_soon(self._keep_listening, wake, name="decision_listener")
            nursery.start_soon(self._keep_watched, name="lease_watcher")
        raise AssertionError("unreachable")

    async def _keep_listening(self, wake: Callable[[], None]) -> None:
        while True:
            connection: PostgresConnection | None = None
            try:
                connection = await trio.to_thread.run_sync(
                    self._database.connect, limiter=self._listening
                )
                await self._listen(connection, wake)
            except OSError:
                # What was announced meanwhile is found by the next look.
                await trio.sleep(RESTART_SECONDS)
            finally:
                if connection is not None:
                    connection.close()

    async def _listen(self, connection: PostgresConnection, wake: Callable[[], None]) -> NoReturn:
        listen = f"LISTEN {CHANNEL}"
        await trio.to_thread.run_sync(connection.execute, listen, limiter=self._listening)
        wake()
        while True:
            await trio.lowlevel.wait_readable(connection.fileno())
            if await trio.to_thread.run_sync(connection.notified, limiter=self._listening):
                wake()
            elif not connection.is_usable:
                raise PostgresError("the connection ended")

    async def _keep_watched(self) -> None:
        while True:
            with suppress(OSError):
                await self._watch()
            with suppress(OSError):
                await trio.to_thread.run_sync(self._name.hide)
            await trio.sleep(RESTART_SECONDS)

    async def _watch(self) -> None:
        """Run a watcher, until it ends."""
        mark, name = self._name.mark, self._name.path
        # Without what this process has installed: it starts in some milliseconds, and stays small.
        command = [sys.executable, "-I", "-S", str(Path(watcher.__file__)), str(mark), str(name)]
        process = await trio.lowlevel.open_process(
            command, stdin=subprocess.PIPE, stdout=subprocess.PIPE
        )
        try:
            if process.stdin is not None and process.stdout is not None:
                async with process.stdin, process.stdout:
                    if await process.stdout.receive_some(1) == watcher.READY:
                        self._name.is_watched = True
                    await process.wait()
        finally:
            self._name.is_watched = False
            # The end of its input ends it, and it takes the name away.
            with trio.CancelScope(shield=True), trio.move_on_after(RESTART_SECONDS):
                await process.wait()
            if process.poll() is None:
                process.kill()


async def keep_renewed(members: Members, wake: Callable[[], None]) -> NoReturn:
    """Renew the lease of ``members`` in time, until cancelled.

    Args:
        wake: called when it has ended.
    """
    lease, limiter = members.lease, trio.CapacityLimiter(1)
    is_told = False
    while True:
        pause = lease.seconds / RENEWALS
        if lease.deadline:  # it was entered
            try:
                await trio.to_thread.run_sync(members.renew, limiter=limiter)
                is_told = False
            except LeaseLost:
                if not members.has_left:
                    log.error("the lease has ended: nothing is served")
                    wake()
            except OSError as error:
                pause = min(pause, RETRY_SECONDS)
                if not is_told:
                    log.warning("the lease is not renewed", error=str(error))
                is_told = True
        await trio.sleep(pause)


async def keep_entered(members: Members) -> NoReturn:
    """Keep a process that serves nothing among the others, until cancelled.

    Where its lease has ended (it was stopped, or cut off) it gets another: what it began would
    count as abandoned, and others would finish it beside this process.
    """
    limiter = trio.CapacityLimiter(1)
    while True:
        try:
            await trio.to_thread.run_sync(members.renew, limiter=limiter)
        except LeaseLost:
            with suppress(OSError):
                await trio.to_thread.run_sync(members.enter, limiter=limiter)
        except OSError as error:
            log.warning("the lease is not renewed", error=str(error))
        await trio.sleep(members.lease.seconds / RENEWALS)
