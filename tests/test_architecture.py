"""The map of docs/architecture.md is that of the code."""

from __future__ import annotations

import ast
from graphlib import TopologicalSorter

from tests.rooms import ROOT, architecture, arrows, imports, modules, order, room_of

TALKING = {"trio", "socket", "sqlite3", "fcntl", "subprocess", "httpcore2", "asks", "structlog"}
"""What a module that decides has no use for."""


def test_every_room_is_on_the_map_with_the_sentence_of_its_docstring() -> None:
    """Catches a folder that came, went or changed its purpose without the map."""
    assert sorted(order()) == sorted({room_of(name) for name in modules()})
    assert (ROOT / "docs/architecture.md").read_text(encoding="utf-8") == architecture()


def test_imports_go_down_the_map_and_never_in_a_circle() -> None:
    """Catches an arrow that points up, and two modules that are one."""
    depth = {room: at for at, room in enumerate(order())}
    found = arrows()
    up = [
        f"{name} -> {to}"
        for name, imported in found.items()
        for to in imported
        if depth[room_of(to)] < depth[room_of(name)]
    ]
    assert up == []
    assert len(found["service"]) > 10, "the check must see arrows"
    TopologicalSorter(found).prepare()


def test_no_folder_holds_a_single_module() -> None:
    """Catches a level of folders that nobody needs."""
    folders = [path.parent for path in (ROOT / "proxy").rglob("__init__.py")]
    alone = [
        folder
        for folder in folders
        if len([each for each in folder.glob("*.py") if each.name != "__init__.py"])
        + len([each for each in folder.iterdir() if each in folders])
        < 2
    ]
    assert alone == []


def test_a_module_that_calls_itself_pure_imports_nothing_that_talks() -> None:
    """Catches I/O in what decides, which is tested without any."""
    pure = {
        name: {each.partition(".")[0] for each in imports(tree)}
        for name, tree in modules().items()
        if "pure" in _docstring(tree).lower()
    }
    assert {name: found & TALKING for name, found in pure.items() if found & TALKING} == {}
    assert len(pure) > 30, "the check must see modules"


def _docstring(tree: ast.Module) -> str:
    return ast.get_docstring(tree) or ""
