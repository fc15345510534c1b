"""Commands that change a trained model without training the rest of it again, or pass on parts of it."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import typer

from ..config import DataConfig
from ..data.readers import read_groups
from ..errors import ConfigError
from ..io.paths import SHIPPED, model_folder
from .models import load_model, prepare_libraries
from .options import Backbone, Overrides, grouped, lazily

if TYPE_CHECKING:
    from ..model import DMoERM, loading
    from ..model import export as exporting
    from ..training import grow as growing
else:
    growing, exporting, loading = lazily("training.grow", "model.export", "model.loading")

Model = Annotated[Path, typer.Argument(metavar="MODEL", help="The folder of a run or a model.")]
Capability = Annotated[
    str | None, typer.Option(metavar="TASK/NAME", help="A task and one of its capabilities, as in chitchat/empathy.")
]


@dataclass(frozen=True)
class Change:
    """Which model changes, and where the changed model goes."""

    model: Model
    output: Annotated[Path | None, typer.Option(help="Folder of the changed model; it must not exist.")] = None
    in_place: Annotated[bool, typer.Option("--in-place", help="Replace MODEL itself, completely or not at all.")] = (
        False
    )
    backbone: Backbone = None

    def folders(self) -> tuple[Path, Path]:
        """Return the model's folder and the folder of the changed model."""
        folder = Path(model_folder(str(self.model)))
        if (self.output is None) != self.in_place:
            raise ConfigError("give either --output FOLDER or --in-place")
        if self.in_place and folder.parent == SHIPPED:
            raise ConfigError(f"--in-place: {self.model} is a part of the package; give --output FOLDER")
        if self.output is not None and self.output.exists():
            hint = "name a new folder, or use --in-place to replace MODEL"
            raise ConfigError(f"--output {self.output}: exists already; {hint}")
        prepare_libraries()
        return folder, self.output or folder

    def of_capability(
        self, kind: Literal["add", "retrain", "remove"], capability: str, overrides: list[str] | None
    ) -> None:
        """Add, train again or remove a capability, and print the changed model."""
        task, separator, name = capability.partition("/")
        if not (task and separator and name):
            raise ConfigError(f"--capability: {capability!r} is invalid; write TASK/NAME, for example chitchat/empathy")
        folder, target = self.folders()
        changed = growing.change_capability(folder, task, name, kind, overrides or (), target, self.backbone)
        _print_tasks(changed, target)


@grouped
def add(
    change: Change,
    task: Annotated[str | None, typer.Option(help="Name of the new task; rows without a task belong to it.")] = None,
    capability: Capability = None,
    overrides: Overrides = None,
) -> None:
    """Add a task, or a capability of a task, to a trained model. All other weights stay as they are."""
    if (not task) == (not capability):
        raise ConfigError("give either --task or --capability")
    if capability:
        return change.of_capability("add", capability, overrides)
    folder, target = change.folders()
    return _print_tasks(growing.add_task(folder, str(task), overrides or (), target, change.backbone), target)


@grouped
def retrain(
    change: Change,
    capability: Annotated[str, typer.Option(metavar="TASK/NAME", help="The capability to train again.")],
    overrides: Overrides = None,
) -> None:
    """Train one capability's expert again, and fit its task's aggregator. All other weights stay as they are."""
    change.of_capability("retrain", capability, overrides)


@grouped
def remove(
    change: Change,
    tasks: Annotated[list[str] | None, typer.Option("--task", help="A task of the model; may be repeated.")] = None,
    capability: Capability = None,
    overrides: Overrides = None,
) -> None:
    """Remove tasks, or a capability and fit its task's aggregator again. All other weights stay as they are."""
    if (not tasks) == (not capability):
        raise ConfigError("give either --task or --capability")
    if capability:
        return change.of_capability("remove", capability, overrides)
    if overrides:
        raise ConfigError(f"--set {overrides[0]}: removing a task trains nothing; leave the setting out")
    folder, target = change.folders()
    loaded = load_model(str(folder), backbone=change.backbone)
    growing.remove_tasks(loaded, tasks or (), target)
    return _print_tasks(loaded, target)


