"""`dmoerm update`: continue the tasks of a trained model with new labels."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from .grow import InPlace, Model, Output, load_changed, target_folders
from .options import Overrides, grouped
from .rows import RowOptions

if TYPE_CHECKING:
    from ..evaluation.updates import Gain
    from ..model import DMoERM
    from ..schema import Group
    from ..training.updating import ModelUpdate


@grouped
def command(
    model: Model,
    rows: RowOptions,
    data: Annotated[list[str], typer.Option(metavar="FILE", help="New labeled groups; may be repeated.")],
    test: Annotated[
        list[str] | None,
        typer.Option(metavar="FILE", help="Compare on these groups; else on the run's own held-out prompts."),
    ] = None,
    force: Annotated[bool, typer.Option("--force", help="Write the model even if it is less accurate.")] = False,
    overrides: Overrides = None,
    output: Output = None,
    in_place: InPlace = False,
) -> None:
    """Update the tasks that new rows touch; the old data are not needed. All other scores stay as they are."""
    from ..evaluation.updates import gains, task_rewards, with_weights
    from ..model.checkpoint import small_state
    from ..training.updating import update_model

    folder, target = target_folders(model, output, in_place)
    loaded = load_changed(folder)
    held_out = _held_out(folder, loaded, test, rows)
    weights = {name: tensor.clone() for name, tensor in small_state(loaded).items()}
    files = [str(Path(file).absolute()) if Path(file).exists() else file for file in data]
    settings = [f"data.files={json.dumps(files)}", *rows.settings(), *(overrides or ())]
    update = update_model(loaded, folder, settings)
    new = {task: zip(done.groups, done.before, done.after, strict=True) for task, done in update.tasks.items()}
    old = {task: _of_updated(held_out, task, update) for task in update.tasks}
    after = {task: task_rewards(loaded, groups) for task, groups in old.items()}
    with with_weights(loaded, weights):
        before = {task: task_rewards(loaded, groups) for task, groups in old.items()}
    on_new = gains(new)
    on_old = gains({task: zip(groups, before[task], after[task], strict=True) for task, groups in old.items()})
    _print(update, on_new, on_old)
    _refuse_loss(on_old or on_new, force)
    update.save(target)
    print(f"model: {target}")


def _held_out(folder: Path, model: DMoERM, test: Sequence[str] | None, rows: RowOptions) -> list[Group]:
    """Return labeled groups of the model's tasks that it was not trained on; none if the run's data is unreachable."""
    from ..config import load_config
    from ..data.overall import overall_from_capabilities
    from ..data.splits import load_splits, with_gold
    from ..errors import DmoermError

    if test:
        groups = with_gold(overall_from_capabilities(rows.read(test)))
    else:
        try:
            groups = load_splits(load_config(folder / "run.yaml")).test
        except (DmoermError, OSError):
            return []
    known = model.training_prompts or ()
    return [g for g in groups if g.task in model.config.tasks and g.prompt not in known]


def _of_updated(groups: Sequence[Group], task: str, update: ModelUpdate) -> list[Group]:
    """Return the groups of an updated task whose prompts are not among the new ones."""
    from ..schema import prompt_key

    new = {prompt_key(group.prompt) for group in update.tasks[task].groups}
    return [group for group in groups if group.task == task and prompt_key(group.prompt) not in new]


def _print(update: ModelUpdate, on_new: dict[str, Gain], on_old: dict[str, Gain]) -> None:
    for task, done in update.tasks.items():
        print(f"{task}: {len(done.groups)} groups, updated {', '.join(done.heads)}")
        for name, by_task in (("new prompts", on_new), ("old held-out prompts", on_old)):
            if task in by_task:
                print(f"  {name}: {_line(by_task[task])}")
    if update.unrouted:
        print(f"{update.unrouted} groups name no task, and the router assigns them to none; they are left out")
    if not on_old:
        print("no old held-out prompts: the run's data cannot be read or holds nothing out; give --test")


def _line(gain: Gain) -> str:
    low, high = (f"{100 * value:+.1f}" for value in (gain.difference.low, gain.difference.high))
    change = f"{100 * gain.difference.value:+.1f} points, 95 % interval {low} to {high}"
    share = f"{100 * gain.before.value:.1f} % → {100 * gain.after.value:.1f} %"
    return f"{share} ({change}; {gain.after.pairs} pairs, {gain.after.prompts} prompts)"


def _refuse_loss(by_task: dict[str, Gain], force: bool) -> None:
    """Raise `ConfigError` if the updated model is less accurate."""
    from ..errors import ConfigError
    from ..evaluation.results import MEAN

    if by_task and by_task[MEAN].is_loss and not force:
        raise ConfigError(
            f"the updated model is less accurate ({_line(by_task[MEAN])}); nothing was written; --force writes it"
        )
