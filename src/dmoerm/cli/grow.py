"""`dmoerm add`, `retrain`, `remove` and `merge`: change a trained model without training the rest of it again."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import typer

from ..errors import ConfigError
from ..io.paths import model_folder
from .models import load_model, quieten
from .options import Overrides, lazily

if TYPE_CHECKING:
    from .. import training
    from ..model import DMoERM
else:
    (training,) = lazily("training")

Model = Annotated[Path, typer.Argument(metavar="MODEL", help="The folder of a run or a model.")]
Output = Annotated[Path | None, typer.Option(help="Folder of the changed model; it must not exist.")]
InPlace = Annotated[bool, typer.Option("--in-place", help="Replace MODEL itself, completely or not at all.")]
Capability = Annotated[
    str | None, typer.Option(metavar="TASK/NAME", help="A task and one of its capabilities, as in chitchat/empathy.")
]


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
    folder, target = target_folders(model, output, in_place)
    return print_tasks(training.add_task(folder, str(task), overrides or (), target), target)


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
    tasks: Annotated[list[str] | None, typer.Option("--task", help="A task of the model; may be repeated.")] = None,
    capability: Capability = None,
    overrides: Overrides = None,
    output: Output = None,
    in_place: InPlace = False,
) -> None:
    """Remove tasks, or a capability and fit its task's aggregator again. All other weights stay as they are."""
    _check_one(tasks, capability)
    if capability is not None:
        return _change_capability(model, capability, "remove", overrides, output, in_place)
    if overrides:
        raise ConfigError(f"--set {overrides[0]}: removing a task trains nothing; leave the setting out")
    folder, target = target_folders(model, output, in_place)
    loaded = load_model(str(folder))
    training.remove_tasks(loaded, tasks or (), target)
    return print_tasks(loaded, target)


def merge(
    model: Model,
    others: Annotated[list[Path], typer.Argument(metavar="OTHER…", help="Models to merge into MODEL.")],
    output: Output = None,
    in_place: InPlace = False,
) -> None:
    """Join tasks that were trained apart on the same trunk."""
    folder, target = target_folders(model, output, in_place)
    loaded, joining = load_model(str(folder)), [(str(other), load_model(str(other))) for other in others]
    training.merge_models(loaded, joining, target, str(model))
    print_tasks(loaded, target)


def _change_capability(
    model: Path,
    capability: str,
    change: Literal["add", "retrain", "remove"],
    overrides: list[str] | None,
    output: Path | None,
    in_place: bool,
) -> None:
    task, separator, name = capability.partition("/")
    if not (task and separator and name):
        raise ConfigError(f"--capability: {capability!r} is invalid; write TASK/NAME, for example chitchat/empathy")
    folder, target = target_folders(model, output, in_place)
    print_tasks(training.change_capability(folder, task, name, change, overrides or (), target), target)


def _check_one(task: object, capability: object) -> None:
    if (not task) == (not capability):
        raise ConfigError("give either --task or --capability")


def target_folders(model: Path, output: Path | None, in_place: bool) -> tuple[Path, Path]:
    """Return the model's folder and the folder of the changed model."""
    quieten()
    folder = Path(model_folder(str(model)))
    if (output is None) != in_place:
        raise ConfigError("give either --output FOLDER or --in-place")
    if output is not None and output.exists():
        raise ConfigError(f"--output {output}: exists already; name a new folder, or use --in-place to replace MODEL")
    return folder, output or folder


def print_tasks(model: DMoERM, target: Path) -> None:
    """Print the tasks of the changed model with their capabilities, and its folder."""
    for task, capabilities in model.config.tasks.items():
        print(f"{task}: {', '.join(capabilities) or 'no capabilities'}")
    print(f"model: {target}")
