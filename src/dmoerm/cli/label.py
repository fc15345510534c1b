"""`dmoerm label`: create capability labels with an LLM judge, and measure their quality.

dmoerm label [run] DATA… --model M --out labels.parquet       ask a judge and write the labels
dmoerm label run DATA… --answers FILE --out labels.parquet    write labels from verdicts that other tools recorded
dmoerm label report labels.parquet --data DATA                measure the labels' quality
"""

from __future__ import annotations

import json
import random
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from ..data.rows import open_rows
from ..errors import ConfigError
from ..io.paths import write_file
from ..labeling.collect import collect_labels, recorded_labels
from ..labeling.questions import (
    Endpoint,
    Question,
    QuestionFormat,
    all_pairs,
    build_questions,
    estimate_cost,
    groups_without_questions,
    token_limit,
)
from ..labeling.runner import RunLimits, RunStatistics, ask
from ..labeling.store import AnswerStore
from ..labels import CapabilityLabel, mismatch, read_labels, unmatched_labels, write_labels
from ..schema import Group
from ..taxonomy import Taxonomy, load_taxonomy
from .options import JsonFile, RowOptions, RunByDefault, grouped, lazily, note
from .tables import quality_table, screen

if TYPE_CHECKING:
    from ..labeling import quality
else:
    (quality,) = lazily("labeling.quality")

_SHOWN_REASONS = 5

app = typer.Typer(
    cls=RunByDefault,
    no_args_is_help=True,
    help="Create capability labels with an LLM judge (the default command), or measure their quality.",
)

Out = Annotated[Path, typer.Option(metavar="FILE", help="The label file (Parquet); all calls: same name with .sqlite.")]


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
    limit: Annotated[int | None, typer.Option(min=1, help="Label at most this many pairs.")] = None
    seed: Annotated[int | None, typer.Option(help="Take the pairs in random order. Default: as given.")] = None


@dataclass(frozen=True)
class EndpointOptions:
    """The judge, and when a run stops."""

    model: Annotated[str | None, typer.Option(help="Name of the judge's model at the endpoint.")] = None
    base_url: Annotated[
        str,
        typer.Option(envvar="OPENAI_BASE_URL", help="An OpenAI-compatible endpoint; its key: $OPENAI_API_KEY."),
    ] = "https://api.openai.com/v1"
    request_field: Annotated[
        list[str] | None,
        typer.Option(metavar="NAME=JSON", help="Add a field to each request, or remove it with null; may be repeated."),
    ] = None
    price: Annotated[
        str, typer.Option(metavar="PROMPT,COMPLETION", help="Prices of a million tokens, as in 0.15,0.60.")
    ] = "0,0"
    max_cost: Annotated[float | None, typer.Option(min=0, help="Do not exceed this cost.")] = None
    concurrency: Annotated[int, typer.Option(min=1, help="Maximum number of calls in flight.")] = 16

    def endpoint(self) -> Endpoint:
        """Return the judge's endpoint. Raise `ConfigError` for invalid options."""
        if self.model is None:
            raise ConfigError("set the judge's --model, or --answers with recorded verdicts")
        fields: dict[str, Any] = {}
        for option in self.request_field or ():
            name, separator, value = option.partition("=")
            try:
                fields[name] = json.loads(value)
            except ValueError:
                separator = ""
            if not (name and separator):
                hint = f"write NAME=JSON, for example '{name or 'seed'}=1' or '{name or 'user'}=\"text\"'"
                raise ConfigError(f"--request-field: {option!r} is invalid; {hint}") from None
        try:
            prompt, completion = (float(price) for price in self.price.split(","))
        except ValueError:
            raise ConfigError(f"--price: {self.price!r} is invalid; write two numbers, as in 0.15,0.60") from None
        if self.max_cost is not None and not (prompt or completion):
            raise ConfigError("--max-cost requires prices; set --price")
        return Endpoint(self.base_url, self.model, prompt, completion, fields)


@app.command("run")
@grouped
def run(
    data: Annotated[list[str], typer.Argument(metavar="DATA…", help="Preference data, as for `dmoerm train`.")],
    question_options: QuestionOptions,
    judge: EndpointOptions,
    rows: RowOptions,
    out: Out = Path("labels.parquet"),
    answers: Annotated[
        Path | None,
        typer.Option(metavar="FILE", help="Ask nothing: read recorded verdicts (JSON Lines; docs/labels.md)."),
    ] = None,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Print the number and cost of calls; send none.")] = False,
) -> None:
    """Ask a judge about each pair in both orders and write the labels. A second run sends only what is unanswered."""
    if answers is not None:
        labels, unmatched = recorded_labels(
            open_rows(answers), rows.read(data), judge.model or "recorded", str(answers)
        )
        if unmatched:
            note(f"skipped {unmatched} verdicts: their group is not in the data")
        _write(labels, out)
        return
    endpoint, options = judge.endpoint(), question_options
    taxonomy = load_taxonomy(options.taxonomy) if options.taxonomy else None
    groups = _with_only_task(rows.read(data), taxonomy)
    question_format = QuestionFormat(taxonomy, options.group_capabilities, options.overall)
    questions = _questions(groups, data, question_format, options, endpoint)
    _print_estimate(questions, endpoint, out.with_suffix(".sqlite"))
    if not dry_run:
        limits = RunLimits(judge.concurrency, judge.max_cost)
        _label(questions, endpoint, question_format.judge_name(endpoint.model), out, limits)


def _with_only_task(groups: list[Group], taxonomy: Taxonomy | None) -> list[Group]:
    """Return the groups with the taxonomy's only task, and print it, if no group names a task."""
    if taxonomy is None or len(taxonomy.tasks) != 1 or any(group.task for group in groups):
        return groups
    (task,) = taxonomy.tasks
    note(f"no row names a task: all have the taxonomy's only task, {task!r}")
    return [group.model_copy(update={"task": task}) for group in groups]


