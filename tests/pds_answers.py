"""The table of what PDSes answer, as ``docs/moderation-upstream.md`` shows it."""

from __future__ import annotations

from pathlib import Path

from proxy.accounts.pds_answers import ROWS, Row

DOCUMENT = Path(__file__).parent.parent / "docs/moderation-upstream.md"

BEGIN, END = "<!-- answers: made by ./run docs -->", "<!-- answers end -->"


def moderation_upstream() -> str:
    """The document, with the table made anew from the code."""
    before, _, rest = DOCUMENT.read_text(encoding="utf-8").partition(BEGIN)
    _, _, after = rest.partition(END)
    lines = ["| status | with | means | seen at |", "|---|---|---|---|", *map(_line, ROWS)]
    return f"{before}{BEGIN}\n\n" + "\n".join(lines) + f"\n\n{END}{after}"


def _line(row: Row) -> str:
    condition = f"`{row.name}`" if row.name else ""
    if row.message:
        condition = f"a message that begins with “{row.message}”"
    return f"| {row.shown} | {condition} | {row.verdict} | {'; '.join(row.sources)} |"
