"""Checks of the benchmarks without measuring: they start, and the pages show their figures."""

import json
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch

BENCHMARKS = Path(__file__).parents[1] / "benchmarks"


@pytest.mark.slow
@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU: make bench-gpu measures on it")
def test_gpu_rows_are_skipped_without_a_gpu():
    done = subprocess.run([sys.executable, BENCHMARKS / "gpu.py"], capture_output=True, text=True, check=True)
    assert done.stdout == "skipped: there is no GPU\n"


def test_the_page_shows_the_figures(tmp_path):
    """table.py makes the tables in docs/ from results/*.json."""
    root = BENCHMARKS.parent
    for name in ("benchmarks", "docs"):
        shutil.copytree(root / name, tmp_path / name, ignore=shutil.ignore_patterns("__pycache__"))
    shutil.copy(root / "README.md", tmp_path)
    subprocess.run([sys.executable, tmp_path / "benchmarks" / "table.py"], check=True)
    for page in [root / "README.md", *(root / "docs").glob("*.md")]:
        filled = tmp_path / page.relative_to(root)
        assert filled.read_text(encoding="utf-8") == page.read_text(encoding="utf-8")
    pages = "".join(page.read_text(encoding="utf-8") for page in (root / "docs").glob("*.md"))
    for file in (root / "benchmarks" / "results").glob("*.json"):
        for row in json.loads(file.read_text())["rows"]:
            assert row["ratio"] == pytest.approx(row["peer_s"] / row["ours_s"], rel=0.01)
            assert f"**{row['ratio']:.2f}**" in pages
