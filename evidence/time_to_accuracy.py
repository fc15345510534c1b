"""Accuracy on held-out prompts against training time: TRL's `RewardTrainer` beside the recipes of label_curve.py.

    python -m evidence.time_to_accuracy --files humour.jsonl --size 1000 --name humour
    python -m evidence.time_to_accuracy --task roleplay objective_qa --size 1000 --layers 6 4

    trl_full    all weights of the whole backbone
    trl_lora    a LoRA (rank 16) on all linear layers

TRL trains on the overall pairs, in bfloat16 passes with float32 weights, 16 pairs a step, batches of equal lengths; a
pair is its own example, as in its data format. Learning rate and warm-up are those with the lowest loss on a tenth of
the training prompts after an epoch of a share of the others (so early, accuracies differ by chance); the time for this
choice is not counted. The clock stops while the held-out prompts are scored. Of several tasks, TRL trains one model for
each (`each`) and one for all (`all`). dmoerm's seconds cover the whole training from an empty cache, with a general
model of exact heads; it uses the capability labels too where there are any. One seed. Results that are stored in the
output are not measured again.
"""

from __future__ import annotations

import argparse
import json
import shutil
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from random import Random
from statistics import fmean
from typing import Any

import numpy as np
import torch
from peft import LoraConfig
from rich.console import Console
from transformers import AutoTokenizer, TrainerCallback

from dmoerm.chat.encoding import Encoded, Encoder
from dmoerm.config import Config, load_config
from dmoerm.data.splits import held_out
from dmoerm.evaluation.metrics import right_pairs
from dmoerm.io.paths import write_file
from dmoerm.model.backbone import bundled_backbone
from dmoerm.schema import Group
from evidence import testbed
from evidence.conditions import Data
from evidence.label_curve import RECIPES, generated, human, measure
from evidence.measure import table as screen_table
from evidence.measure import write
from evidence.speed.training import trl_trainer

RATES = {"trl_full": (1e-5, 3e-5, 1e-4, 3e-4, 1e-3), "trl_lora": (1e-4, 3e-4, 1e-3, 3e-3, 1e-2)}
WARMUPS = (0.1, 0.0)  # shares of the steps; the second one is tried with the best rate
PAIRS = 16  # of a step
LORA = LoraConfig(task_type="SEQ_CLS", r=16, lora_alpha=32, target_modules="all-linear", modules_to_save=["score"])
POINTS = 6  # of a curve
Curve = list[tuple[float, float, float]]
"""Seconds of training, accuracy in percent, loss."""
Examples = Sequence[tuple[Group, Encoded]]


class Clock(TrainerCallback):
    """Measures accuracy while a trainer runs, at even distances, with the clock stopped."""

    def __init__(self, evaluate: Callable[[Any], tuple[float, float]], points: int) -> None:
        self.evaluate, self.points, self.curve, self.left_out = evaluate, points, Curve(), 0.0
        self.started = time.monotonic()

    def on_step_end(self, args: Any, state: Any, control: Any, model: Any = None, **_: Any) -> None:
        """Evaluate after a share of the steps; the first ones come earlier."""
        marks = {max(round(state.max_steps * (k / self.points) ** 2), 1) for k in range(1, self.points + 1)}
        if state.global_step in marks:
            stopped = time.monotonic()
            measured = self.evaluate(model)
            self.curve.append((stopped - self.started - self.left_out, *measured))
            self.left_out += time.monotonic() - stopped


