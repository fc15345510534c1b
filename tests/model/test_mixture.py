"""The output of a task model: a calibrated reward with its standard deviation, and normalized capabilities."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from tiny import HEADS, make_exact_config, make_model, make_tiny_config

from dmoerm.chat.encoding import Encoded
from dmoerm.model.mixture import TaskModel
from dmoerm.model.packing import pack_ids

QUERIES = [Encoded([1, 4, 5, 9], [[6, 2], [7, 8, 11, 2], [12, 2]])]
FORMS: dict[str, Any] = {
    "lora": (make_tiny_config, {}),
    "heads": (make_tiny_config, HEADS),
    "a head on all labels": (make_exact_config, {}),
}


@pytest.fixture(params=FORMS)
def parts(request: pytest.FixtureRequest, tiny_backbone: str, tmp_path: Path) -> tuple[Any, TaskModel]:
    make, changes = FORMS[request.param]
    model = make_model(make(tiny_backbone, tmp_path, **changes))
    return model.hidden(pack_ids(QUERIES)), model.task_model("chitchat")


@torch.no_grad()
def test_the_output_by_hand(parts: tuple[Any, TaskModel]) -> None:
    hidden, model = parts
    general = torch.tensor([0.3, -0.2, 1.0])
    output = model(hidden, general)
    base = model.base.embed(hidden)
    z = model.experts.embed(hidden, base)
    scores = torch.stack([head(vector) for head, vector in zip(model.experts.heads, z, strict=True)], 1)
    embeddings = () if model.aggregator.mlp is None else z if model.experts.branch is not None else base[None]
    last = [] if model.all_labels is None else [model.all_labels(base)[:, None]]
    raw = model.aggregator(torch.cat([*embeddings, scores, model.base.head(base)[:, None], general[:, None], *last], 1))
    torch.testing.assert_close(output.reward, (raw - model.calibration.center) / model.calibration.scale)
    torch.testing.assert_close(output.capabilities, (scores - model.normalizer.mean) / model.normalizer.scale)
    torch.testing.assert_close(output.per_task, model.base.head(base))
    normalizer, posterior = model.base.head.normalizer, model.posterior
    x = (base - normalizer.mean) / normalizer.scale
    covariance = torch.diag(posterior.rest) - posterior.basis @ posterior.basis.T
    torch.testing.assert_close(output.uncertainty, torch.einsum("ni,ij,nj->n", x, covariance, x).sqrt())


@torch.no_grad()
def test_without_a_posterior_there_is_no_uncertainty(parts: tuple[Any, TaskModel]) -> None:
    hidden, model = parts
    model.posterior.rest.zero_()
    model.posterior.basis.zero_()
    assert model(hidden, torch.zeros(3)).uncertainty.isnan().all()
