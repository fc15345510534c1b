"""The phases: each selects its data and its trained parameters, freezes the rest, and calls `fit`.

    router    prompts → tasks
    phase 0   the general model: branch + head on all tasks together
    phase 1   per task: branch + head on the overall preferences            (the paper: on 60 % of the groups)
    phase 2   per task: one expert per capability, on its labels; all experts of a step on the same batches
    phase 3   per task: the aggregator on the overall preferences           (the paper: on the other 40 %), calibration

With `base: frozen`, phases 0 to 2 fit heads on cached embeddings of the pretrained branch. With `l2: auto` these fits
are exact (exact_solver.py), and phase 3 weights held-out scores (score_weights.py).
"""

from __future__ import annotations

import copy
import functools
import math
import operator
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch import nn
from transformers import set_seed

from ..config import BranchStepConfig, HeadStepConfig
from ..data.splitting import held_out
from ..model.experts import Experts, MergedLoRALinear, lora_layers, with_experts
from ..model.heads import BranchScorer, Head
from ..model.layers import Decoder
from ..names import folder_name
from .batches import Labels, PackedCollator, PreferenceExample, VectorCollator, labeled
from .calibration import calibrate, set_from_phase1, set_from_score, with_posterior
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
from .loop import fit
from .losses import ExpertStack, HeadStack, PreferenceLossModule
from .score_weights import weight_scores
from .sharding import copy_weights, is_sharded, sharded_scorer
from .steps import FoldWeights, Run, State, StepMetrics, Training, step_metrics, step_name

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


def phase2(training: Training, task: str, part: tuple[str, Sequence[str]] | None = None) -> None:
    """Train a task's experts on the capability labels; all other weights are frozen.

    A capability whose labels are all of validation prompts is trained on these.

    Args:
        part: name of the step and its capabilities, if the step trains some of the experts; None: it trains all.
    """
    run, (train, validation) = training.run, training.of(task)
    experts = run.model.task_model(task).experts
    name, capabilities = part or (step_name("phase2", task), experts.capabilities)
    if not capabilities:
        return
    missing = [capability for capability in capabilities if not labeled(train, [capability])]
    train = [*train, *(e.with_pairs(_only(e.pairs, missing)) for e in labeled(validation, missing))]
    state = run.step(
        name, lambda checkpoint_dir: _train_experts(run, task, capabilities, train, validation, checkpoint_dir)
    )
    _apply_experts(experts, capabilities, state)
    for capability in capabilities:
        training.read(state, folder_name(capability), task, capability)


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


def strength(l2: float | str) -> float:
    """Return a penalty's strength; `auto`, for which the head is not trained further, is 0."""
    return 0.0 if isinstance(l2, str) else l2


def started(head: Head) -> FoldedHead | None:
    """Return a head that starts from a reward model, whose weights no fold has changed; None for other heads."""
    weights = head.score.weight.detach().expand(FOLDS, -1)
    return FoldedHead(head, FoldWeights(weights, torch.tensor(torch.nan))) if head.has_start else None


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


# --- phase 2 -------------------------------------------------------------------------------------------------------


def expert_parts(task: str, capabilities: Sequence[str], max_experts: int | None) -> dict[str, list[str]]:
    """Return name → capabilities of the steps of a task's phase 2.

    Args:
        max_experts: maximum number of experts of a step; None: one step trains all.
    """
    size = max_experts or max(len(capabilities), 1)
    parts = [list(capabilities[i : i + size]) for i in range(0, len(capabilities), size)]
    step = step_name("phase2", task)
    return {f"{step}/{i}" if len(parts) > 1 else step: part for i, part in enumerate(parts)}


def _train_experts(
    run: Run, task: str, names: Sequence[str], train: Examples, validation: Examples, checkpoint_dir: Path
) -> tuple[State, StepMetrics]:
    """Fit the experts' heads, if they are not trained from phase 1's, then train their LoRA together with the heads."""
    settings, base = run.config.phase2, run.model.task_model(task).base
    generators = [torch.Generator().manual_seed(run.seed(f"phase2/{task}/{name}")) for name in names]
    first = settings if not settings.lora.rank else settings.head_first
    first_heads = _first_heads(base.head, generators, reset=first is not None)
    parts = train, validation, checkpoint_dir
    if first is not None and first.l2 == "auto":
        fits = fit_heads(first_heads, names, train, base_embeddings(run, base, train), run.config.seed)
        heads, metrics = HeadStack(first_heads), exact_metrics(fits, names)
        folds = [fold_state(result, folder_name(name)) for name, result in zip(names, fits, strict=True)]
    else:
        heads, metrics, folds = HeadStack(first_heads), {}, []
        if first is not None:
            metrics = _train_heads(run, task, names, heads, first, *parts)
    if not settings.lora.rank:
        return functools.reduce(operator.or_, folds, _expert_state(names, heads, None)), metrics
    branch, metrics = _train_lora(run, task, names, heads, generators, *parts)
    return _expert_state(names, heads, branch), metrics


