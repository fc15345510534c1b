"""Train the router, assign tasks to groups that have none (as in the paper), and fit the row of a task that joins.

    trunk   a linear map of fixed prompt embeddings: multinomial logistic regression, solved exactly with a strength
            by cross-validation:   mean_n cross-entropy(W x_n + b, t_n) + l2/2 · |W|²            x_n normalized
    own     a language model of its own, trained with the same loss (the paper)
    a row   of a task that joins:  P(new task | x) = σ(w · x + b − log Σ_t exp(logit_t)), all other rows fixed

Probabilities of prompts that a fit has not seen are calibrated, unlike those of its own prompts: they say how often the
router errs, and heads and mixture are fitted to them.

Shapes: n or Q prompts, d width of an embedding, R ≤ d + 1 directions, T tasks, K folds, C choices of strength.
"""

from __future__ import annotations

import copy
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional

from ..config import OwnRouterConfig
from ..errors import CheckpointError
from ..model import DMoERM
from ..model.packing import pad, to_device, transfer
from ..model.router import Router
from ..model.training_prompts import PromptStatistics, TaskPrompts
from .exact_solver import FOLDS, descend, fold_of, principal, solve
from .examples import PreferenceExample
from .loop import fit
from .losses import RowLosses, mean_by_expert, preference_losses
from .processes import broadcast, shard, world_size
from .steps import Run, State, StepMetrics, Training, part_of, step_metrics

STRENGTHS = (100.0, 30.0, 10.0, 3.0, 1.0, 0.3, 0.1, 0.03, 0.01, 0.003, 0.001)
"""Tried in this order until the held-out loss rises."""
MAX_PROMPTS = 20_000
"""Maximum number of prompts in a fit; of more, it uses this many at even distances, enough for T · d weights."""
DRAWS = 256
"""Prompts that are drawn of each other task, to fit a row."""
_ROW_STRENGTHS = (1e-4, 1e-3, 1e-2, 0.1, 1.0, 10.0)
_BIAS = 10.0  # the entry of the bias: large, so that the penalty hardly acts on it
_MAX_STEPS = 300
_TOLERANCE = 1e-2  # relative distance from the optimum at which the steps end
_BINS = 10
_PROMPTS_PER_COPY = 1024

Examples = Sequence[PreferenceExample]
_Row = tuple[Tensor, int, int]
"""A prompt: its embedding (d,) or token ids (P,), the index of its task, its fold."""


# --- the step ---------------------------------------------------------------------------------------------------------


def train_router(training: Training) -> None:
    """Train the router on the distinct prompts whose task is known, and route all examples."""
    run, router = training.run, training.run.model.router
    state = run.step("router", lambda checkpoint_dir: _train(training, checkpoint_dir))
    run.model.prompt_statistics = PromptStatistics.from_state(part_of(state, "statistics."), router.tasks)
    weights = {name: t for name, t in state.items() if not name.startswith(("statistics.", "folds."))}
    router.load_state_dict(weights, assign=True)
    router.requires_grad_(False).to(run.model.device)
    if folds := part_of(state, "folds."):
        training.routes = held_out_routes(run, [*training.train, *training.validation], folds)
    training.train = assign_tasks(run, training.train)
    training.validation = assign_tasks(run, training.validation)


def _train(training: Training, checkpoint_dir: Path) -> tuple[State, StepMetrics]:
    run = training.run
    router = copy.deepcopy(run.model.router).requires_grad_(True)
    train, validation = (_rows(run, part) for part in (training.train, training.validation))
    if router.language_model is None:
        vectors = torch.stack([vector for vector, *_ in train]).float().cpu()
        router.cpu().normalizer.fit(vectors)
        labels, folds = (torch.tensor([row[column] for row in train]) for column in (1, 2))
        with torch.no_grad():
            result = fit_router(router.normalizer(vectors), labels, folds, len(router.tasks))
            router.classify.weight.copy_(result.weight)
            router.classify.bias.copy_(result.bias)
        state = router.state_dict() | {"folds.weight": result.fold_weights, "folds.bias": result.fold_biases}
        metrics = {name: getattr(result, name) for name in ("loss", "accuracy", "ece", "l2")} | {"steps": 0.0}
    else:
        router.language_model = copy.deepcopy(router.language_model).float()
        run.recompute(router.language_model)
        options, step = run.fit_options(checkpoint_dir), run.config.router
        assert isinstance(step, OwnRouterConfig)
        if len(router.tasks) == 1:  # there is nothing to learn
            step = step.model_copy(update={"epochs": 0.0})
        fits = fit(RoutingLossModule(router), train, validation, collate=_collate, step=step, **options)
        state, metrics = router.state_dict(), step_metrics(fits)
    by_task = {task: [x for x, index, _ in train if index == i] for i, task in enumerate(router.tasks)}
    prompts = {task: TaskPrompts.of(prompt_vectors(router, part)) for task, part in by_task.items() if part}
    return state | {f"statistics.{name}": t for name, t in PromptStatistics(prompts).state().items()}, metrics


