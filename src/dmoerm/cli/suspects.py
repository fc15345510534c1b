"""`dmoerm data suspects`: the labels that a run's model contradicts most, for relabeling."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

if TYPE_CHECKING:
    from ..config import Config
    from ..training.suspects import JudgedLabel


def command(
    run: Annotated[Path, typer.Argument(help="Folder of a finished run.")],
    out: Annotated[Path, typer.Option(help="JSON Lines in the native format, a pair a line, the most doubtful first.")],
    limit: Annotated[int, typer.Option(min=1, help="Most pairs to write.")] = 200,
    capabilities: Annotated[bool, typer.Option(help="Also the labels of capabilities.")] = True,
) -> None:
    """Write the pairs whose labels a model that was not trained on them contradicts most."""
    from ..io.paths import write_file
    from ..training.run import load_run
    from ..training.suspects import judge_labels
    from .models import quieten
    from .tables import screen

    quieten()
    judged = judge_labels(load_run(run, _settings(run)), capabilities)
    doubtful = [label for label in judged if label.probability < 0.5]
    written = doubtful[:limit]
    write_file(out, "".join(json.dumps(_row(label), ensure_ascii=False) + "\n" for label in written))
    console = screen()
    console.print(f"{len(doubtful)} of {len(judged)} labels have a probability below 0.5", soft_wrap=True)
    console.print(f"wrote {len(written)} to {out}", soft_wrap=True)


def _settings(run: Path) -> Config:
    from ..config import load_config
    from ..errors import ConfigError

    if not (run / "config.yaml").is_file():
        raise ConfigError(f"{run}: has no config.yaml; give the folder of a run, not of a model")
    return load_config(run / "config.yaml")


def _row(label: JudgedLabel) -> dict[str, Any]:
    """Return a row that every command reads: the labeled pair, the preferred response first."""
    fields, pair = {"id", "prompt", "source", "tools"}, label.pair
    group = label.group.model_dump(mode="json", include=fields, exclude_none=True)
    responses = [label.group.responses[index] for index in (pair.better, pair.worse)]
    graded = {"capabilities": {label.capability: [1, 0]}} if label.capability else {"ranks": [1, 2]}
    extra = {"label_probability": round(label.probability, 4), "indices": [pair.better, pair.worse]}
    return group | {"task": label.task, "responses": responses} | graded | extra
