"""`dmoerm label`: capability labels from an LLM judge, or recorded elsewhere, and how good they are.

dmoerm label [run] DATA… --model M --out labels.parquet       ask, and write the labels
dmoerm label report labels.parquet --data DATA                how good they are
dmoerm label import verdicts.jsonl --data DATA --out …        verdicts recorded elsewhere
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.console import Console
from typer.core import TyperGroup

from .options import JsonFile

if TYPE_CHECKING:
    from ..labeling.client import Endpoint
    from ..labeling.questions import Form, PairOf, Question
    from ..labels import Label
    from ..schema import Group


class _RunUnlessNamed(TyperGroup):
    """`dmoerm label DATA` is `dmoerm label run DATA`."""

    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
        if args and args[0] not in self.commands and args[0] not in ctx.help_option_names:
            args = ["run", *args]
        return super().parse_args(ctx, args)


app = typer.Typer(
    cls=_RunUnlessNamed,
    no_args_is_help=True,
    help="Capability labels from an LLM judge: ask for them (the default command), import them, look at their quality.",
)


class Sample(StrEnum):
    """Which pairs are asked first."""

    GIVEN = "given"
    RANDOM = "random"
    UNCERTAIN = "uncertain"


Files = Annotated[list[str], typer.Argument(metavar="DATA…", help="Preference data, as for `dmoerm train`.")]
Data = Annotated[list[str], typer.Option(metavar="DATA", help="The data that were labeled; may be repeated.")]
Format = Annotated[str, typer.Option(help="The rows' format; auto tells it from the first row.")]
Out = Annotated[Path, typer.Option(metavar="FILE", help="The label file (Parquet).")]


@app.command("run")
def run(
    data: Files,
    model: Annotated[str, typer.Option(help="The judge's name at the endpoint.")],
    out: Out = Path("labels.parquet"),
    base_url: Annotated[
        str, typer.Option(envvar="OPENAI_BASE_URL", help="An OpenAI-compatible endpoint. The key: $OPENAI_API_KEY.")
    ] = "https://api.openai.com/v1",
    taxonomy: Annotated[
        str | None, typer.Option(help="paper-en, paper-zh or a YAML file, with rubrics. Needed unless --overall.")
    ] = None,
    overall: Annotated[bool, typer.Option("--overall", help="Ask which response is better as a whole.")] = False,
    group_capabilities: Annotated[
        bool, typer.Option("--group-capabilities", help="Ask all capabilities of a pair in one call: cheaper.")
    ] = False,
    shots: Annotated[int, typer.Option(min=0, help="Show so many labeled pairs before each question.")] = 0,
    examples: Annotated[list[str] | None, typer.Option(metavar="DATA", help="Labeled data for --shots.")] = None,
    limit: Annotated[int | None, typer.Option(min=1, help="Ask about so many pairs at most.")] = None,
    sample: Annotated[
        Sample, typer.Option(help="Pairs as given, in random order, or first those --reward-model is least sure of.")
    ] = Sample.GIVEN,
    reward_model: Annotated[str | None, typer.Option(metavar="MODEL", help="A trained model, for --sample.")] = None,
    seed: Annotated[int, typer.Option(help="Of --sample random.")] = 0,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Say what it would take, and ask nothing.")] = False,
    max_cost: Annotated[float | None, typer.Option(min=0, help="Send no call that may cost more in all.")] = None,
    prompt_price: Annotated[float, typer.Option(min=0, help="Of a million prompt tokens.")] = 0.0,
    completion_price: Annotated[float, typer.Option(min=0, help="Of a million completion tokens.")] = 0.0,
    concurrency: Annotated[int, typer.Option(min=1, help="Calls in flight.")] = 16,
    schema: Annotated[bool, typer.Option(help="Hold the answer to a JSON schema.")] = True,
    logprobs: Annotated[bool, typer.Option(help="Ask for token probabilities: soft labels.")] = True,
    timeout: Annotated[float, typer.Option(min=0.1, help="Seconds a try may take.")] = 120.0,
    retries: Annotated[int, typer.Option(min=0, help="Tries after the first, with growing pauses.")] = 8,
    store: Annotated[
        Path | None, typer.Option(metavar="FILE", help="Record of all calls (SQLite); else as the label file, .sqlite.")
    ] = None,
    format: Format = "auto",
    json_file: JsonFile = None,
) -> None:
    """Ask a judge, in both orders, and write the labels. Started again, it asks only what has no answer yet."""
    from ..errors import ConfigError
    from ..labeling.client import Endpoint
    from ..labeling.questions import Form, questions
    from ..taxonomy import load_taxonomy

    if max_cost is not None and not (prompt_price or completion_price):
        raise ConfigError("--max-cost: what a call costs is not known; give --prompt-price and --completion-price")
    if shots and not examples:
        raise ConfigError("--shots: give labeled data to draw them from with --examples")
    endpoint = Endpoint(
        base_url,
        model,
        prompt_price=prompt_price,
        completion_price=completion_price,
        schema=schema,
        logprobs=logprobs,
        timeout=timeout,
        retries=retries,
    )
    form = Form(
        load_taxonomy(taxonomy) if taxonomy else None,
        together=group_capabilities,
        overall=overall,
        examples=_read(examples or (), format),
        shots=shots,
    )
    pairs = _pairs(_read(data, format), form, sample, reward_model, seed, limit)
    asked = list(questions(pairs, form, endpoint))
    if not asked:
        raise ConfigError("there is nothing to ask: no group's task has capabilities in the taxonomy")
    place = store or out.with_suffix(".sqlite")
    result = _estimate(asked, endpoint, place)
    if not dry_run:
        result |= _ask(asked, endpoint, form, place, out, max_cost, concurrency)
    if json_file is not None:
        _write_json(json_file, result)


@app.command("report")
def report(
    labels: Annotated[list[Path], typer.Argument(metavar="LABELS…", help="Label files, of one judge or several.")],
    data: Data,
    plot: Annotated[Path | None, typer.Option(metavar="FILE", help="Draw it too (.svg, .png or .pdf).")] = None,
    consensus: Annotated[
        Path | None, typer.Option(metavar="FILE", help="Write what several judges come to (Dawid–Skene) as labels.")
    ] = None,
    format: Format = "auto",
    json_file: JsonFile = None,
) -> None:
    """Consistency, position and length bias, agreement and κ with people, tokens and cost, by capability."""
    from dataclasses import asdict

    from ..labeling import consensus as several
    from ..labeling.quality import qualities
    from ..labels import read_labels, write_labels
    from .tables import quality_table, screen

    found = [label for path in labels for label in read_labels(path)]
    voters: dict[str, float] = {}
    if consensus is not None:
        merged, voters = several.consensus(found)
        write_labels(consensus, merged)
        found += merged
    rows = qualities(found, _read(data, format))
    console = screen()
    for table in quality_table(rows):
        console.print(table)
    for voter, accuracy in voters.items():
        console.print(f"{voter}: right on {accuracy:.1%}, by the judges' own agreement (Dawid–Skene)", soft_wrap=True)
    if 0 < len(voters) < 3:
        console.print("fewer than three judges: their agreement does not tell which is the better one", soft_wrap=True)
    if plot is not None:
        from ..labeling.plots import quality_plot

        quality_plot(plot, rows)
    if json_file is not None:
        _write_json(json_file, {"qualities": [asdict(row) for row in rows], "voters": voters})


@app.command("import")
def import_(
    verdicts: Annotated[Path, typer.Argument(metavar="VERDICTS", help="JSON Lines; docs/labels.md has the fields.")],
    data: Data,
    out: Out = Path("labels.parquet"),
    judge: Annotated[str, typer.Option(help="The judge's name, where the rows do not tell.")] = "recorded",
    mode: Annotated[str | None, typer.Option(help="Take only the rows of this `mode`.")] = None,
    format: Format = "auto",
) -> None:
    """Make a label file of verdicts that were recorded elsewhere."""
    from ..data.rows import open_rows
    from ..errors import DataError
    from ..labeling.recorded import recorded
    from ..labels import write_labels

    rows = (
        (line, row)
        for line, row in open_rows(verdicts)
        if mode is None or isinstance(row, DataError) or row.get("mode") == mode
    )
    labels = recorded(rows, _read(data, format), judge, str(verdicts))
    write_labels(out, labels)
    _say_labels(labels, out)


def _read(files: Sequence[str], format: str) -> list[Group]:
    from ..data.readers import read_groups

    return [group for file in files for group in read_groups(file, format=format).groups]


def _pairs(
    groups: list[Group], form: Form, sample: Sample, reward_model: str | None, seed: int, limit: int | None
) -> list[PairOf]:
    """The pairs to ask about, in the order in which they are asked."""
    from ..errors import ConfigError
    from ..labeling.questions import all_pairs, shuffled

    pairs = [pair for pair in all_pairs(groups) if form.asked(pair.group.task)]
    if sample is Sample.RANDOM:
        pairs = shuffled(pairs, seed)
    elif sample is Sample.UNCERTAIN:
        if reward_model is None:
            raise ConfigError("--sample uncertain: give the model that is unsure with --reward-model")
        from .models import load_model
        from .uncertainty import least_sure_first

        pairs = least_sure_first(pairs, load_model(reward_model))
    return pairs[:limit]


def _estimate(asked: Sequence[Question], endpoint: Endpoint, place: Path) -> dict[str, Any]:
    """What is open, and what it would take."""
    from ..labeling.questions import expected_cost
    from ..labeling.store import Store

    known: set[str] = set()
    if place.exists():
        store = Store(place)
        known = {question.key for question in asked if store.get(question.key) is not None}
        store.close()
    still = [expected_cost(question, endpoint) for question in asked if question.key not in known]
    prompt, completion, cost = (sum(column) for column in zip(*still, strict=True)) if still else (0, 0, 0)
    found = {"calls": len(asked), "open": len(still), "expected_prompt_tokens": prompt, "expected_cost": cost}
    price = f", {cost:.2f} at most" if cost else ""
    Console(stderr=True).print(
        f"{len(asked)} calls, {len(asked) - len(still)} of them answered already; {len(still)} to ask: "
        f"about {prompt:,.0f} prompt tokens and at most {completion:,.0f} completion tokens{price}",
        soft_wrap=True,
        highlight=False,
    )
    return found


def _ask(
    asked: Sequence[Question],
    endpoint: Endpoint,
    form: Form,
    place: Path,
    out: Path,
    max_cost: float | None,
    concurrency: int,
) -> dict[str, Any]:
    from dataclasses import asdict

    from ..labeling.collect import collect
    from ..labeling.run import ask
    from ..labeling.store import Store
    from ..labels import write_labels
    from .progress import Asking

    store = Store(place)
    try:
        with Asking(len(asked)) as progress:
            tally = ask(asked, endpoint, store, concurrency, max_cost, progress.update)
    finally:  # what was answered before a final error is worth its labels, too
        labels = collect(asked, store, form.judge(endpoint.model))
        store.close()
        write_labels(out, labels)
    _say_labels(labels, out)
    for reason, count in sorted(tally.reasons.items(), key=lambda item: -item[1])[:5]:
        Console(stderr=True).print(f"{count} × {reason}", soft_wrap=True, highlight=False, markup=False)
    return {"tally": asdict(tally), "labels": len(labels), "out": str(out), "store": str(place)}


def _say_labels(labels: Sequence[Label], out: Path) -> None:
    usable = sum(label.judgement() is not None for label in labels)
    typer.echo(f"{len(labels)} labels, {usable} of them usable: {out}")


def _write_json(path: Path, result: dict[str, Any]) -> None:
    from ..io.paths import write_file

    write_file(path, json.dumps(result, ensure_ascii=False, indent=2) + "\n")
