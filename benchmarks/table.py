"""Puts the figures of results/ into the pages of docs/, between the marks `<!-- NAME -->` and `<!-- end -->`.

results/*.json are the benchmarks' own; results/experiments/*.json are by `dmoerm compare` and its siblings.

python benchmarks/table.py
"""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import experiment_tables
from measure import RESULTS

DOCS = Path(__file__).parents[1] / "docs"


def main() -> None:
    """Every result that there is."""
    for page in sorted(DOCS.glob("*.md")):
        page.write_text(filled(page.read_text(encoding="utf-8")), encoding="utf-8")


def filled(text: str) -> str:
    """The page with the figures between its marks."""
    for file in sorted(RESULTS.rglob("*.json")):
        found = json.loads(file.read_text(encoding="utf-8"))
        made = "\n".join(experiment_tables.tables(found) if "kind" in found else measured(found))
        mark = f"<!-- {file.stem} -->"
        text = re.sub(f"{mark}.*?<!-- end -->", lambda _, m=mark, t=made: f"{m}\n{t}\n<!-- end -->", text, flags=re.S)
    return text


def measured(found: dict[str, Any]) -> list[str]:
    """What a benchmark has written."""
    return [*rows(found), *tables(found), "", source(found)]


def rows(found: dict[str, Any]) -> list[str]:
    """The rows, and what else was measured as a list."""
    head = ["| work | peer | ours, s | peer, s | peer / ours | runs |", "|---|---|---|---|---|---|"]
    table = [
        f"| {r['work']} | {r['peer']} | {r['ours_s']:.3f} | {r['peer_s']:.3f} | **{r['ratio']:.2f}** | {r['runs']} |"
        for r in found["rows"]
    ]
    known = ("command", "rows", "tables", "versions", "processor", "threads", "date")
    more = [f"* {name}: `{json.dumps(value)}`" for name, value in found.items() if name not in known]
    return [*(head + table if table else []), *([""] if table and more else []), *more]


def tables(found: dict[str, Any]) -> list[str]:
    """Title → rows, as they are."""
    lines: list[str] = []
    for title, table in found.get("tables", {}).items():
        lines += ["", f"{title}:", "", f"| {' | '.join(table[0])} |", "|" + "---|" * len(table[0])]
        lines += [f"| {' | '.join(str(value) for value in row.values())} |" for row in table]
    return lines


def source(found: dict[str, Any]) -> str:
    """Where the figures come from."""
    versions = ", ".join(f"{name} {version}" for name, version in found["versions"].items())
    return f"`{found['command']}`, {found['date']}, {found['processor']}, {found['threads']} threads; {versions}."


if __name__ == "__main__":
    main()
