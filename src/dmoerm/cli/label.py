"""`dmoerm label`: create capability labels with an LLM judge, import them, and measure their quality.

dmoerm label [run] DATA… --model M --out labels.parquet       ask a judge and write the labels
dmoerm label report labels.parquet --data DATA                measure the labels' quality
dmoerm label import verdicts.jsonl --data DATA --out …        import verdicts recorded by other tools
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from .labeling import (
    PairOptions,
    estimate,
    label_questions,
    print_error_line,
    print_labels,
    questions_of,
    with_only_task,
)
from .options import BaseUrl, JsonFile, RequestOptions, RunByDefault, grouped
from .rows import RowOptions

if TYPE_CHECKING:
    from rich.console import Console

    from ..labeling.questions import QuestionFormat
    from ..labeling.runner import RunLimits


app = typer.Typer(
    cls=RunByDefault,
    no_args_is_help=True,
    help="Create capability labels with an LLM judge (the default command), import them, or measure their quality.",
)


Files = Annotated[list[str], typer.Argument(metavar="DATA…", help="Preference data, as for `dmoerm train`.")]
Data = Annotated[list[str], typer.Option(metavar="DATA", help="The labeled data; may be repeated.")]
Out = Annotated[Path, typer.Option(metavar="FILE", help="The label file (Parquet).")]
Store = Annotated[
    Path | None,
    typer.Option(metavar="FILE", help="Record of all calls (SQLite); default: the label file's name with .sqlite."),
]


@dataclass(frozen=True)
class QuestionOptions:
    """What the judge is asked."""

    taxonomy: Annotated[
        str | None, typer.Option(help="paper-en, paper-zh or a YAML file with rubrics. Required without --overall.")
    ] = None
    overall: Annotated[bool, typer.Option("--overall", help="Ask which response is better overall.")] = False
    group_capabilities: Annotated[
        bool, typer.Option("--group-capabilities", help="Put all capabilities of a pair into one call: cheaper.")
    ] = False
    shots: Annotated[int, typer.Option(min=0, help="Number of labeled pairs shown before each question.")] = 0
    examples: Annotated[list[str] | None, typer.Option(metavar="DATA", help="Labeled data for --shots.")] = None

    def question_format(self, rows: RowOptions, data: list[str]) -> QuestionFormat:
        """Return the format of the questions about `data`; `rows` says how --examples are read."""
        from ..errors import ConfigError
        from ..labeling.questions import QuestionFormat
        from ..taxonomy import load_taxonomy

        if self.shots and not self.examples:
            raise ConfigError("--shots requires labeled data; set --examples")
        return QuestionFormat(
            load_taxonomy(self.taxonomy) if self.taxonomy else None,
            group_capabilities=self.group_capabilities,
            overall=self.overall,
            examples=rows.read(self.examples or (), others=data),
            shots=self.shots,
        )


@dataclass(frozen=True)
class BudgetOptions:
    """When the run stops."""

    max_cost: Annotated[float | None, typer.Option(min=0, help="Do not exceed this cost.")] = None
    prompt_price: Annotated[float, typer.Option(min=0, help="Price of a million prompt tokens.")] = 0.0
    completion_price: Annotated[float, typer.Option(min=0, help="Price of a million completion tokens.")] = 0.0
    max_unusable: Annotated[
        int, typer.Option(min=1, help="Stop after this many answers without a verdict in a row.")
    ] = 20
    concurrency: Annotated[int, typer.Option(min=1, help="Maximum number of calls in flight.")] = 16

    def limits(self) -> RunLimits:
        """Return the limits of the run. Raise `ConfigError` for a limit of the cost without prices."""
        from ..errors import ConfigError
        from ..labeling.runner import RunLimits

        if self.max_cost is not None and not (self.prompt_price or self.completion_price):
            raise ConfigError("--max-cost requires prices; set --prompt-price and --completion-price")
        return RunLimits(self.concurrency, self.max_cost, self.max_unusable)


@app.command("run")
@grouped
def run(
    data: Files,
    model: Annotated[str, typer.Option(help="Name of the judge's model at the endpoint.")],
    question_options: QuestionOptions,
    pair_options: PairOptions,
    budget: BudgetOptions,
    requests: RequestOptions,
    rows: RowOptions,
    out: Out = Path("labels.parquet"),
    base_url: BaseUrl = "https://api.openai.com/v1",
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Print the number and cost of calls; send none.")] = False,
    store: Store = None,
    json_file: JsonFile = None,
) -> None:
    """Ask a judge about each pair in both orders and write the labels. A second run sends only what is unanswered."""
    limits = budget.limits()
    endpoint = requests.endpoint(base_url, model, budget.prompt_price, budget.completion_price)
    question_format = question_options.question_format(rows, data)
    groups = with_only_task(rows.read(data, others=question_options.examples or ()), question_format.taxonomy)
    questions = questions_of(groups, data, question_format, pair_options, endpoint)
    store = store or out.with_suffix(".sqlite")
    result = estimate(questions, endpoint, store)
    if not dry_run:
        result |= label_questions(questions, endpoint, question_format.judge_name(model), store, out, limits)
    if json_file is not None:
        _write_json(json_file, result)


@app.command("report")
@grouped
def report(
    labels: Annotated[list[Path], typer.Argument(metavar="LABELS…", help="Label files of one judge or several.")],
    data: Data,
    row_options: RowOptions,
    plot: Annotated[Path | None, typer.Option(metavar="FILE", help="Write a plot (.svg, .png or .pdf).")] = None,
    consensus: Annotated[
        Path | None, typer.Option(metavar="FILE", help="Write merged labels of several judges (Dawid–Skene).")
    ] = None,
    json_file: JsonFile = None,
) -> None:
    """Print consistency, position and length bias, agreement and κ with people, tokens and cost, by capability."""
    from dataclasses import asdict

    from ..labeling.consensus import merge_judges
    from ..labeling.quality import label_quality
    from ..labels import mismatch, read_labels, unmatched_labels, write_labels
    from .tables import quality_table, screen

    groups = row_options.read(data)
    rows = [label for path in labels for label in read_labels(path)]
    if unmatched := unmatched_labels(groups, rows):
        cause = f": {mismatch(groups, rows)[0]}" if unmatched == len(rows) else ""
        print_error_line(f"{unmatched} of {len(rows)} labels do not match a group in the data{cause}")
    accuracies: dict[str, float] = {}
    if consensus is not None:
        merged, accuracies = merge_judges(rows)
        write_labels(consensus, merged)
        rows += merged
    qualities = label_quality(rows, groups)
    console = screen()
    for table in quality_table(qualities):
        console.print(table)
    _print_accuracies(console, accuracies)
    if plot is not None:
        from ..labeling.quality_plot import plot_quality

        plot_quality(plot, qualities)
    if json_file is not None:
        _write_json(json_file, {"qualities": [asdict(quality) for quality in qualities], "voters": accuracies})


def _print_accuracies(console: Console, accuracies: dict[str, float]) -> None:
    for judge, accuracy in accuracies.items():
        console.print(f"{judge}: estimated accuracy {accuracy:.1%} (Dawid–Skene)", soft_wrap=True)
    if 0 < len(accuracies) < 3:
        console.print("with fewer than three judges the estimates do not rank the judges", soft_wrap=True)


@app.command("import")
@grouped
def import_(
    verdicts: Annotated[Path, typer.Argument(metavar="VERDICTS", help="JSON Lines; docs/labels.md lists the fields.")],
    data: Data,
    row_options: RowOptions,
    out: Out = Path("labels.parquet"),
    judge: Annotated[str, typer.Option(help="Name of the judge for rows without one.")] = "recorded",
    mode: Annotated[str | None, typer.Option(help="Import only rows with this `mode`.")] = None,
) -> None:
    """Create a label file from verdicts that were recorded by other tools."""
    from ..data.rows import open_rows
    from ..errors import DataError
    from ..labeling.recorded import import_verdicts
    from ..labels import write_labels

    rows = (
        (line, row)
        for line, row in open_rows(verdicts)
        if mode is None or isinstance(row, DataError) or row.get("mode") == mode
    )
    imported = import_verdicts(rows, row_options.read(data), judge, str(verdicts))
    if imported.unmatched:
        print_error_line(f"skipped {imported.unmatched} verdicts: their group is not in the data")
    write_labels(out, imported.labels)
    print_labels(imported.labels, out)


def _write_json(path: Path, result: dict[str, Any]) -> None:
    from ..io.paths import write_file

    write_file(path, json.dumps(result, ensure_ascii=False, indent=2) + "\n")
