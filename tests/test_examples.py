"""The examples run as their docstrings say."""

from __future__ import annotations

import itertools
import json
import math
import runpy
import sys
from pathlib import Path

import pytest
from datasets import load_dataset
from tiny_policy import write_random_policy

EXAMPLES = Path(__file__).resolve().parent.parent / "examples"


@pytest.fixture
def run(monkeypatch):
    """Return a function that runs an example with arguments and returns its globals."""

    def run(file, *arguments):
        monkeypatch.setattr(sys, "argv", [file, *map(str, arguments)])
        return runpy.run_path(str(EXAMPLES / file), run_name="__main__")

    return run


@pytest.fixture
def model(trained_run):
    return str(trained_run.folder / "model")


@pytest.mark.parametrize(("algorithm", "source"), list(itertools.product(["grpo", "rloo"], ["folder", "server"])))
def test_trl_policy(run, algorithm, source, model, served_url, tmp_path):
    prompts = [{"prompt": [{"role": "user", "content": f"Tell me about {n}."}], "task": "chitchat"} for n in range(8)]
    (tmp_path / "prompts.jsonl").write_text("\n".join(map(json.dumps, prompts)))
    sources = {"folder": model, "server": served_url}
    arguments = {"reward": sources[source], "policy": write_random_policy(tmp_path / "policy"), "algorithm": algorithm}
    arguments |= {"prompts": tmp_path / "prompts.jsonl", "steps": 3, "tokens": 8, "output": tmp_path / "out"}
    run("trl_policy.py", *[part for name, value in arguments.items() for part in (f"--{name}", value)])
    assert (tmp_path / "out" / "model.safetensors").is_file()
    state = json.loads((tmp_path / "out" / "checkpoint-3" / "trainer_state.json").read_text())
    rewards = [entry["reward"] for entry in state["log_history"] if "reward" in entry]
    assert len(rewards) == 3
    assert all(map(math.isfinite, rewards))


def test_trl_policy_has_the_prompts_of_the_demo():
    rows = runpy.run_path(str(EXAMPLES / "trl_policy.py"))["demo_prompts"]()
    assert len(set(rows["task"])) == 5
    assert all(row["prompt"][-1]["role"] == "user" for row in rows)


def test_pipeline(run, model, trained_run, capsys):
    run("pipeline.py", model)
    lines = capsys.readouterr().out.splitlines()
    texts = [line.split("  ", 1)[1] for line in lines]
    expected = [score.reward for score in trained_run.model.score("I failed my exam.", texts)]
    assert [float(line.split()[1]) for line in lines] == pytest.approx(expected, abs=2e-3)
    assert lines[0].startswith("REWARD ")


def test_client(run, served_url, capsys):
    run("client.py", served_url)
    output = capsys.readouterr().out
    assert "models: tiny" in output
    assert "20 prompts, mean reward" in output


@pytest.mark.parametrize("source", ["folder", "server"])
def test_verl(run, source, model, served_url, tmp_path, monkeypatch):
    rows = [{"prompt": "Hello.", "task": None}, {"prompt": "What is it?", "task": "chitchat"}]
    (tmp_path / "prompts.jsonl").write_text("\n".join(map(json.dumps, rows)))
    run("verl/prepare.py", tmp_path / "prompts.jsonl", tmp_path / "train.parquet")
    written = load_dataset("parquet", data_files=str(tmp_path / "train.parquet"))["train"].to_pandas()
    monkeypatch.setenv("DMOERM_MODEL", {"folder": model, "server": served_url}[source])
    functions = run("verl/reward.py")
    columns = {"data_sources": written["data_source"].to_numpy(), "extra_infos": written["extra_info"].to_numpy()}
    first, second = functions["compute_score_batch"](solution_strs=["that", "a"], ground_truths=["", ""], **columns)
    assert first.keys() == second.keys()
    assert second["task/chitchat"] == 1.0
    single = functions["compute_score"]("dmoerm", "that", "", extra_info=written["extra_info"][0])
    assert single == pytest.approx(first, abs=1e-4)


def test_openrlhf(run, model, monkeypatch):
    monkeypatch.setenv("DMOERM_MODEL", model)
    prompt = "<|im_start|>user\nHello.<|im_end|>\n<|im_start|>assistant\n"
    result = run("openrlhf/reward_func.py")["reward_func"]([f"{prompt}Hi.<|im_end|>"], [prompt], [None])
    assert result["rewards"].shape == (1,)
