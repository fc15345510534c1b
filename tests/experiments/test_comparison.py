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
from dmoerm.data.splits import load_splits
from dmoerm.errors import ConfigError, DataError
from dmoerm.evaluation.experiment_results import Comparison
from dmoerm.evaluation.results import Overlap
from dmoerm.experiments import runs
from dmoerm.experiments.comparison import compare_methods
from dmoerm.experiments.external import external_method
from dmoerm.experiments.method_suite import run_settings
from dmoerm.experiments.methods import ablation_methods, ablations, registered, registry
from dmoerm.model.training_prompts import TrainingPrompts
from dmoerm.report import report_html
from dmoerm.schema import Query, prompt_key
from dmoerm.training.steps import finished_steps

from .conftest import CONDITIONS, MEMBERS

SOME = ("no_outer", "shuffled")
CLEAN = {"clean": CONDITIONS["clean"]}
QUIET = Console(quiet=True)


class Shortest:
    """Likes short responses."""

    def score_all(self, queries: list[Query]) -> list[list[float]]:
        return [[-float(len(text)) for text in query.responses] for query in queries]


def quiet_compare(config, **options) -> Comparison:
    shortest = dataclasses.replace(
        external_method("shortest", Shortest(), "the shortest"), tasks=frozenset(["chitchat"])
    )
    options = {"seeds": (0, 1), "conditions": CONDITIONS, "members": MEMBERS, "external": [shortest]} | options
    return compare_methods(config, console=QUIET, **options)


def quick_run(config, *names: str) -> runs.RunResult:
    """Measure one clean run with these methods only."""
    methods = [registered()[name] for name in names]
    return runs.measure_run(run_settings(config, "clean", {}, 0), MEMBERS, methods, QUIET)


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
def comparison(frozen_config) -> Comparison:
    return quiet_compare(frozen_config, ablations=SOME)


def test_every_method_is_measured_on_the_same_pairs(comparison: Comparison) -> None:
    trained = {"general", "per_task", "all_labels", "all_labels_general", "warm", "gated", "longest", "dmoerm"}
    trained |= {"laplace", "per_task_routed", "all_labels_routed"}
    trained |= {f"{name}_{how}" for name in ("ensemble", "bagged") for how in ("mean", "wco", "uwo")}
    for condition in comparison.conditions.values():
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
    assert set(comparison.methods) == trained | set(SOME) | {"shortest"}
    assert set(comparison.costs) == trained


def test_a_method_in_one_new_file_is_everywhere(comparison: Comparison, capsys: pytest.CaptureFixture[str]) -> None:
    page = report_html(comparison)
    assert "prefers long responses" in page
    assert "#12ab34" in page
    print_comparison(Console(width=200), comparison)
    assert "prefers long responses" in capsys.readouterr().out
    assert comparison.costs["longest"].parameters == 1
    longest = {
        name: comparison.conditions["clean"].accuracy[name]["chitchat"].value for name in ("longest", "shortest")
    }
    assert sum(longest.values()) == pytest.approx(1)


def test_each_run_has_a_separate_storage(frozen_config, tmp_path) -> None:
    stored = changed(frozen_config, {"output": str(tmp_path / "stored"), "storage": f"file://{tmp_path}/kept"})
    storages = [run_settings(stored, "clean", {}, seed).storage for seed in (0, 1)]
    assert storages == [f"file://{tmp_path}/kept/clean/seed{seed}/dmoerm" for seed in (0, 1)]
    quick_run(stored, "dmoerm", "shuffled")
    for run in ("dmoerm", "shuffled"):
        assert (tmp_path / "kept" / "clean" / "seed0" / run / "config.yaml").exists()


@pytest.mark.slow
def test_every_ablation_runs(frozen_config, tmp_path) -> None:
    config = changed(frozen_config, {"output": str(tmp_path)})  # the run of other tests keeps its methods
    comparison = quiet_compare(config, seeds=(0,), conditions=CLEAN, ablations=list(ablation_methods()))
    accuracy = comparison.conditions["clean"].accuracy
    assert set(ablation_methods()) <= set(accuracy)
    assert all(comparison.methods[name] == method.description for name, method in ablation_methods().items())


def test_every_ablation_changes_settings_that_exist(frozen_config) -> None:
    for name, (_, settings) in ablations._SETTINGS.items():
        assert changed(frozen_config, settings) != frozen_config, name


def test_invalid_comparisons_are_refused(frozen_config) -> None:
    with pytest.raises(ConfigError, match="'no_outer' is a method of this comparison"):
        quiet_compare(frozen_config, external=[external_method("no_outer", Shortest(), "another")])
    with pytest.raises(DataError, match="no pair of responses that people ordered"):
        quiet_compare(changed(frozen_config, {"data.test_fraction": 1e-9, "data.files": [ungraded(frozen_config)]}))


def ungraded(config) -> str:
    """Groups whose responses tie as a whole."""
    file = Path(config.output).parent / "ties.jsonl"
    groups = [group.model_copy(update={"scores": (1.0,) * len(group.responses)}) for group in tiny_groups(4)]
    return write_groups(groups, file)


