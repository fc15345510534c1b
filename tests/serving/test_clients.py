"""The requests that clients send, field by field as their sources have them, and how they read the answers.

docs/serving.md names each client's version, or the commit of its public repository that was read.
"""

from __future__ import annotations

import asyncio
import math
import re
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any, NamedTuple

import aiohttp
import httpx2
import openai
import pytest
import requests
from huggingface_hub import InferenceClient
from running import served

from dmoerm.scores import MIN_REWARD
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
    shares = [sigmoid(reward) for reward in rewards]
    known = {
        "ranked": [shares[i] for i in order],
        "ranked_rewards": [rewards[i] for i in order],
        "bos": tokenizer.bos_token,
    }
    return SimpleNamespace(
        scores=scores,
        rewards=rewards,
        shares=shares,
        order=order,
        turns=turns,
        talks=talks,
        start=start,
        ids=ids,
        **known,
    )


class Case(NamedTuple):
    """A client's request, what it reads of the answer, and what that is."""

    path: str
    body: Callable[[Any], Any]
    read: Callable[[Any], Any]
    expected: Callable[[Any], Any]


def probs(field: str = "probs") -> Callable[[Any], list[float]]:
    return lambda answer: [each[field][-1] for each in answer["data"]]


def embeddings(answer: Any) -> list[float]:
    return [each["embedding"][0] for each in (answer if isinstance(answer, list) else [answer])]


def relevances(answer: Any) -> list[float]:
    return [each["relevance_score"] for each in answer["results"]]