def measured(model: Any, examples: Examples, pad: int) -> tuple[float, float]:
    """Return a sequence classifier's accuracy in percent and its loss of a pair, both the mean over tasks."""
    rows = [[*e.prompt, *ids] for _, e in examples for ids in e.responses]
    order = sorted(range(len(rows)), key=lambda i: len(rows[i]))
    rewards, training = torch.zeros(len(rows)), model.training
    model.eval()
    with torch.inference_mode(), torch.autocast("cpu", torch.bfloat16):
        for start in range(0, len(order), 32):
            part = [rows[i] for i in order[start : start + 32]]
            ids, mask = (torch.full((len(part), max(map(len, part))), fill) for fill in (pad, 0))
            for k, row in enumerate(part):
                ids[k, : len(row)], mask[k, : len(row)] = torch.tensor(row), 1
            rewards[order[start : start + 32]] = model(input_ids=ids, attention_mask=mask).logits[:, 0].float()
    model.train(training)
    right: dict[str, list[tuple[float, float, int]]] = {}
    parts = iter(rewards.split([len(e.responses) for _, e in examples]))
    for group, _ in examples:
        scores, pairs = next(parts).numpy().astype(np.float64), group.pairs()
        loss = sum(np.logaddexp(0, scores[pair.worse] - scores[pair.better]) for pair in pairs)
        right.setdefault(group.task or "", []).append((right_pairs(pairs, scores), loss, len(pairs)))
    sums = [np.sum(task, 0) for task in right.values()]
    return 100 * fmean(r / n for r, _, n in sums), fmean(loss / n for _, loss, n in sums)


def trl(
    kind: str, train: Examples, test: Examples, rate: float, warmup: float, epochs: float, points: int,
    layers: int | None = None,
) -> Curve:  # fmt: skip
    """Train one model by TRL on the first layers of the backbone, or on all; return its curve on the test examples."""
    pairs = [
        {"chosen_ids": [*e.prompt, *e.responses[p.better]], "rejected_ids": [*e.prompt, *e.responses[p.worse]]}
        for group, e in train
        for p in group.pairs()
    ]
    pairs.sort(key=lambda pair: max(map(len, pair.values())))  # batches of equal lengths, in a random order
    batches = [pairs[i : i + PAIRS] for i in range(0, len(pairs), PAIRS)]
    Random(0).shuffle(batches)
    clock = Clock(lambda model: measured(model, test, model.config.pad_token_id), points)
    trainer = trl_trainer(
        [pair for batch in batches for pair in batch],
        Path("runs/trl"),
        LORA if kind == "trl_lora" else None,
        torch.bfloat16 if kind == "trl_lora" else torch.float32,
        layers,
        [clock],
        num_train_epochs=epochs,
        per_device_train_batch_size=PAIRS,
        learning_rate=rate,
        warmup_steps=warmup,
        train_sampling_strategy="sequential",
        seed=0,
    )
    trainer.train()
    return clock.curve


def chosen(
    kind: str, train: Examples, validation: Examples, share: float, layers: int | None, file: Path
) -> dict[str, Any]:
    """Return the learning rate and warm-up with the lowest loss on the validation prompts, and all tried ones.

    Each is tried for an epoch of a share of the training groups. The file keeps what was tried, so that a stopped run
    does not try it again.
    """
    part = train[: max(round(share * len(train)), 1)]
    tried: list[list[float]] = json.loads(file.read_text(encoding="utf-8")) if file.exists() else []

    def best() -> list[float]:
        return min(tried, key=lambda row: row[-1])

    for rate, warmup in [*((rate, WARMUPS[0]) for rate in RATES[kind]), (None, WARMUPS[1])]:
        settings = rate or best()[0], warmup
        if list(settings) in [row[:2] for row in tried]:
            continue
        tried.append([*settings, *trl(kind, part, validation, *settings, 1, 1, layers)[-1][1:]])
        write_file(file, json.dumps(tried))
        Console(stderr=True).print(f"{kind} {tried[-1]}", markup=False)
    return {"rate": best()[0], "warmup": best()[1], "tried": tried}


def peer(
    kind: str, data: Data, encoder: Encoder, epochs: float, share: float, layers: int | None, folder: Path
) -> dict[str, Any]:
    """Return TRL's curves: of one model for each task, whose seconds add up, and of one model for all tasks."""

    def examples(groups: Sequence[Group]) -> Examples:
        return list(zip(groups, encoder.encode_all(groups), strict=True))

    tasks = sorted({group.task or "" for group in data.train})
    result: dict[str, Any] = {}
    for name, sets in {"each": [[task] for task in tasks], "all": [tasks]}.items():
        curves = []
        for names in sets if name == "each" or len(tasks) > 1 else []:
            groups = [group for group in data.train if group.task in names and group.pairs()]
            held = held_out(groups, 0.1, 0)
            train, validation = (
                examples([g for g, h in zip(groups, held, strict=True) if h == w]) for w in (False, True)
            )
            test = examples([group for group in data.test if group.task in names and group.pairs()])
            file = folder / f"{kind}-{'+'.join(names)}-tried.json"
            best = chosen(kind, train, validation, share, layers, file)
            curves.append(trl(kind, train, test, best["rate"], best["warmup"], epochs, POINTS, layers))
            result.setdefault("settings", {})["+".join(names)] = best
        if curves:
            result[name] = [[sum(p[0] for p in rows), fmean(p[1] for p in rows)] for rows in zip(*curves, strict=True)]
    return result