def _rows(run: Run, examples: Examples) -> list[_Row]:
    tasks, seed = run.model.router.tasks, run.config.seed
    distinct = {(e.prompt, e.task or ""): e for e in examples if e.task in tasks}
    return [(_feature(run, e), tasks.index(task), fold_of(prompt, seed)) for (prompt, task), e in distinct.items()]


def _feature(run: Run, example: PreferenceExample) -> Tensor:
    """Return what `prompt_vectors` reads of an example's prompt."""
    if run.model.router.language_model is None:
        return run.cache.prompt(example.encoded)
    return torch.tensor(example.encoded.prompt)


@torch.no_grad()
def prompt_vectors(router: Router, features: Sequence[Tensor]) -> Tensor:
    """Return the prompts' embeddings (Q, d); the features are embeddings, or token ids for a router's own model."""
    if router.language_model is None:
        return torch.stack(list(features)).float().cpu()
    device = router.classify.weight.device
    rows = (to_device(ids[None], device) for ids in features)
    return torch.cat([router.read(ids, torch.ones_like(ids, dtype=torch.bool)) for ids in rows]).cpu()


# --- routes -----------------------------------------------------------------------------------------------------------


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


@torch.no_grad()
def assign_tasks(run: Run, examples: Examples) -> list[PreferenceExample]:
    """Return the examples with tasks: as labeled, or the router's most likely one (None below the threshold)."""
    router, routes = run.model.router, list[str | None]()
    without = [e for e in examples if not e.task]
    for start in range(0, len(without), _PROMPTS_PER_COPY):
        features = [_feature(run, e) for e in without[start : start + _PROMPTS_PER_COPY]]
        vectors = to_device(prompt_vectors(router, features), run.model.device)
        highest, best = router.probabilities(vectors).cpu().max(1)
        recognized = (highest >= run.model.config.threshold).tolist()
        routes += [router.tasks[i] if known else None for i, known in zip(best.tolist(), recognized, strict=True)]
    routed = iter(broadcast(routes))  # or the ranks' batches would differ
    return [e if e.task else e.with_task(next(routed)) for e in examples]


# --- the exact fit ----------------------------------------------------------------------------------------------------


class RouterFit(NamedTuple):
    """A fitted router.

    Attributes:
        weight, bias: (T, d) and (T,), fitted to all prompts.
        fold_weights, fold_biases: (K, T, d) and (K, T), the k-th fitted without the prompts of fold k.
        l2: the strength with the lowest loss on the prompts that were left out.
        loss, accuracy, ece: on these prompts; ece is the expected calibration error of the largest probability.
    """

    weight: Tensor
    bias: Tensor
    fold_weights: Tensor
    fold_biases: Tensor
    l2: float
    loss: float
    accuracy: float
    ece: float


