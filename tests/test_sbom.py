"""The bill of materials."""

from __future__ import annotations

import re

from tests.processes import ROOT
from tests.sbom import bill_of


def test_every_pinned_package_is_in_the_bill_with_its_condition() -> None:
    """Catches packages that are lost on the way: a scanner would find nothing wrong with them."""
    pinned = (ROOT / "requirements/serve.txt").read_text()
    bill = bill_of("atproto-imageproxy", "1.2.3", pinned)
    listed = {f"{each['name']}=={each['version']}" for each in bill["components"]}
    assert listed == set(re.findall(r"(?m)^\S+==\S+", pinned))
    assert len(listed) == len({each["bom-ref"] for each in bill["components"]}) > 30
    assert bill["metadata"]["component"]["purl"] == "pkg:pypi/atproto-imageproxy@1.2.3"
    conditional = [each for each in bill["components"] if "scope" in each]
    assert len(conditional) == len(re.findall(r"(?m)^\S+==\S+ ;", pinned)) > 0
    (value,) = (each["properties"][0]["value"] for each in conditional if each["name"] == "cffi")
    assert value.endswith("platform_python_implementation != 'PyPy'")
