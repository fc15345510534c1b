"""The settings that leave labels out."""

from pathlib import Path

import pytest
from tiny import tiny_groups, write_groups

from dmoerm.config import Config, changed, load_config
from dmoerm.data.splits import Splits, load_splits
from dmoerm.schema import Group


@pytest.fixture
def config(tmp_path: Path) -> Config:
    file = write_groups(tiny_groups(20), tmp_path / "groups.jsonl")
    return load_config("frozen", [f"data.files=[{file}]", "seed=3"])


def loaded(config: Config, **settings: float) -> Splits:
    return load_splits(changed(config, {f"data.{name}": value for name, value in settings.items()}))


def overall(groups: list[Group]) -> set[str]:
    return {group.id for group in groups if group.grades is not None}


def graded(groups: list[Group]) -> set[str]:
    return {group.id for group in groups if group.capabilities}


def test_fewer_overall_labels_leave_capability_labels_and_the_test_part_unchanged(config: Config) -> None:
    whole, half, tenth = (loaded(config, overall_fraction=share) for share in (1.0, 0.5, 0.1))
    for fewer in (half, tenth):
        assert fewer.test == whole.test
        assert graded(fewer.train) == graded(whole.train)
    assert overall(tenth.train) < overall(half.train) < overall(whole.train)
    assert len(overall(half.train)) == pytest.approx(len(overall(whole.train)) / 2, abs=2)


def test_fewer_capability_labels_leave_overall_labels_and_the_test_part_unchanged(config: Config) -> None:
    whole, half = (loaded(config, capability_fraction=share) for share in (1.0, 0.5))
    assert half.test == whole.test
    assert overall(half.train) == overall(whole.train)
    assert graded(half.train) < graded(whole.train)


def test_a_group_without_any_label_is_left_out(config: Config) -> None:
    both = loaded(config, overall_fraction=0.3, capability_fraction=0.3)
    assert {group.id for group in both.train} == overall(both.train) | graded(both.train)
    assert len(both.train) < len(loaded(config).train)
