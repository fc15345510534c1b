"""`compare`: every method trained and scored on one split, runs that are not measured twice, external methods."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Iterator
from importlib.metadata import EntryPoint
from pathlib import Path

import numpy as np
import pytest
from rich.console import Console
from tiny import make_tiny_config, tiny_groups, write_groups

from dmoerm.cli.tables import print_comparison
from dmoerm.config import changed
from dmoerm.errors import ConfigError, DataError
from dmoerm.evaluation.experiment_results import Comparison
from dmoerm.experiments import runs
from dmoerm.experiments.comparison import compare_methods
from dmoerm.experiments.external import external_method
from dmoerm.experiments.method_suite import run_settings
from dmoerm.experiments.methods import ablation_methods, registry
from dmoerm.report import report_html
from dmoerm.schema import Query

SOME = ("no_outer", "shuffled")
CONDITIONS = {"clean": (0.0, 0.0), "noisy": (0.25, 0.15)}


class Shortest:
    """Likes short responses."""

    def score_all(self, queries: list[Query]) -> list[list[float]]:
        return [[-float(len(text)) for text in query.responses] for query in queries]


def quiet_compare(config, **asked) -> Comparison:
    shortest = dataclasses.replace(
        external_method("shortest", Shortest(), "the shortest"), tasks=frozenset(["chitchat"])
    )
    asked = {"seeds": (0, 1), "conditions": CONDITIONS, "members": 2, "external": [shortest]} | asked
    return compare_methods(config, console=Console(quiet=True), **asked)


NEW_METHOD = """
import torch
from dmoerm.experiments.methods import Method, TrainedMethod, register

def train(context):
    def score(batch):
        lengths = [float(len(text)) for group in batch.groups for text in group.responses]
        return torch.tensor([lengths])
    return TrainedMethod(score=score, parameters=1)

