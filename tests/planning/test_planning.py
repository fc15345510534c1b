"""The estimates against stored measurements, against what the code holds in memory, and as properties."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from tiny import make_model, make_tiny_config, train_quietly
from transformers import AutoConfig, Gemma3Config, MixtralConfig, TrainerCallback

from dmoerm.config import load_config
from dmoerm.errors import BackboneError, ConfigError
from dmoerm.model.experts import lora_layers
from dmoerm.planning import (
    ESTIMATED_BY_MEASURED,
    BackboneShape,
    Recipe,
    Work,
    Workload,
    checkpoint_bytes,
    flops,
    make_plan,
    memory,
    parse_machine,
    plain_flops,
    read_shape,
)
from dmoerm.training import phases
from dmoerm.training.fitting import fit

RESULTS = Path(__file__).parents[2] / "benchmarks" / "results"
LLAMA = "meta-llama/Llama-3.1-8B-Instruct"
SCORED = [(128, 4, 128), (512, 16, 128), (32, 2, 64)]


def recipe(config: str, backbone: str, *overrides: str, float32: bool = False) -> Recipe:
    return Recipe.of(load_config(config, overrides), read_shape(backbone), 5, 5, float32=float32)


@pytest.mark.parametrize(("prompt", "responses", "tokens"), SCORED)
def test_the_estimate_is_near_the_measured_scoring(prompt: int, responses: int, tokens: int) -> None:
    """Rates were fitted to other shapes with other experts, on another day."""
    rows = json.loads((RESULTS / "scoring.json").read_text())["rows"]
    work = f"p{prompt}_n{responses}_r{tokens}_fp32_frozen"
    (measured,) = [row for row in rows if (row["work"], row["peer"]) == (work, "plain")]
    workload = Workload(1, prompt, tokens, responses, scored=responses)
    plan = make_plan(recipe("frozen", "smollm2", float32=True), workload, parse_machine("cpu"))
    assert plan.ratio == pytest.approx(measured["ours_s"] / measured["peer_s"], rel=0.07)
    assert plan.scoring.seconds == pytest.approx(measured["ours_s"], rel=0.2)


def test_the_accuracy_that_a_plan_prints_is_the_measured_one() -> None:
    """The time of training is that of docs/scale.md, which was measured once."""
    tables = json.loads((RESULTS / "scale.json").read_text())["tables"]
    quotients = [row["predicted / measured"] for rows in tables.values() for row in rows if "P" in row]
    sizes = [row["formula"] / row["measured"] for row in tables["Sizes on disk, GB"]]
    rows = json.loads((RESULTS / "scoring.json").read_text())["rows"]
    scoring = {row["work"]: row for row in rows if row["peer"] == "plain"}
    ratios, seconds = [], []
    for prompt, responses, tokens in SCORED:
        row = scoring[f"p{prompt}_n{responses}_r{tokens}_fp32_frozen"]
        workload = Workload(1, prompt, tokens, responses, scored=responses)
        plan = make_plan(recipe("frozen", "smollm2", float32=True), workload, parse_machine("cpu"))
        ratios.append(plan.ratio / (row["ours_s"] / row["peer_s"]))
        seconds.append(plan.scoring.seconds / row["ours_s"])
    measured = {
        "scoring_seconds": quotients,
        "scoring_seconds_in_another_run": seconds,
        "scoring_ratio": ratios,
        "checkpoint_bytes": sizes,
    }
    for name, values in measured.items():
        assert (round(min(values), 2), round(max(values), 2)) == ESTIMATED_BY_MEASURED[name], name


def test_pairs_share_less_than_four_responses() -> None:
    """Two plain passes of the branch cost 1.06 times a plain model for four responses per prompt."""
    shape = read_shape(LLAMA)
    of_plain = [
        sum(flops(shape, work).values()) / plain_flops(shape, work)
        for work in (Work(512, n, 256, shape.layers * 4 // 5) for n in (4, 2, 1))
    ]
    assert of_plain[0] == pytest.approx(1.06, abs=0.005)
    assert of_plain == sorted(of_plain)


def test_the_bytes_of_a_model_are_those_of_its_tensors(tiny_backbone: str, tmp_path: Path) -> None:
    shape = BackboneShape.of(AutoConfig.from_pretrained(tiny_backbone))
    model = make_model(make_tiny_config(tiny_backbone, tmp_path))
    held = {id(p): p for part in (model.trunk, model.general.branch) for p in part.parameters()}
    for task in model.config.tasks:
        held |= {id(p): p for p in model.task_model(task).base.branch.parameters()}
        for layer in lora_layers(model.task_model(task).experts.branch).values():
            held |= {id(p): p for p in (layer.lora_A, layer.lora_B)}
    linear = sum(p.numel() * p.element_size() for p in held.values() if p.dim() > 1)
    assert checkpoint_bytes(shape, 2, 3, 4, 2) == linear


def test_the_bytes_of_a_trained_weight_are_those_that_training_holds(
    tiny_backbone: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Measured(Exception):
        pass

    class Measure(TrainerCallback):
        def on_optimizer_step(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
            tracker = kwargs["model"]
            trained = [p for _, p in tracker.trained()]
            moments = [t for s in kwargs["optimizer"].state.values() for t in s.values() if t.dim() > 0]
            held = [*trained, *(p.grad for p in trained), *tracker._best.values(), *moments]
            raise Measured(sum(t.numel() * t.element_size() for t in held) / sum(p.numel() for p in trained))

    def fit_once(*args: Any, callbacks: Any, **options: Any) -> Any:
        return fit(*args, callbacks=[*callbacks, Measure()], **options)

    monkeypatch.setattr(phases, "fit", fit_once)
    with pytest.raises(Measured, match=rf"^{memory._TRAINED}\.0$"):
        train_quietly(make_tiny_config(tiny_backbone, tmp_path))


@given(
    gpus=st.integers(1, 64),
    responses=st.integers(2, 16),
    config=st.sampled_from(["fast", "finetune", "llama-8b-qlora"]),
)
def test_more_of_anything_costs_more(gpus: int, responses: int, config: str) -> None:
    chosen, workload = recipe(config, LLAMA), Workload(1000, 512, 256, responses, 10_000)
    plan = make_plan(chosen, workload, parse_machine(f"{gpus}xH100"))
    once = make_plan(chosen, workload, parse_machine("H100"))
    assert plan.scoring.seconds * gpus == pytest.approx(once.scoring.seconds)
    assert plan.training.dollars == pytest.approx(once.training.dollars)
    doubled = replace(workload, groups=2000, scored=20_000)
    larger = make_plan(chosen, doubled, parse_machine(f"{gpus}xH100"))
    assert larger.training.flops == pytest.approx(2 * plan.training.flops)
    assert larger.scoring.seconds == pytest.approx(2 * plan.scoring.seconds)
    assert plan.scoring.memory <= plan.training.memory


@pytest.mark.parametrize("base", ["full", "lora"])
def test_layers_that_run_again_take_less_memory_and_more_time(base: str) -> None:
    workload = Workload(1000, 512, 256, 2, 1000)
    changes = f"base={base}", "phase2.lora.rank=0", "phase3.inputs=scores", "warm_start=false"
    before, after = (
        make_plan(recipe("paper-published", LLAMA, *changes, *more), workload, parse_machine("H200")).training
        for more in ((), ("gradient_checkpointing=true",))
    )
    assert after.memory < before.memory - 30e9
    assert before.flops < after.flops < 1.5 * before.flops


def test_a_backbone_that_runs_by_its_own_forward_computes_each_response_with_its_prompt() -> None:
    """Two passes of the branch are those of two plain models; the router's model reads the prompt once more."""
    shape = read_shape("smollm2")
    work = Work(512, 2, 256, 0, experts=0, plain=2, rank=0, shared=False)
    assert sum(flops(shape, work).values()) == pytest.approx(2 * plain_flops(shape, work))
    lora = replace(work, experts=5, plain=0, rank=8)
    assert flops(shape, lora)["linear"] == 2.5 * flops(shape, work)["linear"]
    settings = load_config("fast", ["router.kind=own", "backbone.branch_layer=0"])
    packed, alone = (Recipe.of(settings, shape, 5, 5, packed=packed) for packed in (True, False))
    workload, machine = Workload(1000, 512, 256, 4, 1000), parse_machine("H100")
    before, after = (make_plan(each, workload, machine) for each in (packed, alone))
    assert before.ratio < 0.7
    assert after.ratio == pytest.approx(1 + 512 / (4 * 768), rel=0.05)
    assert after.scoring.memory > before.scoring.memory
    assert after.model == before.model


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"router.kind": "trunk"}, "router.kind is trunk, but .*; set router.kind to own"),
        ({"backbone.branch_layer": 3}, "set backbone.branch_layer and backbone.num_layers to null"),
        ({"backbone.num_layers": 20}, "set backbone.branch_layer and backbone.num_layers to null"),
    ],
)
def test_settings_that_such_a_backbone_cannot_have_are_refused(changes: dict[str, Any], message: str) -> None:
    given = {"router.kind": "own", **changes}
    settings = load_config("fast", [f"{name}={value}" for name, value in given.items()])
    with pytest.raises(BackboneError, match=message):
        Recipe.of(settings, read_shape("smollm2"), 5, 5, packed=False)


