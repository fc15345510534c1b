"""The worst pairs and the parts of the error analysis follow from the rewards."""

import numpy as np
import pytest

from dmoerm.evaluation.error_analysis import MAX_CHARACTERS, agreement_part, error_analysis, length_part, shortened
from dmoerm.evaluation.scored_groups import ScoredGroup
from dmoerm.schema import Group, Pair


def scored(index: int, rewards: tuple[float, ...], texts: tuple[str, ...], temperature: float = 1.0) -> ScoredGroup:
    """Return a group in which people prefer the responses in order."""
    count = len(texts)
    group = Group(id=str(index), task="t", prompt=f"prompt {index}", responses=texts, ranks=tuple(range(1, count + 1)))
    values = np.array(rewards)
    return ScoredGroup(
        group, "t", {"t": 1.0}, "t", temperature, {"dmoerm": values}, {"wit": -values}, uncertainty=np.full(count, 0.5)
    )


def test_the_worst_pair_of_each_prompt_comes_first() -> None:
    groups = [
        scored(0, (2.0, 1.0), ("a", "b")),  # right
        scored(1, (0.0, 1.0), ("a", "b")),
        scored(2, (0.0, 1.0, 3.0), ("a", "b", "c")),
        scored(3, (0.0, 4.0), ("a", "b"), temperature=8.0),
    ]
    worst = error_analysis(groups).worst
    assert [pair.id for pair in worst] == ["2", "1", "3"]
    assert worst[0].probability == pytest.approx(1 / (1 + np.exp(3)))
    assert (worst[0].preferred, worst[0].other) == ("a", "c")
    assert (worst[0].rewards, worst[0].uncertainty) == ((0.0, 3.0), (0.5, 0.5))
    assert worst[0].capabilities == {"wit": (-0.0, -3.0)}


def test_the_parts_by_length_divide_the_pairs() -> None:
    groups = [scored(0, (1.0, 0.0), ("long " * 9, "short")), scored(1, (1.0, 0.0), ("short", "long " * 9))]
    groups.append(scored(2, (0.0, 1.0), ("same size", "same size!")))
    parts = error_analysis(groups).by_length
    assert [(estimate.value, estimate.pairs) for estimate in parts.values()] == [(1, 1), (0, 1), (1, 1)]
    for s in groups:
        mirrored = s.group.model_copy(update={"responses": s.group.responses[::-1]})
        assert {length_part(s.group, Pair(0, 1)), length_part(mirrored, Pair(1, 0))} <= set(parts)
        assert length_part(s.group, Pair(0, 1)) == length_part(mirrored, Pair(1, 0))


@pytest.mark.parametrize(
    ("first", "second", "part"),
    [
        ((3, 3, 3), (1, 2, 1), "all annotators agree"),
        ((3, 3, 1), (1, 2, 3), "at least two thirds agree"),
        ((3, 1), (1, 3), "fewer agree"),
        ((3, None), (1, 3), None),
        ((3, 3), (1,), None),
    ],
)
def test_the_parts_by_agreement(first: tuple, second: tuple, part: str | None) -> None:
    group = Group(prompt="p", responses=("a", "b"), ranks=(1, 2), annotators={"overall": (first, second)})
    assert agreement_part(group, Pair(0, 1)) == part
    assert agreement_part(group.model_copy(update={"annotators": {}}), Pair(0, 1)) is None


def test_long_texts_keep_both_ends() -> None:
    text = "".join(chr(97 + i % 26) for i in range(2 * MAX_CHARACTERS))
    assert len(shortened(text)) <= MAX_CHARACTERS
    assert shortened(text).startswith(text[:50])
    assert shortened(text).endswith(text[-50:])
    assert shortened(text[:MAX_CHARACTERS]) == text[:MAX_CHARACTERS]