register(Method("longest", "prefers long responses", "baseline", "#12ab34", train))
"""


@pytest.fixture(scope="module", autouse=True)
def new_method(tmp_path_factory) -> Iterator[None]:
    """A method in one new file, which a package names as an entry point."""
    folder = tmp_path_factory.mktemp("package")
    (folder / "longest_method.py").write_text(NEW_METHOD)
    entry = EntryPoint("longest", "longest_method", registry.ENTRY_POINTS)
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(str(folder))
        patch.setattr(registry, "entry_points", lambda group: [entry] if group == entry.group else [])
        registry._load.cache_clear()
        yield
    registry._methods.pop("longest", None)


@pytest.fixture(scope="module")
def config(tiny_backbone, tmp_path_factory):
    frozen = {
        "base": "frozen",
        "phase2": {"lora": {"rank": 0}},
        "phase1": {"phase1_fraction": 0},
        "phase3": {"inputs": "scores"},
    }
    return make_tiny_config(tiny_backbone, tmp_path_factory.mktemp("compare"), **frozen)


@pytest.fixture(scope="module")
def found(config) -> Comparison:
    return quiet_compare(config, ablations=SOME)


def test_every_method_is_measured_on_the_same_pairs(found: Comparison) -> None:
    trained = {"general", "per_task", "all_labels", "warm", "gated", "longest", "dmoerm"}
    trained |= {f"{name}_{how}" for name in ("ensemble", "bagged") for how in ("mean", "wco", "uwo")}
    for condition in found.conditions.values():
        assert set(condition.accuracy) == trained | set(SOME) | {"shortest"}
        tasks = condition.accuracy["dmoerm"]
        for method, row in condition.accuracy.items():
            assert all((row[t].pairs, row[t].prompts) == (tasks[t].pairs, tasks[t].prompts) for t in row), method
        assert set(condition.accuracy["shortest"]) == {"chitchat"}
        assert set(condition.calibration) == trained
        assert set(condition.by_seed) == {"0", "1"}
        seeds = [row["general"] for row in condition.by_seed.values()]
        assert np.mean(seeds) == pytest.approx(condition.accuracy["general"]["mean"].value)
        assert sum(b.pairs for b in condition.calibration["general"].bins) == tasks["mean"].pairs
    assert set(found.methods) == trained | set(SOME) | {"shortest"}
    assert set(found.costs) == trained


def test_a_method_in_one_new_file_is_everywhere(found: Comparison, capsys: pytest.CaptureFixture[str]) -> None:
    page = report_html(found)
    assert "prefers long responses" in page
    assert "#12ab34" in page
    print_comparison(Console(width=200), found)
    assert "prefers long responses" in capsys.readouterr().out
    assert found.costs["longest"].parameters == 1
    longest = {name: found.conditions["clean"].accuracy[name]["chitchat"].value for name in ("longest", "shortest")}
    assert sum(longest.values()) == pytest.approx(1)


def test_each_run_has_a_storage_of_its_own(config, tmp_path) -> None:
    stored = changed(config, {"output": str(tmp_path / "stored"), "storage": f"file://{tmp_path}/kept"})
    places = [run_settings(stored, "clean", (0, 0), seed).storage for seed in (0, 1)]
    assert places == [f"file://{tmp_path}/kept/clean/seed{seed}/dmoerm" for seed in (0, 1)]
    quiet_compare(stored, seeds=(0,), conditions={"clean": CONDITIONS["clean"]}, ablations=["shuffled"])
    for run in ("dmoerm", "shuffled"):
        assert (tmp_path / "kept" / "clean" / "seed0" / run / "config.yaml").exists()


def test_every_ablation_runs(config) -> None:
    config = changed(config, {"output": f"{config.output}-all"})
    found = quiet_compare(
        config, seeds=(0,), conditions={"clean": CONDITIONS["clean"]}, ablations=list(ablation_methods())
    )
    accuracy = found.conditions["clean"].accuracy
    assert set(ablation_methods()) <= set(accuracy)
    assert all(found.methods[name] == method.description for name, method in ablation_methods().items())


def test_what_would_be_measured_wrongly_is_refused(config) -> None:
    with pytest.raises(ConfigError, match="'no_outer' is a method of this comparison"):
        quiet_compare(config, external=[external_method("no_outer", Shortest(), "another")])
    with pytest.raises(DataError, match="no pair of responses that people ordered"):
        quiet_compare(changed(config, {"data.test_fraction": 1e-9, "data.files": [ungraded(config)]}))


def ungraded(config) -> str:
    """Groups whose responses tie as a whole."""
    file = Path(config.output).parent / "ties.jsonl"
    groups = [group.model_copy(update={"scores": (1.0,) * len(group.responses)}) for group in tiny_groups(4)]
    return write_groups(groups, file)


def test_noise_and_ablations_change_what_is_learnt(found: Comparison, config) -> None:
    clean, noisy = (
        runs.RunResult.model_validate_json((Path(config.output) / name / "seed0" / "run.json").read_text())
        for name in CONDITIONS
    )
    assert clean.overall["chitchat"].pairs == noisy.overall["chitchat"].pairs, "the test part stays as it is"
    right = {name: json.dumps(clean.overall["chitchat"].right[name]) for name in clean.overall["chitchat"].right}
    assert len({right[name] for name in ("dmoerm", "shuffled", "no_outer", "general")}) > 1


def test_costs_are_what_was_trained(found: Comparison) -> None:
    costs = found.costs
    assert costs["ensemble_mean"].parameters == 2 * costs["general"].parameters
    assert costs["per_task"].parameters == costs["all_labels"].parameters == 2 * costs["general"].parameters
    assert costs["dmoerm"].parameters > costs["per_task"].parameters
    assert all(cost.training_seconds > 0 for method, cost in costs.items() if method != "longest")
    assert all(cost.scoring_seconds > 0 for cost in costs.values())


def test_a_cell_is_measured_once(found: Comparison, config, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(runs, "open_suite", lambda *_: pytest.fail("measured again"))
    again = quiet_compare(config, ablations=SOME)
    assert again == found
    with pytest.raises(pytest.fail.Exception):
        quiet_compare(config, ablations=["no_outer"])  # another question


def test_results_are_read_back(found: Comparison) -> None:
    text = found.to_json()
    assert json.loads(text)["schema"] == 2
    assert Comparison.model_validate_json(text) == found


def test_unknown_names(config) -> None:
    with pytest.raises(ConfigError, match="no_outer"):
        quiet_compare(config, ablations=["no_head"])
    with pytest.raises(ConfigError, match="seed"):
        quiet_compare(config, seeds=())
    with pytest.raises(ConfigError, match=r"data\.flip_scores"):
        quiet_compare(config, conditions={"wild": (0.9, 0.0)})


def test_trained_branches_are_compared_too(tiny_backbone, tmp_path) -> None:
    """Members with branches of their own start from the pretrained one."""
    config = changed(make_tiny_config(tiny_backbone, tmp_path), {"phase0.epochs": 1})
    found = quiet_compare(config, seeds=(0,), conditions={"clean": (0.0, 0.0)}, members=2)
    assert found.costs["ensemble_mean"].parameters == 2 * found.costs["general"].parameters
    clean = found.conditions["clean"]
    assert len({json.dumps(clean.accuracy[m]["mean"].value) for m in ("general", "bagged_mean", "dmoerm")}) > 1
