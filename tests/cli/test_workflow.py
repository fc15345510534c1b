"""Train, evaluate and score as a user does, on a tiny random backbone."""

import errno
import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow.parquet as parquet
import pytest
from sample_results import read_results
from tiny import HEADS, make_tiny_config, tiny_groups, write_groups
from typer.testing import CliRunner

from dmoerm.cli import app
from dmoerm.config import dump_config

WIDE = {"COLUMNS": "200", "TERM": "dumb", "NO_COLOR": "1"}
TASKS = ("chitchat", "objective_qa")


def run(*arguments: object, stdin: bytes | None = None) -> Any:
    return CliRunner(env=WIDE).invoke(app, [str(argument) for argument in arguments], input=stdin)


@pytest.fixture(scope="module")
def trained(tiny_backbone: str, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder that `dmoerm train` has filled; `said` beside it is what it wrote on the screen."""
    folder = tmp_path_factory.mktemp("workflow")
    config = make_tiny_config(tiny_backbone, folder, **HEADS)
    (folder / "mine.yaml").write_text(dump_config(config))
    result = run("train", folder / "mine.yaml", "--set", "seed=1")
    assert result.exit_code == 0, result.output
    (folder / "said").write_text(result.stdout)
    return folder / "run"


@pytest.fixture(scope="module")
def full(trained: Path) -> Path:
    """The model with its backbone, which `dmoerm export --full` has written."""
    result = run("export", trained, "--full", "--output", trained / "full")
    assert result.exit_code == 0, result.output
    return trained / "full"


def test_train_leaves_model_results_report_and_card(trained: Path) -> None:
    results = read_results(trained / "results.json")
    assert (results.command, results.seed, results.tasks) == ("train", 1, list(TASKS))
    assert (trained / "report.html").read_text().startswith("<!doctype html>")
    card = (trained / "model" / "README.md").read_text()
    assert "library_name: dmoerm" in card
    assert "The frozen layers are those of the backbone `llama`. If this folder does not contain" in card
    said = (trained.parent / "said").read_text()
    for words in ("Accuracy", "objective_qa", "dmoerm - general", "empathy", "router:", "results.json"):
        assert words in said
    assert f"{100 * results.accuracy['dmoerm']['mean'].value:.1f}" in said
    assert "\x1b[" not in said, "no colours where there is no terminal"


def test_truncated_texts_are_counted_in_what_train_prints_and_writes(tiny_backbone: str, tmp_path: Path) -> None:
    encoding = {"max_length": 40, "truncation": "keep_both"}
    config = make_tiny_config(tiny_backbone, tmp_path, **HEADS, encoding=encoding)
    (tmp_path / "mine.yaml").write_text(dump_config(config))
    result = run("train", tmp_path / "mine.yaml")
    assert result.exit_code == 0, result.output
    counts = read_results(tmp_path / "run" / "results.json").truncation
    for part, purpose in (("training", "to train on"), ("evaluation", "to measure on")):
        assert 0 < counts[part].truncated <= counts[part].responses
        assert (
            f"{counts[part].truncated} of {counts[part].responses} responses {purpose} are truncated" in result.stdout
        )


@pytest.mark.parametrize("source", ["", "model", "full"])
def test_eval_gives_what_train_gave(trained: Path, full: Path, tmp_path: Path, source: str) -> None:
    result = run("eval", trained / source, "--json", tmp_path / "found.json", "--report", tmp_path / "report")
    assert result.exit_code == 0, result.output
    before, measured = read_results(trained / "results.json"), read_results(tmp_path / "found.json")
    assert measured.accuracy == before.accuracy
    assert measured.capabilities == before.capabilities
    assert measured.weights == before.weights
    assert (Path(before.folder), Path(measured.folder)) == (trained, trained / source)
    assert measured.data == before.data
    assert (measured.router, measured.time) == (before.router, before.time)
    assert read_results(tmp_path / "report" / "results.json") == measured
    assert (tmp_path / "report" / "report.html").exists()


def test_eval_on_other_data(trained: Path, tmp_path: Path) -> None:
    groups = tiny_groups(3)
    free = [group.model_copy(update={"task": None}) for group in groups[:2]]
    data = write_groups([*groups, *free], tmp_path / "groups.jsonl")
    result = run("eval", trained, "--data", data, "--include-trained", "--json", tmp_path / "found.json")
    assert result.exit_code == 0, result.output
    measured = read_results(tmp_path / "found.json")
    assert (measured.router.prompts, measured.data) == (len(groups), (str(data),))
    strange = write_groups([groups[0].model_copy(update={"task": "strange"})], tmp_path / "strange.jsonl")
    result = run("eval", trained, "--data", strange, "--include-trained")
    assert result.exit_code == 0, result.output
    assert "decides for 1 groups: the model has no task 'strange'; it has chitchat, objective_qa" in result.stderr


def test_eval_on_training_data_does_not_call_it_held_out(trained: Path, tmp_path: Path) -> None:
    """The model folder alone is enough to know which prompts were trained on."""
    data = write_groups(tiny_groups(), tmp_path / "groups.jsonl")
    alone = tmp_path / "alone"
    shutil.copytree(trained / "model", alone)
    before = read_results(trained / "results.json")
    result = run("eval", alone, "--data", data, "--json", tmp_path / "found.json")
    assert result.exit_code == 0, result.output
    measured = read_results(tmp_path / "found.json")
    assert measured.overlap.groups > 0
    assert measured.accuracy["dmoerm"]["mean"].prompts == before.accuracy["dmoerm"]["mean"].prompts
    assert "left out" in result.stdout
    result = run("eval", alone, "--data", data, "--include-trained")
    assert f"Accuracy on prompts, {measured.overlap.prompts} of which the model was trained on" in result.stdout


# --- the backbone --------------------------------------------------------------------------------------------------


def test_a_full_export_has_the_same_texts_and_gives_the_same_bytes(
    trained: Path, full: Path, tmp_path: Path, write_rows: Callable[..., Path]
) -> None:
    rows = write_rows(queries())
    for name in ("model", "full"):
        assert run("score", trained / name, "--input", rows, "--output", tmp_path / f"{name}.jsonl").exit_code == 0
    assert (tmp_path / "model.jsonl").read_bytes() == (tmp_path / "full.jsonl").read_bytes()
    files = {path.relative_to(full).as_posix() for path in full.rglob("*.safetensors")}
    files -= {path.relative_to(trained / "model").as_posix() for path in (trained / "model").rglob("*.safetensors")}
    assert files == {"trunk.safetensors", "general/branch.safetensors"}
    assert all(
        (full / name).read_text() == (trained / "model" / name).read_text() for name in ("README.md", "run.yaml")
    )
    result = run("export", trained, "--full", "--task", "chitchat", "--output", tmp_path / "part")
    assert result.stdout.startswith("chitchat: empathy, proactivity\n")
    assert (tmp_path / "part" / "trunk.safetensors").exists()


COMMANDS = {
    "eval": ("MODEL",),
    "score": ("MODEL", "--input", "rows.jsonl", "--output", "scored.jsonl"),
    "serve": ("MODEL",),
    "export": ("MODEL", "--task", "chitchat", "--output", "part"),
    "push": ("MODEL", "me/rm", "--full"),
    "add": ("MODEL", "--task", "news", "--set", "data.files=[news.jsonl]", "--output", "grown"),
    "retrain": ("MODEL", "--capability", "chitchat/empathy", "--output", "again"),
    "remove": ("MODEL", "--task", "chitchat", "--output", "less"),
    "merge": ("MODEL", "MODEL", "--output", "both"),
}


@pytest.mark.parametrize("name", COMMANDS)
def test_each_command_works_with_both_forms_and_says_what_to_do_without_a_backbone(
    trained: Path, full: Path, tiny_backbone: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    monkeypatch.setattr("dmoerm.serving.serve", lambda load, *_, **__: load())
    monkeypatch.setattr("dmoerm.model.checkpoint.upload", lambda folder, repo, **_: f"https://hub/{repo}")
    write_groups([g.model_copy(update={"task": "news"}) for g in tiny_groups()[:9]], tmp_path / "news.jsonl")
    (tmp_path / "rows.jsonl").write_text(json.dumps(queries(1)[0]))
    monkeypatch.chdir(tmp_path)
    shutil.copytree(trained / "model", "moved")
    settings = json.loads(Path("moved/config.json").read_text())
    settings["backbone_source"]["name"] = "/nowhere"
    Path("moved/config.json").write_text(json.dumps(settings))
    Path("moved/SHA256SUMS").unlink()

    def dmoerm(model: Path, *options: object) -> Any:
        return run(name, *(model if part == "MODEL" else part for part in COMMANDS[name]), *options)

    result = dmoerm(Path("moved"))
    assert result.exit_code == 1
    hint = "name its backbone with --backbone PATH (in Python backbone=PATH, elsewhere $DMOERM_BACKBONE)"
    assert result.stderr == f"error: moved: backbone '/nowhere': there is no such folder; {hint}\n"
    result = dmoerm(Path("moved"), "--backbone", tiny_backbone)
    assert result.exit_code == 0, result.output
    for folder in COMMANDS[name][-1:] if "--output" in COMMANDS[name] and name != "score" else ():
        assert json.loads(Path(folder, "config.json").read_text())["backbone_source"]["name"] == tiny_backbone
        shutil.rmtree(folder)
    monkeypatch.setenv("DMOERM_BACKBONE", "/nowhere")  # which a model with its own weights does not read
    result = dmoerm(full)
    assert result.exit_code == 0, result.output
    for folder in COMMANDS[name][-1:] if "--output" in COMMANDS[name] and name != "score" else ():
        assert Path(folder, "trunk.safetensors").exists()


def test_actors_on_other_machines_get_the_backbone(
    trained: Path, tiny_backbone: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    jobs: list[Any] = []

    def score_on_ray(job: Any, open_scorer: Any, **_: Any) -> dict[str, Any]:
        jobs.append((job, open_scorer))
        return {"queries": 0, "responses": 0, "tasks": {}, "left_out": 0}

    monkeypatch.setattr("dmoerm.distributed.batch_scoring.score_on_ray", score_on_ray)
    monkeypatch.chdir(Path(tiny_backbone).parent)
    options = ("--input", "rows.jsonl", "--output", tmp_path / "parts", "--engine", "ray")
    for more in ((), ("--backbone", Path(tiny_backbone).name)):
        assert run("score", trained, *options, *more).exit_code == 0
    (job, _), (same, open_scorer) = jobs
    assert job == same, "another path of the same weights continues the job"
    assert open_scorer.keywords["backbone"] == tiny_backbone


# --- score ---------------------------------------------------------------------------------------------------------


def queries(count: int = 7) -> list[dict[str, Any]]:
    """Rows with one, two or three responses, with and without a task."""
    groups = tiny_groups(count)[:count]
    return [
        {"id": f"row {i}", "prompt": group.prompt, "responses": list(group.responses)[: 1 + i % 3]}
        | ({"task": "chitchat"} if i % 2 else {})
        for i, group in enumerate(groups)
    ]


def lines(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text().splitlines()]


def test_score_writes_one_row_a_row_in_order(
    trained: Path, tmp_path: Path, write_rows: Callable[..., Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    import dmoerm

    monkeypatch.setattr("dmoerm.model.packing._WINDOW_QUERIES", 3)
    rows, output = queries(), tmp_path / "out" / "scores.jsonl"
    result = run("score", trained, "--input", write_rows(rows), "--output", output, "--json", tmp_path / "sum.json")
    assert result.exit_code == 0, result.output
    measured = lines(output)
    assert [row["id"] for row in measured] == [row["id"] for row in rows]
    model = dmoerm.DMoERM.from_pretrained(trained / "model")
    for row, score in zip(rows, measured, strict=True):
        expected = model.score(row["prompt"], row["responses"], task=row.get("task"))
        assert score["task"] == expected[0].task
        assert score["rewards"] == pytest.approx([e.reward for e in expected], abs=1e-3)
        assert score["route"] == pytest.approx(expected[0].route, abs=1e-4)
        if score["task"] is not None:
            assert list(score["capabilities"]) == list(expected[0].capabilities)
            assert all(len(values) == len(row["responses"]) for values in score["capabilities"].values())
            assert len(score["uncertainty"]) == len(row["responses"])
    summary = json.loads((tmp_path / "sum.json").read_text())
    assert summary["model"] == str(trained)
    assert (summary["queries"], summary["responses"]) == (7, sum(len(row["responses"]) for row in rows))
    assert sum(summary["tasks"].values()) == 7
    assert [file.name for file in output.parent.iterdir()] == ["scores.jsonl"]


@pytest.mark.parametrize(
    ("bad", "words", "suffix"),
    [
        ({"prompt": "p"}, "rows.jsonl:8", ".parquet"),
        ({"id": "long", "prompt": "p", "responses": ["word " * 3000]}, "rows.jsonl:8: prompt and response", ".jsonl"),
    ],
)
def test_a_bad_row_leaves_no_half_file(
    trained: Path, tmp_path: Path, write_rows: Any, monkeypatch: pytest.MonkeyPatch, bad: Any, words: str, suffix: str
) -> None:
    monkeypatch.setattr("dmoerm.model.packing._WINDOW_QUERIES", 2)  # some rows have been written by then
    output = tmp_path / "out" / f"scores{suffix}"
    output.parent.mkdir()
    output.write_text("as it was")
    result = run("score", trained, "--input", write_rows([*queries(), bad]), "--output", output)
    assert result.exit_code == 1
    (line,) = result.stderr.splitlines()
    assert line.startswith("error: ")
    assert words in line
    assert output.read_text() == "as it was"
    assert [file.name for file in output.parent.iterdir()] == [output.name]


@pytest.mark.parametrize("name", ["scores.jsonl", "scores.parquet", "-"])
def test_a_full_disk_is_an_error_that_names_the_output(
    name: str, trained: Path, tmp_path: Path, write_rows: Callable[..., Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*_: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr("dmoerm.evaluation.scoring_files.write_lines", fail)
    monkeypatch.setattr(parquet.ParquetWriter, "write_table", fail)
    output = name if name == "-" else tmp_path / name
    result = run("score", trained, "--input", write_rows(queries()), "--output", output)
    assert result.exit_code == 1
    shown = "standard output" if name == "-" else output
    assert result.stderr == f"error: {shown}: cannot be written: No space left on device\n"


def test_score_with_weights(trained: Path, tmp_path: Path, write_rows: Callable[..., Path]) -> None:
    source = write_rows(queries())
    for name, weights in (("plain", ()), ("weighted", ("--weight", "empathy=3", "--weight", "logic=-0.5"))):
        options = ("--output", tmp_path / f"{name}.jsonl", "--json", tmp_path / f"{name}.json")
        result = run("score", trained, "--input", source, "--task", "chitchat", *options, *weights[:2])
        assert result.exit_code == 0, result.output
    for plain, row in zip(lines(tmp_path / "plain.jsonl"), lines(tmp_path / "weighted.jsonl"), strict=True):
        empathy = plain["capabilities"]["empathy"]
        assert row["rewards"] == pytest.approx([r + c for r, c in zip(plain["rewards"], empathy, strict=True)])
        change = {"rewards": row["rewards"], "contributions": row["contributions"]}
        assert row == plain | change
        gained = [w - p for w, p in zip(*(r["contributions"]["empathy"] for r in (row, plain)), strict=True)]
        assert gained == pytest.approx(empathy)
    written = [json.loads((tmp_path / f"{name}.json").read_text())["weights"] for name in ("plain", "weighted")]
    assert written == [None, {"empathy": 3.0}]
    result = run("score", trained, "--input", source, *weights)  # one for each task
    assert result.exit_code == 0, result.output


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (("--weight", "empathy"), "--weight: 'empathy' is invalid; write CAPABILITY=NUMBER"),
        (("--weight", "=2"), "--weight: '=2' is invalid"),
        (("--weight", "wit=2"), "weights: the model has no such capability (got 'wit'); use one of empathy,"),
        (("--weight", "logic=2", "--task", "chitchat"), "weights: task chitchat has no such capability (got 'logic')"),
        (("--weight", "empathy=11"), "weights.empathy: is not a number from -10 to 10 (got 11.0)"),
        (("--weight", "empathy=nan", "--skip-bad"), "(got nan)"),
    ],
)
def test_an_invalid_weight_leaves_no_file(
    trained: Path, tmp_path: Path, write_rows: Callable[..., Path], options: tuple[str, ...], message: str
) -> None:
    output = tmp_path / "scores.jsonl"
    result = run("score", trained, "--input", write_rows(queries()), "--output", output, *options)
    assert result.exit_code == 1
    assert message in result.stderr
    assert not output.exists()
