"""Every field of the settings changes something that can be observed; a field that could not is not there."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from pydantic import BaseModel
from running import in_short
from tiny import tiny_groups, write_groups
from torch import nn

from dmoerm.config import (
    BranchStepConfig,
    Config,
    ExpertConfig,
    OwnRouterConfig,
    Phase1Config,
    StepConfig,
    TrainedAggregatorConfig,
    TrainingConfig,
    changed,
)
from dmoerm.data.splits import load_splits
from dmoerm.labels import CapabilityLabel, Outcome, content_digest, write_labels
from dmoerm.model.experts import lora_layers
from dmoerm.schema import Query
from dmoerm.training import phases, router
from dmoerm.training.loop import FitResult, Loop
from dmoerm.training.phases import first_part
from dmoerm.training.run import build_model, graph, open_cache, prepare, split_examples
from dmoerm.training.steps import Progress

# Acts elsewhere than in training, in a test of its own.
ELSEWHERE = {
    "backbone.quantization": "model/test_quantization.py",
    "backbone.reward_head": "model/test_families.py",
    "data.skip_bad": "data/test_splits.py",
    **{f"phase{i}.head_first": "training/test_exact_solver.py" for i in range(3)},
    "ray.address": "distributed/test_commands.py",
    "ray.cpus": "distributed/test_training.py",
    "ray.gpus": "distributed/test_training.py",
    "ray.retries": "distributed/test_training.py",
    "ray.workers_per_step": "distributed/test_training.py",
}


def fields(kind: type[BaseModel], prefix: str = "") -> Iterator[tuple[str, type[BaseModel]]]:
    """Path of each field that is no group of fields, and the group that it is of."""
    for name, field in kind.model_fields.items():
        if isinstance(field.default, BaseModel):
            yield from fields(type(field.default), f"{prefix}{name}.")
        else:
            yield prefix + name, kind


# --- the fields of a step ------------------------------------------------------------------------------------------

STEP: dict[str, Any] = {
    "epochs": 2.0,
    "learning_rate": 1e-5,
    "head_learning_rate": 1e-6,
    "batch_groups": 4,
    "weight_decay": 0.5,
    "warmup": 0.5,
    "evaluations": 3,
    "patience": 1,
    "metric_for_best_model": "accuracy",
}


def optimized(step: StepConfig, folder: Path, shared: TrainingConfig) -> Any:
    """How a step of 64 rows is optimized, and which of some evaluations it keeps."""
    module = nn.ModuleDict({"head": nn.Linear(2, 1), "body": nn.Linear(2, 2)})
    rows, collate = [0] * 64, list[Any]
    loop = Loop(module, rows, rows, collate, step, shared, folder, 0, False, None)  # pyright: ignore[reportArgumentType]
    tracker, schedule = loop.best, loop.schedule.lr_lambdas[0]
    groups = [(g["initial_lr"], g["weight_decay"], schedule(1)) for g in loop.optimizer.param_groups]
    for loss, accuracy in ((1.0, 0.5), (0.5, 0.4), (0.7, 0.9), (0.8, 0.8)):
        tracker.update(torch.tensor([loss]), torch.tensor([accuracy]))
    kept = (tracker.best_loss.tolist(), tracker.best_accuracy.tolist(), tracker.patience_count.tolist(), tracker.open)
    return groups, [loop.total, loop.size, loop.every], kept


@pytest.mark.parametrize(
    "kind", [OwnRouterConfig, BranchStepConfig, Phase1Config, ExpertConfig, TrainedAggregatorConfig]
)
def test_each_field_of_a_step_acts(kind: type[StepConfig], tmp_path: Path) -> None:
    start = optimized(kind(), tmp_path, TrainingConfig())
    for name, value in STEP.items():
        if name in kind.model_fields:
            assert optimized(kind(**{name: value}), tmp_path, TrainingConfig()) != start, name
        if name in TrainingConfig.model_fields:
            assert optimized(kind(), tmp_path, TrainingConfig(**{name: value})) != start, name


def test_each_phase_is_fitted_by_its_own_step(begun: Callable[..., Any], monkeypatch: pytest.MonkeyPatch) -> None:
    """With the step's own pull; `fit` is watched, not run."""
    fitted: dict[str, Any] = {}

    def fit(module: nn.Module, *_: Any, step: StepConfig, folder: Path, **__: Any) -> list[FitResult]:
        fitted[str(folder).rpartition("checkpoints/")[2]] = (step, getattr(module, "l2", None))
        module.eval()
        return [FitResult(0.0, 0.0, 0)] * (getattr(module, "num_experts", None) or 1)

    for module in (phases, router):
        monkeypatch.setattr(module, "fit", fit)
    pulls = {name: {"l2": i / 10} for i, name in enumerate(("phase0", "phase1", "phase2"), 1)}
    start = begun(**pulls, router={"kind": "own"})
    config = start.run.config
    router.train_router(start)
    phases.phase0(start)
    for phase in (phases.phase1, phases.phase2, phases.phase3):
        phase(start, "chitchat")
    expected = {"router": (config.router, None), "phase3/chitchat": (config.phase3, 0.0)}
    names = {"phase0": "branch", "phase1/chitchat": "branch", "phase2/chitchat": "lora"}
    for name, last in names.items():
        step = getattr(config, name.partition("/")[0])
        expected |= {f"{name}/{last}": (step, step.l2)}
    assert fitted == expected


