"""Groups, questions and runs for the tests of labeling; imported by processes that a test kills, so kept light."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

from dmoerm.labeling import runner
from dmoerm.labeling.questions import Endpoint, Question, QuestionFormat, all_pairs, build_questions
from dmoerm.labeling.runner import RunStatistics
from dmoerm.labeling.store import AnswerStore
from dmoerm.schema import Group
from dmoerm.taxonomy import load_taxonomy

if TYPE_CHECKING:
    from fake_judge import FakeJudge

TAXONOMY = load_taxonomy("paper-en")


def groups(count: int, responses: int = 2) -> list[Group]:
    """Groups of chitchat, each response longer than the one before."""
    texts = tuple("Yes, of course I can." + " Really." * i for i in range(responses))
    scores = tuple(range(responses))
    return [
        Group(id=f"g{i}", task="chitchat", prompt=f"Can you do {i}?", responses=texts, scores=scores)
        for i in range(count)
    ]


def questions_on(groups: list[Group], where: Endpoint, **settings: Any) -> list[Question]:
    return list(build_questions(all_pairs(groups), QuestionFormat(TAXONOMY, **settings), where))


def endpoint(server: FakeJudge, **changed: Any) -> Endpoint:
    return Endpoint(server.url, "judge", **{"prompt_price": 1.0, "completion_price": 2.0, **changed})


def ask(questions: list[Question], where: Endpoint, path: Path, **limits: Any) -> RunStatistics:
    store = AnswerStore(path)
    try:
        return runner.ask(questions, where, store, **limits)
    finally:
        store.close()
