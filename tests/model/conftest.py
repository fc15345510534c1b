"""Backbones as they are loaded, and a saved model."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
from tiny import make_model, make_tiny_config

from dmoerm.config import BackboneConfig
from dmoerm.model import DMoERM
from dmoerm.model.backbone import load_backbone
from dmoerm.model.layers import Decoder


@pytest.fixture
def load(backbones: Callable[[str], str]) -> Callable[..., Decoder]:
    """Return a function from a kind and settings to the tiny backbone of that kind in float32."""

    def load(kind: str = "llama", **changes: object) -> Decoder:
        return load_backbone(BackboneConfig(**{"path": backbones(kind), "dtype": "float32", **changes}))[0]

    return load


@pytest.fixture(scope="session")
def saved(tiny_backbone: str, tmp_path_factory: pytest.TempPathFactory) -> tuple[DMoERM, Path]:
    """A model with LoRA experts and its folder. Do not change them."""
    folder = tmp_path_factory.mktemp("saved")
    model = make_model(make_tiny_config(tiny_backbone, folder))
    model.save_pretrained(folder / "model", card="# A card", run_config="seed: 0\n")
    return model, folder / "model"


@pytest.fixture
def copied(saved: tuple[DMoERM, Path], tmp_path: Path) -> Path:
    """A copy of the folder that the test may damage."""
    return Path(shutil.copytree(saved[1], tmp_path / "model"))


@pytest.fixture
def complete(saved: tuple[DMoERM, Path], tmp_path: Path) -> Path:
    """A folder of the same model that contains its backbone, which the test may damage."""
    saved[0].save_pretrained(tmp_path / "complete", card="# A card", run_config="seed: 0\n", backbone=True)
    return tmp_path / "complete"
