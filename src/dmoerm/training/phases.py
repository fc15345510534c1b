"""The phases: each freezes what it must, chooses its data, and calls the one `fit`.

    router    prompts → tasks
    phase 0   the general model: branch + head on all tasks together
    phase 1   per task: branch + head on the overall preferences            (the paper: on 60 % of the groups)
    phase 2   per task: one expert a capability, on its labels, side by side  all else frozen
    phase 3   per task: the aggregator on the overall preferences           (the paper: on the other 40 %), calibration

With `base: frozen` the branch is never touched: phases 0 to 2 fit heads on cached embeddings.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import nn
from transformers import set_seed

from ..config import BranchStepConfig, StepConfig
from ..data.splitting import split_by_prompt
from ..model.engine import Decoder
from ..model.experts import Experts, lora_layers, with_experts
from ..model.heads import BranchScorer, Head
from .batches import Collate, Example, Item, collate_parts, collate_vectors, items
from .calibration import calibrate
from .embedding import base_embeddings, task_vectors
from .fitting import Fit, fit
from .learner import PhaseModel
from .stacking import ExpertStack, HeadStack
from .steps import Ended, Run, State, ended

Examples = Sequence[Example]
_SAMPLE = 256  # groups that standardisation statistics are taken from where an embedding costs a pass


def phase0(run: Run, train: Examples, validation: Examples) -> None:
    """Trains the general model on all tasks together."""
    general = run.model.general
    state = run.step("phase0", lambda place: train_base(run, general, train, validation, run.config.phase0, place))
    apply_base(general, state)
    general_calibration = run.model.general_calibration
    sample = base_embeddings(run, general, [*_sample(run, train), *validation])
    with torch.no_grad():
        rewards = {key: general.head(z.to(run.model.device)).cpu() for key, z in sample.items()}
    calibrate(general_calibration, rewards, train, validation)


def phase1(run: Run, task: str, train: Examples, validation: Examples) -> None:
    """Trains a task's branch and head on the overall preferences."""
    base = run.model.inner(task).base
    if run.config.warm_start:
        base.head.load_state_dict(run.model.general.head.state_dict())
        if not run.frozen:
            base.branch.load_state_dict(run.model.general.branch.state_dict())
    first, step, anew = first_part(run, train), run.config.phase1, run.frozen or not run.config.warm_start
    state = run.step(f"phase1/{task}", lambda place: train_base(run, base, first, validation, step, place, anew))
    apply_base(base, state)


def phase2(
    run: Run, task: str, train: Examples, validation: Examples, part: tuple[str, Sequence[str]] | None = None
) -> None:
    """Trains a task's experts on the capability labels, all else frozen: all on the same batches, each by its own.

    Args:
        part: name of the step and capabilities, where the step trains some of the experts; None: it trains all.
    """
    experts = run.model.inner(task).experts
    name, capabilities = part or (f"phase2/{task}", experts.capabilities)
    if not capabilities:
        return
    state = run.step(name, lambda place: _train_experts(run, task, capabilities, train, validation, place))
    _apply_experts(experts, capabilities, state)


def expert_parts(task: str, capabilities: Sequence[str], most: int | None) -> dict[str, list[str]]:
    """Name → capabilities of the steps of a task's phase 2, each with at most `most` experts (None: all in one)."""
    size = most or max(len(capabilities), 1)
    parts = [list(capabilities[i : i + size]) for i in range(0, len(capabilities), size)]
    return {f"phase2/{task}/{i}" if len(parts) > 1 else f"phase2/{task}": part for i, part in enumerate(parts)}


def phase3(run: Run, task: str, train: Examples, validation: Examples) -> None:
    """Trains the aggregator on the experts' outputs and calibrates the task's rewards."""
    inner = run.model.inner(task)
    modules = {"aggregator": inner.aggregator, "standardise": inner.standardise, "calibration": inner.calibration}
    kept = nn.ModuleDict(modules)
    state = run.step(f"phase3/{task}", lambda place: _train_aggregator(run, task, kept, train, validation, place))
    kept.load_state_dict(state)


def first_part(run: Run, examples: Examples) -> Examples:
    """The groups of phase 1."""
    return _divide(run, examples)[0]


def second_part(run: Run, examples: Examples) -> Examples:
    """The groups of phase 3."""
    return _divide(run, examples)[1]


def _divide(run: Run, examples: Examples) -> tuple[Examples, Examples]:
    fraction = run.config.phase3.first_fraction
    if 1 - fraction == 1:  # 0, or too little to be told from it
        return examples, examples
    held = {id(group) for group in split_by_prompt([e.group for e in examples], 1 - fraction, run.config.seed)[1]}
    first = [e for e in examples if id(e.group) not in held]
    return first, [e for e in examples if id(e.group) in held] or first


# --- phases 0 and 1 ------------------------------------------------------------------------------------------------


