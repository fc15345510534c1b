"""Single models that are trained like the general one: members of ensembles, and baselines' starting points."""

from __future__ import annotations

import copy
from collections.abc import Sequence

import numpy as np
import torch

from ...model.backbone import load_backbone, split_layers
from ...model.heads import BranchScorer
from ...training import Run
from ...training.batches import PreferenceExample
from ...training.phases import apply_base, train_base
from .method import MethodContext

Examples = Sequence[PreferenceExample]


def train_members(context: MethodContext, bagging: bool = False) -> list[BranchScorer]:
    """Train `context.members` single models on all tasks together.

    Args:
        bagging: each on its own resample of the prompts; otherwise the run's general model is the first, and the others
            differ in the start of the head and the order of the data.
    """
    run = context.run
    members = [] if bagging else [run.model.general]
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


def fresh_scorer(run: Run, name: str) -> BranchScorer:
    """The pretrained branch and a new head, drawn by the step's seed."""
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


def _resampled(examples: Examples, seed: int) -> Examples:
    """As many prompts as there are, drawn with replacement, each with all its groups."""
    prompts: dict[str, list[PreferenceExample]] = {}
    for example in examples:
        prompts.setdefault(f"{example.task}\0{example.prompt}", []).append(example)
    groups = list(prompts.values())
    drawn = np.random.default_rng(seed).integers(0, len(groups), len(groups))
    return [example for i in drawn for example in groups[i]]
