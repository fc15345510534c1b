"""The phases: each selects its data and its trained parameters, freezes the rest, and calls `fit`.

    router    prompts → tasks
    phase 0   the general model: branch + head on all tasks together
    phase 1   per task: branch + head on the overall preferences            (the paper: on 60 % of the groups)
    phase 2   per task: one expert per capability, on its labels         (expert_step.py)
    phase 3   per task: the aggregator on the overall preferences           (the paper: on the other 40 %), calibration

With `base: frozen`, phases 0 to 2 fit heads on cached embeddings of the pretrained branch. With `l2: auto` these fits
are exact (exact_step.py), and phase 3 weights held-out scores (score_weights.py).
"""

from __future__ import annotations

import copy
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch import nn
from transformers import set_seed

from ..config import BranchStepConfig
from ..data.splitting import held_out
from ..model.experts import MergedLoRALinear, lora_layers, with_experts
from ..model.heads import BranchScorer, Head
from .batches import PackedCollator, PreferenceExample, VectorCollator, labeled
from .calibration import calibrate
from .embedding import base_embeddings, cached_states, map_rows, sample, task_vectors
from .exact_step import (
    FoldedHead,
    exact_metrics,
    fit_all_labels_head,
    fit_heads,
    head_state,
    out_of_fold,
    started,
    strength,
)
from .fitting import fit
from .losses import PreferenceLossModule
from .posteriors import set_from_phase1, set_from_score, with_posterior
from .score_weights import weight_scores
from .sharded_branch import copy_weights, is_sharded, sharded_scorer
from .steps import Run, State, StepMetrics, Training, step_metrics

Examples = Sequence[PreferenceExample]


def phase0(training: Training) -> None:
    """Train the general model on all tasks together, and calibrate it."""
    run, train, validation = training.run, training.train, training.validation
    general = run.model.general
    step = run.config.phase0
    state = run.step(
        "phase0",
        lambda checkpoint_dir: _with_posterior(
            run,
            general,
            train,
            step,
            *train_base(run, general, train, validation, step, checkpoint_dir, general=started(general.head)),
        ),
    )
    apply_base(general, state)
    training.read(state, "head", None, "general")
    calibration, folds = run.model.general_calibration, training.folds.get((None, "general"))
    vectors = base_embeddings(run, general, [*sample(run, train), *validation])
    rewards = map_rows(general.head, vectors, run)
    if folds is None:
        calibrate(calibration, rewards, train, validation)
    else:
        rewards |= out_of_fold(general.head, folds, train, vectors, run.config.seed)
        calibrate(calibration, rewards, [], [*train, *validation])
    set_from_score(run.model.general_posterior, training.posteriors.get((None, "general")), float(calibration.scale))


def phase1(training: Training, task: str) -> None:
    """Train a task's branch and head on the overall preferences."""
    run, (train, validation) = training.run, training.of(task)
    task_model, general = run.model.task_model(task), run.model.general
    base = task_model.base
    if run.config.warm_start:
        base.head.load_state_dict(general.head.state_dict())
        if not run.frozen:
            copy_weights(base.branch, general.branch.state_dict())
    first, reset = first_part(run, train), run.frozen or not run.config.warm_start
    folds = training.folds.get((None, "general"))
    prior = FoldedHead(general.head, folds, training.soft) if folds else None
    state = run.step(
        training.step_name("phase1", task),
        lambda checkpoint_dir: _train_task(run, task, first, validation, checkpoint_dir, reset, prior),
    )
    apply_base(base, state)
    if (head := task_model.all_labels) is not None:
        start = "all_labels."
        head.load_state_dict({n.removeprefix(start): t for n, t in state.items() if n.startswith(start)})
    for name, prefix in (("per_task", "head"), ("all_labels", "all_labels")):
        training.read(state, prefix, task, name)


def phase3(training: Training, task: str) -> None:
    """Train the aggregator on the experts' outputs, and calibrate the task's rewards."""
    run, task_model = training.run, training.run.model.task_model(task)
    modules = {
        "aggregator": task_model.aggregator,
        "normalizer": task_model.normalizer,
        "calibration": task_model.calibration,
        "posterior": task_model.posterior,
    }
    kept = nn.ModuleDict(modules)
    exact = run.config.phase3.l2 == "auto"
    state = run.step(
        training.step_name("phase3", task),
        lambda checkpoint_dir: (
            weight_scores(training, task, kept) if exact else _train_aggregator(training, task, kept, checkpoint_dir)
        ),
    )
    kept.load_state_dict(state)


