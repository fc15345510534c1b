"""The reward code of other projects, unchanged, as PyPI has it: OpenRLHF and verl.

Each runs in a process of its own, with its package and no other dependencies than those that are installed. Modules
that it imports for other purposes are replaced by mocks. A test is skipped if a module is missing that it needs.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

pytestmark = pytest.mark.slow

PACKAGES = ("openrlhf", "verl")
OF_VERL = (
    "tensordict",
    "pyvers",
    "omegaconf",
    "hydra-core",
    "antlr4-python3-runtime==4.9.3",
    "codetiming",
    "cloudpickle",
    "orjson",
)
QUESTION = "I failed my exam.\n\nWhat now?"
TURNS = [{"role": "user", "content": QUESTION}]
RESPONSES = ["Oh no. What happened?", "The exam took place.", "No.\n\n  Really.", "Say more about it."]

PRELUDE = """
import asyncio, importlib, importlib.util, json, re, sys, types
from unittest.mock import MagicMock

url, folder, values = sys.argv[1], sys.argv[2], json.loads(sys.argv[3])
sys.path.append(folder)

def bare(*names):  # packages without their __init__, which imports what training needs
    for name in names:
        package = types.ModuleType(name)
        package.__path__ = [folder + "/" + name.replace(".", "/")]
        sys.modules[name] = package

def mocked(*names):
    for name in names:
        sys.modules[name] = MagicMock()
"""
OPENRLHF = """
bare("openrlhf", "openrlhf.utils")
from openrlhf.utils.agent import SingleTurnAgentExecutor

async def rewards():
    executor = SingleTurnAgentExecutor(url + "/get_reward")
    calls = [executor._fetch_rewards_via_http([q], [values["prompt"]], ["5"]) for q in values["queries"]]
    return [(await call)[0] for call in calls]

print(json.dumps(asyncio.run(rewards())))
"""
VERL = """
import numpy, torch
from types import SimpleNamespace
from transformers import AutoTokenizer
from verl import DataProto
from verl.experimental.reward_loop.reward_loop import RewardLoopWorker

actor = getattr(RewardLoopWorker, "__ray_metadata__", None)  # releases before 0.9 have a Ray actor here
kind = actor.modified_class if actor else RewardLoopWorker
tokenizer = AutoTokenizer.from_pretrained(values["model"])
results = {}
for engine in ("vllm", "sglang"):
    worker = object.__new__(kind)
    worker.reward_router_address = url.removeprefix("http://")
    worker.input_tokenizer = worker.reward_model_tokenizer = tokenizer
    model = SimpleNamespace(rollout=SimpleNamespace(name=engine), model_path="m", enable=True)
    function = SimpleNamespace(path=None)
    worker.config = SimpleNamespace(reward=SimpleNamespace(reward_model=model, custom_reward_function=function))
    results[engine] = []
    for response in values["responses"]:
        ids = tokenizer(response, add_special_tokens=False)["input_ids"]
        padded = torch.tensor([ids + [0] * 3])
        mask = torch.tensor([[1] * len(ids) + [0] * 3])
        chat = numpy.empty(1, dtype=object)
        chat[0] = values["turns"]
        data = DataProto.from_dict(
            tensors={"responses": padded, "attention_mask": mask}, non_tensors={"raw_prompt": chat}
        )
        results[engine].append(asyncio.run(worker.compute_score(data))["reward_score"])
print(json.dumps(results))
"""


@pytest.fixture(scope="module")
def published(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of the packages, without their dependencies."""
    folder = tmp_path_factory.mktemp("published")
    command = [sys.executable, "-m", "pip", "install", "-q", "--no-deps", "--target", folder, *PACKAGES, *OF_VERL]
    result = subprocess.run(command, capture_output=True, text=True, timeout=600)
    if result.returncode:
        pytest.skip(f"the packages cannot be installed: {result.stderr.strip().splitlines()[-1]}")
    return folder


@pytest.fixture
def run(published: Path, served_url: str) -> Any:
    """Return a function: script, values → what the script prints last."""

    def run_script(script: str, **values: Any) -> Any:
        keys = {"TOKENIZERS_PARALLELISM": "false"}
        command = [sys.executable, "-c", PRELUDE + script, served_url, str(published), json.dumps(values)]
        result = subprocess.run(command, capture_output=True, text=True, timeout=600, env=os.environ | keys)
        if result.returncode and "ModuleNotFoundError" in result.stderr:
            pytest.skip(f"its reward code does not install here: {result.stderr.strip().splitlines()[-1]}")
        assert result.returncode == 0, result.stderr[-3000:]
        return json.loads(result.stdout.splitlines()[-1])

    return run_script


@pytest.fixture(scope="module")
def rewards(trained_run: Any) -> Any:
    return pytest.approx([score.reward for score in trained_run.model.score(TURNS, RESPONSES)], abs=1e-4)


def test_openrlhf(run, trained_run, rewards):
    """`SingleTurnAgentExecutor`, the rollouts' client of a remote reward model."""
    render = trained_run.model.tokenizer.apply_chat_template
    queries = [render([*TURNS, {"role": "assistant", "content": text}], tokenize=False) for text in RESPONSES]
    prompt = render(TURNS, tokenize=False, add_generation_prompt=True)
    answers = run(OPENRLHF, queries=queries, prompt=prompt)
    assert [answer["rewards"][0] for answer in answers] == rewards
    assert [answer["scores"][0] for answer in answers] == rewards
    assert "has_uncertainty" in answers[0]["extra_logs"]


def test_verl(run, trained_run, rewards):
    """`RewardLoopWorker` with a discriminative reward model, for both engines that verl has."""
    answers = run(VERL, model=str(trained_run.folder / "model"), responses=RESPONSES, turns=TURNS)
    assert answers == {"vllm": rewards, "sglang": rewards}
