"""What a worker imports before it is confined, and what it says of imports afterwards."""

from __future__ import annotations

import ast
import pkgutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import PIL
import pytest

import proxy
from proxy.imaging.workers import imports

ROOT = Path(proxy.__file__).parents[1]

FORK_SERVERS = {"fork_server": imports.CODECS, "video_fork_server": imports.VIDEO_CODECS}
"""What the workers of each are given, by its module."""

AFTER_ALL = """
from proxy.imaging.workers import video_fork_server
video_fork_server.warm_up_for_videos()
import sys
from proxy.imaging.workers import imports
late = imports.refuse_imports()
"""


def python(code: str) -> list[str]:
    """The lines that ``code`` prints in a process that has imported everything."""
    run = subprocess.run(
        [sys.executable, "-I", "-c", f"import sys; sys.path.insert(0, {str(ROOT)!r})\n{code}"],
        stdout=subprocess.PIPE,
        check=True,
        text=True,
        env={"DISPLAY": ":99"},
    )
    return run.stdout.splitlines()


def statements(package: str, path: list[str]) -> Iterator[str]:
    """Each import of a package, at any depth, as a line that can be run; other than for types."""
    files = [file for folder in path for file in Path(folder).glob("*.py")]
    for file in files:
        if file.stem in ("__main__", "report"):
            continue
        tree = ast.parse(file.read_text())
        for_types = {
            inner
            for node in ast.walk(tree)
            if isinstance(node, ast.If) and "TYPE_CHECKING" in ast.unparse(node.test)
            for part in node.body
            for inner in ast.walk(part)
        }
        for node in ast.walk(tree):
            if isinstance(node, ast.Import | ast.ImportFrom) and node not in for_types:
                line = ast.unparse(node)
                yield line.replace("from .", f"from {package}.").replace(
                    f"{package}. ", f"{package} "
                )


def test_nothing_that_pillow_can_import_is_imported_late() -> None:
    """Catches a list by hand: TIFF for the orientation of an AVIF, a module of a rare error."""
    lines = sorted({*statements("PIL", list(PIL.__path__))})
    assert "from PIL import TiffImagePlugin" in lines
    assert "import tempfile" in lines
    tried = "".join(
        f"try:\n    {line}\nexcept ImportError:\n    pass\n"
        for line in lines
        if "__future__" not in line
    )
    assert python(f"{AFTER_ALL}\n{tried}\nprint(late.told())") == ["[]"]


@pytest.mark.parametrize("package", imports.VIDEO_CODECS)
def test_every_module_of_a_codec_is_imported(package: str) -> None:
    """Catches a walk that ends at the first module that cannot be imported."""
    top = pytest.importorskip(package)
    names = {f"{package}.{module.name}" for module in pkgutil.iter_modules(top.__path__)}
    (loaded,) = python(f"{AFTER_ALL}\nprint([name for name in sys.modules if sys.modules[name]])")
    missing = names - set(ast.literal_eval(loaded))
    printing, for_types = {"PIL.__main__", "PIL.report"}, {"PIL._typing"}
    need_a_screen = {"PIL.ImageTk", "PIL._imagingtk", "PIL._tkinter_finder"}
    need_olefile = {"PIL.FpxImagePlugin", "PIL.MicImagePlugin"}
    assert missing <= printing | for_types | need_a_screen | need_olefile


def test_importing_everything_prints_nothing_and_starts_nothing() -> None:
    """Catches reports on standard output, numpy's threads, and libraries of a desktop."""
    said = python(
        f"{AFTER_ALL}\nimport os\nprint(len(os.listdir('/proc/self/task')))\n"
        "print([name for name in ('numpy', 'tkinter', '_tkinter', 'PIL.report')"
        " if sys.modules.get(name)])"
    )
    assert said == ["1", "[]"]


PACKAGE = {
    "__init__.py": "",
    "a.py": """
def outer(encoding="utf-16le"):
    from . import b
    from xml.etree import ElementTree as elements
    class Inner:
        def method(self):
            import numpy
            return lambda: __import__("wave") or [find() for find in ()]
        def other(self):
            from colorsys import hls_to_rgb
    def inner():
        import xml.dom.minidom
""",
    "b.py": "import not_installed",
    "of_another_python.py": "print 'this'",
    "fails/__init__.py": "raise RuntimeError('no such platform')",
    "works/__init__.py": "",
    "works/deep.py": "def find():\n    import chunk_of_nothing, sndhdr_of_nothing, gettext",
}


