"""`dmoerm export` and `push`: pass on some tasks, a standard classifier, or a whole model."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from ..config import DataConfig
from ..data.readers import read_groups
from ..errors import ConfigError
from .grow import Model, print_tasks, target_folders
from .models import load_model
from .options import lazily

if TYPE_CHECKING:
    from .. import training
    from ..model import export as exporting
    from ..model import loading
else:
    training, exporting, loading = lazily("training", "model.export", "model.loading")


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
    if plain:
        return _export_plain(model, output, tasks or (), dtype)
    if not tasks or dtype is not None:
        raise ConfigError("--dtype needs --plain" if tasks else "give --task, or --plain for the general model")
    folder, target = target_folders(model, output, False)
    loaded = load_model(str(folder))
    training.export_tasks(loaded, tasks, target)
    return print_tasks(loaded, target)


def _export_plain(model: Path, output: Path, tasks: Sequence[str], dtype: str | None) -> None:
    """Write a task, or the general model, as a standard classifier, and print how far it is from the model."""
    if len(tasks) > 1:
        raise ConfigError(f"--task {tasks[1]}: a standard classifier has one reward; give one task")
    folder, target = target_folders(model, output, False)
    loaded, task = load_model(str(folder)), next(iter(tasks), None)
    if task is not None:
        loaded.task_model(task, "--task")
    config = exporting.export_classifier(loaded, task, target, loading.as_dtype(dtype))
    print(f"{task or 'general model'}: {config.architectures[0]}, {str(config.dtype).removeprefix('torch.')}")
    print(f"reward = logit {config.reward_bias:+.6g}; temperature {config.reward_temperature:.4g}")
    queries = read_groups(DataConfig().located("demo:test")).groups[::6]
    check = exporting.check_classifier(loaded, task, target, queries)
    print(f"largest error {check.error:.1e} on {check.same_tokens} texts with equal tokens, of {check.texts} texts")
    if check.same_tokens < check.texts:
        print(f"largest error {check.other_error:.1e} on the others, which the template and tokenizer encode otherwise")
    print(f"model: {target}")


def push(
    model: Annotated[str, typer.Argument(help="The folder of a model or a run.")],
    repo: Annotated[str, typer.Argument(help="Repository on the hub, such as me/name; created if it does not exist.")],
    private: Annotated[bool, typer.Option("--private", help="Create the repository as private.")] = False,
    message: Annotated[str | None, typer.Option(help="Commit message.")] = None,
    revision: Annotated[str | None, typer.Option(help="Branch. Default: main.")] = None,
) -> None:
    """Upload a model to the Hugging Face hub: weights as safetensors, settings, tokenizer and card.

    Log in with `hf auth login` first, or set HF_TOKEN. run.yaml is uploaded too; check the paths in it.
    """
    print(load_model(model).push_to_hub(repo, private=private or None, commit_message=message, revision=revision))
