"""The requests that clients send, field by field as their sources have them, and how they read the answers.

Each test names the client, and the version or the commit of its public repository that was read.
"""

from __future__ import annotations

import asyncio
import math
import re
from pathlib import Path
from typing import Any

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
DOCUMENTS = ["Oh no. What happened?", "The exam took place.", "No."]


def sigmoid(value: float) -> float:
    return 1 / (1 + math.exp(-value))


@pytest.fixture(scope="module")
def plain(trained_run) -> list[float]:
    """The rewards of the documents as responses to the prompt as a text."""
    return [score.reward for score in trained_run.model.score(PROMPT, DOCUMENTS)]


@pytest.fixture(scope="module")
def talks(trained_run) -> list[str]:
    """The conversations as the model's own template renders them."""
    render = trained_run.model.tokenizer.apply_chat_template
    return [render([*TURNS, {"role": "assistant", "content": text}], tokenize=False) for text in DOCUMENTS]


@pytest.fixture(scope="module")
def order(plain) -> list[int]:
    return sorted(range(len(plain)), key=lambda i: -plain[i])


def near(values: Any) -> Any:
    return pytest.approx(values, abs=1e-4)


def ranked(results: list[dict[str, Any]]) -> tuple[list[int], list[float]]:
    return [each["index"] for each in results], [each["relevance_score"] for each in results]


# --- rerank --------------------------------------------------------------------------------------------------------


def test_cohere_v1_rerank(http, plain, order):
    """cohere-python 5 `Client.rerank`: objects as documents, and their text only if it is asked for."""
    body = {"model": "m", "query": PROMPT, "documents": [{"text": text} for text in DOCUMENTS], "top_n": 2}
    answer = http.post("/v1/rerank", json=body | {"return_documents": True, "max_chunks_per_doc": 10}).json()
    assert ranked(answer["results"]) == (order[:2], near([sigmoid(plain[i]) for i in order[:2]]))
    assert [each["document"]["text"] for each in answer["results"]] == [DOCUMENTS[i] for i in order[:2]]
    assert answer["meta"]["api_version"]["version"] == "1"
    assert isinstance(answer["id"], str)
    short = http.post("/v1/rerank", json=body | {"return_documents": False}).json()
    assert [set(each) for each in short["results"]] == [{"index", "relevance_score"}] * 2


def test_cohere_v2_rerank(http, plain, order):
    """cohere-python 5 `ClientV2.rerank` (045c06c): texts as documents."""
    body = {"model": "rerank-v3.5", "query": PROMPT, "documents": DOCUMENTS, "max_tokens_per_doc": 4096}
    answer = http.post("/v2/rerank", json=body).json()
    assert ranked(answer["results"]) == (order, near([sigmoid(plain[i]) for i in order]))
    assert answer["meta"] | {"tokens": None} == {
        "api_version": {"version": "2"},
        "billed_units": {"search_units": 1},
        "tokens": None,
    }


def test_jina_rerank(http, order):
    """Jina's API v1 as LangChain's `JinaRerank` sends it: reads `results` and `usage.total_tokens`."""
    body = {"query": PROMPT, "documents": DOCUMENTS, "model": "jina-reranker-v2", "top_n": 1, "return_documents": True}
    answer = http.post("/v1/rerank", json=body).json()
    (best,) = answer["results"]
    assert (best["index"], best["document"]["text"]) == (order[0], DOCUMENTS[order[0]])
    assert answer["usage"]["total_tokens"] > 0


def test_vllm_rerank(http, plain, order):
    """vLLM (004706d): `top_n` 0 means all, results always have a document, `use_activation: false` gives rewards."""
    body = {"model": "m", "query": PROMPT, "documents": DOCUMENTS, "top_n": 0, "use_activation": False}
    answer = http.post("/rerank", json=body).json()
    assert ranked(answer["results"]) == (order, near([plain[i] for i in order]))
    assert [each["document"] for each in answer["results"]] == [{"text": DOCUMENTS[i]} for i in order]
    assert {"id", "model", "usage"} <= set(answer)


def test_xinference_rerank(http, order):
    """Xinference 1 `RESTfulRerankModelHandle.rerank`: unknown fields are in the body; reads `results` and `meta`."""
    body = {"model": "m", "documents": DOCUMENTS, "query": PROMPT, "top_n": None, "max_chunks_per_doc": None}
    body |= {"return_documents": True, "return_len": True, "kwargs": "{}"}
    answer = http.post("/v1/rerank", json=body).json()
    assert [each["index"] for each in answer["results"]] == order
    assert answer["meta"]["tokens"]["input_tokens"] > 0
    assert answer["results"][0]["document"]["text"] == DOCUMENTS[order[0]]


