"""The model card: README.md of a checkpoint, with the accuracy that was measured."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from pathlib import Path

from markupsafe import Markup

from ..errors import CheckpointError
from ..evaluation.results import Results
from ..io.paths import write_file
from .page import template_environment

_BASES = {
    "full": "all weights of each task's branch are trained",
    "lora": "each task's branch is trained through a LoRA that is merged into it",
    "frozen": "the branch keeps its pretrained weights; only heads are trained",
}
_SPECIAL = re.compile(r"([\\`*\[\]<>|&]|(?<!\w)_|_(?!\w))")


def write_card(model_dir: str | Path, results: Results) -> None:
    """Write README.md of the checkpoint, completely or not at all.

    Raises:
        CheckpointError: the folder contains no model, or the file cannot be written.
    """
    folder = Path(model_dir)
    try:
        settings = json.loads((folder / "config.json").read_text(encoding="utf-8"))
        tasks, source = dict(settings["tasks"]), settings.get("backbone_source")
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise CheckpointError(f"{folder} is not a dmoerm checkpoint, so no model card is written ({error})") from None
    write_file(folder / "README.md", card(results, tasks, source))


def card(results: Results, tasks: Mapping[str, Sequence[str]], source: Mapping[str, str] | None = None) -> str:
    """Return the card's text.

    Args:
        tasks: task → its capabilities.
        source: the backbone that the checkpoint names in place of containing it, as in config.json.
    """
    environment = template_environment(autoescape=False, finalize=escape_markdown)
    environment.filters |= {"file_name": _file_name, "code": lambda text: Markup("`" + text.replace("`", "'") + "`")}
    columns = [*results.accuracy.values(), *results.paired.values()]
    sizes = {name: estimate.pairs for name, estimate in next(iter(results.accuracy.values())).items()}
    return environment.get_template("card.md").render(
        results=results,
        tasks=tasks,
        source=source,
        header=[*results.accuracy, *results.paired],
        rows=[(name, pairs, [column[name].percent for column in columns]) for name, pairs in sizes.items()],
        config=results.config,
        data=results.config and (", ".join(map(_file_name, results.config["data"]["files"])) or "not named"),
        bases=_BASES,
    )


def escape_markdown(value: object) -> object:
    """Escape the characters of a text that have a meaning in Markdown, and join its lines."""
    if isinstance(value, Markup) or not isinstance(value, str):
        return value
    return _SPECIAL.sub(r"\\\1", " ".join(value.split("\n")))


def _file_name(path: str) -> str:
    """Return the last part of an absolute path, which names this machine's folders; keep the name of a hub model."""
    return Path(path).name if Path(path).is_absolute() else path
