"""Change a trained model: add a task; add, retrain or remove a capability; remove, export or merge tasks.

    a task           router row ─▶ phase 1 ─▶ phase 2 ─▶ phase 3      of the new task; all else stays bit-identical
    a capability     its expert and its task's aggregator; all else stays bit-identical

The steps are those of `train`, with the settings of the model's run.yaml. They run on the given model, in a folder
beside the target that is removed at the end; a killed change resumes there.
"""

from __future__ import annotations

import copy
import hashlib
import shutil
from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any, Literal

import torch
from torch import nn

from ..config import Config, changed, load_config
from ..config.loading import flat, parse_override
from ..config.settings import DataConfig
from ..data.splits import Splits, load_splits
from ..errors import CheckpointError, ConfigError, DataError
from ..io.locking import exclusive_folder
from ..model import DMoERM
from ..model.backbone import load_backbone
from ..model.checkpoint import check_same_general, check_same_trunk, digest
from ..model.configuration import ModelChange, now, with_changes
from ..model.experts import Experts, lora_layers
from ..model.heads import HeadPosterior
from ..model.integrity import SUMS
from ..model.layers import split_layers
from ..model.loading import default_device
from ..model.mixture import TaskModel
from ..model.training_prompts import TrainingPrompts
from ..names import check_name
from .exact_solver import FOLDS
from .phases import phase0, phase1, phase2, phase3
from .processes import world_size
from .router import DRAWS, add_row, fit_row, known_statistics, set_row
from .run import aggregator_form, check_pairs, claim, open_cache, report_data, run_steps
from .steps import FoldWeights, Progress, Run, Step, Training, step_name

CapabilityChange = Literal["add", "retrain", "remove"]
_SOURCES = (
    *("files", "test_files", "validation_files", "capability_labels", "groups_per_task"),
    *("task", "format", "map", "split", "skip_bad", "soft_labels", "inconsistent_weight"),
)
"""Settings of `data` that a new task does not take from the model's run."""


# --- changes that train -----------------------------------------------------------------------------------------------


def add_task(folder: Path, task: str, overrides: Sequence[str], target: Path, backbone: str | None = None) -> DMoERM:
    """Add a task to a trained model: its branch, experts, aggregator and calibration, and its row of the router.

    Args:
        folder: the model's folder.
        overrides: settings `a.b=value` that differ from the model's run.yaml; the data are not taken from there.
        target: the folder of the changed model, which may be `folder`; it is written completely or not at all.
        backbone: see `DMoERM.from_pretrained`.

    Returns:
        The changed model.

    Raises:
        ConfigError: the model has the task, or a setting would need another model.
        CheckpointError: the model has no statistics of its prompts or no run.yaml, or `target` cannot be written.
        DataError: the data are invalid or insufficient.
    """
    try:
        check_name("task", task)
    except ValueError as error:
        raise ConfigError(f"--task: {error}") from None
    model = _load(folder, backbone)
    if task in model.config.tasks:
        raise ConfigError(f"--task {task}: the model has this task; remove it first to train it again")
    known_statistics(model, str(folder))
    sources = {f"data.{name}": getattr(DataConfig(), name) for name in _SOURCES}
    config = changed_config(folder, model, {"taxonomy": None, **sources}, overrides)
    if config.data.files and config.data.task is None:
        config = changed(config, {"data.task": task})
    data = _of_task(load_splits(config), task)
    check_pairs(data)

    def join_router(training: Training) -> None:
        add_row(training, task)
        _read_general(training)

    def grow() -> list[Step]:
        torch.manual_seed(config.seed)
        task_model = model.new_task_model(list(data.taxonomy.tasks[task].capabilities))
        if not model.config.shared_branch:
            task_model.base.branch = _pretrained_branch(config, model)
        task_model.experts.attach(task_model.base.branch)  # pyright: ignore[reportArgumentType]
        model.set_task(task, task_model.requires_grad_(False).to(model.device).eval())
        phases = [Step(step_name(do.__name__, task), (), partial(do, task=task)) for do in (phase1, phase2, phase3)]
        return [Step("router", (), join_router), *phases]

    return _run(folder, target, model, config, data, grow, ModelChange(change="add", task=task))