def table(results: Mapping[str, Any]) -> list[dict[str, str]]:
    """Return for each curve its best accuracy and the seconds until then."""
    rows = []
    for name, curves in results.items():
        for part in ("each", "all", "ours"):
            if part in curves:
                seconds, best = max(curves[part], key=lambda point: (point[1], -point[0]))
                models = {"each": "one model for each task", "all": "one model for all tasks", "ours": "dmoerm"}[part]
                cells = {"training": name, "models": models, "best accuracy, %": f"{best:.1f}"}
                rows.append(
                    {**cells, "seconds until then": f"{seconds:,.0f}", "seconds in all": f"{curves[part][-1][0]:,.0f}"}
                )
    return rows


def main(arguments: Sequence[str] | None = None) -> None:
    """Measure what is missing, and write the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--files", nargs="+", default=[], help="human-labeled data; without: the testbed")
    parser.add_argument("--task", nargs="+", default=list(testbed.TASKS), help="tasks of the testbed")
    parser.add_argument("--size", type=int, default=1000, help="groups of each task")
    parser.add_argument("--test", type=int, default=150, help="prompts of each task to test on, at most")
    parser.add_argument("--epochs", type=float, default=1, help="of TRL")
    parser.add_argument("--share", type=float, default=0.25, help="of TRL's training groups, to choose its rate")
    parser.add_argument("--peer-layers", type=int, help="of TRL's backbone; without: all, as it is used")
    parser.add_argument(
        "--layers", nargs=2, type=int, default=[20, 16], help="of ours: of the backbone, and of the trunk"
    )
    parser.add_argument("--recipe", nargs="+", default=["frozen", "finetune", "trl_lora", "trl_full"])
    parser.add_argument("--set", nargs="+", action="extend", default=[], metavar="A.B=VALUE", help="settings of ours")
    parser.add_argument("--name", help="store the results as results/time-to-accuracy-NAME.json")
    parser.add_argument("--output", type=Path, default=Path("runs/time-to-accuracy"))
    options = parser.parse_args(arguments)
    folder, results = options.output, dict[str, Any]()
    files = f"data.files=[{','.join(options.files)}]"
    layers = [f"backbone.num_layers={options.layers[0]}", f"backbone.branch_layer={options.layers[1]}"]
    for recipe in options.recipe:
        config: Config = load_config(None, [*RECIPES.get(recipe, RECIPES["frozen"]), files, *layers, *options.set])
        file = folder / f"{recipe}.json"
        if not file.exists():
            if options.files:
                data = human(config, options.size, options.test)
            else:
                data = generated(options.task, options.size, options.test, 0)
            if recipe in RATES:
                encoder = Encoder(AutoTokenizer.from_pretrained(str(bundled_backbone())), config.encoding)
                found = peer(recipe, data, encoder, options.epochs, options.share, options.peer_layers, folder)
            else:
                point = measure(recipe, config, data, "clean", folder / "run")
                share = [sum(c["right"]["dmoerm"]) / sum(c["pairs"]) for c in point["counts"].values()]
                found = {"ours": [[point["seconds"], 100 * fmean(share)]]}
                shutil.rmtree(folder / "run")
            write_file(file, json.dumps(found))
        results[recipe] = json.loads(file.read_text(encoding="utf-8"))
    command = " ".join(
        ["python", "-m", "evidence.time_to_accuracy", *(sys.argv[1:] if arguments is None else arguments)]
    )
    tables = {"Accuracy on held-out prompts, and seconds of training": table(results)}
    Console().print(screen_table(table(results)))
    if options.name:
        write(f"time-to-accuracy-{options.name}", command, [], tables=tables, curves=results)


if __name__ == "__main__":
    main()
