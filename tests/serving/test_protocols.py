"""Each protocol gives the model's own numbers, in the form that its clients parse."""

from __future__ import annotations

import math
import re
import sys
from pathlib import Path
from typing import Any

import httpx2
import pytest
from huggingface_hub import InferenceClient
from running import served
from tiny import make_model, make_tiny_config, without_posteriors

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


def test_weights_of_capabilities(http, trained_run):
    body = {"items": [{"prompt": "Hi!", "responses": ["Hello.", "No.", ""], "task": "chitchat"}]}
    plain = http.post("/v1/score", json=body).json()["items"][0]
    weighted = http.post("/v1/score", json=body | {"weights": {"empathy": 4}}).json()["items"][0]
    expected = trained_run.model.score("Hi!", ["Hello.", "No.", ""], "chitchat", weights={"empathy": 4})
    assert [entry["reward"] for entry in weighted["scores"]] == rewards(expected)
    assert weighted["scores"][0]["reward"] != pytest.approx(plain["scores"][0]["reward"], abs=1e-3)
    assert weighted["scores"][2]["reward"] == MIN_REWARD
    for entry, other in zip(weighted["scores"], plain["scores"], strict=True):
        assert entry["capabilities"] == pytest.approx(other["capabilities"], abs=1e-5)
    chance = expected[0].win_probability(expected[1])
    assert weighted["win_probabilities"][0][1] == pytest.approx(chance, abs=1e-4)
    for weights in (None, {}, {"empathy": 1}):
        same = http.post("/v1/score", json=body | {"weights": weights}).json()["items"][0]
        assert [s["reward"] for s in same["scores"]] == [s["reward"] for s in plain["scores"]]


def test_weights_in_a_request_of_several_tasks(http):
    items = [{"prompt": "Hi!", "responses": ["Hello."], "task": task} for task in ("chitchat", "objective_qa")]
    plain, weighted = (
        [item["scores"][0]["reward"] for item in http.post("/v1/score", json=body).json()["items"]]
        for body in ({"items": items}, {"items": items, "weights": {"logic": 3}})
    )
    assert weighted[0] == pytest.approx(plain[0], abs=1e-5)
    assert weighted[1] != pytest.approx(plain[1], abs=1e-3)


@pytest.mark.parametrize(
    ("weights", "task", "param", "message"),
    [
        ({"wit": 2}, None, "weights", "the model has no such capability"),
        ({"logic": 2}, "chitchat", "weights", "task chitchat has no such capability"),
        ({"empathy": -11}, None, "weights.empathy", "from -10 to 10"),
        ({"empathy": "much"}, None, "weights.empathy", "must be a number"),
        ([2], None, "weights", "must be a mapping"),
    ],
)
def test_invalid_weights_are_named(http, weights, task, param, message):
    body = {"items": [{"prompt": "Hi!", "responses": ["Hello."], "task": task}], "weights": weights}
    answer = http.post("/v1/score", json=body)
    assert answer.status_code == 422
    error = answer.json()["error"]
    assert error["param"] == param
    assert message in error["message"]


def test_a_risk_lowers_rewards(http, trained_run):
    body = {"items": [{"prompt": "Hi!", "responses": ["Hello.", "No.", ""], "task": "chitchat"}]}
    plain = http.post("/v1/score", json=body).json()["items"][0]["scores"]
    assert min(entry["uncertainty"] for entry in plain[:2]) > 0
    lowered = http.post("/v1/score", json=body | {"risk": 2, "weights": {"empathy": 4}}).json()["items"][0]
    expected = trained_run.model.score("Hi!", ["Hello.", "No.", ""], "chitchat", weights={"empathy": 4}, risk=2)
    assert [entry["reward"] for entry in lowered["scores"]] == pytest.approx([s.reward for s in expected], abs=1e-3)
    chance = expected[0].win_probability(expected[1])
    assert lowered["win_probabilities"][0][1] == pytest.approx(chance, abs=1e-3)
    assert lowered["scores"][2]["reward"] == MIN_REWARD
    for entry, other in zip(lowered["scores"][:2], plain[:2], strict=True):
        assert entry["uncertainty"] == pytest.approx(other["uncertainty"], rel=1e-4)


@pytest.mark.parametrize("risk", ["-1", "NaN", "Infinity", "true", '"1"', "null", "[1]"])
def test_invalid_risks_are_named(http, risk):
    body = '{"items": [{"prompt": "Hi!", "responses": ["Hello."]}], "risk": RISK}'.replace("RISK", risk)
    answer = http.post("/v1/score", content=body, headers={"Content-Type": "application/json"})
    assert answer.status_code == 422
    assert answer.json()["error"]["param"] == "risk"


