"""Ours and its peers on one backbone: the same weights, the same LoRA experts, heads that have learnt nothing.

one_by_one   one adapter and one response at a time, as the paper's release scores
peft_loop    PEFT `set_adapter` in a loop, the responses batched
peft_mixed   one PEFT mixed-adapter batch (`adapter_names`)
plain        one plain reward model (`AutoModelForSequenceClassification`), batched
ensemble     k such models
"""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Sequence
from pathlib import Path

import torch
from peft import PeftModel
from torch import Tensor, nn
from transformers import AutoConfig, AutoModel, AutoModelForSequenceClassification

from dmoerm.chat.encoding import Encoded
from dmoerm.config import load_config
from dmoerm.model import DMoERM
from dmoerm.model.batching import pack_ids, pad
from dmoerm.model.experts import lora_layers
from dmoerm.taxonomy import Taxonomy
from dmoerm.training.run import build_model

TASK = "task"


def ours(
    backbone: str, dtype: str, k: int, branch_layer: int, tasks: int = 1, *settings: str, device: str = "cpu"
) -> DMoERM:
    """A model with k LoRA experts a task (rank 16 on q and v); the aggregator reads embeddings, as the paper's.

    `settings`: more of the run's settings, such as `phase3.inputs=both`.
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
    names = [TASK, *(f"{TASK}{i}" for i in range(1, tasks))]
    taxonomy = Taxonomy.model_validate({"name": "bench", "language": "en", "tasks": dict.fromkeys(names, task)})
    model = build_model(config, taxonomy)
    generator = torch.Generator().manual_seed(0)
    for name in names:
        for layer in lora_layers(model.inner(name).experts).values():
            layer.lora_B.copy_(torch.randn(layer.lora_B.shape, generator=generator) * 0.02)
    return model.to(device)  # pyright: ignore[reportArgumentType]


def score(model: DMoERM, queries: Sequence[Encoded], budget: int = 8192, task: str = TASK) -> list[float]:
    """The rewards of all responses, in order of the queries."""
    found: dict[int, list[float]] = {}
    with torch.inference_mode():
        for rows in model.passes(queries, budget):
            ids = pack_ids([queries[i] for i in rows]).to(model.device)
            hidden = model.hidden(ids)
            model.route(ids, hidden)
            rewards = [answer["reward"] for answer in model.rewards(hidden, [task] * len(rows))]
            for q, owner in enumerate(ids.layout.owner):
                found.setdefault(rows[owner], []).append(rewards[q])
    return [reward for i in range(len(queries)) for reward in found[i]]


def adapters(model: DMoERM, dtype: torch.dtype) -> PeftModel:
    """The task's experts as PEFT loads them, onto the whole backbone with transformers' own attention."""
    with tempfile.TemporaryDirectory() as folder:
        model.save_pretrained(folder)
        experts = Path(folder) / "tasks" / TASK / "experts"
        base = whole_backbone(model, dtype)
        names = [place.name for place in sorted(experts.iterdir())]
        found = PeftModel.from_pretrained(base, experts / names[0], adapter_name=names[0])
        for name in names[1:]:
            found.load_adapter(experts / name, adapter_name=name)
    return found.to(model.device).eval()


def whole_backbone(model: DMoERM, dtype: torch.dtype) -> nn.Module:
    """Trunk and branch as one plain decoder."""
    from dmoerm.model.artefact import task_backbone

    joined = task_backbone(model, TASK)
    config = AutoConfig.for_model(**joined.config.to_dict())
    plain = AutoModel.from_config(config, attn_implementation="sdpa").to(dtype)
    plain.load_state_dict(joined.state_dict())
    return plain.eval()


def plain_model(backbone: str, dtype: torch.dtype) -> nn.Module:
    """A plain reward model: one score from the last token."""
    return AutoModelForSequenceClassification.from_pretrained(backbone, num_labels=1, dtype=dtype).eval()


def sequences(queries: Sequence[Encoded]) -> list[Tensor]:
    """Prompt and response of every response, as a plain model reads them."""
    return [torch.tensor([*query.prompt, *ids]) for query in queries for ids in query.responses]


def padded_batches(rows: Sequence[Tensor], budget: int = 8192) -> list[tuple[Tensor, Tensor]]:
    """Sequences of like length together, right-padded, at most `budget` tokens a batch with padding."""
    found: list[list[Tensor]] = [[]]
    for row in sorted(rows, key=len, reverse=True):
        if found[-1] and (len(found[-1]) + 1) * len(found[-1][0]) > budget:
            found.append([])
        found[-1].append(row)
    return [(ids, mask.long().to(ids.device)) for ids, mask in map(pad, found)]


def last_tokens(states: Tensor, mask: Tensor) -> Tensor:
    """What a head would read: the last real token's state."""
    return states[torch.arange(len(states), device=states.device), mask.sum(1) - 1]


@torch.inference_mode()
def peft_loop(model: PeftModel, rows: Sequence[Tensor], budget: int = 8192) -> list[Tensor]:
    """Each adapter in turn over all batches: k lists of embeddings."""
    found = []
    for name in list(model.peft_config):
        model.set_adapter(name)
        for ids, mask in padded_batches(rows, budget):
            found.append(last_tokens(model(input_ids=ids, attention_mask=mask).last_hidden_state, mask))
    return found


def one_by_one(model: PeftModel, rows: Sequence[Tensor]) -> list[Tensor]:
    """One adapter and one response at a time."""
    return [state for row in rows for state in peft_loop(model, [row])]


@torch.inference_mode()
def peft_mixed(model: PeftModel, rows: Sequence[Tensor]) -> Tensor:
    """All adapters in one batch: each row is there once for each adapter."""
    ids, mask = pad(rows)
    names = [name for name in model.peft_config for _ in rows]
    k = len(model.peft_config)
    ids, mask = ids.repeat(k, 1), mask.long().to(ids.device).repeat(k, 1)
    return last_tokens(model(input_ids=ids, attention_mask=mask, adapter_names=names).last_hidden_state, mask)


def plainly(models: Sequence[nn.Module], rows: Sequence[Tensor], budget: int = 8192) -> Callable[[], None]:
    """A plain reward model, or an ensemble of them, over all batches."""

    @torch.inference_mode()
    def work() -> None:
        for model in models:
            model.config.pad_token_id = 0  # pyright: ignore
            for ids, mask in padded_batches(rows, budget):
                model(input_ids=ids.to(model.device), attention_mask=mask.to(model.device))  # pyright: ignore

    return work
