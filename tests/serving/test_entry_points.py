"""One text has one reward, whatever way it takes to the model and whatever white space and marks are around it."""

from __future__ import annotations

import asyncio
import json
import math
from collections.abc import Callable
from typing import Any

import pytest
import torch
from transformers import AutoModelForSequenceClassification, pipeline
from typer.testing import CliRunner

import dmoerm
from dmoerm.cli import app
from dmoerm.integrations import verl
from dmoerm.integrations.openrlhf import reward_func
from dmoerm.integrations.trl import reward_function
from dmoerm.integrations.trl_module import RewardModule
from dmoerm.scores import MIN_REWARD

PROMPT, RESPONSE = "I failed my exam.", "Oh no. What happened?"
FRAMES = ["{}", " {}", "{}\n", "\n\t {}  \n\n", "{}<|im_end|>\n<|endoftext|>", "<s> {}</s>", "{}<|eot_id|>"]
EMPTY = " <|im_end|>\n"
TEXTS = [
    *((PROMPT, frame.format(RESPONSE)) for frame in FRAMES),
    *((frame.format(PROMPT), RESPONSE) for frame in FRAMES[3:]),
    (PROMPT, EMPTY),
]
Reward = Callable[[str, str], float]


def messages(prompt: str, response: str) -> list[dict[str, str]]:
    return [{"role": "user", "content": prompt}, {"role": "assistant", "content": response}]