CASES: dict[str, Case] = {
    "vLLM, messages": Case(
        "/classify",
        lambda k: {"messages": k.turns[0], "use_activation": False, "add_special_tokens": False},
        lambda a: [a["object"], a["data"][0]["num_classes"], *probs()(a)],
        lambda k: ["list", 1, k.rewards[0]],
    ),
    "vLLM, content parts": Case(
        "/classify",
        lambda k: {"messages": [{"role": "user", "content": [{"type": "text", "text": PROMPT}]}, k.turns[0][1]]},
        probs(),
        lambda k: k.rewards[:1],
    ),
    "vLLM, rendered texts": Case("/classify", lambda k: {"input": k.talks}, probs(), lambda k: k.rewards),
    "vLLM, token ids": Case("/classify", lambda k: {"input": k.ids}, probs(), lambda k: k.rewards),
    "vLLM, prompt_token_ids": Case(
        "/pooling", lambda k: {"prompt_token_ids": k.ids[1]}, probs("data"), lambda k: k.rewards[1:2]
    ),
    "vLLM, activation": Case(
        "/classify", lambda k: {"input": k.talks, "activation": True}, probs(), lambda k: k.shares
    ),
    "vLLM /pooling": Case("/pooling", lambda k: {"input": k.talks}, probs("data"), lambda k: k.rewards),
    "vLLM /score": Case(
        "/score",
        lambda k: {"text_1": PROMPT, "text_2": TEXTS},
        lambda a: [each["score"] for each in a["data"]],
        lambda k: k.rewards,
    ),
    "vLLM /score, pairs": Case(
        "/score",
        lambda k: {"queries": [PROMPT] * 3, "items": TEXTS, "use_activation": True},
        lambda a: [each["score"] for each in a["data"]],
        lambda k: k.shares,
    ),
    "vLLM /rerank": Case(
        "/rerank",
        lambda k: QUERY | {"top_n": 0, "use_activation": False},
        lambda a: [*relevances(a), a["results"][0]["document"]["text"]],
        lambda k: [*k.ranked_rewards, TEXTS[k.order[0]]],
    ),
    "verl, engine vllm": Case(  # it takes the BOS token off and reads the last of `probs`
        "/classify",
        lambda k: {"model": "m", "input": k.talks[0].removeprefix(k.bos), "activation": False},
        probs(),
        lambda k: k.rewards[:1],
    ),
    "verl, engine sglang": Case(
        "/v1/embeddings",
        lambda k: {"model": "m", "input": k.talks[0].removeprefix(k.bos)},
        lambda a: [a["data"][-1]["embedding"][-1]],
        lambda k: k.rewards[:1],
    ),
    "SGLang, conv": Case("/classify", lambda k: {"conv": k.turns}, embeddings, lambda k: k.rewards),
    "SGLang, text": Case("/classify", lambda k: {"text": k.talks[0]}, embeddings, lambda k: k.rewards[:1]),
    "SGLang, input_ids": Case("/classify", lambda k: {"input_ids": k.ids}, embeddings, lambda k: k.rewards),
    "OpenRLHF": Case(
        "/get_reward",
        lambda k: {"query": k.talks, "prompts": [k.start] * 3, "labels": [None, "", None]},
        lambda a: [*a["rewards"], *a["scores"]],
        lambda k: k.rewards * 2,
    ),
    "OpenRLHF, query alone": Case(
        "/get_reward", lambda k: {"query": k.talks}, lambda a: a["rewards"], lambda k: k.rewards
    ),
    "OpenRLHF, empty shard": Case(  # it splits a query over several URLs, of which some get none
        "/get_reward",
        lambda k: {"query": [], "prompts": [], "labels": []},
        lambda a: [a["rewards"], a["scores"], *a["extra_logs"].values()],
        lambda k: [[], [], *([[]] * 9)],
    ),
    "OpenRLHF, sample filter": Case(
        "/get_reward?activation=sigmoid&threshold=0.5",
        lambda k: {"query": k.talks},
        lambda a: a["rewards"] + a["scores"],
        lambda k: k.rewards + [sigmoid((score.reward - 0.5) / score.temperature) for score in k.scores],
    ),
    "slime": Case(
        "/remote_rm",
        lambda k: {"prompt": TURNS, "response": TEXTS[0], "label": "5"},
        lambda a: [a],
        lambda k: k.rewards[:1],
    ),
    "slime, reward key": Case(
        "/remote_rm?key=score",
        lambda k: {"prompt": k.start, "response": f"{TEXTS[0]}<|im_end|>", "label": None},
        lambda a: [a["score"]],
        lambda k: k.rewards[:1],
    ),
    "LLaMA-Factory": Case(
        "/v1/score/evaluation",
        lambda k: {"model": "model", "messages": k.talks},
        lambda a: [a["object"], a["model"], *a["scores"]],
        lambda k: ["score.evaluation", "tiny", *k.rewards],
    ),
    "TEI /predict": Case(
        "/predict",
        lambda k: {"inputs": [[text] for text in k.talks], "raw_scores": True, "truncate": True},
        lambda a: [each[0]["score"] for each in a],
        lambda k: k.rewards,
    ),
    "TEI /predict, a pair": Case(
        "/predict", lambda k: {"inputs": [PROMPT, TEXTS[0]]}, lambda a: [a[0]["score"]], lambda k: k.shares[:1]
    ),
    "TEI /predict, no input": Case("/predict", lambda k: {"inputs": []}, lambda a: [a], lambda k: [[]]),
    "TEI /rerank": Case(
        "/rerank",
        lambda k: {"query": PROMPT, "texts": TEXTS, "raw_scores": True, "return_text": True},
        lambda a: [*(each["score"] for each in a), a[0]["text"]],
        lambda k: [*k.ranked_rewards, TEXTS[k.order[0]]],
    ),
    "Hugging Face, JavaScript": Case(
        "/",
        lambda k: {"inputs": k.talks[0], "parameters": {"function_to_apply": "none"}},
        lambda a: [a[0][0]["label"], a[0][0]["score"]],
        lambda k: ["REWARD", k.rewards[0]],
    ),
    "Cohere v1": Case(
        "/v1/rerank",
        lambda k: QUERY | {"documents": OBJECTS, "top_n": 2, "return_documents": True, "max_chunks_per_doc": 10},
        lambda a: [*relevances(a), a["results"][0]["document"]["text"], a["meta"]["api_version"]["version"]],
        lambda k: [*k.ranked[:2], TEXTS[k.order[0]], "1"],
    ),
    "Cohere v2": Case(
        "/v2/rerank",
        lambda k: QUERY | {"max_tokens_per_doc": 4096},
        lambda a: [*relevances(a), a["meta"]["api_version"]["version"], a["meta"]["billed_units"]["search_units"]],
        lambda k: [*k.ranked, "2", 1],
    ),
    "Jina": Case(
        "/v1/rerank",
        lambda k: QUERY | {"top_n": 1, "return_documents": False},
        lambda a: [set(a["results"][0]), a["usage"]["total_tokens"] > 0, *relevances(a)],
        lambda k: [{"index", "relevance_score"}, True, k.ranked[0]],
    ),
    "Xinference": Case(
        "/v1/rerank",
        lambda k: QUERY | {"top_n": None, "return_documents": True, "return_len": True, "kwargs": "{}"},
        lambda a: [a["meta"]["tokens"]["input_tokens"] > 0, *relevances(a)],
        lambda k: [True, *k.ranked],
    ),
    "Voyage": Case(
        "/v1/rerank",
        lambda k: QUERY | {"top_k": 2, "truncation": True},
        lambda a: [each["relevance_score"] for each in a["data"]],
        lambda k: k.ranked[:2],
    ),
    "litellm, infinity": Case(
        "/infinity/rerank",
        lambda k: QUERY | {"return_documents": True},
        lambda a: [each["document"] for each in a["results"]],
        lambda k: [TEXTS[i] for i in k.order],
    ),
    "litellm, nvidia_nim": Case(
        "/v1/retrieval/an/owners_model/reranking",
        lambda k: {"model": "m", "query": {"text": PROMPT}, "passages": OBJECTS, "truncate": "END"},
        lambda a: [each["logit"] for each in a["rankings"]],
        lambda k: k.ranked_rewards,
    ),
    "NVIDIA /v1/ranking": Case(
        "/v1/ranking",
        lambda k: {"model": "m", "query": {"text": PROMPT}, "passages": OBJECTS, "top_k": 1},
        lambda a: [a["rankings"][0]["index"], len(a["rankings"])],
        lambda k: [k.order[0], 1],
    ),
    "litellm, deepinfra": Case(
        "/inference/an/owners-model",
        lambda k: {"queries": [PROMPT] * 3, "documents": TEXTS},
        lambda a: [a["input_tokens"] > 0, *a["scores"]],
        lambda k: [True, *k.shares],
    ),
    "infinity /rerank": Case(
        "/rerank",
        lambda k: QUERY | {"return_documents": True, "raw_scores": True},
        lambda a: [a["object"], a["results"][0]["document"], *relevances(a)],
        lambda k: ["rerank", TEXTS[k.order[0]], *k.ranked_rewards],
    ),
    "infinity /classify": Case(
        "/classify",
        lambda k: {"model": "m", "input": k.talks, "raw_scores": False},
        lambda a: [a["object"], a["data"][0][0]["label"], *(each[0]["score"] for each in a["data"])],
        lambda k: ["classify", "REWARD", *k.shares],
    ),
}


