"""What operators name: accounts by DID or handle, blobs by CID, either by URL."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import TYPE_CHECKING, Any

import click

from proxy.cli.common import in_words
from proxy.cli.output import Json
from proxy.errors import ImageProxyError, InvalidRequest, RecordNotFound
from proxy.model.identifiers import Did, parse_cid
from proxy.model.references import Reference, parse_account, parse_selection, selection_in, visible
from proxy.model.selection import Selection

if TYPE_CHECKING:
    from proxy.accounts.profiles import Profiles
    from proxy.config import Config

AT_ONCE = 16
"""Accounts that are asked for concurrently."""

FORMS = "DID, CID, handle or URL; ACCOUNT/CID is one picture of an account"


@dataclass(frozen=True, slots=True)
class Name:
    """What was typed, and what it means, or who has to be asked for that."""

    text: str
    means: Selection | Reference

    @property
    def is_account(self) -> bool:
        if isinstance(self.means, Selection):
            return self.means.cid is None
        return self.means == Reference(self.means.actor)

    @property
    def is_blob(self) -> bool:
        return isinstance(self.means, Selection) and self.means.did is None


@dataclass(frozen=True, slots=True)
class Named:
    """A selection, and the name that it was looked up by; empty if its DID and CID were typed."""

    selection: Selection
    name: str = ""

    def reason(self, given: str) -> str:
        """The reason with the name, for the audit: the DID alone tells nobody who was meant."""
        if not self.name:
            return given
        return f"{given} (named as {self.name})" if given else f"named as {self.name}"

    def told(self) -> str:
        blob = f"{self.selection.did or '*'} {self.selection.cid or '*'}"
        return f"{self.name}: {blob}" if self.name else blob

    def document(self) -> Json:
        return {
            "name": self.name or None,
            "did": self.selection.did,
            "cid": self.selection.cid,
        }


def with_names(command: Callable[..., Any]) -> Callable[..., Any]:
    """Give ``command`` its selections: ``names`` as arguments, ``did`` and ``cid`` as options."""
    for decorate in (
        click.option(
            "--cid", metavar="CID", help="A blob; of the account of --did, or of everybody."
        ),
        click.option("--did", metavar="ACCOUNT", help="An account, by DID or handle."),
        click.argument("names", metavar="[WHAT]...", nargs=-1),
    ):
        command = decorate(command)
    return command


def names_of(
    settings: Config, texts: Sequence[str], did: str | None, cid: str | None
) -> list[Name]:
    """Parse the arguments and options of a command; end it if they are wrong."""
    if (did is not None or cid is not None) and texts:
        raise click.UsageError("give arguments, or --did and --cid")
    try:
        names = [parse_name(settings, text) for text in texts]
        if did is not None or cid is not None:
            names = [_of_options(settings, did, cid)]
    except InvalidRequest as error:
        raise click.UsageError(in_words(error, line=FORMS)) from None
    if not names:
        raise click.UsageError(f"give what: {FORMS}")
    for first, second in pairwise(names):
        # Which is meant, two blocks or one of a pair? The wide one would be wrong for good.
        if first.is_account and second.is_blob:
            raise click.UsageError(
                f"write {first.text}/{second.text} for this picture of this account;"
                " or give the CID first, for everything of both"
            )
    return names


def parse_name(settings: Config, text: str) -> Name:
    """Parse what an operator named.

    Raises:
        InvalidRequest: it is nothing that can be named.
    """
    return Name(text, parse_selection(text, own_names=settings.fetch.allow_private_hosts))


def _of_options(settings: Config, did: str | None, cid: str | None) -> Name:
    blob = None if cid is None else parse_cid(visible(cid))
    if did is None:
        return Name(cid or "", Selection(cid=blob))
    actor = parse_account(did, own_names=settings.fetch.allow_private_hosts)
    return Name(did, selection_in(Reference(actor, cid=blob)))


def dids_of(settings: Config, actors: Iterable[str]) -> dict[str, Did]:
    """Return the DIDs of handles, and of DIDs, for which nobody is asked.

    Raises:
        InvalidRequest: one names no account.
        ImageProxyError: see ``find``.
    """
    import trio

    texts = list(actors)
    own_names = settings.fetch.allow_private_hosts
    means = [selection_in(Reference(parse_account(each, own_names=own_names))) for each in texts]
    names = [(Name(text, each), "") for text, each in zip(texts, means, strict=True)]
    found = trio.run(find, settings, names)
    return {
        text: named.selection.did
        for text, (named, _) in zip(texts, found, strict=True)
        if named.selection.did is not None
    }


async def find(settings: Config, wanted: Iterable[tuple[Name, str]]) -> list[tuple[Named, str]]:
    """Return what the names mean, in order, each with its reason and, in that, its name.

    The network is asked only if the text is not enough.

    Raises:
        ImageProxyError: for the first name that means nothing.
    """
    wanted = list(wanted)
    unknown = {
        number: (name.text, name.means)
        for number, (name, _) in enumerate(wanted)
        if isinstance(name.means, Reference)
    }
    looked_up: dict[int, list[Named]] = {}
    if unknown:
        from proxy.lifecycle import open_accounts

        async with open_accounts(settings) as accounts:
            looked_up = await _look_up(accounts, unknown)
    found: list[tuple[Named, str]] = []
    for number, (name, reason) in enumerate(wanted):
        if isinstance(name.means, Selection):
            found.append((Named(name.means), reason))
        else:
            found += [(named, named.reason(reason)) for named in looked_up[number]]
    return found


async def _look_up(
    accounts: Profiles, unknown: Mapping[int, tuple[str, Reference]]
) -> dict[int, list[Named]]:
    import trio

    found: dict[int, list[Named]] = {}
    failures: dict[int, ImageProxyError] = {}
    limiter = trio.CapacityLimiter(AT_ONCE)

    async def ask(number: int, text: str, reference: Reference) -> None:
        try:
            async with limiter:
                selections = await accounts.selected_by(reference)
            if not selections:
                raise RecordNotFound(f"{text} has no pictures")
            found[number] = [Named(each, text) for each in selections]
        except ImageProxyError as error:
            failures[number] = error

    async with trio.open_nursery() as nursery:
        for number, (text, reference) in unknown.items():
            nursery.start_soon(ask, number, text, reference)
    if failures:
        raise failures[min(failures)]
    return found
