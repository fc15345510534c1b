"""Run every benchmark, fill the pages, and print all rows in one table.

python -m evidence.speed [NAME …]          the benchmarks are scoring, training, serving, growth and start
"""

from __future__ import annotations

import subprocess
import sys
import time

from rich.console import Console

from evidence import pages
from evidence.measure import RESULTS, table

BENCHMARKS = ("scoring", "training", "serving", "growth", "start")

if __name__ == "__main__":
    started, chosen = time.time(), sys.argv[1:] or BENCHMARKS
    for name in chosen:
        subprocess.run([sys.executable, "-m", f"evidence.speed.{name}"], check=True)
    pages.main()
    files = pages.stored()
    if rows := [
        {"benchmark": name, **{key: str(value) for key, value in row.items()}}
        for name in chosen
        if (RESULTS / f"{name}.json").stat().st_mtime > started  # not skipped for want of data
        for row in files[name]["rows"]
    ]:
        Console().print(table(rows))
