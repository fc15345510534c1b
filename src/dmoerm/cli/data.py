"""`dmoerm data`: check preference data before training, and find doubtful labels."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from ..config import Config, load_config
from ..data.statistics import NO_TASK, data_statistics
from ..errors import BackboneError, ConfigError
from ..io.paths import write_file
from ..names import ONE_TASK
from .models import prepare_libraries
from .options import SHOWN_BAD_ROWS, JsonFile, RowOptions, grouped, lazily
from .tables import screen, table

if TYPE_CHECKING:
    from rich.table import Table

    from .. import training
    from ..chat import encoding
    from ..model import backbone as backbones
    from ..training import suspects as suspected
else:
    training, suspected = lazily("training", "training.suspects")
    encoding, backbones = lazily("chat.encoding", "model.backbone")

app = typer.Typer(no_args_is_help=True, help="Check preference data, and find doubtful labels.")


@app.command()
@grouped
def check(
    files: Annotated[
        list[str], typer.Argument(metavar="FILE…", help="JSON Lines, CSV, TSV or Parquet files, or datasets.")
    ],
    rows: RowOptions,
    split: Annotated[str, typer.Option(help="Split to read, for datasets only.")] = "train",
    config: Annotated[
        str | None, typer.Option(help="Count what a run with this config would truncate: a YAML file or shipped name.")
    ] = None,
    json_file: JsonFile = None,
) -> None:
    """Count and check the data. Exits with 1 if any row is bad, unless --skip-bad is given."""
    encoder = _encoder(load_config(config)) if config else None
    tokenizer, encode = (encoder.tokenizer, encoder.encode) if encoder else (None, None)
    result = data_statistics(files, tokenizer, encode=encode, split=split, **rows.arguments())
    if json_file is not None:
        write_file(json_file, json.dumps(result, ensure_ascii=False, indent=2) + "\n")
    console = screen()
    for shown in _tables(result):
        if shown.row_count:
            console.print(shown)
    for line in _remarks(result):
        console.print(line, soft_wrap=True)
    if result["bad"] and not rows.skip_bad:
        raise typer.Exit(1)


def _encoder(config: Config) -> encoding.Encoder:
    """Return the config's encoder; one that truncates what `truncation: error` would reject."""
    from transformers import AutoConfig

    path = config.backbone.path
    try:
        folder = backbones.backbone_folder(path)
        tokenizer = backbones.load_tokenizer(folder)
        limit = getattr(AutoConfig.from_pretrained(folder), "max_position_embeddings", None)
    except (OSError, ValueError, KeyError) as error:
        raise BackboneError(f"{path}: its tokenizer cannot be loaded ({error}); give a model's folder") from None
    changes = {"truncation": "keep_both"} if config.encoding.truncation == "error" else {}
    return encoding.Encoder(tokenizer, config.encoding.model_copy(update=changes), limit)


def _tables(result: dict[str, Any]) -> Iterator[Table]:
    columns = ["source", "format", "rows", "groups", "bad"]
    sources, lengths, agreement = result["sources"], result["lengths"], result["agreement"]
    yield table("Sources", columns, [[source[name] for name in columns] for source in sources])
    kinds = {"left out": "skipped", "ignored: unknown column": "unknown_columns"}
    reasons = [
        [source["source"], f"{kind}: {reason}", count]
        for source in sources
        for kind, name in kinds.items()
        for reason, count in source[name].items()
    ]
    yield table("Left out and ignored", ["source", "what", "count"], reasons)
    counts = ["groups", "prompts", "responses", "pairs", "tie_share"]
    tasks = [[task, *(entry[name] for name in counts)] for task, entry in result["tasks"].items()]
    yield table("Tasks", ["task", *counts[:-1], "ties"], tasks)
    graded = []
    for task, entries in result["capabilities"].items():
        for name, entry in entries.items():
            agreeing = agreement.get(task, {}).get(name, {}).get("value")
            graded.append([task, name, entry["groups"], entry["pairs"], entry["tie_share"], agreeing])
    yield table("Capabilities", ["task", "capability", "groups", "pairs", "ties", "agreement"], graded)
    spreads = [
        [task, part, spread["p50"], spread["p95"], spread["max"]]
        for task, parts in lengths["tasks"].items()
        for part, spread in parts.items()
    ]
    yield table(f"Lengths in {lengths['unit']}", ["task", "of", "p50", "p95", "max"], spreads)
    cut = [[task, *entry.values()] for task, entry in (result["truncation"] or {}).items()]
    header = ["task", "responses", "truncated", "pairs that differ only in what is cut"]
    yield table("Too long for the model", header, cut)
    overall = [
        [task, *(values["overall"][name] for name in ("pairs", "comparisons", "value", "unaligned_pairs"))]
        for task, values in agreement.items()
        if "overall" in values
    ]
    header = ["task", "pairs", "comparisons", "agreement", "unaligned pairs"]
    yield table("Overall agreement of two annotators", header, overall)
    bad = []
    for (file, *error), lines in list(_alike(result["bad"]).items())[:SHOWN_BAD_ROWS]:
        numbers = ", ".join(str(line) for line in lines[:SHOWN_BAD_ROWS] if line is not None)
        more = f", … ({len(lines)} rows)" if len(lines) > SHOWN_BAD_ROWS else ""
        bad.append([":".join(part for part in (file, numbers) if part) + more, *error])
    yield table("Bad rows", ["position", "field", "message", "value", "hint"], bad)


