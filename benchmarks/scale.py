"""Check the cost model against measurements on one machine, and project it to larger ones.

Rates are fitted to SmolLM2-135M at some shapes and checked at other shapes and on two random backbones with the shapes
of Qwen3-0.6B and Llama-3.2-1B, in float32 on two cores. Larger machines are projected from stated assumptions.

python benchmarks/scale.py            writes results/scale.json; docs/scale.md shows it
"""

from __future__ import annotations

import functools
import json
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from gpu import BACKBONES, random_backbone
from measure import RESULTS, interleaved, write
from models import ours, score
from scipy.optimize import nnls
from scoring import BRANCH_LAYER, drawn

from dmoerm.config import load_config
from dmoerm.planning import (
    BackboneShape,
    Recipe,
    Work,
    Workload,
    checkpoint_bytes,
    flops,
    make_plan,
    parse_machine,
    read_shape,
)

RUNS, RANK = 3, 16
LLAMA_1B = {
    "model_type": "llama",
    "hidden_size": 2048,
    "intermediate_size": 8192,
    "num_hidden_layers": 16,
    "num_attention_heads": 32,
    "num_key_value_heads": 8,
    "head_dim": 64,
    "vocab_size": 128256,
}
FITTED = [(32, 2, 64, 1), (32, 2, 64, 5), (128, 4, 128, 1), (128, 4, 128, 5), (128, 16, 64, 5), (512, 4, 64, 2)]
CHECKED = [(64, 4, 32, 3), (256, 4, 128, 5), (512, 8, 128, 5), (128, 4, 128, 8)]
LARGER = [(64, 4, 32, 5), (128, 4, 64, 5), (256, 2, 128, 2)]
"""P, N, R, k."""
PROJECTION = "What 10⁶ responses need"

PROJECTED = {
    "0.6B": "Qwen/Qwen3-0.6B",
    "8B": "meta-llama/Llama-3.1-8B-Instruct",
    "70B": "meta-llama/Llama-3.1-70B-Instruct",
}


def main() -> None:
    """Fit, check and project."""
    small = seconds_of("smollm2", BRANCH_LAYER, [*FITTED, *CHECKED])
    shape = small.pop("backbone")
    rates = fit(shape, [(key, small["seconds"][key]) for key in FITTED])
    tables = {
        "SmolLM2-135M, shapes that were not fitted": rows(shape, BRANCH_LAYER, CHECKED, small["seconds"], rates),
    }
    for title, settings in (("Qwen3-0.6B's shape", BACKBONES["qwen3_0.6b"]), ("Llama-3.2-1B's shape", LLAMA_1B)):
        layer = settings["num_hidden_layers"] * 4 // 5
        with tempfile.TemporaryDirectory() as root:
            larger = seconds_of(random_backbone(settings, Path(root), "cpu"), layer, LARGER)
        tables[f"{title}, random weights"] = rows(larger["backbone"], layer, LARGER, larger["seconds"], rates)
    tables |= {"Sizes on disk, GB": sizes(shape), PROJECTION: projections()}
    rates = {name: float(f"{value:.3g}") for name, value in rates.items()}
    write("scale", "python benchmarks/scale.py", [], tables=tables, rates=rates, runs=RUNS)


def seconds_of(backbone: str, layer: int, shapes: Sequence[tuple[int, ...]]) -> dict[str, Any]:
    """Return the median seconds of every shape, and the backbone's shape."""
    models = {k: ours(backbone, "float32", k, layer, 1, "phase3.inputs=both") for k in sorted({k for *_, k in shapes})}
    works = [functools.partial(score, models[k], [drawn(*query)], 1 << 20) for *query, k in shapes]
    shape = BackboneShape.of(next(iter(models.values())).config.backbone_config)
    return {"backbone": shape, "seconds": dict(zip(shapes, interleaved(works, RUNS), strict=True))}


def work_of(key: tuple[int, ...], layer: int) -> Work:
    """Return a shape's work in the default recipe."""
    prompt, responses, tokens, experts = key
    return Work(prompt, responses, tokens, layer, experts, 2, RANK)


