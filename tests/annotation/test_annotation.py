"""The store, the questions, the agreement and the export, without a browser."""

from __future__ import annotations

import json
import random
import sqlite3
from collections import Counter
from pathlib import Path

import httpx2
import pytest
from running import served
from typer.testing import CliRunner

from dmoerm.annotation.agreement import annotator_agreement
from dmoerm.annotation.export import exported_rows
from dmoerm.annotation.server import create_annotation_app
from dmoerm.annotation.session import AnnotationSession, select_pairs
from dmoerm.annotation.store import AnnotationStore
from dmoerm.cli import app
from dmoerm.data.readers import read_groups
from dmoerm.data.statistics import data_statistics
from dmoerm.errors import CheckpointError, DataError
from dmoerm.schema import Query
from dmoerm.taxonomy import load_taxonomy

TAXONOMY = load_taxonomy("paper-en")
QUERIES = [
    Query(id=f"q{i}", task="chitchat" if i % 2 else None, prompt=f"Prompt {i}", responses=tuple("abcd"[: 2 + i % 3]))
    for i in range(6)
]


@pytest.fixture
def store(tmp_path: Path) -> AnnotationStore:
    store = AnnotationStore(tmp_path / "answers.sqlite", create=True)
    store.add_pairs(select_pairs(QUERIES)[0])
    return store


def answer_all(session: AnnotationSession, annotator: str, choose, count: int = 10_000) -> list[dict]:
    """Answer the annotator's next questions; `choose` maps a question to a choice. Return the questions."""
    asked = []
    while len(asked) < count and (question := session.state(annotator)["question"]):
        asked.append(question)
        keys = ("pair", "capability", "left")
        session.answer(annotator, choice=choose(question), **{key: question[key] for key in keys})
    return asked


def alphabetical(question: dict) -> str:
    return "left" if question["responses"][0] < question["responses"][1] else "right"


def test_every_question_is_asked_once_overall_first(store: AnnotationStore) -> None:
    asked = answer_all(AnnotationSession(store, TAXONOMY), "anna", alphabetical)
    by_pair: dict[int, list[str]] = {}
    for question in asked:
        by_pair.setdefault(question["pair"], []).append(question["capability"])
    pairs = store.pairs()
    for number, names in by_pair.items():
        capabilities = TAXONOMY.tasks["chitchat"].capabilities if pairs[number].group.task else ()
        assert names == ["overall", *capabilities]
    assert by_pair.keys() == pairs.keys()
    order = [question["pair"] for question in asked]
    assert order == sorted(order, key=order.index)  # a pair's questions follow each other
    assert list(by_pair) != sorted(by_pair)  # a random order of pairs


def test_sides_are_random_by_annotator_and_stay_after_a_restart(store: AnnotationStore) -> None:
    sides: dict[str, list[tuple[int, int]]] = {}
    for annotator in map(str, range(10)):
        asked = answer_all(AnnotationSession(store), annotator, alphabetical)
        sides[annotator] = [(question["pair"], question["left"]) for question in asked]
    assert len({tuple(shown) for shown in sides.values()}) == 10
    shares = Counter(left == store.pairs()[pair].first for shown in sides.values() for pair, left in shown)
    assert 0.35 < shares[True] / shares.total() < 0.65
    first = AnnotationSession(store).state("late")["question"]
    store.add_pairs(select_pairs([Query(prompt="new", responses=("x", "y"))])[0])
    again = AnnotationSession(AnnotationStore(store.path))
    answered = {q["pair"]: q["left"] for q in answer_all(again, "late", alphabetical)}
    assert answered[first["pair"]] == first["left"]


def test_verdicts_are_about_the_responses_not_the_sides(store: AnnotationStore) -> None:
    session = AnnotationSession(store, TAXONOMY)
    for annotator in ("anna", "ben"):
        answer_all(session, annotator, alphabetical)
    for row in exported_rows(store):
        assert row["scores"] == [1, 0]
        assert row["responses"] == sorted(row["responses"])
        assert all(grades == [[1, 1], [0, 0]] for grades in row["annotators"].values())
    assert {(entry.agreement, entry.kappa) for entry in annotator_agreement(store)} == {(1.0, None)}


def test_undo_asks_the_last_question_again(store: AnnotationStore) -> None:
    session = AnnotationSession(store, TAXONOMY)
    asked = answer_all(session, "anna", alphabetical, 5)
    answer_all(session, "ben", alphabetical, 7)
    for question in reversed(asked):
        session.undo("anna")
        assert session.state("anna")["question"] == question
    session.undo("anna")
    assert session.state("anna")["answered"] == 0
    assert session.state("ben")["answered"] == 7


