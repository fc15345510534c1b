"""Backbones of all kinds: packed, by their own forward, in a composite, and reward models as a start."""

from __future__ import annotations

import json
import math
import re
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from running import in_short
from tiny import HEADS, make_model, make_tiny_config, tiny_groups, tiny_tokenizer, write_backbone
from transformers import AutoConfig, AutoModel, AutoModelForSequenceClassification
from typer.testing import CliRunner

from dmoerm.cli import app
from dmoerm.config import BackboneConfig
from dmoerm.errors import BackboneError, ConfigError
from dmoerm.model import DMoERM
from dmoerm.model.backbone import check_backbone, load_backbone
from dmoerm.model.families import PACKED, refused_reason, text_config
from dmoerm.model.memory import survey
from dmoerm.schema import Query
from dmoerm.taxonomy import draft_taxonomy
from dmoerm.training.run import build_model

sys.path.append(str(Path(__file__).parents[2] / "tools"))
import backbones_page

RESPONSES = ["Fine, thanks.", "No.", "I am well, and you? " * 4]
# One family of each form of layers; the other packed families are slow tests.
ALWAYS = ["deepseek_v3", "phi3", "qwen3_5_text", "gemma3n", "qwen3_vl", "internvl", "modernbert", "deberta-v2"]
OTHERS = [pytest.param(kind, marks=pytest.mark.slow) for kind in sorted(PACKED - set(ALWAYS))]


@pytest.mark.parametrize("kind", [*ALWAYS, *OTHERS])
def test_a_family_gives_transformers_states(kind: str) -> None:
    row = backbones_page.measure(kind)
    assert row.runs == ("packed" if text_config(AutoConfig.for_model(kind)).model_type in PACKED else "fallback")
    assert row.error is not None
    assert 0 < row.error < 1e-5


@torch.no_grad()
def test_a_family_is_refused_whose_attention_depends_on_padding() -> None:
    """PaliGemma's text model; the same layers with causal attention are Gemma's, which runs packed."""
    config = text_config(backbones_page.tiny_config("paligemma"))
    assert "without padding" in str(refused_reason(config))
    torch.manual_seed(0)
    model = AutoModel.from_config(config).eval()
    ids, mask = torch.tensor([[3, 4, 5, 0]]), torch.tensor([[1, 1, 1, 0]])
    alone, padded = model(ids[:, :3]), model(ids, attention_mask=mask)
    assert not torch.allclose(alone.last_hidden_state, padded.last_hidden_state[:, :3], atol=0.1)


def test_the_page_lists_each_measured_family() -> None:
    page = backbones_page.PAGE.read_text(encoding="utf-8").partition("## Families")[2]
    assert sorted(re.findall(r"`([a-z0-9_-]+)`", page)) == sorted(backbones_page.FAMILIES)
    packed = page.partition("**Packed**")[2].partition("|")[0]
    assert all((f"`{kind}`" in packed) == (kind in PACKED) for kind in backbones_page.FAMILIES if kind in PACKED)


_VISION = {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 16}
_VISION |= {"image_size": 28, "patch_size": 14}
_LLAMA4_VISION = {**_VISION, "intermediate_size": 64, "vision_output_dim": 32}
_LLAMA4_VISION |= {"projector_input_dim": 32, "projector_output_dim": 32}


def write_composite(folder: Path, kind: str, **parts: Any) -> str:
    """Write a tiny random composite with its vision model."""
    text = text_config(backbones_page.tiny_config(kind)).to_dict()
    text |= {"max_position_embeddings": 1024, "sliding_window": 8}
    config = AutoConfig.for_model(kind, text_config=text, **parts)
    AutoModel.from_config(config).save_pretrained(folder)
    tiny_tokenizer().save_pretrained(folder)
    return str(folder)


WRITERS: dict[str, Callable[[Path], str]] = {
    "modernbert": lambda folder: write_backbone(folder, "modernbert"),
    "deberta-v2": lambda folder: write_backbone(folder, "deberta-v2"),
    "qwen3_5_text": lambda folder: write_backbone(folder, "qwen3_5_text", **backbones_page._LINEAR),
    "gemma3": lambda folder: write_composite(folder, "gemma3", vision_config=_VISION, mm_tokens_per_image=1),
    "llama4": lambda folder: write_composite(folder, "llama4", vision_config=_LLAMA4_VISION),
}