def test_what_functions_import_at_any_depth_is_imported(tmp_path: Path) -> None:
    """Catches a walk that sees modules alone, or that a module which cannot be imported ends."""
    for name, text in PACKAGE.items():
        file = tmp_path / "walked" / name
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(text)
    loaded, missing = python(
        f"sys.path.insert(0, {str(tmp_path)!r})\n"
        "from proxy.imaging.workers.imports import import_all\n"
        "import_all(['walked'])\n"
        "print([name for name, module in sys.modules.items() if module])\n"
        "print([name for name, module in sys.modules.items() if not module])"
    )
    assert set(ast.literal_eval(loaded)) >= {
        "walked.a",
        "walked.works.deep",
        "colorsys",
        "encodings.utf_16_le",
        "gettext",
        "xml.dom.minidom",
        "xml.etree.ElementTree",
    }
    assert set(ast.literal_eval(missing)) >= {
        "walked.b",
        "walked.fails",
        "walked.of_another_python",
        "not_installed",
        "numpy",
    }


def test_a_package_that_is_missing_stops_nothing() -> None:
    """Catches a worker that does not start without an optional codec."""
    (said,) = python(
        "from proxy.imaging.workers.imports import import_all\n"
        "import_all(['no_such_package', 'json'])\nprint('json.tool' in sys.modules)"
    )
    assert said == "True"


def test_no_worker_of_pictures_has_ffmpeg() -> None:
    """Catches 17 MB, and code for any picture to attack, for what only videos need."""
    (said,) = python(
        "import proxy.imaging.workers.fork_server\nfrom proxy.imaging.workers import main\n"
        "main.warm_up()\nprint([name for name in sys.modules if name.split('.')[0] == 'av'])"
    )
    assert said == "[]"


@pytest.mark.parametrize(("module", "codecs"), FORK_SERVERS.items())
def test_every_package_of_the_pipeline_is_walked(module: str, codecs: tuple[str, ...]) -> None:
    """Catches a codec that is added to the pipeline and not to what is imported ahead."""
    (said,) = python(
        f"import ast, proxy.imaging.workers.{module}\n"
        "from pathlib import Path\n"
        "names = set()\n"
        "for name, module in list(sys.modules.items()):\n"
        "    if name.startswith('proxy.imaging'):\n"
        "        for node in ast.walk(ast.parse(Path(module.__file__).read_text())):\n"
        "            if isinstance(node, ast.Import):\n"
        "                names.update(alias.name for alias in node.names)\n"
        "            elif isinstance(node, ast.ImportFrom):\n"
        "                names.add(node.module)\n"
        "roots = {name.split('.')[0] for name in names} - set(sys.stdlib_module_names)\n"
        "print(sorted(roots))"
    )
    # pydantic reads the recipes, and meets no byte of a picture.
    assert set(ast.literal_eval(said)) <= {*codecs, "proxy", "pydantic"}


def test_a_service_that_has_workers_goes_without_codecs() -> None:
    """Catches megabytes, and a tenth of the start, for what the service itself never calls."""
    (said,) = python(
        "import proxy.imaging.workers.pool\n"
        f"print([name for name in {imports.VIDEO_CODECS!r} if name in sys.modules])"
    )
    assert said == "[]"


def test_a_late_import_is_refused_and_told_once() -> None:
    """Catches a name that is lost with the ImportError, and one told of the next picture."""
    said = python(
        f"{AFTER_ALL}\n"
        "for name in ('wave', 'wave', 'chunk'):\n"
        "    try:\n        __import__(name)\n"
        "    except ImportError as error:\n        print(error)\n"
        "print(late.told())\nprint(late.told())"
    )
    assert said == [
        "wave was not imported in time",
        "wave was not imported in time",
        "chunk was not imported in time",
        "['chunk', 'wave']",
        "[]",
    ]