# --- all others ----------------------------------------------------------------------------------------------------


def data(config: Config) -> Any:
    splits = load_splits(config)
    parts = [[group.model_dump_json() for group in part] for part in (splits.train, splits.test)]
    return parts, splits.taxonomy.to_yaml()


def begun_run(config: Config) -> Any:
    return prepare(config, load_splits(config).taxonomy, Path(config.output), Progress(quiet=True))


def examples(config: Config) -> Any:
    run = begun_run(config)
    data = load_splits(config)
    parts = split_examples(run, data.train, data.validation_prompts)
    return [[(e.group.id, dict(e.pairs)) for e in part] for part in (*parts, first_part(run, parts[0]))]


def model(config: Config) -> Any:
    """The untrained model: its parts, their sizes and types, its settings."""
    made = build_model(config, load_splits(config).taxonomy)
    scaling = {layer.scaling for layer in lora_layers(made).values()}
    return str(made), [(n, p.shape, p.dtype) for n, p in made.named_parameters()], made.config.to_dict(), scaling


def tokens(config: Config) -> Any:
    """The tokens of a long text, or that it is refused."""
    encoder = build_model(config, load_splits(config).taxonomy).encoder
    try:
        encoded = encoder.encode(Query(prompt="one two three " * 40, responses=("yes", "no, never " * 9)))
    except ValueError as error:
        return type(error)
    return encoded.prompt, encoded.responses


def base_branch(config: Config) -> Any:
    run = begun_run(config)
    branch = phases._trainable(run, run.model.general, run.model.general.head).branch
    return (
        str(branch),
        [layer.scaling for layer in lora_layers(branch).values()],
        branch.layers[0].gradient_checkpointing,
        getattr(getattr(branch.layers[0], "_gradient_checkpointing_func", None), "args", None),
    )


def order(config: Config) -> Any:
    return [(step.name, step.needs) for step in graph(config, load_splits(config).taxonomy)]


def places(config: Config) -> Any:
    run = begun_run(config)
    cache = open_cache(config, run.model)
    return str(run.folder), str(cache.folder), cache._limit, run.config.report_to


def label_file(folder: Path) -> str:
    """Soft labels of every group whose two orders disagree."""
    groups = [group for group in tiny_groups() if group.task == "chitchat"]
    verdicts = {"given": Outcome.FIRST, "swapped": Outcome.SECOND, "p_given": 0.9, "p_swapped": 0.4}
    labels = [
        CapabilityLabel("judge", g.id, content_digest(g), "chitchat", "empathy", 0, 1, **verdicts) for g in groups
    ]
    agreed = [replace(label, second=2, swapped=Outcome.FIRST) for label in labels]
    write_labels(folder / "labels.parquet", [*labels, *agreed])
    return str(folder / "labels.parquet")


