"""`dmoerm plan`: the table, the JSON, and what is refused."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from torch import nn
from transformers import AutoConfig, AutoModel
from typer.testing import CliRunner

from dmoerm.cli import app
from dmoerm.config import BackboneConfig, load_config
from dmoerm.model.survey import survey
from dmoerm.planning import Recipe, Workload, make_plan, parse_machine


def run(*arguments: str):
    return CliRunner(env={"COLUMNS": "140", "NO_COLOR": "1", "TERM": "dumb"}).invoke(app, ["plan", *arguments])


def test_a_plan_is_printed_and_written(tmp_path: Path) -> None:
    file = tmp_path / "plan.json"
    gpus = ("--gpus", "8xH100", "--price", "2")
    result = run("qwen3-0.6b", *gpus, "--groups", "5000", "--scored", "2000000", "--json", str(file))
    assert result.exit_code == 0, result.output
    assert "train on 5,000 prompts with 2 responses" in result.output
    assert "score 2,000,000 responses" in result.output
    plan = json.loads(file.read_text())
    assert plan["machine"]["count"] == 8
    scoring = plan["scoring"]
    assert scoring["dollars"] == 8 * 2 * scoring["seconds"] / 3600
    assert f"{scoring['dollars']:,.2f}" in result.output
    assert plan["training"]["memory"] > plan["model"] > 1e9


def test_a_plan_of_a_tiny_backbone_on_this_cpu(tiny_backbone: str) -> None:
    result = run("fast", "--set", f"backbone.path={tiny_backbone}", "--gpus", "cpu", "--tflops", "0.01")
    assert result.exit_code == 0, result.output
    assert "0.01 TFLOP/s" in result.output


def test_a_plan_prints_how_far_it_was_off(tmp_path: Path) -> None:
    file = tmp_path / "plan.json"
    result = run("fast", "--json", str(file))
    assert "time of scoring 0.94 to 1.07, in another run 0.82 to 1.07" in result.output
    assert "time of training 1.03 (once)" in result.output
    assert "no GPU was measured" in result.output
    plan = json.loads(file.read_text())
    assert plan["estimated_by_measured"]["scoring_seconds"] == [0.94, 1.07]
    assert plan["unpacked_reason"] is None


def test_a_plan_of_a_backbone_that_runs_by_its_own_forward(tmp_path: Path) -> None:
    """The layers of StableLM are those that a plan counts; it has no trunk."""
    AutoConfig.for_model("stablelm").save_pretrained(tmp_path)
    settings = ["fast", "--set", f"backbone.path={tmp_path}"]
    refused = run(*settings)
    assert refused.exit_code == 1
    assert "set router.kind to own" in refused.output
    result = run(*settings, "--set", "router.kind=own", "--gpus", "L4", "--json", str(tmp_path / "plan.json"))
    assert result.exit_code == 0, result.output
    assert "runs by its own forward (it is not among the families" in result.output
    assert "each response is computed with its prompt" in result.output
    assert "no such backbone was measured" in result.output
    assert "does not fit: training needs" in result.output
    assert "branch_layer" not in result.output
    assert "not among" in json.loads((tmp_path / "plan.json").read_text())["unpacked_reason"]


def test_the_first_layers_of_a_backbone_are_planned_alone(tmp_path: Path) -> None:
    AutoConfig.for_model("llama").save_pretrained(tmp_path)
    sizes = []
    for layers in (20, 32):
        settings = ["--set", f"backbone.path={tmp_path}", "--set", f"backbone.num_layers={layers}"]
        result = run("fast", *settings, "--json", str(tmp_path / "plan.json"))
        assert result.exit_code == 0, result.output
        sizes.append(json.loads((tmp_path / "plan.json").read_text())["scoring"]["flops"])
    assert sizes[0] == pytest.approx(sizes[1] * 20 / 32, rel=0.05)


@pytest.mark.parametrize(
    ("kind", "message"),
    [
        ("recurrent_gemma", "have 1,330.38 M weights and the plan counts 2,215.12 M, or without a gate 1,703.94 M"),
        ("gpt2", "no attribute 'intermediate_size'), so the plan cannot count them"),
        ("nemotron", "cannot be loaded: unsupported operand"),  # its default has no number of key and value heads
        ("gemma3n_text", "intermediate_size differs by layer"),
        ("olmoe", "is a mixture of experts"),
        ("t5", "is not supported: it is an encoder with a decoder"),
    ],
)
def test_a_plan_of_layers_that_it_cannot_count_is_refused(tmp_path: Path, kind: str, message: str) -> None:
    AutoConfig.for_model(kind).save_pretrained(tmp_path)
    result = run("fast", "--set", f"backbone.path={tmp_path}", "--set", "router.kind=own")
    assert result.exit_code == 1
    assert message in " ".join(result.output.split())


@pytest.mark.parametrize(("kind", "gated"), [("llama", True), ("starcoder2", False), ("gpt_neox", False)])
def test_an_mlp_without_a_gate_is_counted_as_such(tmp_path: Path, kind: str, gated: bool) -> None:
    """The shape has the weights of the model itself, and the plan is made from that shape."""
    config = AutoConfig.for_model(kind, hidden_size=512, num_attention_heads=8, num_hidden_layers=4)
    config.save_pretrained(tmp_path)
    settings = ["--set", f"backbone.path={tmp_path}", "--set", "router.kind=own"]
    result = run("fast", *settings, "--json", str(tmp_path / "plan.json"))
    assert result.exit_code == 0, result.output
    with torch.device("meta"):
        whole = AutoModel.from_config(config)
    linear = sum(module.weight.numel() for module in whole.modules() if isinstance(module, nn.Linear))
    shape = survey(BackboneConfig(path=str(tmp_path))).shape
    assert shape is not None
    assert (shape.gated, shape.layers * shape.layer) == (gated, linear)
    loaded = load_config("fast", settings[1::2])
    recipe = Recipe.of(loaded, shape, 5, 5, packed=kind != "gpt_neox")
    plan = make_plan(recipe, Workload(10_000, 512, 256, 2, 1_000_000), parse_machine("1xH100"))
    assert json.loads((tmp_path / "plan.json").read_text())["scoring"] == plan.to_json()["scoring"]


def test_what_does_not_fit_and_what_is_unknown() -> None:
    large = run("finetune", "--set", "backbone.path=meta-llama/Llama-3.1-8B-Instruct", "--gpus", "L4")
    assert large.exit_code == 0
    assert "does not fit: scoring needs" in large.output
    unknown = run("fast", "--gpus", "8xH10")
    assert unknown.exit_code == 1
    assert "did you mean H100?" in unknown.output
