"""One fit for every step: it learns, stops, keeps the best, resumes, and changes nothing but the trained parameters."""

from __future__ import annotations

import copy
import itertools
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from dmoerm.config import BranchStepConfig, TrainingConfig
from dmoerm.errors import CheckpointError, TrainingError
from dmoerm.model.heads import Head
from dmoerm.schema import Pair
from dmoerm.training import loop
from dmoerm.training.examples import PreferenceExample
from dmoerm.training.loop import FitResult, fit
from dmoerm.training.losses import PreferenceLossModule, VectorCollator

from .made import features, made

WIDTH = 6
COLLATE = VectorCollator(features)


def rows(count: int, seed: int, flipped: bool = False) -> list[PreferenceExample]:
    """Pairs whose better response has the larger first entry (or the smaller one)."""
    generator = torch.Generator().manual_seed(seed)
    vectors = torch.randn(count, 2, WIDTH, generator=generator)
    sign = -1 if flipped else 1
    return [made(v, [Pair(0, 1) if sign * (v[0, 0] - v[1, 0]) > 0 else Pair(1, 0)]) for v in vectors]


def head(dropout: float = 0.0) -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Dropout(dropout), Head(WIDTH)) if dropout else Head(WIDTH)


def step(**changes: Any) -> tuple[BranchStepConfig, TrainingConfig]:
    """The settings of a fit, of the step and of all steps."""
    settings = {"epochs": 6, "learning_rate": 3e-2, "evaluations": 6, "patience": 6} | changes
    shared = {name: settings.pop(name) for name in TrainingConfig.model_fields.keys() & settings.keys()}
    return BranchStepConfig(**settings), TrainingConfig(**shared)


def fitted(
    scorer: nn.Module,
    folder: Path,
    train: list[PreferenceExample] | None = None,
    validation: list[PreferenceExample] | None = None,
    watch: Callable[..., Any] = lambda *_: None,
    **changes: Any,
) -> FitResult:
    settings, shared = step(**changes)
    torch.manual_seed(5)
    (result,) = fit(
        PreferenceLossModule(scorer, settings.l2, scorer),
        rows(32, 1) if train is None else train,
        rows(32, 2) if validation is None else validation,
        collate=COLLATE,
        step=settings,
        training=shared,
        folder=folder,
        seed=3,
        watch=watch,
    )
    return result


def loss_of(scorer: nn.Module, items: list[PreferenceExample]) -> float:
    with torch.no_grad():
        return float(PreferenceLossModule(scorer)(*COLLATE(items)).loss)


def same(one: nn.Module, other: nn.Module) -> bool:
    state = other.state_dict()
    return all(torch.equal(tensor, state[name]) for name, tensor in one.state_dict().items())


def test_it_learns_the_right_way_round(tmp_path: Path) -> None:
    scorer = head()
    result = fitted(scorer, tmp_path, train=rows(128, 1), learning_rate=0.1)
    assert result.accuracy > 0.9
    assert scorer.score.weight[0, 0] > 0
    assert result.loss == pytest.approx(loss_of(scorer, rows(32, 2)), rel=1e-5)
    assert not scorer.training


