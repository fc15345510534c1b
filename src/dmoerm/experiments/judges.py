"""LLM judges as methods of a comparison: live ones, zero-shot and few-shot, and what others have said on record."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from ..errors import DataError
from ..labeling.judge import rewards_from_labels
from ..labels import OVERALL, CapabilityLabel, read_labels
from ..schema import Query
from .runs import Outside


@dataclass(frozen=True)
class RecordedJudge:
    """A judge by its labels of `overall`; a pair that has none counts 0.5."""

    labels: Sequence[CapabilityLabel]

    def score_all(self, queries: Sequence[Query]) -> list[list[float]]:
        """See `Method`: how often a response is preferred to another."""
        return rewards_from_labels(self.labels, queries)


def recorded(paths: Sequence[Path]) -> dict[str, Outside]:
    """`judge_NAME` for each judge in label files that said which response is better as a whole.

    Raises:
        DataError: no judge did.
    """
    by_judge: dict[str, list[CapabilityLabel]] = {}
    for label in (label for path in paths for label in read_labels(path)):
        if label.capability == OVERALL:
            by_judge.setdefault(label.judge, []).append(label)
    if paths and not by_judge:
        hint = "label the overall preference with `dmoerm label --overall`"
        raise DataError("no label is about the overall preference", file=paths[0], field="capability", hint=hint)
    return {f"judge_{name}": _recorded(name, labels) for name, labels in by_judge.items()}


def _recorded(name: str, labels: Sequence[CapabilityLabel]) -> Outside:
    judge = RecordedJudge(labels)
    key = hashlib.sha256(repr(list(labels)).encode()).hexdigest()[:32]
    tasks = frozenset(label.task for label in labels)
    return Outside(lambda _: judge, f"LLM judge, as recorded: {name}", tasks, key)


def live(model: str, base_url: str, shots: int, store: Path) -> dict[str, Outside]:
    """`judge_zero_shot`, and `judge_few_shot` where there are shots, drawn from a cell's training part."""
    from ..labeling.client import Endpoint
    from ..labeling.judge import LLMJudge

    endpoint = Endpoint(base_url, model)
    zero = Outside(lambda _: LLMJudge(endpoint, store), f"LLM judge {model}, zero-shot", key=base_url)
    found = {"judge_zero_shot": zero}
    if shots:
        about = f"LLM judge {model}, {shots} labelled pairs shown first"
        found["judge_few_shot"] = Outside(
            lambda data: LLMJudge(endpoint, store, data.train, shots), about, key=base_url
        )
    return found
