"""The steps of `dmoerm label run`: select pairs, estimate the cost, ask the judge, print the result."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

if TYPE_CHECKING:
    from ..labeling.client import Endpoint
    from ..labeling.questions import Question, QuestionFormat, ResponsePair
    from ..labeling.runner import RunLimits, RunStatistics
    from ..labels import CapabilityLabel
    from ..model import DMoERM
    from ..schema import Group
    from ..scores import Score
    from ..taxonomy import Taxonomy

_SHOWN_REASONS = 5


class PairOrder(StrEnum):
    """The order in which pairs are labeled."""

    GIVEN = "given"
    RANDOM = "random"
    UNCERTAIN = "uncertain"


@dataclass(frozen=True)
class PairOptions:
    """Which pairs are labeled, in which order."""

    limit: Annotated[int | None, typer.Option(min=1, help="Label at most this many pairs.")] = None
    sample: Annotated[
        PairOrder,
        typer.Option(help="Order of pairs: as given, random, or the least certain of --reward-model first."),
    ] = PairOrder.GIVEN
    reward_model: Annotated[
        str | None, typer.Option(metavar="MODEL", help="A trained model, for --sample uncertain.")
    ] = None
    seed: Annotated[int, typer.Option(help="Seed of --sample random.")] = 0


def with_only_task(groups: list[Group], taxonomy: Taxonomy | None) -> list[Group]:
    """Return the groups with the taxonomy's only task, and print it, if no group names a task."""
    if taxonomy is None or len(taxonomy.tasks) != 1 or any(group.task for group in groups):
        return groups
    (task,) = taxonomy.tasks
    print_error_line(f"no row names a task: all have the taxonomy's only task, {task!r}")
    return [group.model_copy(update={"task": task}) for group in groups]


def questions_of(
    groups: list[Group],
    files: Sequence[str],
    question_format: QuestionFormat,
    options: PairOptions,
    endpoint: Endpoint,
) -> list[Question]:
    """Return the questions on the groups of the files, and print which groups or examples are missing.

    Raises:
        ConfigError: there are no questions.
    """
    from ..errors import ConfigError
    from ..labeling.questions import build_questions

    questions = list(build_questions(_select_pairs(groups, question_format, options), question_format, endpoint))
    for reason in _groups_without_questions(groups, question_format, files):
        if not questions:
            raise ConfigError(f"no questions to ask: {reason}")
        print_error_line(reason)
    shots = question_format.shots
    if count := sum(len(question.request["messages"]) < 2 + 2 * shots for question in questions):
        print_error_line(f"{count} of {len(questions)} questions have fewer than {shots} examples of their task")
    return questions


def _select_pairs(groups: list[Group], question_format: QuestionFormat, options: PairOptions) -> list[ResponsePair]:
    """Return the pairs to label, in order."""
    from ..errors import ConfigError
    from ..labeling.questions import all_pairs, shuffled

    pairs = [pair for pair in all_pairs(groups) if question_format.capability_sets(pair.group.task)]
    if options.sample is PairOrder.RANDOM:
        pairs = shuffled(pairs, options.seed)
    elif options.sample is PairOrder.UNCERTAIN:
        if options.reward_model is None:
            raise ConfigError("--sample uncertain requires a trained model; set --reward-model")
        from .models import load_model

        pairs = least_certain_first(pairs, load_model(options.reward_model))
    return pairs[: options.limit]


def _groups_without_questions(
    groups: Sequence[Group], question_format: QuestionFormat, files: Sequence[str]
) -> Iterator[str]:
    """Yield why groups have no questions, with their number, most frequent reason first."""
    if not groups:
        yield f"the data contain no groups ({', '.join(files)})"
    taxonomy = question_format.taxonomy
    tasks = taxonomy.tasks if taxonomy else {}
    reasons: Counter[str] = Counter()
    for group in groups:
        if question_format.capability_sets(group.task):
            continue
        if group.task is None:
            reasons["have no task; add the field task, name one with --task, or ask with --overall"] += 1
        elif group.task not in tasks:
            known = ", ".join(tasks)
            reasons[f"have the task {group.task!r}, which is not in the taxonomy (its tasks: {known})"] += 1
        else:
            hint = 'write some, as in capabilities: {clarity: {title: Clarity, rubric: "The answer is easy to read."}}'
            reasons[f"have the task {group.task!r}, for which the taxonomy lists no capabilities; {hint}"] += 1
    if identical := sum(len(set(group.responses)) < 2 for group in groups):
        reasons["have only identical responses"] = identical
    for reason, count in reasons.most_common():
        yield f"{count} of {len(groups)} groups {reason}"


def estimate(questions: Sequence[Question], endpoint: Endpoint, path: Path) -> dict[str, Any]:
    """Print and return how many calls remain, and their estimated tokens and cost."""
    from ..labeling.client import token_limit
    from ..labeling.questions import estimate_cost
    from ..labeling.store import AnswerStore

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
    print_error_line(
        f"{len(questions)} calls, {len(questions) - len(remaining)} of them already answered; {len(remaining)} remain: "
        f"about {prompt:,.0f} prompt tokens and {tokens}{price}"
    )
    counts = {"calls": len(questions), "open": len(remaining)}
    return counts | {"expected_prompt_tokens": prompt, "expected_cost": cost}


