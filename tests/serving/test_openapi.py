"""The OpenAPI description: its examples are valid requests and answers, and no request causes a server error."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import httpx2
import pytest
from running import served

from dmoerm.serving import ServingConfig, create_app


def test_the_examples_are_real(http):
    described = http.get("/openapi.json").json()
    components = described["components"]["schemas"]
    posts = {path: methods["post"] for path, methods in described["paths"].items() if "post" in methods}
    assert {"/v1/score", "/classify", "/get_reward", "/predict", "/rerank"} <= posts.keys()
    for path, post in posts.items():
        body = post["requestBody"]["content"]["application/json"]["schema"]
        examples = components[body["$ref"].rpartition("/")[2]]["examples"]
        assert examples, path
        for example in examples:
            answer = http.post(path, json=example)
            assert answer.status_code == 200, (path, answer.text)
    (shown,) = components["ScoreAnswer"]["examples"]
    result = http.post("/v1/score", json=components["ScoreRequest"]["examples"][0]).json()
    assert shape(result) == shape(shown)


def shape(value):
    """Names and types; what a model's tasks and capabilities are called does not matter."""
    if isinstance(value, dict):
        named = {"route", "capabilities", "contributions"} & value.keys()
        return {key: "names" if key in named else shape(each) for key, each in value.items()}
    return [shape(each) for each in value[:1]] if isinstance(value, list) else type(value)


@pytest.mark.parametrize(
    ("examples", "phases"),
    [(50, "examples,coverage,fuzzing")],
)
@pytest.mark.slow
def test_no_request_causes_a_server_error(examples, phases, trained_run, tmp_path):
    """Schemathesis sends valid and invalid bodies to every route."""
    small = ServingConfig(max_responses=16, max_request_tokens=4096)
    with served(create_app(trained_run.model, small)) as url:
        command = [Path(sys.executable).with_name("schemathesis"), "run", f"{url}/openapi.json", "--mode", "all"]
        chosen = ["--checks", "not_a_server_error", "--phases", phases, "--max-examples", str(examples)]
        result = subprocess.run(
            [*command, *chosen, "--seed", "1", "--no-color"], cwd=tmp_path, capture_output=True, text=True, timeout=200
        )
        assert result.returncode == 0, result.stdout[-4000:]
        metrics = httpx2.get(f"{url}/metrics").text
        described = httpx2.get(f"{url}/openapi.json").json()["paths"]
    for path in (path for path, methods in described.items() if "post" in methods):
        assert f'path="{path}",status="200"' in metrics, path
        assert f'path="{path}",status="422"' in metrics, path
    assert 'status="500"' not in metrics
