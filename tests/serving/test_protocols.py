"""Each protocol gives the model's own numbers, in the form that its clients parse."""

from __future__ import annotations

import re
import sys
from pathlib import Path
from typing import Any

import httpx2
import pytest
from running import served

import dmoerm
from dmoerm import serving
from dmoerm.schema import Message, Query
from dmoerm.scores import MIN_REWARD
from dmoerm.serving import ServingConfig, create_app, protocols

TALK = [
    {"role": "user", "content": "Hi!"},
    {"role": "assistant", "content": "Yes?"},
    {"role": "user", "content": "I failed my exam."},
]
RESPONSES = ["Oh no. What happened?", "The exam took place."]


@pytest.fixture
def expected(trained_run) -> list[Any]:
    return trained_run.model.score(TALK, RESPONSES)


@pytest.fixture
def texts(trained_run) -> list[str]:
    """The conversations as the model's own template renders them."""
    tokenizer = trained_run.model.tokenizer
    turns = [[*TALK, {"role": "assistant", "content": text}] for text in RESPONSES]
    return [tokenizer.apply_chat_template(each, tokenize=False) for each in turns]


def rewards(scores) -> Any:
    return pytest.approx([score.reward for score in scores], abs=1e-4)


def test_our_own_says_all_that_the_model_says(http, expected, trained_run):
    answer = http.post("/v1/score", json={"items": [{"id": "a", "prompt": TALK, "responses": RESPONSES}]}).json()
    (item,) = answer["items"]
    assert item["id"] == "a"
    for result, score in zip(item["scores"], expected, strict=True):
        assert result["reward"] == pytest.approx(score.reward, abs=1e-4)
        assert (result["task"], result["temperature"]) == (score.task, score.temperature)
        assert result["route"] == pytest.approx(score.route, abs=1e-5)
        assert result["capabilities"] == pytest.approx(score.capabilities, abs=1e-4)
        assert result["uncertainty"] == pytest.approx(score.uncertainty, abs=1e-4)
    for i, entry in enumerate(expected):
        chances = pytest.approx([entry.win_probability(other) for other in expected], abs=1e-4)
        assert item["win_probabilities"][i] == chances
    encoded = trained_run.model.encoder.encode(Query(prompt=[Message(**turn) for turn in TALK], responses=RESPONSES))
    assert answer["usage"]["tokens"] == encoded.tokens


def test_a_task_can_be_forced(http, trained_run):
    for task in trained_run.model.config.tasks:
        body = {"items": [{"prompt": "Hi!", "responses": ["Hello."], "task": task}], "win_probabilities": False}
        (item,) = http.post("/v1/score", json=body).json()["items"]
        (score,) = trained_run.model.score("Hi!", ["Hello."], task=task)
        assert item["scores"][0]["task"] == task
        assert item["scores"][0]["reward"] == pytest.approx(score.reward, abs=1e-4)
        assert item["win_probabilities"] is None


def test_weights_change_rewards_and_win_probabilities_alone(http, trained_run):
    texts = ["Hello.", "No.", ""]
    body = {"items": [{"prompt": "Hi!", "responses": texts, "task": "chitchat"}]}
    (plain,) = http.post("/v1/score", json=body).json()["items"]
    (item,) = http.post("/v1/score", json=body | {"weights": {"empathy": 4}}).json()["items"]
    expected = trained_run.model.score("Hi!", texts, "chitchat", weights={"empathy": 4})
    assert [entry["reward"] for entry in item["scores"]] == pytest.approx([s.reward for s in expected], abs=1e-3)
    assert item["scores"][0]["reward"] != pytest.approx(plain["scores"][0]["reward"], abs=1e-3)
    assert item["scores"][2]["reward"] == MIN_REWARD
    assert item["win_probabilities"][0][1] == pytest.approx(expected[0].win_probability(expected[1]), abs=1e-3)
    for entry, other in zip(item["scores"], plain["scores"], strict=True):
        assert entry["capabilities"] == pytest.approx(other["capabilities"], abs=1e-4)
    for same in (None, {}, {"empathy": 1}):
        (item,) = http.post("/v1/score", json=body | {"weights": same}).json()["items"]
        assert [s["reward"] for s in item["scores"]] == [s["reward"] for s in plain["scores"]]


