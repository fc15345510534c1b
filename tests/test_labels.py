"""Labels: the targets from verdicts in both orders, and the label file."""

from __future__ import annotations

import re
from dataclasses import replace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from dmoerm.errors import DataError
from dmoerm.labels import (
    OVERALL,
    CapabilityLabel,
    Outcome,
    attaching,
    content_digest,
    mismatch,
    read_labels,
    unmatched_labels,
    write_labels,
)
from dmoerm.schema import Group, PairLabel

GROUP = Group(id="g", task="chitchat", prompt="Hi", responses=("a", "b", "c"), scores=(1, 2, 3))
LABEL = CapabilityLabel("judge", "g", content_digest(GROUP), "chitchat", "empathy", 0, 1)


def attached(labels: list[CapabilityLabel]) -> Group:
    return attaching(labels)(GROUP)


probabilities = st.none() | st.floats(0, 1)
outcomes = st.sampled_from(list(Outcome))
labels = st.builds(
    CapabilityLabel,
    *(st.text(st.characters(exclude_categories=("Cs",)), max_size=5) for _ in range(5)),
    first=st.just(0),
    second=st.integers(1, 9),
    given=outcomes,
    swapped=outcomes,
    p_given=probabilities,
    p_swapped=probabilities,
    prompt_tokens=st.floats(0, 1e6),
    cost=st.floats(0, 10),
)


@pytest.mark.parametrize(
    ("given", "swapped", "hard"),
    [
        ("first", "first", PairLabel(0, 1, 1.0)),
        ("second", "second", PairLabel(0, 1, 0.0)),
        ("tie", "tie", PairLabel(0, 1, 0.5)),
        ("first", "second", None),
        ("first", "tie", None),
        ("first", "unparseable", None),
        ("refused", "refused", None),
        ("open", "open", None),
    ],
)
def test_hard_labels_are_those_on_which_both_orders_agree(given, swapped, hard) -> None:
    label = replace(LABEL, given=Outcome(given), swapped=Outcome(swapped))
    assert label.training_target() == hard
    assert label.consistent == (hard is not None)


def test_inconsistent_labels_can_count_less() -> None:
    label = replace(LABEL, given=Outcome.FIRST, swapped=Outcome.TIE)
    assert label.training_target(inconsistent_weight=0.25) == PairLabel(0, 1, 0.75, 0.25)


def test_soft_labels_are_the_mean_of_both_orders() -> None:
    label = replace(LABEL, given=Outcome.FIRST, swapped=Outcome.SECOND, p_given=0.9, p_swapped=0.4)
    assert label.training_target() == PairLabel(0, 1, 0.65)
    assert label.training_target(soft=False) is None
    assert label.training_target(inconsistent_weight=0.5) == PairLabel(0, 1, 0.65, 0.5)
    assert replace(label, p_swapped=None).training_target() is None


@given(p=st.floats(0, 1), bias=st.floats(0, 0.4))
def test_position_bias_cancels_out(p: float, bias: float) -> None:
    """The response shown first gains equally in both orders."""
    p = 0.4 + 0.2 * p
    label = replace(LABEL, p_given=p + bias, p_swapped=p - bias)
    assert label.soft == pytest.approx(p)


@settings(deadline=None, max_examples=30)
@given(results=st.lists(labels, max_size=4))
def test_a_file_reads_back_as_written(results, tmp_path_factory) -> None:
    path = tmp_path_factory.mktemp("labels") / "labels.parquet"
    write_labels(path, results)
    assert read_labels(path) == results


def test_an_invalid_label_file_is_refused(tmp_path) -> None:
    path = tmp_path / "labels.parquet"
    with pytest.raises(DataError, match="the label file does not exist"):
        read_labels(path)
    path.write_text("{}")
    with pytest.raises(DataError, match="is not a valid label file"):
        read_labels(path)
    write_labels(path, [replace(LABEL, p_given=1.5)])
    with pytest.raises(DataError, match=r"a probability is 1\.5"):
        read_labels(path)


def test_labels_find_their_group_by_id_and_text() -> None:
    good = replace(LABEL, given=Outcome.FIRST, swapped=Outcome.FIRST)
    others = [replace(good, group="h"), replace(good, content="0"), replace(good, capability=OVERALL)]
    results = attached([good, *others])
    assert results.judge_labels == {"empathy": (PairLabel(0, 1, 1.0),)}
    assert attached(others) == GROUP
    twice = attached([good, replace(good, judge="other", given=Outcome.TIE, swapped=Outcome.TIE)])
    assert twice.judge_labels["empathy"] == (PairLabel(0, 1, 1.0), PairLabel(0, 1, 0.5))


def test_a_label_of_a_missing_response_is_refused() -> None:
    label = replace(LABEL, second=3, given=Outcome.FIRST, swapped=Outcome.FIRST)
    with pytest.raises(DataError, match="a label of group g is about response 3, but the group has 3 responses"):
        attached([label])


AGREEING = replace(LABEL, given=Outcome.FIRST, swapped=Outcome.FIRST)
DISAGREED = replace(LABEL, given=Outcome.FIRST, swapped=Outcome.SECOND)
REFUSED = replace(LABEL, given=Outcome.FIRST, swapped=Outcome.REFUSED)
UNREADABLE = replace(LABEL, given=Outcome.UNPARSEABLE, swapped=Outcome.FAILED)


@pytest.mark.parametrize(
    ("labels", "counts"),
    [
        ([], "of 0 labels, 0 have a group's id, 0 also its texts, 0 of these"),
        ([replace(AGREEING, group="h")], r"0 have a group's id \(such as 'h'; the data has 'g'\)"),
        ([replace(AGREEING, content="0")], "1 have a group's id, 0 also its texts"),
        ([replace(AGREEING, capability=OVERALL)], "1 also its texts, 0 of these are about a capability"),
        ([DISAGREED, REFUSED, UNREADABLE, LABEL], "4 of these are about a capability, 0 with a verdict"),
    ],
)
def test_why_no_label_is_usable(labels, counts) -> None:
    assert attached(labels) == GROUP
    assert re.search(counts, mismatch([GROUP], labels))


def test_labels_that_match_no_group_are_counted() -> None:
    assert unmatched_labels([GROUP], [LABEL, replace(LABEL, group="h"), replace(LABEL, content="0")]) == 2


def test_an_unreadable_file_or_a_missing_column_is_explained(tmp_path) -> None:
    import pyarrow
    from pyarrow import parquet

    path = tmp_path / "labels.parquet"
    write_labels(path, [AGREEING])
    parquet.write_table(parquet.read_table(path).drop_columns(["p_given", "judge"]), path)
    with pytest.raises(DataError, match="is not a valid label file: missing columns: judge, p_given"):
        read_labels(path)
    parquet.write_table(pyarrow.table({"x": [1]}), path)
    with pytest.raises(DataError, match="missing columns: judge, group"):
        read_labels(path)
