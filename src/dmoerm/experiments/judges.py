"""LLM judges as methods of a comparison: live ones, zero-shot and few-shot, and recorded labels."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from ..errors import DataError
from ..labeling.judge import rewards_from_labels
from ..labels import OVERALL, CapabilityLabel, read_labels
from ..schema import Query
from .methods import Method, MethodContext, TrainedMethod
from .methods.registry import EXTERNAL_COLOR

if TYPE_CHECKING:
    from ..labeling.client import Endpoint


@dataclass(frozen=True)
class RecordedJudge:
    """A judge's recorded labels of `overall`; a pair without a label counts 0.5."""

    labels: Sequence[CapabilityLabel]

    def score_all(self, queries: Sequence[Query]) -> list[list[float]]:
        """See `QueryScorer`: the share of comparisons in which a response is preferred."""
        return rewards_from_labels(self.labels, queries)


def recorded(paths: Sequence[Path]) -> list[Method]:
    """Make a method `judge_NAME` of each judge with labels of the overall preference.

    Raises:
        DataError: no label is about the overall preference.
    """
    by_judge: dict[str, list[CapabilityLabel]] = {}
    for label in (label for path in paths for label in read_labels(path)):
        if label.capability == OVERALL:
            by_judge.setdefault(label.judge, []).append(label)
    if paths and not by_judge:
        hint = "label the overall preference with `dmoerm label --overall`"
        raise DataError("no label is about the overall preference", file=paths[0], field="capability", hint=hint)
    return [_recorded(name, labels) for name, labels in by_judge.items()]


def _recorded(name: str, labels: Sequence[CapabilityLabel]) -> Method:
    trained = TrainedMethod(score_all=RecordedJudge(labels).score_all)
    key = hashlib.sha256(repr(list(labels)).encode()).hexdigest()[:32]
    tasks = frozenset(label.task for label in labels)
    description = f"LLM judge, as recorded: {name}"
    return Method(f"judge_{name}", description, "external", EXTERNAL_COLOR, lambda _: trained, tasks=tasks, key=key)


def live(endpoint: Endpoint, shots: int, store: Path) -> list[Method]:
    """Make `judge_zero_shot`, and `judge_few_shot` with `shots` labeled pairs of the training part in the prompt."""
    from ..labeling.judge import LLMJudge

    key = repr(endpoint)  # the results of other request settings are not reused

    def judge(name: str, description: str, shots: int) -> Method:
        def train(context: MethodContext) -> TrainedMethod:
            llm_judge = LLMJudge(endpoint, store, context.data.train, shots) if shots else LLMJudge(endpoint, store)
            return TrainedMethod(score_all=llm_judge.score_all)

        return Method(name, f"LLM judge {endpoint.model}, {description}", "external", EXTERNAL_COLOR, train, key=key)

    methods = [judge("judge_zero_shot", "zero-shot", 0)]
    return [*methods, judge("judge_few_shot", f"{shots} labeled pairs in the prompt", shots)] if shots else methods
