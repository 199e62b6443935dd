"""How commands print: aligned columns and lines for people, JSON for programs.

With ``--json`` a listing prints one object for each row as it comes, and a report prints exactly
one object. Both take one line each. Times are seconds since the epoch, durations seconds.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from functools import wraps
from itertools import islice
from typing import Any, TypeVar

import click

from proxy.shared.printable import printable

T = TypeVar("T")

Json = Mapping[str, object]

PAGE = 1000
"""Rows that are read before their columns get a width: a listing of a million begins at once."""


class Output:
    """Prints the results of a command.

    Args:
        as_json: whether ``--json`` was given.
    """

    def __init__(self, *, as_json: bool) -> None:
        self.as_json = as_json

    def report(self, document: Json, *lines: str, err: bool = False) -> None:
        """Print the outcome of a command.

        Args:
            document: what ``--json`` prints.
            lines: what is printed without it.
            err: print to standard error: the command's result itself is on standard output.
        """
        for line in [_json(document)] if self.as_json else lines:
            click.echo(line, err=err)

    def listing(
        self,
        items: Iterable[T],
        *,
        document: Callable[[T], Json],
        header: Sequence[str],
        cells: Callable[[T], Sequence[str]],
        otherwise: str,
    ) -> None:
        """Print items as they come.

        Args:
            document, cells: return what is printed of an item, with ``--json`` and without.
            otherwise: goes to standard error if there are none: standard output has only rows.
        """
        lines = (
            (_json(document(each)) for each in items)
            if self.as_json
            else aligned(header, map(cells, items))
        )
        is_empty = True
        for line in lines:
            is_empty = False
            click.echo(line)
        if is_empty:
            click.echo(otherwise, err=True)


def with_output(command: Callable[..., Any]) -> Callable[..., Any]:
    """Give ``command`` an ``output`` made from its ``--json`` option."""

    @click.option("--json", "as_json", is_flag=True, help="Print JSON: an object a line.")
    @wraps(command)
    def wrapper(as_json: bool, **arguments: Any) -> Any:
        return command(output=Output(as_json=as_json), **arguments)

    return wrapper


def aligned(
    header: Sequence[str], rows: Iterable[Sequence[str]], *, right: Collection[int] = ()
) -> Iterator[str]:
    """Yield the lines of a table; none without rows.

    Columns are as wide as needed so far, page by page: they may widen, and never narrow.

    Args:
        right: the columns that are aligned to the right, such as numbers.
    """
    rest = iter(rows)
    page = list(islice(rest, PAGE))
    widths = [0] * len(header)
    if page:
        page.insert(0, header)
    while page:
        cells = [[printable(cell) for cell in row] for row in page]
        widths = [max(was, *(len(row[n]) for row in cells)) for n, was in enumerate(widths)]
        for row in cells:
            padded = (
                cell.rjust(width) if number in right else cell.ljust(width)
                for number, (cell, width) in enumerate(zip(row, widths, strict=True))
            )
            yield "  ".join(padded).rstrip()
        page = list(islice(rest, PAGE))


def _json(document: Json) -> str:
    # ASCII: a path may have bytes that are no text, and JSON's own escapes tell of them.
    return json.dumps(document)