def terms(backbone: BackboneShape, work: Work) -> list[float]:
    """Return the quantity for each rate: linear, attention and LoRA operations, and layer calls of any size."""
    count = flops(backbone, work)
    calls = work.trunk + (backbone.layers - work.trunk) * (1 + work.plain)  # experts are stacked: one call
    return [count["linear"], count["attention"], count["lora"], calls]


def fit(backbone: BackboneShape, measured: Sequence[tuple[tuple[int, ...], float]]) -> dict[str, float]:
    """Fit the non-negative seconds of each term (per operation, per layer call) by relative error."""
    seconds = np.array([s for _, s in measured])
    matrix = np.array([terms(backbone, work_of(key, BRANCH_LAYER)) for key, _ in measured])
    scale = matrix.max(axis=0)
    costs = nnls(matrix / scale / seconds[:, None], np.ones(len(seconds)))[0] / scale
    linear, attention, lora, call = (float(cost) for cost in costs)
    return {"linear_s": linear, "attention_s": attention, "lora_s": lora, "layer_s": call}


def rows(
    backbone: BackboneShape,
    layer: int,
    shapes: Sequence[tuple[int, ...]],
    seconds: dict[tuple[int, ...], float],
    rates: dict[str, float],
) -> list[dict[str, Any]]:
    """Return a row per shape with measured and predicted seconds."""
    table = []
    for key in shapes:
        predicted = float(np.dot(list(rates.values()), terms(backbone, work_of(key, layer))))
        count = sum(flops(backbone, work_of(key, layer)).values())
        table.append(
            {
                "P": key[0],
                "N": key[1],
                "R": key[2],
                "k": key[3],
                "GFLOP": round(count / 1e9),
                "measured, s": round(seconds[key], 3),
                "predicted, s": round(predicted, 3),
                "predicted / measured": round(predicted / seconds[key], 2),
            }
        )
    return table


def sizes(backbone: BackboneShape) -> list[dict[str, Any]]:
    """Return the size by the formula beside the size that footprint.py has measured."""
    measured = json.loads((RESULTS / "footprint.json").read_text(encoding="utf-8"))["bytes"]
    bytes_by_tasks = {1: measured["one_task"], 5: measured["five_tasks"]}
    return [
        {
            "checkpoint": f"SmolLM2-135M, {tasks} × 5 experts, float32",
            "formula": round(checkpoint_bytes(backbone, BRANCH_LAYER, 1 + tasks, 5 * tasks, RANK) / 1e9, 3),
            "measured": round(size / 1e9, 3),
        }
        for tasks, size in bytes_by_tasks.items()
    ]


def projections() -> list[dict[str, Any]]:
    """Project 10⁶ responses at P = 512, R = 256, five tasks of five capabilities, to one H100."""
    table = []
    for name, path in PROJECTED.items():
        for config in ("fast", "finetune"):
            recipe = Recipe.of(load_config(config), read_shape(path), 5, 5)
            for responses in (2, 4, 16):
                workload = Workload(10_000, 512, 256, responses, 1_000_000)
                plan = make_plan(recipe, workload, parse_machine("H100"))
                table.append(
                    {
                        "backbone": name,
                        "config": config,
                        "N": responses,
                        "TFLOP per response": round(plan.scoring.flops / 1e6 / 1e12, 2),
                        "of a plain model's": round(plan.ratio, 2),
                        "H100 hours": round(plan.scoring.seconds / 3600, 1),
                        "dollars": round(plan.scoring.dollars),
                        "weights, GB": round(plan.model / 1e9, 1),
                        "scoring, GB": round(plan.scoring.memory / 1e9, 1),
                        "training, GB": round(plan.training.memory / 1e9, 1),
                        "cache of 10⁴ prompts, GB": round(plan.cache / 1e9, 1),
                    }
                )
    return table


if __name__ == "__main__":
    main()
