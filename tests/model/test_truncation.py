"""A text that was cut is flagged wherever its score is shown."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pyarrow.parquet as parquet
import pytest

from dmoerm.evaluation.scoring_files import RowScorer, open_output
from dmoerm.schema import Query

LONG = "because " * 60


@pytest.fixture
def model(tiny_model: Callable[..., Any]) -> Any:
    return tiny_model(encoding={"max_length": 60, "truncation": "keep_both"})


@pytest.mark.parametrize("batch_tokens", [1, 8192])
def test_a_cut_response_is_flagged_alone_and_a_cut_prompt_flags_all(model: Any, batch_tokens: int) -> None:
    def flags(prompt: str, *responses: str) -> list[bool]:
        return [score.truncated for score in model.score(prompt, list(responses), batch_tokens=batch_tokens)]

    assert flags("Why?", "No.", LONG, "Yes.") == [False, True, False]
    assert flags(LONG, "No.", "", "Yes.") == [True, True, True]
    assert flags("Why?", "No.", "") == [False, False]


@pytest.mark.parametrize("options", [{}, {"batch_tokens": 1}, {"deterministic": True}])
def test_a_response_that_fits_reads_the_whole_prompt_beside_one_that_does_not(model: Any, options: Any) -> None:
    prompts = ["why " * words for words in range(60, 0, -1)]
    prompt = next(p for p in prompts if not model.encoder.encode(Query(prompt=p, responses=("No.",))).truncated)
    alone = model.score([prompt, prompt], [["No."], [LONG]], **options)
    beside = model.score([prompt, "Hi!"], [["No.", LONG, "No."], ["Yes."]], **options)[0]
    assert [score.truncated for score in beside] == [False, True, False]
    for score, (same,) in zip(beside, [*alone, alone[0]], strict=True):
        assert score.reward == pytest.approx(same.reward, abs=1e-5)
        assert score.capabilities == pytest.approx(same.capabilities, abs=1e-5)


def test_texts_that_differ_in_what_was_cut_tie_and_say_so(model: Any) -> None:
    first, second = model.score("Why?", [LONG + "it rains.", LONG + "it snows."])
    assert first.reward == pytest.approx(second.reward, abs=1e-5)
    assert first.truncated
    assert second.truncated


def test_files_have_the_column(model: Any, tmp_path: Any) -> None:
    (row,) = RowScorer(model).rows([Query(prompt="Why?", responses=("No.", LONG))])
    assert row["truncated"] == [False, True]
    with open_output(str(tmp_path / "rows.parquet")) as write:
        write([row])
    assert parquet.read_table(tmp_path / "rows.parquet").to_pylist()[0]["truncated"] == [False, True]
