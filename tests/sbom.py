"""The bill of materials of an installation: what ``requirements/serve.txt`` pins, as CycloneDX 1.6.

``./run package`` writes it beside the wheel. Pure.
"""

from __future__ import annotations

import re
from typing import Any

Component = dict[str, Any]

_PINNED = re.compile(r"^([A-Za-z0-9._-]+)==([^\s;\\]+)(?: *; *([^\\\n]*[^\\\s]))?", re.MULTILINE)


def bill_of(name: str, version: str, requirements: str) -> dict[str, Any]:
    """The document, for a release and the text of a file of pinned requirements.

    What is installed on some platforms alone has the scope ``optional``, and its condition as the
    property ``marker`` (PyPA, "Dependency specifiers").
    """
    components = [_component(*pinned) for pinned in _PINNED.findall(requirements)]
    release = _component(name, version, "") | {"type": "application"}
    return {
        "bomFormat": "CycloneDX",
        "specVersion": "1.6",
        "version": 1,
        "metadata": {"component": release},
        "components": components,
    }


def _component(name: str, version: str, marker: str) -> Component:
    purl = f"pkg:pypi/{re.sub(r'[-_.]+', '-', name).lower()}@{version}"
    component: Component = {
        "type": "library",
        "bom-ref": purl,
        "name": name,
        "version": version,
        "purl": purl,
    }
    if marker:
        component["scope"] = "optional"
        component["properties"] = [{"name": "marker", "value": marker}]
    return component
