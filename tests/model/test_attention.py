"""A pass over packed tokens gives what separate sequences give: states and gradients, of stacked experts too."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from running import in_short
from tiny import write_backbone
from torch import Tensor, nn
from transformers import AutoModel

from dmoerm.config import LoRAConfig
from dmoerm.model.attention import ATTENTION, Buckets
from dmoerm.model.experts import lora_layers, with_experts
from dmoerm.model.layers import Decoder, run, split_layers
from dmoerm.model.packing import Outputs, Packing, pad

from .packing import (
    KINDS,
    Waste,
    allowing,
    assert_close,
    each_kind,
    each_waste,
    example,
    plain,
    random_ids,
    separate,
    sequences,
    through,
)

OUTPUTS = ["all", "responses", "last"]
ALL_LINEAR = ("q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj")
each_output = pytest.mark.parametrize("outputs", OUTPUTS)


@torch.no_grad()
def test_bfloat16_is_close_to_float32(load: Callable[..., Decoder]) -> None:
    model = load("llama")
    ids = example(model)
    exact = run(model, ids)
    difference = run(model.bfloat16(), ids).float() - exact
    assert difference.norm() < 0.03 * exact.norm()  # 0.016 to 0.024 over six models, with either product of attention


# --- states --------------------------------------------------------------------------------------------------------


@each_kind
@each_output
@each_waste
@torch.no_grad()
def test_outputs_equal_those_of_separate_sequences(
    load: Callable[..., Decoder], kind: str, outputs: Outputs, waste: Waste
) -> None:
    model = load(kind)
    ids = example(model)
    with allowing(waste):
        assert_close(run(model, ids, outputs)[0], separate(plain(model), ids, outputs))
        assert len(ids.packing.derived(Buckets).groups) == (1 if waste is None else 3)


@torch.no_grad()
@settings(max_examples=20, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    prompts=st.lists(st.integers(1, 20), min_size=1, max_size=3),
    more=st.lists(st.integers(0, 2), max_size=4),
    data=st.data(),
    layer=st.integers(0, 3),
    outputs=st.sampled_from(OUTPUTS),
    waste=st.sampled_from([None, (1, 0), (1.25, 100)]),
)
def test_any_shape_equals_separate_sequences(
    load: Callable[..., Decoder], prompts: Any, more: Any, data: st.DataObject, layer: int, outputs: Any, waste: Waste
) -> None:
    model = load()
    owner = data.draw(st.permutations([*range(len(prompts)), *(q % len(prompts) for q in more)]))
    responses = data.draw(st.lists(st.integers(1, 12), min_size=len(owner), max_size=len(owner)))
    ids = random_ids(Packing(prompts, responses, owner), model.config.vocab_size)
    with allowing(waste):
        assert_close(through(model, layer, ids, outputs), separate(plain(model), ids, outputs))


@pytest.mark.parametrize(("outputs", "tokens"), [("all", 52), ("responses", 26), ("last", 6)])
@torch.no_grad()
def test_the_last_layer_runs_only_for_its_outputs(load: Callable[..., Decoder], outputs: Outputs, tokens: int) -> None:
    model, seen = load(), []
    last = model.layers[-1]
    for module in (last.self_attn.q_proj, last.self_attn.o_proj, last.mlp.up_proj):
        module.register_forward_pre_hook(lambda _, inputs: seen.append(inputs[0].shape[1]))
    run(model, example(model), outputs)
    assert seen == [tokens] * 3


# --- a window of attention -----------------------------------------------------------------------------------------


@torch.no_grad()
def test_a_window_longer_than_each_text_changes_nothing(load: Callable[..., Decoder], tmp_path: Path) -> None:
    """The pass may have more tokens than the window; the longest text has 16."""
    model = load(path=write_backbone(tmp_path / "mistral", "mistral", sliding_window=16))
    ids = example(model)
    for layer in (0, 2):
        for outputs in OUTPUTS:
            assert_close(through(model, layer, ids, outputs), separate(plain(model), ids, outputs))


WINDOWED = {
    "mistral": {},
    "gemma2": {"attn_logit_softcapping": 2.0},
    "gemma3_text": {"layer_types": ["sliding_attention", "full_attention"] * 2},
    "gpt_oss": {"num_local_experts": 4, "num_experts_per_tok": 2},
    "olmo3": {"layer_types": ["full_attention", "sliding_attention"] * 2},
}


@pytest.mark.parametrize("kind", in_short(WINDOWED, "gemma2", "gpt_oss"))
@each_waste
def test_short_windows_caps_and_sinks_equal_transformers_eager_attention(
    load: Callable[..., Decoder], tmp_path: Path, kind: str, waste: Waste
) -> None:
    """States and gradients, at each way of running the last layer and both kinds of last layer."""
    path = write_backbone(tmp_path / kind, kind, sliding_window=5, **WINDOWED[kind])
    model = load(path=path).requires_grad_(True)
    exact = AutoModel.from_pretrained(path, attn_implementation="eager", dtype=torch.float32).eval()
    ids = example(model)
    expected = {outputs: separate(plain(exact), ids, outputs) for outputs in OUTPUTS}
    with allowing(waste):
        for layer in range(4):
            for outputs in OUTPUTS:
                assert_close(through(model, layer, ids, outputs), expected[outputs], 1e-5)
        names, parameters = zip(*model.named_parameters(), strict=True)
        actual = torch.autograd.grad(loss(run(model, ids)[0]), parameters)
    others = torch.autograd.grad(loss(expected["all"]), list(exact.parameters()))
    by_name = dict(zip((name for name, _ in exact.named_parameters()), others, strict=True))
    assert_same_gradients(list(names), list(actual), [by_name[name] for name in names])


# --- stacked experts -----------------------------------------------------------------------------------------------


def stacked_experts(branch: Decoder, count: int) -> Decoder:
    """Return a branch with experts that differ, from a fixed seed."""
    stacked = with_experts(branch, count, LoRAConfig(rank=2, targets=ALL_LINEAR)).eval()
    generator = torch.Generator().manual_seed(2)
    for layer in lora_layers(stacked).values():
        for matrix in (layer.lora_A, layer.lora_B):
            nn.init.normal_(matrix, std=0.1, generator=generator)
    return stacked


def only(stacked: Decoder, branch: Decoder, index: int) -> Decoder:
    """Return a branch with a single expert."""
    expert = with_experts(branch, 1, LoRAConfig(rank=2, targets=ALL_LINEAR)).eval()
    for single, layer in zip(lora_layers(expert).values(), lora_layers(stacked).values(), strict=True):
        single.lora_A.data.copy_(layer.lora_A[index : index + 1])
        single.lora_B.data.copy_(layer.lora_B[index : index + 1])
    return expert


@each_kind
@each_output
@pytest.mark.parametrize("layer", [pytest.param(0, marks=pytest.mark.slow), 2])
@torch.no_grad()
def test_each_stacked_expert_equals_the_expert_alone(
    load: Callable[..., Decoder], kind: str, outputs: Outputs, layer: int
) -> None:
    model = load(kind)
    ids, (trunk, branch) = example(model), split_layers(model, layer)
    hidden = ids if trunk is None else ids._replace(tokens=run(trunk, ids)[0])
    stacked = stacked_experts(branch, 3)
    plainly = run(branch, hidden, outputs)[0]
    for waste in (None, (1, 0)):
        with allowing(waste):
            actual = run(stacked, hidden, outputs, num_experts=3)
        assert actual.shape == (3, *plainly.shape)
        for index, states in enumerate(actual):
            expert = only(stacked, branch, index)
            assert_close(states, run(expert, hidden, outputs)[0])
            assert_close(states, separate(plain(expert), hidden, outputs))
            assert (states - plainly).abs().max() > 1e-2  # each expert really says something else


# --- gradients -----------------------------------------------------------------------------------------------------


def loss(states: Tensor) -> Tensor:
    direction = torch.randn(states.shape[-1], generator=torch.Generator().manual_seed(3))
    return (states @ direction).square().sum()


def assert_same_gradients(names: list[str], actual: list[Tensor], expected: list[Tensor]) -> None:
    for name, gradient, other in zip(names, actual, expected, strict=True):
        assert gradient.shape == other.shape
        assert (gradient - other).norm() <= 1e-4 * other.norm(), name
        assert other.norm() > 0, name


@each_kind
@each_output
@each_waste
def test_gradients_are_those_of_separate_sequences(
    load: Callable[..., Decoder], kind: str, outputs: Outputs, waste: Waste
) -> None:
    model = load(kind)
    ids = example(model)
    names, parameters = zip(*model.requires_grad_(True).named_parameters(), strict=True)
    with allowing(waste):
        actual = torch.autograd.grad(loss(run(model, ids, outputs)), parameters)
    expected = torch.autograd.grad(loss(separate(plain(model), ids, outputs)), parameters)
    assert_same_gradients(list(names), list(actual), list(expected))


@each_kind
@each_output
def test_gradients_of_stacked_experts_are_those_of_separate_sequences(
    load: Callable[..., Decoder], kind: str, outputs: Outputs
) -> None:
    """The shared branch gets the sum of the gradients."""
    model = load(kind)
    ids, (trunk, branch) = example(model), split_layers(model, 2)
    with torch.no_grad():
        hidden = ids._replace(tokens=run(trunk, ids)[0])
    branch.requires_grad_(True)
    stacked = stacked_experts(branch, 3)
    singles = [only(stacked, branch, index) for index in range(3)]

    def gradients(total: Tensor, experts: list[Decoder]) -> list[Tensor]:
        lora = [p for expert in experts for name, p in expert.named_parameters() if "lora_" in name]
        return list(torch.autograd.grad(total, [*branch.parameters(), *lora]))

    actual = gradients(loss(run(stacked, hidden, outputs, num_experts=3)), [stacked])
    expected = gradients(sum(loss(separate(plain(expert), hidden, outputs)) for expert in singles), singles)
    shared = len(list(branch.parameters()))
    alone = expected[shared:]
    count = len(alone) // 3
    expected[shared:] = [torch.cat(alone[i::count]) for i in range(count)]
    names = [name for name, _ in branch.named_parameters()]
    names += [name for name, _ in stacked.named_parameters() if "lora_" in name]
    assert_same_gradients(names, actual, expected)


# --- calls without packed tokens -----------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", [*KINDS, "window"])
@pytest.mark.parametrize("side", ["right", "left"])
@torch.no_grad()
def test_without_packing_attention_is_transformers(
    backbones: Callable[[str], str], tmp_path: Path, kind: str, side: str
) -> None:
    windowed = kind == "window"
    path = write_backbone(tmp_path / "mistral", "mistral", sliding_window=5) if windowed else backbones(kind)
    ids, mask = pad(sequences([9, 4, 13], 640))
    if side == "left":
        ids, mask = ids.flip(1), mask.flip(1)
    models = [AutoModel.from_pretrained(path, attn_implementation=n, dtype=torch.float32) for n in ("sdpa", ATTENTION)]
    states = [model.eval()(input_ids=ids, attention_mask=mask.long()).last_hidden_state for model in models]
    assert torch.equal(states[0][mask], states[1][mask])
