"""The process that workers are forked from: it imports, and tries every codec, once for all.

It sees no byte of a picture, and a worker has no way to it. Workers share its memory until they
write to it, and start in milliseconds. It does what the service says on their socket, and ends when
that closes.
"""

from __future__ import annotations

import gc
import os
import signal
import socket
import traceback
from collections.abc import Callable
from mmap import PROT_READ, mmap
from typing import NoReturn

from proxy.imaging.workers import sandbox
from proxy.imaging.workers.ipc import ENDED, FORK, ORDER, STILL_RUNS
from proxy.imaging.workers.main import (
    THREADS,
    Given,
    keep_freed_memory,
    render_job,
    serve,
    warm_up,
)
from proxy.shared.free_memory import trimmer


def main(descriptor: int) -> NoReturn:
    """Fork workers as the socket ``descriptor`` says, until it closes."""
    ignore_signals()
    keep_freed_memory()
    warm_up()
    fork_workers(socket.socket(fileno=descriptor), THREADS, lambda given: serve(given, render_job))


def ignore_signals() -> None:
    """Ignore the signals that end a service.

    The terminal and the service manager signal the whole group, but the service first lets its
    jobs finish.
    """
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, signal.SIG_IGN)


def fork_workers(
    control: socket.socket, threads: int, be_worker: Callable[[Given], object]
) -> NoReturn:
    """Carry out the orders that come over ``control``.

    Args:
        threads: of each worker, beside its first one.
        be_worker: called in each worker; it does not return.
    """
    gc.collect()
    # A collection in a worker writes to the objects that it visits, and so copies their pages.
    gc.freeze()
    trimmer()()
    while True:
        data, descriptors, _, _ = socket.recv_fds(control, ORDER.size, 2)
        if len(data) < ORDER.size:
            os._exit(0)
        order, first, cpu, room = ORDER.unpack(data)
        if order == FORK:
            limits = sandbox.Limits(first, cpu, threads)
            _fork(control, descriptors, room, limits, be_worker)
        else:
            control.sendall(ENDED.pack(_exit_code(first)))


def _fork(
    control: socket.socket,
    descriptors: list[int],
    room: int,
    limits: sandbox.Limits,
    be_worker: Callable[[Given], object],
) -> None:
    connection, source = descriptors
    try:
        pid = os.fork()
    except OSError:
        traceback.print_exc()  # the service sees the end of the worker's socket
        pid = -1
    if pid == 0:
        try:
            control.close()
            mapping = mmap(source, room, prot=PROT_READ)
            be_worker(Given(socket.socket(fileno=connection), mapping, limits))
        except Exception:
            traceback.print_exc()
        os._exit(1)
    os.close(connection)
    os.close(source)


def _exit_code(pid: int) -> int:
    """Return the exit code of a worker that has ended, negative for a signal; else STILL_RUNS.

    Its number is not used again before this has said that it ended.
    """
    ended, status = os.waitpid(pid, os.WNOHANG)
    return os.waitstatus_to_exitcode(status) if ended else STILL_RUNS
