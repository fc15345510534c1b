"""The commands of the experiments: compare, bon, benchmark."""

from __future__ import annotations

import contextlib
import json
import random
import shlex
import subprocess
import sys
import time
from pathlib import Path

import pytest
from fake_judge import FakeJudge
from tiny import make_exact_config, make_tiny_config
from typer.testing import CliRunner

from dmoerm.cli import app
from dmoerm.config import dump_config
from dmoerm.data.splits import load_splits


def invoke(command: str):
    return CliRunner(env={"COLUMNS": "200", "NO_COLOR": "1", "TERM": "dumb"}).invoke(app, shlex.split(command))


@pytest.fixture(scope="module")
def config(tiny_backbone, tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("experiments")
    file = folder / "tiny.yaml"
    file.write_text(dump_config(make_exact_config(tiny_backbone, folder)), encoding="utf-8")
    return file


def test_compare_then_best_of_n(config: Path, trained_run) -> None:
    folder = config.parent / "run-compare"
    asked = f"{config} --seed 0 --members 2 --method per_task --method gated --method bagged_wco"
    rival = f"--ablation shuffled --include-trained --external other={trained_run.folder / 'model'}"
    result = invoke(f"compare {asked} {rival} --json {config.parent / 'copy.json'}")
    assert result.exit_code == 0, result.output
    found = json.loads((folder / "results.json").read_text())
    assert found == json.loads((config.parent / "copy.json").read_text())
    assert set(found["conditions"]) == {"clean", "noisy"}
    assert {"shuffled", "other", "gated", "dmoerm"} <= set(found["methods"])
    for method in found["methods"]:
        assert method in result.output
    again = invoke(f"compare {asked} {rival}")
    assert again.output.count("done before") == 2
    assert "trunk's activations" not in again.output
    result = invoke(f"bon {asked} --samples 8 --prompts 1 --from testbed --noise noisy=0.25,0.15")
    assert result.exit_code == 1
    assert "roleplay" in result.output, "the tiny run knows two of the testbed's tasks"
    result = invoke(f"bon {asked} --samples 3 --from graded")
    assert result.exit_code == 0, result.output
    assert "falls after" in result.output
    best = json.loads((folder / "best_of_n.json").read_text())
    assert best["ns"] == [1, 2, 3]
    assert set(best["conditions"]["noisy"]["curves"]) == {"chitchat", "objective_qa", "all"}


def test_live_judges_are_methods_and_each_question_is_sent_once(config: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OPENAI_API_KEY", "test")
    folder = config.parent / "run-compare"  # whose models another test has trained, if it ran
    with FakeJudge() as server:
        asked = f"compare {config} --seed 0 --noise clean=0,0 --members 2 --method per_task --output {folder}"
        asked += " --judge fake --shots 1 --max-tokens 77 --temperature 0.25 --request-field seed=5"
        result = invoke(f"{asked} --base-url {server.url}")
        assert result.exit_code == 0, result.output
        assert {(b["max_tokens"], b["temperature"], b["seed"]) for b in server.bodies} == {(77, 0.25, 5)}
        calls = sum(server.paid.values())
        (folder / "clean" / "seed0" / "run.json").unlink()
        assert invoke(f"{asked} --base-url {server.url}").exit_code == 0
        assert sum(server.paid.values()) == calls > 0, "what was asked is in the store"
    accuracy = json.loads((folder / "results.json").read_text())["conditions"]["clean"]["accuracy"]
    assert {"judge_zero_shot", "judge_few_shot"} <= set(accuracy)
    length = json.loads((folder / "results.json").read_text())["conditions"]["clean"]["length_bias"]
    assert length["judge_zero_shot"]["spearman"] > 0.9, "the fake judge likes the longer one"


def test_conditions_and_methods_of_a_comparison(tiny_backbone: str, tmp_path: Path) -> None:
    folder = tmp_path / "few"
    scores = {"base": "frozen", "phase1": {"phase1_fraction": 0}, "phase2": {"lora": {"rank": 0}}}
    fixed = make_tiny_config(tiny_backbone, tmp_path, **scores, phase3={"inputs": "scores"})
    (tmp_path / "tiny.yaml").write_text(dump_config(fixed), encoding="utf-8")
    asked = f"compare {tmp_path / 'tiny.yaml'} --seed 0 --noise clean=0,0 --condition few=data.overall_fraction=0.5"
    asked += f" --condition few=data.flip_scores=0.25 --method per_task --ablation risk --output {folder}"
    result = invoke(asked)
    assert result.exit_code == 0, result.output
    comparison = json.loads((folder / "results.json").read_text())
    assert set(comparison["methods"]) == {"per_task", "dmoerm"}, "heads with a fixed l2 have no posterior, so no risk"
    clean, few = (comparison["conditions"][name] for name in ("clean", "few"))
    assert few["settings"] == {"data.overall_fraction": 0.5, "data.flip_scores": 0.25}
    assert clean["accuracy"]["per_task"]["mean"]["pairs"] == few["accuracy"]["per_task"]["mean"]["pairs"]
    assert (
        "data.overall_fraction=0.5, 25 % of the overall and 0 % of the capability pairs reversed"
        in (folder / "report.html").read_text()
    )


def test_invalid_comparisons_are_refused(config: Path) -> None:
    assert "write it as NAME=0.25,0.15" in invoke(f"compare {config} --noise loud").output
    assert "write it as NAME=SOURCE" in invoke(f"compare {config} --external nothing").output
    assert "write it as NAME=data.overall_fraction=0.1" in invoke(f"compare {config} --condition few").output
    assert "is not valid YAML" in invoke(f"compare {config} --condition few=data.overall_fraction=[").output
    assert "unknown method 'best'" in invoke(f"compare {config} --method best").output
    assert "data.overall_fraction" in invoke(f"compare {config} --condition few=data.overall_fraction=0").output
    assert "unknown ablation" in invoke(f"compare {config} --ablation head").output
    assert "lower --samples" in invoke(f"bon {config} --from graded --samples 99").output


def test_an_experiment_takes_one_process(config: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WORLD_SIZE", "2")
    for command in ("compare", "bon", "rl"):
        result = invoke(f"{command} {config}")
        assert result.exit_code == 1
        assert "an experiment runs in one process, not 2" in result.output


def test_benchmark(trained_run, write_rows, tmp_path: Path) -> None:
    rows = [
        {"prompt": "How are you?", "chosen": "Fine.", "rejected": "No.", "subset": "alpacaeval-easy", "id": 1},
        {"prompt": "What is 1 + 1?", "chosen": "2.", "rejected": "3, of course.", "subset": "math-prm", "id": 2},
    ]
    file, place = write_rows(rows), trained_run.folder
    result = invoke(f"benchmark rewardbench {place} --data {file} --json {tmp_path / 'found.json'}")
    assert result.exit_code == 0, result.output
    (found,) = json.loads((tmp_path / "found.json").read_text())["models"].values()
    assert set(found["sections"]) == {"Chat", "Reasoning"}
    scores = trained_run.model.score(rows[1]["prompt"], [rows[1]["chosen"], rows[1]["rejected"]])
    assert found["subsets"]["math_prm"] == [float(scores[0].reward > scores[1].reward), 1]
    assert "overall" in result.output
    assert "three chosen" in invoke(f"benchmark rm_bench {place} --data {file}").output


def test_a_benchmark_leaves_out_training_prompts(trained_run, write_rows, tmp_path: Path) -> None:
    trained = load_splits(trained_run.config).train[0].prompt
    assert isinstance(trained, str)
    rows = [
        {"prompt": prompt, "chosen": "Fine.", "rejected": "No.", "subset": "alpacaeval-easy", "id": i}
        for i, prompt in enumerate(["How are you?", trained])
    ]
    command = f"benchmark rewardbench {trained_run.folder} --data {write_rows(rows)} --json {tmp_path / 'found.json'}"
    result = invoke(command)
    assert result.exit_code == 0, result.output
    found = json.loads((tmp_path / "found.json").read_text())
    assert found["overlap"][str(trained_run.folder)]["prompts"] == 1
    assert found["models"][str(trained_run.folder)]["subsets"]["alpacaeval_easy"][1] == 1
    assert "left out" in result.output
    assert "included: accuracy on them is too high" in invoke(f"{command} --include-trained").output
    found = json.loads((tmp_path / "found.json").read_text())
    assert found["models"][str(trained_run.folder)]["subsets"]["alpacaeval_easy"][1] == 2


@pytest.mark.slow
def test_a_killed_comparison_ends_as_an_unbroken_one(config: Path) -> None:
    """kill −9 at three random moments; then best-of-n, killed once."""
    asked = ["--seed", "0", "--seed", "1", "--members", "2", "--ablation", "no_outer"]
    whole, broken = config.parent / "whole", config.parent / "broken"

    def begin(name: str, folder: Path, *more: str) -> subprocess.Popen:
        command = [
            sys.executable,
            "-c",
            "from dmoerm.cli import main; main()",
            name,
            str(config),
            *asked,
            "--output",
            str(folder),
            *more,
        ]
        if name == "bon":
            command = [part for part in command if part not in ("--ablation", "no_outer")]
        return subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE)

    start = time.monotonic()
    assert begin("compare", whole).wait() == 0
    seconds = time.monotonic() - start
    rng = random.Random(1)
    for _ in range(3):
        process = begin("compare", broken)
        with contextlib.suppress(subprocess.TimeoutExpired):
            process.wait(timeout=rng.uniform(0.3, 0.6) * seconds)
        process.kill()
        process.wait()
    assert begin("compare", broken).wait() == 0
    first, second = (json.loads((folder / "results.json").read_text()) for folder in (whole, broken))
    assert first["conditions"] == second["conditions"]
    more = ("--from", "graded", "--samples", "3")
    process = begin("bon", broken, *more)
    time.sleep(0.2 * seconds)
    process.kill()
    process.wait()
    assert begin("bon", broken, *more).wait() == begin("bon", whole, *more).wait() == 0
    first, second = (json.loads((folder / "best_of_n.json").read_text()) for folder in (whole, broken))
    assert first["conditions"] == second["conditions"]
