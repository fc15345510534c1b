import pytest

from dmoerm.data.overall import overall_from_capabilities
from dmoerm.schema import Grades, Group


def group(task: str, scores: tuple[float, ...] | None = None, **capabilities: Grades) -> Group:
    return Group(task=task, prompt="p", responses=("a", "b"), scores=scores, capabilities=capabilities)


def test_scores_are_the_mean_of_standardised_grades() -> None:
    (made,) = overall_from_capabilities([group("chat", logic=(1, 3), warmth=(100, 0))])
    assert made.scores == pytest.approx((0, 0))
    assert made.scores_derived


def test_grades_are_standardised_per_task() -> None:
    first, second = overall_from_capabilities([group("chat", logic=(1, 3)), group("qa", logic=(10, 30))])
    assert first.scores == second.scores == pytest.approx((-1, 1))


def test_missing_grades_are_skipped_and_constant_ones_count_nothing() -> None:
    (made,) = overall_from_capabilities([group("chat", logic=(1, 3), warmth=(None, 2), tone=(4, 4))])
    assert made.scores == pytest.approx((-0.5, 1 / 3))


def test_the_scale_may_come_from_other_groups() -> None:
    others = [group("chat", logic=(0, 2))]
    (made,) = overall_from_capabilities([group("chat", logic=(1, 3))], scales_of=others)
    assert made.scores == pytest.approx((0, 2))


def test_what_people_said_is_not_touched() -> None:
    given = group("chat", scores=(1, 2), logic=(2, 1))
    ungraded = group("chat", logic=(2, None))
    assert overall_from_capabilities([given, ungraded]) == [given, ungraded]
    assert overall_from_capabilities([]) == []
