"""Figures of `dmoerm benchmark` beside those of RewardBench's own code, on the same folder and the same rows.

The rows have the published formats; their texts are of the testbed, so that no download is needed: RewardBench 1 with
all its subsets, RewardBench 2 with `Ties`. RewardBench's code reads the folder as any sequence classifier, after
`import dmoerm`. Its figures of subsets and sections must equal those of `dmoerm benchmark`.

git clone https://github.com/allenai/reward-bench; pip install wandb
dmoerm train testbed --set backbone.dtype=float32 --set data.testbed_prompts=24 --set output=runs/rewardbench
python -m evidence.rewardbench_figures runs/rewardbench/model --code reward-bench
"""

from __future__ import annotations

import argparse
import json
import os
import re
import subprocess
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from rich.console import Console

from dmoerm.io.paths import write_file
from evidence import measure, testbed
from evidence.public_benchmarks import SECTIONS

_SUBSETS_2 = ("Factuality", "Precise IF", "Math", "Safety", "Focus")
# RewardBench 1 reads its rows from the hub; here, from a file. Its pipeline moves inputs to CUDA; without a GPU, they
# stay where they are. All else runs unchanged.
_STAY = """
import dmoerm, torch, transformers
if not torch.cuda.is_available():
    transformers.BatchEncoding.to = lambda self, *a, **k: self
"""
_RUN_1 = f"""
{_STAY}
import sys, datasets
load, file = datasets.load_dataset, sys.argv.pop(1)
datasets.load_dataset = lambda name, *a, **k: load("json", data_files=file, split="train")
from rewardbench.rewardbench import main
main()
"""
_RUN_2 = f"""
{_STAY}
from scripts.run_v2 import main
main()
"""
Figures = dict[str, float]
Row = dict[str, Any]


