"""One training run, from preference data to a saved DMoERM.

    data → model → texts → trunk's activations (cached) → steps → save

All files are in the run's folder, which belongs to one set of settings and data. A run that is started again resumes
from the last checkpoint of its last step.
"""

from __future__ import annotations

import contextlib
import copy
import hashlib
import os
from collections.abc import Callable, Collection, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path

import torch
import yaml
from rich.console import Console

from ..chat.truncation import count_truncation
from ..config import AggregatorConfig, Config, dump_config
from ..config.loading import flat
from ..data.splits import Splits, held_out, load_splits
from ..errors import ConfigError, DataError
from ..io.locking import exclusive_folder
from ..io.paths import cache_folder, write_file
from ..model import DMoERM, DMoERMConfig
from ..model.backbone import branch_without_weights, check_backbone, load_backbone, resolve_branch_layer
from ..model.checkpoint import with_tokenizer
from ..model.configuration import FORMAT_VERSION, backbone_settings
from ..model.experts import check_targets, lora_targets
from ..model.layers import split_layers
from ..model.loading import name_backbone, quantize
from ..model.training_prompts import TrainingPrompts
from ..schema import Group, prompt_key
from ..taxonomy import Taxonomy
from .cache import ActivationCache, Texts
from .examples import PreferenceExample
from .loop import check_trackers
from .phases import phase0, phase1, phase2, phase3
from .processes import (
    barrier,
    broadcast,
    check_sharding,
    device,
    full_state,
    idle_gpus,
    is_main,
    move_to_device,
    sharded,
    world_size,
)
from .router import train_router
from .routing import choose_routing
from .steps import Progress, Run, Step, Training, step_name

Engine = Callable[[Run, Splits, Sequence[Step]], None]
"""Computes the results of the steps and stores them in the run's folder."""


def train(config: Config, console: Console | None = None, engine: Engine | None = None) -> Run:
    """Train a DMoERM and save it under `config.output`; resume if an earlier call was killed.

    Args:
        config: the settings.
        console: where to print the progress; None: standard error.
        engine: computes the steps; None: this process computes them in order.

    Returns:
        The finished run: its model, its folder, and the metrics of each step.

    Raises:
        ConfigError: transformers is too old, the folder has a run with other settings, a batch has fewer groups than
            there are processes, or the launcher requests sharding, which these settings do not support.
        DataError: the data is invalid or insufficient.
        CheckpointError: another process trains in that folder, or a file cannot be written.
        TrainingError: a loss is not finite.
    """
    check_settings(config)
    data = load_splits(config)
    check_pairs(data)
    if config.data.holds_out() and not any(group.pairs() for group in data.test):
        raise DataError(
            "the held-out part has no ordered pair",
            field="data.test_files" if config.data.test_files else "data.test_fraction",
            hint="add prompts with differing scores, or train without an evaluation: data.test_fraction=0",
        )
    is_first = os.environ.get("RANK", "0") == "0"  # it locks the folder for all processes of this launch
    with exclusive_folder(Path(config.output)) if is_first else contextlib.nullcontext():
        run = prepare(config, data.taxonomy, claim(config, data), Progress(console))
        if engine is None and (hint := idle_gpus()):
            run.progress.say(hint)
        report_data(run, data)
        steps = graph(config, data.taxonomy)
        with run.progress.run(1 + len(steps)):
            if engine is not None:
                engine(run, data, steps)
            training = begin(run if engine is None else replace(run, progress=Progress(quiet=True)), data)
            for step in steps:
                step.do(training)
        run.training = training
        run.model.eval()
        run.model.training_prompts = TrainingPrompts.of(group.prompt for group in data.train)
        with full_state(run.model):
            if is_main():
                run.model.save_pretrained(run.folder / "model", run_config=dump_config(config))
        barrier()
    return run


