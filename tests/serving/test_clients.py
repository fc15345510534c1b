"""The requests that clients send, field by field as their sources have them, and how they read the answers.

docs/serving.md names each client's version, or the commit of its public repository that was read.
"""

from __future__ import annotations

import asyncio
import functools
import math
import operator
import re
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any
from unittest.mock import MagicMock

import aiohttp
import httpx2
import openai
import pytest
import requests
from huggingface_hub import InferenceClient
from running import served

from dmoerm.names import BASE_SCORES
from dmoerm.serving import ServingConfig, create_app

PROMPT = "I failed my exam."
TURNS = [{"role": "user", "content": PROMPT}]
TEXTS = ["Oh no. What happened?", "The exam took place.", "No."]
QUERY: dict[str, Any] = {"model": "m", "query": PROMPT, "documents": TEXTS}
OBJECTS = [{"text": text} for text in TEXTS]


def sigmoid(value: float) -> float:
    return 1 / (1 + math.exp(-value))


@pytest.fixture(scope="module")
def know(trained_run: Any) -> SimpleNamespace:
    """What is known of the texts as responses to the prompt: their rewards, order, conversations and token ids."""
    tokenizer, scores = trained_run.model.tokenizer, trained_run.model.score(PROMPT, TEXTS)
    rewards = [score.reward for score in scores]
    order = sorted(range(3), key=lambda i: -rewards[i])
    turns = [[*TURNS, {"role": "assistant", "content": text}] for text in TEXTS]
    talks = [tokenizer.apply_chat_template(each, tokenize=False) for each in turns]
    start = tokenizer.apply_chat_template(TURNS, tokenize=False, add_generation_prompt=True)
    ids = [tokenizer(text, add_special_tokens=False)["input_ids"] for text in talks]
    return SimpleNamespace(
        scores=scores,
        rewards=rewards,
        shares=[sigmoid(reward) for reward in rewards],
        filtered=[sigmoid((score.reward - 0.5) / score.temperature) for score in scores],
        order=order,
        ranked=[sigmoid(rewards[i]) for i in order],
        ranked_rewards=[rewards[i] for i in order],
        best=TEXTS[order[0]],
        turns=turns,
        talks=talks,
        stripped=talks[0].removeprefix(tokenizer.bos_token),  # verl takes the BOS token off
        start=start,
        ids=ids,
    )


def each(*keys: Any, of: str = "") -> Callable[[Any], list[Any]]:
    """Return a function that reads the value at these keys in every element of an answer, or of one of its fields."""

    def read(answer: Any) -> list[Any]:
        rows = answer[of] if of else answer
        return [functools.reduce(operator.getitem, keys, row) for row in (rows if isinstance(rows, list) else [rows])]

    return read


def several(*readers: Callable[[Any], Any]) -> Callable[[Any], list[Any]]:
    """Return a function that joins what the readers read."""
    return lambda answer: [read(answer) for read in readers]


SCORE, PROBS = each("score", of="data"), each("probs", -1, of="data")
relevances = each("relevance_score", of="results")
best_text = several(lambda answer: answer["results"][0]["document"]["text"], relevances)
PASSAGES: dict[str, Any] = {"model": "m", "query": {"text": PROMPT}, "passages": OBJECTS, "truncate": "END"}
PARTS = [{"role": "user", "content": [{"type": "text", "text": PROMPT}]}, {"role": "assistant", "content": TEXTS[0]}]
HUB = {"function_to_apply": "none"}
Case = tuple[str, Any, Callable[[Any], Any], Any]


