import json
import re
from pathlib import Path
from typing import Any

import pytest
import yaml
from sample_results import DIFFERENCE, ESTIMATE, NAMES, example

from dmoerm.config import Config
from dmoerm.errors import ArtefactError
from dmoerm.report import report_html, write_card, write_report

TASKS = {"chitchat": ["empathy", "logic"], "objective_qa": ["logic"]}


@pytest.fixture
def model_dir(tmp_path: Path) -> Path:
    """A folder that looks like a model's to the card."""
    folder = tmp_path / "model"
    folder.mkdir()
    (folder / "config.json").write_text(json.dumps({"tasks": TASKS}))
    return folder


def test_the_page_is_self_contained_and_says_the_numbers(tmp_path: Path) -> None:
    write_report(tmp_path / "report.html", example(config={"name": "<b>"}))
    page = (tmp_path / "report.html").read_text()
    assert page.count("<img") == 4
    assert {place[:5] for place in re.findall(r'(?:src|href)="([^"#]+)', page)} == {"data:"}
    assert "http" not in page
    for words in ("70.0%", "60.0–80.0", "+3.0%", "98.0%", "objective_qa", "name: &lt;b&gt;", "1.0 GiB"):
        assert words in page


def test_the_page_does_without_what_was_not_measured() -> None:
    one = {m: {"chitchat": ESTIMATE, "mean": ESTIMATE} for m in ("general", "dmoerm")}
    sparse: dict[str, Any] = {
        "accuracy": one,
        "paired": {"dmoerm - general": {"chitchat": DIFFERENCE, "mean": DIFFERENCE}},
        "capabilities": {},
        "router": {"accuracy": None, "prompts": 0, "fallback": None, "confusion": {}},
        "length_bias": {},
        "time": {},
        "peak_memory": None,
    }
    page = report_html(example(**sparse))
    assert "Router" not in page
    assert "Capabilities" not in page


def test_derived_tasks_are_marked(model_dir: Path) -> None:
    changes = {m: dict.fromkeys([*NAMES, "mean_human"], ESTIMATE) for m in ("general", "dmoerm")}
    paired = {"dmoerm - general": dict.fromkeys([*NAMES, "mean_human"], DIFFERENCE)}
    results = example(derived_tasks=["chitchat"], accuracy=changes, paired=paired)
    assert "chitchat *" in report_html(results)
    assert "not given by people" in report_html(results)
    write_card(model_dir, results)
    text = (model_dir / "README.md").read_text()
    assert "| chitchat \\* |" in text
    assert "not given by people" in text


def test_the_card(model_dir: Path) -> None:
    (model_dir / "README.md").write_text("old")
    config = Config.model_validate(
        {"backbone": {"path": "/home/somebody/secret/tiny"}, "data": {"files": ["/a/b.jsonl"]}}
    )
    write_card(model_dir, example(config=config.model_dump(mode="json")))
    text = (model_dir / "README.md").read_text()
    front = yaml.safe_load(text.split("---")[1])
    assert (front["library_name"], front["pipeline_tag"]) == ("dmoerm", "text-classification")
    assert "reward-model" in front["tags"]
    assert "| chitchat | 40 | 70.0 (60.0–80.0) |" in text
    assert "* **chitchat**: empathy, logic" in text
    assert "DMoERM.from_pretrained" in text
    assert "`tiny`" in text
    assert "b.jsonl" in text
    assert "/home" not in text, "a card that is published must not tell a machine's folders"
    assert sorted(file.name for file in model_dir.iterdir()) == ["README.md", "config.json"]


def test_the_card_without_settings(model_dir: Path) -> None:
    write_card(model_dir, example())
    assert "settings are not known" in (model_dir / "README.md").read_text()


def test_a_folder_without_a_model_gets_no_card(tmp_path: Path) -> None:
    with pytest.raises(ArtefactError, match="is no dmoerm model"):
        write_card(tmp_path, example())
    assert not list(tmp_path.iterdir())
