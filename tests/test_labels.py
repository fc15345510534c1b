"""Labels: what training takes from two orders, and their file."""

from __future__ import annotations

from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from dmoerm.errors import DataError
from dmoerm.labels import OVERALL, Label, Outcome, content_digest, read_labels, with_judgements, write_labels
from dmoerm.schema import Group, Judgement

GROUP = Group(id="g", task="chitchat", prompt="Hi", responses=("a", "b", "c"), scores=(1, 2, 3))
LABEL = Label("judge", "g", content_digest(GROUP), "chitchat", "empathy", 0, 1)

probabilities = st.none() | st.floats(0, 1)
outcomes = st.sampled_from(list(Outcome))
labels = st.builds(
    Label,
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
        ("first", "first", Judgement(0, 1, 1.0)),
        ("second", "second", Judgement(0, 1, 0.0)),
        ("tie", "tie", Judgement(0, 1, 0.5)),
        ("first", "second", None),
        ("first", "tie", None),
        ("first", "unparseable", None),
        ("refused", "refused", None),
        ("open", "open", None),
    ],
)
def test_hard_labels_are_those_on_which_both_orders_agree(given, swapped, hard) -> None:
    label = replace(LABEL, given=Outcome(given), swapped=Outcome(swapped))
    assert label.judgement() == hard
    assert label.consistent == (hard is not None)


def test_inconsistent_labels_can_count_less() -> None:
    label = replace(LABEL, given=Outcome.FIRST, swapped=Outcome.TIE)
    assert label.judgement(inconsistent_weight=0.25) == Judgement(0, 1, 0.75, 0.25)


def test_soft_labels_are_the_mean_of_both_orders() -> None:
    label = replace(LABEL, given=Outcome.FIRST, swapped=Outcome.SECOND, p_given=0.9, p_swapped=0.4)
    assert label.judgement() == Judgement(0, 1, 0.65)
    assert label.judgement(soft=False) is None
    assert label.judgement(inconsistent_weight=0.5) == Judgement(0, 1, 0.65, 0.5)
    assert replace(label, p_swapped=None).judgement() is None


@given(p=st.floats(0, 1), bias=st.floats(0, 0.4))
def test_a_leaning_to_a_place_cancels_out(p: float, bias: float) -> None:
    """The one shown first gains as much in either order."""
    p = 0.4 + 0.2 * p
    label = replace(LABEL, p_given=p + bias, p_swapped=p - bias)
    assert label.soft == pytest.approx(p)


@given(found=st.lists(labels, max_size=4))
def test_a_file_reads_back_as_written(found, tmp_path_factory) -> None:
    path = tmp_path_factory.mktemp("labels") / "labels.parquet"
    write_labels(path, found)
    assert read_labels(path) == found


def test_what_is_no_label_file_is_said(tmp_path) -> None:
    path = tmp_path / "labels.parquet"
    with pytest.raises(DataError, match="no such label file"):
        read_labels(path)
    path.write_text("{}")
    with pytest.raises(DataError, match="is no label file"):
        read_labels(path)
    write_labels(path, [replace(LABEL, p_given=1.5)])
    with pytest.raises(DataError, match=r"a probability is 1\.5"):
        read_labels(path)


def test_labels_find_their_group_by_id_and_text() -> None:
    good = replace(LABEL, given=Outcome.FIRST, swapped=Outcome.FIRST)
    others = [replace(good, group="h"), replace(good, content="0"), replace(good, capability=OVERALL)]
    (found,) = with_judgements([GROUP], [good, *others])
    assert found.judged == {"empathy": (Judgement(0, 1, 1.0),)}
    assert with_judgements([GROUP], others) == [GROUP]
    (twice,) = with_judgements([GROUP], [good, replace(good, judge="other", given=Outcome.TIE, swapped=Outcome.TIE)])
    assert twice.judged["empathy"] == (Judgement(0, 1, 1.0), Judgement(0, 1, 0.5))
