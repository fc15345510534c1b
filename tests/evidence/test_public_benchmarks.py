"""Public benchmarks' arithmetic, worked by hand."""

from __future__ import annotations

import math

import pytest

from dmoerm.errors import DataError
from dmoerm.schema import Group
from evidence.public_benchmarks import SECTIONS, rewardbench, rewardbench2, rm_bench, ties_score


def group(task: str, right: int, wrong: int, name: str = "") -> Group:
    count = right + wrong
    texts = tuple(f"text {i}" for i in range(count))
    return Group(id=name, task=task, prompt="p", responses=texts, ranks=(1,) * right + (2,) * wrong)


def test_the_subsets_of_rewardbench_are_all_there() -> None:
    counts = [weight for subsets in SECTIONS.values() for weight in subsets.values()]
    assert len(counts) == 23
    assert sum(counts) - 984 + 447 == 2985  # the number of prompts that it has


def test_rewardbench_weighs_subsets_by_their_published_counts() -> None:
    """Chat: 1 of 2 right in alpacaeval-easy (100), 1 of 1 in mt-bench-med (40); Reasoning: a tie is wrong."""
    easy, med, prm = group("alpacaeval-easy", 1, 1), group("mt-bench-med", 1, 1), group("math-prm", 1, 1)
    python = group("hep-python", 1, 1)
    found = rewardbench([(easy, (2, 1)), (easy, (1, 2)), (med, (5, -5)), (prm, (1, 1)), (python, (1, 0))])
    assert found.subsets["alpacaeval_easy"] == (0.5, 2)
    assert found.sections["Chat"] == pytest.approx((0.5 * 100 + 1 * 40) / 140)
    assert found.sections["Reasoning"] == pytest.approx(164 / (984 + 164))
    assert found.overall == pytest.approx((found.sections["Chat"] + found.sections["Reasoning"]) / 2)


def test_rewardbench2_takes_the_best_of_four() -> None:
    """Right; wrong; the right one shares the highest reward with another: a half."""
    four = group("Focus", 1, 3)
    found = rewardbench2([(four, (4, 1, 2, 3)), (four, (1, 4, 2, 3)), (four, (4, 4, 2, 3)), (four, (4, 4, 5, 5))])
    assert found.subsets == {"focus": ((1 + 0 + 0.5 + 0) / 4, 4)}
    assert found.overall == 1.5 / 4


def test_ties_by_hand() -> None:
    """Two prompts. 1: tied right by 3 with a spread of 1, ref by 2. 2: tied wrong by 1 with a spread of 2, ref by 1."""
    rows = [
        (group("Ties", 2, 1, "tied:1"), (5, 4, 1)),
        (group("Ties", 1, 1, "ref:1"), (3, 1)),
        (group("Ties", 2, 2, "tied:2"), (4, 2, 3, 0)),
        (group("Ties", 1, 2, "ref:2"), (2, 1, 0)),
    ]
    accuracy = 0.3 * 1 / 2 + 0.3 * 2 / 2
    margins = 0.2 * 1 / 2 + 0.2 * 1 / 2  # 3 > 1, not −1 > 2; min(3, 2) > 1, not min(−1, 1) > 2
    term = 0.01 * (math.tanh(2 / 1 - 1) + math.tanh(-1 / 2 - 1)) / 2
    assert ties_score(rows) == pytest.approx(accuracy + margins + term)
    both = rewardbench2([*rows, (group("Math", 1, 3), (1, 0, 0, 0))])
    assert both.overall == pytest.approx((ties_score(rows) + 1) / 2)


def test_right_answers_of_equal_reward_have_no_spread() -> None:
    rows = [(group("Ties", 2, 1, "tied:1"), (5, 5, 1)), (group("Ties", 1, 1, "ref:1"), (3, 1))]
    assert ties_score(rows) == pytest.approx(0.3 + 0.3 + 0.2 + 0.2 + 0.01)


def test_rm_bench_by_hand() -> None:
    """Chosen 1, 2, 3 against rejected 0, 2.5, 4 (plain to elaborate), and a domain in which all is right."""
    chat, math_ = group("chat", 3, 3), group("math", 3, 3)
    found = rm_bench([(chat, (1, 2, 3, 0, 2.5, 4)), (math_, (9, 9, 9, 0, 0, 0))])
    # rows chosen, columns rejected: [1 0 0], [1 0 0], [1 1 0]
    hard, normal, easy = 0 / 3, 1 / 3, 3 / 3
    assert found.subsets["chat"] == (pytest.approx((hard + normal + easy) / 3), 1)
    assert found.sections == pytest.approx({"hard": (hard + 1) / 2, "normal": (normal + 1) / 2, "easy": 1})
    assert found.overall == pytest.approx(((hard + normal + easy) / 3 + 1) / 2)


@pytest.mark.parametrize(
    ("measure", "rows", "message"),
    [
        (rewardbench, [(group("unknown", 1, 1), (1, 2))], "RewardBench subset"),
        (
            rewardbench,
            [(Group(task="x", prompt="p", responses=("a", "b"), scores=(1, 1)), (1, 2))],
            "chosen and rejected",
        ),
        (rewardbench2, [], "no group"),
        (rm_bench, [(group("chat", 1, 3), (1, 2, 3, 4))], "three chosen"),
        (ties_score, [(group("Ties", 1, 1, "7"), (1, 2))], "neither ref:NUMBER"),
        (ties_score, [(group("Ties", 1, 1, "ref:7"), (1, 2))], "no tied prompt"),
    ],
)
def test_other_data_are_refused(measure, rows, message) -> None:
    with pytest.raises(DataError, match=message):
        measure(rows)
