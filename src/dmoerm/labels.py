"""Capability labels from a judge: its verdicts on a pair of responses in both orders, and their use in training.

A label file is Parquet with one row per judge, pair and capability; its columns are the fields of `CapabilityLabel`.
Verdicts are about the responses, not about the positions in which they were shown: `first` is the response with the
lower index.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterable, Sequence
from dataclasses import asdict, dataclass, fields
from enum import StrEnum
from pathlib import Path
from typing import Any

from .errors import DataError
from .io.paths import complete_file
from .schema import Group, PairLabel, Query, prompt_key

OVERALL = "overall"
"""Takes the place of a capability's name: which response is better overall."""


class Outcome(StrEnum):
    """The result of a question."""

    FIRST = "first"
    """The first response is better."""
    SECOND = "second"
    """The second response is better."""
    TIE = "tie"
    """The responses are equally good."""
    UNPARSEABLE = "unparseable"
    """The answer does not have the required format."""
    REFUSED = "refused"
    """The judge, or a content filter, refused to answer."""
    FAILED = "failed"
    """The endpoint rejected the request."""
    OPEN = "open"
    """Not sent, or not answered yet."""


PROBABILITIES = {Outcome.FIRST: 1.0, Outcome.TIE: 0.5, Outcome.SECOND: 0.0}
"""The outcomes that are verdicts, as the probability that the first response is better."""


def likelier(probability: float) -> Outcome:
    """Return the more likely verdict; exactly 0.5 is a tie."""
    return Outcome.TIE if probability == 0.5 else Outcome.FIRST if probability > 0.5 else Outcome.SECOND


@dataclass(frozen=True)
class CapabilityLabel:
    """A judge's verdicts on a pair of responses on one capability.

    Attributes:
        judge: name of the judge.
        group: id of the group.
        content: digest of the group's texts; a label is ignored if its texts differ from the group's.
        task: name of the task; empty if the group has none.
        capability: name of the capability, or `overall`.
        first, second: indices into the group's responses, first < second.
        given, swapped: outcome with `first` shown first, and with `second` shown first.
        p_given, p_swapped: probability that `first` is better, from token probabilities or from the share of repeated
            answers to the same question; None if the judge gives neither.
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
        """Whether both orders have the same verdict."""
        return self.given == self.swapped and self.given in PROBABILITIES

    @property
    def soft(self) -> float | None:
        """The mean probability of both orders, in which position bias cancels out."""
        if self.p_given is None or self.p_swapped is None:
            return None
        return (self.p_given + self.p_swapped) / 2

    @property
    def hard(self) -> float | None:
        """The mean of both orders' verdicts as 1, 0.5 or 0; None if one order has no verdict."""
        if self.given not in PROBABILITIES or self.swapped not in PROBABILITIES:
            return None
        return (PROBABILITIES[self.given] + PROBABILITIES[self.swapped]) / 2

    @property
    def mean(self) -> float | None:
        """The probability that `first` is better: `soft`, or `hard` without probabilities."""
        return self.hard if self.soft is None else self.soft

    def training_target(self, soft: bool = True, inconsistent_weight: float | None = None) -> PairLabel | None:
        """Return what training takes from the label; None if it takes nothing.

        Args:
            soft: use the probabilities if both orders have one.
            inconsistent_weight: weight of a pair on which the orders disagree. None selects 1 for a soft label, whose
                probability reflects the disagreement, and 0 for a hard label.
        """
        probability = self.soft if soft else None
        default = 0.0 if probability is None else 1.0
        probability = self.hard if probability is None else probability
        if probability is None:
            return None
        weight = 1.0 if self.consistent else default if inconsistent_weight is None else inconsistent_weight
        return PairLabel(self.first, self.second, probability, weight) if weight else None


def content_digest(group: Query) -> str:
    """Return a digest of a group's texts: the normalized prompt and the responses."""
    text = "\0".join((prompt_key(group.prompt), *group.responses))
    return hashlib.sha256(text.encode()).hexdigest()[:16]


# --- files ---------------------------------------------------------------------------------------------------------


def write_labels(path: Path, labels: Sequence[CapabilityLabel]) -> None:
    """Write a label file atomically."""
    import pyarrow
    from pyarrow import parquet

    types = {"str": pyarrow.string(), "int": pyarrow.int32(), "Outcome": pyarrow.string()}
    schema = pyarrow.schema([(f.name, types.get(str(f.type), pyarrow.float64())) for f in fields(CapabilityLabel)])
    table = pyarrow.Table.from_pylist([asdict(label) for label in labels], schema=schema)
    with complete_file(path) as unfinished:
        parquet.write_table(table, unfinished)