def test_infinity_rerank(http, plain, order):
    """infinity_client: `raw_scores` is always sent, and a document is a text."""
    body = {"query": PROMPT, "documents": DOCUMENTS, "return_documents": True, "raw_scores": True, "model": "default"}
    answer = http.post("/rerank", json=body).json()
    assert answer["object"] == "rerank"
    assert ranked(answer["results"]) == (order, near([plain[i] for i in order]))
    assert answer["results"][0]["document"] == DOCUMENTS[order[0]]
    squashed = http.post("/rerank", json=body | {"raw_scores": False}).json()
    assert ranked(squashed["results"])[1] == near([sigmoid(plain[i]) for i in order])


def test_litellm_infinity_rerank(http, order):
    """litellm 1.83 `infinity/`: the request of its `hosted_vllm/`, and a document that is a text."""
    body = {"model": "m", "query": PROMPT, "documents": DOCUMENTS, "return_documents": True}
    answer = http.post("/infinity/rerank", json=body).json()
    assert [each["document"] for each in answer["results"]] == [DOCUMENTS[i] for i in order]
    hosted = http.post("/rerank", json=body).json()
    assert [each["document"] for each in hosted["results"]] == [{"text": DOCUMENTS[i]} for i in order]


def test_voyage_rerank(http, plain, order):
    """voyageai 0.5 `Client.rerank` with base_url=…/v1, and litellm's `voyage/`: both read `data`."""
    body = {"query": PROMPT, "documents": DOCUMENTS, "model": "m", "top_k": 2, "truncation": True}
    answer = http.post("/v1/rerank", json=body).json()
    assert ranked(answer["data"]) == (order[:2], near([sigmoid(plain[i]) for i in order[:2]]))
    assert answer["usage"]["total_tokens"] > 0
    assert len(http.post("/v1/rerank", json=body | {"top_k": None}).json()["data"]) == 3


@pytest.mark.parametrize("path", ["/v1/ranking", "/v1/retrieval/an/owners_model/reranking"])
def test_nvidia_ranking(http, plain, order, path):
    """litellm 1.83 `nvidia_nim/`: `passages`, `top_k`, and the reward as `logit`."""
    passages = [{"text": text} for text in DOCUMENTS]
    body = {"model": "m", "query": {"text": PROMPT}, "passages": passages, "truncate": "END"}
    expected = [{"index": i, "logit": near(plain[i])} for i in order]
    assert http.post(path, json=body).json()["rankings"] == expected
    assert http.post(path, json=body | {"top_k": 1}).json()["rankings"] == expected[:1]
    assert http.post(path, json=body | {"passages": []}).status_code == 422


@pytest.mark.parametrize("path", ["/inference/an/owners-model", "/v1/inference/m"])
def test_deepinfra_rerank(http, plain, path):
    """litellm 1.83 `deepinfra/`: the query once per document, and scores in the documents' order."""
    answer = http.post(path, json={"queries": [PROMPT] * 3, "documents": DOCUMENTS}).json()
    assert answer["scores"] == near([sigmoid(reward) for reward in plain])
    assert answer["input_tokens"] > 0


def test_tei_rerank(http, plain, order):
    """Text Embeddings Inference (02506d0): `texts`, and a list of ranks as the answer."""
    body = {"query": PROMPT, "texts": DOCUMENTS, "raw_scores": True, "return_text": True, "truncate": False}
    answer = http.post("/rerank", json=body).json()
    assert [(each["index"], each["text"]) for each in answer] == [(i, DOCUMENTS[i]) for i in order]
    assert [each["score"] for each in answer] == near([plain[i] for i in order])
    (first, *_) = http.post("/rerank", json={"query": PROMPT, "texts": DOCUMENTS}).json()
    assert first == {"index": order[0], "score": near(sigmoid(plain[order[0]]))}


# --- trainers ------------------------------------------------------------------------------------------------------


