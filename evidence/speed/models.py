"""Build DMoERM and its peers on one backbone, with the same weights, the same LoRA experts and untrained heads.

peft_loop    PEFT `set_adapter` in a loop, the responses batched
peft_mixed   one PEFT mixed-adapter batch (`adapter_names`)
plain        one plain reward model (`AutoModelForSequenceClassification`), batched
"""

from __future__ import annotations

import tempfile
from collections.abc import Sequence
from pathlib import Path

import torch
from peft import PeftModel
from torch import Tensor, nn
from transformers import AutoConfig, AutoModel, AutoModelForSequenceClassification

from dmoerm.chat.encoding import Encoded
from dmoerm.config import load_config
from dmoerm.model import DMoERM
from dmoerm.model.checkpoint import task_backbone
from dmoerm.model.experts import lora_layers
from dmoerm.model.packing import chunks, pad
from dmoerm.taxonomy import Taxonomy
from dmoerm.training.run import build_model

TASK = "task"
BUDGET = 8192  # tokens of a pass of the peers


def ours(backbone: str, dtype: str, k: int, branch_layer: int, *settings: str, device: str = "cpu") -> DMoERM:
    """Build a model of one task with k LoRA experts (rank 16 on q and v) and the paper's aggregator over embeddings.

    Args:
        settings: further settings of the run, such as `phase3.inputs=both`.
    """
    config = load_config(
        None,
        [
            f"backbone.path={backbone}",
            f"backbone.dtype={dtype}",
            f"backbone.branch_layer={branch_layer}",
            "encoding.pooling=last",
            "phase2.lora={rank: 16, alpha: 16}",
            "phase3.inputs=embeddings",
            *settings,
        ],
    )
    capabilities = {f"c{i}": {"title": f"c{i}", "rubric": "A benchmark's capability."} for i in range(k)}
    task = {"title": "task", "description": "A benchmark's task.", "capabilities": capabilities}
    taxonomy = Taxonomy.model_validate({"name": "bench", "language": "en", "tasks": {TASK: task}})
    model = build_model(config, taxonomy)
    generator = torch.Generator().manual_seed(0)
    for layer in lora_layers(model.task_model(TASK).experts).values():
        layer.lora_B.copy_(torch.randn(layer.lora_B.shape, generator=generator) * 0.02)
    return model.to(device)  # pyright: ignore[reportArgumentType]


def score(model: DMoERM, query: Encoded) -> list[float]:
    """Return the rewards of all responses by the passes that `score_queries` runs."""
    parts = [part for _, part in chunks(query, model.pass_tokens())]
    return [score.reward for part in parts for score in model.score_encoded([part], [TASK])[0]]


def adapters(model: DMoERM, dtype: torch.dtype) -> PeftModel:
    """Load the task's experts with PEFT onto the whole backbone, with transformers' own attention."""
    with tempfile.TemporaryDirectory() as folder:
        model.save_pretrained(folder)
        experts = Path(folder) / "tasks" / TASK / "experts"
        base = whole_backbone(model, dtype)
        names = [path.name for path in sorted(experts.iterdir())]
        model_with_adapters = PeftModel.from_pretrained(base, experts / names[0], adapter_name=names[0])
        for name in names[1:]:
            model_with_adapters.load_adapter(experts / name, adapter_name=name)
    return model_with_adapters.to(model.device).eval()


def whole_backbone(model: DMoERM, dtype: torch.dtype) -> nn.Module:
    """Return trunk and branch as one plain decoder."""
    joined = task_backbone(model, TASK)
    config = AutoConfig.for_model(**joined.config.to_dict())
    plain = AutoModel.from_config(config, attn_implementation="sdpa").to(dtype)
    plain.load_state_dict(joined.state_dict())
    return plain.eval()


def plain_model(backbone: str, dtype: torch.dtype) -> nn.Module:
    """Load a plain reward model, which reads one score from the last token."""
    return AutoModelForSequenceClassification.from_pretrained(backbone, num_labels=1, dtype=dtype).eval()


def sequences(queries: Sequence[Encoded]) -> list[Tensor]:
    """Return prompt and response of every response as one sequence, as a plain model reads them."""
    return [torch.tensor([*query.prompt, *ids]) for query in queries for ids in query.responses]


def padded_batches(rows: Sequence[Tensor]) -> list[tuple[Tensor, Tensor]]:
    """Batch sequences of similar length, right-padded, with at most `BUDGET` tokens per batch including padding."""
    batches: list[list[Tensor]] = [[]]
    for row in sorted(rows, key=len, reverse=True):
        if batches[-1] and (len(batches[-1]) + 1) * len(batches[-1][0]) > BUDGET:
            batches.append([])
        batches[-1].append(row)
    return [(ids, mask.long().to(ids.device)) for ids, mask in map(pad, batches)]


def last_tokens(states: Tensor, mask: Tensor) -> Tensor:
    """Return the state of the last token that is not padding, which a head would read."""
    return states[torch.arange(len(states), device=states.device), mask.sum(1) - 1]


@torch.inference_mode()
def peft_loop(model: PeftModel, rows: Sequence[Tensor]) -> list[Tensor]:
    """Run each adapter in turn over all batches; return the embeddings batch by batch."""
    embeddings = []
    for name in list(model.peft_config):
        model.set_adapter(name)
        for ids, mask in padded_batches(rows):
            embeddings.append(last_tokens(model(input_ids=ids, attention_mask=mask).last_hidden_state, mask))
    return embeddings


@torch.inference_mode()
def peft_mixed(model: PeftModel, rows: Sequence[Tensor]) -> Tensor:
    """Run all adapters in one batch, which holds each row once per adapter."""
    ids, mask = pad(rows)
    names = [name for name in model.peft_config for _ in rows]
    k = len(model.peft_config)
    ids, mask = ids.repeat(k, 1), mask.long().to(ids.device).repeat(k, 1)
    return last_tokens(model(input_ids=ids, attention_mask=mask, adapter_names=names).last_hidden_state, mask)


@torch.inference_mode()
def plainly(model: nn.Module, rows: Sequence[Tensor]) -> None:
    """Run a plain reward model over all batches."""
    model.config.pad_token_id = 0  # pyright: ignore
    for ids, mask in padded_batches(rows):
        model(input_ids=ids.to(model.device), attention_mask=mask.to(model.device))  # pyright: ignore
