"""The map of docs/architecture.md is that of the code."""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator
from graphlib import TopologicalSorter
from pathlib import Path

ROOT = Path(__file__).parent.parent

LOWEST = "what decides (pure)"

TALKING = {"trio", "socket", "sqlite3", "fcntl", "subprocess", "httpcore2", "asks", "structlog"}
"""What a module that decides has no use for."""


def floors() -> list[tuple[str, list[str]]]:
    """The map from its top: the name of each floor, and the modules on it."""
    text = (ROOT / "docs/architecture.md").read_text(encoding="utf-8")
    found: list[tuple[str, list[str]]] = []
    for line in re.findall(r"^ {4}.*$", text.partition("\n`process/worker`")[0], re.MULTILINE):
        if name := line[4:31].strip():
            found.append((name, []))
        found[-1][1].extend(line[31:].split())
    return found


def trees() -> dict[str, ast.Module]:
    """Each module that has more than a docstring."""
    files = (ROOT / "proxy").rglob("*.py")
    read = {
        file.relative_to(ROOT / "proxy").with_suffix("").as_posix(): ast.parse(file.read_text())
        for file in files
    }
    return {name: tree for name, tree in read.items() if len(tree.body) > 1}


def imports(tree: ast.Module) -> Iterator[str]:
    """The names that a module imports, wherever it does, with dots."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, "imports are absolute"
            yield from (f"{node.module}.{alias.name}" for alias in node.names)


def module_of(name: str, modules: dict[str, ast.Module]) -> str | None:
    """The module of ours that is, or has, an imported name."""
    if not name.startswith("proxy."):
        return None
    path = name.removeprefix("proxy.").replace(".", "/")
    while path not in modules:
        path, slash, _ = path.rpartition("/")
        if not slash:
            return "__init__"
    return path


def test_every_module_stands_on_one_floor() -> None:
    """Catches a module that came, went or moved without the map."""
    assert sorted(name for _, names in floors() for name in names) == sorted(trees())


def test_imports_go_down_or_sideways_and_never_in_a_circle() -> None:
    """Catches an arrow that points up, and two modules that are one."""
    height = {name: -at for at, (_, names) in enumerate(floors()) for name in names}
    modules = trees()
    arrows = {
        name: {to for each in imports(tree) if (to := module_of(each, modules))}
        for name, tree in modules.items()
    }
    up = [f"{a} -> {b}" for a, found in arrows.items() for b in found if height[b] > height[a]]
    assert up == []
    assert len(arrows["service"]) > 10, "the check must see arrows"
    TopologicalSorter(arrows).prepare()


def test_what_decides_imports_nothing_that_talks() -> None:
    """Catches I/O on the lowest floor, whose modules are tested without any."""
    name, lowest = floors()[-1]
    assert name == LOWEST
    modules = trees()
    talks = {each: {part.partition(".")[0] for part in imports(modules[each])} for each in lowest}
    assert {each: found & TALKING for each, found in talks.items() if found & TALKING} == {}
