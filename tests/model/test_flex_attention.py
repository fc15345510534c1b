"""FlexAttention over the packed row gives what attention on padded rows gives, and makes no tensor of T × T."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from tiny import write_backbone
from torch import Tensor
from torch._dynamo.testing import CompileCounter
from torch.nn.attention import flex_attention as pytorch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from dmoerm.errors import ConfigError
from dmoerm.model import flex_attention
from dmoerm.model.attention import FORM_VARIABLE, Options, attend_padded, attention_form
from dmoerm.model.flex_attention import BlockMasks
from dmoerm.model.layers import Decoder, run
from dmoerm.model.packing import Outputs, Packing

from .packing import assert_close, example
from .test_attention import OUTPUTS, WINDOWED, stacked_experts

PACKING = Packing([9, 4, 13], [5, 1, 8, 3, 7, 2], [1, 0, 1, 2, 0, 1])  # 52 tokens in mixed order


@pytest.fixture
def on_cpu(monkeypatch: pytest.MonkeyPatch) -> None:
    """Run PyTorch's function without compilation, with gradients: both are for devices only."""
    monkeypatch.setattr(pytorch, "_FLEX_ATTENTION_DISABLE_COMPILE_DEBUG", True)
    monkeypatch.setattr(pytorch, "_validate_device", lambda *_: None)


def inputs(packing: Packing, stage: Outputs, k: int = 2) -> list[Tensor]:
    """Return random queries of 6 heads, and keys and values of 2."""
    generator, tokens = torch.Generator().manual_seed(0), len(packing.positions)
    queries = {"all": tokens, "responses": tokens - packing.prompt_tokens, "last": len(packing.responses)}[stage]
    shapes = (k, 6, queries, 16), (k, 2, tokens, 16), (k, 2, tokens, 8)
    return [torch.randn(shape, generator=generator, requires_grad=True) for shape in shapes]


def attend_flex(q: Tensor, k: Tensor, v: Tensor, packing: Packing, queries: Outputs, options: Options) -> Tensor:
    mask = packing.derived(BlockMasks).mask(queries, options.window)
    return flex_attention.attend(q, k, v, mask, options.scale, options.softcap, options.sinks)


OPTIONS = {
    "plain": Options(),
    "window": Options(scale=0.3, window=5),
    "capped": Options(softcap=2.0),
    "sinks": Options(window=7, sinks=torch.linspace(-1, 1, 6)),
}


@pytest.mark.parametrize("options", OPTIONS.values(), ids=OPTIONS.keys())
@pytest.mark.parametrize("stage", OUTPUTS)
@torch.no_grad()
def test_it_equals_attention_on_padded_rows(on_cpu: None, stage: Outputs, options: Options) -> None:
    tensors = inputs(PACKING, stage)
    expected = attend_padded(*tensors, PACKING, stage, options)
    actual = attend_flex(*tensors, PACKING, stage, options)
    torch.testing.assert_close(actual, expected, atol=1e-5, rtol=1e-5)


