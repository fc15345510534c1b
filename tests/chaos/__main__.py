"""The whole campaign, its table, and its figures in docs/reliability.md: `make chaos`."""

from __future__ import annotations

import argparse
import sys
import tempfile
import time
from pathlib import Path

from chaos.campaign import campaign

ROOT = Path(__file__).parents[2]


def main() -> int:
    """Exit code 1 where anything is lost."""
    parser = argparse.ArgumentParser(prog="python -m chaos", description=__doc__)
    parser.add_argument("--seed", type=int, default=0, help="Of the moments and the damage.")
    parser.add_argument("--only", default="", help="The beginning of a fault's name; nothing is then written.")
    chosen = parser.parse_args()
    began = time.monotonic()
    with tempfile.TemporaryDirectory(prefix="chaos-") as folder:
        faults = campaign(Path(folder), chosen.seed, lambda line: print(line, flush=True), chosen.only)
    rows = [fault.row() for fault in faults]
    for row in rows:
        print(f"{row['fault']:40} tried {row['tried']:3}  survived {row['survived']:3}  lost {row['lost']:3}")
    if not chosen.only:
        _write(rows, time.monotonic() - began, chosen.seed)
    return int(any(fault.lost for fault in faults))


def _write(rows: list[dict[str, object]], seconds: float, seed: int) -> None:
    sys.path.insert(0, str(ROOT / "benchmarks"))
    import measure
    import table

    measure.write("chaos", "make chaos", [], tables={"Faults": rows}, seed=seed, minutes=round(seconds / 60, 1))
    table.main()


if __name__ == "__main__":
    sys.exit(main())
