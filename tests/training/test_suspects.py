"""Doubtful labels: judged by scores that did not see them, and found where labels are reversed."""

import json
import random
from pathlib import Path
from typing import Any

import pytest
import torch
from tiny import make_exact_config, train_quietly
from typer.testing import CliRunner

from dmoerm.cli import app
from dmoerm.config import load_config
from dmoerm.data.readers import read_groups
from dmoerm.schema import Group
from dmoerm.training.exact_solver import out_of_fold
from dmoerm.training.run import load_run
from dmoerm.training.steps import Training
from dmoerm.training.suspects import judge_labels

FLIPPED = 0.2


def word_groups(count: int = 80) -> list[Group]:
    """Return groups whose better response is always of the same words, so that a model can learn the order."""
    return [
        Group(
            id=str(i),
            task=("a", "b")[i % 2],
            prompt=f"question {i}",
            responses=responses,
            scores=scores,
            capabilities={"kind": scores},
        )
        for i in range(count)
        for responses, scores in [
            ((f"yes good fine {i}", f"no bad 0 {i}"), (1.0, 0.0))
            if i % 3
            else ((f"no bad 0 {i}", f"yes good fine {i}"), (0.0, 1.0))
        ]
    ]


def reversed_groups() -> list[Group]:
    """Return the groups with a share of the overall and of the capability labels reversed."""
    drawn = random.Random(0)

    def noisy(scores: tuple[float, ...]) -> tuple[float, ...]:
        return scores[::-1] if drawn.random() < FLIPPED else scores

    return [
        group.model_copy(update={"scores": noisy(group.scores), "capabilities": {"kind": noisy(group.scores)}})
        for group in word_groups()
    ]


@pytest.fixture(scope="module")
def run_folder(tiny_backbone: str, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("suspects")
    file = folder / "words.jsonl"
    file.write_text("".join(group.model_dump_json(exclude_defaults=True) + "\n" for group in reversed_groups()))
    data = {"files": [str(file)], "test_fraction": 0.05}
    return train_quietly(make_exact_config(tiny_backbone, folder, data=data)).folder


@pytest.fixture(scope="module")
def training(run_folder: Path) -> Training:
    return load_run(run_folder, load_config(run_folder / "config.yaml"))


def test_reversed_labels_are_the_most_doubtful(training: Training) -> None:
    judged = judge_labels(training)
    assert [label.probability for label in judged] == sorted(label.probability for label in judged)
    for capability in (None, "kind"):
        wrong = [
            "good" not in label.group.responses[label.pair.better] for label in judged if label.capability == capability
        ]
        assert len(wrong) == len(training.train) + len(training.validation)
        assert 0.05 < sum(wrong) / len(wrong) < 0.4
        assert sum(wrong[: sum(wrong)]) >= 0.75 * sum(wrong), "precision at the share reversed"


def test_a_training_label_is_judged_by_the_head_without_its_fold(training: Training) -> None:
    judged = {(label.group.id, label.capability): label for label in judge_labels(training)}
    for example in training.train[:10]:
        task, label = example.task, judged[example.group.id, "kind"]
        assert task is not None
        head = training.run.model.task_model(task).experts.heads[0]
        vectors = {example.key: training.run.cache.embeddings(example.encoded)}
        folds, seed = training.folds[task, "kind"], training.run.config.seed
        scores = out_of_fold(head, folds, [example], vectors, seed)[example.key]
        margin = scores[label.pair.better] - scores[label.pair.worse]
        assert label.probability == pytest.approx(float(torch.sigmoid(margin)), abs=1e-5)


def run(*arguments: object) -> Any:
    return CliRunner(env={"COLUMNS": "200", "NO_COLOR": "1"}).invoke(app, [str(argument) for argument in arguments])


def test_the_file_of_suspects_is_readable_data(run_folder: Path, tmp_path: Path) -> None:
    out = tmp_path / "suspects.jsonl"
    result = run("data", "suspects", run_folder, "--out", out, "--limit", 9)
    assert result.exit_code == 0, result.output
    rows = [json.loads(line) for line in out.read_text().splitlines()]
    assert len(rows) == 9
    assert max(row["label_probability"] for row in rows) < 0.5
    for row, group in zip(rows, read_groups(out).groups, strict=True):
        (pair,) = group.labeled_pairs("kind") if group.capabilities else group.pairs()
        assert group.responses[pair.better] == row["responses"][0]