def change_capability(
    folder: Path,
    task: str,
    capability: str,
    change: CapabilityChange,
    overrides: Sequence[str],
    target: Path,
    backbone: str | None = None,
) -> DMoERM:
    """Add, retrain or remove one expert of a task, and fit the task's aggregator and calibration again.

    Args:
        folder, target, backbone: see `add_task`.
        overrides: settings that differ from the model's run.yaml, whose data are read if the overrides name no other.

    Returns:
        The changed model.

    Raises:
        DataError: the model has no such task, the data are insufficient, or have no label of the capability.
        ConfigError: the capability exists already, or does not exist; or the model's heads are soft (`Routing.soft`).
        CheckpointError: see `add_task`.
    """
    model = _load(folder, backbone)
    if model.routing.soft:
        raise ConfigError(
            f"{folder}: its kinds of prompts overlap, so that each task's heads were fitted to all prompts; train "
            "again with the new data or taxonomy (tasks can be added and removed)"
        )
    before = model.task_model(task, str(folder))
    names = list(before.experts.capabilities)
    if (capability in names) == (change == "add"):
        state = "has this capability; retrain it" if change == "add" else f"has only {', '.join(names) or 'none'}"
        raise ConfigError(f"--capability {task}/{capability}: the task {state}")
    names = [name for name in names if change != "remove" or name != capability]
    names += [capability] if change == "add" else []
    config = changed_config(folder, model, {}, overrides)
    data = load_splits(config)
    exact = config.base == "frozen" and config.phase2.fit == "exact"
    if change != "remove" and not any(g.labeled_pairs(capability) for g in data.train if g.task == task):
        hint = "add human grades to data.files, or labels by a judge to data.capability_labels"
        message = f"the training part has no label of {capability!r} for the task {task!r}"
        raise DataError(message, field="capabilities", hint=hint)
    every_task = {group.task for group in data.train} >= set(model.config.tasks)
    if not (exact and every_task):
        data = _of_task(data, task)

    def grow() -> list[Step]:
        torch.manual_seed(config.seed)
        model.set_task(task, _with_capabilities(model, before, names))
        trained = [] if change == "remove" else [capability]
        if exact:
            return [Step("refit", (), partial(_refit, task=task, trained=trained, refit_general=every_task))]
        expert = Step("phase2", (), partial(phase2, task=task, capabilities=trained))
        return [*([expert] if trained else []), Step("phase3", (), partial(phase3, task=task))]

    entry = ModelChange(change=change, task=task, capability=capability)
    return _run(folder, target, model, config, data, grow, entry)


def _load(folder: Path, backbone: str | None) -> DMoERM:
    if world_size() > 1:
        raise ConfigError("a model is changed by one process; start the command without accelerate launch")
    if not (folder / "config.json").is_file():
        raise CheckpointError(f"{folder}: is not a model's folder; give the folder that `train` wrote")
    return DMoERM.from_pretrained(folder, device_map=default_device(), backbone=backbone)


def changed_config(folder: Path, model: DMoERM, resets: dict[str, Any], overrides: Sequence[str]) -> Config:
    """Return the settings of the model's run with other values; those that shape the model must be the model's."""
    if not (folder / "run.yaml").is_file():
        raise CheckpointError(f"{folder}: has no run.yaml, so that its settings are unknown; train it again")
    trained = changed(load_config(folder / "run.yaml"), resets)
    config = changed(trained, dict(parse_override(each, f"--set {each}") for each in overrides), "--set")
    stored = model.config
    shapes: list[tuple[str, Any, dict[str, Any]]] = [
        ("encoding", config.encoding, stored.encoding),
        ("phase2.lora", config.phase2.lora, stored.lora),
        ("phase3", aggregator_form(config), stored.aggregator),
    ]
    different = [
        f"{name}.{field}"
        for name, now, fields in shapes
        for field, value in type(now)(**fields).model_dump(include=set(fields)).items()
        if value != getattr(now, field)
    ]
    different += ["base"] if (config.base == "frozen") != stored.shared_branch else []
    different += ["router.kind"] if config.router.kind != stored.router_kind else []
    different += ["router.threshold"] if config.router.threshold != stored.threshold else []
    before, now = flat(trained.backbone.model_dump(mode="json")), flat(config.backbone.model_dump(mode="json"))
    different += [f"backbone.{name}" for name, value in now.items() if before[name] != value]
    if different:
        raise ConfigError(f"--set {different[0]}: the model was trained with another value; leave it as it is")
    return config


def _of_task(data: Splits, task: str) -> Splits:
    train = [group for group in data.train if group.task == task]
    if not train:
        hint = "name files with such rows in data.files; rows without a task have this one"
        raise DataError("the training part has no group of this task", field="task", value=task, hint=hint)
    taxonomy = data.taxonomy.model_copy(update={"tasks": {task: data.taxonomy.tasks[task]}})
    return replace(data, train=train, test=[g for g in data.test if g.task == task], taxonomy=taxonomy)


