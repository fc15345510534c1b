"""`dmoerm data`: check preference data before training, and draft a taxonomy from it."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.console import Console
from rich.markup import escape

from . import suspects
from .options import SHOWN_BAD_ROWS, JsonFile, RowOptions, grouped
from .tables import plain_table

if TYPE_CHECKING:
    from rich.table import Table

    from ..chat.encoding import Encoder

app = typer.Typer(no_args_is_help=True, help="Check preference data, draft a taxonomy, find doubtful labels.")
app.command("suspects")(suspects.command)

Files = Annotated[
    list[str], typer.Argument(metavar="FILE…", help="JSON Lines, CSV, TSV or Parquet files, or datasets.")
]
Split = Annotated[str, typer.Option(help="Split to read, for datasets only.")]


@app.command()
@grouped
def check(
    files: Files,
    rows: RowOptions,
    split: Split = "train",
    config: Annotated[
        str | None, typer.Option(help="Count what a run with this config would truncate: a YAML file or shipped name.")
    ] = None,
    backbone: Annotated[
        str | None, typer.Option(help="The same, with this model's tokenizer (a folder, a .gguf file, a name).")
    ] = None,
    json_file: JsonFile = None,
) -> None:
    """Count and check the data. Exits with 1 if any row is bad, unless --skip-bad is given."""
    from ..data.statistics import data_statistics
    from ..errors import DmoermError
    from ..io.paths import write_file

    console = Console(markup=False)
    try:
        encoder = _encoder(config, backbone)
        tokenizer, encode = (None, None) if encoder is None else (encoder.tokenizer, encoder.encode)
        result = data_statistics(files, tokenizer, encode=encode, split=split, **rows.arguments(files))
        if json_file is not None:
            write_file(json_file, json.dumps(result, ensure_ascii=False, indent=2) + "\n")
    except (DmoermError, OSError) as error:
        raise _failure(error) from None
    _print_result(console, result)
    if result["bad"] and not rows.skip_bad:
        raise typer.Exit(1)


def _print_result(console: Console, result: dict[str, Any]) -> None:
    for table in _tables(result):
        if table.row_count:
            console.print(table)
    if more := sum(len(lines) for lines in list(_alike(result["bad"]).values())[SHOWN_BAD_ROWS:]):
        console.print(f"… and {more} more bad rows; --json FILE writes all of them", soft_wrap=True)
    _print_repetitions(console, result["duplicates"])
    _print_without_task(console, result["tasks"])


@app.command()
@grouped
def taxonomy(
    files: Files,
    rows: RowOptions,
    name: Annotated[str, typer.Option(help="Name of the taxonomy.")] = "my-taxonomy",
    split: Split = "train",
    out: Annotated[Path | None, typer.Option(help="Write to this new file instead of standard output.")] = None,
) -> None:
    """Draft a taxonomy from the tasks and capabilities in the data. Edit its rubrics before you use it."""
    from ..errors import DmoermError
    from ..io.paths import write_file
    from ..taxonomy import draft_taxonomy

    try:
        groups = rows.read(files, split)
        text = "# Drafted from data: edit the titles, descriptions and rubrics.\n"
        text += draft_taxonomy(groups, name).to_yaml()
        if out is not None and out.exists():
            raise FileExistsError(f"{out}: already exists and may contain edited rubrics; name another file")
        if out is not None:
            write_file(out, text)
    except (DmoermError, OSError) as error:
        raise _failure(error) from None
    typer.echo(f"wrote {out}" if out is not None else text, nl=out is not None)


def _failure(error: Exception) -> typer.Exit:
    Console(stderr=True).print(f"[red]error:[/red] {escape(str(error))}", soft_wrap=True)
    return typer.Exit(1)


def _encoder(config: str | None, backbone: str | None) -> Encoder | None:
    """Return the encoder of a config or a backbone; one that truncates what `truncation: error` would reject."""
    if config is None and backbone is None:
        return None
    from transformers import AutoConfig, AutoTokenizer

    from ..chat.encoding import Encoder
    from ..config import Config, load_config
    from ..errors import BackboneError
    from ..model.backbone import backbone_folder

    settings = load_config(config) if config else Config()
    path = backbone or settings.backbone.path
    if path.endswith(".gguf"):
        folder, options = str(Path(path).parent), {"gguf_file": Path(path).name}
    else:
        folder, options = backbone_folder(path), {}
    try:
        tokenizer = AutoTokenizer.from_pretrained(folder, **options)
        limit = getattr(AutoConfig.from_pretrained(folder, **options), "max_position_embeddings", None)
    except (OSError, ValueError, KeyError) as error:
        raise BackboneError(f"{path}: its tokenizer cannot be loaded ({error}); give a model's folder") from None
    changes: dict[str, Any] = {"truncation": "keep_both"} if settings.encoding.truncation == "error" else {}
    if config is None and not tokenizer.chat_template:
        changes["template"] = "plain"
    return Encoder(tokenizer, settings.encoding.model_copy(update=changes), limit)


def _tables(result: dict[str, Any]) -> list[Table]:
    lengths = result["lengths"]
    return [
        plain_table("Sources", ["source", "format", "rows", "groups", "bad"], _source_rows(result)),
        plain_table("Left out, ignored and noted", ["source", "what", "count"], _reason_rows(result)),
        plain_table("Tasks", ["task", "groups", "prompts", "responses", "pairs", "ties"], _task_rows(result)),
        plain_table(
            "Capabilities", ["task", "capability", "groups", "pairs", "ties", "agreement"], _capability_rows(result)
        ),
        plain_table(f"Lengths in {lengths['unit']}", ["task", "of", "p50", "p95", "max"], _length_rows(lengths)),
        plain_table(
            "Too long for the model",
            ["task", "responses", "truncated", "pairs that differ only in what is cut"],
            _truncation_rows(result),
        ),
        plain_table(
            "Overall agreement of two annotators",
            ["task", "pairs", "comparisons", "agreement", "unaligned pairs"],
            _overall(result),
        ),
        plain_table("Bad rows", ["position", "field", "message", "value", "hint"], _bad_rows(result)),
    ]


def _source_rows(result: dict[str, Any]) -> list[list[Any]]:
    return [[source[name] for name in ("source", "format", "rows", "groups", "bad")] for source in result["sources"]]


def _reason_rows(result: dict[str, Any]) -> list[list[Any]]:
    return [
        [source["source"], f"{kind}: {reason}", count]
        for source in result["sources"]
        for kind, reasons in (
            ("left out", source["skipped"]),
            ("ignored: unknown column", source["unknown_columns"]),
            ("noted", source["notes"]),
        )
        for reason, count in reasons.items()
    ]


def _task_rows(result: dict[str, Any]) -> list[list[Any]]:
    names = ("groups", "prompts", "responses", "pairs", "tie_share")
    return [[task, *(counts[name] for name in names)] for task, counts in result["tasks"].items()]


def _capability_rows(result: dict[str, Any]) -> list[list[Any]]:
    return [
        [task, name, counts["groups"], counts["pairs"], counts["tie_share"], _agreement(result, task, name)]
        for task, capabilities in result["capabilities"].items()
        for name, counts in capabilities.items()
    ]


def _agreement(result: dict[str, Any], task: str, name: str) -> float | None:
    return result["agreement"].get(task, {}).get(name, {}).get("value")


def _length_rows(lengths: dict[str, Any]) -> list[list[Any]]:
    return [
        [task, part, *(spread[name] for name in ("p50", "p95", "max"))]
        for task, parts in lengths["tasks"].items()
        for part, spread in parts.items()
    ]


def _truncation_rows(result: dict[str, Any]) -> list[list[Any]]:
    return [
        [task, counts["responses"], counts["truncated"], counts["identical_pairs"]]
        for task, counts in (result["truncation"] or {}).items()
    ]


def _overall(result: dict[str, Any]) -> list[list[Any]]:
    return [
        [task, *(values["overall"][name] for name in ("pairs", "comparisons", "value", "unaligned_pairs"))]
        for task, values in result["agreement"].items()
        if "overall" in values
    ]


def _bad_rows(result: dict[str, Any]) -> list[list[Any]]:
    rows = []
    for (file, *error), lines in list(_alike(result["bad"]).items())[:SHOWN_BAD_ROWS]:
        numbers = ", ".join(str(line) for line in lines[:SHOWN_BAD_ROWS] if line is not None)
        more = f", … ({len(lines)} rows)" if len(lines) > SHOWN_BAD_ROWS else ""
        rows.append([":".join(part for part in (file, numbers) if part) + more, *error])
    return rows


def _alike(bad: list[dict[str, Any]]) -> dict[tuple[Any, ...], list[int | None]]:
    """Return the lines of the rows with the same error: (file, field, message, value, hint) → lines."""
    lines: dict[tuple[Any, ...], list[int | None]] = {}
    for row in bad:
        error = tuple(row[name] for name in ("file", "field", "message", "value", "hint"))
        lines.setdefault(error, []).append(row["line"])
    return lines


def _print_without_task(console: Console, tasks: dict[str, Any]) -> None:
    from ..data.statistics import NO_TASK
    from ..names import ONE_TASK

    if [*tasks] == [NO_TASK]:
        console.print(
            f"No row names a task: `dmoerm train` gives all rows the task {ONE_TASK!r}. Choose another name with "
            "--task, or let `dmoerm init` propose tasks.",
            soft_wrap=True,
        )
    elif NO_TASK in tasks:
        console.print(
            f"{tasks[NO_TASK]['groups']} groups have no task: the router assigns one in training.", soft_wrap=True
        )


def _print_repetitions(console: Console, duplicates: dict[str, int]) -> None:
    console.print(
        f"{duplicates['repeated_prompts']} prompts occur in more than one group "
        f"({duplicates['groups_on_them']} groups); "
        f"{duplicates['repeated_groups']} groups repeat an earlier one; "
        f"{duplicates['prompts_in_several_tasks']} prompts occur under several tasks.",
        soft_wrap=True,
    )
