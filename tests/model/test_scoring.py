"""Empty and cut responses, weights of capabilities and the deterministic mode: the same on every path."""

from __future__ import annotations

import json
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import httpx2
import pyarrow.parquet as parquet
import pytest
import torch
from running import served
from tiny import make_model, make_tiny_config, tiny_groups
from typer.testing import CliRunner

from dmoerm.cli import app
from dmoerm.errors import DataError
from dmoerm.evaluation.scoring_files import RowScorer, open_output
from dmoerm.schema import Query
from dmoerm.scores import MIN_REWARD, Score
from dmoerm.serving import ServingConfig, create_app

PROMPTS = ["How are you?", "I failed my exam.", "Tell me a long story about a fox and a hen. " * 3, "你好吗？🙂"]
RESPONSES = [
    ["Fine, and you?", "No.", "x " * 40],
    ["Oh no, I am so sorry!", "", " \n\t"],
    ["Once."],
    ["很好！", "x " * 60],
]
QUERIES = [Query(prompt=prompt, responses=tuple(row)) for prompt, row in zip(PROMPTS, RESPONSES, strict=True)]
LONG = "because " * 60


@pytest.fixture
def model(tiny_model: Callable[..., Any]) -> Any:
    return tiny_model()


def rewards(scores: Any) -> list[list[float]]:
    return [[score.reward for score in row] for row in scores]


def written(rows: list[Any], folder: Path) -> list[Any]:
    """Return rows as a Parquet file gives them back."""
    with open_output(str(folder / "rows.parquet"), best="best" in rows[0]) as write:
        write(rows)
    return parquet.read_table(folder / "rows.parquet").to_pylist(maps_as_pydicts="strict")


# --- empty responses are below every other ---------------------------------------------------------------------------

EMPTY_AT_1_AND_3 = ["I am sorry to hear that.", "", "The exam took place.", " \n\t"]


@pytest.fixture
def outlier(model: Any) -> Any:
    """A model whose rewards of real responses are far below the usual range."""
    for part in [model.general_calibration, *(model.task_model(task).calibration for task in model.config.tasks)]:
        part.center.fill_(1e5)
    return model


def check(rewards: list[float]) -> None:
    assert rewards[1] == rewards[3] == MIN_REWARD
    assert min(rewards[0], rewards[2]) > MIN_REWARD


def test_empty_responses_alone_in_a_batch_and_in_a_stream(outlier: Any) -> None:
    scores, (alone,) = outlier.score("Hi!", EMPTY_AT_1_AND_3), outlier.score("Hi!", [""])
    queries = [Query(prompt="Hi!", responses=tuple(EMPTY_AT_1_AND_3)), Query(prompt="So?", responses=("",))]
    (_, first), (_, second) = outlier.score_stream(queries)
    for same in (scores, first, outlier.score("Hi!", EMPTY_AT_1_AND_3, batch_tokens=1)):
        check([score.reward for score in same])
    assert alone.reward == second[0].reward == MIN_REWARD
    assert (alone.task, alone.capabilities, alone.uncertainty) == (scores[0].task, {}, None)
    assert alone.route == pytest.approx(scores[0].route, abs=1e-6)
    assert scores[1].capabilities == {}
    without = outlier.score("Hi!", EMPTY_AT_1_AND_3[::2])
    assert [score.reward for score in scores[::2]] == pytest.approx([score.reward for score in without], abs=1e-4)


def test_logits_of_empty_responses(outlier: Any) -> None:
    talks = [[{"role": "user", "content": "Hi!"}, {"role": "assistant", "content": text}] for text in EMPTY_AT_1_AND_3]
    texts = [outlier.tokenizer.apply_chat_template(talk, tokenize=False) for talk in talks]
    logits = outlier(**outlier.tokenizer(texts, return_tensors="pt", padding=True)).logits
    assert logits.dtype == torch.float32
    check(logits[:, 0].tolist())


def test_files_name_another_response_the_best(outlier: Any, tmp_path: Path) -> None:
    queries = [Query(prompt="Hi!", responses=tuple(EMPTY_AT_1_AND_3)), Query(prompt="Hi!", responses=("", " ", "x"))]
    rows = list(RowScorer(outlier, best=True).rows(queries))
    check(rows[0]["rewards"])
    assert all(values[1] is None for values in rows[0]["capabilities"].values())
    assert (rows[0]["best"] in (0, 2), rows[1]["best"]) == (True, 2)
    assert written(rows, tmp_path) == rows