@pytest.mark.parametrize("kind", in_short(WRITERS, "qwen3_5_text", "llama4"))
def test_a_model_on_any_backbone_is_saved_and_loaded(tmp_path: Path, kind: str) -> None:
    """The model has LoRA experts that differ. Each score depends on no other response."""
    kind_of_router = "trunk" if kind == "gemma3" else "own"
    changes: Any = {"backbone": {"branch_layer": None}, "router": {"kind": kind_of_router}}
    model = make_model(make_tiny_config(WRITERS[kind](tmp_path / "backbone"), tmp_path, **changes))
    model.save_pretrained(tmp_path / "model")
    loaded = DMoERM.from_pretrained(tmp_path / "model")
    for task in model.config.tasks:
        scores = model.score("How are you today?", RESPONSES, task)
        assert loaded.score("How are you today?", RESPONSES, task) == scores
        alone = [model.score("How are you today?", [text], task)[0] for text in RESPONSES]
        assert [s.reward for s in alone] == pytest.approx([s.reward for s in scores], rel=1e-3, abs=1e-3)
        assert len({round(value, 3) for value in scores[0].capabilities.values()}) > 1
    half = DMoERM.from_pretrained(tmp_path / "model", dtype=torch.bfloat16).score("How are you today?", RESPONSES)
    assert len({score.reward for score in half}) == len(RESPONSES)


@pytest.mark.parametrize("kind", ["reward model", *WRITERS])
def test_heads_on_any_backbone_are_saved_without_it(tmp_path: Path, reward_model: str, kind: str) -> None:
    path = reward_model if kind == "reward model" else WRITERS[kind](tmp_path / "backbone")
    whole = kind in WRITERS and kind != "gemma3"
    changes: Any = {"backbone": {"branch_layer": None, "num_layers": None if whole else 3}}
    changes |= {"router": {"kind": "own"}} if whole else {}
    model = make_model(make_tiny_config(path, tmp_path, **HEADS, **changes))
    scores = []
    for backbone in (False, True):
        model.save_pretrained(tmp_path / "model", backbone=backbone)
        assert (tmp_path / "model" / "general" / "branch.safetensors").exists() == backbone
        scores.append(DMoERM.from_pretrained(tmp_path / "model").score("How are you today?", RESPONSES))
    assert scores[0] == scores[1]


@pytest.mark.parametrize(
    ("kind", "tokens", "settings"),
    [
        ("xlm-roberta", 62, {"max_position_embeddings": 64, "pad_token_id": 1}),  # positions start at 2
        ("gpt2", 64, {"max_position_embeddings": 64}),  # its configuration calls it n_positions
    ],
)
def test_the_longest_text_is_one_that_the_backbone_reads(
    tmp_path: Path, kind: str, tokens: int, settings: dict[str, Any]
) -> None:
    encoding = {"template": "plain", "pooling": "last", "truncation": "keep_both"}
    changes: Any = {"backbone": {"branch_layer": None}, "router": {"kind": "own"}, "encoding": encoding}
    changes |= {"phase2": {"fit": "exact"}}
    backbone = write_backbone(tmp_path / "backbone", kind, **settings)
    model = make_model(make_tiny_config(backbone, tmp_path, **changes))
    assert model.encoder.max_length == model.config.text_tokens == tokens
    (score,) = model.score("How are you today?", ["I am well. " * 200])
    assert score.truncated
    assert math.isfinite(score.reward)


# --- reward models as a start --------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def reward_model(backbones: Callable[[str], str], tmp_path_factory: pytest.TempPathFactory) -> str:
    """The folder of a tiny random `LlamaForSequenceClassification` with one label in bfloat16."""
    folder = tmp_path_factory.mktemp("reward")
    config = AutoConfig.from_pretrained(backbones("llama"), num_labels=1, pad_token_id=0)
    with torch.random.fork_rng():
        torch.manual_seed(1)  # with random weights of other seeds, rounding in bfloat16 changes scores by up to 0.08
        AutoModelForSequenceClassification.from_config(config, dtype=torch.bfloat16).save_pretrained(folder)
    tiny_tokenizer().save_pretrained(folder)
    return str(folder)