@pytest.mark.parametrize("client", CASES)
def test_the_client_reads_the_model_s_rewards(http: httpx2.Client, know: SimpleNamespace, client: str) -> None:
    case = CASES[client]
    answer = http.post(case.path, json=case.body(know))
    assert answer.status_code == 200, answer.text
    for read, expected in zip(case.read(answer.json()), case.expected(know), strict=True):
        assert read == (pytest.approx(expected, abs=1e-4) if isinstance(expected, float) else expected)


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
    named = {f"task/{task}" for task in tasks} | {f"{task}/{each}" for task, names in tasks.items() for each in names}
    assert set(logs) == {"has_uncertainty", "uncertainty", "truncated"} | named
    assert {len(values) for values in logs.values()} == {3}
    for name, value in know.scores[1].capabilities.items():
        assert logs[f"{know.scores[1].task}/{name}"][1] == pytest.approx(value, abs=1e-4)
    for query in ("activation=tanh", "activation=sigmoid&temperature=0", "threshold=inf"):
        assert http.post(f"/get_reward?{query}", json={"query": know.talks}).status_code == 422


def test_an_empty_response_has_the_lowest_reward_in_every_protocol(http: httpx2.Client, know: SimpleNamespace) -> None:
    empty = f"{know.start}<|im_end|>"
    for path, body, read in (
        ("/get_reward", {"query": [empty], "prompts": [know.start]}, lambda a: a["rewards"][0]),
        ("/classify", {"input": empty}, lambda a: a["data"][0]["probs"][0]),
        ("/predict", {"inputs": [[PROMPT, " "]], "raw_scores": True}, lambda a: a[0][0]["score"]),
    ):
        assert read(http.post(path, json=body).json()) == MIN_REWARD


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


def test_a_text_without_a_response_says_what_to_send(http: httpx2.Client) -> None:
    """vLLM's examples classify such texts, which a reward model cannot."""
    for body in ({"model": "m", "input": ["vLLM is great!"]}, {"messages": TURNS}):
        answer = http.post("/classify", json=body)
        assert answer.status_code == 422
        assert re.search("send messages, or a conversation|end with the assistant's", answer.json()["error"]["message"])


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
    assert [name for name in CASES if re.split(r",| /", name)[0] not in named] == []
