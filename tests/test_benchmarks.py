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
from rich.console import Console
from typer.main import get_command

from dmoerm.cli import app
from dmoerm.evaluation.scored_groups import ScoredGroup
from dmoerm.schema import Group

sys.path.append(str(Path(__file__).parents[1] / "benchmarks"))

import claims
import evidence
import million
import table
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


@pytest.mark.slow
def test_memory_grows_by_less_than_ten_kilobytes_a_row(tmp_path):
    """The parts of million.py; examples as Python objects took 56 kB a row. A million rows take 50 minutes."""
    peaks = []
    for rows in (2_000, 42_000):
        (tmp_path / str(rows)).mkdir()
        parts = million.measured(million.settings(tmp_path / str(rows), rows), rows)
        assert [part["part"] for part in parts] == ["read and split", "check and digest", "tokenize", "head step"]
        peaks.append(max(part["of it no file"] for part in parts if part["part"] != "tokenize"))  # which has workers
    assert peaks[1] - peaks[0] < 40_000 * 10_000 / 1e9


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


def test_every_claim_holds_for_the_stored_results():
    files = table.stored()
    assert {claim.source for claim in claims.CLAIMS} <= set(files)
    assert len(claims.rows(files)) == len(claims.CLAIMS)


def test_a_claim_that_does_not_hold_is_an_error():
    level = {"value": 0.01, "low": -0.01, "high": 0.03}
    files = {"some": {"command": "run", "conditions": {"clean": {"paired": {"dmoerm - general": {"mean": level}}}}}}
    true = claims.Claim("level", "some", claims.over("general"), claims.level)
    assert claims.rows(files, (true,)) == [["level", "clean +1.0 (-1.0 to +3.0)", "some"]]
    for holds in (claims.above, claims.below, claims.at_least(1.1), claims.at_most(0.9)):
        with pytest.raises(ValueError, match=r"does not hold any more: better \(some: clean \+1.0"):
            claims.rows(files, (claims.Claim("better", "some", claims.over("general"), holds),))


def test_every_experiment_of_the_evidence_parses():
    """Its commands have options that exist, and write below the folder that is copied from."""
    for experiment in evidence.experiments():
        for command in (experiment.command, experiment.small):
            words = command.split()
            folder = words[words.index("--out" if "--out" in words else "--output") + 1]
            assert folder.startswith("runs/")
            assert experiment.result is None or f"runs/{experiment.result}".startswith(f"{folder}/")
            if words[0] == "dmoerm":
                group, words = get_command(app).commands[words[1]], words[2:]
                if hasattr(group, "commands"):
                    group, words = group.commands[words[0]], words[1:]
                group.make_context("", words, resilient_parsing=False).close()
            else:
                assert (BENCHMARKS.parent / words[1]).is_file()


def test_the_evidence_in_miniature(tmp_path, monkeypatch):
    """An experiment runs as a command, and its results are copied; one that needs absent data is skipped."""
    console = Console(file=(tmp_path / "out.txt").open("w"), width=500)
    monkeypatch.setattr(evidence, "ROOT", tmp_path)
    monkeypatch.delenv("DMOERM_DATA", raising=False)
    script = tmp_path / "write.py"
    script.write_text(
        "import pathlib, sys; p = pathlib.Path(sys.argv[1]); p.mkdir(parents=True); (p / 'a.json').touch()"
    )
    some = evidence.Experiment("some", "", f"python {script} runs/some", "some/a.json", data=False)
    evidence.measure(some, some.small, console, small=True)
    assert (tmp_path / "runs" / "evidence-small" / "results" / "some.json").exists()
    with pytest.raises(SystemExit, match="some failed; the same command resumes it"):
        evidence.measure(some, some.small, console, small=True)
    evidence.measure(evidence.Experiment("human", "", "python nothing.py"), "python nothing.py", console, small=True)
    console.file.close()
    assert "human: skipped; set DMOERM_DATA" in (tmp_path / "out.txt").read_text()
