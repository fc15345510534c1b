"""An empty response is below every other on every path, alone or in a batch."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pyarrow.parquet as parquet
import pytest
import torch

from dmoerm.evaluation.scoring_files import RowScorer, open_output
from dmoerm.schema import Query
from dmoerm.scores import MIN_REWARD

RESPONSES = ["I am sorry to hear that.", "", "The exam took place.", " \n\t"]
TALK = [{"role": "user", "content": "Hi!"}]


@pytest.fixture
def model(tiny_model: Callable[..., Any]) -> Any:
    """A model whose rewards of real responses are far below the usual range, as an outlier's are."""
    result = tiny_model()
    for calibration in [
        result.general_calibration,
        *(result.task_model(task).calibration for task in result.config.tasks),
    ]:
        calibration.center.fill_(1e5)
    return result


def check(rewards: list[float]) -> None:
    """Rewards of `RESPONSES`."""
    assert rewards[1] == rewards[3] == MIN_REWARD
    assert min(rewards[0], rewards[2]) > MIN_REWARD


def test_in_process_alone_and_in_a_batch(model: Any) -> None:
    scores = model.score("Hi!", RESPONSES)
    check([score.reward for score in scores])
    check([score.reward for score in model.score("Hi!", RESPONSES, batch_tokens=1)])
    (alone,) = model.score("Hi!", [""])
    assert alone.reward == MIN_REWARD
    assert (alone.task, alone.capabilities, alone.uncertainty) == (scores[0].task, {}, None)
    assert alone.route == pytest.approx(scores[0].route, abs=1e-6)
    assert scores[1].capabilities == {}
    queries = [Query(prompt="Hi!", responses=tuple(RESPONSES)), Query(prompt="So?", responses=("",))]
    (_, first), (_, second) = model.score_stream(queries)
    check([score.reward for score in first])
    assert second[0].reward == MIN_REWARD
    assert scores[0].win_probability(scores[1]) == 1.0


def test_it_changes_no_other_score(model: Any) -> None:
    scores, without = model.score("Hi!", RESPONSES), model.score("Hi!", [RESPONSES[0], RESPONSES[2]])
    assert [scores[i].reward for i in (0, 2)] == pytest.approx([score.reward for score in without], abs=1e-4)


def test_forward_and_pipeline(model: Any) -> None:
    texts = [
        model.tokenizer.apply_chat_template([*TALK, {"role": "assistant", "content": text}], tokenize=False)
        for text in RESPONSES
    ]
    inputs = model.tokenizer(texts, return_tensors="pt", padding=True)
    logits = model(input_ids=inputs["input_ids"], attention_mask=inputs["attention_mask"]).logits
    assert logits.dtype == torch.float32
    check(logits[:, 0].tolist())


def test_files_name_another_response_the_best(model: Any, tmp_path: Any) -> None:
    queries = [Query(prompt="Hi!", responses=tuple(RESPONSES)), Query(prompt="Hi!", responses=("", " ", "x"))]
    rows = list(RowScorer(model, best=True).rows(queries))
    check(rows[0]["rewards"])
    assert all(values[1] is None for values in rows[0]["capabilities"].values())
    assert (rows[0]["best"] in (0, 2), rows[1]["best"]) == (True, 2)
    with open_output(str(tmp_path / "rows.parquet"), best=True) as write:
        write(rows)
    assert parquet.read_table(tmp_path / "rows.parquet").to_pylist(maps_as_pydicts="strict") == rows