def graph(config: Config, taxonomy: Taxonomy) -> list[Step]:
    """Return the steps, each after the steps whose results it reads.

        router ──┬──▶ phase0 ─────────────────────────────┐
                 └──▶ phase1/t ──▶ phase2/t ──────────▶ phase3/t     for each task t; phase0 ─▶ phase1/t with
                                                                     `warm_start` and with exact heads
        all of them ─▶ routing: how the router's probabilities mix the task models

    In one process the steps run in order. On a cluster, a step can start when the steps that it needs are finished. A
    finished step that runs again loads its result from the run's folder into the model and trains nothing.
    """
    steps = [Step("router", (), train_router), Step("phase0", ("router",), phase0)]
    start = ["phase0"] if config.warm_start or config.phase0.fit == config.phase1.fit == "exact" else []
    for task, definition in taxonomy.tasks.items():
        first, experts = step_name("phase1", task), step_name("phase2", task)
        steps.append(Step(first, ("router", *start), partial(phase1, task=task)))
        if definition.capabilities:
            steps.append(Step(experts, ("router", first), partial(phase2, task=task)))
        needs = ("router", "phase0", first, *((experts,) if definition.capabilities else ()))
        steps.append(Step(step_name("phase3", task), needs, partial(phase3, task=task)))
    return [*steps, Step("routing", tuple(step.name for step in steps), choose_routing)]


def path_to(name: str, steps: Sequence[Step]) -> list[Step]:
    """Return a step after all its direct and indirect dependencies."""
    names = {name}
    for step in reversed(steps):
        if step.name in names:
            names |= set(step.needs)
    return [step for step in steps if step.name in names]


def begin(run: Run, data: Splits) -> Training:
    """Encode the training part, and fill the cache with its activations."""
    train_part, validation = split_examples(run, data.train, data.validation_prompts)
    if not any(e.task for e in train_part):
        hint = "label some groups, so that the router can learn, or set data.task"
        raise DataError("no group names its task", field="task", hint=hint)
    examples = [*train_part, *validation]
    with run.progress.step("trunk's activations"):
        texts = Texts(lambda i: examples[i].encoded, range(len(examples)))
        uncached = run.cache.fill(texts, run.progress.count)
    if uncached and sharded():
        raise ConfigError(f"cache_limit: the activations of {uncached} texts do not fit; set a larger limit")
    if uncached:
        run.progress.say(
            f"cache_limit: the activations of {uncached} texts do not fit; they are computed when they are read"
        )
    return Training(run, train_part, validation)


def run_steps(run: Run, data: Splits, steps: Sequence[Step]) -> Training:
    """Begin the run, and run steps of the graph in order."""
    training = begin(run, data)
    for step in steps:
        step.do(training)
    return training


def load_run(folder: Path, config: Config) -> Training:
    """Load what a finished run left in its folder: the model, the examples, the out-of-fold weights.

    Args:
        config: the settings of the run, from its folder.

    Raises:
        ConfigError: the run is not finished, or its data has changed.
        DataError: the data cannot be read any more.
    """
    data = load_splits(config)
    run = prepare(config, data.taxonomy, folder, Progress(quiet=True))
    steps = graph(config, data.taxonomy)
    if missing := [step.name for step in steps if not run.finished(step.name)]:
        raise ConfigError(f"{folder}: the step {missing[0]} is not finished; run `dmoerm train` first")
    if (written := folder / "data.sha256").exists() and written.read_text(encoding="utf-8") != data_digest(data):
        raise ConfigError(f"{folder}: its data has changed since it was trained; train again with another `output`")
    return run_steps(run, data, steps)


# --- data -------------------------------------------------------------------------------------------------------------


def check_pairs(data: Splits) -> None:
    """Raise `DataError` if each task has a single prompt, or a task has no ordered pair in the training part."""
    if any(group.task is None for group in data.train):
        return  # the router assigns these groups later
    prompts: dict[str | None, str] = {}
    keys = ((group.task, prompt_key(group.prompt)) for group in data.train)
    if data.train and all(prompts.setdefault(task, key) == key for task, key in keys):
        raise DataError(
            f"each task has a single prompt ({len(prompts)} tasks), so that nothing can be learned or held out",
            field="task",
            value=next(iter(prompts)),
            hint="a task is a kind of prompt: name kinds that many prompts share, or leave the field out of all rows",
        )
    for name in data.taxonomy.tasks:
        if not any(group.pairs() for group in data.train if group.task == name):
            raise DataError(
                f"the training part has no ordered pair of task {name!r}",
                field="scores",
                hint="add groups with differing scores, or leave the task out of the data and the taxonomy",
            )


