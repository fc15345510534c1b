"""Accuracy of the kinds of experts over the size of the training part, on one file of preference data.

    head     linear on the pooled states of the pretrained branch, fitted exactly
    lora     the branch with a LoRA on all tokens
    branch   the branch with all its weights trained

All see the same overall preferences, as one capability, and start from the fitted head. Learning rate and number of
epochs have the lowest loss on the validation prompts; test prompts choose nothing. Each finished fit is stored, so a
killed call continues.

python -m evidence.learning_curves humour.jsonl --groups 300 1000 0 --seed 10 --output runs/curves/humour
"""

from __future__ import annotations

import argparse
import copy
import json
import time
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from rich.console import Console
from rich.table import Table
from torch import Tensor

from dmoerm.bootstrap import mean_interval
from dmoerm.config import Config, changed, load_config
from dmoerm.data.splits import load_splits
from dmoerm.data.splitting import take_groups
from dmoerm.evaluation.metrics import right_pairs
from dmoerm.io.paths import write_file
from dmoerm.model.heads import BranchScorer, Head
from dmoerm.training.batches import PreferenceExample
from dmoerm.training.embedding import base_embeddings
from dmoerm.training.exact_solver import fit_heads
from dmoerm.training.examples import examples_of
from dmoerm.training.phases import apply_base, train_base
from dmoerm.training.progress import Progress
from dmoerm.training.run import prepare, split_examples
from dmoerm.training.steps import Run

KINDS = ("head", "lora", "branch")
RATES = {"lora": (1e-3, 3e-3), "branch": (1e-4, 3e-4)}
EPOCHS = {"lora": 3, "branch": 3}
Examples = Sequence[PreferenceExample]
Row = dict[str, Any]


