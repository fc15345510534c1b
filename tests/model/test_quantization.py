"""Frozen layers in 4 bits through transformers, with a fake of bitsandbytes, which needs a package of its own."""

from __future__ import annotations

import copy
from pathlib import Path

import fake_bitsandbytes
import pytest
import torch
from running import in_short
from safetensors.torch import load_file
from tiny import assert_same, make_model, make_tiny_config, tiny_groups, train_quietly, write_groups
from torch import nn
from transformers import LlamaModel

from dmoerm.config import Config, load_config
from dmoerm.errors import ConfigError
from dmoerm.model import DMoERM
from dmoerm.model.experts import lora_layers
from dmoerm.model.loading import quantize

PROMPT, RESPONSES = "How are you?", ["Fine, and you?", "No.", "x " * 20]


@pytest.mark.parametrize("name", in_short(["qwen3-0.6b", "llama-8b-qlora"], "llama-8b-qlora"))
def test_a_shipped_config_trains_on_4_bits_and_saves_dense_weights_that_quantize_to_the_same_bits(
    name: str, tiny_backbone: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Heads alone, and LoRA experts, on a tiny backbone."""
    fake_bitsandbytes.install(monkeypatch)
    settings = {"backbone.path": tiny_backbone, "output": tmp_path / "run", "cache": tmp_path / "cache"}
    settings |= {
        "backbone.quantization": "4bit",
        "data.files": f"[{write_groups(tiny_groups(), tmp_path / 'g.jsonl')}]",
    }
    settings |= {"phase2.epochs": 1, "phase2.evaluations": 1} if name == "llama-8b-qlora" else {}
    run = train_quietly(load_config(name, [f"{setting}={value}" for setting, value in settings.items()]))
    model = run.model
    assert not [m for part in (model.trunk, model.general.branch) for m in part.modules() if type(m) is nn.Linear]
    if name == "llama-8b-qlora":
        branch = model.task_model("chitchat").experts.branch
        assert branch.layers[0].mlp.up_proj is model.general.branch.layers[0].mlp.up_proj
        layers = list(lora_layers(branch).values())
        assert all(type(layer.base) is fake_bitsandbytes.Linear4bit for layer in layers)
        assert layers[0].lora_B.abs().max() > 0  # gradients have passed the quantized layers

    files = [load_file(file) for file in (run.folder / "model").rglob("*.safetensors")]
    assert torch.uint8 not in {tensor.dtype for file in files for tensor in file.values()}
    scores = model.score(PROMPT, RESPONSES, task="chitchat")
    assert_same(DMoERM.from_pretrained(run.folder / "model").score(PROMPT, RESPONSES, task="chitchat"), scores, 2e-2)
    again = DMoERM.from_pretrained(run.folder / "model", quantization="4bit", device_map="cpu")
    assert_same(again.score(PROMPT, RESPONSES, task="chitchat"), scores, 1e-6)
    codes = {key: tensor for key, tensor in model.state_dict().items() if tensor.dtype == torch.uint8}
    assert codes
    assert all(torch.equal(again.state_dict()[key], tensor) for key, tensor in codes.items())


@pytest.mark.parametrize("kind", ["4bit", "8bit"])
def test_transformers_gets_the_quantization_config(
    tiny_backbone: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, kind: str
) -> None:
    model = make_model(make_tiny_config(tiny_backbone, tmp_path, base="frozen", backbone={"dtype": "bfloat16"}))
    calls: list[dict] = []

    def from_pretrained(*_: object, **options: object) -> nn.Module:
        calls.append(options)
        return copy.deepcopy(model.trunk)

    monkeypatch.setattr(LlamaModel, "from_pretrained", from_pretrained)
    quantize((None, model.trunk), kind, torch.device("cuda", 1))
    (options,) = calls
    config = options["quantization_config"]
    assert getattr(config, f"load_in_{kind}")
    assert options["device_map"] == {"": torch.device("cuda", 1)}
    if kind == "4bit":
        assert (config.bnb_4bit_quant_type, config.bnb_4bit_use_double_quant) == ("nf4", False)
        assert config.bnb_4bit_compute_dtype == torch.bfloat16


EXACT = {"base": "frozen", "phase0": {"fit": "exact"}, "phase1": {"fit": "exact"}}


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"base": "full"}, "needs frozen weights: base: frozen"),
        ({"base": "lora"}, "needs frozen weights"),
        ({**EXACT, "router": {"kind": "own"}}, "router.kind: trunk"),
    ],
)
def test_trained_weights_are_not_quantized(settings: dict, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        Config.model_validate({**settings, "backbone": {"quantization": "4bit"}})


def test_what_is_missing_is_named(
    tiny_backbone: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, trained_run: object
) -> None:
    monkeypatch.setattr(fake_bitsandbytes.quantizer_bnb_4bit, "is_bitsandbytes_available", lambda: False)
    model = make_model(make_tiny_config(tiny_backbone, tmp_path, base="frozen"))
    with pytest.raises(ConfigError, match=r"4bit is not possible here: .*requires bitsandbytes.*'\.\[quantization\]'"):
        quantize((model.trunk,), "4bit", torch.device("cpu"))
    with pytest.raises(ConfigError, match="base: frozen"):
        DMoERM.from_pretrained(trained_run.folder / "model", quantization="4bit", device_map="cpu")
    with pytest.raises(ConfigError, match="quantization='2bit' is not supported: use none or 8bit or 4bit"):
        DMoERM.from_pretrained(tmp_path, quantization="2bit")
