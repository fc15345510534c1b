"""`gated`: one regression head per objective, weighted by a gate that reads the prompt (ArmoRM, arXiv 2406.12845).

Training: ridge regressions on the grades, then the gate on the preferences.

Shapes: N responses, D an embedding's width, O objectives (all capabilities of all tasks), d a prompt embedding's width.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Mapping
from pathlib import Path

import torch
from torch import Tensor, nn

from dmoerm.config import StepConfig
from dmoerm.evaluation.methods import Method, MethodContext, TrainedMethod, register
from dmoerm.evaluation.scored_groups import ScoringBatch
from dmoerm.model.heads import Normalizer
from dmoerm.training import Run
from dmoerm.training.embedding import base_embeddings
from dmoerm.training.examples import labeled
from dmoerm.training.loop import fit
from dmoerm.training.losses import PreferenceLossModule, VectorCollator
from dmoerm.training.steps import State, StepMetrics, step_metrics
from evidence.methods.ensembles import Examples

_RIDGES = (0.1, 0.3, 1.0, 3.0, 10.0)
_GATE_L2 = (1e-4, 1e-3, 1e-2, 1e-1, 1.0)
"""L2 strengths that pull the gate towards uniform weights; the best on the validation part is chosen."""


class Gated(nn.Module):
    """Maps concatenated objective scores and prompt embedding (N, O + d) to rewards (N,), weighted by the gate."""

    def __init__(self, width: int, objectives: int, prompt_width: int) -> None:
        super().__init__()
        self.split = (objectives, prompt_width)
        self.objectives = nn.Linear(width, objectives, bias=False)
        self.embedding, self.prompt = Normalizer(width), Normalizer(prompt_width)
        self.gate = nn.Linear(prompt_width, objectives)
        self.sharpness = nn.Parameter(torch.ones(1))
        nn.init.zeros_(self.gate.weight)
        nn.init.zeros_(self.gate.bias)

    def vectors(self, z: Tensor, prompt: Tensor) -> Tensor:
        """Return the input of `forward` from embeddings (N, D) and prompt embeddings (N, d), or one of them (d,)."""
        return torch.cat([self.objectives(self.embedding(z.float())), prompt.float().expand(len(z), -1)], -1)

    def weights(self, prompt: Tensor) -> Tensor:
        """Return the weights of the objectives (N, O) for prompts (N, d); each row sums to 1."""
        return self.gate(self.prompt(prompt)).softmax(-1)

    def forward(self, vectors: Tensor) -> Tensor:
        scores, prompt = vectors.split(self.split, -1)
        return self.sharpness * (scores * self.weights(prompt)).sum(-1)


def train_gated(run: Run, train: Examples, validation: Examples) -> Gated:
    """Fit ridge regressions on the grades, then the gate on the overall preferences with all else frozen."""
    general, names = run.model.general, objectives(run)
    width, prompts = len(general.head.normalizer.mean), len(run.cache.prompt(train[0].encoded))
    gated = Gated(width, len(names), prompts)
    state = run.step("baselines/gated", lambda folder: _train(run, gated, train, validation, folder))
    gated.load_state_dict(state)
    return gated.requires_grad_(False).eval()


def objectives(run: Run) -> list[tuple[str, str]]:
    """Return task and capability of each objective."""
    return [(task, name) for task, names in run.model.config.tasks.items() for name in names]


def gated_vectors(run: Run, gated: Gated, examples: Examples) -> dict[str, Tensor]:
    """Return key → the input of the gated model."""
    z = base_embeddings(run, run.model.general, examples)
    with torch.no_grad():
        return {e.key: gated.vectors(z[e.key], run.cache.prompt(e.encoded)) for e in examples}


def _train(run: Run, start: Gated, train: Examples, validation: Examples, folder: Path) -> tuple[State, StepMetrics]:
    gated = copy.deepcopy(start).requires_grad_(False)
    z = base_embeddings(run, run.model.general, [*train, *validation])
    gated.embedding.fit(torch.cat([z[e.key] for e in train]).float())
    gated.prompt.fit(torch.stack([run.cache.prompt(e.encoded) for e in train]).float())
    with torch.no_grad():
        for row, (task, name) in enumerate(objectives(run)):
            parts = [_graded(gated, z, part, task, name) for part in (train, validation)]
            gated.objectives.weight[row] = _ridge(*parts)
    return min(
        (_train_gate(run, gated, train, validation, l2, folder / f"l2-{l2:g}") for l2 in _GATE_L2),
        key=lambda result: result[1]["loss"],
    )


def _train_gate(
    run: Run, start: Gated, train: Examples, validation: Examples, l2: float, folder: Path
) -> tuple[State, StepMetrics]:
    """Fit the gate with one L2 strength, which the metrics contain as `l2`."""
    gated = copy.deepcopy(start)
    for part in (gated.gate, gated.sharpness):
        part.requires_grad_(True)
    vectors = gated_vectors(run, gated, [*train, *validation])
    collate = VectorCollator(lambda e: vectors[e.key])
    step = run.config.phase1 if isinstance(run.config.phase1, StepConfig) else StepConfig()
    module = PreferenceLossModule(gated, l2, gated.gate)
    options = run.fit_options(folder, seed="baselines/gated")
    fits = fit(module, labeled(train), labeled(validation), collate=collate, step=step, **options)
    return gated.state_dict(), {**step_metrics(fits), "l2": l2}


def _graded(gated: Gated, z: Mapping[str, Tensor], examples: Examples, task: str, name: str) -> tuple[Tensor, Tensor]:
    """Return standardized embeddings and grades of all graded responses."""
    rows, grades = [], []
    for e in examples:
        given = e.group.capabilities.get(name, ()) if e.task == task else ()
        if kept := {i: float(grade) for i, grade in enumerate(given) if grade is not None}:
            rows.append(gated.embedding(z[e.key].float())[list(kept)])
            grades += kept.values()
    if not rows:
        return torch.zeros(0, len(gated.embedding.mean)), torch.zeros(0)
    return torch.cat(rows), torch.tensor(grades)


def _ridge(train: tuple[Tensor, Tensor], validation: tuple[Tensor, Tensor]) -> Tensor:
    """Fit the weights (D,) for standardized grades, with the penalty that is best on the validation part."""
    x, y = train
    if len(y) < 2 or float(y.std()) == 0:
        return torch.zeros(x.shape[1])
    y = ((y - y.mean()) / y.std()).double()
    centered = (x - x.mean(0)).double()
    kernel = centered @ centered.T  # the dual problem, since there are fewer responses than dimensions
    weights = []
    for ridge in _RIDGES:
        dual = torch.linalg.solve(kernel + ridge * len(y) * torch.eye(len(y), dtype=kernel.dtype), y)
        weights.append((centered.T @ dual).float())
    if len(validation[1]) < 3:
        return weights[len(_RIDGES) // 2]

    def correlation(w: Tensor) -> float:
        value = float(torch.corrcoef(torch.stack([validation[0] @ w, validation[1]]))[0, 1])
        return value if math.isfinite(value) else 0.0  # no correlation where one of the two is constant

    return max(weights, key=correlation)


def train_method(context: MethodContext) -> TrainedMethod | None:
    """Train it; None if the router has no prompt embedding that a gate could read, or no capability is graded."""
    run = context.run
    if run.model.router.language_model is not None or not any(e.group.capabilities for e in context.train):
        return None
    gated = train_gated(run, context.train, context.validation)

    def score(batch: ScoringBatch) -> Tensor:
        assert batch.prompts is not None
        vectors = gated.vectors(batch.embeddings.cpu(), batch.prompts[batch.owner].cpu())
        return gated(vectors).to(batch.owner.device)[None]

    return TrainedMethod(score)


register(
    Method(
        "gated", "one regression head per objective, weighted by a gate that reads the prompt (ArmoRM)", train_method
    )
)