def cases(k: Any) -> dict[str, Case]:
    """Return for what is known of the texts: path, body, what the client reads, and what that is."""
    return {
        "vLLM, messages": ("/classify", {"messages": k.turns[0]}, PROBS, [k.rewards[0]]),
        "vLLM, content parts": ("/classify", {"messages": PARTS}, PROBS, [k.rewards[0]]),
        "vLLM, rendered texts": ("/classify", {"input": k.talks}, PROBS, k.rewards),
        "vLLM, token ids": ("/classify", {"input": k.ids}, PROBS, k.rewards),
        "vLLM, one list": ("/pooling", {"prompt_token_ids": k.ids[1]}, each("data", 0, of="data"), [k.rewards[1]]),
        "vLLM, activation": ("/classify", {"input": k.talks, "activation": True}, PROBS, k.shares),
        "vLLM /pooling": ("/pooling", {"input": k.talks}, each("data", 0, of="data"), k.rewards),
        "vLLM /score": ("/score", {"text_1": PROMPT, "text_2": TEXTS}, SCORE, k.rewards),
        "vLLM /score, data": ("/score", {"data_1": PROMPT, "data_2": TEXTS}, SCORE, k.rewards),
        "vLLM /score, pairs": (
            "/score", {"queries": [PROMPT] * 3, "items": TEXTS, "use_activation": True}, SCORE, k.shares,
        ),
        "vLLM /rerank": (
            "/rerank", QUERY | {"top_n": 0, "use_activation": False}, best_text, [k.best, k.ranked_rewards],
        ),
        "verl, engine vllm": (
            "/classify", {"model": "m", "input": k.stripped, "activation": False}, PROBS, [k.rewards[0]],
        ),
        "verl, engine sglang": (
            "/v1/embeddings", {"input": k.stripped}, each("embedding", -1, of="data"), [k.rewards[0]],
        ),
        "SGLang, conv": ("/classify", {"conv": k.turns}, each("embedding", 0), k.rewards),
        "SGLang, text": ("/classify", {"text": k.talks[0]}, each("embedding", 0), [k.rewards[0]]),
        "SGLang, input_ids": ("/classify", {"input_ids": k.ids}, each("embedding", 0), k.rewards),
        "OpenRLHF": (
            "/get_reward",
            {"query": k.talks, "prompts": [k.start] * 3, "labels": [None, "", None]},
            several(each(of="rewards"), each(of="scores")),
            [k.rewards, k.rewards],
        ),
        "OpenRLHF, query alone": ("/get_reward", {"query": k.talks}, each(of="rewards"), k.rewards),
        "OpenRLHF, empty shard": (  # it splits a query over several URLs, of which some get none
            "/get_reward", {"query": [], "prompts": [], "labels": []}, lambda a: [*a["extra_logs"].values()], [],
        ),
        "OpenRLHF, sample filter": (
            "/get_reward?activation=sigmoid&threshold=0.5",
            {"query": k.talks},
            several(each(of="rewards"), each(of="scores")),
            [k.rewards, k.filtered],
        ),
        "slime": ("/remote_rm", {"prompt": TURNS, "response": TEXTS[0], "label": "5"}, each(), [k.rewards[0]]),
        "slime, reward key": (
            "/remote_rm?key=r", {"prompt": k.start, "response": f"{TEXTS[0]}<|im_end|>"}, each("r"), [k.rewards[0]],
        ),
        "LLaMA-Factory": ("/v1/score/evaluation", {"model": "m", "messages": k.talks}, each(of="scores"), k.rewards),
        "TEI /predict": ("/predict", {"inputs": [[k.talks[0]]], "raw_scores": True}, each(0, "score"), [k.rewards[0]]),
        "TEI /predict, a pair": ("/predict", {"inputs": [PROMPT, TEXTS[0]]}, each("score"), [k.shares[0]]),
        "TEI /predict, no input": ("/predict", {"inputs": []}, each(), []),
        "TEI /rerank": (
            "/rerank", {"query": PROMPT, "texts": TEXTS, "raw_scores": True}, each("score"), k.ranked_rewards,
        ),
        "Hugging Face, JavaScript": ("/", {"inputs": k.talks[0], "parameters": HUB}, each(0, "score"), [k.rewards[0]]),
        "Cohere v1": (
            "/v1/rerank", QUERY | {"documents": OBJECTS, "return_documents": True}, best_text, [k.best, k.ranked],
        ),
        "Cohere v1, top_n": ("/v1/rerank", QUERY | {"top_n": 1}, relevances, [k.ranked[0]]),
        "Cohere v2": (
            "/v2/rerank",
            QUERY | {"max_tokens_per_doc": 4096},
            several(lambda a: a["meta"]["api_version"]["version"], relevances),
            ["2", k.ranked],
        ),
        "Jina": (
            "/v1/rerank",
            QUERY | {"return_documents": False},
            several(lambda a: sorted(a["results"][0]), lambda a: a["usage"]["total_tokens"] > 0),
            ["index", "relevance_score", True],
        ),
        "Xinference": (
            "/v1/rerank", QUERY | {"return_len": True}, lambda a: [a["meta"]["tokens"]["input_tokens"] > 0], [True],
        ),
        "Voyage": ("/v1/rerank", QUERY | {"top_k": 1}, each("relevance_score", of="data"), [k.ranked[0]]),
        "litellm, infinity": ("/infinity/rerank", QUERY, lambda a: a["results"][0]["document"], [k.best]),
        "litellm, nvidia_nim": (
            "/v1/retrieval/an/owners_model/reranking", PASSAGES, each("logit", of="rankings"), k.ranked_rewards,
        ),
        "NVIDIA /v1/ranking": ("/v1/ranking", PASSAGES | {"top_k": 1}, each("index", of="rankings"), [k.order[0]]),
        "litellm, deepinfra": (
            "/inference/an/owners-model", {"queries": [PROMPT] * 3, "documents": TEXTS}, each(of="scores"), k.shares,
        ),
        "infinity /rerank": (
            "/rerank", QUERY | {"raw_scores": True}, lambda a: a["results"][0]["document"], [k.best],
        ),
        "infinity /classify": (
            "/classify", {"input": k.talks, "raw_scores": False}, each(0, "score", of="data"), k.shares,
        ),
    }  # fmt: skip