@pytest.mark.slow  # PyTorch traces the gradient of each case
@pytest.mark.parametrize("options", OPTIONS.values(), ids=OPTIONS.keys())
@pytest.mark.parametrize("stage", OUTPUTS)
def test_its_gradients_equal_those_of_padded_rows(on_cpu: None, stage: Outputs, options: Options) -> None:
    tensors = inputs(PACKING, stage)
    forms = attend_flex, attend_padded
    results = [form(*tensors, PACKING, stage, options).sin().sum() for form in forms]
    for actual, expected in zip(*(torch.autograd.grad(x, tensors) for x in results), strict=True):
        torch.testing.assert_close(actual, expected, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("kind", WINDOWED)
@torch.no_grad()
def test_passes_of_each_family_have_the_same_states(
    on_cpu: None, load: Callable[..., Decoder], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, kind: str
) -> None:
    """With windows by layer type, caps or sinks; three experts side by side; each way of running the last layer."""
    model = load(path=write_backbone(tmp_path / kind, kind, sliding_window=5, **WINDOWED[kind]))
    ids, experts = example(model), stacked_experts(model, 3)
    for outputs in OUTPUTS:
        monkeypatch.delenv(FORM_VARIABLE, raising=False)
        expected = run(experts, ids, outputs, num_experts=3)
        monkeypatch.setenv(FORM_VARIABLE, "flex")
        assert_close(run(experts, ids, outputs, num_experts=3), expected, 1e-5)


@pytest.mark.slow  # PyTorch traces the function
@torch.no_grad()
def test_one_kernel_serves_all_lengths_and_windows(monkeypatch: pytest.MonkeyPatch) -> None:
    torch._dynamo.reset()
    counter, counts = CompileCounter(), []
    compiled = torch.compile(pytorch.flex_attention, backend=counter, dynamic=True)
    monkeypatch.setattr(flex_attention, "_kernel", lambda _: compiled)
    for i, window in enumerate((None, 50, 7)):
        packing = Packing([200 + 7 * i, 40, 133], [150, 10 + i, 80, 30, 70, 20], [1, 0, 1, 2, 0, 1])
        tensors, options = [x.detach() for x in inputs(packing, "all")], Options(window=window)
        expected = attend_padded(*tensors, packing, "all", options)
        actual = attend_flex(*tensors, packing, "all", options)
        torch.testing.assert_close(actual, expected, atol=1e-5, rtol=1e-5)
        counts.append(counter.frame_count)
    assert counts[0] > 0
    assert len(set(counts)) == 1


# --- tiles ---------------------------------------------------------------------------------------------------------


def listed(counts: Tensor, indices: Tensor) -> Tensor:
    """Return the tiles of a list as a matrix."""
    tiles = torch.zeros(indices.shape[2:], dtype=torch.bool)
    for row, (count, columns) in enumerate(zip(counts[0, 0], indices[0, 0], strict=True)):
        tiles[row, columns[:count].long()] = True
    return tiles


@pytest.mark.parametrize("window", [None, 3, 6])
@pytest.mark.parametrize("stage", OUTPUTS)
@pytest.mark.parametrize("tile", [1, 2, 4])
@pytest.mark.parametrize("seed", range(4))
def test_tiles_contain_all_visible_keys(
    monkeypatch: pytest.MonkeyPatch, seed: int, tile: int, stage: Outputs, window: int | None
) -> None:
    """A tile that is not listed has no visible key, and one that is listed as whole has no hidden one."""
    monkeypatch.setattr(flex_attention, "_TILE", tile)
    random = torch.Generator().manual_seed(seed)
    lengths = torch.randint(1, 12, (9,), generator=random).tolist()
    packing = Packing(lengths[:3], lengths[3:], torch.randint(3, (6,), generator=random).tolist())
    mask = packing.derived(BlockMasks).mask(stage, window)
    queries, keys = mask.seq_lengths
    visible = mask.mask_mod(None, None, torch.arange(queries)[:, None], torch.arange(keys))
    some, every = (
        listed(mask.kv_num_blocks, mask.kv_indices),
        listed(mask.full_kv_num_blocks, mask.full_kv_indices),
    )
    assert not (some & every).any()
    for row in range(len(some)):
        for column in range(some.shape[1]):
            part = visible[row * tile : (row + 1) * tile, column * tile : (column + 1) * tile]
            assert part.any() <= (some | every)[row, column]
            assert every[row, column] <= part.all()


def test_tiles_without_visible_keys_are_skipped() -> None:
    """Four texts of 1,024 tokens: no query sees another text, nor later tiles of its own."""
    mask = Packing([512] * 4, [512] * 4, range(4)).derived(BlockMasks).mask("all", None)
    some, every = int(mask.kv_num_blocks.sum()), int(mask.full_kv_num_blocks.sum())
    assert (some, every) == (4 * 8, 4 * 28)


class _Largest(TorchDispatchMode):
    """The number of elements of the largest tensor that an operation returns."""

    elements = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = func(*args, **kwargs or {})
        sizes = [x.numel() for x in tree_leaves(result) if isinstance(x, Tensor)]
        self.elements = max([self.elements, *sizes])
        return result


@pytest.mark.parametrize("window", [None, 4096])
def test_no_tensor_of_a_mask_grows_with_tokens_times_tokens(window: int | None) -> None:
    tokens = 32_768
    packing = Packing([tokens // 2], [tokens // 4] * 2, [0, 0])
    with _Largest() as largest:
        packing.derived(BlockMasks).mask("all", window)
    assert tokens < largest.elements <= 8 * tokens  # T × T is 32,768 × tokens


# --- the form ------------------------------------------------------------------------------------------------------


def test_the_form_depends_on_the_device(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv(FORM_VARIABLE, raising=False)
    devices = ("cpu", "mps", "cuda", "xpu")
    assert [attention_form(torch.device(d)) for d in devices] == ["padded", "padded", "flex", "flex"]
    monkeypatch.setenv(FORM_VARIABLE, "padded")
    assert attention_form(torch.device("cuda")) == "padded"
    monkeypatch.setenv(FORM_VARIABLE, "dense")
    with pytest.raises(ConfigError, match="DMOERM_ATTENTION is 'dense'; use one of padded, flex"):
        attention_form(torch.device("cpu"))
