"""Backbones as they are loaded."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from dmoerm.config import BackboneConfig
from dmoerm.model.backbone import load_backbone
from dmoerm.model.layers import Decoder


@pytest.fixture
def load(backbones: Callable[[str], str]) -> Callable[..., Decoder]:
    """Return a function from a kind and settings to the tiny backbone of that kind in float32."""

    def load(kind: str = "llama", **changes: object) -> Decoder:
        return load_backbone(BackboneConfig(**{"path": backbones(kind), "dtype": "float32", **changes}))[0]

    return load
