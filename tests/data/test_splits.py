"""The parts of a run's data."""

import random
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from tiny import tiny_groups, write_groups

from dmoerm.config import Config, changed, load_config
from dmoerm.data.splits import content_order, digest, held_out, load_splits, take
from dmoerm.errors import ConfigError, DataError
from dmoerm.names import ONE_TASK
from dmoerm.schema import Group, prompt_key
from dmoerm.taxonomy import Taxonomy, draft_taxonomy


@pytest.fixture
def config(tmp_path: Path) -> Config:
    file = write_groups(tiny_groups(20), tmp_path / "groups.jsonl")
    return load_config("frozen", [f"data.files=[{file}]", "seed=3"])


def test_files_for_the_test_part(config: Config, tmp_path: Path) -> None:
    whole = load_splits(config)
    groups = [*whole.train, *whole.test]
    apart = changed(config, {"data.test_files": [write_groups(groups[:6], tmp_path / "test.jsonl")]})
    data = load_splits(apart)
    assert [group.id for group in data.test] == [group.id for group in groups[:6]]
    tested = {group.prompt for group in data.test}
    assert {group.id for group in data.train} == {group.id for group in groups if group.prompt not in tested}
    assert data.skipped["prompt of data.test_files"] == len(groups) - len(data.train) > 0
    limited = load_splits(changed(apart, {"data.groups_per_task": 4}))
    assert (len(limited.train), limited.test) == (8, data.test), "the limit is on the training part"
    with pytest.raises(ConfigError, match=r"data.test_fraction has no effect while data.test_files"):
        changed(apart, {"data.test_fraction": 0.5})


def test_invalid_test_files(config: Config, tmp_path: Path) -> None:
    other = [group.model_copy(update={"task": "other"}) for group in tiny_groups(2)]
    named = changed(config, {"data.test_files": [write_groups(other, tmp_path / "test.jsonl")]})
    with pytest.raises(DataError, match=r"no row of data\.files has this task"):
        load_splits(named)
    with pytest.raises(DataError, match=r"missing\.jsonl"):
        load_splits(changed(config, {"data.test_files": ["missing.jsonl"]}))


def test_files_for_validation(config: Config, tmp_path: Path) -> None:
    whole = load_splits(config)
    groups = [*whole.train, *whole.test]
    named = {"data.validation_files": [write_groups(groups[:6], tmp_path / "validation.jsonl")]}
    data = load_splits(changed(config, named))
    validation = [group for group in data.train if prompt_key(group.prompt) in data.validation_prompts]
    assert [group.id for group in validation] == [group.id for group in groups[:6]]
    assert not {prompt_key(group.prompt) for group in data.test} & data.validation_prompts
    assert len(data.train) + len(data.test) == len(groups) - data.skipped["prompt of data.validation_files"] + 6
    tested = load_splits(changed(config, named | {"data.test_files": named["data.validation_files"]}))
    assert (len(tested.test), tested.validation_prompts) == (6, frozenset()), "the test part goes first"


def test_bad_rows_of_a_run_are_left_out_and_reported(config: Config, tmp_path: Path) -> None:
    (file,) = config.data.files
    with Path(file).open("a") as rows:
        rows.write('{"prompt": 3, "responses": ["a", "b"], "scores": [1, 0]}\n' * 12)
    with pytest.raises(DataError, match=r"groups\.jsonl:41: prompt"):
        load_splits(config)
    skipped = load_splits(changed(config, {"data.skip_bad": True})).skipped
    assert sum(skipped.values()) == 12
    assert skipped[f"further bad rows of {file}"] == 2
    assert any("groups.jsonl:41: prompt" in reason for reason in skipped)


def test_the_columns_of_a_run_may_have_other_names(config: Config) -> None:
    (file,) = config.data.files
    text = Path(file).read_text(encoding="utf-8")
    Path(file).write_text(text.replace('"prompt":', '"question":'), encoding="utf-8")
    mapped = load_splits(changed(config, {"data.map": {"prompt": "question"}}))
    assert len(mapped.train) + len(mapped.test) == len(text.splitlines())
    with pytest.raises(ConfigError, match=r"data\.map: no format has the field 'promt'; did you mean prompt"):
        load_splits(changed(config, {"data.map": {"promt": "question"}}))


# --- tasks and capabilities that the data do not label --------------------------------------------------------------


def rewritten(config: Config, groups: list[Group], tmp_path: Path, taxonomy: Taxonomy | None = None) -> Config:
    """Return the config with these groups in place of its file, and with the taxonomy."""
    write_groups(groups, Path(config.data.files[0]))
    if taxonomy is None:
        return config
    (tmp_path / "taxonomy.yaml").write_text(taxonomy.to_yaml())
    return changed(config, {"taxonomy": str(tmp_path / "taxonomy.yaml")})