@grouped
def merge(
    change: Change, others: Annotated[list[Path], typer.Argument(metavar="OTHER…", help="Models to merge into MODEL.")]
) -> None:
    """Join tasks that were trained apart on the same trunk."""
    folder, target = change.folders()
    loaded, *joining = (load_model(str(each), backbone=change.backbone) for each in (folder, *others))
    growing.merge_models(loaded, list(zip(map(str, others), joining, strict=True)), target, str(change.model))
    _print_tasks(loaded, target)


def _print_tasks(model: DMoERM, target: Path) -> None:
    for task, capabilities in model.config.tasks.items():
        print(f"{task}: {', '.join(capabilities) or 'no capabilities'}")
    print(f"model: {target}")


def export(
    model: Model,
    output: Annotated[Path, typer.Option(help="Folder of the new model; it must not exist.")],
    tasks: Annotated[
        list[str] | None,
        typer.Option("--task", help="A task to keep; may be repeated. With --plain: the task, else the general model."),
    ] = None,
    full: Annotated[
        bool, typer.Option("--full", help="Write the backbone's weights too. Without --task, all tasks are kept.")
    ] = False,
    plain: Annotated[
        bool, typer.Option("--plain", help="Write a standard ForSequenceClassification folder, for vLLM and SGLang.")
    ] = False,
    dtype: Annotated[str | None, typer.Option(help="With --plain: precision of the weights, such as float32.")] = None,
    backbone: Backbone = None,
) -> None:
    """Write a model with some tasks alone, with its backbone, or one task as a standard classifier of transformers."""
    if not (tasks or full or plain):
        raise ConfigError("give --task, --full for a model with its backbone, or --plain for the general model")
    if plain and full:
        raise ConfigError("--full: a standard classifier has all of its weights; leave --full or --plain out")
    if dtype is not None and not plain:
        raise ConfigError("--dtype needs --plain")
    if plain and tasks and len(tasks) > 1:
        raise ConfigError(f"--task {tasks[1]}: a standard classifier has one reward; give one task")
    folder, target = Change(model, output).folders()
    loaded = load_model(str(folder), backbone=backbone)
    if not plain:
        growing.export_tasks(loaded, tasks or (), target, backbone=full)
        return _print_tasks(loaded, target)
    task = next(iter(tasks or ()), None)
    if task is not None:
        loaded.task_model(task, "--task")
    config = exporting.export_classifier(loaded, task, target, loading.as_dtype(dtype))
    print(f"{task or 'general model'}: {config.architectures[0]}, {str(config.dtype).removeprefix('torch.')}")
    print(f"reward = logit {config.reward_bias:+.6g}; temperature {config.reward_temperature:.4g}")
    # The written folder is loaded again, to say how far its rewards are from the model's.
    queries = read_groups(DataConfig().located("demo:test")).groups[::6]
    check = exporting.check_classifier(loaded, task, target, queries)
    print(f"largest error {check.error:.1e} on {check.same_tokens} texts with equal tokens, of {check.texts} texts")
    if check.same_tokens < check.texts:
        print(f"largest error {check.other_error:.1e} on the others, which the template and tokenizer encode otherwise")
    return print(f"model: {target}")


def push(
    model: Annotated[str, typer.Argument(help="The folder of a model or a run.")],
    repo: Annotated[str, typer.Argument(help="Repository on the hub, such as me/name; created if it does not exist.")],
    private: Annotated[bool, typer.Option("--private", help="Create the repository as private.")] = False,
    full: Annotated[bool, typer.Option("--full", help="Upload the backbone's weights too.")] = False,
    backbone: Backbone = None,
) -> None:
    """Upload a model to the Hugging Face hub: weights as safetensors, settings, tokenizer and card.

    Log in with `hf auth login` first, or set HF_TOKEN. run.yaml is uploaded too; check the paths in it.
    """
    print(load_model(model, backbone=backbone).push_to_hub(repo, private=private or None, backbone=full))