def _questions(
    groups: list[Group],
    files: Sequence[str],
    question_format: QuestionFormat,
    options: QuestionOptions,
    endpoint: Endpoint,
) -> list[Question]:
    """Return the questions on the groups of the files, and print which groups have none."""
    pairs = [pair for pair in all_pairs(groups) if question_format.capability_sets(pair.group.task)]
    if options.seed is not None:
        random.Random(options.seed).shuffle(pairs)
    questions = list(build_questions(pairs[: options.limit], question_format, endpoint))
    reasons = [f"the data contain no groups ({', '.join(files)})"] if not groups else []
    for reason in [*reasons, *groups_without_questions(groups, question_format)]:
        if not questions:
            raise ConfigError(f"no questions to ask: {reason}")
        note(reason)
    return questions


def _print_estimate(questions: Sequence[Question], endpoint: Endpoint, path: Path) -> None:
    """Print how many calls remain, and their estimated tokens and cost."""
    known: set[str] = set()
    if path.exists():
        store = AnswerStore(path)
        known = {question.key for question in questions if store.get(question.key) is not None}
        store.close()
    remaining = [question for question in questions if question.key not in known]
    costs = [estimate_cost(question, endpoint) for question in remaining]
    prompt, completion, cost = (sum(column) for column in zip(*costs, strict=True)) if costs else (0, 0, 0)
    bounded = all(token_limit(question.request) is not None for question in remaining)
    tokens = f"at most {completion:,.0f} completion tokens" if bounded else "completion tokens without a limit"
    price = f", at most {cost:.2f}" if cost and bounded else ""
    note(
        f"{len(questions)} calls, {len(questions) - len(remaining)} of them already answered; {len(remaining)} remain: "
        f"about {prompt:,.0f} prompt tokens and {tokens}{price}"
    )


def _label(questions: Sequence[Question], endpoint: Endpoint, judge: str, out: Path, limits: RunLimits) -> None:
    """Ask the judge and write the labels, also if the run stops early."""
    store = AnswerStore(out.with_suffix(".sqlite"))
    progress = Progress(
        TextColumn("labeling"),
        BarColumn(),
        MofNCompleteColumn(),
        TextColumn("spent {task.fields[cost]:.4f}  {task.fields[tokens]:,} tokens"),
        TimeRemainingColumn(),
        TextColumn("{task.fields[faults]}"),
        console=Console(stderr=True),
    )
    bar = progress.add_task("", total=len(questions), cost=0.0, tokens=0, faults="")

    def show(done: RunStatistics) -> None:
        faults = {name: getattr(done, name) for name in ("unusable", "refused", "failed", "unanswered")}
        progress.update(
            bar,
            completed=done.answered + done.refused + done.failed + done.known + done.elsewhere + done.unanswered,
            cost=done.cost,
            tokens=done.prompt_tokens + done.completion_tokens,
            faults="  ".join(f"{name} {count}" for name, count in faults.items() if count),
        )

    try:
        with progress:
            statistics = ask(questions, endpoint, store, limits, show)
    finally:
        labels = collect_labels(questions, store, judge)
        store.close()
        _write(labels, out)
    if statistics.unusable:
        sent = statistics.answered + statistics.refused + statistics.failed
        note(f"{statistics.unusable} of {sent} answers are unusable")
    if statistics.left:
        note(f"{statistics.left} calls were not sent: the budget (--max-cost) is exhausted")
    for reason, count in sorted(statistics.reasons.items(), key=lambda item: -item[1])[:_SHOWN_REASONS]:
        note(f"{count} × {reason}")


@app.command("report")
@grouped
def report(
    labels: Annotated[list[Path], typer.Argument(metavar="LABELS…", help="Label files of one judge or several.")],
    data: Annotated[list[str], typer.Option(metavar="DATA", help="The labeled data; may be repeated.")],
    row_options: RowOptions,
    consensus: Annotated[
        Path | None, typer.Option(metavar="FILE", help="Write merged labels of several judges (Dawid–Skene).")
    ] = None,
    json_file: JsonFile = None,
) -> None:
    """Print consistency, position and length bias, agreement and κ with people, tokens and cost, by capability."""
    groups = row_options.read(data)
    rows = [label for path in labels for label in read_labels(path)]
    if unmatched := unmatched_labels(groups, rows):
        cause = f": {mismatch(groups, rows)[0]}" if unmatched == len(rows) else ""
        note(f"{unmatched} of {len(rows)} labels do not match a group in the data{cause}")
    accuracies: dict[str, float] = {}
    if consensus is not None:
        merged, accuracies = quality.merge_judges(rows)
        write_labels(consensus, merged)
        rows += merged
    qualities = quality.label_quality(rows, groups)
    console = screen()
    for table in quality_table(qualities):
        console.print(table)
    for judge, accuracy in accuracies.items():
        console.print(f"{judge}: estimated accuracy {accuracy:.1%} (Dawid–Skene)", soft_wrap=True)
    if 0 < len(accuracies) < 3:
        console.print("with fewer than three judges the estimates do not rank the judges", soft_wrap=True)
    if json_file is not None:
        result = {"qualities": [asdict(quality) for quality in qualities], "voters": accuracies}
        write_file(json_file, json.dumps(result, ensure_ascii=False, indent=2) + "\n")


def _write(labels: Sequence[CapabilityLabel], out: Path) -> None:
    """Write the labels, and print how many are usable."""
    write_labels(out, labels)
    usable = sum(label.training_target() is not None for label in labels)
    typer.echo(f"{len(labels)} labels, {usable} of them usable: {out}")
