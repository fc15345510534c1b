"""The phases: each selects its data and its trained parameters, freezes the rest, and fits them.

    phase 0   the general model: branch + head on all tasks together
    phase 1   per task: branch + head on the overall preferences            (the paper: on 60 % of the groups)
    phase 2   per task: one expert per capability, on its labels: a head, or a LoRA with its head
    phase 3   per task: the aggregator on the overall preferences           (the paper: on the other 40 %), calibration

With `fit: exact`, phases 0 to 2 solve heads on embeddings (exact_solver.py), and phase 3 weights held-out scores
(calibration.py). With `fit: trained`, branch or LoRA are trained with the head by `fit`; `head_first` solves their
heads first.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch import nn
from transformers import set_seed

from ..config import BranchStepConfig, ExactConfig, ExpertConfig, TrainedAggregatorConfig
from ..data.splits import held_out
from ..model.experts import MergedLoRALinear, lora_layers, with_experts
from ..model.heads import BranchScorer, Head
from ..names import folder_name
from .calibration import calibrate, set_from_phase1, set_from_score, set_weights, weight_scores, with_posterior
from .embedding import base_embeddings, cached_states, map_rows, sample, task_vectors
from .exact_solver import (
    FOLDS,
    FoldedHead,
    exact_metrics,
    fit_all_labels_head,
    fit_heads,
    fold_state,
    head_state,
    out_of_fold,
)
from .examples import PreferenceExample, labeled
from .loop import fit
from .losses import ExpertStack, HeadStack, PackedCollator, PreferenceLossModule, VectorCollator
from .processes import copy_weights, is_sharded, sharded_scorer
from .steps import FoldWeights, Run, State, StepMetrics, Training, part_of, step_metrics, step_name

Examples = Sequence[PreferenceExample]
BaseStep = ExactConfig | BranchStepConfig


# --- phases 0 and 1 ---------------------------------------------------------------------------------------------------


def phase0(training: Training) -> None:
    """Train the general model on all tasks together, and calibrate it."""
    run, train, validation = training.run, training.train, training.validation
    general, step = run.model.general, run.config.phase0

    def fit_general(checkpoint_dir: Path) -> tuple[State, StepMetrics]:
        weights = general.head.score.weight.detach().expand(FOLDS, -1)  # a reward model's head: no fold has changed it
        start = FoldedHead(general.head, FoldWeights(weights, torch.tensor(torch.nan)))
        pull = start if general.head.has_start else None
        result = train_base(run, general, train, validation, step, checkpoint_dir, general=pull)
        return _with_posterior(run, general, train, step, *result)

    state = run.step("phase0", fit_general)
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
    """Train a task's branch and head on the overall preferences, and its head on all labels if it has one."""
    run, (train, validation) = training.run, training.of(task)
    task_model, general, step = run.model.task_model(task), run.model.general, run.config.phase1
    base, all_labels = task_model.base, task_model.all_labels
    if run.config.warm_start:
        base.head.load_state_dict(general.head.state_dict())
        if not run.frozen:
            copy_weights(base.branch, general.branch.state_dict())
    first, reset = first_part(run, train), run.frozen or not run.config.warm_start
    folds = training.folds.get((None, "general"))
    prior = FoldedHead(general.head, folds, training.soft) if folds else None

    def fit_task(checkpoint_dir: Path) -> tuple[State, StepMetrics]:
        result = train_base(run, base, first, validation, step, checkpoint_dir, reset, prior)
        state, metrics = _with_posterior(run, base, first, step, *result)
        if all_labels is None:
            return state, metrics
        head = copy.deepcopy(all_labels)
        head.normalizer.load_state_dict({name: state[f"head.normalizer.{name}"] for name in ("mean", "scale")})
        names, vectors = task_model.experts.capabilities, base_embeddings(run, base, first)
        exact = fit_all_labels_head(head, names, first, vectors, run.config.seed, prior)
        figures = {f"{name}/all_labels": value for name, value in exact_metrics([exact]).items()}
        return state | head_state(head, exact, "all_labels"), metrics | figures

    state = run.step(training.step_name("phase1", task), fit_task)
    apply_base(base, state)
    training.read(state, "head", task, "per_task")
    if all_labels is not None:
        all_labels.load_state_dict(part_of(state, "all_labels."))
        training.read(state, "all_labels", task, "all_labels")


