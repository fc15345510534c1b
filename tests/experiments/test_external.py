"""Reward models trained elsewhere: a sequence classifier, servers of three protocols, recorded judges."""

from __future__ import annotations

import json
import shutil

import httpx2
import pytest
import torch
from tiny import tiny_tokenizer, write_backbone
from transformers import AutoModelForSequenceClassification

from dmoerm.errors import BackboneError, DataError, ServerError
from dmoerm.experiments.external import RewardServer, SequenceClassifier, conversation, external_methods, open_scorer
from dmoerm.experiments.judges import recorded
from dmoerm.labels import CapabilityLabel, Outcome, content_digest, write_labels
from dmoerm.schema import Message, Query

TALK = (
    Message(role="user", content="Hi!"),
    Message(role="assistant", content="Yes?"),
    Message(role="user", content="Why?"),
)
QUERIES = [
    Query(prompt="How are you?", responses=("Fine, thanks.", "No.", "I am a very long answer. " * 8)),
    Query(prompt=TALK, responses=("Because.",)),
]


@pytest.fixture(scope="module")
def classifier(tmp_path_factory) -> str:
    folder = str(tmp_path_factory.mktemp("classifier"))
    backbone = write_backbone(tmp_path_factory.mktemp("backbone"))
    with torch.random.fork_rng():
        torch.manual_seed(3)
        AutoModelForSequenceClassification.from_pretrained(backbone, num_labels=1).save_pretrained(folder)
    tiny_tokenizer().save_pretrained(folder)
    return folder


def test_a_classifier_scores_a_text_as_it_does_alone(classifier) -> None:
    method = SequenceClassifier(classifier, batch_tokens=200)
    found = method.score_all(QUERIES)
    assert [len(row) for row in found] == [3, 1]
    for query, row in zip(QUERIES, found, strict=True):
        for response, reward in zip(query.responses, row, strict=True):
            text = method.tokenizer.apply_chat_template(conversation(query, response), tokenize=False)
            ids = method.tokenizer(text, add_special_tokens=False, return_tensors="pt")
            with torch.inference_mode():
                assert reward == pytest.approx(float(method.model(**ids).logits), abs=1e-4)
    assert method.score_all([]) == []


def test_our_own_folder_routes_by_itself(trained_run) -> None:
    method = open_scorer(str(trained_run.folder / "model"))
    (scores,) = trained_run.model.score_queries(QUERIES[:1])
    assert method.score_all(QUERIES[:1])[0] == pytest.approx([s.reward for s in scores], abs=1e-3)


def test_other_weights_in_the_same_folder_are_another_model(classifier, tmp_path) -> None:
    """Else a comparison would show the results of the model that was there before."""
    shutil.copytree(classifier, tmp_path / "model")
    (before,), _ = external_methods([f"mine={tmp_path / 'model'}"])
    (same,), _ = external_methods([f"mine={classifier}"])
    model = AutoModelForSequenceClassification.from_pretrained(classifier)
    model.score.weight.data += 1
    model.save_pretrained(tmp_path / "model")
    (after,), _ = external_methods([f"mine={tmp_path / 'model'}"])
    assert len({before.key, after.key, ""}) == 3
    assert before.key == same.key


def test_unsuitable_classifiers_are_refused(tmp_path, classifier) -> None:
    with pytest.raises(BackboneError, match="is not a model"):
        open_scorer(str(tmp_path))
    two = AutoModelForSequenceClassification.from_pretrained(classifier, num_labels=2, ignore_mismatched_sizes=True)
    two.save_pretrained(tmp_path / "two")
    tiny_tokenizer().save_pretrained(tmp_path / "two")
    with pytest.raises(BackboneError, match="has 2 labels"):
        SequenceClassifier(str(tmp_path / "two"))
    with pytest.raises(DataError, match="the model reads 1024"):
        SequenceClassifier(classifier).score_all([Query(prompt="x", responses=("word " * 3000,))])


def answer(request: httpx2.Request) -> httpx2.Response:
    """Rewards a conversation by the length of its last turn."""
    body = json.loads(request.content)
    assert "Authorization" not in request.headers
    reward = [len(body["messages"][-1]["content"])]
    assert body["messages"][-1]["role"] == "assistant"
    field = "probs" if request.url.path == "/classify" else "data"
    return httpx2.Response(200, json={"data": [{"index": 0, field: reward}]})


@pytest.mark.parametrize("path", ["/classify", "/pooling"])
def test_servers(path, monkeypatch) -> None:
    monkeypatch.setenv("DMOERM_API_KEY", "of our own server")
    server = RewardServer(f"http://judge{path}", transport=httpx2.MockTransport(answer))
    assert server.score_all(QUERIES) == [[float(len(text)) for text in query.responses] for query in QUERIES]


def test_our_own_server_routes_by_itself(reward_server) -> None:
    told = [query.model_copy(update={"task": "another model's"}) for query in QUERIES]
    expected = [[float(text.lower().count("t")) for text in query.responses] for query in QUERIES]
    assert open_scorer(f"{reward_server.url}/v1/score").score_all(told) == expected


@pytest.mark.parametrize(
    ("reply", "message"),
    [
        (httpx2.Response(500, text="out of memory"), "500"),
        (httpx2.Response(200, text="<html>"), "not JSON"),
        (httpx2.Response(200, json={"data": []}), "has no reward"),
        (httpx2.Response(200, json=[1]), "has no reward"),
    ],
)
def test_servers_that_fail(reply, message) -> None:
    server = RewardServer("http://judge/classify", transport=httpx2.MockTransport(lambda _: reply), retries=0)
    with pytest.raises(ServerError, match=message):
        server.score_all(QUERIES)


def test_servers_that_are_not_there() -> None:
    with pytest.raises(ServerError, match="must be a protocol"):
        open_scorer("http://127.0.0.1:1/reward")
    with pytest.raises(ServerError, match="check that the server is running"):
        RewardServer("http://127.0.0.1:1/classify", retries=1).score_all(QUERIES)


def test_recorded_judges(tmp_path) -> None:
    query = Query(id="q", task="chat", prompt="p", responses=("a", "b"))
    about = ("q", content_digest(query), "chat")
    labels = [
        CapabilityLabel("gpt/one", *about, "overall", 0, 1, Outcome.SECOND, Outcome.SECOND),
        CapabilityLabel("gpt/one", *about, "logic", 0, 1, Outcome.FIRST, Outcome.FIRST),
    ]
    write_labels(tmp_path / "labels.parquet", labels)
    (judge,) = recorded([tmp_path / "labels.parquet"])
    trained = judge.train(None)  # type: ignore[arg-type]
    assert judge.name == "judge_gpt/one"
    assert judge.tasks == {"chat"}
    other = Query(id="other", prompt="p", responses=("a", "b"))
    assert trained.score_all([query, other]) == [[0.0, 1.0], [0.5, 0.5]]
    write_labels(tmp_path / "labels.parquet", labels[1:])
    with pytest.raises(DataError, match="no label is about the overall preference"):
        recorded([tmp_path / "labels.parquet"])
