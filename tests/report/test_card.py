"""The model card."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import yaml
from sample_results import ESTIMATE, example

from dmoerm.config import Config
from dmoerm.errors import CheckpointError
from dmoerm.report import write_card
from dmoerm.report.card import card

TASKS = {"chitchat": ["empathy", "logic"], "objective_qa": ["logic"]}


@pytest.fixture
def model_dir(tmp_path: Path) -> Path:
    """A folder that looks like a checkpoint to the card."""
    folder = tmp_path / "model"
    folder.mkdir()
    (folder / "config.json").write_text(json.dumps({"tasks": TASKS}))
    return folder


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
    assert "/home" not in text, "a published card must not name folders of the machine"
    assert sorted(file.name for file in model_dir.iterdir()) == ["README.md", "config.json"]


def test_the_card_names_the_backbone_that_the_folder_lacks(model_dir: Path) -> None:
    for name, revision in (("me/_tiny_", "0123abc"), ("/home/somebody/tiny", None)):
        source = {"name": name, "revision": revision, "digest": ""}
        (model_dir / "config.json").write_text(json.dumps({"tasks": TASKS, "backbone_source": source}))
        write_card(model_dir, example())
        text = (model_dir / "README.md").read_text()
        front = yaml.safe_load(text.split("---")[1])
        assert front.get("base_model") == (name if revision else None), "the hub links the models"
        named = f"`{name}`, revision `{revision}`" if revision else "`tiny`"
        assert f"The frozen layers are those of the backbone {named}. If this folder does not contain" in text
    assert "/home" not in text


def test_the_card_without_settings(model_dir: Path) -> None:
    write_card(model_dir, example())
    assert "settings are unknown" in (model_dir / "README.md").read_text()


def test_a_folder_without_a_model_gets_no_card(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match="is not a dmoerm checkpoint"):
        write_card(tmp_path, example())
    assert not list(tmp_path.iterdir())


def test_names_are_text_and_no_markup() -> None:
    name = "a|b *bold* _c_ <script>x</script>\n# heading [link](http://x) `d`"
    shown = "a\\|b \\*bold\\* \\_c\\_ \\<script\\>x\\</script\\> # heading \\[link\\](http://x) \\`d\\`"
    measured = {method: {name: ESTIMATE, "mean": ESTIMATE} for method in ("dmoerm", name)}
    config = Config.model_validate({"backbone": {"path": "a`b"}, "data": {"files": [f"{name}.jsonl"]}})
    results = example(accuracy=measured, paired={}, config=config.model_dump(mode="json"))
    text = card(results, {name: [name]})
    assert f"* **{shown}**: {shown}\n" in text
    assert f"| {shown} | 40 | 70.0" in text
    assert f"Data: {shown}.jsonl" in text
    assert "Backbone: `a'b`" in text
    assert "<script>" not in text
    header, rule, *rows = [line for line in text.splitlines() if line.startswith("|")]
    assert {line.replace("\\|", "").count("|") for line in (header, rule, *rows)} == {5}
