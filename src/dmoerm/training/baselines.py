"""What DMoERM is compared with, trained on the same groups by the same means.

    members    further single models: phase 0 again, with another start of the head and another order of the data
               (the ensembles of arXiv 2310.02743; their averaged weights: WARM, arXiv 2401.12187)
    gated      one regression head an objective, weighted by a gate that reads the prompt (ArmoRM, arXiv 2406.12845)

Shapes: N responses, D an embedding's width, O objectives (all capabilities of all tasks), d a prompt embedding's width.
"""

from __future__ import annotations

import copy
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn

from ..data.splitting import chance
from ..model.heads import BranchScorer, Standardise
from .batches import Example, collate_vectors, items
from .embedding import base_embeddings
from .learner import PhaseModel
from .phases import apply_base, fit_step, train_base
from .steps import Ended, Run, State, ended

Examples = Sequence[Example]
_RIDGES = (0.1, 0.3, 1.0, 3.0, 10.0)


def train_members(run: Run, train: Examples, validation: Examples, count: int) -> list[BranchScorer]:
    """`count` single models on all tasks together, the run's own general model the first of them."""
    members = [run.model.general]
    for i in range(1, count):
        name = f"baselines/member{i}"
        member = copy.deepcopy(run.model.general) if not run.frozen else _same_branch(run.model.general)
        nn.init.normal_(member.head.score.weight, std=1e-3, generator=torch.Generator().manual_seed(run.seed(name)))
        start = member
        state = run.step(name, lambda place, s=start: train_base(run, s, train, validation, run.config.phase0, place))
        apply_base(member, state)
        members.append(member)
    return members


def _same_branch(scorer: BranchScorer) -> BranchScorer:
    return BranchScorer(scorer.branch, copy.deepcopy(scorer.head), scorer.pooling)


@torch.no_grad()
def averaged(members: Sequence[BranchScorer]) -> BranchScorer:
    """One model with the mean of the members' weights."""
    found = copy.deepcopy(members[0])
    for name, tensor in found.state_dict().items():
        tensor.copy_(torch.stack([member.state_dict()[name].float() for member in members]).mean(0))
    return found


class Gated(nn.Module):
    """Objective scores and prompt embedding side by side (N, O + d) → reward (N,), a mean weighted by the gate."""

    def __init__(self, width: int, objectives: int, prompt_width: int) -> None:
        super().__init__()
        self.split = (objectives, prompt_width)
        self.objectives = nn.Linear(width, objectives, bias=False)
        self.embedding, self.prompt = Standardise(width), Standardise(prompt_width)
        self.gate = nn.Linear(prompt_width, objectives)
        self.sharpness = nn.Parameter(torch.ones(1))
        nn.init.zeros_(self.gate.weight)
        nn.init.zeros_(self.gate.bias)

    def vectors(self, z: Tensor, prompt: Tensor) -> Tensor:
        """What `forward` takes, of a group's embeddings (N, D) and its prompt's (d,)."""
        return torch.cat([self.objectives(self.embedding(z.float())), prompt.float().expand(len(z), -1)], -1)

    def forward(self, vectors: Tensor) -> Tensor:
        scores, prompt = vectors.split(self.split, -1)
        return self.sharpness * (scores * self.gate(self.prompt(prompt)).softmax(-1)).sum(-1)


def train_gated(run: Run, train: Examples, validation: Examples) -> Gated:
    """Ridge regressions on the grades, then the gate on the overall preferences with all else frozen."""
    general, names = run.model.general, objectives(run)
    width, prompts = len(general.head.standardise.mean), len(run.cache.prompt(train[0].encoded))
    gated = Gated(width, len(names), prompts)
    gated.load_state_dict(run.step("baselines/gated", lambda place: _train_gated(run, gated, train, validation, place)))
    return gated.requires_grad_(False).eval()


def objectives(run: Run) -> list[tuple[str, str]]:
    """Task and capability of each objective."""
    return [(task, name) for task, names in run.model.config.tasks.items() for name in names]


def gated_vectors(run: Run, gated: Gated, examples: Examples) -> dict[str, Tensor]:
    """Key → what the gated model takes."""
    z = base_embeddings(run, run.model.general, examples)
    with torch.no_grad():
        return {e.key: gated.vectors(z[e.key], run.cache.prompt(e.encoded)) for e in examples}


def _train_gated(run: Run, start: Gated, train: Examples, validation: Examples, place: Path) -> tuple[State, Ended]:
    gated = copy.deepcopy(start).requires_grad_(False)
    z = base_embeddings(run, run.model.general, [*train, *validation])
    gated.embedding.fit(torch.cat([z[e.key] for e in train]).float())
    gated.prompt.fit(torch.stack([run.cache.prompt(e.encoded) for e in train]).float())
    with torch.no_grad():
        for row, (task, name) in enumerate(objectives(run)):
            parts = [_graded(run, gated, z, part, task, name) for part in (train, validation)]
            gated.objectives.weight[row] = _ridge(*parts)
    for part in (gated.gate, gated.sharpness):
        part.requires_grad_(True)
    vectors = gated_vectors(run, gated, [*train, *validation])
    rows = [items(part, lambda e: vectors[e.key]) for part in (train, validation)]
    step = run.config.phase1.head_first or run.config.phase1
    fits = fit_step(run, PhaseModel(gated, step.l2, gated.gate), rows, collate_vectors, step, place)
    return gated.state_dict(), ended(fits)


def _graded(
    run: Run, gated: Gated, z: dict[str, Tensor], examples: Examples, task: str, name: str
) -> tuple[Tensor, Tensor]:
    """Standardised embeddings and grades of all graded responses; noise reverses a share of the groups' grades."""
    rows, grades = [], []
    for e in examples:
        given = e.group.capabilities.get(name) if e.task == task else None
        kept = [] if given is None else [i for i, grade in enumerate(given) if grade is not None]
        if given is None or not kept:
            continue
        values = [float(given[i] or 0.0) for i in kept]
        if chance(f"{run.config.seed}/{e.group.id}/{name}") < run.config.data.flip_capabilities:
            values = [max(values) + min(values) - value for value in values]
        rows.append(gated.embedding(z[e.key].float())[kept])
        grades += values
    if not rows:
        return torch.zeros(0, len(gated.embedding.mean)), torch.zeros(0)
    return torch.cat(rows), torch.tensor(grades)


def _ridge(train: tuple[Tensor, Tensor], validation: tuple[Tensor, Tensor]) -> Tensor:
    """The weights (D,) for standardised grades; the penalty is the best of a few on the validation part."""
    x, y = train
    if len(y) < 2 or float(y.std()) == 0:
        return torch.zeros(x.shape[1])
    y = ((y - y.mean()) / y.std()).double()
    centred = (x - x.mean(0)).double()
    kernel = centred @ centred.T  # in the dual: responses are fewer than dimensions
    found = []
    for ridge in _RIDGES:
        dual = torch.linalg.solve(kernel + ridge * len(y) * torch.eye(len(y), dtype=kernel.dtype), y)
        found.append((centred.T @ dual).float())
    if len(validation[1]) < 3:
        return found[len(_RIDGES) // 2]
    return max(found, key=lambda w: _correlation(validation[0] @ w, validation[1]))


def _correlation(a: Tensor, b: Tensor) -> float:
    value = np.corrcoef(a.numpy(), b.numpy())[0, 1]
    return float(value) if np.isfinite(value) else 0.0
