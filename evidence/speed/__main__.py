"""Run every benchmark, fill the pages, and print all rows in one table.

python -m evidence.speed [NAME …]          the benchmarks are scoring, training, serving, growth and start
"""

from __future__ import annotations

import subprocess
import sys

from rich.console import Console

from evidence import pages
from evidence.measure import table

BENCHMARKS = ("scoring", "training", "serving", "growth", "start")

if __name__ == "__main__":
    chosen = sys.argv[1:] or BENCHMARKS
    for name in chosen:
        subprocess.run([sys.executable, "-m", f"evidence.speed.{name}"], check=True)
    pages.main()
    files = pages.stored()
    rows = [
        {"benchmark": name, **{key: str(value) for key, value in row.items()}}
        for name in chosen
        for row in files[name]["rows"]
    ]
    Console().print(table(rows))
