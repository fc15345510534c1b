"""One fit for every step: it learns, it stops, it keeps the best, it goes on where it was, it touches nothing else."""

from __future__ import annotations

import copy
import threading
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn
from transformers import Trainer, TrainerCallback, TrainingArguments

from dmoerm.config import BranchStepConfig, HeadConfig
from dmoerm.errors import CheckpointError, ConfigError, DmoermError, TrainingError
from dmoerm.model.heads import Head
from dmoerm.schema import Pair
from dmoerm.training import trainer
from dmoerm.training.batches import PreferenceExample, VectorCollator
from dmoerm.training.fitting import FitResult, fit
from dmoerm.training.losses import PreferenceLossModule
from dmoerm.training.tracking import BestTracker

from .made import features, made

WIDTH = 6
COLLATE = VectorCollator(features)


def rows(count: int, seed: int, flipped: bool = False) -> list[PreferenceExample]:
    """Pairs whose better response has the larger first entry (or the smaller one)."""
    generator = torch.Generator().manual_seed(seed)
    vectors = torch.randn(count, 2, WIDTH, generator=generator)
    sign = -1 if flipped else 1
    return [made(v, [Pair(0, 1) if sign * (v[0, 0] - v[1, 0]) > 0 else Pair(1, 0)]) for v in vectors]


def head(seed: int = 0, **settings: Any) -> Head:
    torch.manual_seed(seed)
    return Head(WIDTH, HeadConfig(**settings))


def step(**changes: Any) -> BranchStepConfig:
    settings = {"epochs": 6, "learning_rate": 3e-2, "batch_groups": 8, "evaluations": 6, "patience": 6}
    return BranchStepConfig(**settings | changes)


def fitted(
    scorer: Head,
    folder: Path,
    train: list[PreferenceExample] | None = None,
    validation: list[PreferenceExample] | None = None,
    callbacks: tuple[TrainerCallback, ...] = (),
    **changes: Any,
) -> FitResult:
    settings = step(**changes)
    torch.manual_seed(5)
    (result,) = fit(
        PreferenceLossModule(scorer, settings.l2, scorer),
        rows(32, 1) if train is None else train,
        rows(32, 2) if validation is None else validation,
        collate=COLLATE,
        step=settings,
        folder=folder,
        seed=3,
        callbacks=callbacks,
    )
    return result


def loss_of(scorer: Head, items: list[PreferenceExample]) -> float:
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