def test_slime_remote_rm(served_url, trained_run):
    """slime (0b420f1) `remote_rm` over aiohttp: the answer itself is the reward; `--reward-key` reads a name."""
    expected = near(trained_run.model.score(TURNS, DOCUMENTS[:1])[0].reward)
    tokenizer = trained_run.model.tokenizer
    rendered = tokenizer.apply_chat_template(TURNS, tokenize=False, add_generation_prompt=True)
    samples = [(TURNS, DOCUMENTS[0]), (rendered, f"{DOCUMENTS[0]}<|im_end|>")]

    async def remote_rm(path: str) -> list[Any]:
        async with aiohttp.ClientSession() as session:
            answers = []
            for prompt, response in samples:
                payload = {"prompt": prompt, "response": response, "label": "5"}
                async with session.post(served_url + path, json=payload) as answer:
                    answer.raise_for_status()
                    answers.append(await answer.json())
            return answers

    assert asyncio.run(remote_rm("/remote_rm")) == [expected, expected]
    assert [each["score"] for each in asyncio.run(remote_rm("/remote_rm?key=score"))] == [expected, expected]


def test_llama_factory(served_url, talks, trained_run):
    """LLaMA-Factory (ff6d4d12e) `get_rewards_from_server`: reads `scores`, whatever the status is."""
    payload = {"model": "model", "messages": talks}
    headers = {"Content-Type": "application/json"}
    answer = requests.post(f"{served_url}/v1/score/evaluation", json=payload, headers=headers, timeout=20).json()
    assert answer["scores"] == near([score.reward for score in trained_run.model.score(TURNS, DOCUMENTS)])
    assert (answer["object"], answer["model"]) == ("score.evaluation", "tiny")


def test_sglang_classify(http, talks, trained_run):
    """SGLang (20c0215) examples/runtime/reward_model.py: `conv`; its native API: `text` and `input_ids`."""
    expected = near([score.reward for score in trained_run.model.score(TURNS, DOCUMENTS)])
    conv = [[*TURNS, {"role": "assistant", "content": text}] for text in DOCUMENTS]
    ids = [trained_run.model.tokenizer(text, add_special_tokens=False)["input_ids"] for text in talks]
    for body in ({"conv": conv}, {"model": "m", "text": talks}, {"input_ids": ids}):
        answer = http.post("/classify", json=body).json()
        assert [each["embedding"][0] for each in answer] == expected, body
    for body in ({"conv": conv[0]}, {"text": talks[0]}, {"input_ids": ids[0]}):
        assert http.post("/classify", json=body).json()["embedding"] == near(expected.expected[:1]), body


def test_verl_sglang_engine(http, talks, trained_run):
    """verl (14af4d3) `RewardLoopWorker.compute_score_disrm` with `rollout.name=sglang`, the BOS token taken off."""
    expected = near(trained_run.model.score(TURNS, DOCUMENTS[:1])[0].reward)
    bos = trained_run.model.tokenizer.bos_token
    output = http.post("/v1/embeddings", json={"model": "m", "input": talks[0].removeprefix(bos)}).json()
    assert output["data"][-1]["embedding"][-1] == expected


def test_openai_embeddings(served_url, talks, trained_run):
    """openai-python's `embeddings.create`, as it is installed."""
    client = openai.OpenAI(base_url=f"{served_url}/v1", api_key="-")
    data = client.embeddings.create(model="m", input=talks).data
    expected = [score.reward for score in trained_run.model.score(TURNS, DOCUMENTS)]
    assert [each.embedding[0] for each in data] == near(expected)


def test_openrlhf_empty_shard(http, trained_run):
    """OpenRLHF (04655bc) `_fetch_rewards_via_http` splits a single query over all URLs: some get none."""
    answer = http.post("/get_reward", json={"query": [], "prompts": [], "labels": []}).json()
    assert (answer["rewards"], answer["scores"]) == ([], [])
    assert set(map(len, answer["extra_logs"].values())) == {0}


def test_openrlhf_sample_filter(http, talks, trained_run):
    """OpenRLHF with `dynamic_filtering` keeps prompts whose mean score is within (0, 1), and trains on rewards."""
    scores = trained_run.model.score(TURNS, DOCUMENTS)
    rewards = [score.reward for score in scores]
    own = [sigmoid((score.reward - 0.5) / score.temperature) for score in scores]
    given = [sigmoid((reward - 0.5) / 3) for reward in rewards]
    for query, expected in (("threshold=0.5", own), ("threshold=0.5&temperature=3", given)):
        answer = http.post(f"/get_reward?activation=sigmoid&{query}", json={"query": talks}).json()
        assert answer["rewards"] == near(rewards)
        assert answer["scores"] == near(expected)
    empty = talks[0].replace(DOCUMENTS[0], "")
    answer = http.post("/get_reward?activation=sigmoid", json={"query": [empty]}).json()
    assert answer["rewards"] == [MIN_REWARD]
    assert 0 <= answer["scores"][0] < 0.01
    for query in ("activation=tanh", "activation=sigmoid&temperature=0", "threshold=inf"):
        assert http.post(f"/get_reward?{query}", json={"query": talks}).status_code == 422


