"""An update learns from new labels without the old ones; what it does not touch stays as it is, to the last bit."""

from __future__ import annotations

import re
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from safetensors.torch import load_file
from tiny import make_exact_config, tiny_groups, train_quietly, write_groups
from typer.testing import CliRunner

from dmoerm.cli import app
from dmoerm.model import DMoERM
from dmoerm.model.head_posteriors import FILE
from dmoerm.model.prompt_statistics import TaskPrompts
from dmoerm.schema import Group
from dmoerm.training.linear_heads import LinearPairs, fit_linear, solve
from dmoerm.training.replay import fit_update, fit_update_all_labels

TASK, OTHER = "chitchat", "objective_qa"
GROUPS = tiny_groups(20)
NEW = [group for group in GROUPS if group.task == TASK][12:]
OLD = [group for group in GROUPS if group not in NEW]


def dmoerm(*arguments: object, fails: bool = False) -> str:
    result = CliRunner(env={"COLUMNS": "200", "NO_COLOR": "1"}).invoke(app, [str(a) for a in arguments])
    assert (result.exit_code != 0) == fails, result.output
    return result.output


@pytest.fixture(scope="module")
def trained(tiny_backbone: str, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a finished run of exact heads, and `new.jsonl` with further groups of one of its tasks."""
    folder = tmp_path_factory.mktemp("updating")
    write_groups(NEW, folder / "new.jsonl")
    files = [write_groups(OLD, folder / "old.jsonl")]
    train_quietly(make_exact_config(tiny_backbone, folder, data={"files": files}))
    return folder


@pytest.fixture(scope="module")
def updated(trained: Path) -> tuple[Path, str]:
    """The updated model, and what the command printed."""
    target = trained / "updated"
    options = "--data", trained / "new.jsonl", "--force", "--output", target
    return target, dmoerm("update", trained / "run", *options)


def task_scores(folder: Path, task: str) -> list[Any]:
    rm = DMoERM.from_pretrained(folder)
    groups = [group for group in OLD if group.task == task][:4]
    rows = rm.score([g.prompt for g in groups], [g.responses for g in groups], task=[task] * len(groups))
    return [(s.reward, s.capabilities, s.uncertainty, s.temperature) for row in rows for s in row]


def test_other_tasks_keep_every_bit(trained: Path, updated: tuple[Path, str]) -> None:
    base = trained / "run" / "model"
    assert task_scores(base, OTHER) == task_scores(updated[0], OTHER)
    assert task_scores(base, TASK) != task_scores(updated[0], TASK)
    before, after = (load_file(folder / "model.safetensors") for folder in (base, updated[0]))
    changed = {name for name in before if not torch.equal(before[name], after[name])}
    parts = (*(f"experts.heads.{i}.score" for i in (0, 1)), "base.head.score", "all_labels.score", "posterior")
    assert {next((part for part in parts if part in name), name) for name in changed} == set(parts)


def test_new_labels_are_learned(trained: Path, updated: tuple[Path, str]) -> None:
    def right(folder: Path) -> float:
        rm = DMoERM.from_pretrained(folder)
        pairs = [(rm.score(g.prompt, g.responses, task=TASK), pair) for g in NEW for pair in g.pairs()]
        return sum(row[pair.better].reward > row[pair.worse].reward for row, pair in pairs) / len(pairs)

    assert right(updated[0]) > right(trained / "run" / "model")


def test_the_command_says_what_changed(updated: tuple[Path, str]) -> None:
    target, said = updated
    assert f"{TASK}: {len(NEW)} groups, updated empathy, proactivity, per_task, all_labels" in said
    assert said.count(" % → ") == 2
    rm = DMoERM.from_pretrained(target)
    (change,) = rm.config.history
    assert (change["change"], change["task"], len(change["data"])) == ("update", TASK, 64)
    assert all(group.prompt in rm.training_prompts for group in NEW)
    before = DMoERM.from_pretrained(target.parent / "run" / "model")
    sizes = [float(model.prompt_statistics.tasks[TASK].size) for model in (before, rm)]
    assert sizes[1] - sizes[0] == len({g.prompt for g in NEW})


def test_a_task_whose_new_labels_are_ties_does_not_stop_the_others(trained: Path, tmp_path: Path) -> None:
    (tied,) = [group for group in OLD if group.task == OTHER][:1]
    tied = relabeled(tied, "New:", [1.0] * len(tied.responses))
    data = write_groups([*NEW, tied], tmp_path / "new.jsonl")
    said = dmoerm("update", trained / "run", "--data", data, "--force", "--output", tmp_path / "updated")
    assert f"{TASK}: {len(NEW)} groups" in said
    assert f"\n{OTHER}: " not in said


def test_the_router_finds_the_task_of_rows_without_one(trained: Path, tmp_path: Path) -> None:
    data = write_groups([group.model_copy(update={"task": None}) for group in NEW], tmp_path / "new.jsonl")
    said = dmoerm("update", trained / "run", "--data", data, "--force", "--output", tmp_path / "updated")
    counts = re.findall(r"^(\w+): (\d+) groups, updated", said, re.MULTILINE)
    assert sum(int(count) for _, count in counts) == len(NEW)


@pytest.mark.parametrize(
    "setting", ["skip_bad=true", "inconsistent_weight=0.5", "soft_labels=false", "testbed_responses=6"]
)
def test_settings_of_the_data_are_those_of_the_new_data(trained: Path, tmp_path: Path, setting: str) -> None:
    """Otherwise a run with such a setting could not be changed: without its data the setting has no effect."""
    (tmp_path / "new.jsonl").write_text((trained / "new.jsonl").read_text())
    shutil.copytree(trained / "run" / "model", tmp_path / "model")
    file = tmp_path / "model" / "run.yaml"
    settings = yaml.safe_load(file.read_text())
    name, _, value = setting.partition("=")
    needed = {"testbed_responses": {"testbed_prompts": 4}, "skip_bad": {}}
    labels = {"capability_labels": "labels.parquet"}
    settings["data"] |= {name: yaml.safe_load(value)} | needed.get(name, labels)
    file.write_text(yaml.safe_dump(settings))
    options = "--data", tmp_path / "new.jsonl", "--force", "--output", tmp_path / "updated"
    assert f"{TASK}: {len(NEW)} groups" in dmoerm("update", tmp_path / "model", *options)


@pytest.mark.parametrize("setting", ["router.threshold=0.3", "backbone.dtype=bfloat16", "backbone.num_layers=2"])
def test_a_setting_that_an_update_cannot_change_is_refused(trained: Path, tmp_path: Path, setting: str) -> None:
    """Otherwise the history would name a value that the model does not have."""
    options = "--data", trained / "new.jsonl", "--set", setting, "--output", tmp_path / "updated"
    said = dmoerm("update", trained / "run", *options, fails=True)
    assert f"{setting.partition('=')[0]}: the model was trained with another value" in " ".join(said.split())


def test_a_worse_model_is_refused(trained: Path, tmp_path: Path) -> None:
    rm = DMoERM.from_pretrained(trained / "run" / "model")
    rows = rm.score([g.prompt for g in NEW], [g.responses for g in NEW], task=[TASK] * len(NEW))
    right = [relabeled(group, "", [score.reward for score in row]) for group, row in zip(NEW, rows, strict=True)]
    wrong = [relabeled(group, start, [-score for score in group.scores or ()]) for group in right for start in "ABCDE"]
    data, test = write_groups(wrong, tmp_path / "wrong.jsonl"), write_groups(right, tmp_path / "right.jsonl")
    options = "--data", data, "--test", test, "--output", tmp_path / "worse"
    assert "less accurate (100.0 %" in dmoerm("update", trained / "run", *options, fails=True)
    assert not (tmp_path / "worse").exists()


def relabeled(group: Group, start: str, scores: list[float]) -> Group:
    """Return the group with overall scores alone, and with another prompt if it starts otherwise."""
    prompt = f"{start} {group.prompt}".strip()
    return group.model_copy(update={"prompt": prompt, "scores": tuple(scores), "capabilities": {}})


def test_a_model_without_posteriors_is_refused(trained: Path, tmp_path: Path) -> None:
    rm = DMoERM.from_pretrained(trained / "run" / "model")
    rm.head_posteriors = {}
    rm.save_pretrained(tmp_path / "old")
    assert not (tmp_path / "old" / FILE).exists()
    options = "--data", trained / "new.jsonl", "--in-place"
    assert "no posteriors of its heads" in dmoerm("update", tmp_path / "old", *options, fails=True)


# --- the fit -------------------------------------------------------------------------------------------------------


def made_pairs(count: int, seed: int, width: int = 8) -> LinearPairs:
    generator = torch.Generator().manual_seed(seed)
    truth = torch.linspace(1, -1, width)
    rows = torch.randn(count, width, generator=generator)
    signs = torch.where(rows @ truth + torch.randn(count, generator=generator) > 0, 1.0, -1.0)
    ones = torch.ones(count)
    return LinearPairs(rows * signs[:, None], ones, torch.zeros(count), ones, torch.arange(count) % 5, ones.bool())


def test_an_update_is_close_to_a_fit_on_all_labels() -> None:
    old, new = made_pairs(300, 0), made_pairs(60, 1)
    fit = fit_linear(old)
    assert fit.posterior is not None
    updated = fit_update(new, fit.weight, fit.posterior)
    both = [torch.cat([getattr(old, name), getattr(new, name)]) for name in ("differences", "target", "margin")]
    everything = solve(*both, torch.ones(360, 1), torch.tensor([fit.l2 * 300 / 360]))[:, 0]
    distance = (updated.weight - everything).norm()
    assert distance < 0.1 * (fit.weight - everything).norm()


def test_the_posterior_of_an_update_is_that_of_all_labels() -> None:
    old, new = made_pairs(300, 0), made_pairs(60, 1)
    fit = fit_linear(old)
    assert fit.posterior is not None
    updated = fit_update(new, fit.weight, fit.posterior)
    x = made_pairs(50, 2).differences

    def deviations(posterior: Any) -> torch.Tensor:
        return (x.square().sum(1) * posterior.rest - (x @ posterior.basis).square().sum(1)).sqrt()

    ratio = deviations(updated.posterior) / deviations(fit.posterior)
    assert float(ratio.mean()) == pytest.approx((300 / 360) ** 0.5, abs=0.03)


def test_capability_labels_count_if_they_predict_the_overall_ones() -> None:
    fit = fit_linear(made_pairs(40, 0))
    overall, same = made_pairs(20, 1), made_pairs(200, 2)
    same.overall[:] = False
    noise = made_pairs(200, 3)
    noise.overall[:] = False
    noise.differences[:] = torch.randn(200, 8, generator=torch.Generator().manual_seed(4))
    shares = [
        fit_update_all_labels(overall, [part], fit.weight, fit.posterior).capability_weight  # pyright: ignore
        for part in (same, noise)
    ]
    assert shares[0] > shares[1]


def test_joined_statistics_are_those_of_all_prompts() -> None:
    vectors = torch.randn(30, 6, generator=torch.Generator().manual_seed(0)) * torch.arange(1.0, 7)
    joined = TaskPrompts.of(vectors[:12]).joined(TaskPrompts.of(vectors[12:]))
    assert float(joined.size) == 30
    assert torch.allclose(joined.mean, vectors.mean(0), atol=1e-5)
    covariance = joined.basis.T @ joined.basis + torch.diag(joined.rest)
    assert torch.allclose(covariance, vectors.T.cov(), rtol=0.1, atol=0.5)