def read_labels(path: str | Path) -> list[CapabilityLabel]:
    """Read a label file. Raise `DataError` if it does not exist, cannot be read or is not a valid label file."""
    import pyarrow
    from pyarrow import parquet

    hint = "create one with `dmoerm label`"
    try:
        return [_label(row) for row in parquet.read_table(path).to_pylist()]
    except FileNotFoundError:
        raise DataError("the label file does not exist", file=path, hint=hint) from None
    except (pyarrow.ArrowInvalid, KeyError, TypeError, ValueError) as error:
        raise DataError(f"is not a valid label file: {error}", file=path, hint=hint) from None
    except OSError as error:
        damaged = error.errno is None  # a damaged Parquet file
        fault = "is not a valid label file" if damaged else "cannot read the label file"
        raise DataError(f"{fault}: {error.strerror or error}", file=path, hint=hint if damaged else None) from None


def _label(row: dict[str, Any]) -> CapabilityLabel:
    names = [f.name for f in fields(CapabilityLabel)]
    if missing := [name for name in names if name not in row]:
        raise ValueError(f"missing columns: {', '.join(missing)}")
    label = CapabilityLabel(**{**row, "given": Outcome(row["given"]), "swapped": Outcome(row["swapped"])})
    if not 0 <= label.first < label.second:
        raise ValueError(f"first ({label.first}) is not less than second ({label.second})")
    for probability in (label.p_given, label.p_swapped):
        if probability is not None and not 0 <= probability <= 1:
            raise ValueError(f"a probability is {probability}")
    return label


# --- labels and groups ---------------------------------------------------------------------------------------------


def attaching(
    labels: Iterable[CapabilityLabel], soft: bool = True, inconsistent_weight: float | None = None
) -> Callable[[Group], Group]:
    """Return a function that returns a group with its labels; labels of several judges on one pair stay side by side.

    Labels are ignored if they are about the overall preference, or if no group has their id and texts.

    Args:
        labels: labels of capabilities.
        soft, inconsistent_weight: see `CapabilityLabel.training_target`.

    Raises:
        DataError: in the function: a label names a response that its group does not have.
    """
    targets: dict[tuple[str, str], dict[str, list[PairLabel]]] = {}
    for label in labels:
        target = label.training_target(soft, inconsistent_weight)
        if target is not None and label.capability != OVERALL:
            by_capability = targets.setdefault((label.group, label.content), {})
            by_capability.setdefault(label.capability, []).append(target)

    def attach(group: Group) -> Group:
        by_capability = targets.get((group.id, content_digest(group))) if targets else None
        if not by_capability:
            return group
        count, last = len(group.responses), max(target.second for each in by_capability.values() for target in each)
        if last >= count:
            raise DataError(
                f"a label of group {group.id} is about response {last}, but the group has {count} responses"
            )
        return group.model_copy(update={"judge_labels": {name: tuple(each) for name, each in by_capability.items()}})

    return attach


def unmatched_labels(queries: Iterable[Query], labels: Iterable[CapabilityLabel]) -> int:
    """Return the number of labels for which no group has the same id and texts."""
    known = {(query.id, content_digest(query)) for query in queries}
    return sum((label.group, label.content) not in known for label in labels)


def mismatch(
    queries: Iterable[Query], labels: Sequence[CapabilityLabel], soft: bool = True, weight: float | None = None
) -> str:
    """Return how many labels have a group's id, its texts and a target for training, to explain why none is used.

    Args:
        soft, weight: see `CapabilityLabel.training_target`.
    """
    digests: dict[str, set[str]] = {}
    for query in queries:
        digests.setdefault(query.id, set()).add(content_digest(query))
    known = [label for label in labels if label.group in digests]
    same = [label for label in known if label.content in digests[label.group]]
    capabilities = [label for label in same if label.capability != OVERALL]
    usable = sum(label.training_target(soft, weight) is not None for label in capabilities)
    ids = f" (such as {labels[0].group!r}; the data has {next(iter(digests), '')!r})" if labels and not known else ""
    return (
        f"of {len(labels)} labels, {len(known)} have a group's id{ids}, {len(same)} also its texts, "
        f"{len(capabilities)} of these are about a capability, {usable} with a verdict in both orders that agree or "
        "have probabilities"
    )
