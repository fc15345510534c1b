"""`dmoerm compare`: every method trained and scored on one split, methods from elsewhere, runs that resume."""

from __future__ import annotations

import json
from collections.abc import Iterator
from importlib.metadata import EntryPoint
from pathlib import Path

import numpy as np
import pytest
from rich.console import Console
from tiny import make_exact_config, make_tiny_config, tiny_groups, write_groups
from typer.testing import CliRunner

from dmoerm.cli import app
from dmoerm.config import Config, changed, dump_config
from dmoerm.errors import ConfigError, DataError
from dmoerm.evaluation import methods
from dmoerm.evaluation.comparison import compare_methods, measure_seed, seed_config
from dmoerm.evaluation.methods import Method, TrainedMethod, choose_methods, register, registered
from dmoerm.evaluation.results import METHODS, Comparison
from dmoerm.report import report_html
from dmoerm.training.steps import finished_steps

QUIET = Console(quiet=True)
# The file that CONTRIBUTING.md shows: a method of another package.
NEW_METHOD = """
import torch
from dmoerm.evaluation.methods import Method, TrainedMethod, register

def train(context):
    def score(batch):
        lengths = [float(len(text)) for group in batch.groups for text in group.responses]
        return torch.tensor([lengths])
    return TrainedMethod(score)

def train_standalone(context):
    return TrainedMethod(score_all=lambda queries: [[-float(len(text)) for text in q.responses] for q in queries])

register(
    Method("longest", "prefers long responses", train),
    Method("shortest", "prefers short responses", train_standalone),
)
"""


@pytest.fixture(scope="module", autouse=True)
def new_methods(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """Two methods in one file, which a package names as an entry point; nothing else is registered."""
    folder = tmp_path_factory.mktemp("package")
    (folder / "length_methods.py").write_text(NEW_METHOD)
    entry = EntryPoint("length", "length_methods", methods.ENTRY_POINTS)
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(str(folder))
        patch.setattr(methods, "_methods", {name: methods._methods[name] for name in METHODS})
        patch.setattr(methods, "entry_points", lambda group: [entry] if group == entry.group else [])
        yield


@pytest.fixture(scope="module")
def config(tiny_backbone: str, tmp_path_factory: pytest.TempPathFactory) -> Config:
    return make_exact_config(tiny_backbone, tmp_path_factory.mktemp("comparison"))


@pytest.fixture(scope="module")
def comparison(config: Config) -> Comparison:
    return compare_methods(config, (0, 1), console=QUIET)


def test_every_method_is_measured_on_the_same_pairs(comparison: Comparison) -> None:
    assert list(comparison.methods) == [*(m for m in METHODS if m != "dmoerm"), "longest", "shortest", "dmoerm"]
    assert set(comparison.accuracy) == set(comparison.methods)
    tasks = comparison.accuracy["dmoerm"]
    sizes = [{t: (e.pairs, e.prompts) for t, e in row.items()} for row in comparison.accuracy.values()]
    assert sizes == [sizes[0]] * len(sizes)
    assert set(comparison.by_seed) == {"0", "1"}
    seeds = [row["general"] for row in comparison.by_seed.values()]
    assert np.mean(seeds) == pytest.approx(comparison.accuracy["general"]["mean"].value)
    assert sum(b.pairs for b in comparison.calibration["general"].bins) == tasks["mean"].pairs
    assert Comparison.model_validate_json(comparison.to_json()) == comparison


def test_oracles_and_routed_methods_differ_only_by_the_task(comparison: Comparison) -> None:
    router = comparison.router.accuracy
    assert router is not None
    for name in ("per_task", "all_labels"):
        oracle, routed = (comparison.accuracy[m]["mean"].value for m in (name, f"{name}_routed"))
        assert oracle == pytest.approx(routed, abs=2 * (1 - router) + 1e-9)
        assert comparison.methods[name].startswith("oracle")


def test_a_method_in_one_new_file_is_everywhere(comparison: Comparison) -> None:
    means = {name: comparison.accuracy[name]["mean"].value for name in ("longest", "shortest")}
    assert sum(means.values()) == pytest.approx(1)
    assert "prefers long responses" in report_html(comparison)
    assert "dmoerm - shortest" in comparison.paired


def test_a_comparison_resumes(
    comparison: Comparison, config: Config, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    trained = finished_steps(Path(seed_config(config, 0).output))
    monkeypatch.chdir(tmp_path)
    (tmp_path / "tiny.yaml").write_text(dump_config(config))
    command = ["compare", "tiny.yaml", "--seed", "0", "--seed", "1", "--output", config.output]
    result = CliRunner(env={"COLUMNS": "200"}).invoke(app, command)
    assert result.exit_code == 0, result.output
    assert "prefers long responses" in result.stdout
    again = Comparison.model_validate(json.loads((Path(config.output) / "results.json").read_text()))
    assert again.accuracy == comparison.accuracy
    assert finished_steps(Path(seed_config(config, 0).output)) == trained
    page = (Path(config.output) / "report.html").read_text()
    assert f"Folder: {config.output}" in page
    assert again.weights == comparison.weights


def test_chosen_methods_come_with_dmoerm() -> None:
    assert [method.name for method in choose_methods(["all_labels", "general"])] == ["general", "all_labels", "dmoerm"]
    with pytest.raises(ConfigError, match="unknown method 'best'; use some of general"):
        choose_methods(["best"])


def test_a_name_is_one_method() -> None:
    with pytest.raises(ConfigError, match="'general' is a method of this comparison"):
        register(Method("general", "another", lambda _: TrainedMethod()))
    register(registered()["general"])  # the same one again


def test_what_cannot_be_compared_is_refused(config: Config, tmp_path: Path) -> None:
    ties = [group.model_copy(update={"scores": (1.0,) * len(group.responses)}) for group in tiny_groups(4)]
    tied = changed(config, {"data.files": [write_groups(ties, tmp_path / "ties.jsonl")]})
    with pytest.raises(DataError, match="no pair of responses that people ordered"):
        measure_seed(seed_config(tied, 0), choose_methods(), QUIET)
    with pytest.raises(ConfigError, match="at least one seed"):
        compare_methods(config, ())


@pytest.mark.slow
def test_models_with_trained_branches(tiny_backbone: str, tmp_path: Path) -> None:
    config = changed(make_tiny_config(tiny_backbone, tmp_path), {"phase0.epochs": 1})
    result = measure_seed(seed_config(config, 0), choose_methods(["general", "all_labels"]), QUIET)
    steps = finished_steps(Path(seed_config(config, 0).output))
    assert len([name for name in steps if name.startswith("baselines/all_labels/")]) == 2
    assert len({result.length_bias[name].pearson for name in ("general", "all_labels", "dmoerm")}) == 3
