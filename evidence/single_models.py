"""One model on one capability, outside of a run's steps: a head on the pretrained branch, or the branch trained.

head     linear on the pooled states of the pretrained branch, fitted exactly
branch   the branch with all its weights trained, from that head; the learning rate has the lowest validation loss
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from rich.console import Console
from torch import Tensor

from dmoerm.config import Config, changed
from dmoerm.data.splits import load_splits
from dmoerm.evaluation.metrics import right_pairs
from dmoerm.model.heads import BranchScorer
from dmoerm.schema import Group, prompt_key
from dmoerm.training.embedding import base_embeddings
from dmoerm.training.exact_solver import fit_heads
from dmoerm.training.examples import PreferenceExample
from dmoerm.training.phases import apply_base, train_base
from dmoerm.training.run import prepare, split_examples
from dmoerm.training.steps import Progress, Run

_RATES, _EPOCHS = (1e-4, 3e-4), 3
Examples = Sequence[PreferenceExample]
Rewards = dict[str, Tensor]
"""Key of a test example → rewards of its responses."""


def prepared(config: Config) -> tuple[Run, Examples, Examples, Examples]:
    """Return a run without steps, and the training, validation and test groups that people order, with activations."""
    data = load_splits(config)
    run = prepare(config, data.taxonomy, Path(config.output), Progress(Console(stderr=True)))
    train, validation = split_examples(run, [g for g in data.train if g.pairs()])
    test = run.examples([g for g in data.test if g.pairs()])
    run.cache.fill([e.encoded for e in (*train, *validation, *test)])
    return run, train, validation, test


def fit_head(run: Run, train: Examples, validation: Examples, test: Examples) -> Rewards:
    """Fit a head to the overall pairs."""
    vectors = base_embeddings(run, run.model.general, [*train, *test])
    head = copy.deepcopy(run.model.general.head)
    head.normalizer.fit(torch.cat([vectors[e.key] for e in train]))
    fit_heads([head], [None], train, vectors, run.config.seed)
    with torch.no_grad():
        return {e.key: head(vectors[e.key]) for e in test}


def fit_branch(run: Run, train: Examples, validation: Examples, test: Examples) -> Rewards:
    """Train the branch at each rate, and keep the state with the lowest validation loss."""
    best: tuple[float, Any] | None = None
    for rate in _RATES:
        settings = {"phase1.learning_rate": rate, "phase1.epochs": _EPOCHS, "phase1.patience": 2}
        here = replace(run, config=changed(run.config, settings))
        folder = run.folder / "checkpoints" / f"branch-{len(train)}-{rate}"
        with run.progress.step(f"branch, {len(train)} groups, rate {rate}"):
            state, metrics = train_base(here, run.model.general, train, validation, here.config.phase1, folder)
        if best is None or metrics["loss"] < best[0]:
            best = metrics["loss"], state
    assert best is not None
    general = run.model.general
    scorer = BranchScorer(copy.deepcopy(general.branch), copy.deepcopy(general.head), general.pooling)
    apply_base(scorer, best[1])
    vectors = base_embeddings(run, scorer, test)
    with torch.no_grad():
        return {e.key: scorer.head(vectors[e.key]) for e in test}


def right_shares(scored: Iterable[tuple[Group, np.ndarray]]) -> dict[str, dict[str, float]]:
    """Return task → prompt → share of the pairs that the rewards put in human order."""
    shares: dict[str, dict[str, list[float]]] = {}
    for group, rewards in scored:
        pairs = group.pairs()
        right = right_pairs(pairs, rewards) / len(pairs)
        shares.setdefault(group.task or "", {}).setdefault(prompt_key(group.prompt), []).append(right)
    return {task: {p: float(np.mean(v)) for p, v in prompts.items()} for task, prompts in shares.items()}


FITS: dict[str, Callable[[Run, Examples, Examples, Examples], Rewards]] = {"head": fit_head, "branch": fit_branch}
