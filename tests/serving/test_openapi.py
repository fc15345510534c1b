"""The OpenAPI description: its examples are what the server takes and gives, and nothing that it allows is a 5xx."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import httpx2
from running import served

from dmoerm.serving import ServingConfig, create_app

POSTS = ("/v1/score", "/classify", "/pooling", "/get_reward", "/predict")


def test_the_examples_are_real(http):
    described = http.get("/openapi.json").json()
    components = described["components"]["schemas"]
    for path in POSTS:
        body = described["paths"][path]["post"]["requestBody"]["content"]["application/json"]["schema"]
        examples = components[body["$ref"].rpartition("/")[2]]["examples"]
        assert examples, path
        for example in examples:
            answer = http.post(path, json=example)
            assert answer.status_code == 200, (path, answer.text)
    (shown,) = components["ScoreAnswer"]["examples"]
    found = http.post("/v1/score", json=components["ScoreRequest"]["examples"][0]).json()
    assert shape(found) == shape(shown)


def shape(value):
    """Names and types; what a model's tasks and capabilities are called does not matter."""
    if isinstance(value, dict):
        named = {"route", "capabilities"} & value.keys()
        return {key: "names" if key in named else shape(each) for key, each in value.items()}
    return [shape(each) for each in value[:1]] if isinstance(value, list) else type(value)


def test_nothing_that_it_allows_is_a_fault(trained_run, tmp_path):
    """Schemathesis: bodies that fit the description and bodies that do not, to every route."""
    small = ServingConfig(max_responses=16, max_request_tokens=4096)
    with served(create_app(trained_run.model, small)) as url:
        command = [Path(sys.executable).with_name("schemathesis"), "run", f"{url}/openapi.json", "--mode", "all"]
        chosen = ["--checks", "not_a_server_error", "--phases", "examples,coverage,fuzzing", "--max-examples", "20"]
        found = subprocess.run(
            [*command, *chosen, "--seed", "1", "--no-color"], cwd=tmp_path, capture_output=True, text=True, timeout=200
        )
        assert found.returncode == 0, found.stdout[-4000:]
        metrics = httpx2.get(f"{url}/metrics").text
    for path in POSTS:
        assert f'path="{path}",status="200"' in metrics, path
        assert f'path="{path}",status="422"' in metrics, path
    assert 'status="500"' not in metrics