def test_a_risk_without_uncertainties_is_refused(tiny_backbone, tmp_path):
    early = without_posteriors(make_model(make_tiny_config(tiny_backbone, tmp_path)))
    with served(create_app(early, ServingConfig(), "early")) as url, httpx2.Client(base_url=url) as http:
        body = {"items": [{"prompt": "Hi!", "responses": ["Hello."]}]}
        (score,) = http.post("/v1/score", json=body).json()["items"][0]["scores"]
        assert score["uncertainty"] is None
        answer = http.post("/v1/score", json=body | {"risk": 0.5})
        assert answer.status_code == 422
        error = answer.json()["error"]
        assert error["param"] == "risk"
        assert "gives no uncertainty" in error["message"]


def test_prompts_may_be_many(http, trained_run):
    queries = [Query(prompt=f"Question {i}?", responses=("Yes.", "No, " * (i + 1))) for i in range(9)]
    items = [{"prompt": query.prompt, "responses": query.responses} for query in queries]
    answer = http.post("/v1/score", json={"items": items}).json()
    for item, query, scores in zip(answer["items"], queries, trained_run.model.score_queries(queries), strict=True):
        assert item["id"] == query.id
        assert [entry["reward"] for entry in item["scores"]] == rewards(scores)


def test_vllms_client_reads_a_reward(http, expected, texts):
    messages = [*TALK, {"role": "assistant", "content": RESPONSES[0]}]
    answer = http.post("/classify", json={"model": "any", "messages": messages, "use_activation": False}).json()
    assert answer["object"] == "list"
    assert answer["data"][0]["probs"] == rewards(expected[:1])
    assert answer["data"][0]["num_classes"] == 1
    assert answer["usage"]["total_tokens"] == answer["usage"]["prompt_tokens"] > 0
    answer = http.post("/classify", json={"input": texts}).json()
    assert [entry["index"] for entry in answer["data"]] == [0, 1]
    assert [entry["probs"][-1] for entry in answer["data"]] == rewards(expected)
    answer = http.post("/pooling", json={"input": texts[1]}).json()
    assert answer["data"][0]["data"] == rewards(expected[1:])
    assert answer["data"][0]["object"] == "pooling"


def test_an_activated_reward_is_its_sigmoid(http, expected, texts):
    for name in ("use_activation", "activation"):
        (result,) = http.post("/classify", json={"input": texts[0], name: True}).json()["data"]
        assert result["probs"] == pytest.approx([1 / (1 + math.exp(-expected[0].reward))], abs=1e-4)


def test_verls_client_strips_the_first_token(http, expected, texts, trained_run):
    """It renders with the reward model's template, takes the BOS token off, and reads the last of `probs`."""
    bos = trained_run.model.tokenizer.bos_token
    assert texts[0].startswith(bos)
    body = {"model": "m", "input": texts[0][len(bos) :], "activation": False, "add_special_tokens": False}
    assert http.post("/classify", json=body).json()["data"][-1]["probs"][-1] == rewards(expected[:1]).expected[0]


def test_openrlhfs_client_reads_rewards_and_logs(http, expected, texts, trained_run):
    prompts = [text[: text.index(answer)] for text, answer in zip(texts, RESPONSES, strict=True)]
    answer = http.post("/get_reward", json={"query": texts, "prompts": prompts, "labels": [None, ""]}).json()
    assert answer["rewards"] == answer["scores"] == rewards(expected)
    tasks = trained_run.model.config.tasks
    names = {
        "has_uncertainty",
        "uncertainty",
        "truncated",
        *(f"task/{t}" for t in tasks),
        *(f"{t}/{c}" for t, each in tasks.items() for c in each),
    }
    assert set(answer["extra_logs"]) == names
    assert {len(values) for values in answer["extra_logs"].values()} == {2}
    for name, value in expected[1].capabilities.items():
        assert answer["extra_logs"][f"{expected[1].task}/{name}"][1] == pytest.approx(value, abs=1e-4)
    older = http.post("/get_reward", json={"query": texts}).json()
    assert older["rewards"] == rewards(expected)


def test_a_policy_of_another_family_is_understood(http, trained_run):
    prompt = (
        "<|begin_of_text|><|start_header_id|>user<|end_header_id|>\n\nHi!<|eot_id|>"
        "<|start_header_id|>assistant<|end_header_id|>\n\n"
    )
    answer = http.post("/get_reward", json={"query": [f"{prompt}Hello.<|eot_id|>"], "prompts": [prompt]}).json()
    assert answer["rewards"] == rewards(trained_run.model.score([{"role": "user", "content": "Hi!"}], ["Hello."]))