def test_keys_in_urls(trained_run, talks):
    """OpenRLHF sends no headers of its own, so a key must be in the URL; aiohttp and requests send it as `Basic`."""
    body = {"query": talks[:1]}
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


# --- model servers' clients ----------------------------------------------------------------------------------------


def test_vllm_content_parts(http, trained_run):
    """vLLM 0.13's ClassificationChatRequest: messages with content parts, as OpenAI's API has them."""
    part = [{"type": "text", "text": PROMPT}]
    messages = [{"role": "user", "content": part}, {"role": "assistant", "content": DOCUMENTS[0]}]
    answer = http.post("/classify", json={"messages": messages, "use_activation": False, "add_special_tokens": False})
    expected = trained_run.model.score(TURNS, DOCUMENTS[:1])[0].reward
    assert answer.json()["data"][0]["probs"] == near([expected])
    native = {"items": [{"prompt": messages[:1], "responses": DOCUMENTS[:1]}]}
    assert http.post("/v1/score", json=native).json()["items"][0]["scores"][0]["reward"] == near(expected)


def test_vllm_token_ids(http, talks, trained_run):
    """vLLM's CompletionRequest forms of `input`: a list of token ids, or a list of such lists."""
    expected = [score.reward for score in trained_run.model.score(TURNS, DOCUMENTS)]
    ids = [trained_run.model.tokenizer(text, add_special_tokens=False)["input_ids"] for text in talks]
    for path, field in (("/classify", "probs"), ("/pooling", "data")):
        assert [each[field][0] for each in http.post(path, json={"input": ids}).json()["data"]] == near(expected)
        assert http.post(path, json={"input": ids[1]}).json()["data"][0][field] == near(expected[1:2])
        assert http.post(path, json={"prompt_token_ids": ids[1]}).json()["data"][0][field] == near(expected[1:2])


@pytest.mark.parametrize(
    "names", [("text_1", "text_2"), ("queries", "documents"), ("queries", "items"), ("data_1", "data_2")]
)
def test_vllm_score(http, plain, names):
    """vLLM (004706d): one text against several, or pairs, under four pairs of names."""
    first, second = names
    several = http.post("/score", json={first: PROMPT, second: DOCUMENTS}).json()
    pairs = http.post("/score", json={first: [PROMPT] * 3, second: DOCUMENTS, "use_activation": True}).json()
    assert [each["score"] for each in several["data"]] == near(plain)
    assert [each["score"] for each in pairs["data"]] == near([sigmoid(reward) for reward in plain])
    assert [each["index"] for each in several["data"]] == [0, 1, 2]


def test_vllm_tokenize(http, talks, trained_run):
    """vLLM's /tokenize: `count`, `max_model_len`, `tokens`; a conversation counts as the model reads it."""
    model = trained_run.model
    answer = http.post("/tokenize", json={"model": "m", "prompt": talks[0], "add_special_tokens": False}).json()
    assert answer["tokens"] == model.tokenizer(talks[0], add_special_tokens=False)["input_ids"]
    assert answer["count"] == len(answer["tokens"])
    assert answer["max_model_len"] == model.encoder.max_length
    turns = [*TURNS, {"role": "assistant", "content": DOCUMENTS[0]}]
    spoken = http.post("/tokenize", json={"messages": turns, "return_token_strs": True}).json()
    scored = http.post("/classify", json={"messages": turns}).json()["usage"]["total_tokens"]
    assert spoken["count"] == len(spoken["token_strs"]) == scored
    prompt = http.post("/tokenize", json={"messages": TURNS}).json()
    assert prompt["tokens"] == spoken["tokens"][: prompt["count"]]