def report_data(run: Run, data: Splits) -> None:
    """Print the notes on the data, what the readers left out, and how much of the training part is truncated."""
    for note in data.notes:
        run.progress.say(note)
    for reason, rows in data.skipped.items():
        run.progress.say(f"left out: {reason} ({rows})")
    for column, rows in data.unknown_columns.items():
        run.progress.say(f"ignored: unknown column {column!r} ({rows} rows)")
    if run.config.encoding.truncation != "error":
        run.truncation = count_truncation((e.group, e.encoded) for e in run.examples(data.train))
    if remark := run.truncation.description("to train on"):
        run.progress.say(remark)


def split_examples(
    run: Run, groups: Sequence[Group], prompts: Collection[str] = ()
) -> tuple[list[PreferenceExample], list[PreferenceExample]]:
    """Return the groups as training and validation examples.

    Args:
        prompts: keys of the validation part's prompts; empty: `data.validation_fraction` of the prompts.
    """
    if prompts:
        held = [prompt_key(group.prompt) in prompts for group in groups]
    else:
        held = held_out(groups, run.config.data.validation_fraction, run.config.seed + 1)
    parts: tuple[list[PreferenceExample], list[PreferenceExample]] = [], []
    for example, is_held in zip(run.examples(groups), held, strict=True):
        parts[is_held].append(example)
    return parts


def data_digest(data: Splits) -> str:
    """Return the SHA-256 of the taxonomy and the training part."""
    digest = hashlib.sha256(data.taxonomy.to_yaml().encode())
    for group in data.train:
        digest.update(group.model_dump_json().encode())
    return digest.hexdigest()


def claim(config: Config, data: Splits) -> Path:
    """Write the resolved settings and a digest of the data to the run's folder, and return the folder.

    Raises `ConfigError` if the folder has a run with other settings or data, or of another version of the package.
    """
    folder = Path(config.output)
    texts = {"format_version": f"{FORMAT_VERSION}\n", "config.yaml": dump_config(config)}
    for name, text in {**texts, "data.sha256": data_digest(data)}.items():
        written = folder / name
        if written.exists() and (before := written.read_text(encoding="utf-8")) != text:
            what = {"format_version": "of another version", "data.sha256": "with other data"}.get(name)
            what = what or f"with other settings ({_differences(before, text)})"
            raise ConfigError(f"{folder}: holds a run {what}; set another `output` or delete that folder")
        if is_main():
            write_file(written, text)
    return folder


def _differences(before: str, now: str) -> str:
    try:
        old, new = (flat(yaml.safe_load(text)) for text in (before, now))
    except (yaml.YAMLError, AttributeError):
        return "its config.yaml is not valid YAML"
    names = [name for name in {**new, **old} if old.get(name, "unset") != new.get(name, "unset")]
    return "; ".join(f"{name} was {old.get(name, 'unset')}, now {new.get(name, 'unset')}" for name in names)


# --- model ------------------------------------------------------------------------------------------------------------


def check_settings(config: Config) -> None:
    """Raise `ConfigError` for settings that the packages, the processes or the backbone do not allow."""
    check_trackers(config.report_to)
    check_sharding(config.router.kind == "own")
    if sharded() and config.backbone.quantization != "none":
        raise ConfigError(
            "backbone.quantization: quantized layers cannot be sharded; set it to none, or launch with ddp.yaml"
        )
    check_batches(config, world_size())
    check_backbone(config.backbone)
    loras = {"phase2.lora": config.phase2.lora} if config.phase2.lora.rank else {}
    loras |= {"base_lora": config.base_lora} if config.base == "lora" else {}
    for name, lora in loras.items():
        check_targets(branch_without_weights(config.backbone), lora, f"{name}.targets")


