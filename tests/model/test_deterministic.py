"""The deterministic mode: a score is the same to the last bit, alone and beside any others."""

from __future__ import annotations

import json
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import httpx2
import pytest
import torch
from running import served
from tiny import make_model, make_tiny_config
from typer.testing import CliRunner

from dmoerm.cli import app
from dmoerm.schema import Query
from dmoerm.serving import ServingConfig, create_app

PROMPTS = ["How are you?", "Tell me a long story about a fox and a hen. " * 3, "你好吗？🙂"]
RESPONSES = [["Fine, and you?", "No.", "x " * 40], ["Once upon a time.", "x " * 60], ["很好！", ""]]
QUERIES = [Query(prompt=prompt, responses=tuple(row)) for prompt, row in zip(PROMPTS, RESPONSES, strict=True)]
FORMS: dict[str, dict[str, Any]] = {
    "trunk router": {},
    "own router": {"backbone": {"branch_layer": 0}, "router": {"kind": "own"}},
}


@pytest.fixture(
    scope="module",
    params=[
        ("trunk router", "bfloat16"),
        ("own router", "float32"),
        pytest.param(("trunk router", "float32"), marks=pytest.mark.slow),
        pytest.param(("own router", "bfloat16"), marks=pytest.mark.slow),
    ],
)
def model(request: pytest.FixtureRequest, tiny_backbone: str, tmp_path_factory: pytest.TempPathFactory) -> Any:
    form, dtype = request.param
    folder = tmp_path_factory.mktemp("deterministic")
    made = make_model(make_tiny_config(tiny_backbone, folder, **FORMS[form]))
    made.save_pretrained(folder / "model")
    return type(made).from_pretrained(folder / "model", dtype=dtype)


@pytest.fixture
def server(model: Any) -> Iterator[httpx2.Client]:
    application = create_app(model, ServingConfig(deterministic=True, batch_wait=0.2), "tiny")
    with served(application) as url, httpx2.Client(base_url=url, timeout=30) as client:
        yield client


def alone(model: Any) -> list[list[Any]]:
    """Each response's score by itself."""
    return [[model.score(q.prompt, [text], deterministic=True)[0] for text in q.responses] for q in QUERIES]


def test_in_process(model: Any) -> None:
    expected = alone(model)
    assert model.score(PROMPTS, RESPONSES, deterministic=True) == expected
    for budget in (1, 100, 100_000):
        assert list(model.score_queries(QUERIES, budget, deterministic=True)) == expected
        assert [scores for _, scores in model.score_stream(iter(QUERIES), budget, deterministic=True)] == expected
    assert not torch.are_deterministic_algorithms_enabled()


def test_batches_change_bits_without_it(model: Any) -> None:
    """Otherwise the tests beside this one could not fail."""
    together = model.score(PROMPTS, RESPONSES)
    apart = [[model.score(q.prompt, [text])[0] for text in q.responses] for q in QUERIES]
    assert together != apart


def test_through_the_server(model: Any, server: httpx2.Client) -> None:
    """Requests that arrive at once share passes otherwise."""

    def post(items: list[dict[str, Any]]) -> list[list[dict[str, Any]]]:
        answer = server.post("/v1/score", json={"items": items})
        assert answer.status_code == 200, answer.text
        return [item["scores"] for item in answer.json()["items"]]

    items: list[dict[str, Any]] = [{"prompt": q.prompt, "responses": list(q.responses)} for q in QUERIES]
    expected = [[vars(score) for score in scores] for scores in alone(model)]
    assert post(items) == expected
    with ThreadPoolExecutor(6) as pool:
        results = list(pool.map(post, [[item] for item in items * 2]))
    assert [scores for (scores,) in results] == expected * 2


def test_the_command(model: Any, tmp_path: Any) -> None:
    model.save_pretrained(tmp_path / "model")
    rows = [{"prompt": q.prompt, "responses": list(q.responses)} for q in QUERIES]
    (tmp_path / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    arguments = [tmp_path / "model", "--input", tmp_path / "rows.jsonl", "--output", tmp_path / "out.jsonl"]
    result = CliRunner().invoke(app, ["score", *map(str, arguments), "--dtype", "float32", "--deterministic"])
    assert result.exit_code == 0, result.output
    results = [json.loads(line) for line in (tmp_path / "out.jsonl").read_text().splitlines()]
    wide = type(model).from_pretrained(tmp_path / "model", dtype="float32")
    assert [row["rewards"] for row in results] == [[score.reward for score in scores] for scores in alone(wide)]
