"""The path of a preference row to the loss, as docs/architecture.md lists it, is that of a run."""

from __future__ import annotations

import inspect
import os
import re
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from tiny import train_quietly

import dmoerm
from dmoerm.config import Config
from dmoerm.training.losses import PreferenceLossModule

PACKAGE = str(Path(dmoerm.__file__).parent) + os.sep
PAGE = Path(__file__).parents[2] / "docs" / "architecture.md"
LOOP = "Loop."  # part of `fit`
NO_DATA = ("Run.step",)  # receives a closure
CLOSURE = "<locals>"
RETURN = {"load_splits", "PackedCollator.__call__"}  # pass the data on as their result


class Reached(Exception):
    pass


def listed() -> list[str]:
    """The first function of each hop on the page."""
    section = PAGE.read_text(encoding="utf-8").split("## How a preference row reaches the loss")[1].split("\n## ")[0]
    return re.findall(r"^\d\. `[\w/]+\.py:([\w.]+)`", section, re.MULTILINE)


def package_file(code: Any) -> str | None:
    """The path of a function's file within the package; None for other files."""
    return code.co_filename[len(PACKAGE) :] if code.co_filename.startswith(PACKAGE) else None


def test_a_row_reaches_the_loss_by_the_listed_hops(
    tiny_config: Callable[..., Config], monkeypatch: pytest.MonkeyPatch
) -> None:
    stack: list[str] = []
    called: set[str] = set()

    def forward(module: PreferenceLossModule, batch: Any) -> Any:
        if not module.training:
            return original(module, batch)
        codes = [frame.frame.f_code for frame in reversed(inspect.stack(0))]
        kept = [code.co_qualname for code in codes if package_file(code)]
        stack.extend(name for name in kept if name not in NO_DATA and not name.startswith(LOOP) and CLOSURE not in name)
        raise Reached

    def profile(frame: Any, event: str, _: Any) -> None:
        if event == "call" and package_file(frame.f_code):
            called.add(frame.f_code.co_qualname)

    original = PreferenceLossModule.forward
    monkeypatch.setattr(PreferenceLossModule, "forward", forward)
    sys.setprofile(profile)
    try:
        with pytest.raises(Reached):
            train_quietly(tiny_config())
    finally:
        sys.setprofile(None)
    hops = listed()
    assert stack == [name for name in hops[:-1] if name not in RETURN]
    assert set(hops[:-1]) <= called
    assert hops[-1] == "PreferenceLossModule.forward"
    assert len(hops) <= 7
