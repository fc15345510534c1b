"""Remake every table and figure of README.md and docs/results.md from nothing, and check every claim.

Experiments run one after the other; each resumes after a kill, and a finished one is not run again. Their results are
copied to results/, pages.py fills the pages, and a claim that does not hold any more ends the run with an error.

    python -m evidence.all                      all of it: about two days on two cores
    python -m evidence.all --only compare_human
    python -m evidence.all --small              the same commands in miniature, in eleven minutes: every
                                                       command works and every table can be made; pages stay as they are
"""

from __future__ import annotations

import argparse
import json
import os
import re
import shlex
import shutil
import subprocess
import sys
import time
from collections.abc import Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import yaml
from rich.console import Console

from evidence import claims, pages
from evidence.measure import RESULTS

ROOT = Path(__file__).parents[1]
EXPERIMENTS_DIR = RESULTS / "experiments"


@dataclass(frozen=True)
class Experiment:
    """One entry of all.yaml."""

    name: str
    command: str
    small: str
    result: str | None = None
    data: bool | str = True


def experiments() -> list[Experiment]:
    """Read all.yaml."""
    document = yaml.safe_load(Path(__file__).with_suffix(".yaml").read_text(encoding="utf-8"))
    entries = []
    for name, entry in document["experiments"].items():
        commands = {key: entry[key].format(**document["words"]) for key in ("command", "small")}
        entries.append(Experiment(name, **{**entry, **commands}))
    return entries


def main(arguments: Sequence[str] | None = None) -> None:
    """Run what is missing, fill the pages and check the claims."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--small", action="store_true", help="run each experiment in miniature")
    parser.add_argument("--only", nargs="+", metavar="NAME", help="run some experiments")
    parser.add_argument("--list", action="store_true", help="print the commands")
    options = parser.parse_args(arguments)
    console = Console(soft_wrap=True, highlight=False)
    chosen = [e for e in experiments() if not options.only or e.name in options.only]
    if unknown := set(options.only or ()) - {e.name for e in chosen}:
        parser.error(f"unknown experiment {min(unknown)}; --list names all")
    if options.list:
        for experiment in chosen:
            command = experiment.small if options.small else experiment.command
            console.print(f"{experiment.name}: {command}", markup=False)
        return
    if options.small:
        measure_small(chosen, console)
    else:
        for experiment in chosen:
            measure(experiment, experiment.command, console, small=False)
    finish(console, options.small)


def measure_small(chosen: Sequence[Experiment], console: Console) -> None:
    """Run the experiments in miniature, two at a time; one waits for the earlier ones that use the same files."""
    os.environ["OMP_NUM_THREADS"] = "1"
    files = [set(re.findall(r"runs/[\w.-]+", experiment.small)) for experiment in chosen]
    with ThreadPoolExecutor(2) as pool:
        running: list[Future[None]] = []

        def run(index: int) -> None:
            for earlier in range(index):
                if files[earlier] & files[index]:
                    running[earlier].result()
            measure(chosen[index], chosen[index].small, console, small=True)

        for index in range(len(chosen)):
            running.append(pool.submit(run, index))
        for each in running:
            each.result()


def measure(experiment: Experiment, command: str, console: Console, small: bool) -> None:
    """Run an experiment and copy its results; without its data, say so."""
    data = os.environ.get("DMOERM_DATA")
    needed = Path(data or "", experiment.data if isinstance(experiment.data, str) else "")
    if experiment.data and not (data and needed.exists()):
        hint = "set DMOERM_DATA to the folder that `python -m evidence.human_data FOLDER` filled"
        console.print(f"{experiment.name}: skipped; {hint}", markup=False)
        return
    folder = ROOT / "runs" / "evidence-small" if small else ROOT / "runs"
    words = shlex.split(os.path.expandvars(command).replace("runs/", f"{folder.relative_to(ROOT)}/"))
    console.print(f"{experiment.name}: {command}", markup=False)
    started = time.monotonic()
    program = {"dmoerm": [sys.executable, "-m", "dmoerm"], "python": [sys.executable]}[words[0]]
    variables = {**os.environ, "PYTHONPATH": "tests"}  # of judge_labels.py, whose fake judge the tests have
    done = subprocess.run([*program, *words[1:]], cwd=ROOT, env=variables, stdout=subprocess.DEVNULL, check=False)
    if done.returncode:
        raise SystemExit(f"{experiment.name} failed; the same command resumes it: {command}")
    console.print(f"{experiment.name}: {(time.monotonic() - started) / 60:.1f} minutes", markup=False)
    if experiment.result:
        target = folder / "results" if small else EXPERIMENTS_DIR
        target.mkdir(parents=True, exist_ok=True)
        shutil.copy(folder / experiment.result, target / f"{experiment.name}.json")


def finish(console: Console, small: bool) -> None:
    """Fill the pages from the results and check the claims; with `small`, only try to."""
    if small:
        for file in sorted((ROOT / "runs" / "evidence-small" / "results").glob("*.json")):
            marks = f"<!-- {file.stem} -->\n<!-- end -->\n<!-- short {file.stem} -->\n<!-- end -->"
            filled = pages.filled(marks, {file.stem: json.loads(file.read_text(encoding="utf-8"))})
            console.print(f"{file.stem}: tables of {len(filled.splitlines())} lines", markup=False)
    else:
        pages.main()
    console.print(
        f"{len(claims.rows(pages.stored(), claims.ANSWERS + claims.CLAIMS))} claims hold for the stored results"
    )


if __name__ == "__main__":
    main()
