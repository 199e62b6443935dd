"""How many bytes of memory a remembered thing takes. Pure."""

from __future__ import annotations

import sys
from collections.abc import Hashable
from enum import Enum

ENTRY = 320
"""Bytes that ``ExpiringMap`` itself needs for an entry, at most: its places in two tables right
after they grew, a node, a tuple, a number and a time."""

TAG = 192
"""Bytes that each tag of a key needs in ``TagIndex``, at most: a place in a table, and half a set,
as the smallest set has two keys."""

_ALIGNMENT = 16
_SHARED = (type(None), bool, Enum, type)


def size_of(*values: object) -> int:
    """Bytes of ``values`` and of all that only they refer to, as CPython's allocator counts them.

    Strings, numbers, containers, errors, and objects with ``__slots__`` or ``__dict__``. What a
    module has only once (classes, members of an enumeration) costs nothing. An object that
    ``values`` have twice costs once.
    """
    seen: set[int] = set()
    todo = list(values)
    total = 0
    while todo:
        value = todo.pop()
        if isinstance(value, _SHARED) or id(value) in seen:
            continue
        seen.add(id(value))
        total += -(-sys.getsizeof(value) // _ALIGNMENT) * _ALIGNMENT
        if isinstance(value, (str, bytes, int, float)):
            continue
        if isinstance(value, (tuple, list, set, frozenset)):
            todo += value
        elif isinstance(value, dict):
            todo += value.keys()
            todo += value.values()
        else:
            todo += _fields(value)
    return total


def cost_of(key: Hashable, value: object) -> int:
    """The bytes of an entry of an ``ExpiringMap`` without tags."""
    return ENTRY + size_of(key, value)


def _fields(value: object) -> list[object]:
    """The values of an object's attributes."""
    found: list[object] = []
    if isinstance(value, BaseException):
        found += [value.args, value.__cause__, value.__context__]
    own = getattr(value, "__dict__", None)
    if own is not None:
        found.append(own)
    for class_ in type(value).__mro__:
        slots = class_.__dict__.get("__slots__", ())
        for name in (slots,) if isinstance(slots, str) else slots:
            found.append(getattr(value, name, None))
    return found