def graded_by(task: str | None, **names: str) -> list[Group]:
    """Return groups of a task that grade the capability `logic`, and others as `names` says: tied or ordered."""
    grades = {"tied": (1.0, 1.0, 1.0), "ordered": (1.0, 2.0, 3.0)}
    capabilities = {name: grades[how] for name, how in {"logic": "ordered", **names}.items()}
    return [group.model_copy(update={"task": task, "capabilities": capabilities}) for group in tiny_groups(20)]


def test_rows_without_tasks_have_one_task_with_their_capabilities(config: Config, tmp_path: Path) -> None:
    free = graded_by(None)
    files = {
        "data.test_files": [write_groups(free[:3], tmp_path / "test.jsonl")],
        "data.validation_files": [write_groups(free[3:6], tmp_path / "validation.jsonl")],
    }
    data = load_splits(changed(rewritten(config, free, tmp_path), files))
    assert {group.task for group in (*data.train, *data.test)} == {ONE_TASK}
    assert list(data.taxonomy.tasks[ONE_TASK].capabilities) == ["logic"]
    assert data.notes == (f"no row names a task: all have the task '{ONE_TASK}'; set data.task to choose another name",)


def test_rows_without_tasks_have_the_only_task_of_a_taxonomy(config: Config, tmp_path: Path) -> None:
    data = load_splits(rewritten(config, graded_by(None), tmp_path, draft_taxonomy(graded_by("advice"), "mine")))
    assert {group.task for group in (*data.train, *data.test)} == {"advice"}
    assert "all have the task 'advice'" in data.notes[0]


@pytest.mark.parametrize("case", ["some rows have a task", "several tasks", "the tasks of a model"])
def test_the_router_decides_for_rows_without_tasks(config: Config, tmp_path: Path, case: str) -> None:
    named = graded_by("advice")[:10] if case == "some rows have a task" else []
    taxonomy = draft_taxonomy([*graded_by("a"), *graded_by("b")], "mine") if case == "several tasks" else None
    tasks = {"advice": ["logic"]} if case == "the tasks of a model" else None
    free = graded_by(None)[len(named) :]
    data = load_splits(rewritten(config, [*named, *free], tmp_path, taxonomy), tasks)
    assert sum(group.task is None for group in (*data.train, *data.test)) == len(free)
    assert data.notes == ()


@pytest.mark.parametrize("listed", ["the taxonomy lists it", "the taxonomy lacks it", "a taxonomy is drafted"])
def test_a_capability_without_an_ordered_pair_is_left_out_and_named(
    config: Config, tmp_path: Path, listed: str
) -> None:
    rows = graded_by("advice", grammar="tied", wit="tied")
    names = {} if listed == "the taxonomy lacks it" else {"grammar": "tied", "wit": "tied"}
    taxonomy = None if listed == "a taxonomy is drafted" else draft_taxonomy(graded_by("advice", **names), "mine")
    data = load_splits(rewritten(config, rows, tmp_path, taxonomy))
    assert list(data.taxonomy.tasks["advice"].capabilities) == ["logic"]
    assert all(list(group.capabilities) == ["logic"] for group in (*data.train, *data.test))
    (note,) = data.notes
    assert "no pair of task 'advice' by grammar, wit; no expert" in note


def test_tasks_of_a_single_prompt_are_named(config: Config, tmp_path: Path) -> None:
    groups = [
        group.model_copy(update={"task": f"id-{i}" if i < 5 else "advice"}) for i, group in enumerate(tiny_groups(20))
    ]
    data = load_splits(changed(rewritten(config, groups, tmp_path), {"data.test_fraction": 0}))
    (note,) = [note for note in data.notes if "single" in note]
    assert note.startswith("warning: id-0, id-1, id-2 and 2 more: a single training prompt each")


def test_a_capability_of_the_held_out_part_alone_is_left_out_and_named(config: Config, tmp_path: Path) -> None:
    held_out = [
        group.model_copy(update={"prompt": f"{group.prompt} Again?"}) for group in graded_by("advice", wit="ordered")
    ]
    files = {"data.test_files": [write_groups(held_out, tmp_path / "test.jsonl")]}
    data = load_splits(changed(rewritten(config, graded_by("advice"), tmp_path), files))
    assert all(list(group.capabilities) == ["logic"] for group in (*data.train, *data.test))
    assert "no pair of task 'advice' by wit" in data.notes[0]
    write_groups([group.model_copy(update={"task": "other"}) for group in held_out], tmp_path / "test.jsonl")
    with pytest.raises(DataError, match=r"no row of data\.files has this task"):
        load_splits(changed(config, files))


def test_a_capability_with_an_ordered_pair_must_be_in_the_taxonomy(config: Config, tmp_path: Path) -> None:
    taxonomy = draft_taxonomy(graded_by("advice"), "mine")
    with pytest.raises(DataError, match=r"no such capability \(got 'grammar'\); add it to the taxonomy"):
        load_splits(rewritten(config, graded_by("advice", grammar="ordered"), tmp_path, taxonomy))


