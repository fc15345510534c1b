"""Changed training data: shares of reversed and of left-out labels, and ablations of the data."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from tiny import make_exact_config, tiny_groups, write_groups

from dmoerm.config import Config, changed, load_config
from dmoerm.data.splits import load_splits
from dmoerm.errors import ConfigError
from dmoerm.evaluation.methods import registered
from dmoerm.schema import ordered_pairs
from evidence.conditions import MERGED, condition_run, moved, prepared

GRADES = st.lists(st.one_of(st.none(), st.integers(0, 5).map(float)), min_size=2, max_size=9)


@pytest.fixture
def config(tmp_path: Path) -> Config:
    return make_exact_config(
        "unused", tmp_path, data={"files": [write_groups(tiny_groups(20), tmp_path / "all.jsonl")]}
    )


def changed_data(config: Config, tmp_path: Path, **changes: Any) -> Any:
    return load_splits(prepared(config, changes, tmp_path / "data"))


@given(GRADES, st.floats(0, 0.5), st.text(max_size=4))
def test_grades_stay_the_same_grades_in_another_order(grades: list[float | None], share: float, seed: str) -> None:
    noisy = moved(grades, share, seed)
    assert sorted(map(str, noisy)) == sorted(map(str, grades))
    assert [grade is None for grade in noisy] == [grade is None for grade in grades]
    assert noisy == moved(grades, share, seed)
    assert moved(grades, 0, seed) == tuple(grades)


@pytest.mark.parametrize("responses", [2, 4, 16])
@pytest.mark.parametrize("share", [0.15, 0.25, 0.5])
def test_about_the_share_of_the_pairs_is_reversed(responses: int, share: float) -> None:
    drawn = np.random.default_rng(0)
    reversed_pairs = []
    for i in range(300):
        grades = drawn.permutation(responses).astype(float).tolist()
        noisy = moved(grades, share, f"0/{i}")
        reversed_pairs += [noisy[pair.better] < noisy[pair.worse] for pair in ordered_pairs(grades)]
    assert np.mean(reversed_pairs) == pytest.approx(share, abs=0.06)


def test_noise_changes_the_labels_of_the_training_part_alone(config: Config, tmp_path: Path) -> None:
    before = load_splits(config)
    noisy = changed_data(config, tmp_path, flip_scores=0.3)
    assert [g.id for g in noisy.train] == [g.id for g in before.train]
    assert [g.grades for g in noisy.train] != [g.grades for g in before.train]
    assert [g.capabilities for g in noisy.train] == [g.capabilities for g in before.train]
    assert [g.model_dump() for g in noisy.test] == [g.model_dump() for g in before.test]
    assert noisy.taxonomy.tasks.keys() == before.taxonomy.tasks.keys()


def test_shuffling_is_independent_of_the_noise_before(config: Config, tmp_path: Path) -> None:
    noisy = changed_data(config, tmp_path, flip_capabilities=0.15)
    both = changed_data(config, tmp_path, flip_capabilities=0.15, shuffle_capabilities=0.5)
    right = {group.id: group.capabilities for group in load_splits(config).train}
    shares = []
    for data in (noisy, both):
        pairs = [(g, n, p) for g in data.train for n, grades in right[g.id].items() for p in ordered_pairs(grades)]
        shares.append(np.mean([g.capabilities[n][p.better] < g.capabilities[n][p.worse] for g, n, p in pairs]))
    assert shares == [pytest.approx(0.15, abs=0.08), pytest.approx(0.5, abs=0.12)]


def test_fewer_labels_are_the_same_ones(config: Config, tmp_path: Path) -> None:
    whole, half, tenth = (changed_data(config, tmp_path, overall_fraction=share) for share in (1, 0.5, 0.1))
    kept = [{g.id for g in data.train if g.pairs()} for data in (whole, half, tenth)]
    assert kept[2] < kept[1] < kept[0]
    assert len(kept[1]) == pytest.approx(len(kept[0]) / 2, abs=2)
    assert {g.id for g in tenth.train if g.capabilities} == {g.id for g in whole.train if g.capabilities}
    neither = changed_data(config, tmp_path, overall_fraction=0.3, capability_fraction=0.3)
    assert all(g.pairs() or g.capabilities for g in neither.train)
    assert len(neither.train) < len(whole.train)


def test_fewer_capabilities_and_tasks(config: Config, tmp_path: Path) -> None:
    for count in (0, 1):
        data = changed_data(config, tmp_path, max_capabilities=count)
        assert all(len(task.capabilities) == count for task in data.taxonomy.tasks.values())
    apart, data = load_splits(config), changed_data(config, tmp_path, merge_tasks=True)
    names = {f"{task}_{name}" for task, each in apart.taxonomy.tasks.items() for name in each.capabilities}
    assert {task: set(each.capabilities) for task, each in data.taxonomy.tasks.items()} == {MERGED: names}


def test_a_clean_condition_reads_the_files_as_they_are(config: Config, tmp_path: Path) -> None:
    assert prepared(config, {"flip_scores": 0.0, "router.threshold": 0.4}, tmp_path).data == config.data
    with pytest.raises(ConfigError, match="unknown change 'flip'"):
        prepared(config, {"flip": 0.1}, tmp_path)
    with pytest.raises(ConfigError, match=r"between 0 and 0\.5"):
        prepared(config, {"flip_scores": 0.9}, tmp_path)


def test_without_files_the_data_are_the_testbed(tmp_path: Path) -> None:
    config = load_config(None, [f"output={tmp_path}"])
    data = load_splits(condition_run(config, "clean", {}, 3, prompts=5))
    assert {group.source for group in data.test} == {"testbed"}
    assert all(group.annotators for group in data.train)
    assert not any(group.annotators for group in data.test), "gold labels"


@pytest.mark.parametrize("name", ["no_phase1", "no_phase0"])
def test_a_run_that_reads_no_scores_has_no_ablation_of_scores(name: str) -> None:
    context: Any = SimpleNamespace(run=SimpleNamespace(config=changed(load_config("paper-published"), {})))
    train: Any = registered()[name].train
    assert train(context) is None