def train_base(
    run: Run,
    start: BranchScorer,
    train: Examples,
    validation: Examples,
    step: BaseStep,
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
    parts, strength = [labeled(train), labeled(validation)], State()
    if isinstance(step, ExactConfig) or step.head_first:
        vectors = base_embeddings(run, start, [*train, *validation])
        (exact,) = fit_heads([head], [None], train, vectors, run.config.seed, general)
        if isinstance(step, ExactConfig):
            return head_state(head, exact), exact_metrics([exact])
        strength = {"head_l2": torch.tensor(exact.l2)}  # for the posterior: it is not in the settings
    if run.config.base == "lora":  # so that a run that is resumed here starts from the same LoRA
        set_seed(run.seed(f"{checkpoint_dir.parent.name}/{checkpoint_dir.name}/start"))
    scorer = _trainable(run, start, head)
    branch: Any = scorer.branch
    states = cached_states(run, [*parts[0], *parts[1]])
    module, options = PreferenceLossModule(scorer, step.l2, head), run.fit_options(checkpoint_dir / "branch")
    collate = PackedCollator(lambda e: states[e.key], budget=run.pass_tokens(branch))
    fits = fit(module, *parts, collate=collate, step=step, **options)
    return _merged(scorer) | strength, step_metrics(fits)


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


def _with_posterior(
    run: Run, scorer: BranchScorer, train: Examples, step: BaseStep, state: State, metrics: StepMetrics
) -> tuple[State, StepMetrics]:
    """Load a result of `train_base` into the scorer, and return it with the posterior of the head if it has one."""
    apply_base(scorer, state)
    l2 = 0.0 if isinstance(step, ExactConfig) else step.l2 or float(state.get("head_l2", 0))
    return with_posterior(run, scorer, labeled(train), l2, state), metrics


def apply_base(scorer: BranchScorer, state: State) -> None:
    """Load a state of `train_base`; trained weights keep their dtype, float32."""
    scorer.head.load_state_dict(part_of(state, "head."))
    if branch := part_of(state, "branch."):
        copy_weights(scorer.branch, branch)
    scorer.requires_grad_(False)


def first_part(run: Run, examples: Examples, second: bool = False) -> Examples:
    """Return the groups of phase 1, or those of phase 3; the other ones if none of them has an overall label."""
    fraction = run.config.phase1.phase1_fraction
    if 1 - fraction == 1:  # 0, or so small that floating point cannot distinguish it
        return examples
    held = held_out((e.group for e in examples), 1 - fraction, run.config.seed)
    parts = [[e for e, late in zip(examples, held, strict=True) if late == part] for part in (second, not second)]
    return parts[0] if labeled(parts[0]) else parts[1]


def second_part(run: Run, examples: Examples) -> Examples:
    """Return the groups of phase 3; see `first_part`."""
    return first_part(run, examples, second=True)


# --- phase 2 ----------------------------------------------------------------------------------------------------------


def phase2(training: Training, task: str, capabilities: Sequence[str] | None = None) -> None:
    """Train a task's experts on the capability labels; all other weights are frozen.

    The experts are stacked (`stacking.py`), so one pass trains all of them. Each draws its start from a generator of
    its own. Therefore an expert does not depend on which other experts are trained in the same step. A capability whose
    labels are all of validation prompts is trained on these.

    Args:
        capabilities: those whose experts are trained; None: all.
    """
    run, (train, validation) = training.run, training.of(task)
    experts = run.model.task_model(task).experts
    names = experts.capabilities if capabilities is None else capabilities
    if not names:
        return
    missing = [name for name in names if not labeled(train, [name])]
    train = [*train, *_with_labels(validation, missing)]
    state = run.step(
        step_name("phase2", task), lambda folder: _train_experts(run, task, names, train, validation, folder)
    )
    with torch.no_grad():
        for i, (name, head) in enumerate(zip(experts.capabilities, experts.heads, strict=True)):
            if name in names:
                key = folder_name(name)
                head.load_state_dict(part_of(state, f"{key}/head."))
                for layer_name, layer in lora_layers(experts.branch or nn.Module()).items():
                    layer.lora_A[i] = state[f"{key}/lora.{layer_name}.lora_A"]
                    layer.lora_B[i] = state[f"{key}/lora.{layer_name}.lora_B"]
                training.read(state, key, task, name)
    experts.requires_grad_(False)


def _train_experts(
    run: Run, task: str, names: Sequence[str], train: Examples, validation: Examples, checkpoint_dir: Path
) -> tuple[State, StepMetrics]:
    """Fit the experts' heads, if they do not start from phase 1's, then train their LoRA together with the heads."""
    step, base = run.config.phase2, run.model.task_model(task).base
    heads = [copy.deepcopy(base.head).requires_grad_(True) for _ in names]
    if isinstance(step, ExactConfig):
        fits = fit_heads(heads, names, train, base_embeddings(run, base, train), run.config.seed)
        state: State = {}
        for name, head, result in zip(map(folder_name, names), heads, fits, strict=True):
            state |= {f"{name}/head.{key}": tensor for key, tensor in head.state_dict().items()}
            state |= fold_state(result, name)
        return state, exact_metrics(fits, names)
    generators = [torch.Generator().manual_seed(run.seed(f"phase2/{task}/{name}")) for name in names]
    if step.head_first:
        for head, generator in zip(heads, generators, strict=True):  # the draws of the LoRA follow in the same stream
            head.score.weight.data.copy_(1e-3 * torch.randn(head.score.weight.shape, generator=generator))
        fit_heads(heads, names, train, base_embeddings(run, base, train), run.config.seed)
    # a capability without validation pairs is validated on its training pairs
    missing = [name for name in names if not labeled(validation, [name])]
    judged = [*labeled(validation, names), *_with_labels(train, missing)]
    parts = labeled(train, run.model.task_model(task).experts.capabilities), judged
    return _train_lora(run, task, names, HeadStack(heads), generators, step, parts, checkpoint_dir)


def _train_lora(
    run: Run,
    task: str,
    names: Sequence[str],
    heads: HeadStack,
    generators: Sequence[torch.Generator],
    step: ExpertConfig,
    parts: tuple[Examples, Examples],
    checkpoint_dir: Path,
) -> tuple[State, StepMetrics]:
    base: Any = run.model.task_model(task).base
    branch = with_experts(base.branch, len(names), step.lora)
    run.recompute(branch)
    layers = lora_layers(branch)
    for layer in layers.values():
        for matrix, generator in zip(layer.lora_A.detach(), generators, strict=True):
            drawn = nn.init.kaiming_uniform_(torch.empty(matrix.shape), a=math.sqrt(5), generator=generator)
            matrix.copy_(drawn)  # drawn on the CPU, so that it does not depend on the device
    states = cached_states(run, [*parts[0], *parts[1]])
    set_seed(run.seed(f"phase2/{task}/start"))  # whatever the heads' fit has drawn
    fits = fit(
        PreferenceLossModule(ExpertStack(branch, heads, base.pooling), step.l2, heads, num_experts=len(names)),
        *parts,
        collate=PackedCollator(lambda e: states[e.key], names, run.pass_tokens(branch)),
        step=step,
        **run.fit_options(checkpoint_dir / "lora", f"phase2/{task}/lora"),
    )
    state: State = {}
    for i, (name, head) in enumerate(zip(map(folder_name, names), heads.states(), strict=True)):
        state |= {f"{name}/head.{key}": tensor for key, tensor in head.items()}
        for layer_name, layer in layers.items():
            state |= {f"{name}/lora.{layer_name}.{part}": getattr(layer, part)[i] for part in ("lora_A", "lora_B")}
    return state, step_metrics(fits, names)


def _with_labels(examples: Examples, names: Sequence[str]) -> Examples:
    """Return the examples that have labels of these capabilities, with these labels alone."""
    return [e.with_pairs({name: e.pairs[name] for name in names if name in e.pairs}) for e in labeled(examples, names)]


# --- phase 3 ----------------------------------------------------------------------------------------------------------


def phase3(training: Training, task: str) -> None:
    """Train the aggregator on the experts' outputs, and calibrate the task's rewards."""
    run, task_model = training.run, training.run.model.task_model(task)
    names = ("aggregator", "normalizer", "calibration", "posterior")
    kept, step = nn.ModuleDict({name: getattr(task_model, name) for name in names}), run.config.phase3

    def fit_aggregator(checkpoint_dir: Path) -> tuple[State, StepMetrics]:
        if isinstance(step, TrainedAggregatorConfig):
            metrics = _train_aggregator(training, task, step, checkpoint_dir)
        else:
            metrics = weight_scores(training, task)
        return kept.state_dict(), metrics

    kept.load_state_dict(run.step(training.step_name("phase3", task), fit_aggregator))


def _train_aggregator(
    training: Training, task: str, step: TrainedAggregatorConfig, checkpoint_dir: Path
) -> StepMetrics:
    run, (train, validation) = training.run, training.of(task)
    task_model = run.model.task_model(task)
    aggregator, count = task_model.aggregator, len(task_model.experts)
    train = second_part(run, train)
    vectors = task_vectors(run, task, [*train, *validation])
    known = torch.cat([vectors[e.key] for e in train])
    if count:
        task_model.normalizer.fit(aggregator.scores(known)[:, :count])
    aggregator.fit_normalizers(known)
    if aggregator.linear is not None:
        set_weights(training, task, train, vectors)
    module = PreferenceLossModule(aggregator.requires_grad_(True))
    parts, collate = [labeled(train), labeled(validation)], VectorCollator(lambda e: vectors[e.key])
    fits = fit(module, *parts, collate=collate, step=step, **run.fit_options(checkpoint_dir))
    aggregator.requires_grad_(False)
    calibrate(task_model.calibration, map_rows(aggregator, vectors, run), train, validation)
    set_from_phase1(training, task, aggregator.scores(known))
    return step_metrics(fits)
