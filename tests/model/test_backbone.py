"""Trunk + branch = the whole model at every cut; prompts shared between responses = separate sequences."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from tiny import write_backbone
from torch import Tensor

from dmoerm.config import BackboneConfig
from dmoerm.errors import BackboneError
from dmoerm.model import backbone as module
from dmoerm.model.backbone import (
    Decoder,
    Shared,
    check_cut,
    cut,
    join,
    load_backbone,
    resolve_cut,
    resolve_dtype,
    run_shared,
)
from dmoerm.model.batching import pad

KINDS = ["llama", "qwen2", "qwen3", "mistral"]
each_kind = pytest.mark.parametrize("kind", KINDS)


@pytest.fixture
def load(backbones: Callable[[str], str]) -> Callable[..., Decoder]:
    def load(kind: str = "llama", **changes: object) -> Decoder:
        return load_backbone(BackboneConfig(path=backbones(kind), dtype="float32", **changes))[0]

    return load


def sequences(lengths: list[int], vocabulary: int, seed: int = 0) -> list[Tensor]:
    generator = torch.Generator().manual_seed(seed)
    return [torch.randint(vocabulary, (length,), generator=generator) for length in lengths]


def shared(prompts: list[Tensor], responses: list[Tensor], owner: list[int], filler: int = 0) -> Shared:
    prompt, prompt_mask = pad(prompts)
    response, response_mask = pad(responses)
    prompt, response = prompt.masked_fill(~prompt_mask, filler), response.masked_fill(~response_mask, filler)
    return Shared(prompt, prompt_mask, response, response_mask, torch.tensor(owner))


def example(model: Decoder, seed: int = 0, filler: int = 0) -> tuple[Shared, list[Tensor]]:
    """Three prompts with 2, 3 and 1 responses, all of other lengths, and the same as whole sequences."""
    owner, vocabulary = [1, 0, 1, 2, 0, 1], model.config.vocab_size
    prompts = sequences([9, 4, 13], vocabulary, seed)
    responses = sequences([5, 1, 8, 3, 7, 2], vocabulary, seed + 1)
    whole = [torch.cat([prompts[q], response]) for q, response in zip(owner, responses, strict=True)]
    return shared(prompts, responses, owner, filler), whole


def through(model: Decoder, layer: int, inputs: Shared) -> tuple[Tensor, Tensor]:
    """Trunk, then branch."""
    trunk, branch = cut(model, layer)
    if trunk is not None:
        prompt, response = run_shared(trunk, inputs)
        inputs = inputs._replace(prompt=prompt, response=response)
    return run_shared(branch, inputs)


def real(states: Tensor, mask: Tensor) -> list[Tensor]:
    return [row[keep] for row, keep in zip(states, mask, strict=True)]


def assert_same_as_whole(model: Decoder, layer: int, tolerance: float = 1e-4) -> None:
    inputs, whole = example(model)
    prompt, response = through(model, layer, inputs)
    prompts, responses = real(prompt, inputs.prompt_mask), real(response, inputs.response_mask)
    for q, states, ids in zip(inputs.owner.tolist(), responses, whole, strict=True):
        expected = model(input_ids=ids[None]).last_hidden_state[0]
        found = torch.cat([prompts[q], states])
        assert (found - expected).abs().max() <= tolerance * expected.abs().max()


@each_kind
@pytest.mark.parametrize("layer", range(4))
@torch.no_grad()
def test_trunk_and_branch_are_the_whole_model_at_every_cut(load: Callable, kind: str, layer: int) -> None:
    assert_same_as_whole(load(kind), layer)


@pytest.mark.slow
@torch.no_grad()
def test_trunk_and_branch_are_the_whole_smollm2_at_every_cut(smollm2: str) -> None:
    model = load_backbone(BackboneConfig(path=smollm2, dtype="float32"))[0]
    for layer in range(len(model.layers)):
        assert_same_as_whole(model, layer)


@torch.no_grad()
@settings(max_examples=25, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    lengths=st.lists(st.integers(1, 20), min_size=1, max_size=3),
    responses=st.lists(st.tuples(st.integers(1, 12), st.integers(0, 2)), min_size=1, max_size=5),
    layer=st.integers(0, 3),
)
def test_any_shape_gives_what_separate_sequences_give(
    load: Callable, lengths: list[int], responses: list[tuple[int, int]], layer: int
) -> None:
    model = load()
    prompts = sequences(lengths, model.config.vocab_size)
    texts = sequences([length for length, _ in responses], model.config.vocab_size, 1)
    owner = [q % len(prompts) for _, q in responses]
    inputs = shared(prompts, texts, owner)
    found = real(through(model, layer, inputs)[1], inputs.response_mask)
    for q, text, states in zip(owner, texts, found, strict=True):
        whole = model(input_ids=torch.cat([prompts[q], text])[None]).last_hidden_state[0, len(prompts[q]) :]
        torch.testing.assert_close(states, whole, atol=1e-4, rtol=1e-4)


@each_kind
@torch.no_grad()
def test_what_fills_the_padding_makes_no_difference(load: Callable, kind: str) -> None:
    model = load(kind)
    rows = [real(through(model, 2, example(model, filler=f)[0])[1], example(model)[0].response_mask) for f in (0, 5)]
    for zeros, fives in zip(*rows, strict=True):
        torch.testing.assert_close(zeros, fives, atol=1e-5, rtol=1e-5)


@each_kind
def test_gradients_through_shared_prompts_are_those_of_separate_sequences(load: Callable, kind: str) -> None:
    model = load(kind)
    inputs, whole = example(model)
    direction = torch.randn(model.config.hidden_size, generator=torch.Generator().manual_seed(3))
    loss = sum(
        (states @ direction).square().sum() for states in real(run_shared(model, inputs)[1], inputs.response_mask)
    )
    names, parameters = zip(*model.named_parameters(), strict=True)
    found = torch.autograd.grad(loss, parameters)
    lengths = inputs.response_mask.sum(1).tolist()
    separate = sum(
        (model(input_ids=ids[None]).last_hidden_state[0, -length:] @ direction).square().sum()
        for ids, length in zip(whole, lengths, strict=True)
    )
    expected = torch.autograd.grad(separate, parameters)
    for name, one, other in zip(names, found, expected, strict=True):
        assert (one - other).norm() <= 1e-4 * other.norm(), name


def test_a_window_shorter_than_the_text_is_refused_not_miscounted(tmp_path: Path) -> None:
    """Right padding would push a prompt's own tokens out of a sliding window."""
    path = write_backbone(tmp_path / "mistral", "mistral", sliding_window=16)
    model = load_backbone(BackboneConfig(path=path, dtype="float32", branch_layer=2))[0]
    inputs, _ = example(model)
    with pytest.raises(BackboneError, match=r"window of 16.*max_length"):
        run_shared(model, inputs)


