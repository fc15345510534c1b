"""Checks of the benchmarks without measuring: they start, they count correctly, and the pages show their figures."""

import json
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
import yaml

from dmoerm.evaluation.scored_groups import ScoredGroup
from dmoerm.schema import Group

sys.path.append(str(Path(__file__).parents[1] / "benchmarks"))

import weights

BENCHMARKS = Path(__file__).parents[1] / "benchmarks"


@pytest.mark.slow
@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU: make bench-gpu measures on it")
def test_gpu_rows_are_skipped_without_a_gpu():
    done = subprocess.run([sys.executable, BENCHMARKS / "gpu.py"], capture_output=True, text=True, check=True)
    assert done.stdout == "skipped: there is no GPU\n"


def test_the_page_shows_the_figures(tmp_path):
    """table.py makes the tables in docs/ from results/*.json."""
    root = BENCHMARKS.parent
    for name in ("benchmarks", "docs"):
        shutil.copytree(root / name, tmp_path / name, ignore=shutil.ignore_patterns("__pycache__"))
    shutil.copy(root / "README.md", tmp_path)
    subprocess.run([sys.executable, tmp_path / "benchmarks" / "table.py"], check=True)
    for page in [root / "README.md", *(root / "docs").glob("*.md")]:
        filled = tmp_path / page.relative_to(root)
        assert filled.read_text(encoding="utf-8") == page.read_text(encoding="utf-8")
    pages = "".join(page.read_text(encoding="utf-8") for page in (root / "docs").glob("*.md"))
    for file in (root / "benchmarks" / "results").glob("*.json"):
        for row in json.loads(file.read_text())["rows"]:
            assert row["ratio"] == pytest.approx(row["peer_s"] / row["ours_s"], rel=0.01)
            assert f"**{row['ratio']:.2f}**" in pages


def scored(prompt="p", chosen="chat", overall=(3.0, 2.0, 1.0), wit=(0.0, 1.0, 5.0), derived=False):
    """The first response has the highest reward, the second more wit; the third has most of it, and little reward."""
    group = Group(
        task="chat",
        prompt=prompt,
        responses=("a", "b", "c"),
        scores=overall,
        capabilities={"wit": wit},
        scores_derived=derived,
    )
    rewards = {"dmoerm": np.array([1.0, 0.0, -9.0])}
    capabilities = {"wit": np.array([0.0, 1.0, 1.5]), "tone": np.zeros(3)}
    return ScoredGroup(group, "chat", {"chat": 1.0}, chosen, 1.0, rewards, capabilities)


def means(rows):
    return [(row["weight"], row["grade"]["value"], row["overall"]["value"]) for row in rows]


def test_a_weight_trades_the_overall_score_for_the_grade():
    rows = weights.measure([scored()])
    assert means(rows) == [(1, 0.0, 3.0), (2, 0.0, 3.0), (4, 1.0, 2.0), (8, 1.0, 2.0)]
    assert [row["grade_change"]["value"] for row in rows] == [0, 0, 1, 1]
    assert [row["overall_change"]["value"] for row in rows] == [0, 0, -1, -1]
    assert {(row["task"], row["capability"], row["prompts"]) for row in rows} == {("chat", "wit", 1)}  # tone: no grades
    assert not rows[0]["derived"]
    lines = weights.table(weights.measure([scored(derived=True)]))
    assert lines[-1].startswith("| chat \\* | wit | 1 | 8 | 1.000 (1.000 to 1.000) | +1.000 (+1.000 to +1.000) | 2.000")


def test_only_graded_responses_are_picked_and_prompts_count_once():
    first, other = scored(wit=(0.0, None, 2.0)), scored("q")
    assert means(weights.measure([first])) == [(weight, 0.0, 3.0) for weight in weights.WEIGHTS]
    assert weights.measure([scored(wit=(0.0, None, None))]) == []
    rows = weights.measure([scored(), scored(overall=(5.0, 2.0, 1.0)), other])
    assert rows[0]["prompts"] == 2
    assert rows[0]["overall"]["value"] == 3.5
    assert rows[0]["overall"]["low"] == 3.0
    assert rows[0]["overall"]["high"] == 4.0


def test_a_group_of_another_route_keeps_its_rewards():
    for chosen in (None, "qa"):
        assert means(weights.measure([scored(chosen=chosen)])) == [(weight, 0.0, 3.0) for weight in weights.WEIGHTS]


def test_the_weights_of_a_run_are_measured(trained_run, tmp_path, capsys):
    config = trained_run.config.model_dump(mode="json", exclude_unset=True)
    (tmp_path / "config.yaml").write_text(yaml.safe_dump(config))
    weights.main([str(tmp_path / "config.yaml"), "--json", str(tmp_path / "weights.json")])
    document = json.loads((tmp_path / "weights.json").read_text())
    lines = [line for line in capsys.readouterr().out.splitlines() if line.startswith("| ")]
    assert len(lines) == 1 + len(document["rows"]) == 1 + 4 * len(weights.WEIGHTS)
    assert document["config"]["output"] == trained_run.config.output
    for row in document["rows"]:
        assert row["capability"] in trained_run.model.config.tasks[row["task"]]
        assert row["grade"]["low"] <= row["grade"]["value"] <= row["grade"]["high"]