def test_the_export_keeps_single_annotators_and_is_read_back(store: AnnotationStore, tmp_path: Path) -> None:
    session, chance = AnnotationSession(store, TAXONOMY), random.Random(0)
    answer_all(session, "anna", lambda _: chance.choice(["left", "right", "tie", "skip"]))
    answer_all(session, "ben", lambda _: chance.choice(["left", "right", "tie", "skip"]), 12)
    path = tmp_path / "rows.jsonl"
    result = CliRunner().invoke(app, ["annotate", "export", str(store.path), "--out", str(path)])
    assert result.exit_code == 0, result.output
    groups = read_groups(path).groups
    verdicts = Counter()
    for group in groups:
        for name, by_response in group.annotators.items():
            for index, person in enumerate(("anna", "ben")):
                grades = tuple(grades[index] for grades in by_response)
                assert grades in [(1, 0), (0, 1), (0.5, 0.5), (None, None)]
                verdicts[person] += grades != (None, None)
            means = group.scores if name == "overall" else group.capabilities[name]
            assert sum(means) == pytest.approx(1)
    counted = Counter(answer.annotator for answer in store.answers() if answer.outcome != "refused")
    assert verdicts == counted
    statistics = data_statistics([path])
    assert statistics["bad"] == []
    agreements = statistics["agreement"]["chitchat"].values()
    assert agreements
    assert all(values["comparisons"] and not values["unaligned_pairs"] for values in agreements)


def test_agreement_and_kappa_by_hand(store: AnnotationStore) -> None:
    session = AnnotationSession(store)
    numbers = sorted(store.pairs())[:5]
    for annotator, choices in ("anna", "left left right tie skip"), ("ben", "left right right tie left"):
        for number, choice in zip(numbers, choices.split(), strict=True):
            session.answer(annotator, number, "overall", store.pairs()[number].first, choice)
    (entry,) = annotator_agreement(store)
    assert (entry.first, entry.second, entry.capability, entry.pairs) == ("anna", "ben", "overall", 4)
    assert entry.agreement == 0.75
    expected = (2 * 1 + 1 * 2 + 1 * 1) / 16
    assert entry.kappa == pytest.approx((0.75 - expected) / (1 - expected))
    result = CliRunner().invoke(app, ["annotate", "agreement", str(store.path)])
    assert "75.0%" in result.output
    assert f"{entry.kappa:+.2f}" in result.output


def test_a_sample_of_pairs_and_the_same_data_again(tmp_path: Path) -> None:
    sample, _ = select_pairs(QUERIES, pairs_per_group=2, seed=3)
    assert sample == select_pairs(QUERIES, 2, 3)[0]
    assert max(Counter(pair.group.id for pair in sample).values()) == 2
    store = AnnotationStore(tmp_path / "answers.sqlite", create=True)
    assert store.add_pairs(sample) == len(sample)
    assert store.add_pairs(sample) == 0
    everything = select_pairs(QUERIES)[0]
    assert store.add_pairs(everything) == len(everything) - len(sample)


def test_rows_without_pairs_are_named() -> None:
    with pytest.raises(
        DataError, match="no pair to annotate: 1 of 2 groups have one response, 1 of 2 groups have no two"
    ):
        select_pairs([Query(prompt="p", responses=("a",)), Query(prompt="p", responses=("a", "a", " "))])


def test_files_that_are_not_stores(tmp_path: Path) -> None:
    other = tmp_path / "other.sqlite"
    with sqlite3.connect(other) as database:
        database.execute("CREATE TABLE calls (key)")
    with pytest.raises(CheckpointError, match="the file has other contents"):
        AnnotationStore(other)
    with pytest.raises(CheckpointError, match="the store does not exist"):
        AnnotationStore(tmp_path / "none.sqlite")
    assert not (tmp_path / "none.sqlite").exists()
    AnnotationStore(tmp_path / "new.sqlite", create=True).close()
    with pytest.raises(DataError, match="no verdicts to export"):
        exported_rows(AnnotationStore(tmp_path / "new.sqlite"))


def test_other_sites_and_wrong_answers_are_refused(store: AnnotationStore) -> None:
    body = {"annotator": "anna", "pair": 1, "capability": "overall", "left": 0, "choice": "left"}
    with served(create_annotation_app(AnnotationSession(store))) as url, httpx2.Client(base_url=url) as client:
        assert client.get("/", headers={"Host": "attacker.example"}).status_code == 400
        form = {"Content-Type": "text/plain"}  # what a page of another origin may send without being asked
        assert client.post("/v1/answer", content=json.dumps(body), headers=form).status_code == 422
        faults = [
            ({"pair": 99}, "99/overall"),
            ({"capability": "wit"}, "1/wit"),
            ({"left": 7}, "left: is not a response"),
        ]
        for change, said in [*faults, ({"choice": "both"}, "choice"), ({"annotator": " a"}, "annotator")]:
            answer = client.post("/v1/answer", json=body | change)
            assert answer.status_code == 422
            assert said in answer.json()["error"]["message"]
        assert store.answers() == []
        assert client.post("/v1/answer", json=body).json()["answered"] == 1
        assert "default-src 'none'" in client.get("/").headers["Content-Security-Policy"]
