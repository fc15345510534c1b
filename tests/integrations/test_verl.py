"""verl's reward functions, called as verl's reward managers call them."""

from __future__ import annotations

import asyncio
import inspect

import numpy as np
import pytest

from dmoerm.errors import DataError
from dmoerm.integrations.verl import compute_score, compute_score_async, compute_score_batch
from dmoerm.scores import MIN_REWARD

TURNS = [{"role": "user", "content": "What is the capital of France?"}]
TEXTS = ["It is Paris.", "No idea.", ""]


def columns_of(results):
    """Convert a batch's results to columns, as verl does."""
    columns = {}
    for result in results:
        for name, value in result.items():
            columns.setdefault(name, []).append(value)
    return columns


def batch(prompts, texts, **settings):
    extras = np.array([{"prompt": prompt} for prompt in prompts], dtype=object)
    fixed = {"data_sources": np.array(["any"] * len(texts)), "ground_truths": [None] * len(texts)}
    return compute_score_batch(solution_strs=texts, extra_infos=extras, **fixed, **settings)


@pytest.fixture
def folder(trained_run):
    return str(trained_run.folder / "model")


def test_rewards_equal_the_models(trained_run, folder, monkeypatch):
    monkeypatch.setenv("DMOERM_MODEL", folder)
    actual = columns_of(batch([np.array(TURNS, dtype=object), "Hello.", TURNS], TEXTS))
    expected = [trained_run.model.score(TURNS, TEXTS[:1])[0], trained_run.model.score("Hello.", TEXTS[1:2])[0]]
    assert actual["score"] == pytest.approx([*(s.reward for s in expected), MIN_REWARD], abs=1e-4)
    assert {len(values) for values in actual.values()} == {3}
    for index, score in enumerate(expected):
        for name, value in score.capabilities.items():
            assert actual[f"{score.task}/{name}"][index] == pytest.approx(value, abs=1e-4)


def test_a_server_and_a_task_of_the_data(reward_server):
    info = {"prompt": "Hello.", "task": "objective_qa"}
    actual = compute_score("any", "t t<|im_end|>", None, info, reward_model=reward_server.url)
    assert actual["score"] == 2.0
    assert actual["task/objective_qa"] == 1.0
    with pytest.raises(DataError, match="no such task"):
        compute_score("any", "t", None, info | {"task": "none"}, reward_model=reward_server.url)


@pytest.mark.parametrize("source", ["folder", "server"])
def test_the_async_function_gives_the_same(source, folder, served_url):
    """verl's manager `naive` (247f1ac) awaits a coroutine function: one call per sample, many at a time."""
    assert inspect.iscoroutinefunction(compute_score_async)
    path, info = folder if source == "folder" else served_url, {"prompt": TURNS, "index": 0}

    async def all_at_once():
        calls = [{"data_source": "any", "solution_str": text, "ground_truth": None} for text in TEXTS]
        awaited = (compute_score_async(**call, extra_info=info, reward_model=path) for call in calls)
        return await asyncio.gather(*awaited)

    expected = batch([TURNS] * 3, TEXTS, reward_model=folder)
    for _ in range(2):  # each event loop has clients of its own
        for actual, wanted in zip(asyncio.run(all_at_once()), expected, strict=True):
            assert actual == pytest.approx(wanted, abs=1e-4)


@pytest.mark.parametrize("info", [None, {}, {"index": 4}])
def test_a_missing_prompt_is_an_error_with_a_hint(folder, info):
    with pytest.raises(DataError, match=r"extra_info: has no prompt.*when you prepare the data set"):
        compute_score("any", "text", None, info, reward_model=folder)
