"""Compare scoring speed with the peers of models.py on the bundled backbone (k = 5 experts).

    python -m evidence.speed.scoring          prints the rows and writes results/scoring.json

`plain` runs all 30 layers. Ours run the router and

    experts   the paper's reward: five LoRA experts on the last 6 layers and its aggregator over embeddings; the PEFT
              peers compute the same five embeddings, without a reward
    lora      the five LoRA experts and phase 1, with a linear aggregator: six passes over them
    head      five heads on the branch of phase 1: one pass (the recipe `finetune`)
    frozen    the recipe `frozen`: heads on a branch that all tasks share, on the first 20 of the 30 layers

A table takes the time of `frozen` at the first shape apart, by the kernels of PyTorch's profiler.
"""

from __future__ import annotations

import functools
import itertools
import time
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import torch
from peft import PeftModel
from torch import nn
from torch.profiler import ProfilerActivity, profile

from dmoerm.chat.encoding import Encoded
from dmoerm.model import DMoERM
from dmoerm.model.backbone import bundled_backbone
from dmoerm.model.loading import prepare_process
from evidence.measure import Row, interleaved, row, write
from evidence.speed.models import (
    adapters,
    ours,
    peft_loop,
    peft_mixed,
    plain_model,
    plainly,
    score,
    sequences,
)

SHAPES = ((128, 4, 128), (512, 16, 128), (32, 2, 64))  # prompt tokens, responses, tokens per response
K, BRANCH_LAYER, RUNS = 5, 24, 3
KINDS = {
    "experts": ("phase3.inputs=embeddings",),
    "lora": ("phase3.inputs=scores", "phase3.base_scores=[per_task]"),
    "head": ("phase3.inputs=scores", "phase3.base_scores=[per_task]", "phase2={fit: exact}"),
    "frozen": ("extends=frozen", "phase2={fit: exact}", "phase3={fit: exact}"),
}
KERNELS = {
    "matrix products of linear layers": ("mm", "addmm", "mkldnn_linear"),
    "attention": ("bmm", "baddbmm", "_softmax", "_scaled_dot_product_flash_attention_for_cpu"),
    "copies and gathering": ("copy_", "cat", "index", "index_select", "index_put_", "stack", "embedding"),
    "norms, rotary embedding, activation, residuals": ("mul", "add", "add_", "silu", "pow", "mean", "rsqrt", "neg"),
}
FROZEN_SHARE = 2 / 3  # of the backbone's layers that the recipe `frozen` runs


class Contest(NamedTuple):
    """DMoERM and its peers on one backbone in one precision.

    Attributes:
        kinds: key of `KINDS` → model.
    """

    kinds: dict[str, DMoERM]
    peft: PeftModel
    plain: nn.Module
    dtype: torch.dtype

    @property
    def short(self) -> str:
        return {torch.float32: "fp32", torch.bfloat16: "bf16"}[self.dtype]


def main() -> None:
    """Measure all shapes, peers and precisions."""
    prepare_process()
    contests = [contest(str(bundled_backbone()), dtype, BRANCH_LAYER) for dtype in (torch.float32, torch.bfloat16)]
    rows: list[Row] = []
    shares: dict[str, float] = {}
    for each, shape in itertools.product(contests, SHAPES):
        shape_rows, share = measure_shape(each, shape)
        rows += shape_rows
        shares[shape_rows[0]["work"].removesuffix("_experts")] = share
    profiles = {each.short: profiled(each.kinds["frozen"], drawn(*SHAPES[0])) for each in contests}
    parts = [{"part": part, **{k: f"{times[part]:.0%}" for k, times in profiles.items()}} for part in profiles["fp32"]]
    tables = {
        "Time relative to one plain reward model, float32 / bfloat16 (below 1: faster)": relative(rows),
        "Where the time of a pass goes (`frozen`, 128 / 4 / 128)": parts,
    }
    write("scoring", "python -m evidence.speed.scoring", rows, tables=tables, share_of_machine=shares)


def relative(rows: Sequence[Row]) -> list[dict[str, str]]:
    """Return the time of each of ours as a share of one plain reward model's, a row for each shape."""
    ratios = {r["work"]: f"{r['ours_s'] / r['peer_s']:.2f}" for r in rows if r["peer"] == "plain"}
    return [
        {"prompt / responses / tokens of each": " / ".join(map(str, (prompt, responses, tokens)))}
        | {
            kind: " / ".join(ratios[f"p{prompt}_n{responses}_r{tokens}_{dtype}_{kind}"] for dtype in ("fp32", "bf16"))
            for kind in reversed(KINDS)
        }
        for prompt, responses, tokens in SHAPES
    ]


