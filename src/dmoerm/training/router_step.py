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
from ..model.router import Router
from ..model.training_prompts import PromptStatistics, TaskPrompts
from ..model.transfer import to_device, transfer
from .batches import PreferenceExample
from .exact_router import fit_router
from .fitting import fit
from .linear_heads import fold_of
from .losses import RowLosses, mean_by_expert, routing_losses
from .processes import broadcast, shard, world_size
from .steps import Run, State, StepMetrics, Training, step_metrics

Examples = Sequence[PreferenceExample]
_Row = tuple[Tensor, int, int]
"""A prompt: its embedding (d,) or token ids (P,), the index of its task, its fold."""
_PROMPTS_PER_COPY = 1024


@dataclasses.dataclass(frozen=True, eq=False)
class RoutingBatch:
    """Q prompts with their tasks, for a router's own language model.

    Attributes:
        prompt: (Q, P), token ids.
        mask: (Q, P), true for tokens, false for padding.
        labels: (Q,), index of each prompt's task.
        weights: (Q,), 0 for a dummy that keeps the processes in step.
        total: (1,), the weights of the whole batch / number of processes.
    """

    prompt: Tensor
    mask: Tensor
    labels: Tensor
    weights: Tensor
    total: Tensor

    def to(self, device: Any, **_: Any) -> RoutingBatch:
        """Return the batch on a device; accelerate's data loader calls it."""
        values = transfer(list(vars(self).values()), device)
        return RoutingBatch(*values)


class RoutingLossModule(nn.Module):
    """The router under cross-entropy on its logits."""

    def __init__(self, router: Router) -> None:
        super().__init__()
        self.router = router

    def forward(self, batch: RoutingBatch) -> RowLosses:
        logits = self.router(self.router.read(batch.prompt, batch.mask))
        rows, expert = routing_losses(logits, batch.labels), torch.zeros_like(batch.labels)
        loss = mean_by_expert(rows, batch.weights, expert, 1, batch.total).sum()
        correct = (logits.argmax(1) == batch.labels).to(rows.dtype)
        return RowLosses(loss, rows, batch.weights, correct, batch.weights, expert)


def train_router(training: Training) -> None:
    """Train the router on the distinct prompts whose task is known, and route all examples."""
    run = training.run
    state = run.step("router", lambda checkpoint_dir: _train(training, checkpoint_dir))
    router = run.model.router
    parts = [_part(state, prefix) for prefix in ("statistics.", "folds.")]
    run.model.prompt_statistics = PromptStatistics.from_state(parts[0], router.tasks)
    weights = {name: t for name, t in state.items() if not name.startswith(("statistics.", "folds."))}
    router.load_state_dict(weights, assign=True)
    router.requires_grad_(False).to(run.model.device)
    if parts[1]:
        training.routes = held_out_routes(run, [*training.train, *training.validation], parts[1])
    training.train = assign_tasks(run, training.train)
    training.validation = assign_tasks(run, training.validation)


def _part(state: State, prefix: str) -> State:
    return {name.removeprefix(prefix): tensor for name, tensor in state.items() if name.startswith(prefix)}


@torch.no_grad()
def held_out_routes(run: Run, examples: Examples, folds: State | None = None) -> dict[str, Tensor]:
    """Return prompt → probabilities (T,).

    Args:
        folds: weights and biases by fold, of which the one is used that was fitted without the prompt; None: the router
            itself, for prompts that it was not trained on.
    """
    router, routes = run.model.router, dict[str, Tensor]()
    normalizer = copy.deepcopy(router.normalizer).cpu()
    for prompt, example in {e.prompt: e for e in examples}.items():
        feature = _feature(run, example)
        if folds is None:
            vector = to_device(prompt_vectors(router, [feature]), run.model.device)
            routes[prompt] = router.probabilities(vector)[0].cpu()
        else:
            fold = fold_of(prompt, run.config.seed)
            logits = folds["weight"][fold] @ normalizer(feature.float()) + folds["bias"][fold]
            routes[prompt] = torch.softmax(logits, 0)
    return routes


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
        highest, best = router.probabilities(vectors).cpu().max(1)
        recognized = (highest >= run.model.config.threshold).tolist()
        routes += [router.tasks[i] if known else None for i, known in zip(best.tolist(), recognized, strict=True)]
    return routes


