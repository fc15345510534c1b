"""The reward-function file of OpenRLHF."""

from __future__ import annotations

import importlib.util

import pytest
import torch

from dmoerm.chat import rendered
from dmoerm.errors import ConfigError, DataError
from dmoerm.integrations import openrlhf


@pytest.fixture
def loaded(trained_run, monkeypatch):
    """The file as OpenRLHF loads it: by its path, outside of the package."""
    spec = importlib.util.spec_from_file_location("reward_func", openrlhf.__file__)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    monkeypatch.setenv("DMOERM_MODEL", str(trained_run.folder / "model"))
    return module


CHATML = "<|im_start|>user\n{}<|im_end|>\n<|im_start|>assistant\n"
LLAMA3 = (
    "<|begin_of_text|><|start_header_id|>user<|end_header_id|>\n\n{}<|eot_id|>"
    "<|start_header_id|>assistant<|end_header_id|>\n\n"
)


def test_rewards_equal_the_models(loaded, trained_run):
    prompts = [CHATML.format("Hello."), LLAMA3.format("What is the capital of France?"), CHATML.format("Hello.")]
    texts = ["Hi, how was your day?", "It is Paris.", "Go away."]
    queries = [f"{p}{t}{end}" for p, t, end in zip(prompts, texts, ["<|im_end|>", "<|eot_id|>", ""], strict=True)]
    actual = loaded.reward_func(queries, prompts, [None] * 3)
    model = trained_run.model
    expected = [model.score("Hello.", [texts[0], texts[2]]), model.score("What is the capital of France?", texts[1:2])]
    scores = [expected[0][0], expected[1][0], expected[0][1]]
    torch.testing.assert_close(actual["rewards"], torch.tensor([s.reward for s in scores]), atol=1e-4, rtol=1e-4)
    assert torch.equal(actual["scores"], actual["rewards"])
    for name, values in actual["extra_logs"].items():
        assert values.shape == (3,), name
    for index, score in enumerate(scores):
        for name, value in score.capabilities.items():
            assert float(actual["extra_logs"][f"{score.task}/{name}"][index]) == pytest.approx(value, abs=1e-4)


def test_the_source_may_be_a_server(loaded, reward_server, monkeypatch):
    monkeypatch.setenv("DMOERM_MODEL", reward_server.url)
    prompts = [CHATML.format("Hello."), CHATML.format("What?")]
    actual = loaded.reward_func([f"{p}That.<|im_end|>" for p in prompts], prompts, [None] * 2)
    assert actual["rewards"].tolist() == [2.0, 2.0]
    assert actual["extra_logs"]["task/chitchat"].tolist() == [1.0, 0.0]
    assert actual["extra_logs"]["objective_qa/correctness"].tolist() == [0.0, 1.0]


def test_invalid_calls_are_errors(loaded, monkeypatch):
    with pytest.raises(DataError, match="does not contain its prompt"):
        rendered.response_text("other", "prompt")
    monkeypatch.delenv("DMOERM_MODEL")
    with pytest.raises(ConfigError, match="DMOERM_MODEL is not set"):
        loaded.reward_func(["a b"], ["a"], None)
