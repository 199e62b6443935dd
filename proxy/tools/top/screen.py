"""The screen of ``imageproxy top``: the alternate screen of a terminal, and its keys.

Needs the extra ``top``.
"""

from __future__ import annotations

import os
import sys
import termios
import time
import tty
from collections.abc import Iterator
from contextlib import contextmanager

import trio
from rich.console import Console, ConsoleDimensions, Group, RenderableType
from rich.live import Live
from rich.table import Table
from rich.text import Text

from proxy.shared.printable import printable
from proxy.tools.top import words
from proxy.tools.top.figures import Figures

HEAD_LINES = 13
"""Lines of the screen beside the rows of hosts: the title, the figures, blanks and headings."""

NAMES = 10
"""Columns of the names of figures."""

LEAST_NAME = 20
"""Columns of a name."""

GAP = 2
"""Columns between columns."""


class Screen:
    """Shows figures, and what keeps them from coming.

    Args:
        place: the server's.
    """

    def __init__(self, console: Console, place: str) -> None:
        self._console = console
        self._place = place
        self._live = Live(
            console=console,
            screen=True,
            # By the refresh of the figures alone: rich's own is a thread.
            auto_refresh=False,
            redirect_stdout=False,
            redirect_stderr=False,
        )
        self._last: Figures | None = None

    @contextmanager
    def shown(self) -> Iterator[None]:
        """Have the alternate screen during the block."""
        with self._live:
            yield

    def show(self, news: Figures | str) -> None:
        """Draw anew; a problem is drawn above the last figures."""
        problem = news if isinstance(news, str) else ""
        if not isinstance(news, str):
            self._last = news
        if self._last is not None:
            drawn = screen_of(
                self._last, self._place, time.strftime("%H:%M:%S"), self._console.size, problem
            )
            self._live.update(drawn, refresh=True)


def screen_of(
    figures: Figures, place: str, clock: str, size: ConsoleDimensions, problem: str = ""
) -> RenderableType:
    """Return what fills a screen of ``size``."""
    width, height = size
    title = Text(no_wrap=True, overflow="ellipsis")
    title.append("imageproxy", style="bold").append(f" {printable(figures.version)}  ")
    title.append(f"{printable(place)}  {clock}  q quits", style="dim")
    parts: list[RenderableType] = [title, _plain(problem, "bold red")]
    for name, value in words.rows(figures):
        row = Text(f"{name:<{NAMES}}", style="bold", no_wrap=True, overflow="ellipsis")
        bad = name == "State" and bool(figures.problems)
        row.append(printable(value), style="not bold yellow" if bad else "not bold")
        parts.append(row)
    if figures.state is None:
        parts += ["", _plain(f"Hosts are {words.NO_TOKEN}", "dim")]
        return Group(*parts)
    circuits, hosts = words.circuits(figures.state), words.hosts(figures.state)
    # A list without a row says so in one.
    room = max(height - HEAD_LINES, 2)
    for_circuits = min(max(len(circuits), 1), max(room // 2, room - max(len(hosts), 1)))
    parts += ["", _list("Left alone", circuits[:for_circuits], len(circuits), width)]
    parts += ["", _list("Slowest hosts", hosts[: room - for_circuits], len(hosts), width)]
    return Group(*parts)


def _list(name: str, shown: list[tuple[str, str, str]], count: int, width: int) -> Table:
    more = f" ({len(shown)} of {count})" if count > len(shown) else ""
    table = Table(box=None, padding=(0, GAP, 0, 0), pad_edge=False, header_style="bold")
    # Names give way, and not what is said of them.
    whats, times = (max((len(row[n]) for row in shown), default=0) for n in (1, 2))
    left = max(width - whats - times - 2 * GAP, LEAST_NAME)
    table.add_column(
        f"{name}{more}", no_wrap=True, overflow="ellipsis", min_width=LEAST_NAME, max_width=left
    )
    table.add_column(no_wrap=True, width=whats)
    table.add_column(justify="right", no_wrap=True, width=times)
    for host, what, seconds in shown or [("none", "", "")]:
        style = "yellow" if what == "slow" else "" if shown else "dim"
        table.add_row(*(_plain(each, style) for each in (host, what, seconds)))
    return table


def _plain(text: str, style: str = "") -> Text:
    """Text without markup, on one line."""
    return Text(printable(text), style=style, no_wrap=True, overflow="ellipsis")


@contextmanager
def keys_at_once() -> Iterator[None]:
    """Have keys come without a line's end, and without an echo, during the block.

    A read of the terminal returns at once then, with nothing where nothing was typed.
    """
    if not sys.stdin.isatty():
        yield
        return
    descriptor = sys.stdin.fileno()
    before = termios.tcgetattr(descriptor)
    tty.setcbreak(descriptor)
    try:
        during = termios.tcgetattr(descriptor)
        # A shell would go on in the alternate screen.
        during[6][termios.VSUSP] = b"\0"
        # A read never waits, whatever woke it: signals would wait with it.
        during[6][termios.VMIN], during[6][termios.VTIME] = 0, 0
        termios.tcsetattr(descriptor, termios.TCSANOW, during)
        yield
    finally:
        termios.tcsetattr(descriptor, termios.TCSADRAIN, before)


async def until_q() -> None:
    """Wait until q is typed, or the terminal is gone; for ever where there is none.

    Within ``keys_at_once``.
    """
    if not sys.stdin.isatty():
        await trio.sleep_forever()
    descriptor = sys.stdin.fileno()
    while True:
        await trio.lowlevel.wait_readable(descriptor)
        typed = os.read(descriptor, 64)
        # A terminal that has gone is none any more, and has nothing to read either.
        if b"q" in typed.lower() or not (typed or os.isatty(descriptor)):
            return
