"""Imports in a worker: all that codecs could ever need before it gives up its files, none after.

Libraries import some of their modules only when a picture needs them. A confined worker cannot
read their files any more, so that such a picture would get another answer than in a thread.
"""

from __future__ import annotations

import codecs
import dis
import importlib
import pkgutil
import sys
from collections.abc import Iterator, Sequence
from contextlib import suppress
from encodings.aliases import aliases
from importlib.abc import InspectLoader, MetaPathFinder
from importlib.machinery import ModuleSpec
from importlib.util import find_spec, resolve_name
from modulefinder import ModuleFinder
from types import CodeType, ModuleType

CODECS = ("PIL", "deflate", "pillow_heif", "cykooz_resizer")
"""The packages that decode, scale and encode. Those that are not installed are left out."""

VIDEO_CODECS = (*CODECS, "av")
"""The same for posters of videos."""

_PROGRAMS = frozenset({"PIL.__main__", "PIL.report"})
"""Modules that print something when they are imported."""

_SCREEN = frozenset({"tkinter"})
"""What the standard library has for screens: it would load the libraries of a desktop."""

_FINDER = ModuleFinder()

_MOST_NAMED = 16
"""Late imports that are remembered until they are told."""


def import_all(packages: Sequence[str] = CODECS) -> None:
    """Import every module of ``packages``, and what any function of theirs would when called.

    That is modules and text encodings of the standard library. What cannot be imported here counts
    as not installed from now on. So do optional packages of others: numpy would start threads, and
    Qt look for a screen.
    """
    for package in packages:
        top = _import(package)
        for name in () if top is None else sorted(_modules_of(top)):
            # First what the module names, so that it finds nothing that is left out.
            for code, parent in _codes_of(name):
                _import_encodings(code)
                for base, members in _imports_of(code, parent):
                    if base.partition(".")[0] not in packages:
                        _import_from_outside(base, members)
            _import(name)


def _modules_of(package: ModuleType) -> set[str]:
    path, prefix = getattr(package, "__path__", ()), package.__name__ + "."
    found = pkgutil.walk_packages(path, prefix, onerror=lambda name: None)
    return {package.__name__, *(module.name for module in found)} - _PROGRAMS


def _import(name: str) -> ModuleType | None:
    """Import a module. Return None if that fails; then it fails ever after, without a look."""
    try:
        return importlib.import_module(name)
    except Exception:
        # The import system takes None for a module that is not there.
        sys.modules[name] = None  # type: ignore[assignment]
        return None


def _codes_of(name: str) -> Iterator[tuple[CodeType, str]]:
    """Yield the code of a module and of each function in it, and the package that they are in.

    Nothing for an extension module, or one of another Python.
    """
    waiting: list[CodeType] = []
    with suppress(ImportError, SyntaxError):
        spec = find_spec(name)
        if spec is not None and isinstance(spec.loader, InspectLoader):
            waiting = [code] if (code := spec.loader.get_code(name)) else []
    while waiting:
        code = waiting.pop()
        yield code, (spec.parent if spec else None) or ""
        waiting.extend(constant for constant in code.co_consts if isinstance(constant, CodeType))


def _imports_of(code: CodeType, package: str) -> Iterator[tuple[str, tuple[str, ...]]]:
    """Yield the full name of each module that ``code`` imports, and what it takes from it."""
    if dis.opmap["IMPORT_NAME"] not in code.co_code[::2]:
        return
    # Not ``dis.get_instructions``: it finds lines and targets of jumps too, in four times as long.
    for kind, found in _FINDER.scan_opcodes(code):
        if kind == "absolute_import":
            members, base = found
            yield base, members or ()
        elif kind == "relative_import":
            level, members, base = found
            yield resolve_name("." * level + base, package), members or ()


def _import_from_outside(base: str, members: Sequence[str]) -> None:
    root = base.partition(".")[0]
    if root in _SCREEN or root not in sys.stdlib_module_names:
        sys.modules.setdefault(root, None)  # type: ignore[arg-type]
        return
    package = _import(base)
    for member in members:
        # Else it is a name in the module.
        if hasattr(package, "__path__") and not hasattr(package, member):
            _import(f"{base}.{member}")


def _import_encodings(code: CodeType) -> None:
    """Import the encodings of texts that ``code`` may name: Python finds them by name."""
    constants = list(code.co_consts)
    for constant in constants:
        if isinstance(constant, tuple):
            constants.extend(constant)
        elif isinstance(constant, str) and constant.lower().replace("-", "_") in _ENCODINGS:
            with suppress(LookupError):
                codecs.lookup(constant)


_ENCODINGS = frozenset(aliases) | frozenset(aliases.values())


class LateImports(MetaPathFinder):
    """Refuses every import, and remembers its name, whatever the library makes of the error."""

    def __init__(self) -> None:
        self._names: set[str] = set()

    def find_spec(self, fullname: str, *_: object) -> ModuleSpec | None:
        """Called by the import system for a module that was not imported before."""
        if len(self._names) < _MOST_NAMED:
            self._names.add(fullname)
        raise ModuleNotFoundError(f"{fullname} was not imported in time", name=fullname)

    def told(self) -> list[str]:
        """Return what was asked for since the last call."""
        names = sorted(self._names)
        self._names.clear()
        return names


def refuse_imports() -> LateImports:
    """Refuse all further imports in this process."""
    late = LateImports()
    sys.meta_path.insert(0, late)
    return late
