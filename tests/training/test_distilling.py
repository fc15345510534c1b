"""A linear layer that is fitted to a model's rewards, and experts that are merged into their branch."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
import torch
from tiny import make_exact_config, make_model, make_tiny_config, tiny_groups, write_groups
from typer.testing import CliRunner

from dmoerm.cli import app
from dmoerm.errors import DataError
from dmoerm.model.heads import embed
from dmoerm.model.packed_attention import run
from dmoerm.model.plain import fold_reward, rows_by_query
from dmoerm.training.distilling import distill, merged_branch

TASK = "chitchat"
LAST = {"encoding": {"pooling": "last"}}
GROUPS = tiny_groups(12)


def test_a_reward_that_is_linear_is_recovered(tiny_backbone: str, tmp_path: Path) -> None:
    model = make_model(make_exact_config(tiny_backbone, tmp_path, **LAST))
    fitted = distill(model, TASK, GROUPS)
    assert fitted.error < 0.05
    assert fitted.agreement > 0.95
    states = torch.cat(rows_by_query(model, GROUPS, lambda hidden: run(model.general.branch, hidden, "last")[0]))
    one, two = (states.double() @ reward.weight + reward.bias for reward in (fitted.reward, fold_reward(model, TASK)))
    assert (one - two).abs().max() < 0.05 * two.std()
    with pytest.raises(DataError, match="10 prompts"):
        distill(model, TASK, GROUPS[:3])


@pytest.mark.slow
def test_an_expert_with_the_whole_share_is_the_merged_branch(tiny_backbone: str, tmp_path: Path) -> None:
    model = make_model(make_tiny_config(tiny_backbone, tmp_path, **LAST | {"phase3": {"inputs": "scores"}}))
    task_model = model.task_model(TASK)
    task_model.aggregator.linear.weight.copy_(torch.tensor([0.0, 2, 0, 0]))
    branch, shares = merged_branch(model, TASK)
    assert shares.tolist() == [0, 1]
    experts, merged, plain = (
        torch.cat(rows_by_query(model, GROUPS[:2], compute))
        for compute in (
            lambda hidden: task_model.experts.embed(hidden, None)[1],
            lambda hidden: embed(branch, hidden, "last")[0],
            lambda hidden: task_model.base.embed(hidden),
        )
    )
    assert torch.allclose(experts, merged, atol=1e-4)
    assert not torch.allclose(plain, merged, atol=1e-2)


@pytest.mark.slow
def test_the_command_fits_what_it_cannot_express(tiny_backbone: str, tmp_path: Path) -> None:
    make_model(make_exact_config(tiny_backbone, tmp_path)).save_pretrained(tmp_path / "model")
    file = write_groups(GROUPS, tmp_path / "texts.jsonl")
    arguments = ["export", tmp_path / "model", "--plain", "--fit", file, "--output", tmp_path / "plain"]
    said = CliRunner().invoke(app, [str(a) for a in arguments])
    assert said.exit_code == 0, said.output
    (share,) = re.findall(r"([\d.]+) % of pairs ordered as the model", said.output)
    assert float(share) > 55
    assert "by the classifier" in said.output
    assert (tmp_path / "plain" / "model.safetensors").is_file()