def _pretrained_branch(config: Config, model: DMoERM) -> Any:
    """Return the pretrained backbone's branch. Raise `CheckpointError` if its trunk is not the model's."""
    dtype = str(next(model.parameters() if model.trunk is None else model.trunk.parameters()).dtype)
    kept = {"auto", "float32", "bfloat16"} & {dtype.removeprefix("torch.")} or {config.backbone.dtype}
    path = model.backbone_name or config.backbone.path
    backbone = load_backbone(changed(config, {"backbone.dtype": kept.pop(), "backbone.path": path}).backbone).model
    trunk, branch = split_layers(backbone.requires_grad_(False), model.config.branch_layer)
    if trunk is not None and model.trunk is not None:
        state = {name: tensor.cpu() for name, tensor in model.trunk.state_dict().items()}
        if not all(torch.equal(tensor, state[name]) for name, tensor in trunk.state_dict().items()):
            hint = "name that one with --backbone PATH"
            raise CheckpointError(f"{path}: is not the backbone whose layers the model has as its trunk; {hint}")
    return branch


@torch.no_grad()
def _with_capabilities(model: DMoERM, before: TaskModel, names: Sequence[str]) -> TaskModel:
    """Return a task model with these experts: known ones are copied; branch, phase-1 and all-labels head are kept."""
    task_model = model.new_task_model(names)
    task_model.base, task_model.all_labels = before.base, before.all_labels
    task_model.experts.attach(before.base.branch)  # pyright: ignore[reportArgumentType]
    task_model.to(model.device)
    _copy_experts(before.experts, task_model.experts)
    task_model.posterior.load_state_dict(before.posterior.state_dict())  # of phase 1's score, unless heads are exact
    return task_model.requires_grad_(False).eval()


@torch.no_grad()
def _copy_experts(source: Experts, target: Experts, without: Sequence[str] = ()) -> None:
    layers = lora_layers(source.branch or nn.Module())
    for name in target.capabilities:
        if name not in source.capabilities or name in without:
            continue
        i, j = source.capabilities.index(name), target.capabilities.index(name)
        target.heads[j].load_state_dict(source.heads[i].state_dict())
        for layer_name, layer in lora_layers(target.branch or nn.Module()).items():
            layer.lora_A[j], layer.lora_B[j] = layers[layer_name].lora_A[i], layers[layer_name].lora_B[i]


def _refit(training: Training, task: str, trained: Sequence[str], refit_general: bool) -> None:
    """Fit all heads of a task exactly, for their out-of-fold scores; keep the new expert and the aggregator alone.

    Args:
        trained: the capabilities whose experts are new.
        refit_general: also fit the general model, for scores of it that have not seen the task's labels.
    """
    model = training.run.model
    task_model = model.task_model(task)
    parts = [model.general, model.general_calibration, model.general_posterior, task_model.base.head]
    parts += [] if task_model.all_labels is None else [task_model.all_labels]
    kept = [(part, copy.deepcopy(part.state_dict())) for part in parts]
    experts = copy.deepcopy(task_model.experts)
    phase0(training) if refit_general else _read_general(training)
    for phase in (phase1, phase2, phase3):
        phase(training, task)
    for part, state in kept:
        part.load_state_dict(state)
    _copy_experts(experts, task_model.experts, without=trained)


def _read_general(training: Training) -> None:
    """Give exact fits the general model, which has not seen the labels of a new task: the same weights in all folds."""
    model = training.run.model
    if training.run.config.phase0.fit != "exact":
        return
    weight, scale = model.general.head.score.weight[0].cpu(), model.general_calibration.scale.cpu()
    training.folds[None, "general"] = FoldWeights(weight.expand(FOLDS, -1), torch.tensor(torch.nan))
    if (posterior := model.general_posterior).known:
        rest, basis = posterior.rest[0].cpu() * scale.square(), posterior.basis.cpu() * scale
        training.posteriors[None, "general"] = HeadPosterior(rest, basis)


def _run(
    folder: Path,
    target: Path,
    model: DMoERM,
    config: Config,
    data: Splits,
    grow: Callable[[], list[Step]],
    change: ModelChange,
) -> DMoERM:
    """Change the model by the steps that `grow` returns, and save it with its history."""
    file = folder / SUMS if (folder / SUMS).is_file() else folder / "config.json"
    name = f"{change.change} {change.task} {change.capability}"
    mark = hashlib.sha256(file.read_bytes() + name.encode()).hexdigest()[:8]
    work = target.with_name(f".{target.name}.{mark}.growing")
    settings = flat(load_config(folder / "run.yaml").model_dump(mode="json"))
    different = {k: v for k, v in flat(config.model_dump(mode="json")).items() if settings.get(k) != v}
    with exclusive_folder(work):
        config = changed(config, {"output": str(work)})
        run = Run(config, model, open_cache(config, model), claim(config, data), Progress())
        report_data(run, data)
        steps = grow()
        with run.progress.run(1 + len(steps)):
            run_steps(run, data, steps)
        prompts = TrainingPrompts.of(group.prompt for group in data.train if group.task == change.task)
        model.training_prompts = model.training_prompts and model.training_prompts | prompts
        data_digest = (work / "data.sha256").read_text(encoding="utf-8")
        update = {"data": data_digest, "settings": different, "time": now()}
        save_changed(model, target, [change.model_copy(update=update)])
    shutil.rmtree(work, ignore_errors=True)
    return model