@pytest.mark.usefixtures("comparison")
def test_noise_and_ablations_change_the_rewards(frozen_config) -> None:
    clean, noisy = (
        runs.RunResult.model_validate_json((Path(frozen_config.output) / name / "seed0" / "run.json").read_text())
        for name in CONDITIONS
    )
    assert clean.overall["chitchat"].pairs == noisy.overall["chitchat"].pairs, "noise leaves the test part unchanged"
    for method in ("per_task", "bagged_mean", "gated", "dmoerm"):  # the best state of `general` is its start
        assert clean.length_bias[method] != noisy.length_bias[method], method
    for name in set(SOME) - {"shuffled"}:  # with so few labels, the general model scores all prompts in both
        assert clean.length_bias[name] != clean.length_bias["dmoerm"], name
    assert clean.length_bias["human"] == noisy.length_bias["human"]
    assert clean.length_bias["shortest"] == noisy.length_bias["shortest"]


def test_prompts_that_an_external_method_was_trained_on_are_left_out(comparison: Comparison, frozen_config) -> None:
    """They are counted by group and by distinct prompt, and left out for all methods."""
    settings = run_settings(frozen_config, "clean", CONDITIONS["clean"], 0)
    test = load_splits(settings).test
    known = [TrainingPrompts.of([test[0].prompt, "Never asked."]), TrainingPrompts.of([test[1].prompt])]
    known_keys = {prompt_key(group.prompt) for group in test[:2]}
    hit = [group for group in test if prompt_key(group.prompt) in known_keys]
    options = {"seeds": (0,), "conditions": CLEAN, "training_prompts": known}
    stored = Path(settings.output).parent / "run.json"
    before = stored.read_bytes()
    try:
        shortened = quiet_compare(frozen_config, **options)
        whole = quiet_compare(frozen_config, include_trained=True, **options)
    finally:
        stored.write_bytes(before)  # other tests read it
    assert shortened.overlap == Overlap(known=True, groups=len(hit), prompts=len(known_keys), included=False)
    assert whole.overlap == Overlap(known=True, groups=len(hit), prompts=len(known_keys), included=True)
    pairs = [c.conditions["clean"].accuracy["dmoerm"]["mean"].pairs for c in (shortened, whole)]
    assert pairs[1] - pairs[0] == sum(len(group.pairs()) for group in hit)
    assert comparison.overlap == Overlap(known=True, groups=0, prompts=0, included=False)


def test_costs_are_what_was_trained(comparison: Comparison) -> None:
    costs = comparison.costs
    assert costs["bagged_mean"].parameters == 2 * costs["general"].parameters
    assert costs["ensemble_mean"].parameters == costs["general"].parameters  # exact members are one model
    assert costs["all_labels_general"].parameters == costs["general"].parameters
    assert costs["per_task"].parameters == costs["all_labels"].parameters == 2 * costs["general"].parameters
    assert costs["dmoerm"].parameters > costs["per_task"].parameters
    assert all(cost.training_seconds > 0 for method, cost in costs.items() if method != "longest")
    assert all(cost.scoring_seconds > 0 for cost in costs.values())


def test_a_run_is_measured_once(comparison: Comparison, frozen_config, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(runs, "open_suite", lambda *_: pytest.fail("measured again"))
    again = quiet_compare(frozen_config, ablations=SOME)
    assert again == comparison
    with pytest.raises(pytest.fail.Exception):
        quiet_compare(frozen_config, ablations=["no_outer"])  # other methods


def test_results_are_read_back(comparison: Comparison) -> None:
    text = comparison.to_json()
    assert json.loads(text)["schema"] == 2
    assert Comparison.model_validate_json(text) == comparison


def test_unknown_names_are_refused(frozen_config) -> None:
    with pytest.raises(ConfigError, match="no_outer"):
        quiet_compare(frozen_config, ablations=["no_head"])
    with pytest.raises(ConfigError, match="seed"):
        quiet_compare(frozen_config, seeds=())
    with pytest.raises(ConfigError, match=r"data\.flip_scores"):
        quiet_compare(frozen_config, conditions={"wild": {"data.flip_scores": 0.9}})


@pytest.mark.slow
def test_trained_branches_are_compared_too(tiny_backbone, tmp_path) -> None:
    """Members with trained branches start from the pretrained branch."""
    config = changed(make_tiny_config(tiny_backbone, tmp_path), {"phase0.epochs": 1})
    methods = ("general", "all_labels", "all_labels_general", "ensemble_mean", "bagged_mean", "umm_rm", "dmoerm")
    result = quick_run(config, *methods)
    costs = result.costs
    assert costs["ensemble_mean"].parameters == 2 * costs["general"].parameters
    assert costs["all_labels_general"].parameters == costs["general"].parameters
    assert costs["umm_rm"].parameters > 2 * costs["general"].parameters
    assert len({result.length_bias[name].pearson for name in methods}) == len(methods)
    steps = finished_steps(Path(run_settings(config, "clean", {}, 0).output))
    seconds = [row["seconds"] for name, row in steps.items() if name.startswith("baselines/all_labels/")]
    assert len(seconds) == 2
    assert costs["all_labels"].training_seconds == pytest.approx(sum(seconds))  # not those of `all_labels_general`


def test_a_result_of_a_version_with_fewer_settings_is_kept(frozen_config) -> None:
    result = quick_run(frozen_config, "per_task", "dmoerm")
    file = Path(run_settings(frozen_config, "clean", {}, 0).output).parent / "run.json"
    stored = json.loads(file.read_text())
    assert stored["inputs"]["config"]["data"].pop("test_files") == []
    stored["costs"] = {}
    file.write_text(json.dumps(stored))
    again = runs.measure_run(
        run_settings(frozen_config, "clean", {}, 0),
        MEMBERS,
        [registered()[name] for name in ("per_task", "dmoerm")],
        QUIET,
        time_methods=False,
    )
    assert again.costs == {}, "read, not measured"
    assert again.overall == result.overall
