"""The rooms of ``proxy/``: its folders, and the modules beside them, as the code has them."""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator
from functools import cache
from pathlib import Path

ROOT = Path(__file__).parent.parent

MAP = ROOT / "docs/architecture.md"

BEGIN, END = "<!-- rooms: made by ./run docs -->", "<!-- rooms end -->"


def order() -> list[str]:
    """The rooms from the top of the map to its bottom, as the document has them."""
    return re.findall(
        r"^\| `([\w/]+)` \|", _table_of(MAP.read_text(encoding="utf-8")), re.MULTILINE
    )


def architecture() -> str:
    """The document, the sentence of each room made anew from its docstring."""
    text = MAP.read_text(encoding="utf-8")
    rows = [f"| `{room}` | {sentence_of(room)} |" for room in order()]
    return text.replace(_table_of(text), "\n".join(["\n", "| room | |", "|---|---|", *rows, "\n"]))


def sentence_of(room: str) -> str:
    """The first paragraph of the docstring of a folder or module."""
    path = ROOT / "proxy" / room
    file = path / "__init__.py" if path.is_dir() else path.with_suffix(".py")
    docstring = ast.get_docstring(ast.parse(file.read_text(encoding="utf-8"))) or ""
    return " ".join(docstring.partition("\n\n")[0].split()).replace("``", "`")


@cache
def modules() -> dict[str, ast.Module]:
    """Each module that has more than a docstring, by its path below ``proxy/``."""
    files = (ROOT / "proxy").rglob("*.py")
    read = {
        file.relative_to(ROOT / "proxy").with_suffix("").as_posix(): ast.parse(file.read_text())
        for file in files
    }
    return {name: tree for name, tree in read.items() if len(tree.body) > 1}


def room_of(module: str) -> str:
    """The room that a module stands in: its folder at the root, or itself."""
    return module.partition("/")[0]


def imports(tree: ast.Module) -> Iterator[str]:
    """The names that a module imports, wherever it does, with dots."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, "imports are absolute"
            yield from (f"{node.module}.{alias.name}" for alias in node.names)


def module_of(name: str, known: dict[str, ast.Module]) -> str | None:
    """The module of ours that is, or has, an imported name."""
    if not name.startswith("proxy."):
        return None
    path = name.removeprefix("proxy.").replace(".", "/")
    while path not in known:
        path, slash, _ = path.rpartition("/")
        if not slash:
            return "__init__"
    return path


def arrows() -> dict[str, set[str]]:
    """The modules that each module imports."""
    known = modules()
    return {
        name: {to for each in imports(tree) if (to := module_of(each, known))}
        for name, tree in known.items()
    }


def _table_of(text: str) -> str:
    return text.partition(BEGIN)[2].partition(END)[0]
