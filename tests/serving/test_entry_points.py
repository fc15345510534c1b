"""One text has one reward, whatever way it takes to the model and whatever white space and marks are around it."""

from __future__ import annotations

import asyncio
import json
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

    def served(path: str, read: Callable[[Any], float], body: Callable[[str, str], Any]) -> Reward:
        return lambda p, r: read(http.post(path, json=body(p, r)).raise_for_status().json())

    def probs(answer: Any) -> float:
        return answer["data"][0]["probs"][0]

    def first(answer: Any) -> float:
        return answer["rewards"][0]

    return {
        "score": lambda p, r: model.score(p, [r])[0].reward,
        "score, messages": lambda p, r: model.score(messages(p, r)[:1], [r, "No."])[0].reward,
        "score, deterministic": lambda p, r: model.score(p, [r], deterministic=True)[0].reward,
        "dmoerm score": lambda p, r: in_file[p, r],
        "client": lambda p, r: client.score(p, [r])[0].reward,
        "/classify": served("/classify", probs, lambda p, r: {"messages": messages(p, r)}),
        "/classify, text": served("/classify", probs, lambda p, r: {"input": text(p, r)}),
        "/classify, token ids": served("/classify", probs, lambda p, r: {"input": ids(p, r)}),
        "/score": served("/score", lambda a: a["data"][0]["score"], lambda p, r: {"text_1": p, "text_2": r}),
        "/predict": served("/predict", lambda a: a[0]["score"], lambda p, r: {"inputs": [p, r], "raw_scores": True}),
        "/get_reward": served("/get_reward", first, lambda p, r: {"query": [start(p) + r], "prompts": [start(p)]}),
        "/get_reward, plain": served("/get_reward", first, lambda p, r: {"query": [p + r], "prompts": [p]}),
        "/get_reward, query alone": served("/get_reward", first, lambda p, r: {"query": [text(p, r)]}),
        "/remote_rm": served("/remote_rm", float, lambda p, r: {"prompt": start(p), "response": r}),
        "TRL": lambda p, r: trl(p, r),
        "TRL, messages": lambda p, r: trl(messages(p, r)[:1], messages(p, r)[1:]),
        "TRL, asynchronous": lambda p, r: trl(start(p), r, asynchronous=True),
        "TRL's get_reward": lambda p, r: module.rewards(torch.tensor([ids(p, r)])).last_hidden_state[0, -1].item(),
        "verl": lambda p, r: verl.compute_score("", r, None, {"prompt": p}, str(folder))["score"],
        "verl, a number": lambda p, r: verl.compute_reward("", r, None, {"prompt": start(p)}, reward_model=served_url),
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
    assert {name: reward(PROMPT, EMPTY) for name, reward in entry_points.items()} == dict.fromkeys(
        entry_points, MIN_REWARD
    )