def flat(value: Any) -> list[Any]:
    return [part for each in value for part in flat(each)] if isinstance(value, list) else [value]


@pytest.mark.parametrize("client", cases(MagicMock()))
def test_the_client_reads_the_model_s_rewards(http: httpx2.Client, know: SimpleNamespace, client: str) -> None:
    path, body, read, expected = cases(know)[client]
    answer = http.post(path, json=body)
    assert answer.status_code == 200, answer.text
    for value, wanted in zip(flat(read(answer.json())), flat(expected), strict=True):
        assert value == (pytest.approx(wanted, abs=1e-4) if isinstance(wanted, float) else wanted)


def test_installed_clients_read_the_model_s_rewards(served_url: str, know: SimpleNamespace) -> None:
    """openai-python and huggingface_hub, as they are installed."""
    client = openai.OpenAI(base_url=f"{served_url}/v1", api_key="-")
    data = client.embeddings.create(model="m", input=know.talks).data
    assert [each.embedding[0] for each in data] == pytest.approx(know.rewards, abs=1e-4)
    assert client.models.retrieve("tiny").id == "tiny"
    assert [model.id for model in client.models.list()] == ["tiny"]
    with pytest.raises(openai.NotFoundError, match="there is no model 'no/such'; use one of tiny"):
        client.models.retrieve("no/such")

    def classified(**options: Any) -> float:
        hub = InferenceClient(model=f"{served_url}/predict")
        return hub.text_classification(know.talks[0], **options)[0].score

    assert classified(function_to_apply="none") == pytest.approx(know.rewards[0], abs=1e-4)
    assert classified() == pytest.approx(know.shares[0], abs=1e-4)
    assert classified(function_to_apply="softmax") == 1.0  # over a single class
    similar = InferenceClient(model=f"{served_url}/similarity").sentence_similarity(PROMPT, other_sentences=TEXTS)
    assert similar == pytest.approx(know.shares, abs=1e-4)


def test_openrlhfs_logs(http: httpx2.Client, know: SimpleNamespace, trained_run: Any) -> None:
    logs = http.post("/get_reward", json={"query": know.talks}).json()["extra_logs"]
    tasks = trained_run.model.config.tasks
    capabilities = {f"{task}/{each}" for task, names in tasks.items() for each in names}
    named = {f"task/{task}" for task in tasks} | capabilities
    named |= {f"contribution/{each}" for each in (*capabilities, *BASE_SCORES)}
    assert set(logs) == {"has_uncertainty", "uncertainty", "truncated"} | named
    assert {len(values) for values in logs.values()} == {3}
    for name, value in know.scores[1].capabilities.items():
        assert logs[f"{know.scores[1].task}/{name}"][1] == pytest.approx(value, abs=1e-4)
    parts = sum(values[1] for name, values in logs.items() if name.startswith("contribution/"))
    assert parts == pytest.approx(know.rewards[1], abs=1e-4)
    for query in ("activation=tanh", "activation=sigmoid&temperature=0", "threshold=inf"):
        assert http.post(f"/get_reward?{query}", json={"query": know.talks}).status_code == 422


