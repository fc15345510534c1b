"""The questions of an annotation project: their order, the sides of the responses, and the answers.

All annotators get the pairs in the same random order, so that their agreement is known early. Which response is on the
left is random for each annotator and pair. Both follow from the seed, so that a restarted server continues.
"""

from __future__ import annotations

import hashlib
import random
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass
from typing import Any, Literal

from ..errors import DataError
from ..labeling.questions import QuestionFormat, ResponsePair, all_pairs
from ..labels import Outcome, content_digest
from ..names import check_name
from ..schema import Query, is_empty, messages_of
from ..taxonomy import Capability, Taxonomy
from .agreement import annotator_agreement
from .store import AnnotationStore, PairAnswer

Choice = Literal["left", "right", "tie", "skip"]


def select_pairs(
    queries: Sequence[Query], pairs_per_group: int | None = None, seed: int = 0
) -> tuple[list[ResponsePair], Counter[str]]:
    """Return the pairs to annotate, and why groups have none, with their number.

    Args:
        queries: the groups.
        pairs_per_group: take a random sample of this many pairs of a group; None: all pairs.

    Raises:
        DataError: no group has a pair of different responses.
    """
    pairs: list[ResponsePair] = []
    reasons: Counter[str] = Counter()
    for query in queries:
        candidates = [pair for pair in all_pairs([query]) if not _has_empty_response(pair)]
        if not candidates:
            reasons[
                "have one response" if len(query.responses) < 2 else "have no two different responses with text"
            ] += 1
        elif pairs_per_group is not None and pairs_per_group < len(candidates):
            sampler = random.Random(f"{seed} {query.id} {content_digest(query)}")
            candidates = sorted(sampler.sample(candidates, pairs_per_group), key=lambda pair: pair[1:])
        pairs += candidates
    if not pairs:
        counts = ", ".join(f"{count} of {len(queries)} groups {reason}" for reason, count in reasons.items())
        raise DataError(
            f"there is no pair to annotate: {counts}", hint="give rows with two or more different responses"
        )
    return pairs, reasons


def _has_empty_response(pair: ResponsePair) -> bool:
    return any(is_empty(pair.group.responses[index]) for index in pair[1:])


@dataclass(frozen=True)
class AnnotationQuestion:
    """What the page shows.

    Attributes:
        pair: the number of the pair.
        capability: the name of the capability, or `overall`.
        title, rubric: the capability's title and rubric.
        task: the name of the task.
        prompt: the conversation.
        left: the index of the response on the left.
        responses: the response on the left, and the one on the right.
        step, steps: the number of the question among those of the pair, from 1, and their number.
    """

    pair: int
    capability: str
    title: str
    rubric: str
    task: str | None
    prompt: list[dict[str, str]]
    left: int
    responses: tuple[str, str]
    step: int
    steps: int


class AnnotationSession:
    """The questions on the pairs of a store.

    Args:
        store: the store with the pairs.
        taxonomy: the capabilities of each task; None: only the overall preference is asked.
        seed: selects the order of the pairs and the sides of the responses.
    """

    def __init__(self, store: AnnotationStore, taxonomy: Taxonomy | None = None, seed: int = 0) -> None:
        self.store, self._seed = store, seed
        pairs = store.pairs()
        self._pairs = {number: pairs[number] for number in sorted(pairs, key=lambda n: self._digest("", pairs[n]))}
        tasks = {pair.group.task for pair in pairs.values()}
        self._capabilities = {task: _capabilities(taxonomy, task) for task in tasks}
        self._total = sum(len(self._capabilities[pair.group.task]) for pair in pairs.values())

    def state(self, annotator: str) -> dict[str, Any]:
        """Return the annotator's next question (None at the end), the progress and the agreement with others."""
        _check_annotator(annotator)
        answered = self.store.answered(annotator)
        questions = [key for key in self._questions() if key not in answered]
        return {
            "annotator": annotator,
            "question": asdict(self._question(annotator, *questions[0])) if questions else None,
            "answered": self._total - len(questions),
            "total": self._total,
            "undo": bool(answered),
            "agreement": [asdict(row) for row in annotator_agreement(self.store, annotator)],
        }

    def answer(self, annotator: str, pair: int, capability: str, left: int, choice: Choice) -> None:
        """Record an answer.

        Args:
            annotator: the annotator's name.
            pair: the number of the pair.
            capability: the name of the capability, or `overall`.
            left: the index of the response that was on the left.
            choice: the better side, `tie`, or `skip` for no verdict.

        Raises:
            DataError: the name is invalid, or there is no such question.
        """
        _check_annotator(annotator)
        known = self._pairs.get(pair)
        if known is None or capability not in self._capabilities[known.group.task]:
            hint = "reload the page; the data or the taxonomy have changed"
            raise DataError("there is no such question", field="pair", value=f"{pair}/{capability}", hint=hint)
        if left not in known[1:]:
            raise DataError("is not a response of the pair", field="left", value=left, hint="reload the page")
        first_is_left = left == known.first
        outcome = {
            "left": Outcome.FIRST if first_is_left else Outcome.SECOND,
            "right": Outcome.SECOND if first_is_left else Outcome.FIRST,
            "tie": Outcome.TIE,
            "skip": Outcome.REFUSED,
        }[choice]
        self.store.put(PairAnswer(annotator, pair, capability, outcome, left))

    def undo(self, annotator: str) -> None:
        """Remove the annotator's last answer, if there is one."""
        _check_annotator(annotator)
        self.store.undo(annotator)

    def _questions(self) -> Iterable[tuple[int, str]]:
        return ((number, name) for number, pair in self._pairs.items() for name in self._capabilities[pair.group.task])

    def _question(self, annotator: str, number: int, name: str) -> AnnotationQuestion:
        pair = self._pairs[number]
        swapped = self._digest(annotator, pair) % 2
        left, right = (pair.second, pair.first) if swapped else (pair.first, pair.second)
        capabilities = self._capabilities[pair.group.task]
        return AnnotationQuestion(
            pair=number,
            capability=name,
            title=capabilities[name].title,
            rubric=capabilities[name].rubric,
            task=pair.group.task,
            prompt=[{"role": message.role, "content": message.text} for message in messages_of(pair.group.prompt)],
            left=left,
            responses=(pair.group.responses[left], pair.group.responses[right]),
            step=list(capabilities).index(name) + 1,
            steps=len(capabilities),
        )

    def _digest(self, annotator: str, pair: ResponsePair) -> int:
        """Return a random number that does not change if other pairs are added."""
        parts = self._seed, annotator, pair.group.id, content_digest(pair.group), *pair[1:]
        return int.from_bytes(hashlib.sha256("\0".join(map(str, parts)).encode()).digest())


def _capabilities(taxonomy: Taxonomy | None, task: str | None) -> dict[str, Capability]:
    """Return what is asked about a pair: the overall preference, then the capabilities of its task."""
    formats = [QuestionFormat(taxonomy, overall=True), *([QuestionFormat(taxonomy)] if taxonomy else [])]
    return {
        name: capability
        for form in formats
        for names in form.capability_sets(task)
        for name, capability in names.items()
    }


def _check_annotator(name: str) -> None:
    try:
        check_name("annotator", name)
    except ValueError as error:
        raise DataError(str(error), field="annotator") from None