LABELS = {"data.capability_labels": "LABELS", "data.human_labels": False}
TRL = {"data.files": ["trl.jsonl"], "data.dir": "FOLDER"}
NAMED: dict[str, Any] = {"data.files": ["some/dataset"]}
CUT = {"encoding.max_length": 60}
LORA = {"base": "lora"}
# Field → its other value, what observes it, and settings that it needs.
OTHERS: dict[str, tuple[Any, Callable[[Config], Any], dict[str, Any]]] = {
    "output": ("other", places, {}),
    "seed": (3, examples, {}),
    "taxonomy": ("paper-en", data, {"data.files": ["demo:train"]}),
    "cache": ("other", places, {}),
    "cache_limit": (1.0, places, {}),
    "gradient_checkpointing": ("offload", base_branch, {"gradient_checkpointing": True}),
    "report_to": (["tensorboard"], places, {}),
    "base": ("lora", base_branch, {}),
    "base_lora.rank": (2, base_branch, LORA),
    "base_lora.alpha": (2.0, base_branch, LORA),
    "base_lora.dropout": (0.5, base_branch, LORA),
    "base_lora.targets": (["k_proj"], base_branch, LORA),
    "warm_start": (True, order, {}),
    "data.files": (["demo:train"], data, {}),
    "data.test_files": (["test.jsonl"], data, {"data.dir": "FOLDER"}),
    "data.validation_files": (["test.jsonl"], examples, {"data.dir": "FOLDER"}),
    "data.map": ({"chosen": "rejected", "rejected": "chosen"}, data, TRL | {"data.task": "chitchat"}),
    "data.dir": ("OTHER", data, TRL | {"data.task": "chitchat"}),
    "data.format": ("trl", data, TRL | {"data.task": "chitchat", "data.format": "native"}),
    "data.split": ("test", data, NAMED),
    "data.task": ("objective_qa", data, TRL | {"data.task": "chitchat"}),
    "data.groups_per_task": (4, data, {}),
    "data.test_fraction": (0.5, data, {}),
    "data.validation_fraction": (0.5, examples, {}),
    "data.capability_labels": ((), data, LABELS),
    "data.human_labels": (True, data, LABELS),
    "data.soft_labels": (False, data, LABELS),
    "data.inconsistent_weight": (0.25, data, LABELS),
    "backbone.path": ("OTHER_BACKBONE", model, {}),
    "backbone.num_layers": (3, model, {}),
    "backbone.branch_layer": (1, model, {}),
    "backbone.dtype": ("bfloat16", model, {}),
    "encoding.template": ("plain", tokens, {}),
    "encoding.system": ("Be brief.", tokens, {}),
    "encoding.max_length": (61, tokens, CUT | {"encoding.truncation": "keep_both"}),
    "encoding.truncation": ("keep_end", tokens, CUT),
    "encoding.pooling": ("last", model, {}),
    "router.kind": ("own", model, {}),
    "router.threshold": (0.9, model, {}),
    "phase1.phase1_fraction": (0.3, examples, {}),
    "phase2.lora.rank": (3, model, {}),
    "phase2.lora.alpha": (2.0, model, {}),
    "phase2.lora.dropout": (0.5, model, {}),
    "phase2.lora.targets": (["k_proj"], model, {}),
    "phase3.inputs": ("embeddings", model, {}),
    "phase3.hidden": (5, model, {}),
    "phase3.dropout": (0.5, model, {}),
    "phase3.base_scores": (["general"], model, {}),
}


@pytest.fixture
def stand_ins(tmp_path: Path, backbones: Callable[[str], str], monkeypatch: pytest.MonkeyPatch) -> dict[str, str]:
    """What some values in `OTHERS` stand for: files, folders, a dataset of the hub."""
    split_rows = {"train": tiny_groups(12), "test": tiny_groups(9)}
    dumped = {name: [json.loads(g.model_dump_json(exclude_none=True)) for g in gs] for name, gs in split_rows.items()}
    monkeypatch.setattr("datasets.load_dataset", lambda name, configuration, split, streaming: dumped[split])
    for name, word in (("one", "fine"), ("two", "great")):
        (tmp_path / name).mkdir()
        lines = [{"prompt": f"p{i}", "chosen": f"{word} {i}", "rejected": "no"} for i in range(9)]
        (tmp_path / name / "trl.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    write_groups(tiny_groups(3), tmp_path / "one" / "test.jsonl")
    return {
        "LABELS": label_file(tmp_path),
        "FOLDER": str(tmp_path / "one"),
        "OTHER": str(tmp_path / "two"),
        "OTHER_BACKBONE": backbones("qwen3"),
    }


@pytest.mark.parametrize("name", in_short(OTHERS, *list(OTHERS)[::2]))
def test_each_other_field_acts(name: str, tiny_config: Callable[..., Config], stand_ins: dict[str, str]) -> None:
    value, observe, needed = OTHERS[name]

    def put(changes: dict[str, Any]) -> dict[str, Any]:
        return {key: stand_ins.get(v, v) if isinstance(v, str) else v for key, v in changes.items()}

    def observed(config: Config) -> Any:
        try:
            return observe(config)
        except ValueError as error:  # that a value is refused is an effect, too
            return str(error)

    start = changed(tiny_config(), put(needed))
    before, after = observed(start), observed(changed(start, put({name: value})))
    assert before != after
    assert name == "data.format" or not (isinstance(before, str) or isinstance(after, str)), (before, after)


def test_these_are_all_fields() -> None:
    found = dict(fields(Config))
    tested = {name for name in found if name.split(".")[-1] in (*STEP, "l2", "fit")}
    assert set(found) == tested | OTHERS.keys() | ELSEWHERE.keys()
    assert not [name for name, file in ELSEWHERE.items() if not (Path(__file__).parents[1] / file).is_file()]