def test_short_texts_are_bound_by_launches() -> None:
    """One prompt of a small model takes the time of its layer calls, whatever the GPU's rate."""
    shape, machine = recipe("fast", "Qwen/Qwen3-0.6B"), parse_machine("H100")
    one = make_plan(shape, Workload(1, 512, 256, 2, 2), machine).scoring
    assert one.flops / machine.accelerator.flops < 0.2 * one.seconds
    many = make_plan(shape, Workload(1, 512, 256, 2, 2_000_000), machine).scoring
    assert many.seconds < 0.5 * 1_000_000 * one.seconds


def test_what_does_not_fit_is_named_with_what_helps() -> None:
    workload = Workload(1000, 512, 256, 2, 1000)

    def problems(config: str, gpus: str, *overrides: str, backbone: str = LLAMA) -> str:
        return "\n".join(make_plan(recipe(config, backbone, *overrides), workload, parse_machine(gpus)).problems())

    assert problems("fast", "H100") == ""
    assert "set base to frozen or lora" in problems("finetune", "H100")
    large = "meta-llama/Llama-3.1-70B-Instruct"
    assert "fsdp2.yaml" in problems("fast", "8xH100", backbone=large)
    assert "quantization to 4bit" in problems("fast", "8xH100", backbone=large)
    assert problems("fast", "H100", "backbone.quantization=4bit", backbone=large) == ""
    quantized = problems("fast", "8xL4", "backbone.quantization=4bit", backbone=large)
    assert "training needs" in quantized
    assert "fsdp2.yaml" not in quantized, "layers of 4 bits cannot be sharded"
    assert "raise it" in problems("finetune", "8xH200", "cache_limit=1")