def test_vllm_models(http, trained_run):
    """vLLM's /v1/models: clients read `max_model_len` and `root`."""
    (card,) = http.get("/v1/models").json()["data"]
    assert (card["object"], card["root"], card["id"]) == ("model", "tiny", "tiny")
    assert card["max_model_len"] == trained_run.model.encoder.max_length


def test_vllm_bare_texts(http):
    """vLLM's examples classify texts without a response, which a reward model cannot: the answer says what to send."""
    for path in ("/classify", "/pooling"):
        for body in ({"model": "m", "input": ["vLLM is great!"]}, {"input": "vLLM is great!"}, {"messages": TURNS}):
            answer = http.post(path, json=body)
            assert answer.status_code == 422
            assert re.search(
                "send messages, or a conversation|end with the assistant's", answer.json()["error"]["message"]
            )


def test_models_by_name(served_url):
    """openai-python's `models.retrieve` and `models.list`, as it is installed."""
    client = openai.OpenAI(base_url=f"{served_url}/v1", api_key="-")
    assert client.models.retrieve("tiny").id == "tiny"
    assert [model.id for model in client.models.list()] == ["tiny"]
    with pytest.raises(openai.NotFoundError, match="there is no model 'no/such'; use one of tiny"):
        client.models.retrieve("no/such")


def test_infinity_models(http):
    """infinity_client 0.0.78 `models`: reads `stats`, and accepts no other owner."""
    (card,) = http.get("/models").json()["data"]
    assert (card["id"], card["owned_by"], card["stats"]) == ("tiny", "infinity", {})


def test_infinity_classify(http, talks, trained_run):
    """infinity's clients send `raw_scores` with `input`, and read lists of {score, label} per text."""
    expected = [score.reward for score in trained_run.model.score(TURNS, DOCUMENTS)]
    for raw, values in ((True, expected), (False, [sigmoid(reward) for reward in expected])):
        answer = http.post("/classify", json={"model": "m", "input": talks, "raw_scores": raw}).json()
        assert answer["object"] == "classify"
        assert [each[0]["score"] for each in answer["data"]] == near(values)
        assert answer["data"][0][0]["label"] == "REWARD"


def test_tei_similarity(served_url, plain):
    """huggingface_hub's `sentence_similarity`, as it is installed."""
    client = InferenceClient(model=f"{served_url}/similarity")
    assert client.sentence_similarity(PROMPT, other_sentences=DOCUMENTS) == near([sigmoid(each) for each in plain])


def test_tei_softmax(served_url, talks):
    """huggingface_hub's `text_classification` with softmax: over a single class it is 1, as in transformers."""
    client = InferenceClient(model=f"{served_url}/predict")
    (result,) = client.text_classification(talks[0], function_to_apply="softmax")
    assert result.score == 1.0


def test_huggingface_js(http, talks, trained_run):
    """@huggingface/inference 4.13 `textClassification` with `parameters`: the first element is the list of labels."""
    body = {"inputs": talks[0], "parameters": {"function_to_apply": "none"}}
    reward = trained_run.model.score(TURNS, DOCUMENTS[:1])[0].reward
    assert http.post("/", json=body).json() == [[{"label": "REWARD", "score": near(reward)}]]


def test_tei_info(http, trained_run):
    """Text Embeddings Inference's Info: clients read the model's kind and the limits."""
    info = http.get("/info").json()
    assert info["model_type"]["classifier"]["id2label"] == {"0": "REWARD"}
    assert info["max_input_length"] == trained_run.model.encoder.max_length
    assert info["max_client_batch_size"] == ServingConfig().max_responses
    assert info["model_dtype"] == "float32"


# --- the table -----------------------------------------------------------------------------------------------------


def test_every_client_of_the_table_has_a_test():
    page = (Path(__file__).parents[2] / "docs" / "serving.md").read_text()
    table = page.partition("<!-- clients -->")[2].partition("<!-- end -->")[0]
    named = set(re.findall(r"`(test_\w+)`", table))

    def tests(file: str) -> set[str]:
        return set(re.findall(r"^def (test_\w+)", (Path(__file__).parent / file).read_text(), re.MULTILINE))

    clients, others = tests("test_clients.py"), {"test_every_client_of_the_table_has_a_test"}
    for file in ("integrations/test_trl.py", "integrations/test_verl.py", "client/test_client.py"):
        named -= tests(f"../{file}")
    named -= tests("../model/test_plain.py") | tests("../model/test_pipeline.py")
    assert named <= clients | tests("test_protocols.py")
    assert clients - named == others
