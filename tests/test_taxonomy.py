from pathlib import Path

import pytest

from dmoerm.errors import DmoermError, TaxonomyError
from dmoerm.schema import Grades, Group
from dmoerm.taxonomy import BUILT_IN, Taxonomy, draft_taxonomy, load_taxonomy

TASK = "{title: T, description: D, capabilities: {logic: {title: L, rubric: R}}}"


def load(tmp_path: Path, text: str) -> Taxonomy:
    path = tmp_path / "mine.yaml"
    path.write_text(text, encoding="utf-8")
    return load_taxonomy(path)


@pytest.mark.parametrize("name", BUILT_IN)
def test_built_in_taxonomies_have_the_papers_tasks(name: str) -> None:
    taxonomy = load_taxonomy(name)
    counts = {task: len(entry.capabilities) for task, entry in taxonomy.tasks.items()}
    assert counts == {"roleplay": 6, "chitchat": 5, "subjective_qa": 5, "objective_qa": 6, "text_creation": 5}
    assert taxonomy.name == name


def test_both_languages_share_their_keys_and_not_their_wording() -> None:
    english, chinese = (load_taxonomy(name).tasks for name in BUILT_IN)
    assert {task: list(entry.capabilities) for task, entry in english.items()} == {
        task: list(entry.capabilities) for task, entry in chinese.items()
    }
    assert chinese["roleplay"].capabilities["character_setting"].title == "人设和情感带入"
    rubrics = [c.rubric for tasks in (english, chinese) for task in tasks.values() for c in task.capabilities.values()]
    assert all(rubric.endswith((".", "。")) for rubric in rubrics)


@pytest.mark.parametrize("name", BUILT_IN)
def test_yaml_reads_back_equal(name: str, tmp_path: Path) -> None:
    taxonomy = load_taxonomy(name)
    assert load(tmp_path, taxonomy.to_yaml()) == taxonomy


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("name: [", "mine.yaml:1: is not valid YAML"),
        ("- a", "must hold name, language and tasks"),
        ("", "must hold name, language and tasks"),
        ("a: 2020-13-45", "is not valid YAML"),
        ("name: mine\nlanguage: en\ntasks: {}", "tasks: .*name at least one"),
        ("name: mine\nlanguage: en", "tasks: .*add the field"),
        (f'name: mine\nlanguage: en\ntasks: {{"a\\tb": {TASK}}}', "a control character"),
        (f"name: mine\nlanguage: en\ntasks: {{{'x' * 101}: {TASK}}}", "has 101 characters; use at most 100"),
        (f"name: mine\nlanguage: en\ntasks:\n  a: {TASK}\n  a: {TASK}", "mine.yaml:5: .*'a' is given twice"),
        (f"name: mine\nlanguage: en\ntasks: {{no: {TASK}}}", "quotes"),
        (f"name: mine\nlanguage: en\ncolour: red\ntasks: {{a: {TASK}}}", "colour.*got 'red'.*remove the field"),
        ("name: mine\nlanguage: en\ntasks: {a: {title: '', description: D, capabilities: {}}}", "write a text"),
        ("&a [*a]", "must hold name"),
        ("[" * 3000, "is not valid YAML"),
    ],
)
def test_an_unusable_file_is_explained(text: str, message: str, tmp_path: Path) -> None:
    with pytest.raises(TaxonomyError, match=message):
        load(tmp_path, text)


def test_a_file_that_cannot_be_read_is_explained(tmp_path: Path) -> None:
    with pytest.raises(TaxonomyError, match=r"the taxonomy does not exist; give a path .* or one of paper-en"):
        load_taxonomy("paper-fr")
    with pytest.raises(DmoermError, match="cannot be read"):
        load_taxonomy(tmp_path)
    (tmp_path / "latin.yaml").write_bytes(b"name: caf\xe9")
    with pytest.raises(TaxonomyError, match="not UTF-8"):
        load_taxonomy(tmp_path / "latin.yaml")


def test_a_draft_has_what_the_data_has(tmp_path: Path) -> None:
    def group(task: str | None, **capabilities: Grades) -> Group:
        return Group(task=task, prompt="p", responses=("a", "b"), scores=(1, 0), capabilities=capabilities)

    drafted = draft_taxonomy(
        [group("chat", warm_tone=(1, 2)), group("chat", **{"no & yes": (1, 2)}), group("Q/A: a"), group(None)], "My own"
    )
    names = {task: list(entry.capabilities) for task, entry in drafted.tasks.items()}
    assert names == {"chat": ["no & yes", "warm_tone"], "Q/A: a": []}
    rubric = drafted.tasks["chat"].capabilities["warm_tone"].rubric
    assert "warm tone" in rubric
    assert "edit" in rubric
    assert load(tmp_path, drafted.to_yaml()) == drafted
