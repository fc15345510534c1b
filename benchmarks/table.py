"""Puts the figures of results/*.json into docs/performance.md, between the marks `<!-- NAME -->` and `<!-- end -->`.

python benchmarks/table.py
"""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

from measure import RESULTS

PAGE = Path(__file__).parents[1] / "docs" / "performance.md"


def main() -> None:
    """Every result that there is."""
    text = PAGE.read_text(encoding="utf-8")
    for file in sorted(RESULTS.glob("*.json")):
        made = "\n".join([*rows(found := json.loads(file.read_text(encoding="utf-8"))), "", source(found)])
        mark = f"<!-- {file.stem} -->"
        text = re.sub(f"{mark}.*?<!-- end -->", lambda _, m=mark, t=made: f"{m}\n{t}\n<!-- end -->", text, flags=re.S)
    PAGE.write_text(text, encoding="utf-8")


def rows(found: dict[str, Any]) -> list[str]:
    """The rows, and what else was measured as a list."""
    head = ["| work | peer | ours, s | peer, s | peer / ours | runs |", "|---|---|---|---|---|---|"]
    table = [
        f"| {r['work']} | {r['peer']} | {r['ours_s']:.3f} | {r['peer_s']:.3f} | **{r['ratio']:.2f}** | {r['runs']} |"
        for r in found["rows"]
    ]
    known = ("command", "rows", "versions", "processor", "threads", "date")
    more = [f"* {name}: `{json.dumps(value)}`" for name, value in found.items() if name not in known]
    return [*(head + table if table else []), *([""] if table and more else []), *more]


def source(found: dict[str, Any]) -> str:
    """Where the figures come from."""
    versions = ", ".join(f"{name} {version}" for name, version in found["versions"].items())
    return f"`{found['command']}`, {found['date']}, {found['processor']}, {found['threads']} threads; {versions}."


if __name__ == "__main__":
    main()