def test_a_head_that_is_not_read_is_not_dropped_in_silence(backbones: Callable[[str], str], tmp_path: Path) -> None:
    """Reward models on encoders have a pooler and a layer `classifier`."""
    config = AutoConfig.from_pretrained(backbones("deberta-v2"), num_labels=1)
    AutoModelForSequenceClassification.from_config(config).save_pretrained(tmp_path / "reward")
    tiny_tokenizer().save_pretrained(tmp_path / "reward")
    settings = BackboneConfig(path=str(tmp_path / "reward"))
    for check in (survey, check_backbone, load_backbone):
        with pytest.raises(BackboneError, match=r"head is not one linear layer.*reward_head to false"):
            check(settings)
    body = settings.model_copy(update={"reward_head": False})
    assert not survey(body).has_head
    assert load_backbone(body)[2] is None


def started(path: str, folder: Path, **changes: Any) -> DMoERM:
    return build_model(make_tiny_config(path, folder, **changes), draft_taxonomy(tiny_groups(2), "drafted"))


@pytest.mark.parametrize(("dtype", "tolerance"), [("float32", 1e-5), ("bfloat16", 0.03)])
@pytest.mark.parametrize("pooling", ["both", "last"])
@torch.no_grad()
def test_the_general_model_starts_with_the_reward_models_scores(
    reward_model: str, tmp_path: Path, dtype: str, tolerance: float, pooling: str
) -> None:
    backbone, encoding = {"dtype": dtype}, {"pooling": pooling}
    model = started(reward_model, tmp_path, backbone=backbone, encoding=encoding)
    model.config.threshold = 1.0  # the general model scores
    encoded = model.encoder.encode(Query(prompt="How are you?", responses=RESPONSES))
    exact = AutoModelForSequenceClassification.from_pretrained(reward_model, dtype=getattr(torch, dtype)).eval()
    expected = [float(exact(torch.tensor([[*encoded.prompt, *ids]])).logits) for ids in encoded.responses]
    assert [s.reward for s in model.score("How are you?", RESPONSES)] == pytest.approx(expected, abs=tolerance)
    assert len(set(expected)) == len(RESPONSES)


def test_a_start_keeps_its_preferences_when_its_normalizer_is_fitted(reward_model: str, tmp_path: Path) -> None:
    head = started(reward_model, tmp_path).general.head
    samples = torch.randn(50, head.score.in_features, generator=torch.Generator().manual_seed(0)) * 3 + 1
    with torch.no_grad():
        before = head(samples)
        head.fit_normalizer(samples)
        shift = head(samples) - before
    torch.testing.assert_close(shift, shift.mean().expand_as(shift), atol=1e-5, rtol=1e-5)


def test_a_head_that_cannot_start_from_the_reward_model_is_an_error(reward_model: str, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"encoding.pooling: .*reward_head to false"):
        started(reward_model, tmp_path, encoding={"pooling": "mean"})
    assert not started(reward_model, tmp_path, backbone={"reward_head": False}).general.head.has_start


# --- dmoerm models check -------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("kind", "settings", "expected", "code"),
    [
        ("llama", {}, ["packed: the fast path", "3 in the trunk, 1 in each branch", "q_proj, v_proj", "sum "], 0),
        ("phi3", {"pad_token_id": 0}, ["packed", "LoRA targets  qkv_proj"], 0),
        ("modernbert", {}, ["fallback: by its own forward", "0 in the trunk", "Wqkv", "sum "], 0),
        ("gpt2", {}, ["fallback: by its own forward", "activations   unknown"], 0),
        ("t5", {}, ["refused (it is an encoder with a decoder)"], 1),
    ],
)
def test_models_check_reads_the_configuration_only(
    tmp_path: Path, kind: str, settings: dict[str, Any], expected: list[str], code: int
) -> None:
    AutoConfig.for_model(kind, num_hidden_layers=4, **settings).save_pretrained(tmp_path)
    result = CliRunner().invoke(app, ["models", "check", str(tmp_path)])
    assert result.exit_code == code
    for text in expected:
        assert text in result.output