def test_a_capability_that_rows_without_tasks_order_is_kept(config: Config, tmp_path: Path) -> None:
    """The router may assign such rows to the task."""
    rows = [*graded_by("advice", grammar="tied")[:20], *graded_by(None, grammar="ordered")[20:]]
    data = load_splits(rewritten(config, rows, tmp_path))
    assert set(data.taxonomy.tasks["advice"].capabilities) == {"logic", "grammar"}
    assert data.notes == ()


# --- choices by prompt ---------------------------------------------------------------------------------------------


def group(task: str | None, prompt: str, answer: str = "a") -> Group:
    return Group(task=task, prompt=prompt, responses=(answer, "other"), scores=(1, 0))


GROUPS = st.lists(
    st.builds(group, st.sampled_from(["chat", "qa", None]), st.integers(0, 12).map(str), st.sampled_from("abc")),
    max_size=40,
)
FRACTIONS = st.floats(0.01, 0.99)


def prompts(groups: list[Group]) -> set[str]:
    return {prompt_key(member.prompt) for member in groups}


def take_groups(groups: list[Group], per_task: int) -> list[Group]:
    """The groups that a run with `data.groups_per_task` keeps."""
    members = [(group.task or "", digest(0, prompt_key(group.prompt))) for group in groups]
    return [groups[index] for index in take(members, per_task, lambda index: content_order(groups[index], 0))]


def split_by_prompt(groups: list[Group], fraction: float, seed: int = 0) -> tuple[list[Group], list[Group]]:
    """Split the groups into (rest, held out), both in their order."""
    parts: tuple[list[Group], list[Group]] = [], []
    for member, held in zip(groups, held_out(groups, fraction, seed), strict=True):
        parts[held].append(member)
    return parts


def many(count: int = 200, task: str = "chat") -> list[Group]:
    return [group(task, f"prompt {index}") for index in range(count)]


@given(GROUPS, FRACTIONS, st.integers(0, 3))
def test_a_prompt_is_on_one_side_and_no_group_is_lost(groups: list[Group], fraction: float, seed: int) -> None:
    rest, held = split_by_prompt(groups, fraction, seed)
    assert not prompts(rest) & prompts(held)
    assert len(rest) + len(held) == len(groups)


@given(st.lists(st.integers(0, 30), min_size=2, unique=True), FRACTIONS)
def test_both_sides_have_membersof_every_task(numbers: list[int], fraction: float) -> None:
    groups = [group(task, f"{task} {number}") for number in numbers for task in ("chat", "qa")]
    for side in split_by_prompt(groups, fraction):
        assert {member.task for member in side} == {"chat", "qa"}


def test_tasks_that_share_membershave_both_sides_too() -> None:
    for seed in range(20):
        groups = [group("large", str(number)) for number in range(10)] + [group("small", "3"), group("small", "5")]
        for side in split_by_prompt(groups, 0.2, seed):
            assert {member.task for member in side} == {"large", "small"}


@given(GROUPS, FRACTIONS, st.randoms())
def test_the_order_of_rows_does_not_matter(groups: list[Group], fraction: float, chance: random.Random) -> None:
    shuffled = groups.copy()
    chance.shuffle(shuffled)
    assert prompts(split_by_prompt(groups, fraction)[1]) == prompts(split_by_prompt(shuffled, fraction)[1])
    taken, taken_shuffled = take_groups(groups, 5), take_groups(shuffled, 5)
    assert sorted(map(str, taken)) == sorted(map(str, taken_shuffled))


def test_the_ends_and_a_single_prompt() -> None:
    groups = many(3)
    assert split_by_prompt(groups, 0) == (groups, [])
    assert split_by_prompt(groups, 1) == ([], groups)
    assert split_by_prompt(groups[:1], 0.9) == (groups[:1], [])
    with pytest.raises(ConfigError, match="fraction must be between 0 and 1"):
        split_by_prompt(groups, 20)


@given(GROUPS, st.integers(0, 10))
def test_taking_groups_keeps_as_many_membersas_possible(groups: list[Group], per_task: int) -> None:
    taken = take_groups(groups, per_task)
    for task in ("chat", "qa", None):
        members = [member for member in groups if member.task == task]
        kept = [member for member in taken if member.task == task]
        assert len(kept) == min(per_task, len(members))
        assert len(prompts(kept)) == min(per_task, len(prompts(members)))


@given(GROUPS, st.integers(0, 10))
def test_taking_more_keeps_what_was_taken(groups: list[Group], per_task: int) -> None:
    assert set(map(str, take_groups(groups, per_task))) <= set(map(str, take_groups(groups, per_task + 3)))