def first_part(run: Run, examples: Examples) -> Examples:
    """Return the groups of phase 1; those of phase 3 if no other has an overall label."""
    return _split(run, examples)[0]


def second_part(run: Run, examples: Examples) -> Examples:
    """Return the groups of phase 3; those of phase 1 if no other has an overall label."""
    return _split(run, examples)[1]


def _split(run: Run, examples: Examples) -> tuple[Examples, Examples]:
    fraction = run.config.phase1.phase1_fraction
    if 1 - fraction == 1:  # 0, or so small that floating point cannot distinguish it
        return examples, examples
    held = held_out((e.group for e in examples), 1 - fraction, run.config.seed)
    first, second = ([e for e, late in zip(examples, held, strict=True) if late == part] for part in (False, True))
    return first if labeled(first) else second, second if labeled(second) else first


# --- phases 0 and 1 ------------------------------------------------------------------------------------------------


def train_base(
    run: Run,
    start: BranchScorer,
    train: Examples,
    validation: Examples,
    step: BranchStepConfig,
    checkpoint_dir: Path,
    fit_normalizer: bool = True,
    general: FoldedHead | None = None,
) -> tuple[State, StepMetrics]:
    """Train a copy of a branch and its head; return its state and its metrics.

    Args:
        start: the scorer whose weights training starts from; it is not changed.
        train, validation: examples with overall pairs.
        checkpoint_dir: folder of the checkpoints.
        fit_normalizer: fit the head's normalizer on the training part; otherwise keep that of `start`.
        general: the head toward which the penalty of an exact fit may pull; None: toward 0 only.
    """
    head = copy.deepcopy(start.head).requires_grad_(True)
    if fit_normalizer:
        head.fit_normalizer(torch.cat(list(base_embeddings(run, start, sample(run, train)).values())))
    parts = [labeled(train), labeled(validation)]
    strengths: State = {}  # of the penalty of `head_first`, which is not in the settings if it is auto
    if first := step if run.frozen else step.head_first:
        vectors = base_embeddings(run, start, [*train, *validation])
        if first.l2 == "auto":
            (exact,) = fit_heads([head], [None], train, vectors, run.config.seed, general)
            state, metrics, strengths = head_state(head, exact), exact_metrics([exact]), _head_l2(exact.l2)
        else:
            collate = VectorCollator(lambda e: vectors[e.key])
            module, options = PreferenceLossModule(head, first.l2, head), run.fit_options(checkpoint_dir / "head")
            fits = fit(module, *parts, collate=collate, step=first, **options)
            state, metrics, strengths = _named("head", head), step_metrics(fits), _head_l2(first.l2)
        if run.frozen:
            return state, metrics
    if run.config.base == "lora":  # so that a run that is resumed here starts from the same LoRA
        set_seed(run.seed(f"{checkpoint_dir.parent.name}/{checkpoint_dir.name}/start"))
    scorer = _trainable(run, start, head)
    branch: Any = scorer.branch
    states = cached_states(run, [*parts[0], *parts[1]])
    module, options = PreferenceLossModule(scorer, strength(step.l2), head), run.fit_options(checkpoint_dir / "branch")
    collate = PackedCollator(lambda e: states[e.key], budget=run.pass_tokens(branch))
    fits = fit(module, *parts, collate=collate, step=step, **options)
    return _merged(scorer) | strengths, step_metrics(fits)


def _train_task(
    run: Run,
    task: str,
    train: Examples,
    validation: Examples,
    checkpoint_dir: Path,
    fit_normalizer: bool,
    general: FoldedHead | None,
) -> tuple[State, StepMetrics]:
    """Train a task's branch and head, and its head on all labels if it has one."""
    task_model = run.model.task_model(task)
    state, metrics = train_base(
        run, task_model.base, train, validation, run.config.phase1, checkpoint_dir, fit_normalizer, general
    )
    state, metrics = _with_posterior(run, task_model.base, train, run.config.phase1, state, metrics)
    if task_model.all_labels is None:
        return state, metrics
    head = copy.deepcopy(task_model.all_labels)
    head.normalizer.load_state_dict({name: state[f"head.normalizer.{name}"] for name in ("mean", "scale")})
    vectors = base_embeddings(run, task_model.base, train)
    capabilities = task_model.experts.capabilities
    exact = fit_all_labels_head(head, capabilities, train, vectors, run.config.seed, general)
    figures = {f"{name}/all_labels": value for name, value in exact_metrics([exact]).items()}
    return state | head_state(head, exact, "all_labels"), metrics | figures


