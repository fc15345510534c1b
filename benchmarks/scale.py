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
from cost_model import Backbone, Work, cached_bytes, checkpoint_bytes, flops, plain_flops
from gpu import BACKBONES, random_backbone
from measure import RESULTS, interleaved, write
from models import ours, score
from scipy.optimize import nnls
from scoring import BRANCH_LAYER, drawn

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

LLAMA_8B = Backbone(32, 4096, 14336, 32, 8, 128, 128256)
LLAMA_70B = Backbone(80, 8192, 28672, 64, 8, 128, 128256)
QWEN_06B = Backbone(28, 1024, 3072, 16, 8, 128, 151936)
H100, UTILIZATION, DOLLARS = 989e12, 0.4, 2.5  # bf16 operations per second; utilization; price per hour
ROW_BYTES = 600  # per response, of a scored row's JSON


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
    tables |= {"Sizes on disk, GB": sizes(shape), "What 10⁶ and 10⁹ responses need": projections()}
    rates = {name: float(f"{value:.3g}") for name, value in rates.items()}
    write("scale", "python benchmarks/scale.py", [], tables=tables, rates=rates, runs=RUNS)


def seconds_of(backbone: str, layer: int, shapes: Sequence[tuple[int, ...]]) -> dict[str, Any]:
    """Return the median seconds of every shape, and the backbone's shape."""
    models = {k: ours(backbone, "float32", k, layer, 1, "phase3.inputs=both") for k in sorted({k for *_, k in shapes})}
    works = [functools.partial(score, models[k], [drawn(*query)], 1 << 20) for *query, k in shapes]
    shape = Backbone.of(next(iter(models.values())).config.backbone_config)
    return {"backbone": shape, "seconds": dict(zip(shapes, interleaved(works, RUNS), strict=True))}


def work_of(key: tuple[int, ...], layer: int) -> Work:
    """Return a shape's work in the default recipe."""
    prompt, responses, tokens, experts = key
    return Work(prompt, responses, tokens, layer, experts, 2, RANK)


def terms(backbone: Backbone, work: Work) -> list[float]:
    """Return the quantity for each rate: linear, attention and LoRA operations, and layer calls of any size."""
    count = flops(backbone, work)
    calls = work.trunk + (backbone.layers - work.trunk) * (1 + work.plain)  # experts are stacked: one call
    return [count["linear"], count["attention"], count["lora"], calls]


def fit(backbone: Backbone, measured: Sequence[tuple[tuple[int, ...], float]]) -> dict[str, float]:
    """Fit the non-negative seconds of each term (per operation, per layer call) by relative error."""
    seconds = np.array([s for _, s in measured])
    matrix = np.array([terms(backbone, work_of(key, BRANCH_LAYER)) for key, _ in measured])
    scale = matrix.max(axis=0)
    costs = nnls(matrix / scale / seconds[:, None], np.ones(len(seconds)))[0] / scale
    linear, attention, lora, call = (float(cost) for cost in costs)
    return {"linear_s": linear, "attention_s": attention, "lora_s": lora, "layer_s": call}


def rows(
    backbone: Backbone,
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


def sizes(backbone: Backbone) -> list[dict[str, Any]]:
    """Return the size by the formula beside the size that footprint.py has measured."""
    measured = json.loads((RESULTS / "footprint.json").read_text(encoding="utf-8"))["bytes"]
    bytes_by_tasks = {1: measured["one_task"], 5: measured["five_tasks"]}
    return [
        {
            "checkpoint": f"SmolLM2-135M, {tasks} × 5 experts, float32",
            "formula": round(checkpoint_bytes(backbone, BRANCH_LAYER, tasks, 5, RANK) / 1e9, 3),
            "measured": round(size / 1e9, 3),
        }
        for tasks, size in bytes_by_tasks.items()
    ]


def projections() -> list[dict[str, Any]]:
    """Project P = 512, N = 4, R = 256, k = 5, five tasks and four fifths of the layers shared to H100s."""
    table = []
    for name, shape in (("0.6B", QWEN_06B), ("8B", LLAMA_8B), ("70B", LLAMA_70B)):
        trunk = shape.layers * 4 // 5
        work = Work(512, 4, 256, trunk)
        each = sum(flops(shape, work).values()) / work.responses
        weights = checkpoint_bytes(shape, trunk, 5, 5, RANK, size=2)
        for count in (1e6, 1e9):
            hours = count * each / (H100 * UTILIZATION) / 3600
            cache = cached_bytes(shape, count / work.responses * work.all_tokens)
            table.append(
                {
                    "backbone": name,
                    "responses": f"10^{round(np.log10(count))}",
                    "TFLOP per response": round(each / 1e12, 2),
                    "of a plain model's": round(each * work.responses / plain_flops(shape, work), 2),
                    "H100 hours": f"{hours:,.1f}" if hours < 100 else f"{hours:,.0f}",
                    "dollars": f"{hours * DOLLARS:,.0f}",
                    "weights, GB": round(weights / 1e9, 1),
                    "trunk cache, TB": f"{cache / 1e12:,.1f}",
                    "scores, GB": f"{count * ROW_BYTES / 1e9:,.1f}",
                }
            )
    return table


if __name__ == "__main__":
    main()