def test_parts_share_the_models_weights(load: Callable) -> None:
    model = load()
    trunk, branch = cut(model, 2)
    own = {p.data_ptr() for p in model.parameters()}
    parts = {p.data_ptr() for part in (trunk, branch) for p in part.parameters()}
    assert parts == own
    assert {p.data_ptr() for p in join(trunk, branch).parameters()} == own


@torch.no_grad()
def test_joined_parts_are_the_whole_model(load: Callable) -> None:
    model = load("qwen3")
    ids = example(model)[1][0][None]
    for layer in range(4):
        assert torch.equal(join(*cut(model, layer))(ids).last_hidden_state, model(ids).last_hidden_state)


@torch.no_grad()
def test_num_layers_uses_the_first_layers_and_the_final_norm(load: Callable) -> None:
    whole, shallow = load(), load(num_layers=2)
    ids = example(whole)[1][0][None]
    states = whole(ids, output_hidden_states=True).hidden_states[2]
    torch.testing.assert_close(shallow(ids).last_hidden_state, whole.norm(states), atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize(("layers", "asked", "expected"), [(4, None, 3), (4, 0, 0), (4, 3, 3), (2, None, 1)])
def test_the_cut_is_at_four_fifths_unless_asked(load: Callable, layers: int, asked: int | None, expected: int) -> None:
    assert resolve_cut(BackboneConfig(branch_layer=asked), load(num_layers=layers)) == expected


@pytest.mark.parametrize(
    ("changes", "message"),
    [({"branch_layer": 4}, "branch_layer is 4.*below 4"), ({"num_layers": 5}, "num_layers is 5.*has 4 layers")],
)
def test_a_cut_beyond_the_model_is_an_error(load: Callable, changes: dict[str, int], message: str) -> None:
    with pytest.raises(BackboneError, match=message):
        load(**changes)


def test_repeat_makes_one_block_after_the_other() -> None:
    inputs = shared(sequences([2, 3], 9), sequences([1, 2, 2], 9), [0, 1, 1])
    twice = inputs.repeat(2)
    assert twice.owner.tolist() == [0, 1, 1, 2, 3, 3]
    assert torch.equal(twice.prompt[2:], inputs.prompt)
    assert torch.equal(twice.response[3:], inputs.response)


def test_select_keeps_each_response_with_its_prompt() -> None:
    inputs = shared(sequences([2, 3, 4], 9), sequences([1, 2, 2], 9), [2, 0, 2])
    part = inputs.select(torch.tensor([2, 0]))
    assert torch.equal(part.prompt[part.owner], inputs.prompt[[2, 2]])
    assert torch.equal(part.response, inputs.response[[2, 0]])


def encoder_only(folder: Path, kind: str) -> str:
    """A model of another layout than that of Llama."""
    from tiny import tiny_tokenizer
    from transformers import AutoConfig, AutoModel

    size = {"d_model": 16, "num_layers": 1, "num_heads": 2, "d_ff": 16, "vocab_size": 640}
    if kind != "t5":
        size = {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 16}
    AutoModel.from_config(AutoConfig.for_model(kind, **size)).save_pretrained(folder)
    tiny_tokenizer().save_pretrained(folder)
    return str(folder)


@pytest.mark.parametrize("kind", ["bert", "modernbert", "gpt2", "t5"])
def test_a_backbone_that_cannot_be_cut_is_named(tmp_path: Path, kind: str) -> None:
    path = encoder_only(tmp_path / kind, kind)
    with pytest.raises(BackboneError, match=rf"'{kind}'.*use (a decoder such as )?Llama"):
        load_backbone(BackboneConfig(path=path, dtype="float32"))


def test_a_backbone_whose_cut_changes_the_result_is_refused(load: Callable, monkeypatch: pytest.MonkeyPatch) -> None:
    model = load()
    real_cut = module.cut
    monkeypatch.setattr(module, "cut", lambda model, layer: (real_cut(model, 1)[0], real_cut(model, 3)[1]))
    with pytest.raises(BackboneError, match="another result"):
        check_cut(model, 2)


@pytest.mark.parametrize("content", [None, "not json"])
def test_a_folder_that_is_no_backbone_is_named(tmp_path: Path, content: str | None) -> None:
    if content:
        (tmp_path / "config.json").write_text(content)
    with pytest.raises(BackboneError, match=f"{tmp_path}.*cannot be loaded.*give the folder"):
        load_backbone(BackboneConfig(path=str(tmp_path)))


def test_dtypes_have_names() -> None:
    assert resolve_dtype("float32") is torch.float32
    assert resolve_dtype("bfloat16") is torch.bfloat16
    assert resolve_dtype("auto") in {torch.float32, torch.bfloat16}


@torch.no_grad()
def test_a_bfloat16_backbone_can_be_cut(backbones: Callable[[str], str]) -> None:
    model = load_backbone(BackboneConfig(path=backbones("llama"), dtype="bfloat16", branch_layer=2))[0]
    assert model.dtype is torch.bfloat16


def test_the_bundled_backbone_is_a_plain_folder_with_a_chat_template(smollm2: str) -> None:
    model, tokenizer = load_backbone(BackboneConfig(path=smollm2, num_layers=1, branch_layer=0, dtype="float32"))
    assert model.config.hidden_size == 576
    assert tokenizer.chat_template
