"""Single models that are trained like the general one: members of ensembles, and baselines' starting points.

Shapes: k members, N responses.
"""

from __future__ import annotations

import copy
from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

from ...evaluation.scored_groups import ScoringBatch
from ...model.backbone import load_backbone
from ...model.heads import BranchScorer
from ...model.layers import split_layers
from ...training import Run
from ...training.batches import PreferenceExample
from ...training.embedding import base_embeddings
from ...training.phases import apply_base, train_base
from .method import MethodContext

Examples = Sequence[PreferenceExample]


def train_members(context: MethodContext, bagging: bool = False) -> list[BranchScorer]:
    """Train `context.members` single models on all tasks together.

    Args:
        bagging: each on its own resample of the prompts; otherwise the run's general model is the first, and the others
            differ in the start of the head and the order of the data. An exact fit depends on neither, so the general
            model is then the only member.
    """
    run = context.run
    members = [] if bagging else [run.model.general]
    if not bagging and has_exact_head(run):
        return members
    while len(members) < context.members:
        name = f"baselines/{'bagged' if bagging else 'member'}{len(members)}"
        start = fresh_scorer(run, name)
        part = _resampled(context.train, run.seed(name)) if bagging else context.train
        state = run.step(
            name,
            lambda folder, s=start, p=part: train_base(run, s, p, context.validation, run.config.phase0, folder),
        )
        apply_base(start, state)
        members.append(start)
    return members


def has_exact_head(run: Run) -> bool:
    """Return whether the general model is a head that is fitted exactly, a convex problem with one solution."""
    return run.config.phase0.l2 == "auto"


def single_rewards(run: Run, scorer: BranchScorer, batch: ScoringBatch) -> Tensor:
    """Return the rewards (N,) of a single model; a frozen branch's embeddings are the batch's."""
    return scorer.head(batch.embeddings if run.frozen else scorer.embed(batch.hidden))


def fresh_scorer(run: Run, name: str) -> BranchScorer:
    """Return the pretrained branch with a new head, drawn by the step's seed."""
    general = run.model.general
    branch = general.branch
    if not run.frozen:
        decoder = load_backbone(run.config.backbone)[0]
        branch = split_layers(decoder, run.model.config.branch_layer)[1].to(run.model.device)  # pyright: ignore[reportArgumentType]
    head = copy.deepcopy(general.head)
    generator = torch.Generator().manual_seed(run.seed(name))
    with torch.no_grad():
        for parameter in head.parameters():
            if parameter.dim() > 1:
                spread = 1e-3 if parameter is head.score.weight else 0.02
                parameter.copy_(spread * torch.randn(parameter.shape, generator=generator))  # drawn on the CPU
    return BranchScorer(branch, head, general.pooling).requires_grad_(False)


@torch.no_grad()
def reward_statistics(run: Run, scorers: Sequence[BranchScorer], train: Examples) -> tuple[Tensor, Tensor]:
    """Return the mean and standard deviation (k,) of each member's rewards on the training part."""
    rewards = []
    for scorer in scorers:
        z = base_embeddings(run, scorer, train)
        rewards.append(torch.cat([scorer.head(rows.to(run.model.device)) for rows in z.values()]))
    stacked = torch.stack(rewards)
    return stacked.mean(1), stacked.std(1, correction=0).clamp(min=1e-6)


@torch.no_grad()
def averaged(scorers: Sequence[BranchScorer]) -> BranchScorer:
    """Return one model with the mean of the members' weights; a branch that is the same in all is shared."""
    branch = scorers[0].branch
    shared = all(scorer.branch is branch for scorer in scorers)
    merged = copy.deepcopy(scorers[0], {id(branch): branch} if shared else {})
    states = [(scorer.head if shared else scorer).state_dict() for scorer in scorers]
    for name, tensor in (merged.head if shared else merged).state_dict().items():
        tensor.copy_(torch.stack([state[name].float() for state in states]).mean(0))
    return merged


def _resampled(examples: Examples, seed: int) -> Examples:
    """Draw as many prompts as there are, with replacement, each with all its groups."""
    prompts: dict[str, list[PreferenceExample]] = {}
    for example in examples:
        prompts.setdefault(f"{example.task}\0{example.prompt}", []).append(example)
    groups = list(prompts.values())
    drawn = np.random.default_rng(seed).integers(0, len(groups), len(groups))
    return [example for i in drawn for example in groups[i]]
