"""What DMoERM is compared with, trained on the same groups by the same means.

    ensemble   k single models: phase 0 again, with another start of the head and another order of the data, combined by
               their mean, their worst (WCO), or their mean less their variance (UWO); arXiv 2310.02743
    bagged     the same, each model on its own resample of the prompts: heads on fixed embeddings are convex fits, which
               another start and order hardly move
    warm       one model with the mean of the ensemble's weights (arXiv 2401.12187)
    gated      one regression head an objective, weighted by a gate that reads the prompt (ArmoRM, arXiv 2406.12845)

Shapes: Q groups of a batch, N responses, D an embedding's width, k members, O objectives (all capabilities of all
tasks), d a prompt embedding's width.
"""

from __future__ import annotations

import copy
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn

from ..data.splitting import chance
from ..model.backbone import load_backbone, split_layers
from ..model.ensemble import combined
from ..model.heads import BranchScorer, Normalizer
from ..model.packing import Packed
from .batches import PreferenceExample, VectorCollator, labeled
from .embedding import base_embeddings
from .losses import PreferenceLossModule
from .phases import apply_base, train_base
from .steps import Ended, Run, State, ended, fit_step

Examples = Sequence[PreferenceExample]
_RIDGES = (0.1, 0.3, 1.0, 3.0, 10.0)


@dataclass(frozen=True)
class Baselines:
    """The trained baselines of a run.

    Attributes:
        ensembles: `ensemble` and `bagged` → the members.
        gated: None where the router has no prompt embedding that a gate could read, or nobody graded a capability.
    """

    ensembles: dict[str, Ensemble]
    warm: BranchScorer
    gated: Gated | None

    @torch.no_grad()
    def rewards(self, hidden: Packed, base: Tensor, prompts: Tensor | None) -> dict[str, Tensor]:
        """Method → rewards (N,).

        Args:
            hidden: the hidden states at the cut.
            base: (N, D), the pretrained branch's embeddings; read where the branch is not trained.
            prompts: (N, d), the embedding of each response's prompt.
        """
        found = {}
        for name, ensemble in self.ensembles.items():
            found |= {f"{name}_{how}": row for how, row in combined(ensemble.rewards(hidden, base)).items()}
        found["warm"] = self.warm.head(base if self.ensembles["ensemble"].shared else self.warm.embed(hidden))
        if self.gated is not None and prompts is not None:
            found["gated"] = self.gated(self.gated.vectors(base.cpu(), prompts.cpu())).to(base.device)
        return found


@dataclass(frozen=True)
class Ensemble:
    """Single models; each one's rewards are normalized by the training part, so that their worst means something.

    Attributes:
        centre, scale: (k,).
        shared: the members share the pretrained branch and differ in their heads.
    """

    members: Sequence[BranchScorer]
    centre: Tensor
    scale: Tensor
    shared: bool

    def rewards(self, hidden: Packed, base: Tensor) -> Tensor:
        """(k, N), normalized."""
        raw = [m.head(base if self.shared else m.embed(hidden)) for m in self.members]
        return (torch.stack(raw) - self.centre[:, None]) / self.scale[:, None]


def train_baselines(run: Run, train: Examples, validation: Examples, count: int) -> Baselines:
    """Trains what has not been trained yet, ensembles of `count` members, as steps of the run."""
    members = train_members(run, train, validation, count)
    bagged = train_members(run, train, validation, count, bagging=True)
    graded = any(e.group.capabilities for e in train)
    gate = run.model.router.language_model is None and graded
    return Baselines(
        {"ensemble": _normalized(run, members, train), "bagged": _normalized(run, bagged, train)},
        averaged(members),
        train_gated(run, train, validation) if gate else None,
    )


def train_members(
    run: Run, train: Examples, validation: Examples, count: int, bagging: bool = False
) -> list[BranchScorer]:
    """`count` single models on all tasks together; without bagging the run's own general model is the first."""
    members = [] if bagging else [run.model.general]
    while len(members) < count:
        name = f"baselines/{'bagged' if bagging else 'member'}{len(members)}"
        start = _start(run, name)
        part = _resampled(train, run.seed(name)) if bagging else train
        state = run.step(
            name, lambda place, s=start, p=part: train_base(run, s, p, validation, run.config.phase0, place)
        )
        apply_base(start, state)
        members.append(start)
    return members


