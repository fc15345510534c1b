"""The phases: each selects its data and its trained parameters, freezes the rest, and calls `fit`.

    router    prompts → tasks
    phase 0   the general model: branch + head on all tasks together
    phase 1   per task: branch + head on the overall preferences            (the paper: on 60 % of the groups)
    phase 2   per task: one expert per capability, on its labels         (expert_step.py)
    phase 3   per task: the aggregator on the overall preferences           (the paper: on the other 40 %), calibration

With `base: frozen`, phases 0 to 2 fit heads on cached embeddings of the pretrained branch.
"""

from __future__ import annotations

import copy
from collections.abc import Sequence
from pathlib import Path

import torch
from torch import nn

from ..config import BranchStepConfig
from ..data.splitting import split_by_prompt
from ..model.experts import MergedLoRALinear, lora_layers, with_experts
from ..model.heads import BranchScorer
from ..model.packed_attention import Decoder
from .batches import PackedCollator, PreferenceExample, VectorCollator, labeled
from .calibration import calibrate
from .embedding import base_embeddings, cached_states, task_vectors
from .fitting import fit
from .losses import PreferenceLossModule
from .steps import Run, State, StepMetrics, Training, step_metrics, step_name

Examples = Sequence[PreferenceExample]
_SAMPLE = 256  # groups for normalization statistics if an embedding needs a pass


def phase0(training: Training) -> None:
    """Train the general model on all tasks together, and calibrate it."""
    run, train, validation = training.run, training.train, training.validation
    general = run.model.general
    state = run.step(
        "phase0", lambda checkpoint_dir: train_base(run, general, train, validation, run.config.phase0, checkpoint_dir)
    )
    apply_base(general, state)
    general_calibration = run.model.general_calibration
    sample = base_embeddings(run, general, [*_sample(run, train), *validation])
    with torch.no_grad():
        rewards = {key: general.head(z.to(run.model.device)).cpu() for key, z in sample.items()}
    calibrate(general_calibration, rewards, train, validation)


def phase1(training: Training, task: str) -> None:
    """Train a task's branch and head on the overall preferences."""
    run, (train, validation) = training.run, training.of(task)
    base, general = run.model.task_model(task).base, run.model.general
    if run.config.warm_start:
        base.head.load_state_dict(general.head.state_dict())
        if not run.frozen:
            _fill(base.branch, general.branch.state_dict())
    first, step, reset = first_part(run, train), run.config.phase1, run.frozen or not run.config.warm_start
    state = run.step(
        step_name("phase1", task),
        lambda checkpoint_dir: train_base(run, base, first, validation, step, checkpoint_dir, reset),
    )
    apply_base(base, state)


def phase3(training: Training, task: str) -> None:
    """Train the aggregator on the experts' outputs, and calibrate the task's rewards."""
    run, (train, validation) = training.run, training.of(task)
    task_model = run.model.task_model(task)
    modules = {
        "aggregator": task_model.aggregator,
        "normalizer": task_model.normalizer,
        "calibration": task_model.calibration,
    }
    kept = nn.ModuleDict(modules)
    state = run.step(
        step_name("phase3", task),
        lambda checkpoint_dir: _train_aggregator(run, task, kept, train, validation, checkpoint_dir),
    )
    kept.load_state_dict(state)


def first_part(run: Run, examples: Examples) -> Examples:
    """Return the groups of phase 1."""
    return _split(run, examples)[0]


def second_part(run: Run, examples: Examples) -> Examples:
    """Return the groups of phase 3."""
    return _split(run, examples)[1]