def _feature(run: Run, example: PreferenceExample) -> Tensor:
    """Return what `prompt_vectors` reads of an example's prompt."""
    if run.model.router.language_model is None:
        return run.cache.prompt(example.encoded)
    return torch.tensor(example.encoded.prompt)


def _train(training: Training, checkpoint_dir: Path) -> tuple[State, StepMetrics]:
    run = training.run
    router = copy.deepcopy(run.model.router).requires_grad_(True)
    train, validation = (_rows(run, part) for part in (training.train, training.validation))
    if router.language_model is not None:
        state, metrics = _train_language_model(run, router, train, validation, checkpoint_dir)
    else:
        state, metrics = _fit_exactly(run, router, train)
    features = [(feature, index) for feature, index, _ in train]
    statistics = {f"statistics.{name}": t for name, t in _statistics(router, features).state().items()}
    return state | statistics, metrics


def _train_language_model(
    run: Run, router: Router, train: Sequence[_Row], validation: Sequence[_Row], checkpoint_dir: Path
) -> tuple[State, StepMetrics]:
    router.language_model = copy.deepcopy(router.language_model).float()  # pyright: ignore[reportOptionalMemberAccess]
    run.recompute(router.language_model)
    fits = fit(
        RoutingLossModule(router),
        train,
        validation,
        collate=_collate,
        step=run.config.router,
        **run.fit_options(checkpoint_dir),
    )
    return router.state_dict(), step_metrics(fits)


@torch.no_grad()
def _fit_exactly(run: Run, router: Router, train: Sequence[_Row]) -> tuple[State, StepMetrics]:
    vectors = torch.stack([vector for vector, *_ in train]).float().cpu()
    router.cpu().normalizer.fit(vectors)
    labels, folds = (torch.tensor(column) for column in zip(*((i, fold) for _, i, fold in train), strict=True))
    result = fit_router(router.normalizer(vectors), labels, folds, len(router.tasks))
    router.classify.weight.copy_(result.weight)
    router.classify.bias.copy_(result.bias)
    state = router.state_dict() | {"folds.weight": result.fold_weights, "folds.bias": result.fold_biases}
    figures = ("loss", "accuracy", "ece", "l2")
    return state, {name: getattr(result, name) for name in figures} | {"steps": 0.0}


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
    return [feature for feature, *_ in _rows(run, examples)]


def _statistics(router: Router, rows: Sequence[tuple[Tensor, int]]) -> PromptStatistics:
    features = {task: [f for f, index in rows if index == i] for i, task in enumerate(router.tasks)}
    return PromptStatistics(
        {task: TaskPrompts.of(prompt_vectors(router, part)) for task, part in features.items() if part}
    )


def _rows(run: Run, examples: Examples) -> list[_Row]:
    tasks, seed = run.model.router.tasks, run.config.seed
    distinct = {(e.prompt, e.task): e for e in examples if e.task in tasks}
    return [
        (_feature(run, e), tasks.index(task or ""), fold_of(prompt, seed)) for (prompt, task), e in distinct.items()
    ]


def _collate(rows: Sequence[_Row]) -> list[RoutingBatch]:
    """Collate this process's shard of the batch; if it is empty, a dummy row of weight 0."""
    local = shard(rows)
    prompt, mask = pad([ids for ids, *_ in local or rows[:1]])
    labels = torch.tensor([task for _, task, _ in local or rows[:1]])
    weights = torch.full((len(labels),), float(bool(local)))
    return [RoutingBatch(prompt, mask, labels, weights, torch.tensor([len(rows) / world_size()]))]
