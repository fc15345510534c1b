"""The router's training, and the tasks that it gives to unlabelled groups (as in the paper)."""

from __future__ import annotations

import copy
import dataclasses
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from ..model.batching import pad
from ..model.router import Router
from .batches import Batch, Example
from .fitting import fit
from .processes import agreed, own, world
from .steps import Ended, Run, State, ended


class _RouterPhase(nn.Module):
    """The router under cross-entropy on the logits; a margin is the true task's logit less the best other's.

    `weights` and `total` are those of a batch of which this process has some rows, as in `batches.collate_parts`.
    """

    def __init__(self, router: Router) -> None:
        super().__init__()
        self.router = router

    def forward(
        self,
        labels: Tensor,
        prompt: Tensor,
        prompt_mask: Tensor | None = None,
        weights: Tensor | None = None,
        total: Tensor | None = None,
    ) -> dict[str, Any]:
        vectors = prompt if prompt_mask is None else self.router.read(prompt, prompt_mask)
        logits = self.router(vectors)
        true = logits.gather(1, labels[:, None]).squeeze(1)
        others = logits.scatter(1, labels[:, None], -torch.inf).amax(1) if logits.shape[1] > 1 else true - 1
        weights = torch.ones_like(true) if weights is None else weights
        loss = (functional.cross_entropy(logits, labels, reduction="none") * weights).sum()
        return {
            "loss": loss / (len(labels) if total is None else total),
            "margins": (true - others).clamp(-30, 30),
            "weights": weights,
            "probability": (1 + weights) / 2,  # a row of weight 0 counts for nothing
        }


def train_router(run: Run, train: Sequence[Example], validation: Sequence[Example]) -> None:
    """Trains the router on the distinct prompts whose task is known."""
    state = run.step("router", lambda place: _train(run, train, validation, place))
    router = run.model.router
    router.load_state_dict(state, assign=True)
    router.requires_grad_(False).to(run.model.device)


def assign_tasks(run: Run, examples: Sequence[Example]) -> list[Example]:
    """The examples with a task each: their own, or else the likeliest by the router (None below its threshold)."""
    tasks = agreed([e.task or _route(run, e) for e in examples])  # else the processes' batches might differ
    return [dataclasses.replace(e, task=task) for e, task in zip(examples, tasks, strict=True)]


@torch.no_grad()
def _route(run: Run, example: Example) -> str | None:
    router = run.model.router
    if router.language_model is None:
        logits = router(run.cache.prompt(example.encoded)[None].to(run.model.device))
        return run.model.choose(torch.softmax(logits, -1)[0])
    ids = torch.tensor([example.encoded.prompt], device=run.model.device)
    return run.model.choose(router.probabilities(router.read(ids, torch.ones_like(ids, dtype=torch.bool)))[0])


def _train(run: Run, train: Sequence[Example], validation: Sequence[Example], place: Path) -> tuple[State, Ended]:
    router = copy.deepcopy(run.model.router).requires_grad_(True)
    reads = router.language_model is not None
    if router.language_model is not None:
        router.language_model = copy.deepcopy(router.language_model).float()
    rows = [_rows(run, part, reads) for part in (train, validation)]
    if not reads:
        router.normalizer.fit(torch.stack([vector for vector, _ in rows[0]]))
    fits = fit(
        _RouterPhase(router),
        *rows,
        collate=_collate_ids if reads else _collate_vectors,
        step=run.config.router,
        folder=place,
        seed=run.seed("router"),
        shared=reads,
        report_to=run.config.report_to,
        callbacks=run.callbacks,
    )
    return router.state_dict(), ended(fits)


def _rows(run: Run, examples: Sequence[Example], reads: bool) -> list[tuple[Tensor, int]]:
    tasks = run.model.router.tasks
    distinct = {(e.prompt, e.task): e for e in examples if e.task in tasks}.values()
    features = [torch.tensor(e.encoded.prompt) if reads else run.cache.prompt(e.encoded) for e in distinct]
    return [(feature, tasks.index(e.task or "")) for feature, e in zip(features, distinct, strict=True)]


def _collate_vectors(rows: Sequence[tuple[Tensor, int]]) -> Batch:
    return {"prompt": torch.stack([vector for vector, _ in rows]), "labels": torch.tensor([t for _, t in rows])}


def _collate_ids(rows: Sequence[tuple[Tensor, int]]) -> Batch:
    """This process's rows of the batch; if it has none, one of weight 0."""
    mine = own(rows)
    prompt, mask = pad([ids for ids, _ in mine or rows[:1]])
    labels = torch.tensor([task for _, task in mine or rows[:1]])
    weights = torch.full((len(labels),), float(bool(mine)))
    part = {"prompt": prompt, "prompt_mask": mask, "labels": labels, "weights": weights}
    return {"parts": [{**part, "total": torch.tensor(len(rows) / world())}]}
