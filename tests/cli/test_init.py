"""`dmoerm init` on files as they are published: the config that it writes trains unedited."""

import json
import math
import shlex
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml
from fake_judge import FakeJudge
from published import PUBLISHED
from tiny import tiny_groups
from typer.testing import CliRunner

from dmoerm.cli import app
from dmoerm.config import Config, load_config
from dmoerm.data.proposal import GENERAL, propose
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


def trl() -> list[Row]:
    return [{"prompt": p, "chosen": a, "rejected": b} for p, a, b in choices()]


SUMS = [{"prompt": f"What is {i} + 5?", "chosen": f"{i + 5}", "rejected": "No idea."} for i in range(40)]


def native() -> list[Row]:
    return [json.loads(group.model_dump_json(exclude_defaults=True)) for group in tiny_groups()]


def check_config(tasks: set[str]) -> Config:
    """Check that the config can be trained on: each task has ordered pairs, and each expert has some of its own."""
    config = load_config("mine.yaml")
    splits = load_splits(config)
    assert all(group.task for group in splits.train)
    assert set(splits.taxonomy.tasks) == tasks
    for task, settings in splits.taxonomy.tasks.items():
        members = [group for group in splits.train if group.task == task]
        assert any(group.pairs() for group in members)
        assert all(any(group.pairs(c) for group in members) for c in settings.capabilities)
    return config


