"""The router's row of a task that joins a trained model, without the prompts of the model's other tasks.

    P(new task | x) = σ(w · x + b − log Σ_t exp(logit_t))

The rows of the other tasks stay as they are, so the problem is a convex one in w and b alone. The other tasks' prompts
are drawn from the statistics that the checkpoint keeps (model/prompt_statistics.py).

Shapes: n prompts, d hidden width, C choices of strength, K folds.
"""

from __future__ import annotations

from functools import partial

import torch
from torch import Tensor

from ..errors import CheckpointError
from ..model import DMoERM
from ..model.training_prompts import PromptStatistics, TaskPrompts
from .linear_heads import FOLDS, solve
from .losses import preference_losses
from .router_step import prompt_features, prompt_vectors
from .steps import State, StepMetrics, Training

DRAWS = 256
"""Prompts that are drawn of each other task."""
_STRENGTHS = (1e-4, 1e-3, 1e-2, 0.1, 1.0, 10.0)
_BIAS = 10.0  # the entry of the bias: large, so that the penalty hardly acts on it


def add_row(training: Training, task: str) -> None:
    """Fit the router's row of a new task to the task's training prompts, and keep their statistics."""
    run = training.run
    state = run.step("router", lambda _: _fit(training, task))
    model, prefix = run.model, "statistics."
    known = {name.removeprefix(prefix): t for name, t in state.items() if name.startswith(prefix)}
    set_row(model, task, state["row"], PromptStatistics.from_state(known, [task]))


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


def _fit(training: Training, task: str) -> tuple[State, StepMetrics]:
    run = training.run
    vectors = prompt_vectors(run.model.router, prompt_features(run, [e for e in training.train if e.task == task]))
    row, loss = fit_row(run.model, task, vectors, run.seed(f"router/{task}"))
    statistics = PromptStatistics({task: TaskPrompts.of(vectors)}).state()
    return {"row": row} | {f"statistics.{name}": t for name, t in statistics.items()}, {"loss": loss}


@torch.no_grad()
def fit_row(model: DMoERM, task: str, vectors: Tensor, seed: int) -> tuple[Tensor, float]:
    """Fit the row of a task against drawn prompts of the model's other tasks; set nothing.

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
    device = router.classify.weight.device
    x = router.normalizer(torch.cat([vectors.float(), *drawn]).to(device))
    kept = [router.tasks.index(name) for name in others]
    required = router.classify(x)[:, kept].logsumexp(1).cpu()
    rows = torch.cat([x.cpu(), torch.full((len(x), 1), _BIAS)], 1)
    target = torch.cat([torch.ones(len(vectors)), torch.zeros(len(drawn) * DRAWS)])
    counts = [float(statistics.tasks[name].size) / DRAWS for name in others]
    weight = torch.cat([torch.ones(len(vectors)), *(torch.full((DRAWS,), count) for count in counts)])
    row, loss = _cross_validated(rows, target, required, weight)
    return torch.cat([row[:-1], row[-1:] * _BIAS]), loss


def _cross_validated(rows: Tensor, target: Tensor, required: Tensor, weight: Tensor) -> tuple[Tensor, float]:
    """Solve with the penalty whose fits have the lowest loss on the folds that they did not see."""
    fold = torch.arange(len(rows)) % FOLDS
    fit = partial(solve, rows, target, required)
    columns = (fold[:, None] != torch.arange(FOLDS)).float() * weight[:, None]  # (n, K)
    strengths = torch.tensor(_STRENGTHS)
    solutions = fit(columns.repeat(1, len(strengths)), strengths.repeat_interleave(FOLDS))
    margins = (rows @ solutions).view(len(rows), len(strengths), FOLDS)
    left_out = margins[torch.arange(len(rows)), :, fold] - required[:, None]  # (n, C)
    losses = (preference_losses(left_out, target[:, None]) * weight[:, None]).sum(0) / weight.sum()
    best = int(losses.argmin())
    return fit(weight[:, None], strengths[best : best + 1])[:, 0], float(losses[best])
