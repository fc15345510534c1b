"""Run all trials, print their table, and write it to docs/reliability.md: `make chaos`."""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

from chaos.campaign import campaign

ROOT = Path(__file__).parents[2]


def main() -> int:
    """Run the trials; return 1 if anything is lost."""
    parser = argparse.ArgumentParser(prog="python -m chaos", description=__doc__)
    parser.add_argument("--seed", type=int, default=0, help="Random seed of the kill times and the damage.")
    parser.add_argument("--only", action="append", help="Prefix of the faults to try; other rows are kept.")
    options = parser.parse_args()
    started = time.monotonic()
    with tempfile.TemporaryDirectory(prefix="chaos-") as folder:
        faults = campaign(Path(folder), options.seed, lambda line: print(line, flush=True), options.only or [""])
    if not any(fault.tried for fault in faults):
        parser.error("no fault starts with the name given to --only")
    rows, minutes = [fault.row() for fault in faults], (time.monotonic() - started) / 60
    totals = {name: sum(row[name] for row in rows) for name in ("tried", "survived", "lost")}
    for row in [*rows, {"fault": f"all, in {minutes:.1f} minutes"} | totals]:
        print(f"{row['fault']:40} tried {row['tried']:3}  survived {row['survived']:3}  lost {row['lost']:3}")
    _write(rows, minutes, options.seed, bool(options.only))
    return int(any(fault.lost for fault in faults))


def _write(rows: list[dict[str, Any]], minutes: float, seed: int, only: bool) -> None:
    """Write evidence/results/chaos.json and docs/reliability.md."""
    from evidence import measure, pages

    file = measure.RESULTS / "chaos.json"
    if only and file.exists():
        known = json.loads(file.read_text(encoding="utf-8"))
        fresh = {row["fault"]: row for row in rows}
        rows = [fresh.get(row["fault"], row) for row in known["tables"]["Faults"]]
        minutes += known["minutes"]
    measure.write("chaos", "make chaos", [], tables={"Faults": rows}, seed=seed, minutes=round(minutes, 1))
    pages.main()


if __name__ == "__main__":
    sys.exit(main())