def check_batches(config: Config, processes: int) -> None:
    """Raise `ConfigError` if a batch that the processes divide has fewer groups than there are processes."""
    groups = config.training.batch_groups
    divided = config.router.kind == "own" or config.base != "frozen" or config.phase2.lora.rank
    if divided and groups < processes:
        raise ConfigError(
            f"training.batch_groups: {groups} groups are too few for {processes} processes; start fewer or increase it"
        )


def prepare(config: Config, taxonomy: Taxonomy, folder: Path, progress: Progress) -> Run:
    """Build the untrained model around the pretrained backbone, and open its activation cache."""
    model = build_model(config, taxonomy)
    if sharded():  # weights that the run trains become float32 now: sharded ones cannot change their dtype afterward
        for scorer in (model.general, *(model.task_model(task).base for task in model.config.tasks)):
            targets = lora_targets(scorer.branch, config.base_lora) if config.base == "lora" else ()
            for name, module in scorer.branch.named_modules():
                if config.base == "full" or name.rpartition(".")[2] in targets:
                    module.float()
    model = move_to_device(model)
    return Run(config, model, open_cache(config, model), folder, progress)


def build_model(config: Config, taxonomy: Taxonomy) -> DMoERM:
    """Build a DMoERM with pretrained branches and untrained experts."""
    backbone, tokenizer, start = load_backbone(config.backbone, empty=sharded() and not is_main())
    backbone.requires_grad_(False)
    torch.manual_seed(config.seed)  # seeds the initial weights of all steps
    layer = resolve_branch_layer(config.backbone, backbone.config)
    if layer == 0 and config.router.kind == "trunk":
        raise ConfigError("router.kind is trunk but branch_layer is 0: there is no trunk; set router.kind to own")
    if start is not None and config.encoding.pooling == "mean":
        raise ConfigError(
            f"encoding.pooling: the backbone {config.backbone.path!r} is a reward model with a head on the last token, "
            "from which a head on the mean cannot start; set encoding.pooling to both or last, or "
            "backbone.reward_head to false"
        )
    settings = DMoERMConfig(
        backbone=backbone_settings(backbone.config),
        branch_layer=layer,
        tasks={name: list(task.capabilities) for name, task in taxonomy.tasks.items()},
        shared_branch=config.base == "frozen",
        router_kind=config.router.kind,
        threshold=config.router.threshold,
        encoding=config.encoding.model_dump(mode="json"),
        lora=config.phase2.lora.model_dump(mode="json"),
        aggregator=aggregator_form(config).model_dump(),
    )
    model = DMoERM(settings)
    model.trunk, branch = split_layers(backbone, layer)
    model.general.branch = branch
    if config.backbone.quantization != "none":
        quantize((model.trunk, branch), config.backbone.quantization, device())
    elif is_main():  # which saves the model
        name_backbone(model, config.backbone.path)
    if start is not None:  # the general model scores as the reward model that is its backbone
        model.general.head.start_from(start)
    if sharded():  # the other processes get the weights with the shards
        model.general.head.has_start = broadcast(start is not None)
    if config.router.kind == "own":
        model.router.language_model = copy.deepcopy(backbone)
    for task in settings.tasks:
        task_model = model.task_model(task)
        task_model.base.branch = branch if settings.shared_branch else copy.deepcopy(branch)
        task_model.experts.attach(task_model.base.branch)
    return with_tokenizer(model, tokenizer).requires_grad_(False).eval()


def aggregator_form(config: Config) -> AggregatorConfig:
    """Return the form of the aggregators, without how they are fitted."""
    form = config.phase3.model_dump(include=set(AggregatorConfig.model_fields))
    return AggregatorConfig.model_validate({**form, "inputs": config.phase3.inputs})


def open_cache(config: Config, model: DMoERM) -> ActivationCache:
    """Open the cache of the activations that training and evaluation with these settings need."""
    needs_states = config.base != "frozen" or config.phase2.lora.rank > 0
    root = Path(config.cache) if config.cache else cache_folder() / "activations"
    parts = {"hidden": needs_states, "embedding": config.base == "frozen"}
    return ActivationCache(root, model, **parts, limit=config.cache_limit * 1e9)