# --- a text that was cut is flagged ----------------------------------------------------------------------------------


@pytest.fixture
def short(tiny_model: Callable[..., Any]) -> Any:
    return tiny_model(encoding={"max_length": 60, "truncation": "keep_both"})


@pytest.mark.parametrize("batch_tokens", [1, 8192])
def test_a_cut_response_is_flagged_alone_and_a_cut_prompt_flags_all(short: Any, batch_tokens: int) -> None:
    def flags(prompt: str, *responses: str) -> list[bool]:
        return [score.truncated for score in short.score(prompt, list(responses), batch_tokens=batch_tokens)]

    assert flags("Why?", "No.", LONG, "Yes.") == [False, True, False]
    assert flags(LONG, "No.", "", "Yes.") == [True, True, True]
    assert flags("Why?", "No.", "") == [False, False]


@pytest.mark.parametrize("options", [{}, {"batch_tokens": 1}, {"deterministic": True}])
def test_a_response_that_fits_reads_the_whole_prompt_beside_one_that_does_not(short: Any, options: Any) -> None:
    prompts = ["why " * words for words in range(60, 0, -1)]
    prompt = next(p for p in prompts if not short.encoder.encode(Query(prompt=p, responses=("No.",))).truncated_at)
    alone = short.score([prompt, prompt], [["No."], [LONG]], **options)
    beside = short.score([prompt, "Hi!"], [["No.", LONG, "No."], ["Yes."]], **options)[0]
    assert [score.truncated for score in beside] == [False, True, False]
    for score, (same,) in zip(beside, [*alone, alone[0]], strict=True):
        assert score.reward == pytest.approx(same.reward, abs=1e-5)
        assert score.capabilities == pytest.approx(same.capabilities, abs=1e-5)


def test_files_flag_texts_that_differ_in_what_was_cut(short: Any, tmp_path: Path) -> None:
    texts = ("No.", LONG + "it rains.", LONG + "it snows.")
    (row,) = RowScorer(short).rows([Query(prompt="Why?", responses=texts)])
    assert row["rewards"][1] == pytest.approx(row["rewards"][2], abs=1e-5)
    assert written([row], tmp_path)[0]["truncated"] == [False, True, True]


# --- weights of capabilities -----------------------------------------------------------------------------------------

WEIGHTS = {"empathy": 3.0, "logic": -2.0, "proactivity": 1.0}


def by_hand(score: Score, weights: dict[str, float]) -> float:
    """The formula of the docs, for rewards within ±10."""
    names = score.capabilities
    return score.reward + sum((weights.get(name, 1) - 1) * names[name] for name in names) / max(len(names), 1)


@pytest.mark.parametrize("deterministic", [False, True])
def test_weights_change_the_rewards_alone_on_every_path(model: Any, deterministic: bool) -> None:
    plain = model.score(PROMPTS, RESPONSES, deterministic=deterministic)
    together = model.score(PROMPTS, RESPONSES, deterministic=deterministic, weights=WEIGHTS)
    assert rewards(together) != rewards(plain)
    streamed = [row for _, row in model.score_stream(QUERIES, deterministic=deterministic, weights=WEIGHTS)]
    for i, row in enumerate(plain):
        alone = model.score(PROMPTS[i], RESPONSES[i], deterministic=deterministic, weights=WEIGHTS)
        small = model.score(PROMPTS[i], RESPONSES[i], batch_tokens=1, weights=WEIGHTS)
        for scores in (together[i], streamed[i], alone, small):
            expected = [by_hand(score, WEIGHTS) for score in row]
            assert [score.reward for score in scores] == pytest.approx(expected, abs=1e-4)
        assert not deterministic or together[i] == streamed[i] == alone
    for weight in (-10, 10):
        for task, names in model.config.tasks.items():
            scores = model.score(PROMPTS[1], RESPONSES[1], task, weights=dict.fromkeys(names, weight))
            assert scores[1].reward == scores[2].reward == MIN_REWARD < scores[0].reward


