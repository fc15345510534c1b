"""Scoring on a simulated second device: no operation mixes devices, and a pass waits for the device twice."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from running import in_short
from simulated_device import reference_kernel, to_device, using_device
from tiny import TINY_TASKS, assert_same, make_exact_config, make_model, make_tiny_config

from dmoerm.model import flex_attention
from dmoerm.model.attention import FORM_VARIABLE
from dmoerm.schema import Query
from dmoerm.training import embedding
from dmoerm.training.cache import ActivationCache
from dmoerm.training.embedding import map_rows

CONFIGS = {"lora": make_tiny_config, "heads": make_exact_config}
PROMPTS = ["Hi there", "What is the capital of France?", "Tell me about your day"]
RESPONSES = [["Hello", "What?"], ["Paris", "It is Rome, I think"], ["", "Long and good"]]


@pytest.fixture(autouse=True)
def flex(monkeypatch: pytest.MonkeyPatch) -> None:
    """Attend as on a GPU."""
    monkeypatch.setenv(FORM_VARIABLE, "flex")
    monkeypatch.setattr(flex_attention, "_kernel", lambda _: reference_kernel)


def test_the_device_refuses_mixed_operations_and_counts() -> None:
    with using_device() as traffic:
        x = torch.arange(6.0, device="sim:0")
        assert torch.ones(2).to("sim:0", non_blocking=True).device == x.device
        assert (len(traffic.uploads), traffic.waits) == (1, [])
        with pytest.raises(RuntimeError, match="expected all tensors on sim:0"):
            x + torch.ones(6)
        for wait in (lambda: x[0].item(), lambda: x.tolist(), lambda: x.nonzero(), lambda: x[x > 2], lambda: x[[1, 2]]):
            before = len(traffic.waits)
            wait()
            assert len(traffic.waits) == before + 1
        assert x.sum().cpu() == 15


@pytest.mark.parametrize("dtype", in_short(["float32", "bfloat16"], "bfloat16"))
@pytest.mark.parametrize("kind", CONFIGS)
def test_a_pass_waits_for_the_route_and_for_the_scores(
    tiny_backbone: str, tmp_path: Path, kind: str, dtype: str
) -> None:
    model: Any = make_model(CONFIGS[kind](tiny_backbone, tmp_path, backbone={"dtype": dtype}))
    tasks = [*TINY_TASKS, next(iter(TINY_TASKS))]
    expected = model.score(PROMPTS, RESPONSES, task=tasks)
    with using_device() as traffic:
        to_device(model)
        assert model.device.type == "sim"
        traffic.uploads.clear()
        actual = model.score(PROMPTS, RESPONSES, task=tasks)
        assert len(traffic.waits) == 2, traffic.waits
        assert len(traffic.uploads) <= 2 + 5 * len(TINY_TASKS), traffic.uploads
    for scores, others in zip(actual, expected, strict=True):
        assert_same(scores, others, 1e-4 if dtype == "float32" else 0.1)


def test_filling_the_cache_copies_each_kind_of_activation_once(tiny_backbone: str, tmp_path: Path) -> None:
    """Hidden states, embeddings and prompt embeddings of a pass, however many texts it has."""
    model = make_model(make_tiny_config(tiny_backbone, tmp_path))
    texts = [
        model.encoder.encode(Query(prompt=prompt, responses=tuple(some)))
        for prompt, some in zip(PROMPTS, RESPONSES, strict=True)
    ]
    expected = ActivationCache(tmp_path / "one", model, hidden=True, embedding=True)
    expected.fill(texts)
    with using_device() as traffic:
        to_device(model)
        found = ActivationCache(tmp_path / "two", model, hidden=True, embedding=True)
        traffic.waits.clear()
        found.fill(texts)
        assert len(traffic.waits) == 3, traffic.waits
    for text in texts:
        torch.testing.assert_close(found.embeddings(text), expected.embeddings(text), atol=1e-4, rtol=1e-4)
        torch.testing.assert_close(found.prompt(text), expected.prompt(text), atol=1e-4, rtol=1e-4)
        torch.testing.assert_close(found.states(text), expected.states(text), atol=1e-4, rtol=1e-4)


def test_rows_of_many_texts_are_mapped_with_a_copy_each_way_for_each_block(monkeypatch: pytest.MonkeyPatch) -> None:
    """Ten texts of two to four rows of 16 bytes are one block, or in blocks of at most 130 bytes five of two texts."""
    rows = {str(i): torch.randn(2 + i % 3, 4) for i in range(10)}  # at least 32, at most 64 bytes
    layer = torch.nn.Linear(4, 1).requires_grad_(False)
    expected = {key: layer(row) for key, row in rows.items()}
    with using_device() as traffic:
        run: Any = SimpleNamespace(model=SimpleNamespace(device=torch.device("sim:0")))
        to_device(layer)
        traffic.uploads.clear()
        for size, blocks in ((64e6, 1), (130, 5), (1, 10)):
            monkeypatch.setattr(embedding, "_BYTES_PER_COPY", size)
            traffic.uploads.clear()
            traffic.waits.clear()
            torch.testing.assert_close(map_rows(layer, rows, run), expected)
            assert (len(traffic.uploads), len(traffic.waits)) == (blocks, blocks)
