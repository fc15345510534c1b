"""Capability labels by a judge: what it said of a pair of responses in either order, and what training makes of it.

A label file is Parquet with a row for each judge, pair and capability; the columns are the fields of `Label`. Verdicts
are about the responses, not about the places in which they were shown: `first` is the response of the lower index.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass, fields
from enum import StrEnum
from pathlib import Path
from typing import Any

from .errors import DataError
from .io.paths import complete_file
from .schema import Group, Judgement, Query, prompt_key

OVERALL = "overall"
"""In place of a capability: which response is better as a whole."""


class Outcome(StrEnum):
    """How a question ended."""

    FIRST = "first"
    """The first response is better."""
    SECOND = "second"
    """The second response is better."""
    TIE = "tie"
    """Neither is."""
    UNPARSEABLE = "unparseable"
    """The answer is in no form that can be read."""
    REFUSED = "refused"
    """The judge, or a filter before it, would not answer."""
    FAILED = "failed"
    """No answer came: the endpoint's final error."""
    OPEN = "open"
    """Not asked, or not answered yet."""


PROBABILITIES = {Outcome.FIRST: 1.0, Outcome.TIE: 0.5, Outcome.SECOND: 0.0}
"""The outcomes that say something about the responses, as the probability that the first is better."""


def likelier(probability: float) -> Outcome:
    """The outcome that a probability comes to; exactly 0.5 is a tie."""
    return Outcome.TIE if probability == 0.5 else Outcome.FIRST if probability > 0.5 else Outcome.SECOND


@dataclass(frozen=True)
class Label:
    """What a judge says of a pair of responses on one capability.

    Attributes:
        judge: its name.
        group, content: the group's id, and a digest of its texts: a label for other texts under the same id is none.
        task, capability: names of the taxonomy, or `overall`.
        first, second: indices into the group's responses, first < second.
        given, swapped: the outcome with `first` shown first, and with `second` shown first.
        p_given, p_swapped: the probability that `first` is better, by the judge's token probabilities (or by the
            share of several answers to the same question); None where it gave none.
        prompt_tokens, completion_tokens, cost: this label's share of its calls.
    """

    judge: str
    group: str
    content: str
    task: str
    capability: str
    first: int
    second: int
    given: Outcome = Outcome.OPEN
    swapped: Outcome = Outcome.OPEN
    p_given: float | None = None
    p_swapped: float | None = None
    prompt_tokens: float = 0.0
    completion_tokens: float = 0.0
    cost: float = 0.0

    @property
    def consistent(self) -> bool:
        """Both orders have the same verdict."""
        return self.given == self.swapped and self.given in PROBABILITIES

    @property
    def soft(self) -> float | None:
        """The mean of both orders' probabilities: a judge's leaning to a place cancels out."""
        if self.p_given is None or self.p_swapped is None:
            return None
        return (self.p_given + self.p_swapped) / 2

    @property
    def hard(self) -> float | None:
        """The mean of both orders' verdicts as 1, 0.5 or 0; None where one of the two is none."""
        if self.given not in PROBABILITIES or self.swapped not in PROBABILITIES:
            return None
        return (PROBABILITIES[self.given] + PROBABILITIES[self.swapped]) / 2

    @property
    def mean(self) -> float | None:
        """The probability that `first` is better: `soft`, else `hard`."""
        return self.hard if self.soft is None else self.soft

    def judgement(self, soft: bool = True, inconsistent_weight: float | None = None) -> Judgement | None:
        """What training takes from it; None where there is nothing to take.

        Args:
            soft: use the probabilities where both orders have one.
            inconsistent_weight: the weight of a pair on which the two orders disagree; None: 1 for a soft label, in
                which the disagreement is counted already, and 0 for a hard one.
        """
        probability = self.soft if soft else None
        default = 0.0 if probability is None else 1.0
        probability = self.hard if probability is None else probability
        if probability is None:
            return None
        weight = 1.0 if self.consistent else default if inconsistent_weight is None else inconsistent_weight
        return Judgement(self.first, self.second, probability, weight) if weight else None


def content_digest(group: Query) -> str:
    """Names a group's texts: the prompt as a reader sees it, and the responses."""
    text = "\0".join((prompt_key(group.prompt), *group.responses))
    return hashlib.sha256(text.encode()).hexdigest()[:16]


def write_labels(path: Path, labels: Sequence[Label]) -> None:
    """Writes a label file, completely or not at all."""
    import pyarrow
    from pyarrow import parquet

    kinds = {"str": pyarrow.string(), "int": pyarrow.int32(), "Outcome": pyarrow.string()}
    schema = pyarrow.schema([(f.name, kinds.get(str(f.type), pyarrow.float64())) for f in fields(Label)])
    table = pyarrow.Table.from_pylist([asdict(label) for label in labels], schema=schema)
    with complete_file(path) as unfinished:
        parquet.write_table(table, unfinished)


def read_labels(path: str | Path) -> list[Label]:
    """Reads a label file. Raises `DataError` where it is none."""
    import pyarrow
    from pyarrow import parquet

    try:
        rows = parquet.read_table(path).to_pylist()
        return [_label(row) for row in rows]
    except FileNotFoundError:
        raise DataError("there is no such label file", file=path, hint="make it with `dmoerm label`") from None
    except (pyarrow.ArrowInvalid, OSError, KeyError, TypeError, ValueError) as error:
        raise DataError(f"is no label file: {error}", file=path, hint="make it with `dmoerm label`") from None


def _label(row: dict[str, Any]) -> Label:
    label = Label(**{**row, "given": Outcome(row["given"]), "swapped": Outcome(row["swapped"])})
    if not 0 <= label.first < label.second:
        raise ValueError(f"first {label.first} and second {label.second} are not in order")
    for probability in (label.p_given, label.p_swapped):
        if probability is not None and not 0 <= probability <= 1:
            raise ValueError(f"a probability is {probability}")
    return label


def with_judgements(
    groups: Iterable[Group], labels: Iterable[Label], soft: bool = True, inconsistent_weight: float | None = None
) -> list[Group]:
    """The groups with what the labels say of them; several judges' on one pair stand side by side."""
    found: dict[tuple[str, str], dict[str, list[Judgement]]] = {}
    for label in labels:
        judgement = label.judgement(soft, inconsistent_weight)
        if judgement is not None and label.capability != OVERALL:
            of_group = found.setdefault((label.group, label.content), {})
            of_group.setdefault(label.capability, []).append(judgement)
    return [_judged(group, found) for group in groups] if found else list(groups)


def _judged(group: Group, found: dict[tuple[str, str], dict[str, list[Judgement]]]) -> Group:
    judged = found.get((group.id, content_digest(group)))
    return group if judged is None else group.model_copy(update={"judged": {k: tuple(v) for k, v in judged.items()}})
