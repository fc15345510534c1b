from collections.abc import Callable, Sequence
from pathlib import Path

import pytest

from dmoerm.data.statistics import NO_TASK, data_statistics

Write = Callable[..., Path]
ROW = {"task": "chat", "prompt": "How are you", "responses": ["fine", "bad day", "so so"], "scores": [2, 1, 1]}


class Letters:
    """A tokenizer whose tokens are letters."""

    def encode(self, text: str, *, add_special_tokens: bool = True) -> Sequence[int]:
        return [*map(ord, text), *([0] if add_special_tokens else [])]


def test_counts(write_rows: Write) -> None:
    other = {"prompt": "Why", "responses": ["a", "b"], "capabilities": {"logic": [1, None]}}
    result = data_statistics([write_rows([ROW, ROW, other])])
    counts = {"groups": 2, "prompts": 1, "responses": 6, "pairs": 4, "tied_pairs": 2}
    assert result["tasks"]["chat"] == counts | {"tie_share": pytest.approx(1 / 3)}
    assert result["tasks"][NO_TASK]["tie_share"] is None
    assert result["capabilities"][NO_TASK]["logic"] == {"groups": 1, "pairs": 0, "tied_pairs": 0, "tie_share": None}
    assert result["sources"][0]["rows"] == 3


def test_lengths_in_words_and_tokens(write_rows: Write) -> None:
    path = write_rows([ROW, {"task": "zh", "prompt": "你好 world", "responses": ["好", "不好"], "scores": [1, 0]}])
    words = data_statistics([path])["lengths"]
    assert words["unit"] == "words"
    assert words["tasks"]["chat"] == {
        part: dict.fromkeys(("p50", "p95", "max"), n) for part, n in (("prompt", 3), ("response", 2))
    }
    assert words["tasks"]["zh"]["prompt"]["max"] == 3
    tokens = data_statistics([path], Letters())["lengths"]
    assert (tokens["unit"], tokens["tasks"]["chat"]["prompt"]["max"]) == ("tokens", 11)


def test_agreement_is_exact_over_pairs_of_annotators(write_rows: Write) -> None:
    people = {"overall": [[1, 1, 0, 1, None], [0, 0, 1, 1, 1]], "logic": [[1, 1], [1, 0]]}
    row = {"prompt": "p", "responses": ["a", "b"], "scores": [1, 0], "annotators": people}
    result = data_statistics([write_rows([row])])["agreement"][NO_TASK]
    assert result == {"overall": {"value": pytest.approx(1 / 3), "pairs": 1, "comparisons": 3, "unaligned_pairs": 0}}


def test_annotators_of_different_number_cannot_be_compared(write_rows: Write) -> None:
    row = {"prompt": "p", "responses": ["a", "b", "c"], "scores": [2, 1, 0]}
    people = {"overall": [[3, 3], [2, 2], [1]]}
    result = data_statistics([write_rows([row | {"annotators": people}])])["agreement"][NO_TASK]["overall"]
    assert result == {"value": 1.0, "pairs": 1, "comparisons": 1, "unaligned_pairs": 2}


def test_repetitions(write_rows: Write) -> None:
    rows = [ROW, ROW | {"responses": ROW["responses"][::-1]}, ROW | {"task": "qa", "responses": ["x", "y", "z"]}]
    assert data_statistics([write_rows(rows)])["duplicates"] == {
        "repeated_prompts": 1,
        "groups_on_them": 3,
        "repeated_groups": 1,
        "prompts_in_several_tasks": 1,
    }


def test_every_fault_is_listed(write_rows: Write, tmp_path: Path) -> None:
    path = write_rows([ROW | {"scores": [1]}, ROW, {"prompt": "p"}, {"chosen": "a", "rejected": "a", "prompt": "p"}])
    result = data_statistics([path, tmp_path / "none.jsonl"])
    assert [(bad["file"], bad["line"]) for bad in result["bad"]] == [
        *((str(path), 1), (str(path), 3), (str(path), 4)),
        (str(tmp_path / "none.jsonl"), None),
    ]
    assert all(bad["message"] and bad["hint"] for bad in result["bad"])


def test_pairs_of_identical_responses_are_counted_apart(write_rows: Write) -> None:
    row = {"task": "chat", "prompt": "p", "responses": ["a", "a", "b"], "scores": [3, 1, 2]}
    result = data_statistics([write_rows([row | {"capabilities": {"logic": [1, 2, None]}}])])
    assert result["tasks"]["chat"]["pairs"] == 2
    assert result["capabilities"]["chat"]["logic"]["pairs"] == 0
    assert result["sources"][0]["skipped"] == {"pair: identical responses with different grades": 2}