def _start(run: Run, name: str) -> BranchScorer:
    """The pretrained branch and a head of the member's own."""
    general = run.model.general
    branch = general.branch
    if not run.frozen:
        branch = split_layers(load_backbone(run.config.backbone)[0], run.model.config.branch_layer)[1].to(
            run.model.device
        )  # pyright: ignore[reportArgumentType]
    head = copy.deepcopy(general.head)
    generator = torch.Generator().manual_seed(run.seed(name))
    with torch.no_grad():
        for parameter in head.parameters():
            if parameter.dim() > 1:
                spread = 1e-3 if parameter is head.score.weight else 0.02
                parameter.copy_(spread * torch.randn(parameter.shape, generator=generator))  # drawn on the CPU
    return BranchScorer(branch, head, general.pooling).requires_grad_(False)


def _resampled(examples: Examples, seed: int) -> Examples:
    """As many prompts as there are, drawn with replacement, each with all its groups."""
    prompts: dict[str, list[PreferenceExample]] = {}
    for example in examples:
        prompts.setdefault(f"{example.task}\0{example.prompt}", []).append(example)
    groups = list(prompts.values())
    drawn = np.random.default_rng(seed).integers(0, len(groups), len(groups))
    return [example for i in drawn for example in groups[i]]


@torch.no_grad()
def _normalized(run: Run, members: Sequence[BranchScorer], train: Examples) -> Ensemble:
    rewards = []
    for member in members:
        z = base_embeddings(run, member, train)
        rewards.append(torch.cat([member.head(rows.to(run.model.device)) for rows in z.values()]))
    stacked = torch.stack(rewards)
    return Ensemble(members, stacked.mean(1), stacked.std(1, correction=0).clamp(min=1e-6), run.frozen)


@torch.no_grad()
def averaged(members: Sequence[BranchScorer]) -> BranchScorer:
    """One model with the mean of the members' weights; a branch that is the same in all is shared."""
    branch = members[0].branch
    shared = all(member.branch is branch for member in members)
    found = copy.deepcopy(members[0], {id(branch): branch} if shared else {})
    states = [(member.head if shared else member).state_dict() for member in members]
    for name, tensor in (found.head if shared else found).state_dict().items():
        tensor.copy_(torch.stack([state[name].float() for state in states]).mean(0))
    return found


class Gated(nn.Module):
    """Objective scores and prompt embedding side by side (N, O + d) → reward (N,), a mean weighted by the gate."""

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
        """What `forward` takes, of embeddings (N, D) and their prompts' (N, d), or the one prompt's (d,)."""
        return torch.cat([self.objectives(self.embedding(z.float())), prompt.float().expand(len(z), -1)], -1)

    def forward(self, vectors: Tensor) -> Tensor:
        scores, prompt = vectors.split(self.split, -1)
        return self.sharpness * (scores * self.gate(self.prompt(prompt)).softmax(-1)).sum(-1)


def train_gated(run: Run, train: Examples, validation: Examples) -> Gated:
    """Ridge regressions on the grades, then the gate on the overall preferences with all else frozen."""
    general, names = run.model.general, objectives(run)
    width, prompts = len(general.head.normalizer.mean), len(run.cache.prompt(train[0].encoded))
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
    collate = VectorCollator(lambda e: vectors[e.key])
    step = run.config.phase1.head_first or run.config.phase1
    module = PreferenceLossModule(gated, step.l2, gated.gate)
    fits = fit_step(run, module, [labeled(train), labeled(validation)], collate, step, place)
    return gated.state_dict(), ended(fits)


def _graded(
    run: Run, gated: Gated, z: dict[str, Tensor], examples: Examples, task: str, name: str
) -> tuple[Tensor, Tensor]:
    """Normalized embeddings and grades of all graded responses; noise reverses a share of the groups' grades."""
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
    """The weights (D,) for normalized grades; the penalty is the best of a few on the validation part."""
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