def _alike(bad: list[dict[str, Any]]) -> dict[tuple[Any, ...], list[int | None]]:
    """Return the lines of the rows with the same error: (file, field, message, value, hint) → lines."""
    lines: dict[tuple[Any, ...], list[int | None]] = {}
    for row in bad:
        error = tuple(row[name] for name in ("file", "field", "message", "value", "hint"))
        lines.setdefault(error, []).append(row["line"])
    return lines


def _remarks(result: dict[str, Any]) -> Iterator[str]:
    if more := sum(len(lines) for lines in list(_alike(result["bad"]).values())[SHOWN_BAD_ROWS:]):
        yield f"… and {more} more bad rows; --json FILE writes all of them"
    yield (
        "{repeated_prompts} prompts occur in more than one group ({groups_on_them} groups); {repeated_groups} groups "
        "repeat an earlier one; {prompts_in_several_tasks} prompts occur under several tasks."
    ).format(**result["duplicates"])
    tasks = result["tasks"]
    if [*tasks] == [NO_TASK]:
        yield (
            f"No row names a task: `dmoerm train` gives all rows the task {ONE_TASK!r}. Choose another name with "
            "--task, or let `dmoerm init` propose tasks."
        )
    elif NO_TASK in tasks:
        yield f"{tasks[NO_TASK]['groups']} groups have no task: the router assigns one in training."


# --- doubtful labels -----------------------------------------------------------------------------------------------


@app.command()
def suspects(
    run: Annotated[Path, typer.Argument(help="Folder of a finished run.")],
    out: Annotated[Path, typer.Option(help="JSON Lines in the native format, a pair a line, the most doubtful first.")],
    limit: Annotated[int, typer.Option(min=1, help="Most pairs to write.")] = 200,
) -> None:
    """Write the pairs whose labels a model that was not trained on them contradicts most."""
    prepare_libraries()
    if not (run / "config.yaml").is_file():
        raise ConfigError(f"{run}: has no config.yaml; give the folder of a run, not of a model")
    judged = suspected.judge_labels(training.load_run(run, load_config(run / "config.yaml")))
    doubtful = [label for label in judged if label.probability < 0.5]
    rows = []
    for label in doubtful[:limit]:  # rows that every command reads: the labeled pair, the preferred response first
        fields, pair = {"id", "prompt", "source", "tools"}, [label.pair.better, label.pair.worse]
        row = label.group.model_dump(mode="json", include=fields, exclude_none=True) | {"task": label.task}
        row["responses"] = [label.group.responses[index] for index in pair]
        row |= {"capabilities": {label.capability: [1, 0]}} if label.capability else {"ranks": [1, 2]}
        rows.append(row | {"label_probability": round(label.probability, 4), "indices": pair})
    write_file(out, "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows))
    console = screen()
    console.print(f"{len(doubtful)} of {len(judged)} labels have a probability below 0.5", soft_wrap=True)
    console.print(f"wrote {len(rows)} to {out}", soft_wrap=True)
