"""The quality of labels, by hand and by simulation."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from dmoerm.labeling.quality import dawid_skene, kappa, label_quality, merge_judges
from dmoerm.labels import CapabilityLabel, Outcome, content_digest
from dmoerm.schema import Group

F, S, T, U = Outcome.FIRST, Outcome.SECOND, Outcome.TIE, Outcome.UNPARSEABLE


def group(index: int, grades: tuple) -> Group:
    texts = ("short", "much longer")
    return Group(id=f"g{index}", task="t", prompt=f"p{index}", responses=texts, capabilities={"logic": grades})


def label(of: Group, given: Outcome, swapped: Outcome, judge: str = "j") -> CapabilityLabel:
    return CapabilityLabel(judge, of.id, content_digest(of), "t", "logic", 0, 1, given, swapped, cost=0.5)


def test_by_hand() -> None:
    data = [group(i, grades) for i, grades in enumerate([(2, 1), (1, 2), (1, 1), (None, 1), (2, 1)])]
    verdicts = [(F, F), (F, S), (T, T), (S, S), (S, U)]
    labels = [label(g, *v) for g, v in zip(data, verdicts, strict=True)]
    logic, total = label_quality(labels, data)[1], label_quality(labels, data)[0]
    assert total.capability == "all capabilities"
    assert (logic.pairs, logic.people, logic.cost) == (5, 3, 2.5)
    assert logic.consistency == 3 / 4
    assert logic.shown_first == 4 / 7  # F given; F given and S swapped; S swapped; not F swapped, S given twice
    assert logic.unparseable == 1 / 10
    assert logic.agreement_one == 3 / 5
    assert logic.agreement_both == 1
    assert logic.agreement_mean == (1 + 0.5) / 2
    assert logic.kappa_both == pytest.approx(1)
    assert logic.longer == 1 / 2
    assert logic.longer_people == 1 / 3


def test_a_known_kappa() -> None:
    table = np.array([[20.0, 5, 0], [10, 15, 0], [0, 0, 0]])
    assert kappa(table) == pytest.approx(0.4)
    assert np.isnan(kappa(np.diag([7.0, 0, 0])))


def test_nothing_to_compare_with_is_none() -> None:
    data = [group(0, (None, None)), group(1, (1, 1))]
    results = label_quality([label(data[0], U, U), replace(label(data[1], T, T), content="other text")], data)
    assert {(q.people, q.agreement_one, q.kappa_both, q.kappa_interval, q.longer) for q in results} == {
        (0, None, None, None, None)
    }


def votes(accuracies: list[float], items: int = 2000, seed: int = 0):
    """Judges of known accuracy who err independently; the truth, and their votes (J, n, 3)."""
    rng = np.random.default_rng(seed)
    truth = rng.integers(0, 2, items)
    said = np.array([np.where(rng.random(items) < a, truth, 1 - truth) for a in accuracies])
    return truth, np.eye(3)[said]


def test_dawid_skene_finds_the_better_judge_and_beats_the_majority() -> None:
    truth, tensor = votes([0.9, 0.6, 0.6])
    posterior, tables = dawid_skene(tensor)
    right = np.mean(posterior.argmax(1) == truth)
    majority = np.mean(tensor.sum(0).argmax(1) == truth)
    assert right > majority + 0.05
    results = [float(np.diag(table)[:2].mean()) for table in tables]
    assert results == pytest.approx([0.9, 0.6, 0.6], abs=0.08)
    assert posterior.sum(1) == pytest.approx(np.ones(len(truth)))


def test_judges_come_to_one_label() -> None:
    truth, tensor = votes([0.9, 0.7, 0.7], items=400)
    data = [group(i, (1 - int(t), int(t))) for i, t in enumerate(truth)]
    orders = {0: F, 1: S}
    labels = [
        label(g, orders[v], orders[v], judge)
        for judge, row in zip("abc", tensor.argmax(2), strict=True)
        for g, v in zip(data, row, strict=True)
    ]
    merged, accuracy = merge_judges(labels)
    assert len(merged) == len(data)
    assert set(accuracy) == set("abc")
    assert accuracy["a"] > max(accuracy["b"], accuracy["c"])
    by_judge = {q.judge: q.agreement_mean for q in label_quality([*labels, *merged], data) if q.capability == "logic"}
    assert by_judge["consensus"] > max(by_judge["b"], by_judge["c"]) + 0.1
