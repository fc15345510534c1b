"""The output of a task model: a calibrated reward with its standard deviation, and normalized capabilities."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from tiny import make_exact_config, make_model

from dmoerm.chat.encoding import Encoded
from dmoerm.model.mixture import TaskModel
from dmoerm.model.packing import pack_ids

QUERIES = [Encoded([1, 4, 5, 9], [[6, 2], [7, 8, 11, 2], [12, 2]])]


@pytest.fixture(params=[2, 0], ids=["lora", "heads"])
def parts(request: pytest.FixtureRequest, tiny_model: Callable[..., Any]) -> tuple[Any, TaskModel]:
    model = tiny_model(phase2={"lora": {"rank": request.param}})
    return model.hidden(pack_ids(QUERIES)), model.task_model("chitchat")


@torch.no_grad()
def test_the_output_by_hand(parts: tuple[Any, TaskModel]) -> None:
    hidden, task_model = parts
    general = torch.tensor([0.3, -0.2, 1.0])
    output = task_model(hidden, general)
    base = task_model.base.embed(hidden)
    z = task_model.experts.embed(hidden, base)
    scores = torch.stack([head(vector) for head, vector in zip(task_model.experts.heads, z, strict=True)], 1)
    embeddings = torch.cat(list(z), 1) if task_model.experts.branch is not None else base
    vectors = torch.cat([embeddings, scores, task_model.base.head(base)[:, None], general[:, None]], 1)
    capabilities = (scores - task_model.normalizer.mean) / task_model.normalizer.scale
    raw = task_model.aggregator(vectors)
    calibration = task_model.calibration
    torch.testing.assert_close(output.reward, (raw - calibration.center) / calibration.scale)
    torch.testing.assert_close(output.capabilities, capabilities)
    normalizer, posterior = task_model.base.head.normalizer, task_model.posterior
    x = (base - normalizer.mean) / normalizer.scale
    covariance = torch.diag(posterior.rest) - posterior.basis @ posterior.basis.T
    torch.testing.assert_close(output.uncertainty, torch.einsum("ni,ij,nj->n", x, covariance, x).sqrt())
    torch.testing.assert_close(output.per_task, task_model.base.head(base))


@torch.no_grad()
def test_the_head_on_all_labels_gives_the_last_score(tiny_backbone: str, tmp_path: Path) -> None:
    model = make_model(make_exact_config(tiny_backbone, tmp_path))
    hidden, task_model = model.hidden(pack_ids(QUERIES)), model.task_model("chitchat")
    general = torch.tensor([0.3, -0.2, 1.0])
    base = task_model.base.embed(hidden)
    scores = task_model.experts.score(task_model.experts.embed(hidden, base))
    last = torch.stack([task_model.base.head(base), general, task_model.all_labels(base)], 1)
    raw = task_model.aggregator(torch.cat([scores, last], 1))
    torch.testing.assert_close(task_model(hidden, general).reward, task_model.calibration(raw))


@torch.no_grad()
def test_without_a_posterior_there_is_no_uncertainty(parts: tuple[Any, TaskModel]) -> None:
    hidden, task_model = parts
    task_model.posterior.rest.zero_()
    task_model.posterior.basis.zero_()
    assert task_model(hidden, torch.zeros(3)).uncertainty.isnan().all()
