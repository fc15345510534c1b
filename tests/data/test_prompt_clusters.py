"""Prompts of different kinds fall into clusters that are named by their words; prompts of one kind do not."""

import random
from collections import Counter

import pytest

from dmoerm.data.prompt_clusters import cluster_prompts
from dmoerm.names import ONE_TASK

WORDS = {
    "python": "python function list code return loop class import module error string integer array debug",
    "recipe": "recipe oven flour sugar butter bake minutes cake onion soup salt pepper chicken dinner",
    "travel": "flight hotel beach museum train ticket passport island weekend tour city airport luggage",
}
KINDS = {name: words.split() for name, words in WORDS.items()}
FILLER = [f"word{chr(97 + i // 26)}{chr(97 + i % 26)}" for i in range(120)]


def prompts(kinds: list[str], each: int, seed: int = 0) -> tuple[list[str], list[str]]:
    source = random.Random(seed)
    texts, names = [], []
    for kind in kinds:
        for _ in range(each):
            words = source.choices(KINDS[kind], k=6) + source.choices(FILLER, k=3)
            texts.append(" ".join(source.sample(words, len(words))))
            names.append(kind)
    return texts, names


@pytest.mark.parametrize("count", [None, 3])
def test_kinds_of_prompts_become_clusters_named_by_their_words(count: int | None) -> None:
    texts, kinds = prompts(list(KINDS), 60)
    labels = cluster_prompts(texts, min_size=10, count=count)
    pairs = Counter(zip(labels, kinds, strict=True))
    majority = {label: max(KINDS, key=lambda kind: pairs[label, kind]) for label in set(labels)}
    assert sorted(majority.values()) == sorted(KINDS)
    assert sum(majority[label] == kind for label, kind in zip(labels, kinds, strict=True)) > 0.95 * len(texts)
    for label, kind in majority.items():
        assert set(label.split("_")) <= set(KINDS[kind])


def test_prompts_of_one_kind_stay_together() -> None:
    source = random.Random(1)
    texts = [" ".join(source.choices(FILLER, k=12)) for _ in range(200)]
    assert set(cluster_prompts(texts, min_size=10)) == {ONE_TASK}
    assert set(cluster_prompts(texts[:5], min_size=10)) == {ONE_TASK}


def test_a_cluster_has_at_least_the_least_size() -> None:
    texts, _ = prompts(list(KINDS), 40)
    labels = cluster_prompts([*texts, *prompts(["travel"], 3, seed=5)[0]], min_size=30)
    assert min(labels.count(label) for label in set(labels)) >= 30