@pytest.mark.parametrize(
    ("changes", "param", "message"),
    [
        ('"weights": {"logic": 2}', "weights", "task chitchat has no such capability"),
        ('"weights": {"empathy": -11}', "weights.empathy", "from -10 to 10"),
        ('"weights": {"empathy": "much"}', "weights.empathy", "must be a number"),
        ('"weights": [2]', "weights", "must be a mapping"),
    ],
)
def test_invalid_weights_are_named(http, changes, param, message):
    body = '{"items": [{"prompt": "Hi!", "responses": ["Hello."], "task": "chitchat"}], CHANGES}'
    headers = {"Content-Type": "application/json"}
    answer = http.post("/v1/score", content=body.replace("CHANGES", changes), headers=headers)
    assert answer.status_code == 422
    error = answer.json()["error"]
    assert error["param"] == param
    assert message in error["message"]


NEW_PROTOCOL = """
from fastapi import APIRouter, Request
from pydantic import BaseModel

from ..service import CurrentService

router = APIRouter()


class Body(BaseModel):
    prompt: str
    response: str


@router.post("/dummy")
async def dummy(request: Request, body: Body, service: CurrentService) -> float:
    (score,) = await service.score_texts(request, [(body.prompt, body.response)])
    return score.reward
"""


def test_a_new_protocol_is_one_file(trained_run, tmp_path, monkeypatch):
    (tmp_path / "dummy.py").write_text(NEW_PROTOCOL)
    with monkeypatch.context() as patch:
        patch.setattr(protocols, "__path__", [*protocols.__path__, str(tmp_path)])
        app = create_app(trained_run.model)
    sys.modules.pop("dmoerm.serving.protocols.dummy")
    with served(app) as url:
        answer = httpx2.post(f"{url}/dummy", json={"prompt": "Hi!", "response": "Hello."}).json()
    assert answer == pytest.approx(trained_run.model.score("Hi!", ["Hello."])[0].reward, abs=1e-4)
    assert "/dummy" not in create_app(trained_run.model).openapi()["paths"]


def test_a_truncated_text_is_flagged_and_counted(tiny_model):
    model, long = tiny_model(encoding={"max_length": 60, "truncation": "keep_both"}), "because " * 60
    prompt = "<|im_start|>user\nHi!<|im_end|>\n<|im_start|>assistant\n"
    with served(create_app(model, ServingConfig(), "cutting")) as url:
        with dmoerm.Client(url) as client:
            assert [score.truncated for score in client.score("Hi!", ["No.", long, ""])] == [False, True, False]
        body = {"query": [f"{prompt}{text}<|im_end|>" for text in ("No.", long)], "prompts": [prompt] * 2}
        answer = httpx2.post(f"{url}/get_reward", json=body).json()
        metrics = httpx2.get(f"{url}/metrics").text
    assert answer["extra_logs"]["truncated"] == [0.0, 1.0]
    assert "dmoerm_truncated_responses_total 2.0" in metrics
    assert "dmoerm_empty_responses_total 1.0" in metrics


def stack() -> list[str]:
    """The package's functions on the stack, outermost first."""
    source, names, frame = str(Path(serving.__file__).parents[1]), [], sys._getframe()
    while frame is not None:
        if frame.f_code.co_filename.startswith(source):
            names.append(frame.f_code.co_qualname)
        frame = frame.f_back
    return names[::-1]


def test_a_request_reaches_its_scores_in_at_most_six_hops(http, served_app, monkeypatch, texts):
    """Every function of the package on a stack between the socket and the pass is a hop."""
    batcher, hops = served_app.state.service.batcher, []

    def recorded(function, itself=True):
        def record(*arguments):
            hops.extend([*stack(), function.__qualname__][: None if itself else -1])
            return function(*arguments)

        return record

    monkeypatch.setattr(batcher, "score", recorded(batcher.score))
    monkeypatch.setattr(batcher, "_next_pass", recorded(batcher._next_pass, itself=False))  # returns to `run`
    monkeypatch.setattr(batcher.model, "score_encoded", recorded(batcher.model.score_encoded))
    http.post("/classify", json={"input": texts[0]}).raise_for_status()
    hops = [name for name in hops if name != "Service._run"]  # the task in which the queue runs
    request = ["Guard.__call__", "classify", "Service.score_texts", "Batcher.score"]
    assert hops == [*request, "Batcher.run", "DMoERM.score_encoded"]
    monkeypatch.undo()
    listed = re.findall(r"^\d\. `([\w.]+)`", serving.__doc__, re.MULTILINE)
    assert listed == [name for name in hops if name != "classify"], "the list in the package's docstring"
