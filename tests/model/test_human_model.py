"""The model `human`, which comes with the package: it works at once, and its card and its training are as it says."""

from __future__ import annotations

import json
import zipfile
from pathlib import Path

import pytest
import torch
import yaml
from safetensors.torch import load_file

import evidence.human_data
from dmoerm import DMoERM
from dmoerm.config import load_config
from dmoerm.io.paths import SHIPPED
from dmoerm.model.integrity import check_sums
from dmoerm.training.steps import Run
from evidence import human_model

FOLDER = SHIPPED / "human"


def test_the_folder_is_small_and_undamaged(tmp_path: Path) -> None:
    check_sums(FOLDER)
    with zipfile.ZipFile(tmp_path / "human.zip", "w", zipfile.ZIP_DEFLATED) as packed:  # as a wheel is
        for file in FOLDER.rglob("*"):
            packed.write(file)
    assert (tmp_path / "human.zip").stat().st_size < 5_000_000


def test_the_card_names_every_data_set_with_its_license() -> None:
    card = (FOLDER / "README.md").read_text(encoding="utf-8")
    assert human_model.PURPOSE in card
    assert human_model.sources() in card
    sources = yaml.safe_load((Path(evidence.human_data.__file__).parent / "sources.yaml").read_text(encoding="utf-8"))
    for file in load_config("human_all").data.files:
        (license_,) = [source["license"] for source in sources if Path(file).stem in source["sets"]]
        (line,) = [line for line in card.splitlines() if Path(file).stem in line[2:].split(":")[0].split(", ")]
        assert license_ in line
    tasks = json.loads((FOLDER / "config.json").read_text(encoding="utf-8"))["tasks"]
    assert len(tasks) == 18
    assert all(f"\n| {task}" in card and f"* **{task}**" in card for task in tasks)


@pytest.mark.slow
@pytest.mark.usefixtures("smollm2")
def test_every_first_response_of_the_pages_examples_is_the_best() -> None:
    model = DMoERM.from_pretrained("human")
    examples = json.loads((SHIPPED.parent / "serving" / "page" / "examples.json").read_text(encoding="utf-8"))
    known = [example for example in examples if example["task"] in model.config.tasks]
    assert len(known) == 2
    for example in known:
        best, *others = model.score(example["prompt"], example["responses"])
        assert best.task == example["task"]
        assert all(best.reward > other.reward for other in others)


@pytest.mark.slow
def test_a_part_is_trained_again(human_data: Path, smollm2: str, tmp_path: Path) -> None:
    """Experts of one task are fitted to its rows alone. Batches differ, and so do the last digits of bfloat16."""
    from tiny import train_quietly

    settings = [
        f"data.dir={human_data}",
        "data.files=[mimics_duo.jsonl]",
        f"output={tmp_path}/run",
        f"cache={tmp_path}/cache",
    ]
    run: Run = train_quietly(load_config("human_all", settings))
    state, other = load_file(FOLDER / "model.safetensors"), load_file(run.folder / "model" / "model.safetensors")
    names = [name for name in state if "search_clarification.experts" in name]
    assert len(names) == 4 * 3
    for name in names:
        assert torch.cosine_similarity(other[name].flatten(), state[name].flatten(), dim=0) > 0.995, name
