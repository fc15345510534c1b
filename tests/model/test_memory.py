"""The tokens of a pass follow from the free memory of an accelerator; on a CPU they are always the same."""

from __future__ import annotations

from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from transformers import AutoConfig

from dmoerm.model import memory
from dmoerm.model.layers import Decoder, split_layers
from dmoerm.model.memory import (
    MAX_PASS_TOKENS,
    PASS_TOKENS,
    BackboneShape,
    free_memory,
    kept_bytes,
    pass_bytes,
    scoring_tokens,
    trained_bytes,
    training_tokens,
)
from dmoerm.schema import Query

SIZE = 4


@pytest.fixture
def having(monkeypatch: pytest.MonkeyPatch) -> Callable[[float | None], None]:
    """A function: bytes → a device has so many free."""
    return lambda free: monkeypatch.setattr(memory, "free_memory", lambda _: free)


def test_passes_on_a_cpu_do_not_depend_on_its_memory(load: Callable[..., Decoder]) -> None:
    model = load().requires_grad_(True)
    assert free_memory(torch.device("cpu")) is None
    assert scoring_tokens(model) == training_tokens(model, checkpointing=False) == PASS_TOKENS


def test_long_passes_take_half_of_the_free_memory_at_most(
    load: Callable[..., Decoder], having: Callable[[float | None], None]
) -> None:
    model = load()
    shape = BackboneShape.of(model.config)
    assert shape is not None
    found = []
    for tokens in (1, 5000, 8192, 20_000, 40_000, 140_000, 10**9):
        having(pass_bytes(shape, SIZE, tokens))
        found.append(scoring_tokens(model))
    assert found == [1, 4096, PASS_TOKENS, PASS_TOKENS, 16_384, MAX_PASS_TOKENS, MAX_PASS_TOKENS]
    having(0)
    assert scoring_tokens(model) == 1  # texts run one by one


def test_a_training_pass_leaves_memory_for_what_is_trained_and_kept(
    load: Callable[..., Decoder], having: Callable[[float | None], None]
) -> None:
    branch = split_layers(load(), 1)[1].requires_grad_(True)
    weights, shape = sum(p.numel() for p in branch.parameters()), BackboneShape.of(branch.config)
    assert shape is not None
    assert shape.layers == 3
    need = trained_bytes(weights, SIZE) + 2 * (kept_bytes(shape, 3, SIZE, 16_384) + pass_bytes(shape, SIZE, 16_384))
    having(need + 1)
    assert training_tokens(branch, checkpointing=False) == 16_384
    assert 16_384 < training_tokens(branch, checkpointing=True) <= training_tokens(branch, checkpointing="offload")
    kept = [kept_bytes(shape, 3, SIZE, 1, form) for form in (False, True, "offload")]
    assert kept[1] - kept[2] == 3 * SIZE * shape.width
    having(need - 1000)
    assert training_tokens(branch, checkpointing=False) == PASS_TOKENS


@pytest.mark.parametrize(("kind", "known"), [("gpt_neox", True), ("modernbert", True), ("mixtral", False)])
def test_a_backbone_whose_memory_is_unknown_has_the_passes_of_a_cpu(
    kind: str, known: bool, having: Callable[[float | None], None]
) -> None:
    """Its shape is, or it runs by its own forward: its rows repeat the prompt, which its tokens do not count."""
    having(1e12)
    config: Any = AutoConfig.for_model(kind)
    decoder: Any = SimpleNamespace(config=config)
    assert (BackboneShape.of(config) is not None) == known
    assert scoring_tokens(decoder) == training_tokens(decoder, checkpointing=False) == PASS_TOKENS


def test_memory_that_pytorch_holds_unused_is_free(monkeypatch: pytest.MonkeyPatch) -> None:
    known = {"mem_get_info": (100, 1000), "memory_reserved": 60, "memory_allocated": 40}
    for name, value in known.items():
        monkeypatch.setattr(torch.cuda, name, lambda device, value=value: value)
    assert free_memory(torch.device("cuda:0")) == 120


def test_a_model_scores_in_passes_of_the_device_unless_told(
    tiny_model: Callable[..., Any], having: Callable[[float | None], None]
) -> None:
    """A token counts once for each of the two experts."""
    model = tiny_model()
    assert model.pass_tokens() == PASS_TOKENS // 2
    having(1e12)
    assert model.pass_tokens() == MAX_PASS_TOKENS // 2
    assert model.pass_tokens(100) == 50
    queries = [Query(prompt=f"Hi {i}", responses=("yes", "no")) for i in range(8)]
    encoded = [model.encoder.encode(query) for query in queries]
    assert len(list(model.passes(encoded))) == 1
    having(0)
    assert len(list(model.passes(encoded))) == 8