def train_base(
    run: Run,
    start: BranchScorer,
    train: Examples,
    validation: Examples,
    step: BranchStepConfig,
    place: Path,
    standardise: bool = True,
) -> tuple[State, Ended]:
    """Trains a copy of `start`, branch and head; its state, and how the fit ended.

    Args:
        standardise: the head takes its statistics from the training part; else it keeps those of `start`.
    """
    head = copy.deepcopy(start.head).requires_grad_(True)
    if standardise:
        head.standardise.fit(torch.cat(list(base_embeddings(run, start, _sample(run, train)).values())))
    if first := step if run.frozen else step.head_first:
        vectors = base_embeddings(run, start, [*train, *validation])
        rows = [items(part, lambda e: vectors[e.key]) for part in (train, validation)]
        fits = fit_step(run, PhaseModel(head, first.l2, head), rows, collate_vectors, first, place / "head")
        if run.frozen:
            return {f"head.{name}": tensor for name, tensor in head.state_dict().items()}, ended(fits)
    scorer = BranchScorer(_trainable(run, start.branch), head, start.pooling)  # pyright: ignore[reportArgumentType]
    states = [items(part, lambda e: run.cache.states(e.encoded)) for part in (train, validation)]
    fits = fit_step(run, PhaseModel(scorer, step.l2, head), states, collate_parts(1), step, place / "branch")
    scorer.branch = _merged(scorer.branch)
    return scorer.state_dict(), ended(fits)


def _trainable(run: Run, branch: Decoder) -> Decoder:
    """A copy to train: all weights in float32, or frozen with a LoRA."""
    branch = copy.deepcopy(branch)
    if run.config.base == "lora":
        return with_experts(branch.requires_grad_(False), 1, run.config.base_lora)
    return branch.float().requires_grad_(True)


@torch.no_grad()
def _merged(branch: nn.Module) -> nn.Module:
    """The branch with its LoRA, if it has one, added into its weights."""
    for name, layer in lora_layers(branch).items():
        parent, _, last = name.rpartition(".")
        addition = layer.scaling * layer.lora_B[0] @ layer.lora_A[0]
        layer.base.weight += addition.to(layer.base.weight.dtype)
        setattr(branch.get_submodule(parent), last, layer.base)
    return branch


def apply_base(scorer: BranchScorer, state: State) -> None:
    """Puts what `train_base` has made in place."""
    dtype = next(scorer.branch.parameters()).dtype
    scorer.head.load_state_dict({n.removeprefix("head."): t for n, t in state.items() if n.startswith("head.")})
    branch = {n.removeprefix("branch."): t.to(dtype) for n, t in state.items() if n.startswith("branch.")}
    if branch:
        scorer.branch.load_state_dict(branch)
    scorer.requires_grad_(False)


# --- phase 2 -------------------------------------------------------------------------------------------------------


def _train_experts(
    run: Run, task: str, names: Sequence[str], train: Examples, validation: Examples, place: Path
) -> tuple[State, Ended]:
    inner, settings = run.model.inner(task), run.config.phase2
    lora, everyone = settings.lora, inner.experts.capabilities
    generators = [torch.Generator().manual_seed(run.seed(f"phase2/{task}/{name}")) for name in names]
    heads = HeadStack(_first_heads(inner.base.head, generators, anew=not lora.rank or settings.head_first is not None))
    fits: list[Fit] = []
    if first := settings if not lora.rank else settings.head_first:
        vectors = base_embeddings(run, inner.base, [*train, *validation])
        rows = _expert_items(names, everyone, train, validation, lambda e: vectors[e.key])
        model, seed = _lanes(heads, first, heads, names), f"phase2/{task}/head"
        fits = fit_step(run, model, rows, collate_vectors, first, place / "head", seed)
    branch: Decoder | None = None
    if lora.rank:
        branch = with_experts(inner.base.branch, len(names), lora)  # pyright: ignore[reportArgumentType]
        for layer in lora_layers(branch).values():
            for matrix, generator in zip(layer.lora_A.detach(), generators, strict=True):
                drawn = nn.init.kaiming_uniform_(torch.empty(matrix.shape), a=math.sqrt(5), generator=generator)
                matrix.copy_(drawn)  # drawn on the CPU, where the generator is
        experts = ExpertStack(branch, heads, inner.base.pooling)
        rows = _expert_items(names, everyone, train, validation, lambda e: run.cache.states(e.encoded))
        parts = collate_parts(len(names))
        set_seed(run.seed(f"phase2/{task}/start"))  # a resumed head has drawn fewer random numbers
        model, seed = _lanes(experts, settings, heads, names), f"phase2/{task}/lora"
        fits = fit_step(run, model, rows, parts, settings, place / "lora", seed)
    return _expert_state(names, heads, branch), ended(fits, names)