def fit_router(vectors: Tensor, labels: Tensor, folds: Tensor, tasks: int) -> RouterFit:
    """Fit the map with the strength that cross-validation finds best.

    Args:
        vectors: (n, d), normalized embeddings of the prompts.
        labels: (n,), the index of each prompt's task.
        folds: (n,), 0 … K − 1; equal prompts have the same fold.
        tasks: T.
    """
    kept = slice(None, None, -(-len(vectors) // MAX_PROMPTS) or 1)
    x, labels, folds = vectors[kept].float(), labels[kept], folds[kept]
    rows = torch.cat([x, torch.full((len(x), 1), _BIAS)], 1)
    columns = torch.cat([folds[:, None] != torch.arange(FOLDS), torch.ones(len(x), 1, dtype=torch.bool)], 1)
    directions, curvature = principal(rows / len(rows) ** 0.5)
    coordinates, target = rows @ directions, functional.one_hot(labels, tasks).float()
    solution = torch.zeros(len(curvature), FOLDS + 1, tasks)
    best: tuple[float, float, Tensor, Tensor] | None = None
    for l2 in STRENGTHS:
        solution = _solve_softmax(coordinates, curvature, target, columns.float(), l2, solution)
        every = (coordinates @ solution.flatten(1)).view(len(x), FOLDS + 1, tasks)
        logits = every[torch.arange(len(x)), folds]  # by the fit that was made without the prompt
        loss = float(functional.cross_entropy(logits, labels))
        if best is not None and loss > best[0]:
            break
        best = loss, l2, logits, solution
    assert best is not None
    loss, l2, logits, solution = best
    weights = (directions @ solution.flatten(1)).view(-1, FOLDS + 1, tasks).permute(1, 2, 0)
    weight, bias = weights[..., :-1].contiguous(), weights[..., -1] * _BIAS
    right = (logits.argmax(1) == labels).float()
    ece = calibration_error(torch.softmax(logits, 1).amax(1), right)
    return RouterFit(weight[FOLDS], bias[FOLDS], weight[:FOLDS], bias[:FOLDS], l2, loss, float(right.mean()), ece)


def _solve_softmax(
    coordinates: Tensor, curvature: Tensor, target: Tensor, columns: Tensor, l2: float, start: Tensor
) -> Tensor:
    """Return the solutions (R, K + 1, T) in the eigenvectors of the prompts' second moments.

    Half of the eigenvalues bound the curvature of the loss (Böhning, 1992).

    Args:
        coordinates, curvature: (n, R) and (R,), the prompts in these vectors, and the eigenvalues.
        target: (n, T), one-hot.
        columns: (n, K + 1), whether the prompt is in the column's training part.
        start: (R, K + 1, T).
    """
    share = columns / columns.sum(0).clamp(min=1)
    ratio = (share * len(share)).amax(0)  # of a column's curvature to that of all prompts, at most
    step = 1 / (0.5 * ratio[:, None] * curvature[:, None, None] + l2)

    def gradient(point: Tensor) -> Tensor:
        probability = torch.softmax((coordinates @ point.flatten(1)).view(len(target), -1, target.shape[1]), 2)
        errors = share[..., None] * (probability - target[:, None])
        return (coordinates.T @ errors.flatten(1)).view(start.shape) + l2 * point

    return descend(gradient, start, step, l2, (0, 2), _TOLERANCE, _MAX_STEPS)


def calibration_error(confidence: Tensor, right: Tensor) -> float:
    """Return the mean distance between confidence (n,) and the share that is right (n,), over ten bins of confidence.

    The bins divide 0 to 1 evenly and weigh as many prompts as they hold.
    """
    index = (confidence * _BINS).long().clamp(max=_BINS - 1)
    gaps = torch.zeros(_BINS).index_add_(0, index, confidence - right)
    return float(gaps.abs().sum() / max(len(confidence), 1))


# --- a row for a task that joins --------------------------------------------------------------------------------------


def add_row(training: Training, task: str) -> None:
    """Fit the router's row of a new task to the task's training prompts, and keep their statistics."""
    run = training.run

    def train(_: Path) -> tuple[State, StepMetrics]:
        features = [feature for feature, *_ in _rows(run, [e for e in training.train if e.task == task])]
        vectors = prompt_vectors(run.model.router, features)
        row, loss = fit_row(run.model, task, vectors, run.seed(f"router/{task}"))
        statistics = PromptStatistics({task: TaskPrompts.of(vectors)}).state()
        return {"row": row} | {f"statistics.{name}": t for name, t in statistics.items()}, {"loss": loss}

    state = run.step("router", train)
    set_row(run.model, task, state["row"], PromptStatistics.from_state(part_of(state, "statistics."), [task]))


@torch.no_grad()
def set_row(model: DMoERM, task: str, row: Tensor, statistics: PromptStatistics | None) -> None:
    """Set a task's row (d + 1), its bias last, and add the statistics of its prompts to the model's."""
    router, index = model.router, model.router.tasks.index(task)
    router.classify.weight[index] = row[:-1].to(router.classify.weight)
    router.classify.bias[index] = row[-1]
    tasks = {**known_statistics(model).tasks, **(statistics.tasks if statistics else {})}
    model.prompt_statistics = PromptStatistics(tasks)


def known_statistics(model: DMoERM, name: str = "this model") -> PromptStatistics:
    """Return the model's statistics of prompts. Raise `CheckpointError` if it has none."""
    if model.prompt_statistics is None:
        raise CheckpointError(
            f"{name}: has no statistics of its prompts (router/prompt_statistics.safetensors), so that no task can "
            "join it; copy the whole folder, or train it again"
        )
    return model.prompt_statistics


@torch.no_grad()
def fit_row(model: DMoERM, task: str, vectors: Tensor, seed: int) -> tuple[Tensor, float]:
    """Fit the row of a task against prompts drawn from the statistics of the model's other tasks; set nothing.

    Args:
        vectors: (n, d), embeddings of the task's prompts.
        seed: of the draws.

    Returns:
        The row (d + 1), its bias last, and the mean loss on prompts and draws that were left out.
    """
    router, statistics = model.router, known_statistics(model)
    generator = torch.Generator().manual_seed(seed)
    others = [name for name in router.tasks if name != task]
    drawn = [statistics.draw(name, DRAWS, generator) for name in others]
    x = router.normalizer(torch.cat([vectors.float(), *drawn]).to(router.classify.weight.device))
    required = router.classify(x)[:, [router.tasks.index(name) for name in others]].logsumexp(1).cpu()
    rows = torch.cat([x.cpu(), torch.full((len(x), 1), _BIAS)], 1)
    target = torch.cat([torch.ones(len(vectors)), torch.zeros(len(drawn) * DRAWS)])
    counts = [float(statistics.tasks[name].size) / DRAWS for name in others]
    weight = torch.cat([torch.ones(len(vectors)), *(torch.full((DRAWS,), count) for count in counts)])
    fold, strengths = torch.arange(len(rows)) % FOLDS, torch.tensor(_ROW_STRENGTHS)
    columns = (fold[:, None] != torch.arange(FOLDS)).float() * weight[:, None]  # (n, K)
    folds = columns.repeat(1, len(strengths))
    solutions = solve(rows, target, required, folds, strengths.repeat_interleave(FOLDS))
    margins = (rows @ solutions).view(len(rows), len(strengths), FOLDS)
    left_out = margins[torch.arange(len(rows)), :, fold] - required[:, None]  # (n, C)
    losses = (preference_losses(left_out, target[:, None]) * weight[:, None]).sum(0) / weight.sum()
    best = int(losses.argmin())
    row = solve(rows, target, required, weight[:, None], strengths[best : best + 1])[:, 0]
    return torch.cat([row[:-1], row[-1:] * _BIAS]), float(losses[best])


# --- a router's own language model ------------------------------------------------------------------------------------


@dataclass(frozen=True, eq=False)
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
        """Return the batch on a device."""
        return RoutingBatch(*transfer(list(vars(self).values()), device))


class RoutingLossModule(nn.Module):
    """The router under cross-entropy on its logits."""

    def __init__(self, router: Router) -> None:
        super().__init__()
        self.router = router

    def forward(self, batch: RoutingBatch) -> RowLosses:
        logits = self.router(self.router.read(batch.prompt, batch.mask))
        rows = functional.cross_entropy(logits.float(), batch.labels, reduction="none")
        expert = torch.zeros_like(batch.labels)
        loss = mean_by_expert(rows, batch.weights, expert, 1, batch.total).sum()
        correct = (logits.argmax(1) == batch.labels).to(rows.dtype)
        return RowLosses(loss, rows, batch.weights, correct, batch.weights, expert)


def _collate(rows: Sequence[_Row]) -> list[RoutingBatch]:
    """Collate this process's shard of the batch; if it is empty, a dummy row of weight 0."""
    local = shard(rows)
    prompt, mask = pad([ids for ids, *_ in local or rows[:1]])
    labels = torch.tensor([task for _, task, _ in local or rows[:1]])
    weights = torch.full((len(labels),), float(bool(local)))
    return [RoutingBatch(prompt, mask, labels, weights, torch.tensor([len(rows) / world_size()]))]
