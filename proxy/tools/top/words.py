"""Figures in words: rows for a terminal, a line, an object. Pure."""

from __future__ import annotations

import math
from dataclasses import asdict

from proxy.observability.state import State
from proxy.shared.binary_size import in_gib
from proxy.tools.top.figures import Figures, Rates

NOTHING = "-"

NO_TOKEN = "told to who has a token: --token, or server.admin_token"  # noqa: S105 (no token)


def rows(figures: Figures) -> list[tuple[str, str]]:
    """Return names and values, in the order in which they are shown."""
    rates = figures.rates
    return [
        ("Requests", _requests(rates)),
        ("Answers", _answers(rates)),
        ("Waiting", f"{figures.fetches} fetches  {figures.transforms} transforms"),
        ("Cache", f"{_count(figures.entries)} entries  {_size(figures.cache_bytes)}"),
        ("Memory", _memory(figures)),
        ("Blocks", _count(figures.blocks)),
        ("State", ", ".join(figures.problems) or "ready"),
    ]


def hosts(state: State | None) -> list[tuple[str, str, str]]:
    """Return the rows of the hosts that took longest."""
    found = state.hosts if state is not None else ()
    return [(each.host, each.standing, f"{each.seconds:.2f} s") for each in found]


def circuits(state: State | None) -> list[tuple[str, str, str]]:
    """Return the rows of the hosts that are left alone."""
    found = state.circuits if state is not None else ()
    return [(each.host, each.cause, f"{each.seconds:.0f} s more") for each in found]


def line(figures: Figures) -> str:
    """Return all of it in one line, the hosts that are slow or left alone by number and name."""
    named = [f"{name.lower()} {value}" for name, value in rows(figures)]
    if figures.state is not None:
        slow = [each for each in figures.state.hosts if each.standing == "slow"]
        named.append(f"slow {_named(len(slow), slow[0].host if slow else '')}")
        open_ = figures.state.circuits
        named.append(f"left alone {_named(len(open_), open_[0].host if open_ else '')}")
    return "; ".join(" ".join(each.split()) for each in named)


def document(figures: Figures, at: float) -> dict[str, object]:
    """Return all of it for a program.

    Args:
        at: seconds since the epoch.
    """
    rates, state = figures.rates, figures.state
    of_rates = ("hits", "misses", "others", "refused", "hit_share", "median", "most")
    bounds = {name: None if rates is None else getattr(rates, name) for name in of_rates}
    of_state = ("workers", "hosts", "circuits")
    told = None if state is None else asdict(state)
    return {
        "at": at,
        **{name: None if value == math.inf else value for name, value in bounds.items()},
        "fetches": figures.fetches,
        "transforms": figures.transforms,
        "entries": figures.entries,
        "cache_bytes": figures.cache_bytes,
        "memory_bytes": figures.memory_bytes,
        "blocks": figures.blocks,
        "problems": list(figures.problems),
        **{name: None if told is None else told[name] for name in of_state},
    }


def seconds(bound: float | None) -> str:
    """Return a bound of durations."""
    if bound is None:
        return NOTHING
    if bound == math.inf:
        return "over 30 s"
    return f"{bound:g} s" if bound >= 1 else f"{bound * 1000:g} ms"


def _requests(rates: Rates | None) -> str:
    if rates is None:
        return NOTHING
    share = NOTHING if rates.hit_share is None else f"{rates.hit_share:.1%}"
    each = (("misses", rates.misses), ("others", rates.others), ("refused", rates.refused))
    all_of_them = rates.hits + rates.misses + rates.others
    return "  ".join(
        [f"{all_of_them:.1f}/s", f"hits {share}", *(f"{name} {rate:.1f}/s" for name, rate in each)]
    )


def _answers(rates: Rates | None) -> str:
    if rates is None or rates.median is None:
        return NOTHING
    return f"half within {seconds(rates.median)}  95% within {seconds(rates.most)}"


def _memory(figures: Figures) -> str:
    shown = _size(figures.memory_bytes)
    if figures.state is None:
        return shown
    count = len(figures.state.workers)
    return f"{shown} in {count} worker{'' if count == 1 else 's'}"


def _size(amount: int | None) -> str:
    return NOTHING if amount is None else in_gib(amount)


def _count(number: int | None) -> str:
    return NOTHING if number is None else f"{number:,}"


def _named(count: int, first: str) -> str:
    return f"{count} ({first}{', …' if count > 1 else ''})" if count else "0"
