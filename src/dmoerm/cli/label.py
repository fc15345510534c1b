"""`dmoerm label`: create capability labels with an LLM judge, and measure their quality.

dmoerm label [run] DATA… --model M --out labels.parquet       ask a judge and write the labels
dmoerm label report labels.parquet --data DATA                measure the labels' quality
"""

from __future__ import annotations

import json
import random
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn
from rich.table import Table
from rich.text import Text

from ..errors import ConfigError
from ..io.paths import write_file
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
from ..labeling.runner import RunStatistics, ask, collect_labels
from ..labeling.store import AnswerStore
from ..labels import read_labels, unmatched_labels, write_labels
from ..taxonomy import load_taxonomy
from .options import JsonFile, RowOptions, RunByDefault, grouped, lazily, note
from .tables import screen, table

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

    model: Annotated[str, typer.Option(help="Name of the judge's model at the endpoint.")]
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
    out: Annotated[
        Path, typer.Option(metavar="FILE", help="The label file (Parquet); all calls: same name with .sqlite.")
    ] = Path("labels.parquet"),
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Print the number and cost of calls; send none.")] = False,
) -> None:
    """Ask a judge about each pair in both orders and write the labels. A second run sends only what is unanswered."""
    endpoint, options = judge.endpoint(), question_options
    taxonomy = load_taxonomy(options.taxonomy) if options.taxonomy else None
    question_format = QuestionFormat(taxonomy, options.group_capabilities, options.overall)
    groups = rows.read(data)
    if taxonomy is not None and len(taxonomy.tasks) == 1 and not any(group.task for group in groups):
        (task,) = taxonomy.tasks
        note(f"no row names a task: all have the taxonomy's only task, {task!r}")
        groups = [group.model_copy(update={"task": task}) for group in groups]
    pairs = [pair for pair in all_pairs(groups) if question_format.capability_sets(pair.group.task)]
    if options.seed is not None:
        random.Random(options.seed).shuffle(pairs)
    questions = list(build_questions(pairs[: options.limit], question_format, endpoint))
    reasons = [f"the data contain no groups ({', '.join(data)})"] if not groups else []
    for reason in [*reasons, *groups_without_questions(groups, question_format)]:
        if not questions:
            raise ConfigError(f"no questions to ask: {reason}")
        note(reason)
    note(_estimate(questions, endpoint, out.with_suffix(".sqlite")))
    if not dry_run:
        _label(questions, endpoint, question_format.judge_name(endpoint.model), out, judge)


def _estimate(questions: Sequence[Question], endpoint: Endpoint, path: Path) -> str:
    """Return how many calls remain, and their estimated tokens and cost."""
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
    return (
        f"{len(questions)} calls, {len(questions) - len(remaining)} of them already answered; {len(remaining)} remain: "
        f"about {prompt:,.0f} prompt tokens and {tokens}{price}"
    )


def _label(questions: Sequence[Question], endpoint: Endpoint, judge: str, out: Path, options: EndpointOptions) -> None:
    """Ask the judge and write the labels, also if the run stops early."""
    store = AnswerStore(out.with_suffix(".sqlite"))
    progress = Progress(
        TextColumn("labeling"),
        BarColumn(),
        MofNCompleteColumn(),
        TextColumn("{task.description}"),
        TimeRemainingColumn(),
        console=Console(stderr=True),
    )
    bar = progress.add_task("", total=len(questions))

    def show(done: RunStatistics) -> None:
        faults = {name: getattr(done, name) for name in ("unusable", "refused", "failed", "unanswered")}
        spent = [f"spent {done.cost:.4f}", f"{done.prompt_tokens + done.completion_tokens:,} tokens"]
        ended = done.answered + done.refused + done.failed + done.known + done.elsewhere + done.unanswered
        spent += [f"{name} {count}" for name, count in faults.items() if count]
        progress.update(bar, completed=ended, description="  ".join(spent))

    try:
        with progress:
            limits = {"concurrency": options.concurrency, "max_cost": options.max_cost}
            statistics = ask(questions, endpoint, store, **limits, on_progress=show)
    finally:
        labels = collect_labels(questions, store, judge)
        store.close()
        write_labels(out, labels)
        usable = sum(label.training_target() is not None for label in labels)
        typer.echo(f"{len(labels)} labels, {usable} of them usable: {out}")
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
        note(f"{unmatched} of {len(rows)} labels do not match a group in the data by id and texts")
    accuracies: dict[str, float] = {}
    if consensus is not None:
        merged, accuracies = quality.merge_judges(rows)
        write_labels(consensus, merged)
        rows += merged
    qualities = quality.label_quality(rows, groups)
    console = screen()
    for judge in dict.fromkeys(entry.judge for entry in qualities):
        for shown in _tables(judge, [entry for entry in qualities if entry.judge == judge]):
            console.print(shown)
    for judge, accuracy in accuracies.items():
        console.print(f"{judge}: estimated accuracy {accuracy:.1%} (Dawid–Skene)", soft_wrap=True)
    if 0 < len(accuracies) < 3:
        console.print("with fewer than three judges the estimates do not rank the judges", soft_wrap=True)
    if json_file is not None:
        result = {"qualities": [asdict(quality) for quality in qualities], "voters": accuracies}
        write_file(json_file, json.dumps(result, ensure_ascii=False, indent=2) + "\n")


def _tables(judge: str, rows: Sequence[quality.LabelQuality]) -> Iterator[Table]:
    """Yield a table of a judge's labels, and one of their agreement with people."""
    names, shares = ["task", "capability"], ["consistency", "shown_first", "longer", "unparseable"]
    shares += ["refused", "failed", "open"]
    labels: list[list[Any]] = []
    agreement: list[list[Any]] = []
    for row in rows:
        subject, tokens = [row.task, row.capability], round(row.prompt_tokens + row.completion_tokens)
        labels.append(
            [*subject, row.pairs, *(getattr(row, share) for share in shares), tokens, Text(f"{row.cost:.4f}")]
        )
        kappas = [value if value is None else Text(f"{value:+.2f}") for value in (row.kappa_one, row.kappa_both)]
        interval = row.kappa_interval and Text("{:+.2f} to {:+.2f}".format(*row.kappa_interval))
        shares_right = (row.agreement_one, row.agreement_both, row.agreement_mean, row.longer_people)
        agreement.append([*subject, row.people, *shares_right, *kappas, interval])
    header = [*names, "pairs", *(share.replace("_", " ") for share in shares), "tokens", "cost"]
    yield table(f"{judge}: labels", header, labels)
    if any(row.people for row in rows):
        title = f"{judge}: on which share of the pairs that people order one order, both orders or their mean agrees"
        header = [*names, "ordered", "single order", "both agree", "mean", "people longer"]
        yield table(title, [*header, "κ single order", "κ both agree", "95 %"], agreement)
