"""The commands in the documents."""

from __future__ import annotations

import re


def blocks(text: str, language: str) -> list[str]:
    """What stands between the fences of a language."""
    return re.findall(rf"^```{language}\n(.*?)^```$", text, re.MULTILINE | re.DOTALL)


def shell_lines(text: str) -> list[str]:
    """Every line that people are told to type, continued lines joined."""
    joined = "".join(blocks(text, "sh")).replace("\\\n", " ")
    return [line.strip() for line in joined.splitlines() if line.strip(" #")]