def _split(run: Run, examples: Examples) -> tuple[Examples, Examples]:
    fraction = run.config.phase1.phase1_fraction
    if 1 - fraction == 1:  # 0, or so small that floating point cannot distinguish it
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
    checkpoint_dir: Path,
    fit_normalizer: bool = True,
) -> tuple[State, StepMetrics]:
    """Train a copy of a branch and its head; return its state and its metrics.

    Args:
        start: the scorer whose weights training starts from; it is not changed.
        train, validation: examples with overall pairs.
        checkpoint_dir: folder of the checkpoints.
        fit_normalizer: fit the head's normalizer on the training part; otherwise keep that of `start`.
    """
    head = copy.deepcopy(start.head).requires_grad_(True)
    if fit_normalizer:
        head.normalizer.fit(torch.cat(list(base_embeddings(run, start, _sample(run, train)).values())))
    parts = [labeled(train), labeled(validation)]
    if first := step if run.frozen else step.head_first:
        vectors = base_embeddings(run, start, [*train, *validation])
        collate = VectorCollator(lambda e: vectors[e.key])
        module, options = PreferenceLossModule(head, first.l2, head), run.fit_options(checkpoint_dir / "head")
        fits = fit(module, *parts, collate=collate, step=first, **options)
        if run.frozen:
            return {f"head.{name}": tensor for name, tensor in head.state_dict().items()}, step_metrics(fits)
    scorer = BranchScorer(_trainable(run, start.branch), head, start.pooling)  # pyright: ignore[reportArgumentType]
    states = cached_states(run, [*parts[0], *parts[1]])
    module, options = PreferenceLossModule(scorer, step.l2, head), run.fit_options(checkpoint_dir / "branch")
    fits = fit(module, *parts, collate=PackedCollator(lambda e: states[e.key]), step=step, **options)
    scorer.branch = _merged(scorer.branch)
    return scorer.state_dict(), step_metrics(fits)


def _trainable(run: Run, branch: Decoder) -> Decoder:
    """Return a trainable copy: all weights in float32, or frozen with a trainable LoRA."""
    branch = copy.deepcopy(branch)
    if run.config.base == "lora":
        return with_experts(branch.requires_grad_(False), 1, run.config.base_lora, MergedLoRALinear)
    return branch.float().requires_grad_(True)


@torch.no_grad()
def _merged(branch: nn.Module) -> nn.Module:
    """Merge the branch's LoRA, if it has one, into its weights; merged weights are float32."""
    for name, layer in lora_layers(branch).items():
        if isinstance(layer, MergedLoRALinear):
            parent, _, last = name.rpartition(".")
            layer.base.weight = nn.Parameter(layer.merged(), requires_grad=False)
            setattr(branch.get_submodule(parent), last, layer.base)
    return branch


def apply_base(scorer: BranchScorer, state: State) -> None:
    """Load a state of `train_base` into the scorer; trained weights keep their dtype, float32."""
    scorer.head.load_state_dict({n.removeprefix("head."): t for n, t in state.items() if n.startswith("head.")})
    branch = {n.removeprefix("branch."): t for n, t in state.items() if n.startswith("branch.")}
    if branch:
        _fill(scorer.branch, branch)
    scorer.requires_grad_(False)


def _fill(branch: nn.Module, state: State) -> None:
    """Copy a state with its dtypes into a branch, in place: modules that share the parameters change too."""
    for name, parameter in branch.named_parameters():
        parameter.data = state[name].detach().to(parameter.device, copy=True)


# --- phase 3 -------------------------------------------------------------------------------------------------------


def _train_aggregator(
    run: Run, task: str, kept: nn.ModuleDict, train: Examples, validation: Examples, checkpoint_dir: Path
) -> tuple[State, StepMetrics]:
    task_model = run.model.task_model(task)
    train = second_part(run, train)
    vectors = task_vectors(run, task, [*train, *validation])
    known = torch.cat([vectors[e.key] for e in train])
    count = len(task_model.experts)
    if count:
        task_model.normalizer.fit(known[:, known.shape[1] - count - 2 : known.shape[1] - 2])
    task_model.aggregator.fit_normalizers(known)
    task_model.aggregator.requires_grad_(True)
    step = run.config.phase3
    module = PreferenceLossModule(task_model.aggregator, step.l2, task_model.aggregator)
    parts = [labeled(train), labeled(validation)]
    collate = VectorCollator(lambda e: vectors[e.key])
    fits = fit(module, *parts, collate=collate, step=step, **run.fit_options(checkpoint_dir))
    task_model.aggregator.requires_grad_(False)
    with torch.no_grad():
        rewards = {key: task_model.aggregator(vector.to(run.model.device)).cpu() for key, vector in vectors.items()}
    calibrate(task_model.calibration, rewards, train, validation)
    return kept.state_dict(), step_metrics(fits)


def _sample(run: Run, examples: Examples) -> Examples:
    """Return all examples if embeddings are cached, else some at even distances: files are often sorted by task."""
    return examples if run.frozen else examples[:: -(-len(examples) // _SAMPLE)]