def test_every_epoch_has_each_row_once_in_its_own_order(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Batches are also those of the number of rows that are left at the end of an epoch."""
    train, seen = rows(11, 1), []
    collate = VectorCollator.__call__

    def watched(self: VectorCollator, batch: Any) -> Any:
        seen.append([id(row) for row in batch])
        return collate(self, batch)

    monkeypatch.setattr(VectorCollator, "__call__", watched)
    fitted(head(), tmp_path, train=train, validation=train[:1], batch_groups=4, epochs=2, evaluations=1)
    of_train = [batch for batch in seen if len(batch) > 1]
    assert [len(batch) for batch in of_train] == [4, 4, 3, 4, 4, 3]
    epochs = [list(itertools.chain(*of_train[i : i + 3])) for i in (0, 3)]
    assert sorted(epochs[0]) == sorted(epochs[1]) == sorted(map(id, train))
    assert epochs[0] != epochs[1]


def test_a_thread_prepares_the_next_batch(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """As with an accelerator: during a step the next batch is collated, and the result is the same."""
    expected, scorer = head(), head()
    fitted(expected, tmp_path / "expected")
    train, ahead = rows(32, 1), threading.Semaphore(0)
    of_train, waited = {id(row) for row in train}, []
    collate, forward = VectorCollator.__call__, PreferenceLossModule.forward

    def counted(self: VectorCollator, batch: Any) -> Any:
        assert threading.current_thread().name.startswith("collate")
        parts = collate(self, batch)
        if id(batch[0]) in of_train:
            ahead.release()
        return parts

    def watched(self: PreferenceLossModule, batch: Any) -> Any:
        if self.training and not waited:  # the first step waits for two batches: its own and the next
            waited.extend(ahead.acquire(timeout=60) for _ in range(2))
        return forward(self, batch)

    monkeypatch.setattr(loop, "prefetches", lambda: True)
    monkeypatch.setattr(VectorCollator, "__call__", counted)
    monkeypatch.setattr(PreferenceLossModule, "forward", watched)
    fitted(scorer, tmp_path / "fit", train)
    assert waited == [True, True]
    assert same(scorer, expected)


def test_an_error_of_that_thread_ends_the_step(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(loop, "prefetches", lambda: True)
    monkeypatch.setattr(VectorCollator, "__call__", lambda *_: pytest.fail("no such file"))
    with pytest.raises(pytest.fail.Exception, match="no such file"):
        fitted(head(), tmp_path)


def test_an_evaluation_counts_every_pair(tmp_path: Path) -> None:
    """Groups have several pairs, and their number is no multiple of the batch's."""
    listed = [made(torch.randn(3, WIDTH), [Pair(0, 1), Pair(1, 2), Pair(0, 2)]) for _ in range(11)]
    scorer = head()
    result = fitted(scorer, tmp_path, validation=listed, metric_for_best_model="end")
    with torch.no_grad():
        rewards = [scorer(features(item)) for item in listed]
    right = [float(r[p.better] > r[p.worse]) for r, item in zip(rewards, listed, strict=True) for p in item.pairs[None]]
    assert result.accuracy == pytest.approx(sum(right) / len(right))
    assert result.loss == pytest.approx(loss_of(scorer, listed), rel=1e-5)


@pytest.mark.parametrize("metric", ["loss", "accuracy"])
def test_what_is_kept_is_the_best_of_all_evaluations(tmp_path: Path, metric: str) -> None:
    scorer, seen = head(), list[tuple[float, float, torch.Tensor]]()

    def watch(_: int, __: int, figures: Any) -> None:
        if "accuracy" in figures:
            seen.append((figures["loss"], figures["accuracy"], scorer.score.weight.detach().clone()))

    mixed = [*rows(24, 2), *rows(12, 4, flipped=True)]
    changes = {"learning_rate": 0.3, "metric_for_best_model": metric}
    result = fitted(scorer, tmp_path, validation=mixed, watch=watch, **changes)
    assert len(seen) == 7
    best = min(seen, key=lambda each: each[0]) if metric == "loss" else max(seen, key=lambda each: each[1])
    assert (result.loss, result.accuracy) == pytest.approx(best[:2])
    assert torch.equal(scorer.score.weight, best[2])


@pytest.mark.parametrize("metric", ["loss", "accuracy"])
def test_it_stops_when_it_gets_worse_and_only_then(tmp_path: Path, metric: str) -> None:
    flipped = rows(32, 2, flipped=True)
    worse = fitted(head(), tmp_path / "a", validation=flipped, patience=1, metric_for_best_model=metric)
    better = fitted(head(), tmp_path / "b", patience=3, learning_rate=3e-3)
    assert worse.steps < 24
    assert better.steps == 24  # 32 groups in batches of 8, 6 epochs


def test_no_epochs_keep_the_start(tmp_path: Path) -> None:
    scorer = head()
    start = copy.deepcopy(scorer)
    result = fitted(scorer, tmp_path, epochs=0)
    assert same(scorer, start)
    assert result.steps == 0
    assert result.loss == pytest.approx(loss_of(start, rows(32, 2)), rel=1e-5)


def test_frozen_parameters_and_statistics_stay(tmp_path: Path) -> None:
    scorer = nn.Sequential(nn.Linear(WIDTH, WIDTH).requires_grad_(False), head())
    start = copy.deepcopy(scorer)
    fitted(scorer, tmp_path)
    moved = {n for n, t in scorer.state_dict().items() if not torch.equal(t, start.state_dict()[n])}
    assert moved == {"1.score.weight"}


class Killed(BaseException):
    """Ends training as a signal would."""


def kill_at(at: int) -> Callable[..., None]:
    def watch(done: int, *_: Any) -> None:
        if done == at:
            raise Killed

    return watch


@pytest.mark.parametrize("changes", [{}, {"metric_for_best_model": "end"}])
@pytest.mark.parametrize("killed_at", [2, 9, 24])
def test_a_killed_fit_goes_on_to_the_same_end(tmp_path: Path, killed_at: int, changes: dict[str, Any]) -> None:
    """With dropout, so that the random state has to be that of the killed fit."""
    unbroken, broken = head(dropout=0.3), head(dropout=0.3)
    expected = fitted(unbroken, tmp_path / "a", **changes)
    with pytest.raises(Killed):
        fitted(broken, tmp_path / "b", watch=kill_at(killed_at), **changes)
    broken, finished = head(dropout=0.3), list[int]()
    assert fitted(broken, tmp_path / "b", watch=lambda done, *_: finished.append(done), **changes) == expected
    assert same(broken, unbroken)
    assert finished == list(range(killed_at // 4 * 4 + (killed_at >= 4), 25))  # there is a checkpoint every four steps


def test_a_checkpoint_cut_short_is_passed_over(tmp_path: Path) -> None:
    unbroken, broken = head(dropout=0.3), head(dropout=0.3)
    fitted(unbroken, tmp_path / "a", metric_for_best_model="end")
    with pytest.raises(Killed):
        fitted(broken, tmp_path / "b", watch=kill_at(11), metric_for_best_model="end")
    assert [checkpoint.name for checkpoint in loop.checkpoints(tmp_path / "b")] == ["checkpoint-4", "checkpoint-8"]
    (tmp_path / "b" / "checkpoint-8" / "process0.pt").unlink()
    broken = head(dropout=0.3)
    fitted(broken, tmp_path / "b", metric_for_best_model="end")
    assert same(broken, unbroken)


def test_heads_may_have_a_rate_of_their_own(tmp_path: Path) -> None:
    class Two(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.head, self.body = head(), nn.Linear(WIDTH, WIDTH)

        def forward(self, vectors: torch.Tensor) -> torch.Tensor:
            return self.head(self.body(vectors))

    torch.manual_seed(0)
    scorer = Two()
    start = copy.deepcopy(scorer)
    fitted(scorer, tmp_path, learning_rate=1e-12, head_learning_rate=1e-2, weight_decay=0)
    assert not torch.equal(scorer.head.score.weight, start.head.score.weight)
    torch.testing.assert_close(scorer.body.weight, start.body.weight, atol=1e-7, rtol=0)


def test_a_loss_that_is_not_finite_is_an_error(tmp_path: Path) -> None:
    """At the start, and later, where the start must not be taken for the best of a step that went astray."""
    bad = [made(torch.full((2, WIDTH), torch.nan), [Pair(0, 1)])]
    for changes in ({"train": bad, "validation": bad}, {"learning_rate": 1e30}):
        with pytest.raises(TrainingError, match=r"^phase1/x: the loss is not finite; lower"):
            fitted(head(), tmp_path / str(len(changes)) / "checkpoints" / "phase1" / "x", **changes)


@pytest.mark.parametrize(
    "error", [OSError(28, "No space left"), RuntimeError("PytorchStreamWriter: file write failed")]
)
def test_a_full_disk_is_one_error(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, error: Exception) -> None:
    def full(*_: Any, **__: Any) -> None:
        raise error

    monkeypatch.setattr(torch, "save", full)
    with pytest.raises(CheckpointError, match=r"cannot be written.*free some space"):
        fitted(head(), tmp_path / "step")
    assert not list((tmp_path / "step").iterdir())
    monkeypatch.setattr(torch, "save", lambda *_: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        fitted(head(), tmp_path / "other")


def test_figures_reach_an_experiment_tracker(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from accelerate import tracking

    logged: list[tuple[int, dict[str, float]]] = []

    class Recorder(tracking.GeneralTracker):
        name, requires_logging_directory, tracker = "tensorboard", True, None

        def __init__(self, project: str, folder: Path, **_: Any) -> None:
            super().__init__()
            logged.append((-1, {str(folder): 0.0}))

        def store_init_configuration(self, values: dict[str, Any]) -> None: ...

        def log(self, values: dict[str, float], step: int | None = None, **_: Any) -> None:
            logged.append((step or 0, values))

        def finish(self) -> None:
            logged.append((-2, {}))

    monkeypatch.setitem(tracking.LOGGER_TYPE_TO_CLASS, "tensorboard", Recorder)
    monkeypatch.setattr("accelerate.tracking.get_available_trackers", lambda: [tracking.LoggerType.TENSORBOARD])
    folder, settings = tmp_path / "run" / "checkpoints" / "phase0" / "head", step(epochs=2, evaluations=1)[0]
    module, parts = PreferenceLossModule(head()), (rows(8, 1), rows(8, 2))
    fit(module, *parts, collate=COLLATE, step=settings, folder=folder, seed=3, report_to=["tensorboard"])
    assert logged[0] == (-1, {str(tmp_path / "run" / "logs" / "phase0" / "head"): 0.0})
    assert [(at, sorted(values)) for at, values in logged[1:]] == [
        (0, ["accuracy", "loss"]),
        (1, ["train loss"]),
        (2, ["accuracy", "loss", "train loss"]),
        (-2, []),
    ]