@pytest.mark.parametrize(
    ("kind", "values"),
    [
        ("starcoder2", {"num_key_value_heads": None}),
        ("llama", {"num_attention_heads": 0}),
        ("llama", {"num_attention_heads": 7}),
        ("llama", {"hidden_size": "wide"}),
        ("llama", {"pad_token_id": 10**6}),
        ("llama", {"layer_types": ["full_attention"]}),
    ],
)
def test_a_configuration_that_gives_no_model_is_one_error(tmp_path: Path, kind: str, values: dict[str, Any]) -> None:
    AutoConfig.for_model(kind, num_hidden_layers=4).save_pretrained(tmp_path)
    file = tmp_path / "config.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | values))
    result = CliRunner(env={"COLUMNS": "400"}).invoke(app, ["models", "check", str(tmp_path)])
    assert result.exit_code == 1
    assert isinstance(result.exception, SystemExit)
    assert f"backbone '{tmp_path}' cannot be loaded: " in result.output


def memory_of(folder: Path, kind: str = "llama", **settings: Any) -> Any:
    """Return the memory for three tasks of a model of some million weights."""
    shape = {"hidden_size": 512, "intermediate_size": 1408, "num_attention_heads": 8, "vocab_size": 32000}
    AutoConfig.for_model(kind, num_hidden_layers=10, **shape).save_pretrained(folder)
    return survey(BackboneConfig(path=str(folder), dtype="bfloat16", **settings), tasks=3).memory


@pytest.mark.parametrize(("kind", "keys", "matrices"), [("llama", 512, 3), ("starcoder2", 128, 2)])
def test_the_memory_of_a_check_is_counted_from_the_shape(tmp_path: Path, kind: str, keys: int, matrices: int) -> None:
    memory = memory_of(tmp_path, kind)
    assert memory["pass"] == 8192 * 2 * (6 * 512 + 2 * keys + matrices * 1408)
    layer = 512 * (2 * 512 + 2 * keys + matrices * 1408)
    assert memory["training"] == pytest.approx(22 * 2 * layer, rel=0.01)
    assert memory["own"] == pytest.approx(2 * (8 * layer + 32_000 * 512) + 4 * 4 * 2 * layer, rel=0.01)
    assert memory["train_full_checkpointing"] < memory["train_full"]


@pytest.mark.parametrize(("quantization", "bytes_per_weight"), [("4bit", 0.5625), ("8bit", 1.0)])
def test_quantization_saves_memory_of_the_linear_layers(
    tmp_path: Path, quantization: str, bytes_per_weight: float
) -> None:
    memory, layers = memory_of(tmp_path, quantization=quantization), 512 * (4 * 512 + 3 * 1408) * 10
    assert memory["frozen"] == pytest.approx(memory_of(tmp_path)["frozen"] - layers * (2 - bytes_per_weight))
    assert not {"own", "training", "score_own", "train_full", "train_full_checkpointing"} & set(memory)


@pytest.mark.parametrize(
    ("kind", "layer", "reason"), [("gpt2", (), "not among"), ("llama", ("--set", "backbone.branch_layer=0"), "0")]
)
def test_models_check_refuses_quantization_without_a_trunk(
    tmp_path: Path, kind: str, layer: tuple[str, ...], reason: str
) -> None:
    """Training refuses it too, since the router then has weights of its own."""
    AutoConfig.for_model(kind).save_pretrained(tmp_path)
    result = CliRunner().invoke(app, ["models", "check", str(tmp_path), "--set", "backbone.quantization=8bit", *layer])
    assert result.exit_code == 1
    message = " ".join(result.output.split())
    assert "quantization is 8bit, which needs router.kind: trunk, but there is no trunk" in message
    assert reason in message
