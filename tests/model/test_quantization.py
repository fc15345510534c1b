"""Frozen layers in 8 and 4 bits, with a fake of bitsandbytes and with torchao itself: what is quantized and saved."""

from __future__ import annotations

import copy
import sys
from pathlib import Path

import fake_bitsandbytes
import pytest
import torch
from safetensors.torch import load_file
from tiny import assert_same, make_model, make_tiny_config, tiny_groups, train_quietly, write_backbone, write_groups
from torch import nn

from dmoerm.config import Config, load_config
from dmoerm.errors import ConfigError
from dmoerm.model import DMoERM, quantization
from dmoerm.model.experts import lora_layers

TORCHAO = Path(sys.prefix) / "torchao"  # not among the packages: whatever imports peft would import it
PROMPT, RESPONSES = "How are you?", ["Fine, and you?", "No.", "x " * 20]


@pytest.fixture
def on_cpu(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let the fake library quantize on the CPU."""
    monkeypatch.setattr(quantization, "_PACKAGES", {"cpu": "bitsandbytes"})
    for name, module in fake_bitsandbytes.modules().items():
        monkeypatch.setitem(sys.modules, name, module)


def frozen_config(backbone: str, folder: Path, **changes: object) -> Config:
    """LoRA experts on a frozen bfloat16 backbone."""
    return make_tiny_config(backbone, folder, base="frozen", backbone={"dtype": "bfloat16"}, **changes)


LAYERS = {"8bit": fake_bitsandbytes.Linear8bitLt, "4bit": fake_bitsandbytes.Linear4bit}


@pytest.mark.usefixtures("on_cpu")
@pytest.mark.parametrize("kind", LAYERS)
def test_a_quantized_model_is_saved_dense_and_quantizes_to_the_same_bits(
    tiny_backbone: str, tmp_path: Path, kind: str
) -> None:
    dense = make_model(frozen_config(tiny_backbone, tmp_path))
    model = copy.deepcopy(dense)
    quantization.quantize(model, kind, torch.device("cpu"))
    for task in model.config.tasks:
        branch = model.task_model(task).experts.branch
        shared = zip(lora_layers(branch).values(), branch.layers, strict=False)
        assert all(isinstance(layer.base, LAYERS[kind]) for layer, _ in shared)
        assert branch.layers[0].mlp.up_proj is model.general.branch.layers[0].mlp.up_proj
    assert not [m for part in (model.trunk, model.general.branch) for m in part.modules() if type(m) is nn.Linear]
    scores = model.score(PROMPT, RESPONSES, task="chitchat")
    assert [s.reward for s in scores] != [s.reward for s in dense.score(PROMPT, RESPONSES, task="chitchat")]

    model.save_pretrained(tmp_path / "model")
    files = [load_file(file) for file in (tmp_path / "model").rglob("*.safetensors")]
    assert {tensor.dtype for file in files for tensor in file.values()} <= {torch.bfloat16, torch.float32}
    plain = DMoERM.from_pretrained(tmp_path / "model")
    assert plain.state_dict().keys() == dense.state_dict().keys()
    assert_same(plain.score(PROMPT, RESPONSES, task="chitchat"), scores, 1e-2)

    again = DMoERM.from_pretrained(tmp_path / "model", quantization=kind, device_map="cpu")
    assert_same(again.score(PROMPT, RESPONSES, task="chitchat"), scores, 1e-6)
    states = {name: t for name, t in model.state_dict().items() if t.dtype in (torch.uint8, torch.int8)}
    assert states
    assert all(torch.equal(again.state_dict()[name], t) for name, t in states.items())


@pytest.mark.usefixtures("on_cpu")
@pytest.mark.parametrize("name", ["qwen3-0.6b", "llama-8b-qlora"])
def test_a_shipped_config_trains_on_4_bits_and_its_model_loads_without_them(
    name: str, tiny_backbone: str, tmp_path: Path
) -> None:
    """Heads alone, and LoRA experts, on a tiny backbone."""
    settings = {"backbone.path": tiny_backbone, "output": tmp_path / "run", "cache": tmp_path / "cache"}
    settings |= {
        "backbone.quantization": "4bit",
        "data.files": f"[{write_groups(tiny_groups(), tmp_path / 'g.jsonl')}]",
    }
    settings |= {"phase2.epochs": 1, "phase2.evaluations": 1} if name == "llama-8b-qlora" else {}
    run = train_quietly(load_config(name, [f"{setting}={value}" for setting, value in settings.items()]))
    loaded = DMoERM.from_pretrained(run.folder / "model")
    assert all(type(layer) is not fake_bitsandbytes.Linear4bit for layer in loaded.modules())
    assert_same(loaded.score(PROMPT, RESPONSES), run.model.score(PROMPT, RESPONSES), 2e-2)
    if name == "llama-8b-qlora":
        (layer, *_) = lora_layers(run.model.task_model("chitchat").experts.branch).values()
        assert layer.lora_B.abs().max() > 0  # gradients have passed the quantized layers


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"base": "full"}, "needs frozen weights: base: frozen"),
        ({"base": "lora"}, "needs frozen weights"),
        ({"base": "frozen", "router": {"kind": "own"}}, "router.kind: trunk"),
    ],
)
def test_trained_weights_are_not_quantized(settings: dict, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        Config.model_validate({**settings, "backbone": {"quantization": "4bit"}})


def test_what_is_missing_is_named(
    tiny_backbone: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, trained_run: object
) -> None:
    config = frozen_config(tiny_backbone, tmp_path)
    model = make_model(config)
    with pytest.raises(ConfigError, match="runs on CUDA GPUs and CPUs, but the device is mps"):
        quantization.quantize(model, "4bit", torch.device("mps"))
    for package, device in (("bitsandbytes", "cuda"), ("torchao", "cpu")):
        monkeypatch.setitem(sys.modules, package, None)
        with pytest.raises(ConfigError, match=rf"8bit needs the package {package}.*'\.\[quantization\]'"):
            quantization.quantize(model, "8bit", torch.device(device))
    with pytest.raises(ConfigError, match="base: frozen"):
        DMoERM.from_pretrained(trained_run.folder / "model", quantization="4bit", device_map="cpu")
    with pytest.raises(ConfigError, match="quantization='2bit' is not supported: use none or 8bit or 4bit"):
        DMoERM.from_pretrained(tmp_path, quantization="2bit")


def held_bytes(model: DMoERM) -> int:
    """Bytes of the linear layers of trunk and general branch, with the scales of quantized ones."""
    layers = [m for part in (model.trunk, model.general.branch) for m in part.modules() if isinstance(m, nn.Linear)]
    tensors = [t for layer in layers for t in inner_tensors(layer.weight)]
    return sum(t.numel() * t.element_size() for t in tensors)


def inner_tensors(weight: torch.Tensor) -> list[torch.Tensor]:
    if not hasattr(weight, "__tensor_flatten__"):
        return [weight]
    return [getattr(weight, name) for name in weight.__tensor_flatten__()[0]]


@pytest.mark.slow
@pytest.mark.skipif(not TORCHAO.exists(), reason="torchao is not there: make test-all installs it")
@pytest.mark.parametrize(("kind", "part", "error"), [("8bit", 0.27, 0.01), ("4bit", 0.14, 0.12)])
def test_torchao_holds_layers_on_a_cpu_in_fewer_bytes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, kind: str, part: float, error: float
) -> None:
    monkeypatch.syspath_prepend(str(TORCHAO))
    dense = make_model(make_tiny_config(wide_backbone(tmp_path), tmp_path, base="frozen"))
    model = copy.deepcopy(dense)
    quantization.quantize(model, kind, torch.device("cpu"))
    assert held_bytes(model) < part * held_bytes(dense)
    for name, weight in quantization.dense_state(model.trunk).items():
        before = dense.trunk.state_dict()[name]
        assert weight.dtype == before.dtype
        assert (weight - before).norm() <= error * before.norm()
    scores = model.score(PROMPT, RESPONSES, task="chitchat")
    assert [s.reward for s in scores] != [s.reward for s in dense.score(PROMPT, RESPONSES, task="chitchat")]

    model.save_pretrained(tmp_path / "model")
    plain = DMoERM.from_pretrained(tmp_path / "model")
    assert_same(plain.score(PROMPT, RESPONSES, task="chitchat"), scores, 1e-3)


@pytest.mark.slow
@pytest.mark.skipif(not TORCHAO.exists(), reason="torchao is not there: make test-all installs it")
@pytest.mark.parametrize(("kind", "again"), [("8bit", False), ("8bit", True), ("4bit", False)])
def test_experts_train_on_torchaos_layers_and_score_the_same_after_loading(
    tiny_backbone: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, kind: str, again: bool
) -> None:
    """Also if layers run again in the backward pass. Quantizing the saved, decoded weights rounds them once more."""
    monkeypatch.syspath_prepend(str(TORCHAO))
    settings = {"base": "frozen", "backbone": {"quantization": kind}, "gradient_checkpointing": again}
    trained_to_the_end = {"metric_for_best_model": "end"}  # the start may be the best state
    run = train_quietly(make_tiny_config(tiny_backbone, tmp_path, **settings, phase2=trained_to_the_end))
    for task in run.model.config.tasks:
        layers = lora_layers(run.model.task_model(task).experts.branch).values()
        assert all(hasattr(layer.base.weight, "__tensor_flatten__") for layer in layers)  # quantized
        assert max(float(layer.lora_B.abs().max()) for layer in layers) > 0  # gradients have passed such layers
    scores = run.model.score(PROMPT, RESPONSES, task="chitchat")
    assert len({score.reward for score in scores}) == len(scores)
    plain = DMoERM.from_pretrained(run.folder / "model")
    assert not any(hasattr(p, "__tensor_flatten__") for p in plain.parameters())
    assert_same(plain.score(PROMPT, RESPONSES, task="chitchat"), scores, 1e-4)
    loaded = DMoERM.from_pretrained(run.folder / "model", quantization=kind, device_map="cpu")
    assert_same(loaded.score(PROMPT, RESPONSES, task="chitchat"), scores, 0.2)


def wide_backbone(folder: Path) -> str:
    """Return a backbone with rows long enough that scales take little memory."""
    return write_backbone(folder / "wide", hidden_size=128, intermediate_size=256, head_dim=32)
