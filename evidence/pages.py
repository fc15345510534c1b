"""Fill the figures of results/ into README.md and docs/, between the marks `<!-- NAME -->` and `<!-- end -->`.

Benchmarks write results/*.json; all.py copies the results of experiments to results/experiments/*.json.

python -m evidence.pages
"""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

from evidence import claims, figures
from evidence import tables as experiment_tables
from evidence.measure import RESULTS

ROOT = Path(__file__).parents[1]


def main() -> None:
    """Fill all pages, and draw the pictures."""
    files = stored()
    figures.draw(files, ROOT / "docs")
    for page in [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]:
        page.write_text(filled(page.read_text(encoding="utf-8"), files), encoding="utf-8")


def stored() -> dict[str, Any]:
    """Return name → content of all results files."""
    return {file.stem: json.loads(file.read_text(encoding="utf-8")) for file in sorted(RESULTS.rglob("*.json"))}


def filled(text: str, files: dict[str, Any]) -> str:
    """Return the page with the figures between its marks."""
    for name, results in files.items():
        text = replaced(text, name, experiment_tables.tables(results) if "kind" in results else measured(results))
        if results.get("kind") == "comparison":
            text = replaced(text, f"short {name}", experiment_tables.short(results))
    for name, chosen in {"answers": claims.ANSWERS, "claims": claims.CLAIMS, "main claims": claims.MAIN}.items():
        text = replaced(text, name, claims.lines(files, chosen)) if f"<!-- {name} -->" in text else text
    return text


def replaced(text: str, name: str, lines: list[str]) -> str:
    """Return the text with these lines between the marks of a name."""
    table, mark = "\n".join(lines), f"<!-- {name} -->"
    return re.sub(f"{mark}.*?<!-- end -->", lambda _: f"{mark}\n{table}\n<!-- end -->", text, flags=re.S)


def measured(results: dict[str, Any]) -> list[str]:
    """Return the lines for the results of a benchmark."""
    return [*rows(results), *tables(results), "", source(results)]


def rows(results: dict[str, Any]) -> list[str]:
    """Return the table of rows, and the other figures as a list."""
    head = ["| work | peer | ours, s | peer, s | peer / ours | runs |", "|---|---|---|---|---|---|"]
    table = [
        f"| {r['work']} | {r['peer']} | {r['ours_s']:.3f} | {r['peer_s']:.3f} | **{r['ratio']:.2f}** | {r['runs']} |"
        for r in results["rows"]
    ]
    known = ("command", "rows", "tables", "curve", "curves", "versions", "processor", "threads", "date")
    more = [f"* {name}: `{json.dumps(value)}`" for name, value in results.items() if name not in known]
    return [*(head + table if table else []), *([""] if table and more else []), *more]


def tables(results: dict[str, Any]) -> list[str]:
    """Return each of the results' tables under its title."""
    lines: list[str] = []
    for title, table in results.get("tables", {}).items():
        lines += ["", f"{title}:", "", f"| {' | '.join(table[0])} |", "|" + "---|" * len(table[0])]
        lines += [f"| {' | '.join(str(value) for value in row.values())} |" for row in table]
    return lines


def source(results: dict[str, Any]) -> str:
    """Return the line that names command, date, machine and versions."""
    versions = ", ".join(f"{name} {version}" for name, version in results["versions"].items())
    return (
        f"`{results['command']}`, {results['date']}, {results['processor']}, {results['threads']} threads; {versions}."
    )


if __name__ == "__main__":
    main()