def main(arguments: Sequence[str] | None = None) -> None:
    """Run both codes on both benchmarks; exit with 1 if a figure differs."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", type=Path, help="folder of a model")
    parser.add_argument("--code", type=Path, required=True, help="a clone of allenai/reward-bench")
    parser.add_argument("--rows", type=int, default=4, help="rows of each subset")
    parser.add_argument("--output", type=Path, default=Path("runs/rewardbench"))
    options = parser.parse_args(arguments)
    model, code, folder = options.model.resolve(), options.code.resolve(), options.output.resolve()
    rows: list[Row] = []
    for name, made, peer in (
        ("rewardbench", rows_1(options.rows), peer_1),
        ("rewardbench2", rows_2(options.rows), peer_2),
    ):
        file = folder / f"{name}.jsonl"
        write_file(file, "".join(json.dumps(row) + "\n" for row in made))
        ours, theirs = product(name, model, file), peer(model, code, file)
        assert ours.keys() == theirs.keys(), ours.keys() ^ theirs.keys()
        rows += [
            {"benchmark": name, "figure": key, "ours": f"{ours[key]:.6f}", "theirs": f"{theirs[key]:.6f}"}
            for key in ours
        ]
    Console().print(measure.table(rows))
    commit = subprocess.run(["git", "-C", code, "rev-parse", "HEAD"], capture_output=True, text=True, check=False)
    title = f"`dmoerm benchmark` and RewardBench's own code ({commit.stdout.strip()[:7]})"
    command = f"python -m evidence.rewardbench_figures {options.model} --code {options.code}"
    measure.write("rewardbench_figures", command, [], tables={title: rows})
    sys.exit(any(abs(float(row["ours"]) - float(row["theirs"])) > 2e-6 for row in rows))


# --- the rows ------------------------------------------------------------------------------------------------------


def rows_1(count: int) -> Iterator[Row]:
    """Rows of RewardBench 1, `count` of each subset: the best response of four and the worst."""
    names = [name for names in SECTIONS.values() for name in names]
    for n, (name, (prompt, best_first)) in enumerate(zip(names * count, _ordered(31), strict=False)):
        row = {"prompt": prompt, "chosen": best_first[0], "rejected": best_first[-1], "id": n}
        yield row | {"subset": _published(name), "chosen_model": "testbed", "rejected_model": "testbed"}


def rows_2(count: int) -> Iterator[Row]:
    """Rows of RewardBench 2, `count` of each subset: the best of four; of `Ties`, the two best of four as well."""
    kinds = [(name, str(n), 1) for n in range(count) for name in _SUBSETS_2]
    kinds += [("Ties", f"ref:{n}", 1) for n in range(count)] + [("Ties", f"tied:{n}", 2) for n in range(count)]
    for (subset, identity, correct), (prompt, best_first) in zip(kinds, _ordered(32), strict=False):
        row = {"id": identity, "prompt": prompt, "subset": subset}
        row |= {"chosen": best_first[:correct], "rejected": best_first[correct:], "num_correct": correct}
        yield row | {"num_rejected": 4 - correct, "total_completions": 4, "models": ["testbed"] * 4}


def _ordered(seed: int) -> Iterator[tuple[str, list[str]]]:
    """Prompts with four responses of different gold, best first."""
    for group in testbed.generate(60, 4, seed):
        gold = {text: testbed.gold_reward(group.task or "", group.prompt, text) for text in group.responses}
        if isinstance(group.prompt, str) and len(set(gold.values())) == 4:
            yield group.prompt, sorted(gold, key=lambda text: -gold[text])


def _published(subset: str) -> str:
    return subset.replace("_", "-").replace("gptinst", "GPTInst").replace("gptout", "GPTOut")


# --- the figures ---------------------------------------------------------------------------------------------------


def product(name: str, model: Path, file: Path) -> Figures:
    """Return the figures of `dmoerm benchmark`: subsets and sections."""
    found = file.with_name(f"{name}.ours.json")
    command = [Path(sys.executable).with_name("dmoerm"), "benchmark", name, model, "--data", file]
    subprocess.run([*command, "--include-trained", "--json", found], check=True, stdout=subprocess.DEVNULL)
    (result,) = json.loads(found.read_text())["models"].values()
    sections = {} if name == "rewardbench2" else result["sections"]
    return {_key(key): value for key, (value, _) in result["subsets"].items()} | sections


def peer_1(model: Path, code: Path, file: Path) -> Figures:
    """Return the figures of RewardBench's command: subsets from the file that it writes, sections as it prints them."""
    command = [sys.executable, "-c", _RUN_1, file, "--model", model, "--not_quantized", "--torch_dtype", "float32"]
    said = _run([*command, "--output_dir", f"{file.parent}/peer/"], code)
    sections = re.findall(r"Results: (\{.*\})", said)
    assert sections, said[-3000:]
    subsets = json.loads(Path(f"{file.parent}/peer/{model}.json").read_text())["extra_results"]
    figures = {_key(name): value for name, value in subsets.items()}
    return figures | {name: float(value) for name, value in re.findall(r"'([^']+)': ([\d.]+)", sections[-1])}


def peer_2(model: Path, code: Path, file: Path) -> Figures:
    """Return the figures that the script for RewardBench 2 prints."""
    command = [sys.executable, "-c", _RUN_2, "--model", model, "--dataset", file, "--torch_dtype", "float32"]
    said = _run([*command, "--do_not_save", "--disable_beaker_save"], code, file.parent / "peer")
    subsets = re.findall(r"^([\w ]+): ([\d.]+)/(\d+) ", said, re.M)
    figures = {_key(name): float(right) / int(all) for name, right, all in subsets}
    (ties,) = re.findall(r"^Ties: Overall score ([-\d.e]+)", said, re.M)
    return figures | {"ties": float(ties)}


def _run(command: Sequence[Any], code: Path, folder: Path | None = None) -> str:
    paths = os.pathsep.join([str(code), os.environ.get("PYTHONPATH", "")])
    environment = os.environ | {"PYTHONPATH": paths, "WANDB_MODE": "disabled"}
    if folder is not None:
        folder.mkdir(parents=True, exist_ok=True)
    done = subprocess.run(
        [str(c) for c in command], env=environment, cwd=folder, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr[-3000:]
    return done.stdout + done.stderr


def _key(name: str) -> str:
    return re.sub(r"[^a-z0-9]+", "_", name.lower())


if __name__ == "__main__":
    main()