def save_changed(model: DMoERM, target: Path, changes: Sequence[ModelChange], backbone: bool = False) -> None:
    """Write a changed model with the changes in its config.json and its card; completely or not at all."""
    model.config.history = [*model.config.history, *(change.model_dump(exclude_none=True) for change in changes)]
    card = with_changes(model.texts.get("README.md", ""), model.config.history)
    model.requires_grad_(False).eval().save_pretrained(target, card=card, backbone=backbone)


# --- changes without training -----------------------------------------------------------------------------------------


def remove_tasks(model: DMoERM, tasks: Sequence[str], target: Path) -> None:
    """Write the model without these tasks; all other weights stay as they are.

    Raises:
        DataError: the model lacks a task.
        ConfigError: no task would be left.
        CheckpointError: `target` cannot be written.
    """
    _keep(model, tasks, [task for task in model.config.tasks if task not in tasks])
    save_changed(model, target, [ModelChange(change="remove", task=task) for task in tasks])


def export_tasks(model: DMoERM, tasks: Sequence[str], target: Path, backbone: bool = False) -> None:
    """Write a model with these tasks alone, or with all tasks if none is named; raises as `remove_tasks`.

    Args:
        backbone: write the backbone's weights too.
    """
    if not tasks:
        return model.save_pretrained(target, backbone=backbone)
    _keep(model, tasks, tasks)
    return save_changed(model, target, [ModelChange(change="export", task=task) for task in tasks], backbone)


def _keep(model: DMoERM, named: Sequence[str], kept: Sequence[str]) -> None:
    for task in named:
        model.task_model(task, "--task")
    if not kept:
        raise ConfigError(f"--task: the model has only {', '.join(model.config.tasks)}; a model needs one task or more")
    model.keep_tasks(kept)


def merge_models(model: DMoERM, others: Sequence[tuple[str, DMoERM]], target: Path, name: str) -> list[str]:
    """Write the first model with the tasks of the others, whose weights are copied; return the tasks that joined it.

    The first model's general model, its calibrations and its rows of the router stay. Each new task's row is fitted
    against the statistics of the prompts of both models. A task that both have with the same weights is kept once.

    Args:
        others: name and model.
        name: of the first model, for messages.

    Raises:
        CheckpointError: a model has another trunk, another general model whose score a task reads, no statistics of its
            prompts, or another task of the same name; or `target` cannot be written.
    """
    changes: list[ModelChange] = []
    for other_name, other in others:
        check_same_trunk(model, other, (name, other_name))
        for task in other.config.tasks:
            if task not in model.config.tasks:
                check_same_general(model, other, task, other_name)
                _join(model, other, task, (name, other_name))
                earlier = [ModelChange(**change) for change in other.config.history if change["task"] == task]
                changes += [*earlier, ModelChange(change="merge", task=task, source=Path(other_name).name)]
            elif digest(model.task_model(task)) != digest(other.task_model(task)):
                hint = "export only the tasks that you want, or remove one of the two"
                raise CheckpointError(f"{other_name}: has another task {task!r} than the models before it; {hint}")
        if model.training_prompts and other.training_prompts:
            model.training_prompts |= other.training_prompts
        else:
            model.training_prompts = None  # a part of the prompts is unknown
    save_changed(model, target, changes)
    return [change.task for change in changes if change.change == "merge"]


def _join(model: DMoERM, other: DMoERM, task: str, names: tuple[str, str]) -> None:
    known_statistics(model, names[0])
    statistics = known_statistics(other, names[1])
    task_model = other.task_model(task)
    if model.config.shared_branch:
        task_model.base.branch = model.general.branch  # equal weights: they are in memory once
    model.set_task(task, task_model)
    if task in other.routing.pooled:
        model.config.routing = {**model.config.routing, "pooled": [*model.routing.pooled, task]}
    seed = int.from_bytes(hashlib.sha256(task.encode()).digest()[:4], "big")
    drawn = statistics.draw(task, DRAWS, torch.Generator().manual_seed(seed))
    set_row(model, task, fit_row(model, task, drawn, seed)[0], statistics.only([task]))