def test_with_several_gpus_the_model_is_not_wrapped(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """As on a machine with two GPUs, where transformers' Trainer would use `DataParallel`."""

    finish = TrainingArguments.__post_init__

    def with_two(self: TrainingArguments) -> None:
        finish(self)
        self._n_gpu = 2

    monkeypatch.setattr(TrainingArguments, "__post_init__", with_two)
    monkeypatch.setattr(nn.DataParallel, "__init__", lambda *_: pytest.fail("the model is wrapped in DataParallel"))
    assert fitted(head(), tmp_path, train=rows(128, 1), learning_rate=0.1).accuracy > 0.9


def test_a_thread_prepares_the_next_batch(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """As with an accelerator: during a step the next batch is collated, and the result is the same."""
    expected, scorer = head(), head()
    fitted(expected, tmp_path / "expected")
    train, ahead = rows(32, 1), threading.Semaphore(0)
    of_train, waited = {id(row) for row in train}, []
    collate, compute_loss = VectorCollator.__call__, trainer.StepTrainer.compute_loss

    def counted(self: VectorCollator, batch: Any) -> Any:
        assert threading.current_thread().name.startswith("collate")
        parts = collate(self, batch)
        if id(batch[0]) in of_train:
            ahead.release()
        return parts

    def watched(self: Any, model: nn.Module, *args: Any, **kwargs: Any) -> Any:
        if model.training and not waited:  # the first step waits for two batches: its own and the next
            waited.extend(ahead.acquire(timeout=60) for _ in range(2))
        return compute_loss(self, model, *args, **kwargs)

    monkeypatch.setattr(trainer, "_prefetches", lambda device: True)
    monkeypatch.setattr(VectorCollator, "__call__", counted)
    monkeypatch.setattr(trainer.StepTrainer, "compute_loss", watched)
    fitted(scorer, tmp_path / "fit", train)
    assert waited == [True, True]
    assert same(scorer, expected)


def test_an_error_of_that_thread_ends_the_step(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(trainer, "_prefetches", lambda device: True)
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


def test_the_best_is_kept_not_the_last(tmp_path: Path) -> None:
    """Validation wants the opposite of training: every step makes it worse, so the start is the best."""
    scorer = head()
    start = copy.deepcopy(scorer)
    result = fitted(scorer, tmp_path, validation=rows(32, 2, flipped=True))
    assert same(scorer, start)
    assert result.loss == pytest.approx(loss_of(start, rows(32, 2, flipped=True)), rel=1e-5)


@pytest.mark.parametrize("metric", ["loss", "accuracy"])
def test_an_absurd_learning_rate_never_ends_worse_than_it_began(tmp_path: Path, metric: str) -> None:
    scorer, noise = head(), [*rows(16, 2), *rows(16, 3, flipped=True)]
    before = loss_of(scorer, noise)
    result = fitted(scorer, tmp_path, validation=noise, learning_rate=50, metric_for_best_model=metric)
    assert torch.isfinite(scorer.score.weight).all()
    if metric == "loss":
        assert result.loss == pytest.approx(loss_of(scorer, noise), rel=1e-4)
        assert result.loss <= before + 1e-6


class Watch(TrainerCallback):
    """Notes every evaluation's loss, and the weights at that time."""

    def __init__(self) -> None:
        self.seen: list[tuple[float, float, torch.Tensor]] = []

    def on_evaluate(
        self, args: Any, state: Any, control: Any, metrics: Any = None, model: Any = None, **_: Any
    ) -> None:
        weight = next(p for n, p in model.named_parameters() if n.endswith("score.weight"))
        self.seen.append((metrics["eval_loss"], metrics["eval_accuracy"], weight.detach().clone()))


@pytest.mark.parametrize("metric", ["loss", "accuracy"])
def test_what_is_kept_is_the_best_of_all_evaluations(tmp_path: Path, metric: str) -> None:
    scorer, watch = head(), Watch()
    mixed = [*rows(24, 2), *rows(12, 4, flipped=True)]
    result = fitted(
        scorer,
        tmp_path,
        validation=mixed,
        learning_rate=0.3,
        callbacks=(watch,),
        metric_for_best_model=metric,
    )
    if metric == "loss":
        assert result.loss == pytest.approx(min(loss for loss, _, _ in watch.seen))
    else:
        assert result.accuracy == max(consistency for _, consistency, _ in watch.seen)
    assert any(torch.equal(scorer.score.weight, weight) for _, _, weight in watch.seen)


@pytest.mark.parametrize("metric", ["loss", "accuracy"])
def test_it_stops_when_it_gets_worse_and_only_then(tmp_path: Path, metric: str) -> None:
    worse = fitted(
        head(),
        tmp_path / "a",
        validation=rows(32, 2, flipped=True),
        patience=1,
        metric_for_best_model=metric,
    )
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
    scorer = head(hidden=4)
    scorer.hidden.requires_grad_(False)
    start = copy.deepcopy(scorer)
    fitted(scorer, tmp_path)
    moved = {n for n, t in scorer.state_dict().items() if not torch.equal(t, start.state_dict()[n])}
    assert moved == {"score.weight"}


def test_the_same_twice(tmp_path: Path) -> None:
    made = [head(dropout=0.3), head(dropout=0.3)]
    for i, scorer in enumerate(made):
        fitted(scorer, tmp_path / str(i))
    assert same(*made)


class Killed(BaseException):
    """Ends training as a signal would."""


class KillAt(TrainerCallback):
    def __init__(self, step: int) -> None:
        self.step = step

    def on_step_end(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        if state.global_step == self.step:
            raise Killed


@pytest.mark.parametrize("metric", ["loss", "end"])
@pytest.mark.parametrize("killed_at", [2, 9, 24])
def test_a_killed_fit_goes_on_to_the_same_end(tmp_path: Path, killed_at: int, metric: str) -> None:
    unbroken, broken = head(dropout=0.3), head(dropout=0.3)
    expected = fitted(unbroken, tmp_path / "a", metric_for_best_model=metric)
    with pytest.raises(Killed):
        fitted(broken, tmp_path / "b", callbacks=(KillAt(killed_at),), metric_for_best_model=metric)
    broken = head(dropout=0.3)
    assert fitted(broken, tmp_path / "b", metric_for_best_model=metric) == expected
    assert same(broken, unbroken)


def test_a_checkpoint_cut_short_is_passed_over(tmp_path: Path) -> None:
    unbroken, broken = head(dropout=0.3), head(dropout=0.3)
    fitted(unbroken, tmp_path / "a", metric_for_best_model="end")
    with pytest.raises(Killed):
        fitted(broken, tmp_path / "b", callbacks=(KillAt(11),), metric_for_best_model="end")
    last = max(tmp_path.glob("b/checkpoint-*"), key=lambda folder: int(folder.name.split("-")[1]))
    (last / "trainer_state.json").unlink()
    broken = head(dropout=0.3)
    fitted(broken, tmp_path / "b", metric_for_best_model="end")
    assert same(broken, unbroken)


def test_accumulation_resumes_too(tmp_path: Path) -> None:
    unbroken, broken = head(dropout=0.3), head(dropout=0.3)
    fitted(unbroken, tmp_path / "a", gradient_accumulation=4)
    with pytest.raises(Killed):
        fitted(broken, tmp_path / "b", gradient_accumulation=4, callbacks=(KillAt(9),))
    broken = head(dropout=0.3)
    fitted(broken, tmp_path / "b", gradient_accumulation=4)
    assert same(broken, unbroken)


def test_an_ended_fit_started_again_gives_the_same(tmp_path: Path) -> None:
    """As when the run is killed between a fit and the file that says it is done, early stopping included."""
    for changes in ({}, {"validation": rows(32, 2, flipped=True), "patience": 1}):
        folder = tmp_path / str(len(changes))
        first, again = head(dropout=0.3), head(dropout=0.3)
        result = fitted(first, folder, **changes)
        assert fitted(again, folder, **changes) == result
        assert same(first, again)


def test_accumulated_batches_are_one_large_batch(tmp_path: Path) -> None:
    whole, parts = head(), head()
    fitted(whole, tmp_path / "a")
    fitted(parts, tmp_path / "b", gradient_accumulation=4)
    torch.testing.assert_close(whole.score.weight, parts.score.weight, atol=1e-5, rtol=1e-4)


def test_l2_pulls_to_the_start(tmp_path: Path) -> None:
    start = head()
    moved = []
    for l2 in (0.0, 10.0):
        scorer = copy.deepcopy(start)
        fitted(scorer, tmp_path / str(l2), l2=l2)
        moved.append(float((scorer.score.weight - start.score.weight).norm()))
    assert moved[1] < moved[0] / 3


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
    bad = [made(torch.full((2, WIDTH), torch.nan), [Pair(0, 1)])]
    with pytest.raises(DmoermError, match=r"not finite.*learning_rate"):
        fitted(head(), tmp_path / "step", train=bad, validation=bad)


def test_a_loss_that_is_not_finite_later_on_is_one_too(tmp_path: Path) -> None:
    """The start's loss is fine: it must not be taken for the best of a step that went astray."""
    with pytest.raises(TrainingError, match=r"^phase1/x: the loss is not finite; lower"):
        fitted(head(), tmp_path / "checkpoints" / "phase1" / "x", learning_rate=1e30)


@pytest.mark.parametrize(
    "error",
    [
        OSError(28, "No space left on device"),
        RuntimeError("PytorchStreamWriter failed writing file: file write failed"),
    ],
)
def test_a_full_disk_is_one_error(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, error: Exception) -> None:
    def full(*_: Any, **__: Any) -> None:
        raise error

    monkeypatch.setattr(Trainer, "_save_checkpoint", full)
    with pytest.raises(CheckpointError, match=r"cannot be written.*free some space"):
        fitted(head(), tmp_path / "step")
    monkeypatch.setattr(Trainer, "_save_checkpoint", lambda *_: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        fitted(head(), tmp_path / "other")


def test_a_required_margin_asks_for_more(tmp_path: Path) -> None:
    items = [made(features(item), item.pairs, 2.0) for item in rows(32, 1)]
    plain, wide = head(), head()
    fitted(plain, tmp_path / "a")
    fitted(wide, tmp_path / "b", train=items)
    assert wide.score.weight[0, 0] > plain.score.weight[0, 0]


def test_validation_requires_the_margin_as_training_does(tmp_path: Path) -> None:
    wide = [made(features(item), item.pairs, 2.0) for item in rows(32, 2)]
    scorer = head()
    result = fitted(scorer, tmp_path, validation=wide)
    with torch.no_grad():
        rewards = [scorer(features(item)) for item in wide]
    margins = [float(r[p.better] - r[p.worse]) for r, item in zip(rewards, wide, strict=True) for p in item.pairs[None]]
    expected = torch.nn.functional.softplus(2.0 - torch.tensor(margins)).mean()
    assert result.loss == pytest.approx(float(expected), rel=1e-5)
    assert result.loss == pytest.approx(loss_of(scorer, wide), rel=1e-5)


def test_the_order_counts_as_right_without_the_margin() -> None:
    scorer = head()
    right, wrong = ([made(features(i), [pair]) for i in rows(8, 1)] for pair in (Pair(0, 1), Pair(1, 0)))
    one, other = (PreferenceLossModule(scorer)(*COLLATE(items)) for items in (right, wrong))
    assert torch.equal(one.correct, 1 - other.correct)
    wide = [made(features(i), [Pair(0, 1)], 9.0) for i in rows(8, 1)]
    assert torch.equal(PreferenceLossModule(scorer)(*COLLATE(wide)).correct, one.correct)


def test_an_older_transformers_is_refused(monkeypatch):
    monkeypatch.setattr("transformers.__version__", "5.19.0")
    with pytest.raises(ConfigError, match=r"training needs transformers 5\.20\.0 or newer \(found 5\.19\.0\)"):
        trainer.check_transformers()


def test_the_mixed_precision_of_the_launcher_changes_no_loss() -> None:
    """With `accelerate launch --mixed_precision bf16`, the model runs under autocast in training and validation."""
    tracker = BestTracker(PreferenceLossModule(head()), BranchStepConfig())
    (batch,) = COLLATE(rows(8, seed=0))
    with torch.autocast("cpu", torch.bfloat16):
        mixed = tracker(batch)
    assert torch.equal(mixed.rows, tracker(batch).rows)