def contest(backbone: str, dtype: torch.dtype, branch_layer: int, device: str = "cpu") -> Contest:
    """Build DMoERM and its peers on the same weights."""
    name = str(dtype).removeprefix("torch.")
    kinds = {
        kind: ours(backbone, name, K, branch_layer, *settings, device=device)
        for kind, settings in KINDS.items()
        if kind != "frozen"
    }
    for kind in ("lora", "head"):  # the same weights; an 8B backbone does not fit several times
        kinds[kind].trunk, kinds[kind].general.branch = kinds["experts"].trunk, kinds["experts"].general.branch
    plain = plain_model(backbone, dtype).to(device)
    layers = round(FROZEN_SHARE * plain.config.num_hidden_layers)  # pyright: ignore
    settings = (*KINDS["frozen"], f"backbone.num_layers={layers}")
    kinds["frozen"] = ours(backbone, name, K, layers - 4, *settings, device=device)
    return Contest(kinds, adapters(kinds["experts"], dtype), plain, dtype)


def measure_shape(each: Contest, shape: tuple[int, int, int]) -> tuple[list[Row], float]:
    """Return all rows of a shape, and the share of the machine's rate that `experts` reaches."""
    query = drawn(*shape)
    device = each.kinds["experts"].device
    texts = [ids.to(device) for ids in sequences([query])]
    work = "p{}_n{}_r{}_{}".format(*shape, each.short)
    peers = {
        "plain": functools.partial(plainly, each.plain, texts),
        "peft_loop": functools.partial(peft_loop, each.peft, texts),
        "peft_mixed": functools.partial(peft_mixed, each.peft, texts),
    }
    if shape != SHAPES[0]:  # saves minutes
        peers = {"plain": peers["plain"]}
    runs = RUNS if shape[0] <= 128 else 1
    works: dict[str, Callable[[], object]] = {
        kind: functools.partial(score, model, query) for kind, model in each.kinds.items()
    }
    seconds = dict(zip([*works, *peers], interleaved([*works.values(), *peers.values()], runs), strict=True))
    rows = [
        row(f"{work}_{label}", peer, seconds[label], seconds[peer], runs)
        for label in works
        for peer in (peers if label == "experts" else ["plain"])
    ]
    reached = share(each.kinds["experts"], query, seconds["experts"], each.dtype)
    print(work, [f"{r['work'].rsplit('_')[-1]} / {r['peer']} {r['ratio']}" for r in rows], "share", reached, flush=True)
    return rows, reached


def drawn(prompt: int, responses: int, tokens: int) -> Encoded:
    """Return a query of random tokens."""
    generator = torch.Generator().manual_seed(0)
    draw = lambda n: torch.randint(100, 40_000, (n,), generator=generator).tolist()  # noqa: E731
    return Encoded(draw(prompt), [draw(tokens) for _ in range(responses)])


def profiled(model: DMoERM, query: Encoded) -> Mapping[str, float]:
    """Return the share of the scoring time in each kind of kernel; the rest is Python, dispatch and small kernels."""
    score(model, query)
    times, started = Counter(dict.fromkeys(KERNELS, 0.0)), time.perf_counter()
    with profile(activities=[ProfilerActivity.CPU]) as measured:
        for _ in range(RUNS):
            score(model, query)
        seconds = time.perf_counter() - started
    for event in measured.key_averages():
        for part, names in KERNELS.items():
            times[part] += event.self_cpu_time_total / 1e6 / seconds * (event.key.removeprefix("aten::") in names)
    return {**times, "Python, dispatch and small kernels": 1 - sum(times.values())}


def share(model: DMoERM, query: Encoded, seconds: float, dtype: torch.dtype) -> float:
    """Return the rate of the linear layers' operations over the scoring time, as a share of the machine's rate.

    The machine's rate is the rate of the layers' matrix products alone with this number of rows, by operations.
    """
    config = model.config.backbone_config
    sizes = products(config)
    d, kv = sizes[2]
    layer, keys = sum(2 * a * b for a, b in sizes), 2 * 2 * d * kv
    last, tokens = len(query.responses), query.tokens
    top = config.num_hidden_layers - model.config.branch_layer
    work = tokens * layer * model.config.branch_layer + K * (tokens * (layer * (top - 1) + keys) + last * layer)
    return round(work / layer * seconds_of_layer(model, tokens, dtype) / seconds, 3)


def products(config: Any) -> list[tuple[int, int]]:
    """Return the input and output widths of a layer's matrix products: queries, output, keys, values, and the MLP's."""
    d, f, kv = config.hidden_size, config.intermediate_size, config.num_key_value_heads * config.head_dim
    return [(d, d), (d, d), (d, kv), (d, kv), (d, f), (d, f), (f, d)]


def seconds_of_layer(model: DMoERM, rows: int, dtype: torch.dtype) -> float:
    """Return the seconds of a layer's matrix products alone for one token, in a pass of this number of rows."""
    sizes = products(model.config.backbone_config)
    return sum(product_seconds(rows, a, b, dtype, model.device) for a, b in sizes) / rows


def product_seconds(rows: int, width: int, out: int, dtype: torch.dtype, device: torch.device) -> float:
    """Return the fastest of 30 runs, in seconds, of a matrix product (rows, width) × (width, out)."""
    x = torch.randn(rows, width, dtype=dtype).to(device)
    layer = nn.Linear(width, out, bias=False, dtype=dtype).to(device)
    with torch.inference_mode():
        return interleaved([lambda: layer(x)], 30)[0]


if __name__ == "__main__":
    main()