def _with_posterior(
    run: Run, scorer: BranchScorer, train: Examples, step: BranchStepConfig, state: State, metrics: StepMetrics
) -> tuple[State, StepMetrics]:
    """Load a result of `train_base` into the scorer, and return it with the posterior of the head if it has one."""
    apply_base(scorer, state)
    l2 = strength(step.l2) or float(state.get("head_l2", 0))
    return with_posterior(run, scorer, labeled(train), l2, state), metrics


def _head_l2(l2: float | str) -> State:
    return {"head_l2": torch.tensor(float(l2))}


def _named(prefix: str, module: nn.Module) -> State:
    return {f"{prefix}.{name}": tensor for name, tensor in module.state_dict().items()}


def _trainable(run: Run, start: BranchScorer, head: Head) -> BranchScorer:
    """Return a scorer with a trainable copy of a branch: all weights in float32, or a LoRA on the frozen weights."""
    branch: Any = start.branch
    if run.config.base == "lora":
        scorer = BranchScorer(with_experts(branch, 1, run.config.base_lora, MergedLoRALinear), head, start.pooling)
    elif is_sharded(branch):
        scorer = sharded_scorer(start, head)
    else:
        scorer = BranchScorer(copy.deepcopy(branch).float().requires_grad_(True), head, start.pooling)
    run.recompute(scorer.branch)  # pyright: ignore[reportArgumentType]
    return scorer


@torch.no_grad()
def _merged(scorer: BranchScorer) -> State:
    """Return the scorer's state with the branch's LoRA, if it has one, merged into its weights, which are float32."""
    state = scorer.state_dict()
    for name, layer in lora_layers(scorer).items():
        state = {key: tensor for key, tensor in state.items() if not key.startswith(f"{name}.lora_")}
        state = {key.replace(f"{name}.base.", f"{name}."): tensor for key, tensor in state.items()}
        state[f"{name}.weight"] = layer.merged()  # pyright: ignore[reportAttributeAccessIssue, reportCallIssue]
    return state


def apply_base(scorer: BranchScorer, state: State) -> None:
    """Load a state of `train_base` into the scorer; trained weights keep their dtype, float32."""
    scorer.head.load_state_dict({n.removeprefix("head."): t for n, t in state.items() if n.startswith("head.")})
    branch = {n.removeprefix("branch."): t for n, t in state.items() if n.startswith("branch.")}
    if branch:
        copy_weights(scorer.branch, branch)
    scorer.requires_grad_(False)


# --- phase 3 -------------------------------------------------------------------------------------------------------


def _train_aggregator(
    training: Training, task: str, kept: nn.ModuleDict, checkpoint_dir: Path
) -> tuple[State, StepMetrics]:
    run, (train, validation) = training.run, training.of(task)
    task_model = run.model.task_model(task)
    train = second_part(run, train)
    vectors = task_vectors(run, task, [*train, *validation])
    known = torch.cat([vectors[e.key] for e in train])
    count = len(task_model.experts)
    if count:
        task_model.normalizer.fit(task_model.aggregator.scores(known)[:, :count])
    task_model.aggregator.fit_normalizers(known)
    task_model.aggregator.requires_grad_(True)
    step = run.config.phase3
    module = PreferenceLossModule(task_model.aggregator, strength(step.l2), task_model.aggregator)
    parts = [labeled(train), labeled(validation)]
    collate = VectorCollator(lambda e: vectors[e.key])
    fits = fit(module, *parts, collate=collate, step=step, **run.fit_options(checkpoint_dir))
    task_model.aggregator.requires_grad_(False)
    rewards = map_rows(task_model.aggregator, vectors, run)
    calibrate(task_model.calibration, rewards, train, validation)
    set_from_phase1(training, task, task_model.aggregator.scores(known))
    return kept.state_dict(), step_metrics(fits)
