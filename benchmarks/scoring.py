"""Scoring speed as a ratio to one plain reward model on the same backbone: interleaved runs, the median of each side.

    make bench        prints the table and writes benchmarks/results/scoring.json

A row: {"work", "peer", "ours_s", "peer_s", "ratio": peer_s / ours_s, "runs"}; above 1, ours is faster. The weights are
the bundled backbone's; heads and experts are untrained, which changes no time.
"""

from __future__ import annotations

import json
import platform
import statistics
import time
from collections.abc import Callable
from pathlib import Path

import torch
import transformers
from transformers import AutoModelForSequenceClassification

from dmoerm.config import load_config
from dmoerm.model import DMoERM
from dmoerm.model.backbone import bundled_backbone
from dmoerm.model.batching import pack_ids
from dmoerm.model.encoding import Encoded
from dmoerm.taxonomy import Taxonomy
from dmoerm.training.run import build_model

RUNS = 5
SHAPES = ((128, 4, 128), (512, 16, 128), (32, 2, 64))  # prompt tokens, responses, tokens a response
EXPERTS = 5


def main() -> None:
    """Measures every shape and writes the rows."""
    config = load_config(None, ["backbone.dtype=float32", "backbone.branch_layer=24", "base=full"])
    capabilities = {f"c{i}": {"title": f"c{i}", "rubric": "A benchmark's capability."} for i in range(EXPERTS)}
    task = {"title": "task", "description": "A benchmark's task.", "capabilities": capabilities}
    ours = build_model(config, Taxonomy.model_validate({"name": "bench", "language": "en", "tasks": {"task": task}}))
    plain = AutoModelForSequenceClassification.from_pretrained(bundled_backbone(), num_labels=1, dtype="float32").eval()
    rows = [measure(ours, plain, *shape) for shape in SHAPES]
    file = Path(__file__).parent / "results" / "scoring.json"
    file.parent.mkdir(exist_ok=True)
    versions = {"torch": torch.__version__, "transformers": transformers.__version__}
    facts = {"processor": platform.processor() or platform.machine(), "threads": torch.get_num_threads()}
    file.write_text(
        json.dumps({"rows": rows, "versions": versions, **facts, "date": time.strftime("%Y-%m-%d")}, indent=1)
    )
    for row in rows:
        print("{work:22} {peer:8} ours {ours_s:7.3f} s   peer {peer_s:7.3f} s   ratio {ratio:.2f}".format(**row))


def measure(ours: DMoERM, plain: torch.nn.Module, prompt: int, responses: int, tokens: int) -> dict[str, object]:
    """One shape: a query through trunk, router, general model and five experts; and as plain sequences."""
    generator = torch.Generator().manual_seed(0)
    draw = lambda n: torch.randint(100, 40_000, (n,), generator=generator).tolist()  # noqa: E731
    query = Encoded(draw(prompt), [draw(tokens) for _ in range(responses)])
    whole = torch.tensor([query.prompt + response for response in query.responses])

    def score() -> None:
        hidden = ours.hidden(ids := pack_ids([query]))
        ours.route(ids, hidden)
        ours.rewards(hidden, ["task"])

    ours_s, peer_s = interleaved(score, lambda: plain(input_ids=whole))
    work = f"p{prompt}_n{responses}_r{tokens}_fp32"
    return {"work": work, "peer": "plain", "ours_s": ours_s, "peer_s": peer_s, "ratio": peer_s / ours_s, "runs": RUNS}


@torch.inference_mode()
def interleaved(first: Callable[[], object], second: Callable[[], object]) -> tuple[float, float]:
    """The median seconds of each, run in turns after one round to warm up."""
    times: tuple[list[float], list[float]] = ([], [])
    for turn in range(RUNS + 1):
        for work, seconds in zip((first, second), times, strict=True):
            start = time.perf_counter()
            work()
            if turn:
                seconds.append(time.perf_counter() - start)
    return statistics.median(times[0]), statistics.median(times[1])


if __name__ == "__main__":
    main()