def label_questions(
    questions: Sequence[Question], endpoint: Endpoint, judge: str, store_path: Path, out: Path, limits: RunLimits
) -> dict[str, Any]:
    """Ask the judge and write the labels, also if the run stops early."""
    from dataclasses import asdict

    from ..labeling.collect import collect_labels
    from ..labeling.runner import ask
    from ..labeling.store import AnswerStore
    from ..labels import write_labels

    store = AnswerStore(store_path)
    try:
        with LabelingProgress(len(questions)) as progress:
            statistics = ask(questions, endpoint, store, limits, progress.update)
    finally:
        labels = collect_labels(questions, store, judge)
        store.close()
        write_labels(out, labels)
        print_labels(labels, out)
    _print_statistics(statistics)
    return {"tally": asdict(statistics), "labels": len(labels), "out": str(out), "store": str(store_path)}


def _print_statistics(statistics: RunStatistics) -> None:
    """Print what a run left open, and the most frequent reasons of failures."""
    if statistics.unusable:
        sent = statistics.answered + statistics.refused + statistics.failed
        print_error_line(f"{statistics.unusable} of {sent} answers are unusable")
    if statistics.left:
        print_error_line(f"{statistics.left} calls were not sent: the budget (--max-cost) is exhausted")
    for reason, count in sorted(statistics.reasons.items(), key=lambda item: -item[1])[:_SHOWN_REASONS]:
        print_error_line(f"{count} × {reason}")


def print_error_line(line: str) -> None:
    """Print a line on standard error."""
    Console(stderr=True).print(line, soft_wrap=True, highlight=False, markup=False)


def print_labels(labels: Sequence[CapabilityLabel], out: Path) -> None:
    """Print the number of labels and of usable ones."""
    usable = sum(label.training_target() is not None for label in labels)
    typer.echo(f"{len(labels)} labels, {usable} of them usable: {out}")


class LabelingProgress:
    """A progress line on standard error. Use it as a context manager."""

    def __init__(self, total: int) -> None:
        self._progress = Progress(
            TextColumn("labeling"),
            BarColumn(),
            MofNCompleteColumn(),
            TextColumn("{task.fields[rate]:.1f}/s  spent {task.fields[cost]:.4f}  {task.fields[tokens]:,} tokens"),
            TimeRemainingColumn(),
            TextColumn("{task.fields[faults]}"),
            console=Console(stderr=True),
        )
        self._task = self._progress.add_task("", total=total, rate=0.0, cost=0.0, tokens=0, faults="")

    def __enter__(self) -> LabelingProgress:
        self._progress.start()
        return self

    def __exit__(self, *_: Any) -> None:
        self._progress.stop()

    def update(self, statistics: RunStatistics) -> None:
        """Show the statistics of the run."""
        faults = {
            "unusable": statistics.unusable,
            "refused": statistics.refused,
            "failed": statistics.failed,
            "unanswered": statistics.unanswered,
        }
        self._progress.update(
            self._task,
            completed=sum(
                getattr(statistics, name)
                for name in ("answered", "refused", "failed", "known", "elsewhere", "unanswered")
            ),
            rate=self._progress.tasks[self._task].speed or 0.0,
            cost=statistics.cost,
            tokens=statistics.prompt_tokens + statistics.completion_tokens,
            faults="  ".join(f"{name} {count}" for name, count in faults.items() if count),
        )


def least_certain_first(pairs: Sequence[ResponsePair], model: DMoERM) -> list[ResponsePair]:
    """Sort pairs by how unsure the model is about their capabilities: the mean of p (1 − p), highest first.

    p = σ(m / √(1 + π/8 · v)) is the probability that the first response wins on a capability, for the difference m of
    the scores; v is the variance of the difference of the rewards, which integrates the posterior (MacKay). Scores and
    rewards are in standard deviations. Without a posterior, v is 0.
    """
    groups = {id(pair.group): pair.group for pair in pairs}
    scores = dict(zip(groups, model.score_queries(list(groups.values())), strict=True))
    return sorted(
        pairs, key=lambda pair: -_uncertainty(*(scores[id(pair.group)][i] for i in (pair.first, pair.second)))
    )


def _uncertainty(first: Score, second: Score) -> float:
    names = first.capabilities.keys() & second.capabilities.keys()  # an empty response has no capability scores
    margins = [first.capabilities[name] - second.capabilities[name] for name in sorted(names)]
    width = math.sqrt(1 + math.pi / 8 * sum((score.uncertainty or 0.0) ** 2 for score in (first, second)))
    scaled = [margin / width for margin in margins or [first.reward - second.reward]]
    chances = [1 / (1 + math.exp(-max(-50.0, min(50.0, margin)))) for margin in scaled]
    return sum(p * (1 - p) for p in chances) / len(chances)
