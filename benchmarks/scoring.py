"""Scoring speed beside the peers of models.py, on the bundled backbone: k = 5 experts on the last 6 of 30 layers.

    python benchmarks/scoring.py          prints the rows and writes results/scoring.json

`experts`: router, trunk and the five experts, the aggregator reading embeddings, as in the paper and as the peers do
(they give five embeddings, no reward). `default`: the aggregator also reads the phase-1 and the general model's scores,
which have branches of their own: seven passes over the last layers in place of five.
"""

from __future__ import annotations

import functools
import statistics
import time

import torch
from measure import Row, interleaved, row, write
from models import (
    adapters,
    one_by_one,
    ours,
    peft_loop,
    peft_mixed,
    plain_model,
    plainly,
    score,
    sequences,
)
from torch import nn

from dmoerm.model.backbone import bundled_backbone
from dmoerm.model.encoding import Encoded

SHAPES = ((128, 4, 128), (512, 16, 128), (32, 2, 64))  # prompt tokens, responses, tokens a response
K, BRANCH_LAYER, RUNS = 5, 24, 5


def main() -> None:
    """All shapes, peers and precisions."""
    rows: list[Row] = []
    shares = {}
    for dtype in (torch.float32, torch.bfloat16):
        name = str(dtype).removeprefix("torch.")
        short = {"float32": "fp32", "bfloat16": "bf16"}[name]
        plain = plain_model(str(bundled_backbone()), dtype)
        experts, default = (
            ours("smollm2", name, K, BRANCH_LAYER, 1, f"phase3.inputs={inputs}") for inputs in ("embeddings", "both")
        )
        peft = adapters(experts, dtype)
        for shape in SHAPES:
            query = [drawn(*shape)]
            texts = sequences(query)
            work = "p{}_n{}_r{}_{}".format(*shape, short)
            peers = {
                "plain": plainly([plain], texts),
                "ensemble": plainly([plain] * K, texts),
                "peft_loop": functools.partial(peft_loop, peft, texts),
                "peft_mixed": functools.partial(peft_mixed, peft, texts),
                "one_by_one": functools.partial(one_by_one, peft, texts),
            }
            if shape[0] > 128:  # minutes for a figure that the first shape gives too
                peers = {"plain": peers["plain"]}
            mine = [functools.partial(score, m, query) for m in (experts, default)]
            seconds = interleaved([*mine, *peers.values()], RUNS)
            for label, own in zip(("experts", "default"), seconds[:2], strict=True):
                rows += [row(f"{work}_{label}", peer, own, s, RUNS) for peer, s in zip(peers, seconds[2:], strict=True)]
            shares[work] = share(experts, query[0], seconds[0], dtype)
            print(work, "share of the machine's rate:", shares[work], flush=True)
    write("scoring", "python benchmarks/scoring.py", rows, share_of_machine=shares)


def drawn(prompt: int, responses: int, tokens: int) -> Encoded:
    """A query of random tokens."""
    generator = torch.Generator().manual_seed(0)
    draw = lambda n: torch.randint(100, 40_000, (n,), generator=generator).tolist()  # noqa: E731
    return Encoded(draw(prompt), [draw(tokens) for _ in range(responses)])


def share(model: nn.Module, query: Encoded, seconds: float, dtype: torch.dtype) -> float:
    """The rate of the linear layers' arithmetic over the whole scoring time, as a share of what the machine can do.

    The machine's rate is that of single matrix products of the MLP's shape at this number of rows.
    """
    config = model.config.backbone_config
    d, f, kv = config.hidden_size, config.intermediate_size, config.num_key_value_heads * config.head_dim
    layer, keys = 2 * (2 * d * d + 2 * d * kv + 3 * d * f), 2 * 2 * d * kv
    last = len(query.responses)
    top = config.num_hidden_layers - BRANCH_LAYER
    work = query.tokens * layer * BRANCH_LAYER
    work += K * (query.tokens * (layer * (top - 1) + keys) + last * layer)
    return round(work / seconds / rate(query.tokens, d, f, dtype), 3)


def rate(rows: int, width: int, out: int, dtype: torch.dtype) -> float:
    """Floating-point operations a second in a matrix product (rows, width) × (width, out), the median of many."""
    x, layer = torch.randn(rows, width, dtype=dtype), nn.Linear(width, out, bias=False, dtype=dtype)
    times = []
    with torch.inference_mode():
        for _ in range(30):
            start = time.perf_counter()
            layer(x)
            times.append(time.perf_counter() - start)
    return 2 * rows * width * out / statistics.median(times)


if __name__ == "__main__":
    main()
