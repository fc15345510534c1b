"""Any number that the settings allow trains, or ends in an error that says what to change."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any, get_args

import pytest
from pydantic import BaseModel
from tiny import make_tiny_config, train_quietly

from dmoerm.config import Config, changed
from dmoerm.errors import DmoermError

LONG = ("epochs",)  # take as long as it says
# The same kinds of settings as others, or none of training.
SAME = ("ray.", "router.", "phase0.", "phase1.")
EXTREMES = {float: (1e-300, 1e30, 1e300), int: (-(2**63), 1 << 20, 2**63)}
_STEPS = {name: {"epochs": 0.5, "evaluations": 2} for name in ("phase0", "phase1", "phase2", "phase3")}
SHORT: dict[str, Any] = {**_STEPS, "base": "lora", "base_lora": {"rank": 2}}


def kinds(annotation: Any) -> Iterator[Any]:
    """A type, and what it is made of."""
    yield annotation
    for part in get_args(annotation):
        yield from kinds(part)


def numbers(settings: type[BaseModel], prefix: str = "") -> Iterator[tuple[str, type]]:
    """Name and type of every number."""
    for name, field in settings.model_fields.items():
        found = list(kinds(field.annotation))
        for inner in found:
            if isinstance(inner, type) and issubclass(inner, BaseModel):
                yield from numbers(inner, f"{prefix}{name}.")
        if name not in LONG and not prefix.startswith(SAME):
            yield from [(prefix + name, kind) for kind in EXTREMES if kind in found]


@pytest.mark.slow
@pytest.mark.parametrize(("name", "kind"), numbers(Config))
def test_any_number_trains_or_is_refused(tiny_backbone: str, tmp_path: Path, name: str, kind: type) -> None:
    config = make_tiny_config(tiny_backbone, tmp_path, **SHORT)
    for number, value in enumerate(EXTREMES[kind]):
        said = refusal(config, {name: value, "output": str(tmp_path / str(number))})
        assert "\n" not in said, value


def refusal(config: Config, settings: dict[str, Any]) -> str:
    """Why it does not train; empty: it does."""
    try:
        train_quietly(changed(config, settings))
    except DmoermError as error:
        return str(error)
    return ""