@pytest.mark.parametrize("text", ["8xH10O", "0xH100", "H100x8", "", "8"])
def test_an_unknown_machine_is_refused(text: str) -> None:
    with pytest.raises(ConfigError, match="for example 8xH100"):
        parse_machine(text)


def test_a_shape_that_cannot_be_used_is_refused(tmp_path: Path) -> None:
    with pytest.raises(BackboneError, match="its shape cannot be read"):
        read_shape(str(tmp_path))
    MixtralConfig().save_pretrained(tmp_path / "mixtral")
    with pytest.raises(BackboneError, match=r"^backbone '[^']*': is a mixture of experts"):
        read_shape(str(tmp_path / "mixtral"))
    AutoConfig.for_model("gemma3n_text").save_pretrained(tmp_path / "gemma3n")
    with pytest.raises(BackboneError, match=r"not those of a usual decoder \(intermediate_size differs by layer"):
        read_shape(str(tmp_path / "gemma3n"))
    Gemma3Config(text_config={"num_hidden_layers": 5}).save_pretrained(tmp_path / "gemma")
    assert read_shape(str(tmp_path / "gemma")).layers == 5
    with pytest.raises(BackboneError, match="the backbone has 30 layers"):
        recipe("frozen", "smollm2", "backbone.num_layers=40")


def test_a_measured_rate_and_a_price_replace_the_tables() -> None:
    machine = parse_machine("2xa100", price=3.0, tflops=100)
    assert (machine.kind, machine.count) == ("A100", 2)
    assert machine.seconds(2e14, 0) == pytest.approx(1.0)
    assert machine.dollars(3600) == pytest.approx(6.0)
    assert machine.seconds(0, 2e4) == pytest.approx(3.0)
