"""`dmoerm add`, `retrain`, `remove`, `export` and `merge`: change a trained model without training it again."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import typer

from ..io.paths import model_folder
from .options import Overrides

if TYPE_CHECKING:
    from ..model import DMoERM

Model = Annotated[Path, typer.Argument(metavar="MODEL", help="The folder of a run or a model.")]
Output = Annotated[Path | None, typer.Option(help="Folder of the changed model; it must not exist.")]
InPlace = Annotated[bool, typer.Option("--in-place", help="Replace MODEL itself, completely or not at all.")]
Capability = Annotated[
    str | None, typer.Option(metavar="TASK/NAME", help="A task and one of its capabilities, as in chitchat/empathy.")
]
Tasks = Annotated[list[str] | None, typer.Option("--task", help="A task of the model; may be repeated.")]


def add(
    model: Model,
    task: Annotated[str | None, typer.Option(help="Name of the new task; rows without a task belong to it.")] = None,
    capability: Capability = None,
    overrides: Overrides = None,
    output: Output = None,
    in_place: InPlace = False,
) -> None:
    """Add a task, or a capability of a task, to a trained model. All other weights stay as they are."""
    _check_one(task, capability)
    if capability is not None:
        return _change_capability(model, capability, "add", overrides, output, in_place)
    from ..training.grow import add_task

    folder, target = target_folders(model, output, in_place)
    return _print(add_task(folder, str(task), overrides or (), target), target)


def retrain(
    model: Model,
    capability: Annotated[str, typer.Option(metavar="TASK/NAME", help="The capability to train again.")],
    overrides: Overrides = None,
    output: Output = None,
    in_place: InPlace = False,
) -> None:
    """Train one capability's expert again, and fit its task's aggregator. All other weights stay as they are."""
    _change_capability(model, capability, "retrain", overrides, output, in_place)


def remove(
    model: Model,
    tasks: Tasks = None,
    capability: Capability = None,
    overrides: Overrides = None,
    output: Output = None,
    in_place: InPlace = False,
) -> None:
    """Remove tasks, or a capability and fit its task's aggregator again. All other weights stay as they are."""
    _check_one(tasks, capability)
    if capability is not None:
        return _change_capability(model, capability, "remove", overrides, output, in_place)
    _refuse_settings(overrides)
    from ..training.grow import remove_tasks

    folder, target = target_folders(model, output, in_place)
    loaded = load_changed(folder)
    remove_tasks(loaded, tasks or (), target)
    return _print(loaded, target)


def export(
    model: Model,
    output: Annotated[Path, typer.Option(help="Folder of the new model; it must not exist.")],
    tasks: Annotated[
        list[str] | None,
        typer.Option("--task", help="A task to keep; may be repeated. With --plain: the task, else the general model."),
    ] = None,
    plain: Annotated[
        bool, typer.Option("--plain", help="Write a standard ForSequenceClassification folder, for vLLM and SGLang.")
    ] = False,
    dtype: Annotated[str | None, typer.Option(help="With --plain: precision of the weights, such as float32.")] = None,
) -> None:
    """Write a model with some of the tasks alone, or one task as a standard classifier of transformers."""
    from ..errors import ConfigError
    from ..training.grow import export_tasks

    if plain:
        return _export_plain(model, output, tasks or (), dtype)
    if not tasks or dtype is not None:
        raise ConfigError("--dtype needs --plain" if tasks else "give --task, or --plain for the general model")
    folder, target = target_folders(model, output, False)
    loaded = load_changed(folder)
    export_tasks(loaded, tasks, target)
    return _print(loaded, target)


def _export_plain(model: Path, output: Path, tasks: Sequence[str], dtype: str | None) -> None:
    """Write a task, or the general model, as a standard classifier, and print how far it is from the model."""
    from ..errors import ConfigError
    from ..model.export import export_classifier
    from ..model.loading import as_dtype

    if len(tasks) > 1:
        raise ConfigError(f"--task {tasks[1]}: a standard classifier has one reward; give one task")
    folder, target = target_folders(model, output, False)
    loaded, task = load_changed(folder), next(iter(tasks), None)
    if task is not None:
        loaded.task_model(task, "--task")
    config = export_classifier(loaded, task, target, as_dtype(dtype))
    print(f"{task or 'general model'}: {config.architectures[0]}, {str(config.dtype).removeprefix('torch.')}")
    print(f"reward = logit {config.reward_bias:+.6g}; temperature {config.reward_temperature:.4g}")
    _print_error(loaded, task, target)
    print(f"model: {target}")


def _print_error(model: DMoERM, task: str | None, target: Path) -> None:
    from ..config import DataConfig
    from ..data.readers import read_groups
    from ..model.export import check_classifier

    queries = read_groups(DataConfig().located("demo:test")).groups[::6]
    check = check_classifier(model, task, target, queries)
    print(f"largest error {check.error:.1e} on {check.same_tokens} texts with equal tokens, of {check.texts} texts")
    if check.same_tokens < check.texts:
        print(f"largest error {check.other_error:.1e} on the others, which the template and tokenizer encode otherwise")


def merge(
    model: Model,
    others: Annotated[list[Path], typer.Argument(metavar="OTHER…", help="Models whose tasks join the first.")],
    output: Output = None,
    in_place: InPlace = False,
) -> None:
    """Join tasks that were trained apart on the same trunk."""
    from ..training.grow import merge_models

    folder, target = target_folders(model, output, in_place)
    loaded = load_changed(folder)
    merge_models(
        loaded, [(str(other), load_changed(Path(model_folder(str(other))))) for other in others], target, str(model)
    )
    _print(loaded, target)


def _change_capability(
    model: Path,
    capability: str,
    change: Literal["add", "retrain", "remove"],
    overrides: list[str] | None,
    output: Path | None,
    in_place: bool,
) -> None:
    from ..errors import ConfigError
    from ..training.grow import change_capability

    task, separator, name = capability.partition("/")
    if not (task and separator and name):
        raise ConfigError(f"--capability: {capability!r} is invalid; write TASK/NAME, for example chitchat/empathy")
    folder, target = target_folders(model, output, in_place)
    _print(change_capability(folder, task, name, change, overrides or (), target), target)


def _check_one(task: object, capability: object) -> None:
    from ..errors import ConfigError

    if (not task) == (not capability):
        raise ConfigError("give either --task or --capability")


def _refuse_settings(overrides: list[str] | None) -> None:
    from ..errors import ConfigError

    if overrides:
        raise ConfigError(f"--set {overrides[0]}: removing a task trains nothing; leave the setting out")


def target_folders(model: Path, output: Path | None, in_place: bool) -> tuple[Path, Path]:
    """Return the model's folder and that of the changed model."""
    from ..errors import ConfigError
    from .models import quieten

    quieten()
    folder = Path(model_folder(str(model)))
    if (output is None) != in_place:
        raise ConfigError("give either --output FOLDER or --in-place")
    if output is not None and output.exists():
        raise ConfigError(f"--output {output}: exists already; name a new folder, or use --in-place to replace MODEL")
    return folder, output or folder


def load_changed(folder: Path) -> DMoERM:
    from .models import load_model

    return load_model(str(folder))


def _print(model: DMoERM, target: Path) -> None:
    for task, capabilities in model.config.tasks.items():
        print(f"{task}: {', '.join(capabilities) or 'no capabilities'}")
    print(f"model: {target}")
