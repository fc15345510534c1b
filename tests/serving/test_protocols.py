"""Each protocol gives the model's own numbers, in the form that its clients parse."""

from __future__ import annotations

import re
import sys
from pathlib import Path

import httpx2
import pytest
from running import served

import dmoerm
from dmoerm import serving
from dmoerm.schema import Query
from dmoerm.serving import ServingConfig, create_app, protocols

RESPONSES = ["Oh no. What happened?", "The exam took place.", ""]


def test_our_own_protocol(http, trained_run):
    """tests/integrations/test_our_server.py compares the scores themselves."""
    item = {"id": "a", "prompt": "Hi!", "responses": RESPONSES, "task": "chitchat"}
    answers = [
        http.post("/v1/score", json={"items": [item]} | {"weights": weights}).json()
        for weights in (None, {}, {"empathy": 1}, {"empathy": 4})
    ]
    encoded = trained_run.model.encoder.encode(Query(prompt="Hi!", responses=RESPONSES))
    for answer, weights in zip(answers, (None, None, None, {"empathy": 4}), strict=True):
        expected = trained_run.model.score("Hi!", RESPONSES, "chitchat", weights=weights)
        (scored,) = answer["items"]
        assert (scored["id"], answer["model"], answer["usage"]) == ("a", "tiny", {"tokens": encoded.tokens})
        assert [entry["reward"] for entry in scored["scores"]] == pytest.approx([s.reward for s in expected], abs=1e-3)
        for chances, score in zip(scored["win_probabilities"], expected, strict=True):
            assert chances == pytest.approx([score.win_probability(other) for other in expected], abs=1e-3)
    rewards = [[entry["reward"] for entry in answer["items"][0]["scores"]] for answer in answers]
    assert rewards[0] == rewards[1] == rewards[2]
    assert [new != old for new, old in zip(rewards[3], rewards[0], strict=True)] == [True, True, False]
    body = {"items": [item | {"task": "objective_qa"}], "win_probabilities": False}
    (other,) = http.post("/v1/score", json=body).json()["items"]
    assert other["scores"][0]["task"] == "objective_qa"
    assert other["win_probabilities"] is None


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
    error = answer.json()["error"]
    assert (answer.status_code, error["param"]) == (422, param)
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


def test_a_request_reaches_its_scores_in_at_most_six_hops(http, served_app, monkeypatch):
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
    text = "<|im_start|>user\nHi!<|im_end|>\n<|im_start|>assistant\nHello.<|im_end|>\n"
    http.post("/classify", json={"input": text}).raise_for_status()
    hops = [name for name in hops if name != "Service._run"]  # the task in which the queue runs
    request = ["Guard.__call__", "classify", "Service.score_texts", "Batcher.score"]
    assert hops == [*request, "Batcher.run", "DMoERM.score_encoded"]
    monkeypatch.undo()
    listed = re.findall(r"^\d\. `([\w.]+)`", serving.__doc__, re.MULTILINE)
    assert listed == [name for name in hops if name != "classify"], "the list in the package's docstring"