def main(arguments: Sequence[str] | None = None) -> None:
    """Measure what is missing, and print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("file", help="preference data with overall scores")
    parser.add_argument("--kind", nargs="+", choices=KINDS, default=list(KINDS))
    parser.add_argument("--groups", nargs="+", type=int, default=[0], help="training groups of each task; 0: all")
    parser.add_argument("--seed", nargs="+", type=int, default=[10])
    parser.add_argument(
        "--set", action="append", default=[], metavar="A.B=VALUE", help="change a setting of finetune.yaml"
    )
    parser.add_argument("--output", type=Path, required=True, help="folder of the results")
    options = parser.parse_args(arguments)
    rows: list[Row] = []
    for seed in options.seed:
        settings = [f"data.files=[{options.file}]", f"seed={seed}", f"output={options.output}/seed{seed}", *options.set]
        rows += measure(load_config("finetune", settings), options.kind, options.groups)
    write_file(options.output / "rows.json", json.dumps(rows) + "\n")
    Console().print(table(rows))


def measure(config: Config, kinds: Sequence[str], sizes: Sequence[int]) -> list[Row]:
    """Return one row per kind and size."""
    run, train, validation, test = prepared(config)
    rows = []
    for size in sizes:
        groups = [e.group for e in train]
        kept = {id(g) for g in (take_groups(groups, size, config.seed) if size else groups)}
        part = [e for e, group in zip(train, groups, strict=True) if id(group) in kept]
        for kind in kinds:
            file, settings = Path(config.output) / f"{kind}-{size}.json", [RATES.get(kind), EPOCHS.get(kind)]
            settings = json.loads(json.dumps(settings))  # as they are read back
            if not file.exists() or json.loads(file.read_text())["settings"] != settings:
                row = _row(run, kind, part, validation, test) | {"settings": settings}
                write_file(file, json.dumps(row) + "\n")
            rows.append(json.loads(file.read_text()) | {"seed": config.seed, "size": size})
            print(json.dumps({k: v for k, v in rows[-1].items() if k != "prompts"}), flush=True)
    return rows


def prepared(config: Config) -> tuple[Run, Examples, Examples, Examples]:
    """Return a run without steps, and the training, validation and test groups that people order, with activations."""
    data = load_splits(config)
    run = prepare(config, data.taxonomy, Path(config.output), Progress(Console(stderr=True)))
    train, validation = split_examples(run, [g for g in data.train if g.pairs()])
    test = examples_of(run, [g for g in data.test if g.pairs()])
    run.cache.fill([e.encoded for e in (*train, *validation, *test)])
    return run, train, validation, test


def _row(run: Run, kind: str, train: Examples, validation: Examples, test: Examples) -> Row:
    started = time.monotonic()
    rewards, details = FITS[kind](run, kind, train, validation, test)
    prompts: dict[str, list[float]] = {}
    for e in test:
        pairs = e.group.pairs()  # without the label noise of the settings
        prompts.setdefault(e.prompt, []).append(right_pairs(pairs, rewards[e.key].numpy()) / len(pairs))
    shares = {prompt: float(np.mean(values)) for prompt, values in prompts.items()}
    row = {"kind": kind, "groups": len(train), "accuracy": float(np.mean(list(shares.values())))}
    return row | {"seconds": time.monotonic() - started, "prompts": shares} | details


# --- the kinds -----------------------------------------------------------------------------------------------------


def _fitted_head(run: Run, train: Examples, vectors: dict[str, Tensor]) -> Head:
    head = copy.deepcopy(run.model.general.head)
    head.normalizer.fit(torch.cat([vectors[e.key] for e in train]))
    fit_heads([head], [None], train, vectors, run.config.seed)
    return head


def _fit_head(run: Run, _: str, train: Examples, validation: Examples, test: Examples) -> tuple[dict[str, Tensor], Row]:
    vectors = base_embeddings(run, run.model.general, [*train, *test])
    head = _fitted_head(run, train, vectors)
    with torch.no_grad():
        return {e.key: head(vectors[e.key]) for e in test}, {}


def _fit_branch(run: Run, kind: str, train: Examples, validation: Examples, test: Examples) -> Any:
    """Train the branch, or its LoRA, at each rate, and keep the one with the lowest validation loss."""
    best: tuple[float, float, Any] | None = None
    losses = {}
    for rate in RATES[kind]:
        settings = {"phase1.learning_rate": rate, "phase1.epochs": EPOCHS[kind], "phase1.patience": 2}
        settings |= {"base": "lora", "base_lora.rank": 8, "base_lora.alpha": 16.0} if kind == "lora" else {}
        here = replace(run, config=changed(run.config, settings))
        folder = run.folder / "checkpoints" / f"{kind}-{len(train)}-{rate}"
        with run.progress.step(f"{kind}, {len(train)} groups, rate {rate}"):
            state, metrics = train_base(here, run.model.general, train, validation, here.config.phase1, folder)
        losses[str(rate)] = metrics["loss"]
        if best is None or metrics["loss"] < best[0]:
            best = metrics["loss"], rate, state
    assert best is not None
    scorer = BranchScorer(
        copy.deepcopy(run.model.general.branch), copy.deepcopy(run.model.general.head), run.model.general.pooling
    )
    apply_base(scorer, best[2])
    vectors = base_embeddings(run, scorer, test)
    with torch.no_grad():
        return {e.key: scorer.head(vectors[e.key]) for e in test}, {"rate": best[1], "losses": losses}


FITS = {"head": _fit_head, "lora": _fit_branch, "branch": _fit_branch}


# --- the table -----------------------------------------------------------------------------------------------------


def table(rows: Sequence[Row]) -> Table:
    """Return accuracy by size and kind, and the difference to `head` with its 95 % interval over prompts and seeds."""
    result = Table("groups", "kind", "accuracy, %", "− head, points (95 %)", "seeds", "seconds")
    for size in dict.fromkeys(row["size"] for row in rows):
        for kind in KINDS:
            some = [row for row in rows if (row["size"], row["kind"]) == (size, kind)]
            if not some:
                continue
            heads = {row["seed"]: row["prompts"] for row in rows if (row["size"], row["kind"]) == (size, "head")}
            gains: dict[str, list[float]] = {}
            for row in some:
                for prompt, share in row["prompts"].items():
                    if prompt in heads.get(row["seed"], {}):
                        gains.setdefault(prompt, []).append(share - heads[row["seed"]][prompt])
            text = ""
            if gains and kind != "head":
                column = 100 * np.array([[np.mean(values)] for values in gains.values()])
                ((low, high),) = mean_interval(column)
                text = f"{column.mean():+.1f} ({low:+.1f} to {high:+.1f})"
            accuracy = 100 * np.mean([row["accuracy"] for row in some])
            seconds = np.mean([row["seconds"] for row in some])
            groups = str(round(np.mean([row["groups"] for row in some])))
            result.add_row(groups, kind, f"{accuracy:.1f}", text, str(len(some)), f"{seconds:.0f}")
    return result


if __name__ == "__main__":
    main()
