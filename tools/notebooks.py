"""Run the notebooks of examples/ and store their output: `python tools/notebooks.py`.

    python tools/notebooks.py            all of them, side by side; CI does so (`make notebooks`)
    python tools/notebooks.py --check    run them, and leave the files as they are

Each runs in an empty folder, with this environment's commands first in the path. A cell that fails ends the program.
"""

from __future__ import annotations

import concurrent.futures
import os
import sys
import tempfile
import time
from pathlib import Path

import nbformat
from nbclient import NotebookClient

ROOT = Path(__file__).parents[1]
TIMEOUT = 300  # seconds of a cell


def main(arguments: list[str]) -> None:
    """Run every notebook."""
    os.environ["PATH"] = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
    os.environ |= {"PYTHONPATH": str(ROOT), "NO_COLOR": "1", "OMP_NUM_THREADS": "1", "TQDM_DISABLE": "1"}
    files = sorted((ROOT / "examples").glob("*.ipynb"))
    with concurrent.futures.ThreadPoolExecutor(len(files)) as pool:
        for file, seconds in zip(files, pool.map(lambda file: run(file, "--check" in arguments), files), strict=True):
            print(f"{file.name}: {seconds:.0f} s")


def run(file: Path, check: bool) -> float:
    """Run a notebook, store its output unless `check`, and return the seconds that it took."""
    started = time.monotonic()
    notebook = nbformat.read(file, as_version=4)
    with tempfile.TemporaryDirectory(prefix="notebook-") as folder:
        context = {"metadata": {"path": folder}}
        NotebookClient(notebook, timeout=TIMEOUT, kernel_name="python3", resources=context).execute()
    for cell in notebook.cells:
        cell.metadata.pop("execution", None)  # times, which differ each time
        if cell.cell_type == "code":
            cell.outputs = [output for output in cell.outputs if output.get("name") != "stderr"]  # progress
    if not check:
        nbformat.write(notebook, file)
    return time.monotonic() - started


if __name__ == "__main__":
    main(sys.argv[1:])
