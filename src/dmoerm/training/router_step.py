"""Train the router, and assign tasks to groups that have none (as in the paper)."""

from __future__ import annotations

import copy
import dataclasses
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from ..model.batching import pad
from ..model.prompt_statistics import PromptStatistics, TaskPrompts
from ..model.router import Router
from ..model.transfer import to_device, transfer
from .batches import PreferenceExample
from .fitting import fit
from .losses import RowLosses, mean_by_expert, routing_losses
from .processes import broadcast, shard, world_size
from .steps import Run, State, StepMetrics, step_metrics

Examples = Sequence[PreferenceExample]
_PROMPTS_PER_COPY = 1024


@dataclasses.dataclass(frozen=True, eq=False)
class RoutingBatch:
    """Q prompts with their tasks.

    Attributes:
        prompt: embeddings (Q, d), or token ids (Q, P) with `mask`.
        mask: (Q, P), true for tokens, false for padding; None with embeddings.
        labels: (Q,), index of each prompt's task.
        weights: (Q,), 0 for a dummy that keeps the processes in step.
        total: (1,), the weights of the whole batch / number of processes; None: the sum of `weights`.
    """

    prompt: Tensor
    mask: Tensor | None
    labels: Tensor
    weights: Tensor
    total: Tensor | None = None

    def to(self, device: Any, **_: Any) -> RoutingBatch:
        """Return the batch on a device; accelerate's data loader calls it."""
        known = {name: value for name, value in vars(self).items() if value is not None}
        return dataclasses.replace(self, **dict(zip(known, transfer(list(known.values()), device), strict=True)))


class RoutingLossModule(nn.Module):
    """The router under cross-entropy on its logits."""

    def __init__(self, router: Router) -> None:
        super().__init__()
        self.router = router

    def forward(self, batch: RoutingBatch) -> RowLosses:
        vectors = batch.prompt if batch.mask is None else self.router.read(batch.prompt, batch.mask)
        logits = self.router(vectors)
        rows, expert = routing_losses(logits, batch.labels), torch.zeros_like(batch.labels)
        loss = mean_by_expert(rows, batch.weights, expert, 1, batch.total).sum()
        correct = (logits.argmax(1) == batch.labels).to(rows.dtype)
        return RowLosses(loss, rows, batch.weights, correct, batch.weights, expert)


def train_router(run: Run, train: Examples, validation: Examples) -> None:
    """Train the router on the distinct prompts whose task is known."""
    state = run.step("router", lambda checkpoint_dir: _train(run, train, validation, checkpoint_dir))
    router, start = run.model.router, "statistics."
    known = {name.removeprefix(start): tensor for name, tensor in state.items() if name.startswith(start)}
    run.model.prompt_statistics = PromptStatistics.from_state(known, router.tasks)  # a step of an earlier version: None
    weights = {name: tensor for name, tensor in state.items() if not name.startswith(start)}
    router.load_state_dict(weights, assign=True)
    router.requires_grad_(False).to(run.model.device)


def assign_tasks(run: Run, examples: Examples) -> list[PreferenceExample]:
    """Return the examples with tasks: as labeled, or the router's most likely one (None below the threshold)."""
    without = [e for e in examples if not e.task]
    routed = iter(broadcast(_routes(run, without)))  # or the ranks' batches would differ
    return [e if e.task else e.with_task(next(routed)) for e in examples]


@torch.no_grad()
def _routes(run: Run, examples: Examples) -> list[str | None]:
    router, routes = run.model.router, list[str | None]()
    for start in range(0, len(examples), _PROMPTS_PER_COPY):
        some = [_feature(run, e) for e in examples[start : start + _PROMPTS_PER_COPY]]
        vectors = to_device(prompt_vectors(router, some), run.model.device)
        routes += [run.model.choose(row) for row in router.probabilities(vectors).cpu()]
    return routes


def _feature(run: Run, example: PreferenceExample) -> Tensor:
    """Return what `prompt_vectors` reads of an example's prompt."""
    if run.model.router.language_model is None:
        return run.cache.prompt(example.encoded)
    return torch.tensor(example.encoded.prompt)


def _train(run: Run, train: Examples, validation: Examples, checkpoint_dir: Path) -> tuple[State, StepMetrics]:
    router = copy.deepcopy(run.model.router).requires_grad_(True)
    reads = router.language_model is not None
    if router.language_model is not None:
        router.language_model = copy.deepcopy(router.language_model).float()
        run.recompute(router.language_model)
    rows = [_rows(run, part) for part in (train, validation)]
    if not reads:
        router.normalizer.fit(torch.stack([vector for vector, _ in rows[0]]))
    fits = fit(
        RoutingLossModule(router),
        *rows,
        collate=_collate_ids if reads else _collate_vectors,
        step=run.config.router,
        **run.fit_options(checkpoint_dir),
    )
    statistics = {f"statistics.{name}": t for name, t in _statistics(router, rows[0]).state().items()}
    return router.state_dict() | statistics, step_metrics(fits)


@torch.no_grad()
def prompt_vectors(router: Router, features: Sequence[Tensor]) -> Tensor:
    """Return the prompts' embeddings (Q, d); the features are embeddings, or token ids for a router's own model."""
    if router.language_model is None:
        return torch.stack(list(features)).float().cpu()
    device = router.classify.weight.device
    parts = [
        router.read(to_device(ids[None], device), torch.ones(1, len(ids), dtype=torch.bool, device=device))
        for ids in features
    ]
    return torch.cat(parts).cpu()


def prompt_features(run: Run, examples: Examples) -> list[Tensor]:
    """Return what `prompt_vectors` reads, of each distinct prompt once."""
    return [feature for feature, _ in _rows(run, examples)]


def _statistics(router: Router, rows: Sequence[tuple[Tensor, int]]) -> PromptStatistics:
    features = {task: [f for f, index in rows if index == i] for i, task in enumerate(router.tasks)}
    return PromptStatistics(
        {task: TaskPrompts.of(prompt_vectors(router, part)) for task, part in features.items() if part}
    )


def _rows(run: Run, examples: Examples) -> list[tuple[Tensor, int]]:
    tasks = run.model.router.tasks
    distinct = {(e.prompt, e.task): e for e in examples if e.task in tasks}.values()
    return [(_feature(run, e), tasks.index(e.task or "")) for e in distinct]


def _collate_vectors(rows: Sequence[tuple[Tensor, int]]) -> list[RoutingBatch]:
    prompt, labels = torch.stack([vector for vector, _ in rows]), torch.tensor([task for _, task in rows])
    return [RoutingBatch(prompt, None, labels, torch.ones(len(rows)))]


def _collate_ids(rows: Sequence[tuple[Tensor, int]]) -> list[RoutingBatch]:
    """Collate this process's shard of the batch; if it is empty, a dummy row of weight 0."""
    local = shard(rows)
    prompt, mask = pad([ids for ids, _ in local or rows[:1]])
    labels = torch.tensor([task for _, task in local or rows[:1]])
    weights = torch.full((len(labels),), float(bool(local)))
    return [RoutingBatch(prompt, mask, labels, weights, torch.tensor([len(rows) / world_size()]))]