def test_a_policy_of_another_family_is_understood(http: httpx2.Client, know: SimpleNamespace) -> None:
    header = "<|start_header_id|>{}<|end_header_id|>\n\n"
    prompt = f"<|begin_of_text|>{header.format('user')}{PROMPT}<|eot_id|>{header.format('assistant')}"
    answer = http.post("/get_reward", json={"query": [f"{prompt}{TEXTS[0]}<|eot_id|>"], "prompts": [prompt]}).json()
    assert answer["rewards"] == pytest.approx(know.rewards[:1], abs=1e-4)


def test_keys_in_urls(trained_run: Any, know: SimpleNamespace) -> None:
    """OpenRLHF sends no headers of its own, so a key must be in the URL; aiohttp and requests send it as `Basic`."""
    body = {"query": know.talks[:1]}
    with served(create_app(trained_run.model, ServingConfig(api_key="let me/in"))) as url:
        host, path = url.removeprefix("http://"), "get_reward"

        async def status(user: str) -> int:
            address = f"http://{user}@{host}/{path}"
            async with aiohttp.ClientSession() as session, session.post(address, json=body) as answer:
                return answer.status

        for user, expected in (("let%20me%2Fin", 200), ("any:let%20me%2Fin", 200), ("wrong", 401), ("x:wrong", 401)):
            assert asyncio.run(status(user)) == expected
            if ":" in user:  # requests ignores a user without a password
                assert requests.post(f"http://{user}@{host}/{path}", json=body, timeout=20).status_code == expected
        for header, expected in (("bearer let me/in", 200), ("BEARER let me/in", 200), ("Basic %%%", 401)):
            headers = {"Authorization": header}
            assert httpx2.post(f"{url}/{path}", json=body, headers=headers).status_code == expected


def test_vllm_tokenize(http: httpx2.Client, know: SimpleNamespace, trained_run: Any) -> None:
    """`count`, `max_model_len`, `tokens`; a conversation counts as the model reads it."""
    model, turns = trained_run.model, know.turns[0]
    answer = http.post("/tokenize", json={"model": "m", "prompt": know.talks[0], "add_special_tokens": False}).json()
    assert answer["tokens"] == know.ids[0]
    assert (answer["count"], answer["max_model_len"]) == (len(know.ids[0]), model.encoder.max_length)
    spoken = http.post("/tokenize", json={"messages": turns, "return_token_strs": True}).json()
    scored = http.post("/classify", json={"messages": turns}).json()["usage"]["total_tokens"]
    assert spoken["count"] == len(spoken["token_strs"]) == scored
    prompt = http.post("/tokenize", json={"messages": TURNS}).json()
    assert prompt["tokens"] == spoken["tokens"][: prompt["count"]]


def test_what_clients_read_of_the_model(http: httpx2.Client, trained_run: Any) -> None:
    """vLLM: `max_model_len` and `root`; infinity: `stats` and its own name as the owner; TEI: kind and limits."""
    (card,) = http.get("/v1/models").json()["data"]
    assert (card["object"], card["root"], card["id"], card["tasks"]) == (
        "model", "tiny", "tiny", trained_run.model.config.tasks,
    )  # fmt: skip
    assert card["max_model_len"] == trained_run.model.encoder.max_length
    (own,) = http.get("/models").json()["data"]
    assert (own["id"], own["owned_by"], own["stats"]) == ("tiny", "infinity", {})
    info = http.get("/info").json()
    assert info["model_type"]["classifier"]["id2label"] == {"0": "REWARD"}
    assert info["max_input_length"] == trained_run.model.encoder.max_length
    assert info["max_client_batch_size"] == ServingConfig().max_responses
    assert info["model_dtype"] == "float32"


def test_the_table_names_the_clients() -> None:
    page = (Path(__file__).parents[2] / "docs" / "serving.md").read_text()
    table = page.partition("<!-- clients -->")[2].partition("<!-- end -->")[0]
    named = " ".join(re.findall(r"^\| ([^|]+) \|", table, re.MULTILINE))
    assert [name for name in cases(MagicMock()) if re.split(r",| /", name)[0] not in named] == []