def _first_heads(base: Head, generators: Sequence[torch.Generator], anew: bool) -> list[Head]:
    """A head an expert: phase 1's, or with its statistics alone."""
    heads = [copy.deepcopy(base).requires_grad_(True) for _ in generators]
    for head, generator in zip(heads, generators, strict=True):
        if anew:
            head.score.weight.data.copy_(1e-3 * torch.randn(head.score.weight.shape, generator=generator))
    return heads


def _lanes(scorer: nn.Module, step: StepConfig, heads: HeadStack, names: Sequence[str]) -> PhaseModel:
    return PhaseModel(scorer, step.l2, heads, lanes=len(names))


def _expert_items(
    names: Sequence[str],
    everyone: Sequence[str],
    train: Examples,
    validation: Examples,
    features: Callable[[Example], Any],
) -> list[list[Item]]:
    """Training and validation items; a capability that no held-out prompt orders is measured on its training pairs.

    The training items are the groups that are labelled on any capability of `everyone`, with the pairs of `names`.
    """
    rows = [items(train, features, names, everyone), items(validation, features, names)]
    measured = {lane for item in rows[1] for lane in item.lanes}
    missing = [None if lane in measured else name for lane, name in enumerate(names)]
    return [rows[0], rows[1] + [i for i in items(train, features, [name or "" for name in missing]) if i.pairs]]


def _expert_state(names: Sequence[str], heads: HeadStack, branch: Decoder | None) -> State:
    state: State = {}
    for i, (name, head) in enumerate(zip(names, heads.states(), strict=True)):
        state |= {f"{name}/head.{key}": tensor for key, tensor in head.items()}
        for place, layer in lora_layers(branch or nn.Module()).items():
            state |= {f"{name}/lora.{place}.{part}": getattr(layer, part)[i] for part in ("lora_A", "lora_B")}
    return state


@torch.no_grad()
def _apply_experts(experts: Experts, capabilities: Sequence[str], state: State) -> None:
    layers = lora_layers(experts.branch or nn.Module())
    for i, (name, head) in enumerate(zip(experts.capabilities, experts.heads, strict=True)):
        if name not in capabilities:
            continue
        start = f"{name}/head."
        head.load_state_dict({key.removeprefix(start): t for key, t in state.items() if key.startswith(start)})
        for place, layer in layers.items():
            layer.lora_A[i] = state[f"{name}/lora.{place}.lora_A"]
            layer.lora_B[i] = state[f"{name}/lora.{place}.lora_B"]
    experts.requires_grad_(False)


# --- phase 3 -------------------------------------------------------------------------------------------------------


def _train_aggregator(
    run: Run, task: str, kept: nn.ModuleDict, train: Examples, validation: Examples, place: Path
) -> tuple[State, Ended]:
    inner = run.model.inner(task)
    train = second_part(run, train)
    vectors = task_vectors(run, task, [*train, *validation])
    known = torch.cat([vectors[e.key] for e in train])
    count = len(inner.experts)
    if count:
        inner.standardise.fit(known[:, known.shape[1] - count - 2 : known.shape[1] - 2])
    inner.aggregator.fit_standardisation(known)
    inner.aggregator.requires_grad_(True)
    step = run.config.phase3
    rows = [items(part, lambda e: vectors[e.key]) for part in (train, validation)]
    fits = fit_step(run, PhaseModel(inner.aggregator, step.l2, inner.aggregator), rows, collate_vectors, step, place)
    inner.aggregator.requires_grad_(False)
    with torch.no_grad():
        rewards = {key: inner.aggregator(vector.to(run.model.device)).cpu() for key, vector in vectors.items()}
    calibrate(inner.calibration, rewards, train, validation)
    return kept.state_dict(), ended(fits)


# --- what they share -----------------------------------------------------------------------------------------------


def fit_step(
    run: Run,
    model: nn.Module,
    parts: list[list[Item]],
    collate: Collate,
    step: StepConfig,
    place: Path,
    seed: str | None = None,
) -> list[Fit]:
    name = seed or str(place.relative_to(run.folder / "checkpoints"))
    trains_branch = any(isinstance(m, Decoder) and _wants_gradients(m) for m in model.modules())
    return fit(
        model,
        *parts,
        collate=collate,
        step=step,
        folder=place,
        seed=run.seed(name),
        bf16=run.bf16 and trains_branch and run.config.base == "full",
        shared=trains_branch,
        report_to=run.config.report_to,
        callbacks=run.callbacks,
    )


def _wants_gradients(module: nn.Module) -> bool:
    return any(p.requires_grad for p in module.parameters())


def _sample(run: Run, examples: Examples) -> Examples:
    """All examples where embeddings are at hand; else some, evenly spread: files come task by task."""
    return examples if run.frozen else examples[:: -(-len(examples) // _SAMPLE)]