@pytest.fixture(scope="module")
def entry_points(trained_run: Any, http: Any, served_url: str, tmp_path_factory: Any) -> dict[str, Reward]:
    model, folder = trained_run.model, trained_run.folder / "model"
    tokenizer, files = model.tokenizer, tmp_path_factory.mktemp("rows")
    classifier = AutoModelForSequenceClassification.from_pretrained(folder)
    classify: Any = pipeline("text-classification", model=classifier, tokenizer=tokenizer, function_to_apply="none")
    client, module = dmoerm.Client(served_url), RewardModule(model)

    def post(path: str, **body: Any) -> Any:
        return http.post(path, json=body).raise_for_status().json()

    def text(prompt: str, response: str) -> str:
        return tokenizer.apply_chat_template(messages(prompt, response), tokenize=False)

    def ids(prompt: str, response: str) -> list[int]:
        return tokenizer(text(prompt, response), add_special_tokens=False)["input_ids"]

    def start(prompt: str) -> str:
        return tokenizer.apply_chat_template(messages(prompt, "")[:1], tokenize=False, add_generation_prompt=True)

    rows, scored = files / "rows.jsonl", files / "scored.jsonl"
    rows.write_text("".join(json.dumps({"prompt": p, "responses": [r]}) + "\n" for p, r in TEXTS))
    options = ["--input", str(rows), "--output", str(scored)]
    assert CliRunner().invoke(app, ["score", str(folder), *options]).exit_code == 0
    in_file = dict(zip(TEXTS, (json.loads(row)["rewards"][0] for row in scored.open()), strict=True))

    def trl(prompt: Any, completion: Any, **options: Any) -> float:
        rewards = reward_function(model, **options)(prompts=[prompt], completions=[completion])
        return (asyncio.run(rewards) if options else rewards)[0]

    def logit(share: float) -> float:
        return math.log(share / (1 - share))

    return {
        "score": lambda p, r: model.score(p, [r])[0].reward,
        "score, messages": lambda p, r: model.score(messages(p, r)[:1], [r, "No."])[0].reward,
        "score, deterministic": lambda p, r: model.score(p, [r], deterministic=True)[0].reward,
        "dmoerm score": lambda p, r: in_file[p, r],
        "client": lambda p, r: client.score(p, [r])[0].reward,
        "/v1/score": lambda p, r: post("/v1/score", items=[{"prompt": p, "responses": [r]}])["items"][0]["scores"][0][
            "reward"
        ],
        "/classify, messages": lambda p, r: post("/classify", messages=messages(p, r))["data"][0]["probs"][0],
        "/classify, input": lambda p, r: post("/classify", input=text(p, r))["data"][0]["probs"][0],
        "/classify, token ids": lambda p, r: post("/classify", input=ids(p, r))["data"][0]["probs"][0],
        "/classify, conv": lambda p, r: post("/classify", conv=messages(p, r))["embedding"][0],
        "/classify, text": lambda p, r: post("/classify", text=text(p, r))["embedding"][0],
        "/classify, raw_scores": lambda p, r: post("/classify", input=[text(p, r)], raw_scores=True)["data"][0][0][
            "score"
        ],
        "/pooling": lambda p, r: post("/pooling", messages=messages(p, r))["data"][0]["data"][0],
        "/score": lambda p, r: post("/score", text_1=p, text_2=r)["data"][0]["score"],
        "/v1/embeddings": lambda p, r: post("/v1/embeddings", input=text(p, r))["data"][0]["embedding"][0],
        "/rerank": lambda p, r: post("/rerank", query=p, documents=[r], raw_scores=True)["results"][0][
            "relevance_score"
        ],
        "/v1/rerank": lambda p, r: logit(post("/v1/rerank", query=p, documents=[r])["results"][0]["relevance_score"]),
        "/v1/ranking": lambda p, r: post("/v1/ranking", query={"text": p}, passages=[{"text": r}])["rankings"][0][
            "logit"
        ],
        "/inference": lambda p, r: logit(post("/inference/m", queries=p, documents=[r])["scores"][0]),
        "/v1/score/evaluation": lambda p, r: post("/v1/score/evaluation", messages=[text(p, r)])["scores"][0],
        "/predict": lambda p, r: post("/predict", inputs=[p, r], raw_scores=True)[0]["score"],
        "/similarity": lambda p, r: logit(post("/similarity", inputs={"source_sentence": p, "sentences": [r]})[0]),
        "/get_reward": lambda p, r: post("/get_reward", query=[start(p) + r], prompts=[start(p)])["rewards"][0],
        "/get_reward, query alone": lambda p, r: post("/get_reward", query=[text(p, r)])["rewards"][0],
        "/get_reward, plain prompt": lambda p, r: post("/get_reward", query=[p + r], prompts=[p])["rewards"][0],
        "/remote_rm": lambda p, r: post("/remote_rm", prompt=start(p), response=r),
        "/remote_rm, messages": lambda p, r: post("/remote_rm", prompt=messages(p, r)[:1], response=r),
        "TRL": lambda p, r: trl(p, r),
        "TRL, messages": lambda p, r: trl(messages(p, r)[:1], messages(p, r)[1:]),
        "TRL, asynchronous": lambda p, r: trl(start(p), r, asynchronous=True),
        "TRL's get_reward": lambda p, r: module.rewards(torch.tensor([ids(p, r)])).last_hidden_state[0, -1].item(),
        "verl": lambda p, r: verl.compute_score("", r, None, {"prompt": p}, reward_model=str(folder))["score"],
        "verl, a number": lambda p, r: verl.compute_reward("", r, None, {"prompt": p}, reward_model=served_url),
        "verl, server": lambda p, r: verl.compute_score(
            "", r, extra_info={"prompt": messages(p, r)[:1]}, reward_model=served_url
        )["score"],
        "verl, batch": lambda p, r: verl.compute_score_batch(
            [""], [r], [None], [{"prompt": start(p)}], reward_model=str(folder)
        )[0]["score"],
        "OpenRLHF": lambda p, r: reward_func([start(p) + r], [start(p)])["rewards"][0].item(),
        "forward": lambda p, r: classifier(torch.tensor([ids(p, r)])).logits.item(),
        "pipeline": lambda p, r: classify(text(p, r))[0]["score"],
    }


def test_every_entry_point_gives_one_reward(entry_points, trained_run, monkeypatch):
    monkeypatch.setenv("DMOERM_MODEL", str(trained_run.folder / "model"))
    expected = trained_run.model.score(PROMPT, [RESPONSE])[0].reward
    assert abs(expected - trained_run.model.score(PROMPT, ["No."])[0].reward) > 0.01
    different = {
        (name, *texts): value
        for name, reward in entry_points.items()
        for texts in TEXTS[:-1]
        if abs((value := reward(*texts)) - expected) > 1e-6
    }
    assert different == {}


def test_marks_alone_are_an_empty_response_everywhere(entry_points, trained_run, monkeypatch):
    monkeypatch.setenv("DMOERM_MODEL", str(trained_run.folder / "model"))
    rewards = {name: reward(PROMPT, EMPTY) for name, reward in entry_points.items()}
    squashed = {"/v1/rerank", "/similarity", "/inference"}  # σ of the reward
    assert {name: value for name, value in rewards.items() if name not in squashed and value != MIN_REWARD} == {}
    assert [rewards[name] for name in squashed] == pytest.approx([MIN_REWARD] * 3, abs=1e-3)