def test_a_weight_of_another_task_is_an_error_only_if_all_tasks_are_given(model: Any) -> None:
    with pytest.raises(DataError, match=r"task chitchat has no such capability.*'logic'.*empathy, proactivity"):
        model.score(PROMPTS, RESPONSES, "chitchat", weights={"logic": 2})
    for score in (model.score, lambda *rows, **options: next(model.score_stream(QUERIES, **options))):
        with pytest.raises(DataError, match="the model has no such capability"):
            score(PROMPTS, RESPONSES, weights={"wit": 2})
    tasks = ["chitchat", "objective_qa", "chitchat", "chitchat"]
    plain, weighted = (model.score(PROMPTS, RESPONSES, tasks, weights=w) for w in (None, {"logic": 2}))
    changed = [row != other for row, other in zip(rewards(plain), rewards(weighted), strict=True)]
    assert changed == [False, True, False, False]
    ((_, scores),) = model.score_stream([Query(prompt="Hi!", responses=("Hello.",), task="chitchat")], weights=WEIGHTS)
    assert scores == model.score("Hi!", ["Hello."], "chitchat", weights={"empathy": 3.0})


def test_files_check_the_weights_first_and_do_not_mind_the_rows_tasks(
    model: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("dmoerm.model.packing._WINDOW_QUERIES", 1)  # a window without the weight's task
    queries = [Query(prompt=g.prompt, responses=g.responses, task=g.task) for g in tiny_groups(3)]
    plain = list(RowScorer(model).rows(queries))
    weighted = list(RowScorer(model, weights={"logic": 3.0}).rows(queries))
    for row, other in zip(plain, weighted, strict=True):
        logic = row["capabilities"].get("logic", [0.0] * len(row["rewards"]))
        expected = [reward + 2 * value / 2 for reward, value in zip(row["rewards"], logic, strict=True)]
        assert other["rewards"] == pytest.approx(expected, abs=1e-9)
        same = {"rewards": 0, "contributions": 0}
        assert other | same == row | same
    assert {row["task"] for row in plain} == {"chitchat", "objective_qa"}
    for scorer in (RowScorer(model, weights={"wit": 3}), RowScorer(model, task="chitchat", weights={"logic": 3})):
        with pytest.raises(DataError, match="has no such capability"):
            scorer.rows(queries, on_bad=lambda error: pytest.fail("a row is skipped for the weights"))


# --- the deterministic mode ------------------------------------------------------------------------------------------


@pytest.mark.slow
@pytest.mark.parametrize(("router", "dtype"), [("trunk", "bfloat16"), ("own", "float32")])
def test_deterministic_scores_are_the_same_to_the_last_bit_alone_and_beside_any_others(
    tiny_backbone: str, tmp_path: Path, router: str, dtype: str
) -> None:
    changes: Any = {"backbone": {"branch_layer": 0}, "router": {"kind": "own"}} if router == "own" else {}
    made = make_model(make_tiny_config(tiny_backbone, tmp_path, **changes))
    made.save_pretrained(tmp_path / "model")
    model = type(made).from_pretrained(tmp_path / "model", dtype=dtype)
    expected = [[model.score(q.prompt, [text], deterministic=True)[0] for text in q.responses] for q in QUERIES]
    assert model.score(PROMPTS, RESPONSES, deterministic=True) == expected
    for budget in (1, 100, 100_000):
        assert list(model.score_queries(QUERIES, budget, deterministic=True)) == expected
        assert [scores for _, scores in model.score_stream(iter(QUERIES), budget, deterministic=True)] == expected
    assert not torch.are_deterministic_algorithms_enabled()
    apart = [[model.score(q.prompt, [text])[0] for text in q.responses] for q in QUERIES]
    assert model.score(PROMPTS, RESPONSES) != apart, "batches change bits; otherwise this test could not fail"

    rows = [{"prompt": q.prompt, "responses": list(q.responses)} for q in QUERIES]
    (tmp_path / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    files = ["--input", str(tmp_path / "rows.jsonl"), "--output", str(tmp_path / "out.jsonl")]
    command = ["score", str(tmp_path / "model"), *files, "--dtype", dtype, "--deterministic"]
    result = CliRunner().invoke(app, command)
    assert result.exit_code == 0, result.output
    results = [json.loads(line) for line in (tmp_path / "out.jsonl").read_text().splitlines()]
    assert [row["rewards"] for row in results] == rewards(expected)

    def post(row: Any) -> list[float]:
        (item,) = httpx2.post(f"{url}/v1/score", json={"items": [row]}, timeout=30).json()["items"]
        return [score["reward"] for score in item["scores"]]

    application = create_app(model, ServingConfig(deterministic=True, batch_wait=0.2), "tiny")
    with served(application) as url, ThreadPoolExecutor(6) as pool:  # requests that arrive at once
        assert list(pool.map(post, rows * 2)) == rewards(expected) * 2
