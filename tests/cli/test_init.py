"""`dmoerm init` on files as they are published: the config that it writes trains unedited."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml
from tiny import tiny_groups
from typer.testing import CliRunner

from dmoerm.cli import app
from dmoerm.config import load_config
from dmoerm.data.splits import load_splits

Row = dict[str, Any]


def run(*arguments: object) -> Any:
    return CliRunner(env={"COLUMNS": "200", "NO_COLOR": "1"}).invoke(app, [str(argument) for argument in arguments])


def choices() -> list[tuple[str, str, str]]:
    """Return prompts with a better and a worse response."""
    rows = []
    for group in tiny_groups():
        pair = group.pairs()[0]
        prompt = group.prompt if isinstance(group.prompt, str) else group.prompt[-1].content
        rows.append((prompt, group.responses[pair.better], group.responses[pair.worse]))
    return rows


def hh() -> list[Row]:
    return [
        {"chosen": f"\n\nHuman: {p}\n\nAssistant: {a}", "rejected": f"\n\nHuman: {p}\n\nAssistant: {b}"}
        for p, a, b in choices()
    ]


def trl() -> list[Row]:
    return [{"prompt": p, "chosen": a, "rejected": b} for p, a, b in choices()]


def ultrafeedback() -> list[Row]:
    def completion(text: str, score: int) -> Row:
        return {"response": text, "overall_score": score, "annotations": {"honesty": {"Rating": str(score)}}}

    return [
        {"source": ("sharegpt", "evol")[i % 2], "instruction": p, "completions": [completion(a, 4), completion(b, 2)]}
        for i, (p, a, b) in enumerate(choices())
    ]


def helpsteer() -> list[Row]:
    grades = dict.fromkeys(("correctness", "coherence", "complexity", "verbosity"))
    return [
        {"prompt": p, "response": text, **dict.fromkeys(grades, score), "helpfulness": score}
        for p, a, b in choices()
        for text, score in ((a, 4), (b, 1))
    ]


def native() -> list[Row]:
    return [json.loads(group.model_dump_json(exclude_defaults=True)) for group in tiny_groups()]


FORMATS = {"hh": hh, "trl": trl, "ultrafeedback": ultrafeedback, "helpsteer": helpsteer, "native": native}


@pytest.mark.parametrize("name", FORMATS)
def test_a_config_for_each_format_loads_and_can_be_split(
    name: str, write_rows: Callable[..., Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    result = run("init", write_rows(FORMATS[name](), "mine.jsonl").name)
    assert result.exit_code == 0, result.output
    config = load_config("mine.yaml")
    splits = load_splits(config)
    assert all(group.task for group in splits.train)
    for task, settings in splits.taxonomy.tasks.items():
        members = [group for group in splits.train if group.task == task]
        assert any(group.pairs() for group in members)
        assert all(any(group.pairs(c) for group in members) for c in settings.capabilities)
    assert ("mine-data.jsonl" in config.data.files) == (name == "ultrafeedback"), (
        "the file itself, if it needs no change"
    )
    expected = {"ultrafeedback": {"sharegpt", "evol"}, "native": {"chitchat", "objective_qa"}}
    assert set(splits.taxonomy.tasks) == expected.get(name, {"all_prompts"})
    assert f"dmoerm score {Path('runs') / 'mine'} --input mine.jsonl" in result.output


def test_from_a_parquet_file_to_scores(tiny_backbone: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import pyarrow as pa
    import pyarrow.parquet as parquet

    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("DMOERM_CACHE", str(tmp_path / "cache"))
    parquet.write_table(pa.Table.from_pylist(ultrafeedback()), "mine.parquet")
    for command in (
        f"init mine.parquet --backbone {tiny_backbone}",
        "train mine.yaml",
        "score runs/mine --input mine.parquet --output scores.jsonl",
    ):
        result = run(*command.split())
        assert result.exit_code == 0, result.output
    rows = [json.loads(line) for line in Path("scores.jsonl").read_text().splitlines()]
    assert len(rows) == len(choices())
    assert all(len(row["rewards"]) == 2 for row in rows)


def test_what_cannot_be_trained_on_is_left_out_and_named(
    write_rows: Callable[..., Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    rows = native()
    rows[0]["task"] = "rare"
    rows[1]["capabilities"]["once"] = list(range(len(rows[1]["responses"])))
    write_rows([*rows, {"prompt": "p", "responses": ["a"]}], "mine.jsonl")
    result = run("init", "mine.jsonl")
    assert result.exit_code == 0, result.output
    for words in ("no task: the router decides (rare)", "the capability once is left out (1 prompts)", "1 bad row"):
        assert words in result.output
        assert words in Path("mine.yaml").read_text()
    splits = load_splits(load_config("mine.yaml"))
    assert "rare" not in splits.taxonomy.tasks
    assert len(splits.train) + len(splits.test) == len(rows)
    assert rows[0]["id"] in {group.id for group in (*splits.train, *splits.test) if group.task is None}


def test_nothing_is_replaced_without_force(
    write_rows: Callable[..., Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    write_rows(native(), "mine.jsonl")
    Path("mine-taxonomy.yaml").write_text("edited")
    result = run("init", "mine.jsonl")
    assert result.exit_code == 1
    assert "mine-taxonomy.yaml: already there" in result.stderr
    assert Path("mine-taxonomy.yaml").read_text() == "edited"
    assert not Path("mine.yaml").exists()
    assert run("init", "mine.jsonl", "--force").exit_code == 0
    assert yaml.safe_load(Path("mine-taxonomy.yaml").read_text())["tasks"]


@pytest.mark.parametrize(
    ("rows", "options", "message"),
    [
        (native()[:3], (), "3 prompts have two responses of which one is preferred; at least 10 are needed"),
        (native(), ("--task-column", "sorce"), "no row has the column 'sorce'"),
        ([{"text": "a"}] * 20, (), "mine.jsonl:1: the row has an unknown format"),
    ],
)
def test_data_that_no_config_can_train_on(
    rows: list[Row],
    options: tuple[str, ...],
    message: str,
    write_rows: Callable[..., Path],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.chdir(tmp_path)
    write_rows(rows, "mine.jsonl")
    result = run("init", "mine.jsonl", *options)
    assert result.exit_code == 1
    assert message in result.stderr
    assert not list(tmp_path.glob("*.yaml"))
