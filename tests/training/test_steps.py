"""A step that is done is not done again."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from dmoerm.training.loop import FitResult
from dmoerm.training.steps import StepMetrics, step_metrics


def done(place: Path) -> tuple[dict[str, torch.Tensor], StepMetrics]:
    place.mkdir(parents=True)
    return {"w": torch.rand(3)}, step_metrics([FitResult(0.5, 0.75, 7)])


def test_a_finished_step_is_read_not_repeated(begun: Callable[..., Any]) -> None:
    run = begun().run
    first = run.step("phase1/x", done)
    assert not (run.folder / "checkpoints" / "phase1" / "x").exists()
    assert torch.equal(run.step("phase1/x", lambda place: pytest.fail("done again"))["w"], first["w"])
    assert run.metrics()["phase1/x"] | {"seconds": 0} == {"loss": 0.5, "accuracy": 0.75, "steps": 7, "seconds": 0}


def test_a_step_that_fails_leaves_nothing_done(begun: Callable[..., Any]) -> None:
    run = begun().run

    def fail(place: Path) -> Any:
        raise RuntimeError("no power")

    with pytest.raises(RuntimeError):
        run.step("phase1/x", fail)
    assert "phase1/x" not in run.metrics()
    assert list(run.step("phase1/x", done)) == ["w"]


def test_a_steps_seed_is_its_own(begun: Callable[..., Any]) -> None:
    """What a step draws does not depend on which steps ran before."""
    one = begun().run
    drawn = {name: one.step(name, done)["w"] for name in ("a", "b")}
    other = begun(output=f"{one.folder}-2").run
    other.config = other.config.model_copy(update={"output": one.config.output})
    assert torch.equal(other.step("b", done)["w"], drawn["b"])
    assert not torch.equal(drawn["a"], drawn["b"])
    assert begun(seed=1).run.seed("a") != one.seed("a")