def _train_heads(
    run: Run,
    task: str,
    names: Sequence[str],
    heads: HeadStack,
    step: HeadStepConfig,
    train: Examples,
    validation: Examples,
    checkpoint_dir: Path,
) -> StepMetrics:
    task_model = run.model.task_model(task)
    vectors = base_embeddings(run, task_model.base, [*train, *validation])
    fits = fit(
        _loss_module(heads, step, heads, names),
        labeled(train, task_model.experts.capabilities),
        _validation(names, train, validation),
        collate=VectorCollator(lambda e: vectors[e.key], names),
        step=step,
        **run.fit_options(checkpoint_dir / "head", f"phase2/{task}/head"),
    )
    return step_metrics(fits, names)


def _train_lora(
    run: Run,
    task: str,
    names: Sequence[str],
    heads: HeadStack,
    generators: Sequence[torch.Generator],
    train: Examples,
    validation: Examples,
    checkpoint_dir: Path,
) -> tuple[Decoder, StepMetrics]:
    task_model, settings = run.model.task_model(task), run.config.phase2
    branch = with_experts(task_model.base.branch, len(names), settings.lora)  # pyright: ignore[reportArgumentType]
    run.recompute(branch)
    for layer in lora_layers(branch).values():
        for matrix, generator in zip(layer.lora_A.detach(), generators, strict=True):
            drawn = nn.init.kaiming_uniform_(torch.empty(matrix.shape), a=math.sqrt(5), generator=generator)
            matrix.copy_(drawn)  # drawn on the CPU, so that it does not depend on the device
    parts = labeled(train, task_model.experts.capabilities), _validation(names, train, validation)
    states = cached_states(run, [*parts[0], *parts[1]])
    set_seed(run.seed(f"phase2/{task}/start"))  # a resumed `head_first` fit has drawn fewer random numbers
    fits = fit(
        _loss_module(ExpertStack(branch, heads, task_model.base.pooling), settings, heads, names),
        *parts,
        collate=PackedCollator(lambda e: states[e.key], names, run.pass_tokens(branch)),
        step=settings,
        **run.fit_options(checkpoint_dir / "lora", f"phase2/{task}/lora"),
    )
    return branch, step_metrics(fits, names)


def _first_heads(base: Head, generators: Sequence[torch.Generator], reset: bool) -> list[Head]:
    """Return one head per expert: a copy of phase 1's; with `reset`, only its normalizer, and new random weights."""
    heads = [copy.deepcopy(base).requires_grad_(True) for _ in generators]
    for head, generator in zip(heads, generators, strict=True):
        if reset:
            head.score.weight.data.copy_(1e-3 * torch.randn(head.score.weight.shape, generator=generator))
    return heads


def _loss_module(
    scorer: nn.Module, step: HeadStepConfig, heads: HeadStack, names: Sequence[str]
) -> PreferenceLossModule:
    return PreferenceLossModule(scorer, strength(step.l2), heads, num_experts=len(names))


def _validation(names: Sequence[str], train: Examples, validation: Examples) -> Examples:
    """Return the validation examples; a capability without validation pairs is validated on its training pairs."""
    missing = [name for name in names if not labeled(validation, [name])]
    return [*labeled(validation, names), *(e.with_pairs(_only(e.pairs, missing)) for e in labeled(train, missing))]


def _only(pairs: Labels, names: Sequence[str]) -> Labels:
    return {name: pairs[name] for name in names if name in pairs}


def _expert_state(names: Sequence[str], heads: HeadStack, branch: Decoder | None) -> State:
    state: State = {}
    for i, (name, head) in enumerate(zip(map(folder_name, names), heads.states(), strict=True)):
        state |= {f"{name}/head.{key}": tensor for key, tensor in head.items()}
        for layer_name, layer in lora_layers(branch or nn.Module()).items():
            state |= {f"{name}/lora.{layer_name}.{part}": getattr(layer, part)[i] for part in ("lora_A", "lora_B")}
    return state


@torch.no_grad()
def _apply_experts(experts: Experts, capabilities: Sequence[str], state: State) -> None:
    layers = lora_layers(experts.branch or nn.Module())
    for i, (name, head) in enumerate(zip(experts.capabilities, experts.heads, strict=True)):
        if name not in capabilities:
            continue
        key = folder_name(name)
        start = f"{key}/head."
        head.load_state_dict({k.removeprefix(start): t for k, t in state.items() if k.startswith(start)})
        for layer_name, layer in layers.items():
            layer.lora_A[i] = state[f"{key}/lora.{layer_name}.lora_A"]
            layer.lora_B[i] = state[f"{key}/lora.{layer_name}.lora_B"]
    experts.requires_grad_(False)


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