@pytest.mark.parametrize(
    ("rows", "tasks"), [(trl(), {"all_prompts"}), (native(), {"chitchat", "objective_qa"})], ids=["trl", "native"]
)
def test_a_config_for_handwritten_rows_loads_and_can_be_split(
    rows: list[Row], tasks: set[str], write_rows: Callable[..., Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    result = run("init", write_rows(rows, "mine.jsonl").name)
    assert result.exit_code == 0, result.output
    assert check_config(tasks).data.files == ("mine.jsonl",), "the file itself, if it needs no change"
    assert f"dmoerm score {Path('runs') / 'mine'} --input mine.jsonl" in result.output


def printed(output: str, label: str) -> list[str]:
    """Return the arguments of the `dmoerm` command that a line of the output shows."""
    (line,) = [line for line in output.splitlines() if line.startswith(f"{label}: dmoerm ")]
    return shlex.split(line, comments=True)[2:]


def hh() -> list[Row]:
    """Return rows in hh-rlhf's layout, with a column of topics."""
    sides = [(p, {"chosen": good, "rejected": bad}) for p, good, bad in choices()]
    return [
        {"topic": "ab"[i % 2]} | {side: f"\n\nHuman: {p}\n\nAssistant: {text}" for side, text in texts.items()}
        for i, (p, texts) in enumerate(sides)
    ]


HARMLESS = {"helpfulness", "correctness", "completeness", "clarity", "harmlessness"}
"""The capabilities that are drafted for rows in hh-rlhf's layout."""


def test_the_printed_commands_lead_from_rows_without_grades_to_experts(
    tiny_backbone: str, write_rows: Callable[..., Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("DMOERM_CACHE", str(tmp_path / "cache"))
    monkeypatch.setenv("OPENAI_API_KEY", "sk-any")
    write_rows([{**row, "topic": None} for row in hh()], "my rows.jsonl")
    result = run("init", "my rows.jsonl", "--backbone", tiny_backbone)
    assert result.exit_code == 0, result.output
    (task,) = yaml.safe_load(Path("my_rows-taxonomy.yaml").read_text())["tasks"].values()
    assert set(task["capabilities"]) == HARMLESS
    assert load_splits(load_config("my_rows.yaml")).taxonomy.tasks["all_prompts"].capabilities == {}, "no labels yet"
    with FakeJudge() as judge:
        labeled = run(*printed(result.output, "label"), "--base-url", judge.url, "--group-capabilities")
    assert labeled.exit_code == 0, labeled.output
    trained = run(*printed(result.output, "train"))
    assert trained.exit_code == 0, trained.output
    model = json.loads(Path("runs/my_rows-labeled/model/config.json").read_text())
    assert {task: set(names) for task, names in model["tasks"].items()} == {"all_prompts": HARMLESS}


def test_the_printed_labeling_reads_the_copy_that_has_the_tasks(
    write_rows: Callable[..., Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    result = run("init", write_rows(hh(), "mine.jsonl").name, "--format", "hh")
    drafted = yaml.safe_load(Path("mine-taxonomy.yaml").read_text())["tasks"]
    assert all(set(task["capabilities"]) == HARMLESS for task in drafted.values())
    command = printed(result.output, "label")
    assert command[:2] == ["label", "mine-data.jsonl"]
    counted = run(*command, "--dry-run")
    assert f"{24 * len(HARMLESS) * 2} calls, 0 of them already answered" in counted.output


@pytest.mark.parametrize(
    ("prompt", "answer", "drafted"),
    [
        ("Hi", "Hello.", set()),
        ([{"role": r, "content": "Hi"} for r in ("user", "assistant", "user")], "Hello.", {"context"}),
        ("Sort it.", "```python\nsorted(it)\n```", {"code_quality"}),
    ],
)
def test_drafted_capabilities_suit_the_data(prompt: Any, answer: str, drafted: set[str], tmp_path: Path) -> None:
    rows = [{"prompt": prompt, "responses": [f"{answer}{i}", f"No.{i}"], "ranks": [1, 2]} for i in range(20)]
    for i, row in enumerate(rows):
        row["prompt"] = (
            f"{i} {prompt}" if isinstance(prompt, str) else [*prompt[:-1], {"role": "user", "content": f"{i}"}]
        )
    (tmp_path / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    assert set(propose([str(tmp_path / "rows.jsonl")]).general) == {*GENERAL} | drafted


TASKS = {"UltraFeedback": {"sharegpt", "evol_instruct"}, "a CSV file of one's own": {"Small talk", "Facts"}}
CAPABILITIES = {
    "UltraFeedback": {"instruction_following", "honesty", "truthfulness", "helpfulness"},
    "HelpSteer2": {"correctness", "coherence", "complexity", "verbosity"},
}


@pytest.mark.parametrize("name", PUBLISHED)
def test_a_config_for_each_published_file(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    write, options = PUBLISHED[name]
    result = run("init", write(tmp_path).name, *options, "--out", "mine.yaml")
    assert result.exit_code == 0, result.output
    config = check_config(TASKS.get(name, {"all_prompts"}))
    assert (config.data.files == ("mine-data.jsonl",)) == (name == "UltraFeedback"), "a copy only where it is needed"
    (line,) = [line for line in result.output.splitlines() if line.startswith("then: ")]
    assert all(option in shlex.split(line) for option in options), "the command can be copied"
    taxonomy = load_splits(config).taxonomy
    assert all(set(task.capabilities) == CAPABILITIES.get(name, set()) for task in taxonomy.tasks.values())


@pytest.mark.parametrize(
    "name", [pytest.param(name, marks=() if name == "UltraFeedback" else pytest.mark.slow) for name in PUBLISHED]
)
def test_from_each_published_file_to_scores(
    name: str, tiny_backbone: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("DMOERM_CACHE", str(tmp_path / "cache"))
    write, options = PUBLISHED[name]
    file = write(tmp_path).name
    for command in (
        ("init", file, "--out", "mine.yaml", "--backbone", tiny_backbone, *options),
        ("train", "mine.yaml"),
        ("score", "runs/mine", "--input", file, "--output", "scores.jsonl", *options),
    ):
        result = run(*command)
        assert result.exit_code == 0, result.output
    rows = [json.loads(line) for line in Path("scores.jsonl").read_text().splitlines()]
    assert len(rows) == (72 if name == "HelpSteer2" else 24), "as queries, each row of HelpSteer stands for itself"
    assert all(math.isfinite(reward) for row in rows for reward in row["rewards"])


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


@pytest.mark.parametrize(
    ("bad", "option"),
    [
        ([{"task": "chitchat", "prompt": "p", "responses": ["a", 5], "scores": [1, 2]}], ["--skip-bad"]),
        ([], []),
    ],
)
def test_the_printed_score_command_works_on_the_file(
    bad: list[Row],
    option: list[str],
    trained_run: Any,
    write_rows: Callable[..., Path],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.chdir(tmp_path)
    rows = [{"question": row.pop("prompt"), **row} for row in [*native(), *bad]]
    write_rows(rows, "mine.jsonl")
    result = run("init", "mine.jsonl", "--format", "native", "--map", "prompt=question")
    assert result.exit_code == 0, result.output
    (line,) = [line for line in result.output.splitlines() if line.startswith("then: ")]
    _, _, command, run_folder, *options = shlex.split(line)
    assert [word for word in options if word == "--skip-bad"] == option
    assert run_folder == "runs/mine"
    done = run(command, trained_run.folder, *options)
    assert done.exit_code == 0, done.output
    assert len(Path("scores.jsonl").read_text().splitlines()) == len(native())


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
        (native(), ("--clusters", "2"), "--clusters: the tasks are those of the data"),
        (SUMS, ("--clusters", "2"), "--clusters: the prompts do not fall into 2 clusters; each needs 10 prompts"),
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
