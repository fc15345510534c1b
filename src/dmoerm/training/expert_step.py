"""Phase 2: train a task's experts on the same batches, each on the labels of its capability.

    heads      on embeddings of the phase-1 branch           with rank 0, or before the LoRA (`head_first`)
    LoRA       one adapter and one head per expert           all other weights are frozen

The experts are stacked (`stacking.py`), so one pass trains all of them. Each draws its start from a generator of its
own. Therefore an expert does not depend on which other experts are trained in the same step.
"""

from __future__ import annotations

import copy
import functools
import math
import operator
from collections.abc import Sequence
from pathlib import Path

import torch
from torch import nn
from transformers import set_seed

from ..config import HeadStepConfig
from ..model.experts import Experts, lora_layers, with_experts
from ..model.heads import Head
from ..model.packed_attention import Decoder
from ..names import folder_name
from .batches import Labels, PackedCollator, PreferenceExample, VectorCollator, labeled
from .embedding import base_embeddings, cached_states
from .exact_step import exact_metrics, fit_heads, fold_state, strength
from .fitting import fit
from .losses import PreferenceLossModule
from .stacking import ExpertStack, HeadStack
from .steps import Run, State, StepMetrics, Training, step_metrics, step_name

Examples = Sequence[PreferenceExample]


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