def test_a_response_without_text_gets_the_least(http, texts):
    prompt = texts[0][: texts[0].index(RESPONSES[0])]
    answer = http.post("/get_reward", json={"query": [f"{prompt}<|im_end|>", texts[0]], "prompts": [prompt] * 2}).json()
    assert answer["rewards"][0] == MIN_REWARD < answer["rewards"][1]
    assert http.post("/classify", json={"input": f"{prompt}<|im_end|>"}).json()["data"][0]["probs"] == [MIN_REWARD]
    assert http.post("/pooling", json={"input": f"{prompt}<|im_end|>"}).json()["data"][0]["data"] == [MIN_REWARD]
    predicted = http.post("/predict", json={"inputs": [["Hi!", " "], ["Hi!", "x"]], "raw_scores": True}).json()
    assert predicted[0][0]["score"] == MIN_REWARD < predicted[1][0]["score"]
    (item,) = http.post("/v1/score", json={"items": [{"prompt": "Hi!", "responses": ["", "x"]}]}).json()["items"]
    assert item["scores"][0]["reward"] == MIN_REWARD < item["scores"][1]["reward"]
    assert (item["scores"][0]["capabilities"], item["scores"][0]["uncertainty"]) == ({}, None)
    assert item["win_probabilities"] == [[0.5, 0.0], [1.0, 0.5]]


def test_teis_client_reads_a_score(http, served_url, expected, texts):
    client = InferenceClient(model=f"{served_url}/predict")
    (result,) = client.text_classification(texts[0], function_to_apply="none")
    assert result.score == pytest.approx(expected[0].reward, abs=1e-4)
    assert result.label == "REWARD"
    (result,) = InferenceClient(model=served_url).text_classification(texts[0])
    assert result.score == pytest.approx(1 / (1 + math.exp(-expected[0].reward)), abs=1e-4)


def test_tei_takes_texts_and_pairs(http, expected, texts, trained_run):
    entry = http.post("/predict", json={"inputs": texts[0], "raw_scores": True}).json()
    assert [each["score"] for each in entry] == rewards(expected[:1])
    several = http.post("/predict", json={"inputs": [[text] for text in texts], "raw_scores": True, "truncate": True})
    assert [each[0]["score"] for each in several.json()] == rewards(expected)
    (score,) = trained_run.model.score("Hi!", ["Hello."])
    for inputs, at in ((["Hi!", "Hello."], lambda a: a[0]), ([["Hi!", "Hello."]], lambda a: a[0][0])):
        answer = http.post("/predict", json={"inputs": inputs, "raw_scores": True}).json()
        assert at(answer)["score"] == pytest.approx(score.reward, abs=1e-4)


def test_no_input_gives_no_answer(http):
    assert http.post("/predict", json={"inputs": []}).json() == []


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


def test_the_model_and_its_state(http, trained_run):
    (model,) = http.get("/v1/models").json()["data"]
    assert model["id"] == "tiny"
    assert model["tasks"] == trained_run.model.config.tasks
    assert http.get("/health").json() == {"status": "live"}
    assert http.get("/ready").status_code == 200


def test_system_turns_and_long_talks_read_back(http, trained_run):
    talk = [{"role": "system", "content": "Be kind."}, *TALK]
    scores = trained_run.model.score([Message(**turn) for turn in talk], RESPONSES[:1])
    text = trained_run.model.tokenizer.apply_chat_template(
        [*talk, {"role": "assistant", "content": RESPONSES[0]}], tokenize=False
    )
    (result,) = http.post("/classify", json={"input": text}).json()["data"]
    assert result["probs"] == rewards(scores)


@pytest.fixture
def cutting(tiny_model) -> Any:
    """A client of a server whose model reads at most 60 tokens."""
    model = tiny_model(encoding={"max_length": 60, "truncation": "keep_both"})
    with (
        served(create_app(model, ServingConfig(), "cutting")) as url,
        httpx2.Client(base_url=url, timeout=30) as client,
    ):
        yield client


def test_a_truncated_text_is_flagged_and_counted(cutting):
    long = "because " * 60
    (item,) = cutting.post("/v1/score", json={"items": [{"prompt": "Hi!", "responses": ["No.", long, ""]}]}).json()[
        "items"
    ]
    assert [score["truncated"] for score in item["scores"]] == [False, True, False]
    with dmoerm.Client(str(cutting.base_url)) as client:
        assert [score.truncated for score in client.score("Hi!", ["No.", long])] == [False, True]
    prompt = "<|im_start|>user\nHi!<|im_end|>\n<|im_start|>assistant\n"
    body = {"query": [f"{prompt}{text}<|im_end|>" for text in ("No.", long)], "prompts": [prompt] * 2}
    assert cutting.post("/get_reward", json=body).json()["extra_logs"]["truncated"] == [0.0, 1.0]
    metrics = cutting.get("/metrics").text
    assert "dmoerm_truncated_responses_total 3.0" in metrics
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
